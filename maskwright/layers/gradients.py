"""What happens to gradients on their way back."""

from typing import Any

import torch
from torch import Tensor


class _Clamped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: float) -> Tensor:
        ctx.bound = bound
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.clamp(-ctx.bound, ctx.bound), None


def clamp_gradient(x: Tensor, bound: float) -> Tensor:
    """`x` itself; each element of its gradient is cut to ±bound."""
    clamped: Tensor = _Clamped.apply(x, bound)
    return clamped
