"""What goes wrong, and what each kind of error costs in AP.

As in TIDE (Bolya et al., ECCV 2020): every answer that found nothing is put down to one cause, every cause is mended alone,
and the AP gained is its cost. Two things differ. Costs are averaged over all IoU thresholds, with the threshold as the limit
between right and misplaced, so that they are costs in AP and not in AP50. And where the box of an answer would have been good
enough but its mask is not, the mask is to blame.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from maskwright.metrics.matching import THRESHOLDS, Matches, groups, precision_at_recalls
from maskwright.metrics.overlaps import FAINT, Bools, Floats, Ints

CAUSES: Mapping[str, str] = {
    "missed": "an object that no answer comes near",
    "background": "an answer where nothing is",
    "localization": "the right class, too little overlap",
    "mask": "the box fits, the mask does not",
    "class": "in the right place, of another class",
    "both": "misplaced and of another class",
    "duplicate": "an object found a second time",
}
"""By name: what it means."""


@dataclass(frozen=True, eq=False)
class _Answers:
    """The answers that count at one threshold, with the best overlap of each kind.

    Args:
        rows: which detections, best score first.
        hits: whether each found an object.
        own, own_object: the highest overlap with an object of the same class, and which; -1 for none.
        other, other_object: likewise of another class.
        own_box, boxed_object: the highest overlap of boxes with an object of the same class, and which.
    """

    rows: Ints
    hits: Bools
    own: Floats
    own_object: Ints
    other: Floats
    other_object: Ints
    own_box: Floats
    boxed_object: Ints


def error_costs(matches: Matches) -> dict[str, float]:
    """AP that would be gained by mending each kind of error, by name; "mask" only where masks were matched.

    Args:
        matches: with classes told apart.
    """
    overlaps = matches.overlaps
    has_boxes = matches.kind != "bbox" and "bbox" in overlaps.iou
    if len(matches.truth_label) == 0:
        return {name: 0.0 for name in CAUSES if name != "mask" or has_boxes}
    own, own_object = _best(matches, overlaps.iou[matches.kind], same=True)
    other, other_object = _best(matches, overlaps.iou[matches.kind], same=False)
    own_box, boxed = _best(matches, overlaps.iou["bbox"], same=True) if has_boxes else (np.zeros_like(own), own_object)
    order = np.argsort(-overlaps.score, kind="stable")
    gains: dict[str, list[float]] = {}
    for t, threshold in enumerate(THRESHOLDS):
        rows = order[(matches.kept & ~matches.ignored[0, t])[order]]
        answers = _Answers(
            rows=rows,
            hits=matches.object[0, t, rows] >= 0,
            own=own[rows],
            own_object=own_object[rows],
            other=other[rows],
            other_object=other_object[rows],
            own_box=own_box[rows],
            boxed_object=boxed[rows],
        )
        for name, gain in _gains(matches, t, threshold, answers).items():
            gains.setdefault(name, []).append(gain)
    return {name: float(np.mean(gains[name])) for name in CAUSES if name in gains and (name != "mask" or has_boxes)}


def _best(matches: Matches, iou: Floats, *, same: bool) -> tuple[Floats, Ints]:
    """The highest overlap of each detection with an object of its class, or of another; neither crowds nor faint ones."""
    overlaps = matches.overlaps
    dt, gt = overlaps.dt, overlaps.gt
    same_class = matches.label[dt] == matches.truth_label[gt]
    chosen = (same_class == same) & ~overlaps.truth.is_crowd[gt] & (iou > FAINT)
    pairs = np.flatnonzero(chosen)
    pairs = pairs[np.argsort(iou[pairs], kind="stable")]
    best, which = np.zeros(len(overlaps.score)), np.full(len(overlaps.score), -1)
    best[dt[pairs]], which[dt[pairs]] = iou[pairs], gt[pairs]  # the last one written is the greatest
    return best, which


def _gains(matches: Matches, t: int, threshold: float, answers: _Answers) -> dict[str, float]:
    """What mending each kind of error gains at one threshold."""
    needed = ~matches.truth_ignored[0]
    found = np.zeros(len(needed), dtype=bool)
    found[matches.object[0, t, answers.rows[answers.hits]]] = True
    wrong = ~answers.hits
    mask = wrong & (answers.own < threshold) & (answers.own_box >= threshold)
    near = mask | (wrong & (answers.own < threshold) & (answers.own_object >= 0))
    misclassed = wrong & ~near & (answers.other >= threshold)
    duplicate = wrong & ~near & ~misclassed & (answers.own >= threshold)
    rest = wrong & ~near & ~misclassed & ~duplicate
    both = rest & (answers.other_object >= 0)
    label = matches.label[answers.rows]
    reached = np.zeros(len(needed), dtype=bool)
    causes = ((near & ~mask, answers.own_object), (mask, answers.boxed_object), (misclassed, answers.other_object))
    for chosen, objects in causes:
        reached[objects[chosen]] = True
    base = _mean_ap(matches, label, answers.hits, np.ones_like(wrong), needed)

    def mended(chosen: Bools, objects: Ints) -> float:
        """The best answer for each object not yet found becomes right; the others go."""
        hits, kept, labels = answers.hits.copy(), ~chosen, label.copy()
        places = np.flatnonzero(chosen & np.where(objects >= 0, needed[objects] & ~found[objects], False))
        firsts = places[np.unique(objects[places], return_index=True)[1]]
        hits[firsts], kept[firsts] = True, True
        labels[firsts] = matches.truth_label[objects[firsts]]
        return _mean_ap(matches, labels, hits, kept, needed) - base

    nowhere = np.full(len(wrong), -1)
    gains = {
        "localization": mended(near & ~mask, answers.own_object),
        "mask": mended(mask, answers.boxed_object),
        "class": mended(misclassed, answers.other_object),
        "both": mended(both, nowhere),
        "duplicate": mended(duplicate, nowhere),
        "background": mended(rest & ~both, nowhere),
    }
    gains["missed"] = _mean_ap(matches, label, answers.hits, np.ones_like(wrong), needed & (found | reached)) - base
    return gains


def _mean_ap(matches: Matches, label: Ints, hits: Bools, kept: Bools, needed: Bools) -> float:
    """AP at one threshold, mean over the classes there are objects of."""
    places = groups(label, kept, matches.num_classes)
    totals = np.bincount(matches.truth_label[needed], minlength=matches.num_classes)
    there = np.bincount(matches.truth_label[~matches.truth_ignored[0]], minlength=matches.num_classes) > 0
    values = []
    for k in np.flatnonzero(there):
        answers = torch.from_numpy(hits[places[k]])
        each = torch.ones(1, len(answers))
        total = torch.tensor([float(totals[k])])
        read, _ = precision_at_recalls(answers.nonzero()[:, 0], each, each.cumsum(dim=1), total)
        values.append(float(read.mean()) if totals[k] else 1.0)  # nothing is left to find
    return float(np.mean(values)) if values else 0.0
