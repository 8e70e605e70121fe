"""Symmetric padding: the edge is mirrored, its own pixels included (SharpMask, sec. 3.3; DeepMask's code, 2016).

Zeros at the border of a training patch would be pixels at the same place of a whole image; mirrored pixels narrow that gap.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def symmetric_pad(x: Tensor, width: int) -> Tensor:
    """(…, H, W) → (…, H + 2·width, W + 2·width); cba|abcd|dcb.

    The mirrored copies are constants to the gradient, as in the authors' code.
    """
    if width == 0:
        return x
    if width == 1 and not torch.is_grad_enabled():
        return F.pad(x, (1, 1, 1, 1), mode="replicate")  # the same, in one pass over memory
    for dim in (-1, -2):
        size = x.shape[dim]
        low = x.narrow(dim, 0, width).flip(dim).detach()
        high = x.narrow(dim, size - width, width).flip(dim).detach()
        x = torch.cat([low, x, high], dim=dim)
    return x


class SymmetricConv2d(nn.Conv2d):
    """A convolution whose padding mirrors the edge.

    Args:
        conv: the convolution to take over, weights and all.
        margin: rows and columns mirrored on each side, in place of its own padding.
    """

    def __init__(self, conv: nn.Conv2d, margin: int) -> None:
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
        self.margin = margin

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W)."""
        return F.conv2d(symmetric_pad(x, self.margin), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def conv3x3(in_channels: int, out_channels: int) -> SymmetricConv2d:
    """A 3×3 convolution that keeps the size by symmetric padding."""
    return SymmetricConv2d(nn.Conv2d(in_channels, out_channels, 3), 1)


def pad_symmetrically(network: nn.Module) -> None:
    """Make every padded convolution of a network pad symmetrically; poolings stay as they are."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and child.padding != (0, 0):
                setattr(parent, name, SymmetricConv2d(child, int(child.padding[0])))
