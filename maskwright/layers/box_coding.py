"""Boxes as regression deltas relative to reference boxes (Faster R-CNN, eq. 2)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_LOG_RATIO = math.log(1000 / 16)  # Detectron, BBOX_XFORM_CLIP: no box grows more than 62.5-fold


@dataclass(frozen=True)
class BoxCoder:
    """Centre shifts relative to the reference's size, and logarithms of the size ratios, each times its weight."""

    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)

    def encode(self, boxes: Tensor, references: Tensor) -> Tensor:
        """Deltas (…, 4) that turn `references` (…, 4) into `boxes` (…, 4)."""
        cx, cy, w, h = _centre_form(boxes)
        rx, ry, rw, rh = _centre_form(references)
        deltas = torch.stack([(cx - rx) / rw, (cy - ry) / rh, torch.log(w / rw), torch.log(h / rh)], dim=-1)
        return deltas * deltas.new_tensor(self.weights)

    def decode(self, deltas: Tensor, references: Tensor) -> Tensor:
        """Boxes (…, 4) from deltas (…, 4); differentiable, float32 whatever the deltas are."""
        dx, dy, dw, dh = (deltas.to(torch.float32) / references.new_tensor(self.weights)).unbind(-1)
        rx, ry, rw, rh = _centre_form(references)
        cx, cy = dx * rw + rx, dy * rh + ry
        w = dw.clamp(max=MAX_LOG_RATIO).exp() * rw
        h = dh.clamp(max=MAX_LOG_RATIO).exp() * rh
        return torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], dim=-1)


def _centre_form(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x1, y1, x2, y2 = boxes.unbind(-1)
    return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
