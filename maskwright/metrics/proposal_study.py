"""Everything a report says of one set of proposals: recall with its resamples, curves, and quality image by image.

Legend: B sets of weights.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from maskwright.formats.dataset import Dataset
from maskwright.metrics.detection import DetectionMetrics, check_fields, check_limits, metrics_of
from maskwright.metrics.matching import SIZES, THRESHOLDS, Matches, match
from maskwright.metrics.overlaps import Floats, Kind, Overlaps, measure_overlaps
from maskwright.metrics.proposals import COUNTS, ProposalMetrics, best_overlaps, proposal_metrics
from maskwright.metrics.studies import Study


def study_proposals(
    dataset: Dataset,
    results: Sequence[dict[str, Any]],
    *,
    kinds: Sequence[Kind],
    max_detections: Sequence[int],
    weights: npt.NDArray[np.float32],
) -> Study:
    """Look at proposals from all sides.

    Args:
        kinds: of overlap, "bbox" or "segm" or both.
        max_detections: limits on the proposals of an image.
        weights: how often each image counts in each resample, (B, images), images in the order of their ids.
    """
    limits = check_limits(max_detections)
    check_fields(results, kinds)
    overlaps = measure_overlaps(dataset, results, kinds)
    kind: Kind = "segm" if "segm" in kinds else "bbox"
    metrics: dict[Kind, DetectionMetrics] = {}
    proposals: dict[Kind, ProposalMetrics] = {}
    resampled: dict[str, Floats] = {}
    for each in kinds:
        matches = match(overlaps, each, max_detections=limits[-1], class_agnostic=True)
        metrics[each] = metrics_of(matches, (), limits)
        proposals[each] = proposal_metrics(matches, limits)
        if each == kind:
            resampled |= _resampled(matches, weights, limits)
        else:
            resampled["box_ar"] = _resampled(matches, weights, limits)["ar"]
    return Study(
        kind=kind,
        metrics=metrics,
        values=_values(proposals, kind, limits),
        resampled=resampled,
        precision={},
        recall=np.array(proposals[kind].recall[-1]),
        errors={},
        threshold=0.0,
        quality=_quality(overlaps, kind),
        proposals=proposals,
    )


def _named(limits: Sequence[int]) -> dict[str, int]:
    """Limits that have a name of their own, and the last, by name."""
    return {name: n for name, n in (("ar10", 10), ("ar100", 100)) if n in limits[:-1]} | {"ar": limits[-1]}


def _values(proposals: Mapping[Kind, ProposalMetrics], kind: Kind, limits: Sequence[int]) -> dict[str, float]:
    m = proposals[kind]
    found = {name: m.ar["all"][list(limits).index(n)] for name, n in _named(limits).items()}
    found |= {f"ar_{size}": m.ar[size][-1] for size in ("small", "medium", "large")}
    found["auc"] = m.auc["all"]
    if kind != "bbox" and "bbox" in proposals:
        found["box_ar"] = proposals["bbox"].ar["all"][-1]
    return {name: value if value >= 0 else float("nan") for name, value in found.items()}


def _resampled(matches: Matches, weights: npt.NDArray[np.float32], limits: Sequence[int]) -> dict[str, Floats]:
    """AR on the images of each resample, (B,) each, by the names in `AVERAGES`."""
    answer = {name: _weighted(matches, "all", n, weights) for name, n in _named(limits).items()}
    answer |= {f"ar_{size}": _weighted(matches, size, limits[-1], weights) for size in ("small", "medium", "large")}
    logs = np.log10(COUNTS)
    curve = np.stack([_weighted(matches, "all", n, weights) for n in COUNTS], axis=1)  # (B, counts)
    return {**answer, "auc": np.trapezoid(curve, logs, axis=1) / logs[-1]}


def _weighted(matches: Matches, size: str, limit: int, weights: npt.NDArray[np.float32]) -> Floats:
    area, truth = list(SIZES).index(size), matches.overlaps.truth
    hits = (matches.object[area] >= 0) & ~matches.ignored[area] & (matches.kept & (matches.rank < limit))
    image = np.broadcast_to(matches.overlaps.image, hits.shape)[hits]
    found = np.bincount(image, minlength=truth.num_images) / len(THRESHOLDS)
    objects = np.bincount(truth.image[~matches.truth_ignored[area]], minlength=truth.num_images)
    total = weights.astype(np.float64) @ objects
    return np.where(total > 0, weights.astype(np.float64) @ found / np.maximum(total, 1), np.nan)


def _quality(overlaps: Overlaps, kind: Kind) -> dict[int, float]:
    """How well the objects of each image can be had: the mean of their highest IoUs; 1 where there are none."""
    truth = overlaps.truth
    best, needed = best_overlaps(overlaps, kind)[0], ~truth.is_crowd
    total = np.bincount(truth.image[needed], best[needed], minlength=truth.num_images)
    count = np.bincount(truth.image[needed], minlength=truth.num_images)
    quality = np.where(count > 0, total / np.maximum(count, 1), 1.0)
    return dict(zip(truth.image_ids.tolist(), quality.tolist(), strict=True))
