"""Who learns what: matching candidates to ground truth, and sampling them.

Legend: N candidates (anchors or proposals) · G ground-truth objects of one image.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from maskwright.structures import Instances
from maskwright.structures import boxes as box_functions

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1


@dataclass(frozen=True)
class Assignment:
    """For each candidate POSITIVE, NEGATIVE or IGNORED, and the object it overlaps most: int8 and int64, (N,)."""

    kind: Tensor
    target_index: Tensor


IN_CROWD = 0.5
"""Share of a candidate inside a crowd region from which it is no longer negative."""


@dataclass(frozen=True)
class IouMatcher:
    """Match candidates by their highest IoU with an object (Faster R-CNN, sec. 3.1.2).

    Args:
        positive: IoU from which a candidate is positive.
        negative: IoU below which it is negative; between the two it is ignored.
        rescue_above: candidates that overlap an object most, by more than this IoU, are positive too; they keep the object
            they themselves overlap most. None rescues no candidate; at -1 an object that touches none makes all those
            without overlap positive, as detectron2 and torchvision do.
        negative_from: highest IoU with an object a negative must have: far from all objects it teaches little (Fast R-CNN,
            sec. 2.3). Images without objects have negatives all the same.
    """

    positive: float
    negative: float
    rescue_above: float | None
    negative_from: float = 0.0

    def __call__(self, candidates: Tensor, targets: Instances) -> Assignment:
        """Assign candidates, xyxy px (N, 4), to targets of the same frame; crowd rows are never matched."""
        objects = torch.nonzero(~targets.crowd)[:, 0]
        kind = torch.zeros(len(candidates), dtype=torch.int8, device=candidates.device)
        index = torch.zeros(len(candidates), dtype=torch.int64, device=candidates.device)
        if len(objects) and len(candidates):
            iou = box_functions.iou(candidates, targets.boxes[objects])  # (N, G)
            best, row = iou.max(dim=1)
            index = objects[row]
            kind[(best >= self.negative) | (best < self.negative_from)] = IGNORED
            kind[best >= self.positive] = POSITIVE
            if self.rescue_above is not None:
                top = iou.amax(dim=0)
                kind[((iou == top) & (top > self.rescue_above)).any(dim=1)] = POSITIVE
        crowds = targets.boxes[targets.crowd]
        if len(crowds):
            inside = box_functions.coverage(candidates, crowds).amax(dim=1) >= IN_CROWD
            kind[inside & (kind == NEGATIVE)] = IGNORED
        return Assignment(kind, index)


@dataclass(frozen=True)
class BalancedSampler:
    """Draw up to `count` candidates, at most `positive_fraction` of them positive, the rest negative, without replacement."""

    count: int
    positive_fraction: float

    def __call__(self, kind: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Indices of the positives and of the negatives drawn, int64."""
        positives = torch.nonzero(kind == POSITIVE)[:, 0]
        negatives = torch.nonzero(kind == NEGATIVE)[:, 0]
        num_positives = min(len(positives), int(self.count * self.positive_fraction))
        num_negatives = min(len(negatives), self.count - num_positives)
        return drawn(positives, num_positives, generator), drawn(negatives, num_negatives, generator)

    def normalizer(self, num_drawn: int) -> int:
        """What a sum over the candidates drawn from an image is divided by: the number wanted, even if fewer were there."""
        return self.count


class SampledMeanSampler(BalancedSampler):
    """A `BalancedSampler` for losses that are means over the candidates drawn (torchvision)."""

    def normalizer(self, num_drawn: int) -> int:
        """The number drawn."""
        return num_drawn


def first_of_each(groups: Tensor, num_groups: int) -> Tensor:
    """Where each group occurs first, -1 where it does not, int64 (num_groups,) from group numbers int64 (N,)."""
    count = len(groups)
    first = torch.full((num_groups,), count, device=groups.device)
    first = first.scatter_reduce(0, groups, torch.arange(count, device=groups.device), "amin")
    return torch.where(first < count, first, -1)


def drawn(indices: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` of the indices; drawn on the CPU, so that every device draws the same."""
    return indices[torch.randperm(len(indices), generator=generator)[:count].to(indices.device)]
