"""Normalization layers that train with any batch, or not at all."""

from collections.abc import Iterable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.layers.padding import SymmetricConv2d, symmetric_pad


class GroupNorm(nn.GroupNorm):
    """Group normalization in the precision of its input, by default 16 channels to a group (Wu and He, table 3).

    Statistics are gathered in float32 inside the kernel; keeping bf16 activations as they are halves the traffic of a layer
    that does nothing but move memory.
    """

    def __init__(self, num_channels: int, *, per_group: int = 16, **_: object) -> None:  # timm's norms get arguments of its own
        super().__init__(num_groups=max(1, num_channels // per_group), num_channels=num_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, …), normalized."""
        dtype = self.weight.dtype if x.device.type == "cpu" else x.dtype  # only the CPU kernel takes both at once
        with torch.autocast(x.device.type, enabled=False):
            return F.group_norm(x, self.num_groups, self.weight.to(dtype), self.bias.to(dtype), self.eps)


class LayerNorm2d(nn.LayerNorm):
    """Normalization over the channels of each place alone, so that windows answer the same cut out as within an image."""

    def __init__(self, num_channels: int, **_: object) -> None:  # timm's norms get arguments of its own
        super().__init__(num_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), normalized."""
        dtype = self.weight.dtype if x.device.type == "cpu" else x.dtype  # only the CPU kernel takes both at once
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = self.weight.to(dtype), self.bias.to(dtype)
            return F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, weight, bias, self.eps).permute(0, 3, 1, 2)


BranchNorm = Literal["group", "frozen"]
"""Of parts beside the backbone: trained with any batch, or fixed, as pretrained weights bring it along."""


def normed_conv(in_channels: int, channels: int, kernel: int = 3, *, norm: BranchNorm) -> nn.Sequential:
    """A convolution without bias that keeps the size, and its norm."""
    conv = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    pair = nn.Sequential(conv, GroupNorm(channels) if norm == "group" else nn.BatchNorm2d(channels))
    if norm == "frozen":
        freeze_norms(pair)
    return pair


class FrozenNorm(nn.Module):
    """Batch normalization with fixed statistics and affine numbers, all of them buffers.

    It belongs to the convolution before it, which applies it (`NormedConv2d`): y = conv(x; w·s) + b, with
    s = weight / √(running_var + eps) and b = bias - running_mean·s, is conv then norm without a pass over memory for the
    norm, forwards or backwards.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.eps = norm.eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, getattr(norm, name).detach().clone())

    def factors(self) -> tuple[Tensor, Tensor]:
        """s and b, each (C,)."""
        weight, bias, mean, variance = (self.get_buffer(n) for n in ("weight", "bias", "running_mean", "running_var"))
        scale: Tensor = weight * (variance + self.eps).rsqrt()
        return scale, bias - mean * scale

    def forward(self, x: Tensor) -> Tensor:
        """Nothing is left to do."""
        return x


class NormedConv2d(nn.Module):
    """A convolution without bias, and the frozen norm that follows it."""

    def __init__(self, conv: nn.Conv2d, norm: FrozenNorm) -> None:
        super().__init__()
        self.weight = conv.weight
        self.geometry: dict[str, Any] = {key: getattr(conv, key) for key in ("stride", "padding", "dilation", "groups")}
        self.margin = conv.margin if isinstance(conv, SymmetricConv2d) else 0
        self._norm = (norm,)  # in a tuple: it stays a child of the network, under the name that weight files know

    def extra_repr(self) -> str:
        """Numbers for print(module)."""
        return f"{tuple(self.weight.shape)}, {self.geometry}"

    def factors(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the convolution that does both."""
        scale, shift = self._norm[0].factors()
        return self.weight * scale[:, None, None, None], shift

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), normalized."""
        return F.conv2d(symmetric_pad(x, self.margin), *self.factors(), **self.geometry)

    def folded(self) -> nn.Conv2d:
        """The same as one convolution, its norm fixed for good."""
        weight, bias = self.factors()
        channels = (weight.shape[1] * self.geometry["groups"], weight.shape[0])
        conv = nn.Conv2d(*channels, (weight.shape[2], weight.shape[3]), **self.geometry)
        conv.weight = nn.Parameter(weight, requires_grad=False)
        conv.bias = nn.Parameter(bias, requires_grad=False)
        return SymmetricConv2d(conv, self.margin) if self.margin else conv


def freeze_norms(network: nn.Module) -> None:
    """Replace batch norms by frozen ones, each applied by the convolution registered right before it, as in timm's networks.

    Raises:
        ValueError: a batch norm that follows no convolution.
    """
    for path, parent in list(network.named_modules()):
        previous, previous_name = nn.Module(), ""
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                if not isinstance(previous, nn.Conv2d) or previous.bias is not None:
                    raise ValueError(f"{path}.{name} follows no convolution without bias: the network has no frozen form here")
                frozen = FrozenNorm(child)
                setattr(parent, name, frozen)
                setattr(parent, previous_name, NormedConv2d(previous, frozen))
            previous, previous_name = child, name


def fold_frozen_norms(network: nn.Module) -> None:
    """Multiply frozen norms into their convolutions for good, for inference."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, NormedConv2d):
                setattr(parent, name, child.folded())
            elif isinstance(child, FrozenNorm):
                setattr(parent, name, nn.Identity())


def has_frozen_norms(modules: Iterable[nn.Module]) -> bool:
    """Whether there are norms whose statistics come from pretrained weights."""
    return any(isinstance(m, FrozenNorm) for m in modules)
