"""Average recall of class-agnostic proposals.

Source: Hosang et al., What makes for effective detection proposals? (PAMI 2016); DeepMask (arXiv 1506.06204), sec. 5.2;
SharpMask (arXiv 1603.08695), sec. 5; with pycocotools' numbers at useCats = 0.

Legend: n proposals of an image · T IoU thresholds · D proposals · G objects.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from maskwright.formats.dataset import Dataset
from maskwright.metrics.detection import measure
from maskwright.metrics.matching import SIZES, THRESHOLDS, Matches, match
from maskwright.metrics.overlaps import Floats, Kind, Overlaps

COUNTS = tuple(sorted({round(10 ** (i / 10)) for i in range(31)}))
"""Numbers of proposals at which recall is drawn: ten to a decade, from 1 to 1000."""


@dataclass(frozen=True)
class ProposalMetrics:
    """Recall of proposals, in [0, 1]; -1 where there is nothing to find, as pycocotools says it.

    Args:
        kind: of overlap.
        limits: on the proposals of an image, ascending.
        ar: mean over IoU 0.50:0.95, by size of the objects, for each limit.
        auc: area under AR against the logarithm of the number of proposals from 1 to 1000, by size. Published areas fit this;
            they are not the mean of the three usual ARs, which is `mean_ar`.
        recall: for each limit, at each IoU threshold, objects of all sizes.
        curve: AR at the numbers in COUNTS, objects of all sizes.
    """

    kind: Kind
    limits: tuple[int, ...]
    ar: dict[str, tuple[float, ...]]
    auc: dict[str, float]
    recall: tuple[tuple[float, ...], ...]
    curve: tuple[float, ...]

    @property
    def mean_ar(self) -> float:
        """Plain mean of AR over the limits, objects of all sizes."""
        return float(np.mean(self.ar["all"]))


def evaluate_proposals(
    dataset: Dataset, results: Sequence[dict[str, Any]], *, kinds: Sequence[Kind], max_detections: Sequence[int]
) -> dict[Kind, ProposalMetrics]:
    """Score proposals against a data set, whatever classes they were given.

    Args:
        results: entries of a COCO results file.
        kinds: what overlap is measured on.
        max_detections: ascending limits on the proposals of an image.

    Raises:
        ValueError: results without the boxes or masks asked for.
    """
    limits, overlaps = measure(dataset, results, kinds, max_detections)
    return {
        kind: proposal_metrics(match(overlaps, kind, max_detections=limits[-1], class_agnostic=True), limits) for kind in kinds
    }


def proposal_metrics(matches: Matches, limits: Sequence[int]) -> ProposalMetrics:
    """Recall of matched proposals.

    Args:
        matches: with as many proposals as the last limit, classes ignored.
    """
    found = {size: _found(matches, size) for size in SIZES}
    by_count = {size: _recalls(found[size], int((~matches.truth_ignored[a]).sum())) for a, size in enumerate(SIZES)}
    everything = by_count["all"]
    return ProposalMetrics(
        kind=matches.kind,
        limits=tuple(limits),
        ar={size: tuple(_at(recalls, n) for n in limits) for size, recalls in by_count.items()},
        auc={size: _area(recalls) for size, recalls in by_count.items()},
        recall=tuple(tuple(_upto(everything, n)[:, -1].tolist()) for n in limits),
        curve=tuple(_at(everything, n) for n in COUNTS),
    )


def _found(matches: Matches, size: str) -> list[npt.NDArray[np.int64]]:
    """Ranks of the proposals that found an object of a size, for each threshold."""
    area = list(SIZES).index(size)
    hits = (matches.object[area] >= 0) & ~matches.ignored[area] & matches.kept
    return [np.sort(matches.rank[hits[t]]) for t in range(len(THRESHOLDS))]


def _recalls(found: Sequence[npt.NDArray[np.int64]], objects: int) -> Floats:
    """Recall at each threshold for 1, 2, … 1000 proposals or more, (T, n)."""
    most = max(COUNTS[-1], *(int(ranks[-1]) + 1 if len(ranks) else 0 for ranks in found))
    counts = np.stack([np.bincount(ranks, minlength=most).cumsum() for ranks in found])
    return counts / objects if objects else np.full(counts.shape, np.nan)


def _upto(recalls: Floats, limit: int) -> Floats:
    return recalls[:, :limit]


def _at(recalls: Floats, limit: int) -> float:
    """AR at a number of proposals."""
    value = float(_upto(recalls, limit)[:, -1].mean())
    return value if np.isfinite(value) else -1.0


def _area(recalls: Floats) -> float:
    """Mean of AR over the logarithm of the number of proposals, by trapezoids between whole numbers."""
    upto = _upto(recalls, COUNTS[-1]).mean(axis=0)
    if not np.isfinite(upto).all():
        return -1.0
    return float(np.trapezoid(upto, np.log10(np.arange(1, len(upto) + 1))) / np.log10(COUNTS[-1]))


def best_overlaps(overlaps: Overlaps, kind: Kind) -> tuple[Floats, npt.NDArray[np.int64]]:
    """For each object the highest IoU with any proposal, and which that is, -1 for none: (G,) each."""
    count = len(overlaps.truth.label)
    order = np.argsort(overlaps.iou[kind], kind="stable")
    best, which = np.zeros(count), np.full(count, -1, dtype=np.int64)
    best[overlaps.gt[order]] = overlaps.iou[kind][order]  # the greatest comes last
    which[overlaps.gt[order]] = overlaps.dt[order]
    return best, np.where(best > 0, which, -1)
