"""Reference boxes and reference points of the cells of a feature map.

Legend: P cells of a level · A anchors per cell.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class PyramidAnchors:
    """Anchors of every cell of a feature pyramid (FPN, sec. 4.1), unrounded, true strides (detectron2).

    Args:
        sizes: square roots of the anchors' areas, px, for each stride; the same number at every stride.
        ratios: height / width.
    """

    def __init__(self, sizes: Mapping[int, Sequence[float]], *, ratios: Sequence[float] = (0.5, 1.0, 2.0)) -> None:
        self.shapes = {stride: self.cell(level_sizes, ratios) for stride, level_sizes in sizes.items()}
        self.per_cell = len(next(iter(self.shapes.values())))

    def __call__(self, features: Mapping[int, Tensor]) -> list[Tensor]:
        """Anchors of each level, xyxy px (P·A, 4)."""
        return [
            anchor_grid(shapes.to(features[stride].device), self._size(features, stride), (stride, stride))
            for stride, shapes in self.shapes.items()
        ]

    @staticmethod
    def cell(sizes: Sequence[float], ratios: Sequence[float]) -> Tensor:
        """Anchors of one cell, centred at the origin, xyxy px, (A, 4); for each size the ratios in turn."""
        return anchor_shapes([(size / ratio**0.5, size * ratio**0.5) for size in sizes for ratio in ratios])

    @staticmethod
    def _size(features: Mapping[int, Tensor], stride: int) -> tuple[int, int]:
        return features[stride].shape[2], features[stride].shape[3]


class RoundedAnchors(PyramidAnchors):
    """Anchors as torchvision lays them: half extents rounded, cells a whole number of pixels of the padded image apart.

    A level whose side does not divide that of the image is laid too densely: 13 rows on 800 px are 61 px apart, not 64.
    """

    def __call__(self, features: Mapping[int, Tensor]) -> list[Tensor]:
        """Anchors of each level, xyxy px (P·A, 4)."""
        return [
            anchor_grid(shapes.to(features[stride].device), self._size(features, stride), rounded_steps(features, stride))
            for stride, shapes in self.shapes.items()
        ]

    @staticmethod
    def cell(sizes: Sequence[float], ratios: Sequence[float]) -> Tensor:
        """Anchors of one cell, centred at the origin, xyxy px, (A, 4); for each ratio the sizes in turn."""
        return anchor_shapes([(size / ratio**0.5, size * ratio**0.5) for ratio in ratios for size in sizes]).round()


class CaffeAnchors(PyramidAnchors):
    """Anchors as the first Faster R-CNN laid them: sides of a 16 px cell rounded before they are scaled, around its middle.

    Args:
        sizes: multiples of 16 px, for each stride.
    """

    @staticmethod
    def cell(sizes: Sequence[float], ratios: Sequence[float]) -> Tensor:
        """Anchors of one cell whose corner is the origin, xyxy px, (A, 4); for each ratio the sizes in turn."""
        sides = [(width, round(width * ratio)) for ratio in ratios for width in [round((256 / ratio) ** 0.5)]]
        return anchor_shapes([(w * size / 16, h * size / 16) for w, h in sides for size in sizes]) + 8


def cell_centres(features: Mapping[int, Tensor]) -> list[Tensor]:
    """Centres of the cells of each level, (x, y) px, (P, 2) (FCOS, sec. 3.1: ⌊s/2⌋ + s·j)."""
    return [
        anchor_grid(torch.full((1, 4), stride // 2.0, device=f.device), (f.shape[2], f.shape[3]), (stride, stride))[:, :2]
        for stride, f in features.items()
    ]


def cell_corners(features: Mapping[int, Tensor]) -> list[Tensor]:
    """Points of the cells of each level as torchvision lays them, (x, y) px, (P, 2): no half cell, whole pixels apart."""
    return [
        anchor_grid(torch.zeros(1, 4, device=f.device), (f.shape[2], f.shape[3]), rounded_steps(features, stride))[:, :2]
        for stride, f in features.items()
    ]


def rounded_steps(features: Mapping[int, Tensor], stride: int) -> tuple[int, int]:
    """Whole px between the cells of a level, down and across, as torchvision finds them from the padded image's size."""
    finest = min(features)
    sides = zip(features[finest].shape[2:], features[stride].shape[2:], strict=True)
    height, width = (finest * fine // side for fine, side in sides)
    return height, width


def anchor_shapes(sides: Sequence[tuple[float, float]]) -> Tensor:
    """Boxes of (width, height) px centred at the origin, xyxy px, (A, 4)."""
    return torch.tensor([[-w / 2, -h / 2, w / 2, h / 2] for w, h in sides])


def anchor_grid(shapes: Tensor, size: tuple[int, int], steps: tuple[int, int]) -> Tensor:
    """Anchors of all cells of a map, row by row, (P·A, 4).

    Args:
        shapes: of one cell, (A, 4).
        size: (rows, columns) of the map.
        steps: px between cells, down and across; cell (i, j) has its reference point at (j·across, i·down).
    """
    y = torch.arange(size[0], device=shapes.device, dtype=shapes.dtype) * steps[0]
    x = torch.arange(size[1], device=shapes.device, dtype=shapes.dtype) * steps[1]
    y, x = torch.meshgrid(y, x, indexing="ij")
    centres = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)  # (P, 1, 4)
    return (centres + shapes).reshape(-1, 4)
