"""mAP^r: average precision of masks as the field measured it on PASCAL VOC before COCO.

Source: Hariharan et al., SDS (ECCV 2014), sec. 3, and its code; MNC (arXiv 1512.04412), sec. 7, and its code.

Detections of a class, of all images together, are taken by falling score. One is right if the object of its class and image
that it overlaps most was not found before and the overlap of their masks reaches the threshold. Each object counts; crowds,
which VOC does not have, are neither found nor missed. Two protocols are in use, which differ in three details (`PROTOCOLS`).

Legend: D detections · G true objects of a class · T thresholds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from maskwright.formats.dataset import Dataset
from maskwright.metrics.detection import check_fields
from maskwright.metrics.overlaps import Bools, Floats, Ints, Overlaps, measure_overlaps

THRESHOLDS = (0.5, 0.7)
"""Of IoU, as tables quote them."""
VOLUME = tuple(np.linspace(0.1, 0.9, 9).round(1).tolist())
"""Of IoU, whose mean is the volume (SDS, sec. 3)."""


@dataclass(frozen=True)
class RegionProtocol:
    """How detections are matched, and what is made of precision and recall.

    Args:
        average: the mean of precision at recalls 0, 0.1 … 1, or the area under precision that never rises.
        takes_second: whether a detection whose best object is taken may find the best of those that are free.
        is_strict: whether an overlap must exceed the threshold.
    """

    average: Literal["11 points", "area"]
    takes_second: bool
    is_strict: bool


PROTOCOLS: Mapping[str, RegionProtocol] = {
    "mnc": RegionProtocol(average="11 points", takes_second=False, is_strict=False),
    "sds": RegionProtocol(average="area", takes_second=True, is_strict=True),
}
"""The released code of MNC, and that of SDS."""


@dataclass(frozen=True)
class RegionMetrics:
    """Mean over the classes that have objects, in [0, 1]; -1 where there are none.

    Args:
        map: by threshold.
        volume: mean of mAP^r over IoU 0.1 to 0.9.
        per_class: by name, then by threshold.
    """

    map: dict[float, float]
    volume: float
    per_class: dict[str, dict[float, float]]


def evaluate_regions(
    dataset: Dataset,
    results: Sequence[dict[str, Any]],
    *,
    protocol: str = "mnc",
    thresholds: Sequence[float] = THRESHOLDS,
) -> RegionMetrics:
    """Score masks by mAP^r.

    Args:
        dataset: the ground truth, with masks.
        results: entries of a COCO results file, original category ids.
        protocol: a name in `PROTOCOLS`.
        thresholds: of IoU.

    Raises:
        ValueError: results without masks, or no such protocol.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"no protocol is named {protocol!r}: there are {', '.join(PROTOCOLS)}")
    check_fields(results, ["segm"])
    overlaps, names = measure_overlaps(dataset, results, ["segm"]), dataset.categories.names
    rule = PROTOCOLS[protocol]
    levels = sorted({*thresholds, *VOLUME})
    found = {name: _of_class(overlaps, label, rule, levels) for label, name in enumerate(names)}
    there = [aps for aps in found.values() if aps is not None]
    means = {level: float(np.mean([aps[level] for aps in there])) if there else -1.0 for level in levels}
    per_class = {name: {t: -1.0 if aps is None else aps[t] for t in thresholds} for name, aps in found.items()}
    volume = float(np.mean([means[level] for level in VOLUME]))
    return RegionMetrics({t: means[t] for t in thresholds}, volume, per_class)


def _of_class(overlaps: Overlaps, label: int, rule: RegionProtocol, levels: Sequence[float]) -> dict[float, float] | None:
    """AP of a class at each threshold; None where it has no objects."""
    truth = overlaps.truth
    count = int(((truth.label == label) & ~truth.is_crowd).sum())
    if count == 0:
        return None
    rows = np.flatnonzero(overlaps.label == label)
    rows = rows[np.argsort(-overlaps.score[rows], kind="stable")]
    pairs = np.flatnonzero((overlaps.label[overlaps.dt] == label) & (truth.label[overlaps.gt] == label))
    pairs = pairs[np.argsort(-overlaps.iou["segm"][pairs], kind="stable")]  # best first
    of_row: dict[int, list[int]] = {}
    for pair in pairs.tolist():
        of_row.setdefault(int(overlaps.dt[pair]), []).append(pair)
    answer = {}
    for level in levels:
        right, counts = _match(overlaps, rows, of_row, rule, level)
        answer[level] = average_precision(right[counts], count, rule.average)
    return answer


def _match(
    overlaps: Overlaps, rows: Ints, of_row: Mapping[int, list[int]], rule: RegionProtocol, level: float
) -> tuple[Bools, Bools]:
    """Which detections, best score first, are right, and which count at all, (D,) each."""
    right, counts = np.zeros(len(rows), dtype=bool), np.ones(len(rows), dtype=bool)
    taken: set[int] = set()
    iou = overlaps.iou["segm"]
    for i, row in enumerate(rows.tolist()):
        pairs = of_row.get(row, [])
        reached = [pair for pair in pairs if iou[pair] > level or (iou[pair] == level and not rule.is_strict)]
        crowds = [pair for pair in reached if overlaps.truth.is_crowd[overlaps.gt[pair]]]
        objects = [int(overlaps.gt[pair]) for pair in reached if not overlaps.truth.is_crowd[overlaps.gt[pair]]]
        if rule.takes_second:
            objects = [number for number in objects if number not in taken]
        if objects and objects[0] not in taken:
            right[i] = True
            taken.add(objects[0])
        elif not objects and crowds:
            counts[i] = False
    return right, counts


def average_precision(right: Bools, num_objects: int, average: Literal["11 points", "area"]) -> float:
    """AP of detections, best score first.

    Args:
        right: which are, (D,).
        num_objects: that were to be found.
        average: see `RegionProtocol`.
    """
    hits = np.cumsum(right)
    recall: Floats = hits / num_objects
    precision: Floats = hits / np.arange(1, len(right) + 1)
    if average == "11 points":
        best = [precision[recall >= level - 1e-12].max(initial=0.0) for level in np.linspace(0, 1, 11)]
        return float(np.mean(best))
    falling = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * falling).sum())
