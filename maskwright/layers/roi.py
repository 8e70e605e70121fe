"""Features of regions of interest.

Legend: R RoIs of a batch · S cells per side of the pooled grid.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_pool

from maskwright.structures import boxes as box_functions

_LOOK_UPS = 8 * 2**20  # feature vectors gathered in one go
_WARPED = 64 * 2**20  # numbers sampled in one go, before the maximum is taken


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


class OneMapOperator(nn.Module):
    """What pools RoIs from a single map.

    Args:
        side: cells per side of the grid, S.
        stride: of the map.
    """

    def __init__(self, side: int, *, stride: int) -> None:
        super().__init__()
        self.side = side
        self.stride = stride

    def extra_repr(self) -> str:
        """Numbers for print(module)."""
        return f"side={self.side}, stride={self.stride}"


class RoiPool(OneMapOperator):
    """The greatest feature of each cell, cells rounded to whole features (Fast R-CNN, sec. 2.1), by torchvision."""

    def forward(self, features: Mapping[int, Tensor], rois: Rois) -> Tensor:
        """{stride: (B, C, H_s, W_s)} and R RoIs → float32 (R, C, S, S)."""
        rows = torch.cat([rois.image_index[:, None].to(rois.boxes.dtype), rois.boxes], dim=1)
        with torch.autocast(rois.boxes.device.type, enabled=False):
            pooled: Tensor = roi_pool(features[self.stride].float(), rows, self.side, 1 / self.stride)
        return pooled


class RoiAlign(nn.Module):
    """RoIAlign over a feature pyramid (Mask R-CNN, sec. 3, RoIAlign): nothing is rounded, cells are means of bilinear samples.

    A cell is a weighted sum of feature vectors. Which vectors and with what weights follows from the boxes alone, so that
    pooling is one look-up in the table of all vectors of a level (`embedding_bag`), with gradients to features and boxes.

    Args:
        side: cells per side of the grid, S.
        strides: the levels RoIs are pooled from.
        sampling_ratio: samples per side of a cell; 0 takes one for each input cell.
        aligned: whether a feature lies at the middle of its cell; before detectron2 it lay at the corner, half a cell away,
            and no RoI was smaller than a cell, which weights trained so expect.
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
        self.side = side
        self.strides = tuple(strides)
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned
        self.level_tolerance = level_tolerance

    def extra_repr(self) -> str:
        """Numbers for print(module)."""
        return (
            f"side={self.side}, strides={self.strides}, sampling_ratio={self.sampling_ratio}, aligned={self.aligned}, "
            f"level_tolerance={self.level_tolerance}"
        )

    def forward(self, features: Mapping[int, Tensor], rois: Rois) -> Tensor:
        """{stride: (B, C, H_s, W_s)} and R RoIs → float32 (R, C, S, S)."""
        levels = level_of(rois.boxes.detach(), self.strides, tolerance=self.level_tolerance)
        pooled, places, idle = [], [], []
        with torch.autocast(rois.boxes.device.type, enabled=False):
            for stride in self.strides:
                rows = torch.nonzero(levels == stride)[:, 0]
                if not len(rows) and features[stride].requires_grad:
                    idle.append(features[stride][:0].sum())  # zero: its gradient is zero too, and not missing
                table = features[stride].permute(0, 2, 3, 1)  # (B, H, W, C)
                table = table.to(torch.promote_types(table.dtype, torch.float32))
                for place in self._alike(rois.boxes[rows], stride):
                    places.append(rows[place])
                    boxes = rois.boxes[rows[place]] / stride
                    pooled.append(self._pool(table, boxes, rois.image_index[rows[place]]))
        channels = features[self.strides[0]].shape[1]
        nothing = rois.boxes.new_zeros((0, self.side**2 * channels))
        cells = torch.cat(pooled)[torch.argsort(torch.cat(places))] if pooled else nothing  # (R, S·S·C)
        if idle:
            cells = cells + torch.stack(idle).sum()
        return cells.reshape(-1, self.side, self.side, channels).permute(0, 3, 1, 2)

    def _alike(self, boxes: Tensor, stride: int) -> list[Tensor]:
        """Rows of RoIs that take the same number of samples, in groups that fit the memory budget."""
        samples = self._samples(boxes.detach() / stride)  # (n, 2)
        kinds, kind_of = torch.unique(samples, dim=0, return_inverse=True)
        groups: list[Tensor] = []
        for kind, (down, across) in enumerate(kinds.tolist()):
            budget = max(1, _LOOK_UPS // (4 * self.side**2 * int(down) * int(across)))
            groups += torch.split(torch.nonzero(kind_of == kind)[:, 0], budget)
        return groups

    def _samples(self, boxes: Tensor) -> Tensor:
        """Samples of a cell, (down, across), of RoIs in feature cells, float32 (n, 2)."""
        if self.sampling_ratio:
            return torch.full_like(boxes[:, :2], self.sampling_ratio)
        return torch.ceil(self._extents(boxes) / self.side).clamp(min=1).flip(1)

    def _extents(self, boxes: Tensor) -> Tensor:
        """Width and height of RoIs, (n, 2)."""
        extents = boxes[:, 2:] - boxes[:, :2]
        return extents if self.aligned else extents.clamp(min=1)

    def _pool(self, table: Tensor, boxes: Tensor, image_index: Tensor) -> Tensor:
        """Cells of RoIs, boxes in feature cells (n, 4), that all take the same samples; (n, S·S·C)."""
        y, x = self._axes(table, boxes)  # (n, S, samples, 2) each
        cells = _look_up(table, image_index, (y[0].flatten(2), y[1].flatten(2)), (x[0].flatten(2), x[1].flatten(2)))
        return cells.reshape(len(boxes), -1)

    def _axes(self, table: Tensor, boxes: Tensor) -> tuple["_Axis", "_Axis"]:
        _, height, width, _ = table.shape
        down, across = self._samples(boxes.detach())[0].long().tolist()
        starts = boxes[:, :2] - 0.5 if self.aligned else boxes[:, :2]
        extents = self._extents(boxes)
        y = self._axis(starts[:, 1], extents[:, 1], down, height)
        return y, self._axis(starts[:, 0], extents[:, 0], across, width)

    def _axis(self, start: Tensor, extent: Tensor, samples: int, size: int) -> "_Axis":
        """Feature cells on one axis and their shares in each cell of the grid, int64 and float32, (n, S, samples, 2).

        A sample is shared by the features on both sides of it; one more than a cell outside the map counts nothing.
        """
        grid = torch.arange(self.side, device=start.device)[:, None]
        sample = torch.arange(samples, device=start.device) + 0.5
        step = (extent / self.side)[:, None, None]
        position = start[:, None, None] + grid * step + sample * step / samples  # (n, S, samples)
        share = ((position >= -1) & (position <= size)).to(position.dtype) / samples
        return _neighbours(position, share, size)


class RoiAlignMax(RoiAlign):
    """RoIAlign that takes the greatest of a cell's samples instead of their mean (Mask R-CNN, table 2c)."""

    def _pool(self, table: Tensor, boxes: Tensor, image_index: Tensor) -> Tensor:
        (y, y_share), (x, x_share) = self._axes(table, boxes)
        down, across = y.shape[2], x.shape[2]
        whole = (y_share * down).flatten(1, 2), (x_share * across).flatten(1, 2)  # each sample counts in full
        samples = _look_up(table, image_index, (y.flatten(1, 2), whole[0]), (x.flatten(1, 2), whole[1]))
        cells = samples.reshape(len(boxes), self.side, down, self.side, across, -1).amax(dim=(2, 4))
        return cells.reshape(len(boxes), -1)


class ByLevel(nn.Module):
    """A RoI operator of one map on a feature pyramid: each RoI is pooled from the level of its size.

    Args:
        operators: by stride, with as many cells each.
    """

    def __init__(self, operators: Mapping[int, "RoiPool | RoiWarp"]) -> None:
        super().__init__()
        self.side = next(iter(operators.values())).side
        self.strides = tuple(operators)
        self.operators = nn.ModuleList(operators.values())

    def forward(self, features: Mapping[int, Tensor], rois: Rois) -> Tensor:
        """{stride: (B, C, H_s, W_s)} and R RoIs → float32 (R, C, S, S)."""
        levels = level_of(rois.boxes.detach(), self.strides)
        pooled, places = [], []
        for stride, operator in zip(self.strides, self.operators, strict=True):
            rows = torch.nonzero(levels == stride)[:, 0]
            pooled.append(operator(features, Rois(rois.boxes[rows], rois.image_index[rows])))
            places.append(rows)
        return torch.cat(pooled)[torch.argsort(torch.cat(places))]


class RoiWarp(OneMapOperator):
    """RoI warping (MNC, arXiv 1512.04412, sec. 4): single bilinear samples on a regular grid, then the greatest of 2×2.

    Samples begin at the RoI's left and top edge and end one step before the right and bottom one; a feature lies at the corner
    of its cell, and the map goes on for half a cell as it is at its edge. Exact gradients to features and boxes.
    """

    SAMPLES = 2

    def forward(self, features: Mapping[int, Tensor], rois: Rois) -> Tensor:
        """{stride: (B, C, H_s, W_s)} and R RoIs → float32 (R, C, S, S)."""
        table = features[self.stride].permute(0, 2, 3, 1)  # (B, H, W, C)
        table = table.to(torch.promote_types(table.dtype, torch.float32))
        budget = max(1, _WARPED // ((self.SAMPLES * self.side) ** 2 * table.shape[3]))
        parts = [
            self.reduce(self.samples(table, boxes, images).permute(0, 3, 1, 2))
            for boxes, images in zip(torch.split(rois.boxes, budget), torch.split(rois.image_index, budget), strict=True)
        ]
        return torch.cat(parts)

    def reduce(self, samples: Tensor) -> Tensor:
        """Samples (n, C, 2·S, 2·S) to cells (n, C, S, S)."""
        return F.max_pool2d(samples, self.SAMPLES)

    def samples(self, table: Tensor, boxes: Tensor, image_index: Tensor) -> Tensor:
        """Before the maximum: table (B, H, W, C), boxes xyxy px (n, 4) → (n, 2·S, 2·S, C)."""
        corners = self.corners(boxes.to(table.dtype) / self.stride)
        extents = (corners[:, 2:] - corners[:, :2]).clamp(min=0)
        y = self._axis(corners[:, 1], extents[:, 1], table.shape[1])
        x = self._axis(corners[:, 0], extents[:, 0], table.shape[2])
        count = self.SAMPLES * self.side
        return _look_up(table, image_index, y, x).reshape(len(boxes), count, count, table.shape[3])

    def corners(self, boxes: Tensor) -> Tensor:
        """Boxes in feature cells (n, 4) as they are sampled: the paper's are not rounded."""
        return boxes

    def _axis(self, start: Tensor, extent: Tensor, size: int) -> "_Axis":
        count = self.SAMPLES * self.side
        position = start[:, None] + torch.arange(count, device=start.device) / count * extent[:, None]  # (n, 2·S)
        inside = (position >= -0.5) & (position <= size - 0.5)
        return _neighbours(position, inside.to(position.dtype), size)


class RoundedRoiWarp(RoiWarp):
    """RoI warping as released: corners rounded to whole features, a step that gradients ignore."""

    def corners(self, boxes: Tensor) -> Tensor:
        """Boxes in feature cells, (n, 4), halves rounded up."""
        return boxes + (torch.floor(boxes + 0.5) - boxes).detach()


class MeanRoiWarp(RoundedRoiWarp):
    """The same with the mean of 2×2 samples (Mask R-CNN, table 2c)."""

    def reduce(self, samples: Tensor) -> Tensor:
        """Samples (n, C, 2·S, 2·S) to cells (n, C, S, S)."""
        return F.avg_pool2d(samples, self.SAMPLES)


class PositionSensitiveAlign(nn.Module):
    """Maps of RoIs of which each part is read from channels of its own (R-FCN, arXiv 1605.06409, sec. 2; FCIS, sec. 3.1).

    A RoI is divided into G×G parts; its grid of S×S points has S / G of them in each, a bilinear sample each. The authors' code
    takes means over rounded cells in their place.

    Args:
        side: points per side of the grid, S.
        parts: per side, G, a divisor of S.
        stride: of the map.
    """

    def __init__(self, side: int, *, parts: int, stride: int) -> None:
        super().__init__()
        if side % parts:
            raise ValueError(f"got {side} points and {parts} parts a side, expected as many points in every part")
        self.side = side
        self.parts = parts
        self.stride = stride

    def extra_repr(self) -> str:
        """Numbers for print(module)."""
        return f"side={self.side}, parts={self.parts}, stride={self.stride}"

    def forward(self, maps: Tensor, rois: Rois) -> Tensor:
        """Maps (B, G·G·D, H, W), the D channels of a part next to each other, and R RoIs → float32 (R, D, S, S)."""
        batch, channels, height, width = maps.shape
        groups = self.parts**2
        table = maps.permute(0, 2, 3, 1).reshape(batch, height, width * groups, channels // groups)
        table = table.to(torch.promote_types(table.dtype, torch.float32))
        corners = rois.boxes / self.stride - 0.5
        extents = corners[:, 2:] - corners[:, :2]
        ratio = (torch.arange(self.side, device=maps.device, dtype=corners.dtype) + 0.5) / self.side
        y = _neighbours(corners[:, 1, None] + ratio * extents[:, 1, None], corners.new_ones(1), height)  # (R, S, 2)
        x = _neighbours(corners[:, 0, None] + ratio * extents[:, 0, None], corners.new_ones(1), width)
        part = torch.arange(self.side, device=maps.device) * self.parts // self.side
        of_point = part[:, None] * self.parts + part  # (S, S)
        points = _look_up(table, rois.image_index, y, (x[0] * groups, x[1]), of_point)
        return points.reshape(len(rois), self.side, self.side, channels // groups).permute(0, 3, 1, 2)


RoiOperator = RoiAlign | RoiPool | RoiWarp | ByLevel
"""What pools the features of RoIs; `side` cells a side."""


# Looking up features

_Axis = tuple[Tensor, Tensor]
"""Features of one axis that each cell is made of, and their weights: int64 and float, (n, cells, features of a cell)."""


def _neighbours(position: Tensor, share: Tensor, size: int) -> _Axis:
    """Both features next to each sample and their part of its share; the outermost stand for what is beyond, (…, 2)."""
    position = position.clamp(0, size - 1)
    low = position.detach().floor()
    fraction = position - low
    index = low.long()
    both = torch.stack([index, (index + 1).clamp(max=size - 1)], dim=-1)
    return both, torch.stack([(1 - fraction) * share, fraction * share], dim=-1)


def _look_up(table: Tensor, image_index: Tensor, y: _Axis, x: _Axis, shift: Tensor | None = None) -> Tensor:
    """Weighted sums of feature vectors, in one look-up in the table of all of them (B, H, W, C); (n · cells · cells, C).

    `shift` is added to where each cell's vectors are in the table, (cells, cells).
    """
    _, height, width, channels = table.shape
    first = (image_index * (height * width))[:, None, None, None, None]
    index = first + (y[0] * width)[:, :, None, :, None] + x[0][:, None, :, None, :]
    if shift is not None:
        index = index + shift[:, :, None, None]
    weight = y[1][:, :, None, :, None] * x[1][:, None, :, None, :]
    look_ups = y[0].shape[-1] * x[0].shape[-1]
    return F.embedding_bag(
        index.reshape(-1, look_ups),
        table.reshape(-1, channels),
        per_sample_weights=weight.reshape(-1, look_ups).to(table.dtype),
        mode="sum",
    )
