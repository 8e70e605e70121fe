"""Pictures for a report: what was found, what is false, what was missed, beside the truth."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from maskwright.formats.coco_results import result_boxes
from maskwright.formats.dataset import Dataset
from maskwright.metrics.matching import THRESHOLDS, match
from maskwright.metrics.overlaps import Kind, as_rle, measure_overlaps, result_points
from maskwright.metrics.proposals import best_overlaps
from maskwright.reports.drawing import draw_instances
from maskwright.reports.ranking import Row, Table
from maskwright.structures import Instances, Intensity, Masks

TILE_PX = 420
DISAGREEMENTS, BEST, WORST = 6, 2, 3  # images shown
Color = tuple[int, int, int]
FOUND, FALSE, MISSED, TRUE = (60, 200, 90), (235, 60, 60), (70, 130, 255), (245, 200, 40)

Answers = Callable[[str], Sequence[dict[str, Any]]]
"""The detections of an entry's first seed, by its name."""


@dataclass(frozen=True)
class Tile:
    """A picture, as a data address, with what it shows."""

    address: str
    caption: str


@dataclass(frozen=True)
class Strip:
    """Pictures of one image."""

    title: str
    tiles: list[Tile]


@dataclass(frozen=True)
class Group:
    """Strips under one heading."""

    title: str
    strips: list[Strip]


def gallery(dataset: Dataset, tables: Sequence[Table], answers: Answers, intensity: Intensity) -> list[Group]:
    """Where entries disagree most, and the best and worst images of each.

    Args:
        tables: whose rows say how well each image was answered.
        answers: detections with original category ids.
        intensity: how images of more than 8 bits are read.
    """
    place = {int(image_id): i for i, image_id in enumerate(dataset.image_ids)}
    there = [i for i, index in place.items() if len(dataset.columns(index).labels)]
    groups = []
    for table in tables:
        plans: list[tuple[str, list[tuple[int, list[Row]]]]] = []
        if len(table.rows) > 1:
            spread = {i: _spread([row.quality[i] for row in table.rows]) for i in there}
            picked = [i for i in sorted(there, key=lambda i: -spread[i])[:DISAGREEMENTS] if spread[i] > 0]
            plans.append((f"Where they disagree most ({table.task})", [(i, table.rows) for i in picked]))
        for row in table.rows:
            best = sorted(there, key=lambda i, quality=row.quality: -quality[i])[:BEST]  # type: ignore[misc]
            rest = sorted(set(place) - set(best), key=lambda i, quality=row.quality: (quality[i], i))  # type: ignore[misc]
            plans.append((f"Best and worst of {row.name}", [(i, [row]) for i in [*best, *rest[:WORST]]]))
        found = _kept(table, {i for _, plan in plans for i, _ in plan}, answers)
        for title, plan in plans:
            strips = [_strip(dataset, place[i], rows, found, intensity) for i, rows in plan]
            groups.append(Group(title, strips))
    return groups


def _spread(values: Sequence[float]) -> float:
    return max(values) - min(values)


def _kept(table: Table, images: set[int], answers: Answers) -> dict[str, list[dict[str, Any]]]:
    """Detections of all entries on some images, over each entry's own score."""
    return {
        row.name: [e for e in answers(row.name) if e["image_id"] in images and e["score"] >= row.thresholds[0]]
        for row in table.rows
    }


def _strip(
    dataset: Dataset, index: int, rows: Sequence[Row], found: Mapping[str, list[dict[str, Any]]], intensity: Intensity
) -> Strip:
    try:
        sample = dataset.read(index, intensity)
    except ValueError as error:
        return Strip(f"cannot be shown: {error}", [])
    pixels, truth = sample.image.numpy(), sample.instances[~sample.instances.crowd]
    categories = dataset.categories
    how: dict[str, Any] = {"names": categories.names, "schema": categories.keypoints}
    picture = draw_instances(pixels, truth, **how, colors=[TRUE] * len(truth))
    tiles = [Tile(_address(picture), f"the truth: {len(truth)} objects")]
    one = dataset.subset([index])
    for row in rows:
        results = [e for e in found[row.name] if e["image_id"] == sample.id]
        instances, colors = _nearest(one, results, row.kind) if row.proposals else _judged(one, results, row)
        caption = f"{row.name}: quality {100 * row.quality[sample.id]:.0f}"
        tiles.append(Tile(_address(draw_instances(pixels, instances, **how, colors=colors)), caption))
    return Strip(dataset.file_name(index), tiles)


def _nearest(dataset: Dataset, results: Sequence[dict[str, Any]], kind: Kind) -> tuple[Instances, list[Color]]:
    """For each object the proposal that overlaps it most; where none does by half, the object itself (SharpMask, fig. 4)."""
    size = dataset.image_size(0)
    overlaps = measure_overlaps(dataset, results, [kind])
    best, which = best_overlaps(overlaps, kind)
    needed = ~overlaps.truth.is_crowd
    found, lost = np.flatnonzero(needed & (best >= THRESHOLDS[0])), np.flatnonzero(needed & (best < THRESHOLDS[0]))
    shown = [results[k] for k in overlaps.source[which[found]]]
    order = np.argsort(np.array(dataset.categories.ids)[dataset.columns(0).labels], kind="stable")
    missed = dataset.instances(0)[torch.from_numpy(order[lost])]
    if kind == "bbox":
        boxes, masks = torch.from_numpy(result_boxes(shown)), None
    else:
        masks = Masks.from_rles([as_rle(e["segmentation"], size) for e in shown], size)
        boxes = masks.boxes()
    labels = torch.zeros(len(shown), dtype=torch.int64)
    nearest = Instances(size, boxes=boxes, labels=labels, masks=masks)
    plain = _shown(missed, kind)
    return Instances.cat([nearest, plain]), [*[FOUND] * len(found), *[FALSE] * len(lost)]


def _judged(dataset: Dataset, results: Sequence[dict[str, Any]], row: Row) -> tuple[Instances, list[Color]]:
    """Detections and missed objects of one image, each in the color of what it is."""
    size, kind = dataset.image_size(0), row.kind
    overlaps = measure_overlaps(dataset, results, [kind])
    matches = match(overlaps, kind, max_detections=max(1, len(results)), class_agnostic=not row.per_class)
    object_of = matches.object[0, 0]
    ordered = [results[k] for k in overlaps.source]
    boxes = torch.from_numpy(result_boxes([e for e in ordered if "bbox" in e]))
    masks = points = None
    if kind == "keypoints":
        points = torch.from_numpy(result_points(dataset, ordered)).float()
    elif kind != "bbox":
        masks = Masks.from_rles([as_rle(e["segmentation"], size) for e in ordered], size)
    if len(boxes) < len(ordered):  # the file has none
        boxes = torch.cat([points[..., :2].amin(1), points[..., :2].amax(1)], dim=1) if masks is None else masks.boxes()  # type: ignore[index]
    shown = Instances(size, boxes=boxes, labels=torch.from_numpy(overlaps.label), masks=masks, keypoints=points)
    colors = [FOUND if o >= 0 else FALSE for o in object_of]
    order = np.argsort(np.array(dataset.categories.ids)[dataset.columns(0).labels], kind="stable")
    lost = [int(k) for k in range(len(order)) if k not in set(object_of.tolist()) and not matches.truth_ignored[0, k]]
    everything = dataset.instances(0)
    missed = everything[torch.from_numpy(order[lost])]
    return Instances.cat([shown, _shown(missed, kind)]), [*colors, *[MISSED] * len(lost)]


def _shown(objects: Instances, kind: Kind) -> Instances:
    """Objects with no more than what is judged."""
    masks = objects.masks if kind in ("segm", "boundary") else None
    points = objects.keypoints if kind == "keypoints" else None
    return Instances(objects.image_size, boxes=objects.boxes, labels=objects.labels, masks=masks, keypoints=points)


def _address(picture: Image.Image) -> str:
    """A picture inside a page."""
    small = picture.copy()
    small.thumbnail((TILE_PX, TILE_PX), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    small.save(data, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
