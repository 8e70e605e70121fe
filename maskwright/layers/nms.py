"""Non-maximum suppression within groups."""

import torch
from torch import Tensor
from torchvision.ops import nms


def nms_by_group(boxes: Tensor, scores: Tensor, groups: Tensor, iou: float, *, keep: int) -> Tensor:
    """The best `keep` that survive when only boxes of the same group suppress each other, best score first, int64.

    Only better boxes suppress, so boxes are looked at in stretches of falling score until enough have survived: the cost
    does not grow with the square of all boxes. Groups are moved apart in float64, where the shift costs no accuracy
    whatever the number of classes or the image's size.

    Args:
        boxes: xyxy px (N, 4).
        scores: (N,).
        groups: class or level of each box, int64 (N,).
        iou: boxes that overlap a better one by more than this go.
        keep: indices returned at most.
    """
    order = scores.detach().argsort(descending=True, stable=True)
    kept = order[:0]
    if len(boxes) == 0:
        return kept
    wide = boxes.detach().double()
    wide = wide + (groups.double() * (wide.max() - wide.min() + 1))[:, None]
    for stretch in torch.split(order, max(2 * keep, 1024)):
        rows = torch.cat([kept, stretch])
        kept = rows[nms(wide[rows], scores.detach()[rows].double(), iou)][:keep]
        if len(kept) == keep:
            break
    return kept
