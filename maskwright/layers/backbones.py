"""Backbones: timm networks that declare their strides and channels, cut to what a system uses.

They answer {stride: (B, C, H / stride, W / stride)}.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import timm
from torch import Tensor, nn

from maskwright.layers.norms import GroupNorm, freeze_norms


class Backbone(nn.Module):
    """A timm network as a feature extractor.

    Args:
        name: timm's name of the network, for example "resnet50".
        strides: the feature maps wanted, input px per cell.
        norm: "frozen" batch norm, whose statistics must come with pretrained weights, or "group", which trains from scratch.
        norm_eps: added to the variance of a frozen norm.
    """

    def __init__(self, name: str, *, strides: Sequence[int], norm: Literal["frozen", "group"], norm_eps: float = 1e-5) -> None:
        super().__init__()
        options: dict[str, Any] = {"norm_layer": GroupNorm if norm == "group" else partial(nn.BatchNorm2d, eps=norm_eps)}
        levels = {2: 0, 4: 1, 8: 2, 16: 3, 32: 4}  # timm numbers the maps of its residual networks by stride
        network: Any = timm.create_model(name, features_only=True, out_indices=tuple(levels[s] for s in strides), **options)
        self.name = name
        self.strides = tuple(strides)
        self.channels = dict(zip(network.feature_info.reduction(), network.feature_info.channels(), strict=True))
        self.network: nn.Module = network
        if norm == "frozen":
            freeze_norms(network)

    def forward(self, pixels: Tensor) -> dict[int, Tensor]:
        """Feature maps by stride."""
        return dict(zip(self.strides, self.network(pixels), strict=True))
