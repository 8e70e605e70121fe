"""Normalization layers that train with any batch, or not at all."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import FrozenBatchNormAct2d
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d


class GroupNorm(nn.GroupNorm):
    """Group normalization, 16 channels to a group (Wu and He, Group Normalization, table 3), in the precision of its input.

    Statistics are gathered in float32 inside the kernel; keeping bf16 activations as they are halves the traffic of a layer
    that does nothing but move memory.
    """

    def __init__(self, num_channels: int, **_: object) -> None:  # timm hands its norms keyword arguments of its own
        super().__init__(num_groups=max(1, num_channels // 16), num_channels=num_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, …), normalized."""
        dtype = self.weight.dtype if x.device.type == "cpu" else x.dtype  # only the CPU kernel takes both at once
        with torch.autocast(x.device.type, enabled=False):
            return F.group_norm(x, self.num_groups, self.weight.to(dtype), self.bias.to(dtype), self.eps)


def fold_frozen_norms(module: nn.Module) -> None:
    """Make frozen norms part of the convolutions they follow, for inference: the numbers stay, the passes over memory go.

    A norm belongs to a convolution registered right before it, as in timm's networks.
    """
    for parent in module.modules():
        previous: nn.Module | None = None
        for name, child in parent.named_children():
            if isinstance(child, (FrozenBatchNorm2d, FrozenBatchNormAct2d)) and isinstance(previous, nn.Conv2d):
                norm: Any = child
                scale: Tensor = norm.weight * (norm.running_var + norm.eps).rsqrt()
                shift: Tensor = norm.bias - norm.running_mean * scale
                previous.weight = nn.Parameter(previous.weight * scale[:, None, None, None], requires_grad=False)
                bias = shift if previous.bias is None else shift + previous.bias * scale
                previous.bias = nn.Parameter(bias, requires_grad=False)
                setattr(parent, name, getattr(norm, "act", nn.Identity()))
            previous = child


def has_frozen_norms(modules: Iterable[nn.Module]) -> bool:
    """Whether there are norms whose statistics come from pretrained weights."""
    return any(isinstance(m, (FrozenBatchNorm2d, FrozenBatchNormAct2d)) for m in modules)
