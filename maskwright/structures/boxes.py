"""Functions on boxes: float xyxy, absolute px, pixel corners; width = x2 - x1; the full image is (0, 0, W, H)."""

import torch
from torch import Tensor


def sizes(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Widths and heights, each (…,)."""
    return boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]


def area(boxes: Tensor) -> Tensor:
    """Areas, px², (…,)."""
    width, height = sizes(boxes)
    return width * height


def clip(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Boxes (…, 4) cut to the image of (height, width)."""
    height, width = image_size
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)], dim=-1)


def scale(boxes: Tensor, *, from_size: tuple[int, int], to_size: tuple[int, int]) -> Tensor:
    """Boxes (…, 4) of an image of `from_size` after it is resized to `to_size`, each axis by its own ratio."""
    x, y = to_size[1] / from_size[1], to_size[0] / from_size[0]
    return boxes * boxes.new_tensor([x, y, x, y])


def flip(boxes: Tensor, image_size: tuple[int, int], *, horizontal: bool) -> Tensor:
    """Boxes (…, 4) of the mirrored image: left-right, or top-bottom."""
    height, width = image_size
    x1, y1, x2, y2 = boxes.unbind(-1)
    if horizontal:
        return torch.stack([width - x2, y1, width - x1, y2], dim=-1)
    return torch.stack([x1, height - y2, x2, height - y1], dim=-1)


def is_valid(boxes: Tensor, *, min_px: float = 0.0) -> Tensor:
    """Whether a box is finite and both sides exceed `min_px`, bool (…,)."""
    width, height = sizes(boxes)
    return torch.isfinite(boxes).all(dim=-1) & (width > min_px) & (height > min_px)


def intersection(boxes: Tensor, others: Tensor) -> Tensor:
    """Areas shared by each pair, px², (N, 4) × (M, 4) → (N, M)."""
    x1, y1, x2, y2 = boxes[:, :, None].unbind(1)  # (N, 1) each: one (N, M) at a time
    width = torch.minimum(x2, others[:, 2]) - torch.maximum(x1, others[:, 0])
    height = torch.minimum(y2, others[:, 3]) - torch.maximum(y1, others[:, 1])
    return width.clamp(min=0) * height.clamp(min=0)


def iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of each pair, (N, 4) × (M, 4) → (N, M); 0 where both are empty."""
    shared = intersection(boxes, others)
    union = area(boxes)[:, None] + area(others)[None, :] - shared
    return shared / union.clamp(min=torch.finfo(boxes.dtype).tiny)


def paired_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of each row with the same row of the other, (N, 4) × (N, 4) → (N,); 0 where both are empty."""
    low, high = torch.maximum(boxes[:, :2], others[:, :2]), torch.minimum(boxes[:, 2:], others[:, 2:])
    shared = (high - low).clamp(min=0).prod(dim=1)
    return shared / (area(boxes) + area(others) - shared).clamp(min=torch.finfo(boxes.dtype).tiny)


def coverage(boxes: Tensor, others: Tensor) -> Tensor:
    """Share of each of `boxes` that lies inside each of `others`, (N, 4) × (M, 4) → (N, M)."""
    return intersection(boxes, others) / area(boxes)[:, None].clamp(min=torch.finfo(boxes.dtype).tiny)
