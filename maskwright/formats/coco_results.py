"""COCO results: detections with scores, ours written and anybody's checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from maskwright.formats.builder import MAX_PROBLEMS_SHOWN, integer, number, text
from maskwright.formats.coco import categories_to_coco
from maskwright.formats.dataset import Categories, Dataset
from maskwright.structures import Instances, Masks, rle


def to_coco_results(instances: Instances, image_id: int, categories: Categories) -> list[dict[str, Any]]:
    """Detections of one image as entries of a COCO results file, with original category ids.

    Args:
        instances: detections, original frame.
        image_id: the image's id in the annotation file.
        categories: index → original id.
    """
    boxes = instances.boxes.cpu().tolist()
    labels = instances.labels.tolist()
    scores = [1.0] * len(instances) if instances.scores is None else instances.scores.cpu().tolist()
    rles = [None] * len(instances) if instances.masks is None else instances.masks.to_rles()
    joints = [None] * len(instances) if instances.keypoints is None else instances.keypoints.cpu()
    results = []
    for (x1, y1, x2, y2), label, score, mask, points in zip(boxes, labels, scores, rles, joints, strict=True):
        entry: dict[str, Any] = {
            "image_id": image_id,
            "category_id": categories.ids[label],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        if mask is not None:
            entry["segmentation"] = mask
        if points is not None:
            entry["keypoints"] = (points - points.new_tensor([0.5, 0.5, 0])).flatten().tolist()  # pixel indices
        results.append(entry)
    return results


class CocoFile:
    """Detections in several images as one COCO data set with scores: any COCO tool opens it, and it can be scored."""

    def __init__(self, categories: Categories) -> None:
        self.categories = categories
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add(self, instances: Instances, file_name: str) -> None:
        """One more image; of its masks only the encodings are kept."""
        height, width = instances.image_size
        image_id = len(self.images) + 1
        self.images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        entries = to_coco_results(instances, image_id, self.categories)
        areas = [e["bbox"][2] * e["bbox"][3] for e in entries] if instances.masks is None else instances.masks.areas().tolist()
        for entry, area in zip(entries, areas, strict=True):
            counts = {"num_keypoints": len(entry["keypoints"]) // 3} if "keypoints" in entry else {}
            self.annotations.append({"id": len(self.annotations) + 1, **entry, **counts, "area": area, "iscrowd": 0})

    def to_dict(self) -> dict[str, Any]:
        """As the file holds it."""
        return {"images": self.images, "annotations": self.annotations, "categories": categories_to_coco(self.categories)}


def result_boxes(results: Sequence[Mapping[str, Any]]) -> npt.NDArray[np.float32]:
    """Boxes of entries of a COCO results file, xyxy px (N, 4); those of the masks where an entry has none."""
    corners = []
    for entry in results:
        if "bbox" in entry:
            x, y, w, h = entry["bbox"]
            corners.append((x, y, x + w, y + h))
        else:
            size = (int(entry["segmentation"]["size"][0]), int(entry["segmentation"]["size"][1]))
            corners.append(tuple(Masks.from_rles([entry["segmentation"]], size).boxes()[0].tolist()))
    return np.array(corners, dtype=np.float32).reshape(-1, 4)


def result_code(entry: Mapping[str, Any]) -> str | bytes | None:
    """Compressed run lengths of an entry's mask, None where it has none."""
    code = entry.get("segmentation")
    if not isinstance(code, dict):
        return None
    if isinstance(code["counts"], (str, bytes)):
        return code["counts"]
    counts: str = Masks.from_rles([code], (int(code["size"][0]), int(code["size"][1]))).to_rles()[0]["counts"]
    return counts


def holds_keypoints(data: Any) -> bool:
    """Whether somebody's results, unchecked, seem to have keypoints."""
    entries = data.get("annotations") if isinstance(data, dict) else data
    return isinstance(entries, list) and any(isinstance(entry, dict) and "keypoints" in entry for entry in entries[:1])


def check_results(path: Path, data: Any, dataset: Dataset) -> list[dict[str, Any]]:
    """Entries of somebody's COCO results file, checked against the data set they shall be scored on.

    Raises:
        ValueError: naming the file, the entry and what is wrong.
    """
    if isinstance(data, dict):
        data = _results_of_dataset(path, data, dataset)
    if not isinstance(data, list):
        raise ValueError(f"{path}: expected a list of COCO results, or a dict with 'annotations'")
    sizes = {int(image_id): dataset.image_size(i) for i, image_id in enumerate(dataset.image_ids)}
    problems: dict[int, str] = {}
    masks: dict[int, list[int]] = {}  # places of run lengths, by image
    for place, entry in enumerate(data):
        try:
            _check_result(entry, sizes, dataset.categories)
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            problems[place] = f"the key {error} is missing" if isinstance(error, KeyError) else str(error)
        else:
            if isinstance(entry.get("segmentation"), dict):
                masks.setdefault(entry["image_id"], []).append(place)
    for image_id, places in masks.items():
        try:
            rle.all_counts_from_coco([data[place]["segmentation"] for place in places], sizes[image_id])
        except (ValueError, TypeError):
            problems |= _damaged({place: data[place]["segmentation"] for place in places}, sizes[image_id])
    if problems:
        shown = "\n  ".join(f"entry {place}: {problems[place]}" for place in sorted(problems)[:MAX_PROBLEMS_SHOWN])
        raise ValueError(f"{path}: {len(problems)} of {len(data)} results cannot be scored on {dataset.path}:\n  {shown}")
    return list(data)


def _damaged(segmentations: dict[int, Any], size: tuple[int, int]) -> dict[int, str]:
    """What is wrong with the run lengths of an image, by place."""
    wrong = {}
    for place, segmentation in segmentations.items():
        try:
            rle.counts_from_coco(segmentation, size)
        except (ValueError, TypeError) as error:
            wrong[place] = str(error)
    return wrong


def _results_of_dataset(path: Path, data: dict[str, Any], dataset: Dataset) -> list[dict[str, Any]]:
    """Annotations with scores as results, images matched by file name and classes by name: ids need not agree."""
    try:
        files = {integer(image["id"], "id"): text(image["file_name"], "file_name") for image in data["images"]}
        names = {integer(entry["id"], "id"): text(entry["name"], "name") for entry in data["categories"]}
        annotations = list(data["annotations"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{path}: expected a list of COCO results, or a COCO data set with 'score' in its annotations"
        ) from None
    images = {dataset.file_name(i): image_id for i, image_id in enumerate(dataset.image_ids.tolist())}
    last_parts = [PurePosixPath(name).name for name in images]
    if len(set(last_parts)) == len(last_parts):  # without their folders the names still tell the images apart
        images |= dict(zip(last_parts, images.values(), strict=True))
    ids = dict(zip(dataset.categories.names, dataset.categories.ids, strict=True))
    if len(set(files.values())) != len(files):
        raise ValueError(f"{path}: two images have the same file name: predict folders one by one")
    lost = [name for name in files.values() if name not in images]
    if lost:
        raise ValueError(
            f"{path}: images {', '.join(lost[:5])} are not in {dataset.path}: score it on the data it was made for"
        )
    unknown = [name for name in names.values() if name not in ids]
    if unknown:
        raise ValueError(f"{path}: classes {', '.join(unknown[:5])} are not in {dataset.path}, which has {', '.join(ids)}")
    try:
        return [
            {**entry, "image_id": images[files[entry["image_id"]]], "category_id": ids[names[entry["category_id"]]]}
            for entry in annotations
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: an annotation names an image or category that is not listed ({error})") from None


def _check_result(entry: dict[str, Any], sizes: dict[int, tuple[int, int]], categories: Categories) -> None:
    if entry["image_id"] not in sizes:
        raise ValueError(f"image_id {entry['image_id']} is not in the data set")
    if entry["category_id"] not in categories.ids:
        raise ValueError(f"category_id {entry['category_id']} is not in the data set")
    number(entry["score"], "score")
    if "segmentation" in entry:
        if not isinstance(entry["segmentation"], dict):
            for part in entry["segmentation"]:
                rle.check_polygon(part)
    elif "bbox" not in entry and "keypoints" not in entry:
        raise ValueError("has neither 'bbox' nor 'segmentation' nor 'keypoints'")
    if "keypoints" in entry and categories.keypoints is not None:
        joints = len(categories.keypoints.names)
        if not isinstance(entry["keypoints"], list) or len([number(v, "keypoints") for v in entry["keypoints"]]) != 3 * joints:
            raise ValueError(f"keypoints are not {3 * joints} numbers, x, y and a third for each of the data set's {joints}")
    if "bbox" in entry and (not isinstance(entry["bbox"], list) or len([number(v, "bbox") for v in entry["bbox"]]) != 4):
        raise ValueError(f"bbox is {entry['bbox']!r}, expected four finite numbers")
