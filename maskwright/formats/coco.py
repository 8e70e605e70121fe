"""COCO annotations. Here and in coco_results.py alone are COCO's xywh boxes and category ids known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from maskwright.formats.dataset import Categories, Columns, Dataset
from maskwright.formats.files import read_json
from maskwright.structures import KeypointSchema, rle

MAX_PROBLEMS_SHOWN = 10

# Reading


def read_coco(
    path: Path,
    image_folder: Path,
    *,
    classes: Sequence[str] | None = None,
    invalid: Literal["stop", "skip"] = "stop",
) -> Dataset:
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
    data: Any,
    path: Path,
    image_folder: Path,
    *,
    classes: Sequence[str] | None = None,
    invalid: Literal["stop", "skip"] = "stop",
) -> Dataset:
    """The same from what the file holds, or from what is to be read as if it were such a file."""
    if not isinstance(data, dict) or any(
        not isinstance(data.get(key), list) for key in ("images", "annotations", "categories")
    ):
        raise ValueError(f"{path}: not COCO annotations: expected the lists 'images', 'annotations' and 'categories'")
    categories, wanted = _read_categories(path, data["categories"], classes)
    problems: list[str] = []
    listed = _read_images(path, data["images"], problems)
    schema = categories.keypoints
    posed = {entry["id"] for entry in data["categories"] if schema and tuple(entry.get("keypoints") or ()) == schema.names}
    place = {image_id: i for i, image_id in enumerate(listed)}
    label_of = {category_id: label for label, category_id in enumerate(categories.ids)}

    rows: list[tuple[int, _Row]] = []
    seen: set[int] = set()
    for number, annotation in enumerate(data["annotations"]):
        try:
            row = _read_annotation(annotation, listed, place, label_of, wanted, seen, schema, posed)
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            name = annotation.get("id", f"number {number}") if isinstance(annotation, dict) else f"number {number}"
            what = f"the key {error} is missing" if isinstance(error, KeyError) else str(error)
            problems.append(f"annotation {name}: {what}")
        else:
            if row is not None:
                rows.append(row)
    if problems and invalid == "stop":
        raise ValueError(_problem_message(path, problems))
    rows.sort(key=lambda item: item[0])
    counts = np.bincount(np.array([i for i, _ in rows], dtype=np.int64), minlength=len(listed))
    return Dataset(
        path=path,
        image_folder=image_folder,
        categories=categories,
        image_ids=np.array(list(listed), dtype=np.int64),
        sizes=np.array([entry[1] for entry in listed.values()], dtype=np.int32).reshape(-1, 2),
        file_names=[entry[0] for entry in listed.values()],
        columns=_pack([row for _, row in rows], counts, schema),
        problems=problems,
    )


@dataclass(frozen=True)
class _Row:
    id: int
    bbox: tuple[float, float, float, float]
    label: int
    area: float
    is_crowd: bool
    keypoints: npt.NDArray[np.float32]
    segment: bytes


def _read_categories(path: Path, entries: list[Any], classes: Sequence[str] | None) -> tuple[Categories, set[int]]:
    """The classes in use, and the ids of all classes of the file."""
    try:
        pairs = [(text(entry["name"], "name"), integer(entry["id"], "id")) for entry in entries]
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: each category needs an 'id' and a 'name' ({error})") from None
    ids = [category_id for _, category_id in pairs]
    names = [name for name, _ in pairs]
    for what, values in (("id", [str(i) for i in ids]), ("name", names)):
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            raise ValueError(f"{path}: category {what} {', '.join(twice)} stands twice: make them unique")
    if not pairs:
        raise ValueError(f"{path}: there are no categories: list the classes under 'categories'")
    if classes is not None:
        if not classes or len(set(classes)) != len(classes):
            raise ValueError(f"got classes {', '.join(classes) or 'none'}: name each class once, and at least one")
        unknown = [name for name in classes if name not in names]
        if unknown:
            raise ValueError(f"{path}: no class is named {', '.join(unknown)}; there are {', '.join(names)}")
        pairs = [pairs[names.index(name)] for name in classes]
    chosen = {category_id for _, category_id in pairs}
    schema = _keypoint_schema(path, [entry for entry, category_id in zip(entries, ids, strict=True) if category_id in chosen])
    return Categories(tuple(n for n, _ in pairs), tuple(i for _, i in pairs), schema), set(ids)


def _read_images(path: Path, entries: list[Any], problems: list[str]) -> dict[int, tuple[str, tuple[int, int]]]:
    """id → (file name, (height, width)), in the order of the file."""
    listed: dict[int, tuple[str, tuple[int, int]]] = {}
    for number, entry in enumerate(entries):
        try:
            image_id, name = integer(entry["id"], "id"), text(entry["file_name"], "file_name")
            size = rle.check_size([integer(entry["height"], "height"), integer(entry["width"], "width")])
        except (TypeError, KeyError, ValueError) as error:
            problems.append(f"image number {number}: needs 'id', 'file_name', 'height' and 'width' ({error})")
            continue
        parts = PurePosixPath(name.replace("\\", "/"))
        if not parts.name or parts.is_absolute() or ".." in parts.parts or ":" in parts.parts[0]:
            problems.append(f"image {image_id}: file name {name!r} leaves the image folder: give it relative to that folder")
        elif image_id in listed:
            problems.append(f"image {image_id}: the id stands twice: make image ids unique")
        else:
            listed[image_id] = (str(parts), size)
    if not listed and not problems:
        raise ValueError(f"{path}: there are no images: list them under 'images'")
    return listed


def _read_annotation(
    entry: dict[str, Any],
    listed: dict[int, tuple[str, tuple[int, int]]],
    place: dict[int, int],
    label_of: dict[int, int],
    known: set[int],
    seen: set[int],
    schema: KeypointSchema | None,
    posed: set[int],
) -> tuple[int, _Row] | None:
    """(index of its image, the row), or None for a class that is not wanted."""
    annotation_id, image_id, category_id = (integer(entry[key], key) for key in ("id", "image_id", "category_id"))
    if annotation_id in seen:
        raise ValueError("the id stands twice: make annotation ids unique")
    seen.add(annotation_id)
    if image_id not in listed:
        raise ValueError(f"image_id {image_id} is not among 'images': remove it or add the image")
    if category_id not in known:
        raise ValueError(f"category_id {category_id} is not among 'categories': remove it or add the category")
    if category_id not in label_of:
        return None
    size = listed[image_id][1]
    segmentation = entry.get("segmentation") or None
    bounds, pixels = (None, None) if segmentation is None else _check_segmentation(segmentation, size)
    if segmentation is not None and pixels is None and entry.get("area") is None:
        starts, ends = rle.runs_from_polygons(segmentation, size)
        pixels = float((ends - starts).sum())
    if entry.get("bbox"):
        bbox = _check_bbox(entry["bbox"], size)
    elif bounds is not None:
        bbox = (bounds[0], bounds[1], bounds[2] - bounds[0], bounds[3] - bounds[1])
    else:
        raise ValueError("has neither a 'bbox' nor a 'segmentation'")
    area = bbox[2] * bbox[3] if pixels is None else pixels
    if entry.get("area") is not None:
        area = number(entry["area"], "area")
    is_crowd = entry.get("iscrowd") or 0
    if is_crowd not in (0, 1):
        raise ValueError(f"iscrowd is {is_crowd!r}, expected 0 or 1")
    if not np.isfinite(area) or area < 0:
        raise ValueError(f"area is {area}, expected a number of px² that is not negative")
    return place[image_id], _Row(
        id=annotation_id,
        bbox=bbox,
        label=label_of[category_id],
        area=area,
        is_crowd=bool(is_crowd),
        keypoints=_read_keypoints(entry.get("keypoints") if category_id in posed else None, schema),
        segment=b"" if segmentation is None else json.dumps(segmentation, separators=(",", ":")).encode(),
    )


def _check_segmentation(segmentation: Any, size: tuple[int, int]) -> tuple[tuple[float, float, float, float], float | None]:
    """Bounds of a segmentation that lies in the image, and the pixels of an RLE, for which they cost nothing."""
    if isinstance(segmentation, dict):
        runs = rle.runs_from_coco(segmentation, size)
        x0, y0, x1, y1 = rle.window_of_runs(runs, size)
        if x1 == 0:
            raise ValueError("the mask is empty: remove the annotation")
        return (x0, y0, x1, y1), float((runs[1] - runs[0]).sum())
    if not isinstance(segmentation, list) or not all(isinstance(part, list) for part in segmentation):
        raise ValueError("segmentation is neither a list of polygons nor an RLE")
    vertices = np.concatenate([rle.check_polygon(part) for part in segmentation])
    (left, top), (right, bottom) = vertices.min(axis=0), vertices.max(axis=0)
    height, width = size
    if right <= 0 or bottom <= 0 or left >= width or top >= height:
        raise ValueError(f"the polygon lies outside the image of {height} x {width} px: remove it or correct the image size")
    if max(-left, -top, right - width, bottom - height) > max(size):
        raise ValueError(f"the polygon reaches to ({right:g}, {bottom:g}), far outside the image of {height} x {width} px")
    return (max(float(left), 0.0), max(float(top), 0.0), min(float(right), width), min(float(bottom), height)), None


def _check_bbox(bbox: Any, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """x, y, width, height of a box with some part inside the image."""
    if not isinstance(bbox, list) or len(bbox) != 4:
        raise ValueError(f"bbox is {bbox!r}, expected four finite numbers x, y, width, height")
    x, y, width, height = (number(v, "bbox") for v in bbox)
    if width <= 0 or height <= 0 or x >= size[1] or y >= size[0] or x + width <= 0 or y + height <= 0:
        raise ValueError(
            f"bbox {bbox} (x, y, width, height) is empty or outside the image of {size[0]} x {size[1]} px: remove it"
        )
    return x, y, width, height


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


def _read_keypoints(flat: Any, schema: KeypointSchema | None) -> npt.NDArray[np.float32]:
    """(J, 3), pixel corners: COCO's pixel indices plus a half."""
    if schema is None:
        return np.zeros((0, 3), dtype=np.float32)
    if not flat:
        return np.zeros((len(schema.names), 3), dtype=np.float32)
    points = np.asarray(flat, dtype=np.float32)
    if points.size != 3 * len(schema.names) or not np.isfinite(points).all():
        raise ValueError(f"got {points.size} keypoint numbers, expected {3 * len(schema.names)} finite ones (x, y, v for each)")
    points = points.reshape(-1, 3)
    points[points[:, 2] > 0, :2] += 0.5
    return points


def integer(value: Any, name: str) -> int:
    """A whole number that is not negative, as ids and sizes are; 3.0 will do."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ValueError(f"{name} is {value!r}, expected a whole number from 0 on")
    return value


def number(value: Any, name: str) -> float:
    """A finite number."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not np.isfinite(value):
        raise ValueError(f"{name} holds {value!r}, expected finite numbers")
    return float(value)


def text(value: Any, name: str) -> str:
    """A text that can be shown on one line."""
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError(f"{name} is {value!r}, expected a text")
    return value


def _pack(rows: list[_Row], counts: npt.NDArray[np.int64], schema: KeypointSchema | None) -> Columns:
    joints = len(schema.names) if schema else 0
    return Columns(
        image_starts=np.cumsum([0, *counts]),
        ids=np.array([row.id for row in rows], dtype=np.int64),
        bboxes=np.array([row.bbox for row in rows], dtype=np.float64).reshape(-1, 4),
        labels=np.array([row.label for row in rows], dtype=np.int32),
        areas=np.array([row.area for row in rows], dtype=np.float64),
        is_crowd=np.array([row.is_crowd for row in rows], dtype=bool),
        keypoints=np.array([row.keypoints for row in rows], dtype=np.float32).reshape(len(rows), joints, 3),
        segments=np.frombuffer(b"".join(row.segment for row in rows), dtype=np.uint8),
        segment_starts=np.cumsum([0] + [len(row.segment) for row in rows]),
    )


def _problem_message(path: Path, problems: Sequence[str]) -> str:
    shown = "\n  ".join(problems[:MAX_PROBLEMS_SHOWN])
    more = f"\n  and {len(problems) - MAX_PROBLEMS_SHOWN} more" if len(problems) > MAX_PROBLEMS_SHOWN else ""
    return f"{path}: {len(problems)} bad entries; correct them, or leave them out with --skip-invalid:\n  {shown}{more}"
