"""COCO annotations, read and written. Here and in coco_results.py alone are COCO's xywh boxes, flat polygons and ids known."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maskwright.formats.builder import (
    Box,
    DatasetBuilder,
    Invalid,
    ObjectMask,
    ObjectRecord,
    choose_classes,
    integer,
    mask_of_polygons,
    mask_of_rle,
    number,
    text,
)
from maskwright.formats.dataset import Categories, Dataset
from maskwright.formats.files import read_json
from maskwright.formats.format import Format, Source, Split
from maskwright.formats.packing import PackedMask
from maskwright.structures import KeypointSchema, rle

_SPLIT_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation")}

# Finding


def find_coco(data: Path, split: Split, *, keypoints: bool) -> Source | None:
    """A split in one of three layouts, or None.

    They are `images/ + annotations/train.json`, COCO 2017 and 2014 (`annotations/instances_train2017.json` + `train2017/`) and
    Roboflow (`train/_annotations.coco.json`, images beside it).

    Args:
        keypoints: whether COCO's `person_keypoints_train2017.json` is taken first, where there is one.
    """
    names = ("person_keypoints", "instances") if keypoints else ("instances", "person_keypoints")
    for name in _SPLIT_NAMES[split]:
        plain = data / "annotations" / f"{name}.json"
        if plain.is_file():
            return Source(plain, data / "images")
        for what, year in itertools.product(names, ("2017", "2014")):
            coco = data / "annotations" / f"{what}_{name}{year}.json"
            if coco.is_file():
                folder = data / f"{name}{year}"
                return Source(coco, folder if folder.is_dir() else data / "images" / f"{name}{year}")
        roboflow = data / name / "_annotations.coco.json"
        if roboflow.is_file():
            return Source(roboflow, data / name)
    return None


# Reading


def read_coco(path: Path, image_folder: Path, *, classes: Sequence[str] | None = None, invalid: Invalid = "stop") -> Dataset:
    """Read and check a COCO annotation file.

    Args:
        path: the JSON file.
        image_folder: what the file names in it are relative to.
        classes: names to keep, in this order; by default all, in the order of the file.
        invalid: whether a bad annotation stops the reading or is left out (and listed in `problems`).

    Raises:
        ValueError: naming the file, the annotation ids, what is wrong and what to do.
    """
    return parse_coco(read_json(path), path, image_folder, classes=classes, invalid=invalid)


def parse_coco(
    data: Any, path: Path, image_folder: Path, *, classes: Sequence[str] | None = None, invalid: Invalid = "stop"
) -> Dataset:
    """The same from what the file holds."""
    if not isinstance(data, dict) or any(
        not isinstance(data.get(key), list) for key in ("images", "annotations", "categories")
    ):
        raise ValueError(f"{path}: not COCO annotations: expected the lists 'images', 'annotations' and 'categories'")
    categories = _read_categories(path, data["categories"], classes)
    schema = categories.keypoints
    posed = {entry["id"] for entry in data["categories"] if schema and tuple(entry.get("keypoints") or ()) == schema.names}
    builder = DatasetBuilder(path, image_folder, categories, classes=classes, invalid=invalid)
    _read_images(builder, data["images"])
    for place, annotation in enumerate(data["annotations"]):
        name = annotation.get("id", f"number {place}") if isinstance(annotation, dict) else f"number {place}"
        with builder.noting(f"annotation {name}"):
            _read_annotation(builder, annotation, posed)
    return builder.build()


def _read_categories(path: Path, entries: list[Any], classes: Sequence[str] | None) -> Categories:
    """All classes of the file, with the keypoints of those in use."""
    try:
        pairs = [(text(entry["name"], "name"), integer(entry["id"], "id")) for entry in entries]
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: each category needs an 'id' and a 'name' ({error})") from None
    if not pairs:
        raise ValueError(f"{path}: there are no categories: list the classes under 'categories'")
    names, ids = tuple(name for name, _ in pairs), tuple(category_id for _, category_id in pairs)
    chosen = set(choose_classes(path, Categories(names, ids), classes).ids)
    schema = _keypoint_schema(path, [entry for entry, category_id in zip(entries, ids, strict=True) if category_id in chosen])
    return Categories(names, ids, schema)


def _keypoint_schema(path: Path, entries: list[Any]) -> KeypointSchema | None:
    """The schema of the first category that has keypoints; COCO's skeletons count from 1."""
    for entry in entries:
        if not entry.get("keypoints"):
            continue
        try:
            skeleton = [(integer(a, "skeleton") - 1, integer(b, "skeleton") - 1) for a, b in entry.get("skeleton") or []]
            return KeypointSchema.from_names([text(name, "keypoints") for name in entry["keypoints"]], skeleton)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: 'keypoints' and 'skeleton' of {entry['name']} are not names and index pairs: {error}"
            ) from None
    return None


def _read_images(builder: DatasetBuilder, entries: list[Any]) -> None:
    for place, entry in enumerate(entries):
        try:
            image_id, name = integer(entry["id"], "id"), text(entry["file_name"], "file_name")
            size = rle.check_size([integer(entry["height"], "height"), integer(entry["width"], "width")])
        except (TypeError, KeyError, ValueError) as error:
            builder.problems.append(f"image number {place}: needs 'id', 'file_name', 'height' and 'width' ({error})")
            continue
        with builder.noting(f"image {image_id}"):
            builder.add_image(image_id, name, size)
    if not entries:
        raise ValueError(f"{builder.path}: there are no images: list them under 'images'")


def _read_annotation(builder: DatasetBuilder, entry: dict[str, Any], posed: set[int]) -> None:
    object_id, image_id, category_id = (integer(entry[key], key) for key in ("id", "image_id", "category_id"))
    place = builder.admit(object_id, image_id=image_id, category_id=category_id)
    if place is None:
        return
    segmentation, bbox, area, is_crowd = (entry.get(key) for key in ("segmentation", "bbox", "area", "iscrowd"))
    mask = _read_segmentation(segmentation, place.size) if segmentation else None
    box = _read_bbox(bbox, place.size) if bbox else None
    if mask is None and box is None:
        raise ValueError("has neither a 'bbox' nor a 'segmentation'")
    area = None if area is None else number(area, "area")
    if (is_crowd or 0) not in (0, 1):
        raise ValueError(f"iscrowd is {is_crowd!r}, expected 0 or 1")
    points = _read_keypoints(entry.get("keypoints") if category_id in posed else None, builder.categories.keypoints)
    builder.add(place, ObjectRecord(mask, box, area, bool(is_crowd), points))


def _read_segmentation(segmentation: Any, size: tuple[int, int]) -> ObjectMask:
    if isinstance(segmentation, dict):
        return mask_of_rle(segmentation, size)
    if not isinstance(segmentation, list) or not all(isinstance(part, list) for part in segmentation):
        raise ValueError("segmentation is neither a list of polygons nor an RLE")
    return mask_of_polygons(segmentation, size)


def _read_bbox(bbox: Any, size: tuple[int, int]) -> Box:
    """A box with some part inside the image."""
    if not isinstance(bbox, list) or len(bbox) != 4:
        raise ValueError(f"bbox is {bbox!r}, expected four finite numbers x, y, width, height")
    box = Box(*(number(v, "bbox") for v in bbox))
    if not box.touches(size):
        raise ValueError(
            f"bbox {bbox} (x, y, width, height) is empty or outside the image of {size[0]} x {size[1]} px: remove it"
        )
    return box


def _read_keypoints(flat: Any, schema: KeypointSchema | None) -> npt.NDArray[np.float32] | None:
    """(J, 3), pixel corners: COCO's pixel indices plus a half."""
    if schema is None or not flat:
        return None
    points = np.asarray(flat, dtype=np.float32)
    if points.size != 3 * len(schema.names) or not np.isfinite(points).all():
        raise ValueError(f"got {points.size} keypoint numbers, expected {3 * len(schema.names)} finite ones (x, y, v for each)")
    points = points.reshape(-1, 3)
    points[points[:, 2] > 0, :2] += 0.5
    return points


# Writing


def to_coco(dataset: Dataset) -> dict[str, Any]:
    """A data set as a COCO dict with original ids; what other evaluators compare with."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, image_id in enumerate(dataset.image_ids.tolist()):
        height, width = dataset.image_size(index)
        images.append({"id": image_id, "height": height, "width": width, "file_name": dataset.file_name(index)})
        columns = dataset.columns(index)
        boxes = np.concatenate([columns.corners, columns.extents], axis=1).tolist()
        for row, object_id in enumerate(columns.ids.tolist()):
            entry: dict[str, Any] = {
                "id": object_id,
                "image_id": image_id,
                "category_id": dataset.categories.ids[columns.labels[row]],
                "bbox": boxes[row],
                "area": float(columns.areas[row]),
                "iscrowd": int(columns.is_crowd[row]),
            }
            if columns.masks.exists[row]:
                entry["segmentation"] = _segmentation(columns.masks[row], (height, width))
            if dataset.categories.keypoints:
                points = columns.keypoints[row].astype(np.float64)
                points[points[:, 2] > 0, :2] -= 0.5
                entry["keypoints"] = points.reshape(-1).tolist()
                entry["num_keypoints"] = int((points[:, 2] > 0).sum())
            annotations.append(entry)
    return {"images": images, "annotations": annotations, "categories": categories_to_coco(dataset.categories)}


def categories_to_coco(categories: Categories) -> list[dict[str, Any]]:
    """Classes as COCO's files list them; its skeletons count from 1."""
    schema = categories.keypoints
    points: dict[str, Any] = {}
    if schema is not None:
        points = {"keypoints": list(schema.names), "skeleton": [[a + 1, b + 1] for a, b in schema.skeleton]}
    return [{"id": number, "name": name, **points} for number, name in zip(categories.ids, categories.names, strict=True)]


def _segmentation(mask: PackedMask, size: tuple[int, int]) -> Any:
    """As it stood in a file."""
    rings = mask.rings
    return mask.to_rle(size) if rings is None else [ring.reshape(-1).tolist() for ring in rings]


COCO = Format(
    name="coco",
    layout=(
        "annotations/{split}.json with images/, annotations/instances_{split}2017.json (or "
        "person_keypoints_{split}2017.json) with {split}2017/, {split}/_annotations.coco.json"
    ),
    find=find_coco,
    read=read_coco,
)
