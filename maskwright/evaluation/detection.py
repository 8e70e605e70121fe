"""COCO average precision and recall of boxes and masks, through hotcoco, with pycocotools' numbers.

Legend: T IoU thresholds · R recall points · K classes · A area ranges · M limits on detections.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import hotcoco
import numpy as np
import numpy.typing as npt

from maskwright.data.coco import Categories, CocoDataset
from maskwright.data.coco_results import to_coco_results
from maskwright.data.loader import Batch
from maskwright.structures import ImageBatch, Instances

COCO_LIMITS = (1, 10, 100)
"""COCO's limits on the detections of an image; the last one counts for AP."""


def default_limits(max_detections: int) -> tuple[int, ...]:
    """The limits a model is scored with when none are given: COCO's, with its own number of detections as the last."""
    return tuple(sorted({*COCO_LIMITS[:-1], max_detections}))


def percent(value: float) -> str:
    """A metric for people; "-" where there was nothing to find."""
    return "-" if value < 0 else f"{100 * value:.1f}"


@dataclass(frozen=True)
class DetectionMetrics:
    """COCO's numbers in [0, 1]; -1 where there is nothing to find, as pycocotools says it.

    Args:
        kind: "bbox" or "segm".
        max_detections: the limits used.
        ap, ap50, ap75: over IoU 0.50:0.95, at 0.50, at 0.75; all areas, the largest limit.
        ap_small, ap_medium, ap_large: under 32², to 96², over 96² px², original image.
        ar: recall for each of the limits.
        ar_small, ar_medium, ar_large: recall by area, the largest limit.
        per_class: AP by class name; empty when classes are ignored.
        per_class_ap50: AP at 0.50 by class name.
    """

    kind: Literal["bbox", "segm"]
    max_detections: tuple[int, ...]
    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar: tuple[float, ...]
    ar_small: float
    ar_medium: float
    ar_large: float
    per_class: dict[str, float]
    per_class_ap50: dict[str, float]

    def stats(self) -> list[float]:
        """In pycocotools' order: the 12 numbers where there are three limits."""
        sizes = [self.ap_small, self.ap_medium, self.ap_large]
        return [self.ap, self.ap50, self.ap75, *sizes, *self.ar, self.ar_small, self.ar_medium, self.ar_large]

    def to_dict(self) -> dict[str, Any]:
        """As JSON would hold it."""
        return asdict(self)


def evaluate_detections(
    dataset: CocoDataset,
    results: Sequence[dict[str, Any]],
    *,
    kind: Literal["bbox", "segm"],
    max_detections: Sequence[int] = COCO_LIMITS,
    class_agnostic: bool = False,
) -> DetectionMetrics:
    """Score detections against a data set.

    Args:
        dataset: the ground truth.
        results: entries of a COCO results file, original category ids.
        kind: what overlap is measured on.
        max_detections: ascending limits on the detections of an image; AP uses the last.
        class_agnostic: whether an object counts as found whatever class it was given.

    Raises:
        ValueError: results without the boxes or masks asked for.
    """
    limits = tuple(sorted(set(max_detections)))
    if not limits or not all(isinstance(limit, int) and 0 < limit < 2**31 for limit in limits):
        raise ValueError(f"got limits {list(max_detections)} on detections, expected positive numbers, for example 1, 10, 100")
    field = "bbox" if kind == "bbox" else "segmentation"
    missing = sum(field not in entry for entry in results)
    if missing:
        raise ValueError(
            f"{missing} of {len(results)} results have no {field!r}: score them by {'masks' if kind == 'bbox' else 'boxes'}"
        )
    keys = ("image_id", "category_id", "score", field)  # a box beside a mask would decide the area range
    truth = hotcoco.COCO(dataset.to_coco())
    run = hotcoco.COCOeval(truth, truth.load_res([{key: entry[key] for key in keys} for entry in results]), kind)
    run.params.max_dets = list(limits)
    run.params.use_cats = not class_agnostic
    run.evaluate()
    run.accumulate()
    assert run.eval is not None
    precision, recall = np.asarray(run.eval["precision"]), np.asarray(run.eval["recall"])  # (T, R, K, A, M), (T, K, A, M)
    order = list(run.params.cat_ids)
    names = dict(zip(dataset.categories.ids, dataset.categories.names, strict=True))
    per_class = {} if class_agnostic else {names[c]: _mean(precision[:, :, k, 0, -1]) for k, c in enumerate(order)}
    per_class_ap50 = {} if class_agnostic else {names[c]: _mean(precision[0, :, k, 0, -1]) for k, c in enumerate(order)}
    by_area = [_mean(precision[:, :, :, a, -1]) for a in range(4)]
    recall_by_area = [_mean(recall[:, :, a, -1]) for a in range(4)]
    return DetectionMetrics(
        kind=kind,
        max_detections=limits,
        ap=by_area[0],
        ap50=_mean(precision[0, :, :, 0, -1]),
        ap75=_mean(precision[5, :, :, 0, -1]),
        ap_small=by_area[1],
        ap_medium=by_area[2],
        ap_large=by_area[3],
        ar=tuple(_mean(recall[:, :, 0, m]) for m in range(len(limits))),
        ar_small=recall_by_area[1],
        ar_medium=recall_by_area[2],
        ar_large=recall_by_area[3],
        per_class=per_class,
        per_class_ap50=per_class_ap50,
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
    present = values[values > -1]
    return float(present.mean()) if present.size else -1.0
