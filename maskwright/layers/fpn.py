"""Feature pyramid network (Lin et al., Feature Pyramid Networks for Object Detection, sec. 3)."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn


class FeaturePyramid(nn.Module):
    """Lateral 1×1 convolutions, nearest upsampling and addition from the coarsest level down, 3×3 convolutions on the way out.

    Args:
        in_channels: channels of the backbone's maps, by stride.
        channels: of every level of the pyramid.
        extra_levels: coarser levels made by taking every second cell of the coarsest one (FPN, sec. 4.1, P6).
    """

    def __init__(self, in_channels: Mapping[int, int], *, channels: int, extra_levels: int) -> None:
        super().__init__()
        self.extra_levels = extra_levels
        self.lateral = nn.ModuleDict({str(s): nn.Conv2d(c, channels, 1) for s, c in in_channels.items()})
        self.output = nn.ModuleDict({str(s): nn.Conv2d(channels, channels, 3, padding=1) for s in in_channels})
        for conv in [*self.lateral.values(), *self.output.values()]:
            assert isinstance(conv, nn.Conv2d)
            nn.init.kaiming_uniform_(conv.weight, a=1)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    def forward(self, features: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """{stride: (B, C_s, H_s, W_s)} → {stride: (B, channels, H_s, W_s)}, finest first."""
        strides = sorted(features, reverse=True)
        merged = self.lateral[str(strides[0])](features[strides[0]])
        levels = {strides[0]: self.output[str(strides[0])](merged)}
        for stride in strides[1:]:
            side = self.lateral[str(stride)](features[stride])
            merged = side + F.interpolate(merged, size=side.shape[-2:], mode="nearest")
            levels[stride] = self.output[str(stride)](merged)
        levels = dict(sorted(levels.items()))
        for _ in range(self.extra_levels):
            coarsest = max(levels)
            levels[2 * coarsest] = levels[coarsest][:, :, ::2, ::2]
        return levels
