"""Features of regions of interest.

Legend: R RoIs of a batch · S cells per side of the pooled grid.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from maskwright.structures import boxes as box_functions


@dataclass(frozen=True)
class Rois:
    """Boxes as pooled: xyxy px of the input frame (R, 4), and which image of the batch each lies in, int64 (R,)."""

    boxes: Tensor
    image_index: Tensor

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def of(cls, boxes: Sequence[Tensor]) -> "Rois":
        """One batch from the boxes (N, 4) of each image."""
        counts = torch.tensor([len(b) for b in boxes], device=boxes[0].device)
        return cls(torch.cat(list(boxes)), torch.repeat_interleave(torch.arange(len(boxes), device=boxes[0].device), counts))


def level_of(boxes: Tensor, strides: Sequence[int], *, tolerance: float = 0.0) -> Tensor:
    """Stride of the pyramid level a box is pooled from, int64 (R,) (FPN, eq. 1).

    A box of 224 px squared, the size of an ImageNet crop, goes to stride 16; one of half its side, one level finer.

    Args:
        boxes: xyxy px (R, 4).
        strides: of the levels there are.
        tolerance: levels by which a box may be too small and still go to the coarser one.
    """
    side = box_functions.area(boxes).clamp(min=0).sqrt() / 224 + 1e-8  # detectron2; keeps empty boxes finite
    wanted = 16 * torch.exp2(torch.floor(torch.log2(side) + tolerance))
    return wanted.clamp(min(strides), max(strides)).to(torch.int64)


class RoiAlign(nn.Module):
    """RoIAlign over a feature pyramid (Mask R-CNN, sec. 3, RoIAlign): nothing is rounded, cells are means of bilinear samples.

    Args:
        side: cells per side of the grid, S.
        strides: the levels RoIs are pooled from.
        sampling_ratio: samples per side of a cell; 0 takes one for each input cell.
        aligned: whether a feature lies at the middle of its cell; before detectron2 it lay at the corner, half a cell away,
            which weights trained so expect.
        level_tolerance: see `level_of`.
    """

    def __init__(
        self,
        side: int,
        *,
        strides: Sequence[int],
        sampling_ratio: int = 0,
        aligned: bool = True,
        level_tolerance: float = 0.0,
    ) -> None:
        super().__init__()
        self.aligned = aligned
        self.level_tolerance = level_tolerance
        self.side = side
        self.strides = tuple(strides)
        self.sampling_ratio = sampling_ratio

    def extra_repr(self) -> str:
        """Numbers for print(module)."""
        return (
            f"side={self.side}, strides={self.strides}, sampling_ratio={self.sampling_ratio}, aligned={self.aligned}, "
            f"level_tolerance={self.level_tolerance}"
        )

    def forward(self, features: Mapping[int, Tensor], rois: Rois) -> Tensor:
        """{stride: (B, C, H_s, W_s)} and R RoIs → float32 (R, C, S, S)."""
        levels = level_of(rois.boxes.detach(), self.strides, tolerance=self.level_tolerance)
        rows = torch.cat([rois.image_index[:, None].to(rois.boxes), rois.boxes], dim=1)  # (R, 5)
        pooled, places = [], []
        for stride in self.strides:
            place = torch.nonzero(levels == stride)[:, 0]
            places.append(place)
            pooled.append(
                roi_align(
                    features[stride].to(torch.float32),  # no bf16 kernel on the CPU, and coordinates need the bits
                    rows[place],
                    (self.side, self.side),
                    spatial_scale=1 / stride,
                    sampling_ratio=self.sampling_ratio,
                    aligned=self.aligned,
                )
            )
        order = torch.argsort(torch.cat(places))
        return torch.cat(pooled)[order]
