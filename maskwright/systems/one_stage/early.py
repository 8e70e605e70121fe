"""EmbedMask as the arXiv paper has it (V1), and its successor with one margin per object (V2): embedmask.py, other parts.

Source: Ying et al., arXiv 1912.01954, and its code of February (V1) and May 2020 (V2). V1 fills `embedmask-*-arxiv`: embeddings
without coordinates, a margin predicted from the box alone, an object drawn in training by the mean of its good locations, which
a smooth loss draws together so that one of them suffices at inference. V2 fills `embedmask-*-scalar`: coordinates, a margin
from the features, the best location instead of a mean.

Legend: as in embedmask.py · n locations of one object.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from maskwright.layers.initialization import init_normal
from maskwright.layers.precision import Float32Conv2d, Float32Linear
from maskwright.layers.towers import flatten_levels
from maskwright.structures import Instances
from maskwright.systems.one_stage.embedmask import MASK_WEIGHT, PRIOR_LOG_PRECISION, Lessons, Proposals, clip_cells, overlaps
from maskwright.systems.one_stage.fcos import Answers
from maskwright.systems.system import Loss


class BoxMargin(nn.Module):
    """A margin from the four distances of the box, which it does not move (V1; MARGIN from box regression, BOX_TO_MARGIN)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = Float32Linear(4, 1)
        init_normal(self.linear, std=0.01, bias=PRIOR_LOG_PRECISION)

    def forward(self, answers: Answers) -> Tensor:
        """The logarithm of a precision, (B, P, 1)."""
        distances = answers.ltrb.detach() * answers.locations.strides[:, None]  # px
        answer: Tensor = self.linear(distances / 800)
        return answer


class ScalarMargin(nn.Module):
    """A margin from the box tower's features / 32 (V2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Float32Conv2d(channels, 1, 3, padding=1)
        init_normal(self.conv, std=0.01, bias=PRIOR_LOG_PRECISION)

    def forward(self, answers: Answers) -> Tensor:
        """The logarithm of a precision, (B, P, 1)."""
        return flatten_levels({stride: self.conv(x / 32) for stride, x in answers.box_features.items()})


class AveragedPositives:
    """Each object is drawn by the mean of its locations whose boxes overlap it by more than one half (V1).

    Where none does, by the best one, and its equals.

    Args:
        smooth: whether the spread around the mean is averaged over an object's locations (the paper), or summed (V1's code).
    """

    SMOOTH_WEIGHT = 0.1

    def __init__(self, *, smooth: Literal["mean", "sum"] = "mean") -> None:
        self.smooth = smooth

    def __call__(
        self, answers: Answers, proposals: Proposals, image: int, matched: Tensor, target: Instances, generator: torch.Generator
    ) -> Lessons:
        """See `Teacher`; masks and spreads are divided by the number of all objects of the image, and averaged over images."""
        index = torch.nonzero(matched >= 0)[:, 0]
        rows = matched[index]
        iou = overlaps(answers, image, index, target.boxes[rows])
        best = iou.new_zeros(len(target)).scatter_reduce(0, rows, iou, "amax")
        good = (iou > 0.5) | ((best[rows] <= 0.5) & (iou == best[rows]))
        index, rows = index[good], rows[good]
        taught, place = torch.unique(rows, return_inverse=True)
        counts = torch.zeros(len(taught), device=rows.device).index_add(0, place, torch.ones_like(iou[good]))[:, None]
        spread = iou.new_zeros(())
        means = []
        for column in (proposals.embeddings[image, index], proposals.precisions[image, index]):
            mean = column.new_zeros(len(taught), column.shape[1]).index_add(0, place, column) / counts
            apart = (column - mean[place]).square().sum(dim=1)
            spread = spread + (apart / counts[place, 0] if self.smooth == "mean" else apart).sum()
            means.append(mean)
        num_objects = max(1, int((~target.crowd).sum()))
        smooth = Loss(self.SMOOTH_WEIGHT * spread / num_objects, spread.new_ones(()))
        return Lessons(taught, means[0], means[1], weight=MASK_WEIGHT / num_objects, normalizer=1.0, losses={"smooth": smooth})


def around_box(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Cells of stride 4 in the box grown by a tenth of its sides and a cell, the map's last row and column never (V1, V2).

    Args:
        boxes: xyxy px (R, 4).
        size: (h, w) of the map.

    Returns:
        bool (R, h, w).
    """
    cells = boxes / 4
    grow = (cells[:, 2:] - cells[:, :2]) * 0.1 + 1
    low = (cells[:, :2] - grow).clamp(min=0)
    high = torch.minimum(cells[:, 2:] + grow, cells.new_tensor([size[1] - 1, size[0] - 1]))
    x, y = torch.arange(size[1], device=boxes.device), torch.arange(size[0], device=boxes.device)
    columns = (x >= low[:, :1]) & (x < high[:, :1])
    rows = (y >= low[:, 1:]) & (y < high[:, 1:])
    return rows[:, :, None] & columns[:, None, :]


def grown_by_a_cell(boxes: Tensor, stride: int, size: tuple[int, int]) -> Tensor:
    """The cells that begin within a cell of the box (V1, V2)."""
    low, high = torch.ceil(boxes[:, :2] / stride - 1), torch.ceil(boxes[:, 2:] / stride + 1)
    return clip_cells(torch.cat([low, high], dim=1).long(), size)
