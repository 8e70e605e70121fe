"""Everything a report says of one set of answers: metrics, their resamples, curves, and quality image by image.

Detections are studied by precision and recall, with what each kind of error costs; proposals by recall alone.

Legend: B resamples, each a set of weights of the images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from maskwright.formats.dataset import Dataset
from maskwright.metrics.detection import DetectionMetrics, limits_of, measure, metrics_of
from maskwright.metrics.errors import error_costs
from maskwright.metrics.matching import SIZES, THRESHOLDS, Matches, curves, match
from maskwright.metrics.overlaps import Floats, Kind, Overlaps, Truth
from maskwright.metrics.proposals import COUNTS, ProposalMetrics, best_overlaps, proposal_metrics

SHOWN_IOUS = {"0.50": 0, "0.75": 5}
"""Thresholds whose precision-recall curves are shown, and their places."""
AVERAGES: Mapping[str, str] = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "AP small",
    "ap_medium": "AP medium",
    "ap_large": "AP large",
    "ar10": "AR@10",
    "ar100": "AR@100",
    "ar": "AR",
    "auc": "AUC",
    "ar_small": "AR small",
    "ar_medium": "AR medium",
    "ar_large": "AR large",
    "mask_ap": "mask AP",
    "boundary_ap": "boundary AP",
    "box_ap": "box AP",
    "box_ar": "box AR",
}
"""Metrics that get an interval, as people call them; of the kind that decides unless they say otherwise."""
OTHERS: Mapping[Kind, str] = {"bbox": "box_ap", "segm": "mask_ap", "boundary": "boundary_ap"}
"""Names there of kinds that do not decide."""


@dataclass(frozen=True, eq=False)
class Study:
    """What is known of one set of detections.

    Args:
        kind: the overlap that decides: the finest there is.
        metrics: by kind.
        values: by name in AVERAGES, nan where there is nothing to find.
        resampled: likewise, on the images of each resample, (B,).
        precision: at 101 recall points, mean over classes, by the names in SHOWN_IOUS.
        recall: at each IoU threshold, mean over classes, (10,).
        errors: AP that each kind of error costs; none where classes are ignored, nor of keypoints.
        threshold: the score over which precision and recall balance best (F1 at IoU 0.50).
        quality: of each image at that threshold, in [0, 1]: sum of IoUs / (found + half of missed and false ones);
            1 where there is nothing and nothing was answered. Of proposals: the mean over objects of the highest IoU.
            By image id.
        proposals: recall by kind, where proposals were studied.
    """

    kind: Kind
    metrics: dict[Kind, DetectionMetrics]
    values: dict[str, float]
    resampled: dict[str, Floats]
    precision: dict[str, Floats]
    recall: Floats
    errors: dict[str, float]
    threshold: float
    quality: dict[int, float]
    proposals: Mapping[Kind, ProposalMetrics] = field(default_factory=dict)


def study(
    dataset: Dataset,
    results: Sequence[dict[str, Any]],
    *,
    kinds: Sequence[Kind],
    max_detections: Sequence[int],
    weights: npt.NDArray[np.float32],
    class_agnostic: bool = False,
) -> Study:
    """Look at detections from all sides.

    Args:
        kinds: of overlap, "bbox" or "segm" or both, "boundary" with masks, "keypoints"; the last of "bbox", "segm" and
            "keypoints" decides.
        max_detections: limits on the detections of an image and class; the last counts for AP.
        weights: how often each image counts in each resample, (B, images), images in the order of their ids.
    """
    limits, overlaps = measure(dataset, results, kinds, max_detections)
    names = () if class_agnostic else dataset.categories.names
    kind = decisive_kind(kinds)
    metrics: dict[Kind, DetectionMetrics] = {}
    resampled: dict[str, Floats] = {}
    for each in sorted(kinds, key=lambda k: k == kind):  # the one that decides last, as it stays
        own = limits_of(each, limits)
        matches = match(overlaps, each, max_detections=own[-1], class_agnostic=class_agnostic)
        metrics[each] = metrics_of(matches, names, own)
        if each != kind:
            resampled[OTHERS[each]] = _mean(curves(matches, weights=weights, full=False).ap)
    resampled |= _resampled(matches, weights)
    whole = curves(matches)
    assert whole.precision is not None
    threshold, chosen = _balanced(matches)
    return Study(
        kind=kind,
        metrics={each: metrics[each] for each in kinds},
        values=_values(metrics, kind),
        resampled=resampled,
        precision={name: _mean(whole.precision[0, t].T) for name, t in SHOWN_IOUS.items()},
        recall=_mean(whole.recall[0]),
        errors={} if class_agnostic or kind == "keypoints" else error_costs(matches),
        threshold=threshold,
        quality=_quality(matches, chosen),
    )


def study_proposals(
    dataset: Dataset,
    results: Sequence[dict[str, Any]],
    *,
    kinds: Sequence[Kind],
    max_detections: Sequence[int],
    weights: npt.NDArray[np.float32],
) -> Study:
    """Look at proposals from all sides, whatever classes they were given.

    Args:
        kinds: of overlap, "bbox" or "segm" or both; masks decide.
        max_detections: limits on the proposals of an image.
        weights: how often each image counts in each resample, (B, images), images in the order of their ids.
    """
    limits, overlaps = measure(dataset, results, kinds, max_detections)
    kind = decisive_kind(kinds)
    metrics: dict[Kind, DetectionMetrics] = {}
    proposals: dict[Kind, ProposalMetrics] = {}
    resampled: dict[str, Floats] = {}
    for each in kinds:
        matches = match(overlaps, each, max_detections=limits[-1], class_agnostic=True)
        metrics[each] = metrics_of(matches, (), limits)
        proposals[each] = proposal_metrics(matches, limits)
        if each == kind:
            resampled |= _recalls_resampled(matches, weights, limits)
        else:
            resampled["box_ar"] = _recall_resampled(matches, "all", limits[-1], weights)
    return Study(
        kind=kind,
        metrics=metrics,
        values=_recalls(proposals, kind, limits),
        resampled=resampled,
        precision={},
        recall=np.array(proposals[kind].recall[-1]),
        errors={},
        threshold=0.0,
        quality=_reach(overlaps, kind),
        proposals=proposals,
    )


def decisive_kind(kinds: Sequence[Kind]) -> Kind:
    """The overlap that decides: the last of boxes, masks and keypoints."""
    return next(kind for kind in ("keypoints", "segm", "bbox") if kind in kinds)


# Values and their resamples, by the names in `AVERAGES`


def _values(metrics: Mapping[Kind, DetectionMetrics], kind: Kind) -> dict[str, float]:
    m = metrics[kind]
    found = {name: getattr(m, name) for name in ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")}
    found["ar"] = m.ar[-1]
    found |= {OTHERS[k]: m.ap for k, m in metrics.items() if k != kind}
    return _known(found)


def _recalls(proposals: Mapping[Kind, ProposalMetrics], kind: Kind, limits: Sequence[int]) -> dict[str, float]:
    m = proposals[kind]
    found = {name: m.ar["all"][list(limits).index(n)] for name, n in _named(limits).items()}
    found |= {f"ar_{size}": m.ar[size][-1] for size in ("small", "medium", "large")}
    found["auc"] = m.auc["all"]
    if kind != "bbox" and "bbox" in proposals:
        found["box_ar"] = proposals["bbox"].ar["all"][-1]
    return _known(found)


def _known(values: Mapping[str, float]) -> dict[str, float]:
    """With nan in place of the -1 of what does not exist."""
    return {name: value if value >= 0 else float("nan") for name, value in values.items()}


def _resampled(matches: Matches, weights: npt.NDArray[np.float32]) -> dict[str, Floats]:
    """All averages of one kind on the images of each resample, (B,) each."""
    everything = curves(matches, weights=weights, full=False)
    answer = {"ap": _mean(everything.ap), "ap50": _mean(everything.ap[:, 0]), "ap75": _mean(everything.ap[:, 5])}
    for size in ("small", "medium", "large"):
        answer[f"ap_{size}"] = _mean(curves(matches, size, weights=weights, full=False).ap)
    return {**answer, "ar": _mean(everything.recall)}


def _recalls_resampled(matches: Matches, weights: npt.NDArray[np.float32], limits: Sequence[int]) -> dict[str, Floats]:
    """All recalls of one kind on the images of each resample, (B,) each."""
    answer = {name: _recall_resampled(matches, "all", n, weights) for name, n in _named(limits).items()}
    answer |= {f"ar_{size}": _recall_resampled(matches, size, limits[-1], weights) for size in ("small", "medium", "large")}
    logs = np.log10(COUNTS)
    curve = np.stack([_recall_resampled(matches, "all", n, weights) for n in COUNTS], axis=1)  # (B, counts)
    return {**answer, "auc": np.trapezoid(curve, logs, axis=1) / logs[-1]}


def _named(limits: Sequence[int]) -> dict[str, int]:
    """Limits on proposals that have a name of their own, and the last, by name."""
    return {name: n for name, n in (("ar10", 10), ("ar100", 100)) if n in limits[:-1]} | {"ar": limits[-1]}


def _recall_resampled(matches: Matches, size: str, limit: int, weights: npt.NDArray[np.float32]) -> Floats:
    """AR of so many proposals of an image, for objects of a size, on the images of each resample, (B,)."""
    area, truth = list(SIZES).index(size), matches.overlaps.truth
    hits = (matches.object[area] >= 0) & ~matches.ignored[area] & (matches.kept & (matches.rank < limit))
    image = np.broadcast_to(matches.overlaps.image, hits.shape)[hits]
    found = np.bincount(image, minlength=truth.num_images) / len(THRESHOLDS)
    objects = np.bincount(truth.image[~matches.truth_ignored[area]], minlength=truth.num_images)
    total = weights.astype(np.float64) @ objects
    return np.where(total > 0, weights.astype(np.float64) @ found / np.maximum(total, 1), np.nan)


def _mean(values: Floats) -> Floats:
    """Mean of each row over what exists; nan where nothing does."""
    flat = values.reshape(len(values), -1)
    there = ~np.isnan(flat)
    count = there.sum(axis=1)
    return np.where(count > 0, np.where(there, flat, 0.0).sum(axis=1) / np.maximum(count, 1), np.nan)


# Images


def _balanced(matches: Matches) -> tuple[float, npt.NDArray[np.bool_]]:
    """The score of the best F1 at an IoU of 0.5, and the detections that reach it."""
    score = matches.overlaps.score
    counted = np.flatnonzero(matches.kept & ~matches.ignored[0, 0])
    order = counted[np.argsort(-score[counted], kind="stable")]
    if len(order) == 0:
        return 1.0, np.zeros(len(score), dtype=bool)
    hits = np.cumsum(matches.object[0, 0, order] >= 0)
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + max(1, int((~matches.truth_ignored[0]).sum())))
    last = np.flatnonzero(np.r_[np.diff(score[order]) != 0, True])  # detections of one score come together
    threshold = float(score[order[last[np.argmax(f1[last])]]])
    chosen = np.zeros(len(score), dtype=bool)
    chosen[order] = score[order] >= threshold
    return threshold, chosen


def _quality(matches: Matches, chosen: npt.NDArray[np.bool_]) -> dict[int, float]:
    """How well each image was answered, in the manner of panoptic quality (Kirillov et al., CVPR 2019)."""
    overlaps, truth = matches.overlaps, matches.overlaps.truth
    found = np.flatnonzero(chosen & (matches.object[0, 0] >= 0))
    key = overlaps.dt * max(1, len(truth.label)) + overlaps.gt  # rises with dt, then gt
    pair = np.searchsorted(key, found * max(1, len(truth.label)) + matches.object[0, 0, found])
    shared = np.bincount(overlaps.image[found], overlaps.iou[matches.kind][pair], minlength=truth.num_images)
    answers = np.bincount(overlaps.image[chosen], minlength=truth.num_images)
    objects = np.bincount(truth.image[~matches.truth_ignored[0]], minlength=truth.num_images)
    both = (answers + objects) / 2  # found + half of the missed and of the false ones
    return _by_image(truth, np.where(both > 0, shared / np.maximum(both, 0.5), 1.0))


def _reach(overlaps: Overlaps, kind: Kind) -> dict[int, float]:
    """How well the objects of each image can be had: the mean of their highest IoUs; 1 where there are none."""
    truth = overlaps.truth
    best, needed = best_overlaps(overlaps, kind)[0], ~truth.is_crowd
    total = np.bincount(truth.image[needed], best[needed], minlength=truth.num_images)
    count = np.bincount(truth.image[needed], minlength=truth.num_images)
    return _by_image(truth, np.where(count > 0, total / np.maximum(count, 1), 1.0))


def _by_image(truth: Truth, quality: Floats) -> dict[int, float]:
    """Of each image, by its id."""
    return dict(zip(truth.image_ids.tolist(), quality.tolist(), strict=True))
