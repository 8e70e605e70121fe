"""Mask voting: from many overlapping instances to a few, each with the mean of its neighbours' masks.

Source: MNC (arXiv 1512.04412), sec. 6, and its code; FCIS does the same.

Legend: N instances · M mask side · K classes · A detections.
"""

from typing import Literal

import torch
from torch import Tensor

from maskwright.layers.nms import nms_by_group
from maskwright.structures import Instances, Masks, MaskTiles
from maskwright.structures import boxes as box_functions

MASK_THRESHOLD = 0.4  # MNC's code, of targets and of answers


class MaskVoting:
    """Suppresses boxes class by class; each that is left is given the mean of the masks in boxes much like its own.

    Args:
        partners: "all" boxes vote (the code), "suppressed" ones only (the paper), or "none" but its own.
        score_threshold: detections at or below it are dropped.
        nms_iou: overlap above which a box suppresses a worse one of its class.
        partner_iou: overlap from which boxes are alike.
    """

    def __init__(
        self,
        *,
        partners: Literal["all", "suppressed", "none"] = "all",
        score_threshold: float = 0.0,
        nms_iou: float = 0.3,
        partner_iou: float = 0.5,
    ) -> None:
        self.partners = partners
        self.score_threshold = score_threshold
        self.nms_iou = nms_iou
        self.partner_iou = partner_iou

    def __call__(self, boxes: Tensor, grids: Tensor, scores: Tensor, image_size: tuple[int, int], *, keep: int) -> Instances:
        """The best `keep` detections of an image, best first.

        Args:
            boxes: xyxy px, (N, 4).
            grids: mask probabilities in them, one for each class or one for all, (N, K, M, M) or (N, 1, M, M).
            scores: of each class, (N, K).
            image_size: (height, width) of the frame of the boxes.
        """
        row, label = torch.nonzero(scores > self.score_threshold).unbind(1)
        valid = box_functions.is_valid(boxes[row])
        row, label = row[valid], label[valid]
        kept = nms_by_group(boxes[row], scores[row, label], label, self.nms_iou, keep=keep)
        row, label = row[kept], label[kept]
        score, weights = scores[row, label], scores[:, label].T  # (A,), (A, N)
        votes = box_functions.iou(boxes[row], boxes) >= self.partner_iou  # (A, N)
        if self.partners == "suppressed":
            votes &= weights <= score[:, None]
        elif self.partners == "none":
            votes = torch.zeros_like(votes)
        votes[torch.arange(len(row)), row] = True
        groups = [voters.nonzero()[:, 0] for voters in votes]
        masks = self._masks(boxes, grids, groups, label, weights, image_size)
        return Instances(image_size, boxes=boxes[row], labels=label, scores=score, masks=masks.to(boxes.device))

    @staticmethod
    def _masks(
        boxes: Tensor, grids: Tensor, groups: list[Tensor], label: Tensor, weights: Tensor, image_size: tuple[int, int]
    ) -> Masks:
        """The mean mask of each group, of the class of its detection."""
        if not groups:
            return Masks.empty(image_size)
        kinds = grids.shape[1]
        own = label if kinds > 1 else torch.zeros_like(label)
        places = [rows * kinds + kind for rows, kind in zip(groups, own, strict=True)]  # which grids vote
        used, place = torch.unique(torch.cat(places), return_inverse=True)
        tiles = MaskTiles(grids.flatten(0, 1)[used], boxes.round()[used // kinds])
        voters = torch.split(place, [len(p) for p in places])
        return tiles.vote(voters, weights[:, used // kinds], image_size, MASK_THRESHOLD)
