"""Reference boxes of the cells of a feature map.

Legend: P cells of a level · A anchors per cell.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def anchor_shapes(sizes: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """Anchors of one cell, centred at the origin, xyxy px, (A, 4), unrounded; for each size the ratios in turn.

    Args:
        sizes: square roots of the areas, px.
        ratios: height / width.
    """
    shapes = [(size / ratio**0.5, size * ratio**0.5) for size in sizes for ratio in ratios]
    return torch.tensor([[-w / 2, -h / 2, w / 2, h / 2] for w, h in shapes])


def anchor_grid(shapes: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """Anchors of all cells of a map, row by row, (P·A, 4); cell (i, j) has its reference point at (j·stride, i·stride) px."""
    y = torch.arange(size[0], device=shapes.device, dtype=shapes.dtype) * stride
    x = torch.arange(size[1], device=shapes.device, dtype=shapes.dtype) * stride
    y, x = torch.meshgrid(y, x, indexing="ij")
    centres = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)  # (P, 1, 4)
    return (centres + shapes).reshape(-1, 4)
