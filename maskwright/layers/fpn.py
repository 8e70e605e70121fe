"""Feature pyramid network (Lin et al., Feature Pyramid Networks for Object Detection, sec. 3)."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.layers.norms import BranchNorm, normed_conv


class FeaturePyramid(nn.Module):
    """Lateral 1×1 convolutions, nearest upsampling and addition from the coarsest level down, 3×3 convolutions on the way out.

    Args:
        in_channels: channels of the backbone's maps, by stride.
        channels: of every level of the pyramid.
        coarser: makes the levels that follow from the coarsest one, like `SubsampledLevels`.
        norm: after each convolution; by default none, but biases.
    """

    def __init__(
        self, in_channels: Mapping[int, int], *, channels: int, coarser: nn.Module, norm: BranchNorm | None = None
    ) -> None:
        super().__init__()
        self.coarser = coarser
        self.lateral = nn.ModuleDict({str(s): _conv(c, channels, 1, norm) for s, c in in_channels.items()})
        self.output = nn.ModuleDict({str(s): _conv(channels, channels, 3, norm) for s in in_channels})

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
        for level in self.coarser(levels[strides[0]]):
            levels[2 * max(levels)] = level
        return levels


class SubsampledLevels(nn.Module):
    """Coarser levels made by taking every second cell (FPN, sec. 4.1, P6)."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, level: Tensor) -> list[Tensor]:
        """Each half the size of the one before it, the first of `level` (B, C, H, W)."""
        return [level[:, :, :: 2**k, :: 2**k] for k in range(1, self.count + 1)]


class ConvolvedLevels(nn.Module):
    """Coarser levels by 3×3 convolutions of stride 2, with ReLU between them (RetinaNet, sec. 4; FCOS feeds it P5, not C5)."""

    def __init__(self, channels: int, *, count: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_plain(nn.Conv2d(channels, channels, 3, stride=2, padding=1)) for _ in range(count))

    def forward(self, level: Tensor) -> list[Tensor]:
        """Each half the size of the one before it, rounded up, the first of `level` (B, C, H, W)."""
        levels = [level]
        for conv in self.convs:
            levels.append(conv(_two_wide(F.relu(levels[-1]) if len(levels) > 1 else level)))
        return levels[1:]


def _two_wide(level: Tensor) -> Tensor:
    """A column of zeros beside a single one, which a convolution of stride 2 with padding sees anyway.

    Without it PyTorch 2.15 leaves whatever lay in memory in the gradient of the weights (bf16 on CPUs that have it, width 1).
    """
    return F.pad(level, (0, 1)) if level.shape[3] == 1 else level


def _conv(in_channels: int, channels: int, kernel: int, norm: BranchNorm | None) -> nn.Module:
    if norm is not None:
        return normed_conv(in_channels, channels, kernel, norm=norm)
    return _plain(nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2))


def _plain(conv: nn.Conv2d) -> nn.Conv2d:
    assert conv.bias is not None
    nn.init.kaiming_uniform_(conv.weight, a=1)
    nn.init.zeros_(conv.bias)
    return conv
