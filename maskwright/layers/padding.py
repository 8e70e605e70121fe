"""Convolutions with margins of other kinds.

Symmetric padding mirrors the edge, its own pixels included (SharpMask, sec. 3.3; DeepMask's code, 2016): zeros at the border of
a training patch would be pixels at the same place of a whole image; mirrored pixels narrow that gap. Networks that come from
TensorFlow have more zeros at the right and the bottom than at the left and the top.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import Tensor, nn


def symmetric_pad(x: Tensor, low: int, high: int) -> Tensor:
    """(…, H, W) → (…, H + low + high, W + low + high); cba|abcd|dcb.

    The mirrored copies are constants to the gradient, as in the authors' code.
    """
    if max(low, high) <= 1 and not torch.is_grad_enabled():
        return F.pad(x, (low, high, low, high), mode="replicate")  # the same, in one pass over memory
    for dim in (-1, -2):
        size = x.shape[dim]
        before = x.narrow(dim, 0, low).flip(dim).detach()
        after = x.narrow(dim, size - high, high).flip(dim).detach()
        x = torch.cat([before, x, after], dim=dim)
    return x


class PaddedConv2d(nn.Conv2d, ABC):
    """A convolution that makes its own margin.

    Args:
        conv: the convolution to take over, weights and all.
        low, high: rows and columns added at the top and left, and at the bottom and right.
    """

    def __init__(self, conv: nn.Conv2d, low: int, high: int) -> None:
        size: Any = conv.kernel_size
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            size,
            stride=conv.stride,  # type: ignore[arg-type]
            dilation=conv.dilation,  # type: ignore[arg-type]
            groups=conv.groups,
            bias=conv.bias is not None,
        )
        self.weight, self.bias = conv.weight, conv.bias
        self.low, self.high = low, high

    @abstractmethod
    def pad(self, x: Tensor) -> Tensor:
        """(…, H, W) → (…, H + low + high, W + low + high)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W)."""
        return F.conv2d(self.pad(x), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class SymmetricConv2d(PaddedConv2d):
    """A convolution whose padding mirrors the edge."""

    def pad(self, x: Tensor) -> Tensor:
        """The edge mirrored on all sides."""
        return symmetric_pad(x, self.low, self.high)


class SameConv2d(PaddedConv2d):
    """TensorFlow's SAME padding as it is for sides that are multiples of the stride, whatever the side.

    There the margin of a convolution with stride depends on whether the side is even, and with it where features lie. Here it
    does not: a map never changes with what lies beyond the image.
    """

    def pad(self, x: Tensor) -> Tensor:
        """Zeros on all sides."""
        return F.pad(x, (self.low, self.high, self.low, self.high))


def conv3x3(in_channels: int, out_channels: int) -> SymmetricConv2d:
    """A 3×3 convolution that keeps the size by symmetric padding."""
    return SymmetricConv2d(nn.Conv2d(in_channels, out_channels, 3), 1, 1)


def pad_symmetrically(network: nn.Module) -> None:
    """Make every padded convolution of a network pad symmetrically; poolings stay as they are."""

    def symmetric(conv: nn.Conv2d) -> nn.Conv2d:
        if isinstance(conv, PaddedConv2d):
            return SymmetricConv2d(conv, conv.low, conv.high)
        margin = int(conv.padding[0])
        return SymmetricConv2d(conv, margin, margin) if margin else conv

    _replace_convolutions(network, symmetric)


def pad_alike(network: nn.Module) -> None:
    """Make every convolution of a timm network with TensorFlow's padding a `SameConv2d`."""

    def same(conv: nn.Conv2d) -> nn.Conv2d:
        if not isinstance(conv, Conv2dSame):
            return conv
        reach = conv.dilation[0] * (conv.kernel_size[0] - 1)
        low = max(0, reach + 1 - conv.stride[0]) // 2  # half of what sides that are multiples of the stride lack
        return SameConv2d(conv, low, reach - low)

    _replace_convolutions(network, same)


def _replace_convolutions(network: nn.Module, replaced: Callable[[nn.Conv2d], nn.Conv2d]) -> None:
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d):
                setattr(parent, name, replaced(child))
