"""Non-maximum suppression within groups."""

from torch import Tensor
from torchvision.ops import nms


def nms_by_group(boxes: Tensor, scores: Tensor, groups: Tensor, iou: float) -> Tensor:
    """Indices that survive when only boxes of the same group suppress each other, best score first, int64.

    Groups are moved apart in float64, where the shift costs no accuracy whatever the number of classes or the image's size.

    Args:
        boxes: xyxy px (N, 4).
        scores: (N,).
        groups: class or level of each box, int64 (N,).
        iou: boxes that overlap a better one by more than this go.
    """
    if len(boxes) == 0:
        return groups.new_zeros(0)
    wide = boxes.detach().double()
    shift = groups.double() * (wide.max() - wide.min() + 1)
    kept: Tensor = nms(wide + shift[:, None], scores.detach().double(), iou)
    return kept
