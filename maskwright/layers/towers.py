"""Towers: the stacks of 3×3 convolutions before the predictors of one-stage systems (RetinaNet, sec. 4; FCOS, sec. 3.2)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from maskwright.layers.initialization import init_normal
from maskwright.layers.norms import GroupNorm


class Tower(nn.Sequential):
    """3×3 convolutions with bias, each followed by group normalization (8 channels a group) and ReLU.

    Args:
        channels: in, between and out.
        num_convs: how many.
    """

    def __init__(self, channels: int, *, num_convs: int) -> None:
        layers: list[nn.Module] = []
        for _ in range(num_convs):
            conv = nn.Conv2d(channels, channels, 3, padding=1)
            init_normal(conv, std=0.01)
            layers += [conv, GroupNorm(channels, per_group=8), nn.ReLU(inplace=True)]
        super().__init__(*layers)


def flatten_levels(maps: Mapping[int, Tensor]) -> Tensor:
    """The cells of all levels in a row, each level row by row: {stride: (B, C, H_s, W_s)} → (B, P, C), P cells in all."""
    return torch.cat([m.flatten(2) for m in maps.values()], dim=2).transpose(1, 2)
