"""Instance AP as the Cityscapes benchmark measures it.

Source: Cordts et al., The Cityscapes Dataset (CVPR 2016), sec. 4.2, and its cityscapesScripts.

At each IoU threshold an object of 100 pixels or more is found by the detections of its class that overlap it by more; the most
confident of them counts, the others are false. A detection that finds nothing is false too, unless more of it than the
threshold lies on void, groups and smaller objects. AP is the area under precision over recall, precision as it stands.
Differs from COCO in all of that, and in that the number of detections is not limited.

Legend: D detections and G objects of a class in an image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from maskwright.formats import cityscapes
from maskwright.formats.dataset import Dataset
from maskwright.metrics.detection import check_fields
from maskwright.metrics.overlaps import Bools, Floats, Ints
from maskwright.structures import Masks

THRESHOLDS: Floats = np.arange(0.5, 1.0, 0.05)
MIN_AREA_PX = 100


@dataclass(frozen=True)
class CityscapesMetrics:
    """In [0, 1]; -1 where there are no objects.

    Args:
        ap: mean over the thresholds 0.5 to 0.95 and the classes that have objects.
        ap50: likewise at 0.5.
        per_class: both of each class, by name.
    """

    ap: float
    ap50: float
    per_class: Mapping[str, tuple[float, float]]


@dataclass(frozen=True, eq=False)
class _Image:
    """The detections of a class in an image, beside its objects and groups.

    Args:
        scores: (D,).
        iou: (D, G).
        ignored: share of each detection that lies on what is not to be found, (D,); on a small group it counts twice.
        is_object: whether to be found, (G,).
    """

    scores: Floats
    iou: Floats
    ignored: Floats
    is_object: Bools


def is_cityscapes(dataset: Dataset) -> bool:
    """Whether a data set was read from the folders of Cityscapes."""
    return dataset.path.parent.name == cityscapes.MAPS


def evaluate_cityscapes(dataset: Dataset, results: Sequence[dict[str, Any]]) -> CityscapesMetrics:
    """Score masks by the protocol of Cityscapes.

    Args:
        dataset: the ground truth, with its maps.
        results: entries of a COCO results file, the labels of Cityscapes as category ids.
    """
    check_fields(results, ["segm"])
    of_image: dict[int, list[dict[str, Any]]] = {int(image_id): [] for image_id in dataset.image_ids}
    for result in results:
        of_image[result["image_id"]].append(result)
    labels = dataset.categories.ids
    images: dict[int, list[_Image]] = {label: [] for label in labels}
    for index, image_id in enumerate(dataset.image_ids):
        values = cityscapes.read_map(dataset.path, cityscapes.map_name(dataset.file_name(index)))
        for label, found in _overlaps(values, of_image[int(image_id)], labels).items():
            images[label].append(found)
    aps = np.array([[_average_precision(images[label], threshold) for threshold in THRESHOLDS] for label in labels])
    means = {name: (_known(row), _known(row[:1])) for name, row in zip(dataset.categories.names, aps, strict=True)}
    return CityscapesMetrics(ap=_known(aps), ap50=_known(aps[:, 0]), per_class=means)


def _overlaps(values: cityscapes.Map, results: Sequence[dict[str, Any]], labels: Sequence[int]) -> dict[int, _Image]:
    """What each class has in an image."""
    areas = np.bincount(values.reshape(-1))
    size = (values.shape[0], values.shape[1])
    masks = Masks.from_rles([result["segmentation"] for result in results], size)
    covered = np.zeros((len(results), len(areas)), dtype=np.int64)  # pixels of each detection on each value of the map
    for row, (crop, (x0, y0, x1, y1)) in enumerate(masks.crops()):
        covered[row] = np.bincount(values[y0:y1, x0:x1][crop], minlength=len(areas))
    on_void = covered[:, [value for value in cityscapes.VOID if value < len(areas)]].sum(axis=1)
    found = {}
    for label in labels:
        there = np.flatnonzero(areas)
        there = there[(there == label) | (there // cityscapes.FIRST_OBJECT == label)]
        rows = np.array([i for i, r in enumerate(results) if r["category_id"] == label and covered[i].any()], dtype=np.int64)
        pixels, shared = covered[rows].sum(axis=1), covered[np.ix_(rows, there)]
        is_group, is_small = there < cityscapes.FIRST_OBJECT, areas[there] < MIN_AREA_PX
        ignored = on_void[rows] + shared @ (is_group.astype(np.int64) + is_small)
        found[label] = _Image(
            scores=np.array([results[i]["score"] for i in rows], dtype=np.float64),
            iou=shared / (pixels[:, None] + areas[there] - shared),
            ignored=ignored / pixels,
            is_object=~is_group & ~is_small,
        )
    return found


def _average_precision(images: Sequence[_Image], threshold: float) -> float:
    """Of a class; nan where there is no object."""
    num_objects = sum(int(image.is_object.sum()) for image in images)
    if num_objects == 0:
        return float("nan")
    scores, is_true = [], []
    for image in images:
        hits = image.iou > threshold
        right = np.zeros(len(image.scores), dtype=bool)
        for column in hits[:, image.is_object].T:
            if column.any():
                right[np.argmax(np.where(column, image.scores, -np.inf))] = True
        counted = hits[:, image.is_object].any(axis=1) | (~hits.any(axis=1) & (image.ignored <= threshold))
        scores.append(image.scores[counted])
        is_true.append(right[counted])
    return _area(np.concatenate(scores), np.concatenate(is_true), num_objects)


def _area(scores: Floats, is_true: Bools, num_objects: int) -> float:
    """Under precision over recall, where each step is as wide as half of the recalls beside it are apart."""
    if len(scores) == 0:
        return 0.0
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # of detections with equal scores
    true: Ints = np.cumsum(is_true[order])[last]
    precision = np.concatenate([[1.0], true / (np.flatnonzero(last) + 1)])
    recall = np.concatenate([[0.0], true / num_objects])
    padded = np.concatenate([[0.0], recall, recall[-1:]])
    return float(precision @ (padded[2:] - padded[:-2]) / 2)


def _known(values: Floats) -> float:
    """Mean of what exists; -1 where nothing does."""
    there = values[~np.isnan(values)]
    return float(there.mean()) if there.size else -1.0
