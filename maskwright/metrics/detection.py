"""COCO average precision and recall of boxes, masks and their edges, with pycocotools' numbers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from maskwright.data.loader import Batch
from maskwright.formats.coco_results import to_coco_results
from maskwright.formats.dataset import Categories, Dataset
from maskwright.metrics.matching import SIZES, Matches, curves, match
from maskwright.metrics.overlaps import Kind, Overlaps, measure_overlaps
from maskwright.structures import ImageBatch, Instances

COCO_LIMITS = (1, 10, 100)
"""COCO's limits on the detections of an image; the last one counts for AP."""
PROPOSAL_LIMITS = (10, 100, 1000)
"""Limits on the proposals of an image (DeepMask, sec. 5.2)."""
KEYPOINT_LIMIT = 20
"""COCO's limit on the people of an image."""
KIND_ADJECTIVES: Mapping[Kind, str] = {"bbox": "box", "segm": "mask", "boundary": "boundary", "keypoints": "keypoint"}
"""Before AP."""


def default_limits(max_detections: int, *, of_proposals: bool = False) -> tuple[int, ...]:
    """The limits a model is scored with when none are given: COCO's or those of proposals, with its own number as the last."""
    if of_proposals:
        return tuple(sorted({limit for limit in PROPOSAL_LIMITS if limit < max_detections} | {max_detections}))
    return tuple(sorted({*COCO_LIMITS[:-1], max_detections}))


def percent(value: float) -> str:
    """A metric for people; "-" where there was nothing to find."""
    return "-" if value < 0 else f"{100 * value:.1f}"


@dataclass(frozen=True)
class DetectionMetrics:
    """COCO's numbers in [0, 1]; -1 where there is nothing to find, as pycocotools says it.

    Args:
        kind: "bbox", "segm", "boundary" (Boundary IoU, CVPR 2021), or "keypoints", where IoU is OKS.
        max_detections: the limits used.
        ap, ap50, ap75: over IoU 0.50:0.95, at 0.50, at 0.75; all areas, the largest limit.
        ap_small, ap_medium, ap_large: under 32², to 96², over 96² px², original image.
        ar: recall for each of the limits.
        ar50, ar75: recall at IoU 0.50 and 0.75, the largest limit.
        ar_small, ar_medium, ar_large: recall by area, the largest limit.
        per_class: AP by class name; empty when classes are ignored.
        per_class_ap50: AP at 0.50 by class name.
    """

    kind: Kind
    max_detections: tuple[int, ...]
    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar: tuple[float, ...]
    ar50: float
    ar75: float
    ar_small: float
    ar_medium: float
    ar_large: float
    per_class: dict[str, float]
    per_class_ap50: dict[str, float]

    def stats(self) -> list[float]:
        """In pycocotools' order: the 12 numbers where there are three limits, 10 of keypoints with one."""
        if self.kind == "keypoints":
            precisions = [self.ap, self.ap50, self.ap75, self.ap_medium, self.ap_large]
            return [*precisions, self.ar[-1], self.ar50, self.ar75, self.ar_medium, self.ar_large]
        sizes = [self.ap_small, self.ap_medium, self.ap_large]
        return [self.ap, self.ap50, self.ap75, *sizes, *self.ar, self.ar_small, self.ar_medium, self.ar_large]

    def to_dict(self) -> dict[str, Any]:
        """As JSON would hold it."""
        return asdict(self)


def evaluate_detections(
    dataset: Dataset,
    results: Sequence[dict[str, Any]],
    *,
    kinds: Sequence[Kind],
    max_detections: Sequence[int] = COCO_LIMITS,
    class_agnostic: bool = False,
) -> dict[Kind, DetectionMetrics]:
    """Score detections against a data set.

    Args:
        dataset: the ground truth.
        results: entries of a COCO results file, original category ids.
        kinds: what overlap is measured on.
        max_detections: ascending limits on the detections of an image and class; AP uses the last. Of keypoints 20 at most.
        class_agnostic: whether an object counts as found whatever class it was given.

    Raises:
        ValueError: results without the boxes or masks asked for.
    """
    limits, overlaps = measure(dataset, results, kinds, max_detections)
    names = () if class_agnostic else dataset.categories.names
    answer = {}
    for kind in kinds:
        own = limits_of(kind, limits)
        matches = match(overlaps, kind, max_detections=own[-1], class_agnostic=class_agnostic)
        answer[kind] = metrics_of(matches, names, own)
    return answer


def measure(
    dataset: Dataset, results: Sequence[dict[str, Any]], kinds: Sequence[Kind], max_detections: Sequence[int]
) -> tuple[tuple[int, ...], Overlaps]:
    """Limits, ascending, and how detections overlap the truth, once it is certain that they can be scored.

    Raises:
        ValueError: something that is no limit, or results without the boxes or masks asked for.
    """
    limits = check_limits(max_detections)
    check_fields(results, kinds)
    return limits, measure_overlaps(dataset, results, kinds)


def check_limits(max_detections: Sequence[int]) -> tuple[int, ...]:
    """Limits on detections, ascending.

    Raises:
        ValueError: something that is no limit.
    """
    limits = tuple(sorted(set(max_detections)))
    if not limits or not all(isinstance(limit, int) and 0 < limit < 2**31 for limit in limits):
        raise ValueError(f"got limits {list(max_detections)} on detections, expected positive numbers, for example 1, 10, 100")
    return limits


def limits_of(kind: Kind, limits: Sequence[int]) -> tuple[int, ...]:
    """Limits as they hold for a kind: of people COCO looks at 20."""
    return tuple(sorted({min(limit, KEYPOINT_LIMIT) for limit in limits})) if kind == "keypoints" else tuple(limits)


def check_fields(results: Sequence[dict[str, Any]], kinds: Iterable[Kind]) -> None:
    """Make sure that results can be scored.

    Raises:
        ValueError: some have no box, or no mask, where they are needed.
    """
    for kind in kinds:
        field = kind if kind in ("bbox", "keypoints") else "segmentation"
        missing = sum(field not in entry for entry in results)
        if missing:
            other = "masks" if kind == "bbox" else "boxes"
            raise ValueError(f"{missing} of {len(results)} results have no {field!r}: score them by {other}")


def metrics_of(matches: Matches, names: Sequence[str], limits: Sequence[int]) -> DetectionMetrics:
    """COCO's numbers of matched detections.

    Args:
        names: of the classes; none where they are ignored.
        limits: ascending limits on detections; what was matched had the last.
    """
    by_size = {size: curves(matches, size, full=False) for size in SIZES}
    everything = by_size["all"]
    recalls = [curves(matches.limited(limit), full=False).recall for limit in limits[:-1]] + [everything.recall]
    return DetectionMetrics(
        kind=matches.kind,
        max_detections=tuple(limits),
        ap=_mean(everything.ap),
        ap50=_mean(everything.ap[:, 0]),
        ap75=_mean(everything.ap[:, 5]),
        ap_small=_mean(by_size["small"].ap),
        ap_medium=_mean(by_size["medium"].ap),
        ap_large=_mean(by_size["large"].ap),
        ar=tuple(_mean(recall) for recall in recalls),
        ar50=_mean(everything.recall[:, 0]),
        ar75=_mean(everything.recall[:, 5]),
        ar_small=_mean(by_size["small"].recall),
        ar_medium=_mean(by_size["medium"].recall),
        ar_large=_mean(by_size["large"].recall),
        per_class={name: _mean(everything.ap[:, :, k]) for k, name in enumerate(names)},
        per_class_ap50={name: _mean(everything.ap[:, 0, k]) for k, name in enumerate(names)},
    )


def detect(
    predict: Callable[[ImageBatch], list[Instances]],
    batches: Iterable[Batch],
    categories: Categories,
    *,
    device: str,
    done: Callable[[int], object] = lambda images: None,
) -> list[dict[str, Any]]:
    """Detections of all batches as COCO results; `done` hears how many images each batch held."""
    results: list[dict[str, Any]] = []
    for batch in batches:
        for image_id, instances in zip(batch.ids, predict(batch.images.to(device)), strict=True):
            results += to_coco_results(instances, image_id, categories)
        done(len(batch.ids))
    return results


def _mean(values: npt.NDArray[np.float64]) -> float:
    """Mean over what exists; -1 where nothing does."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else -1.0
