"""What overlaps what: truth and detections of a data set in columns, and every pair of them that touches.

All that is said about detections later (AP, recall, errors, intervals) is computed from these columns; masks are looked at
once, here.

Legend: D detections · G true objects, crowds included · P pairs of a detection and an object of its image that overlap.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from hotcoco import mask as kernels

from maskwright.formats.dataset import Dataset
from maskwright.formats.packing import PackedMask
from maskwright.structures import KeypointSchema, Masks
from maskwright.structures.keypoints import similarity
from maskwright.structures.rle import Bitmap, Window

Kind = Literal["bbox", "segm", "boundary", "keypoints"]
"""What overlap is measured on: boxes, masks, masks and their edges at once, or keypoints, whose overlap is their similarity."""

FAINT = 0.1
"""Overlaps up to this are nothing: the least that the error breakdown calls a misplaced answer (TIDE, ECCV 2020, sec. 2.2)."""
BOUNDARY_SHARE = 0.02
"""Width of an edge as a share of the image's diagonal (Boundary IoU, CVPR 2021, sec. 4)."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Truth:
    """The objects of a data set, images in the order of their ids.

    Args:
        image, label: int64 (G,), places in the order of ids, class indices; within an image sorted by category id.
        area: px², as the annotations state it, (G,).
        is_crowd: (G,).
        num_keypoints: labelled, (G,).
        num_images, num_classes: of the data set.
        image_ids: by place.
    """

    image: Ints
    label: Ints
    area: Floats
    is_crowd: Bools
    num_keypoints: Ints
    num_images: int
    num_classes: int
    image_ids: Ints


@dataclass(frozen=True, eq=False)
class Overlaps:
    """Detections, sorted by image and falling score, and the pairs that overlap.

    Args:
        truth: what was looked for.
        image, label: of the detections, int64 (D,).
        score: (D,).
        area: by kind, px², (D,): that of the box, or of the mask; of keypoints that of the box, or of what they span.
        source: where each detection stands in the results given, int64 (D,).
        dt, gt: the pairs, int64 (P,).
        iou: by kind, (P,); crowds are measured by the share of the detection that lies in them.
    """

    truth: Truth
    image: Ints
    label: Ints
    score: Floats
    area: dict[Kind, Floats]
    source: Ints
    dt: Ints
    gt: Ints
    iou: dict[Kind, Floats]


def measure_overlaps(
    dataset: Dataset,
    results: Sequence[dict[str, Any]],
    kinds: Sequence[Kind],
) -> Overlaps:
    """Compare all detections with all objects of their images, whatever their classes.

    Args:
        dataset: the ground truth; with masks where masks are asked for.
        results: entries of a COCO results file, original category ids, with the boxes, masks or keypoints asked for.
        kinds: which overlaps to measure; a boundary is measured where masks overlap by half, for nothing less can match.
    """
    order = np.argsort(dataset.image_ids, kind="stable")
    place = {int(image_id): i for i, image_id in enumerate(dataset.image_ids[order])}
    label_of = {category: label for label, category in enumerate(dataset.categories.ids)}
    masks = "segm" in kinds or "boundary" in kinds
    image = np.array([place[entry["image_id"]] for entry in results], dtype=np.int64)
    label = np.array([label_of[entry["category_id"]] for entry in results], dtype=np.int64)
    score = np.array([entry["score"] for entry in results], dtype=np.float64)
    category = np.array(dataset.categories.ids, dtype=np.int64)  # decides between equal scores, as in pycocotools
    source = np.lexsort((category[label], -score, image))
    image, label, score = image[source], label[source], score[source]
    boxes = np.array([entry["bbox"] for entry in results], dtype=np.float64).reshape(-1, 4)[source] if "bbox" in kinds else None
    points = result_points(dataset, results)[source] if "keypoints" in kinds else None
    starts = np.searchsorted(image, np.arange(len(place) + 1))
    objects: list[_Objects] = []
    pieces: list[_Piece] = []
    count = 0
    for i, index in enumerate(order.tolist()):
        rows = slice(starts[i], starts[i + 1])
        there, size = _Objects.of(dataset, index), dataset.image_size(index)
        rles = None
        if masks:
            rles = [
                [mask.to_rle(size) for mask in there.masks],
                [as_rle(results[k]["segmentation"], size) for k in source[rows]],
            ]
        by_points = None if points is None else _similarity(there, points[rows], dataset.categories.keypoints)
        piece = _compare(there, None if boxes is None else boxes[rows], rles, by_points, size, kinds)
        pieces.append(replace(piece, dt=piece.dt + starts[i], gt=piece.gt + count))
        objects.append(replace(there, masks=[]))
        count += len(there.label)
    areas: dict[Kind, Floats] = {} if boxes is None else {"bbox": boxes[:, 2] * boxes[:, 3]}
    if masks:
        of_masks = np.concatenate([piece.mask_area for piece in pieces] or [np.empty(0)])
        areas |= {kind: of_masks for kind in ("segm", "boundary") if kind in kinds}
    if points is not None:
        areas["keypoints"] = _areas_of_points(results, points, source)
    return Overlaps(
        truth=_truth(dataset, order, objects),
        image=image,
        label=label,
        score=score,
        area=areas,
        source=source,
        dt=np.concatenate([piece.dt for piece in pieces] or [np.empty(0, np.int64)]),
        gt=np.concatenate([piece.gt for piece in pieces] or [np.empty(0, np.int64)]),
        iou={kind: np.concatenate([piece.iou[kind] for piece in pieces] or [np.empty(0)]) for kind in kinds},
    )


@dataclass(frozen=True, eq=False)
class _Objects:
    """True objects of one image, sorted by category id; `boxes` are left, top, width, height."""

    label: Ints
    area: Floats
    is_crowd: Bools
    boxes: Floats
    keypoints: Floats
    masks: list[PackedMask]

    @classmethod
    def of(cls, dataset: Dataset, index: int) -> "_Objects":
        columns = dataset.columns(index)
        order = np.argsort(np.array(dataset.categories.ids)[columns.labels], kind="stable")
        return cls(
            label=columns.labels[order].astype(np.int64),
            area=columns.areas[order],
            is_crowd=columns.is_crowd[order],
            boxes=np.concatenate([columns.corners, columns.extents], axis=1)[order],
            keypoints=columns.keypoints[order].astype(np.float64),
            masks=[columns.masks[int(row)] for row in order],
        )


def _truth(dataset: Dataset, order: Ints, objects: Sequence[_Objects]) -> Truth:
    return Truth(
        image=np.repeat(np.arange(len(objects)), [len(there.label) for there in objects]),
        label=np.concatenate([there.label for there in objects] or [np.empty(0, np.int64)]),
        area=np.concatenate([there.area for there in objects] or [np.empty(0)]),
        is_crowd=np.concatenate([there.is_crowd for there in objects] or [np.empty(0, np.bool_)]),
        num_keypoints=np.concatenate([(o.keypoints[..., 2] > 0).sum(axis=1) for o in objects] or [np.empty(0, np.int64)]),
        num_images=len(objects),
        num_classes=len(dataset.categories),
        image_ids=dataset.image_ids[order],
    )


@dataclass(frozen=True, eq=False)
class _Piece:
    """Pairs of one image, and the areas of its detections."""

    dt: Ints
    gt: Ints
    iou: dict[Kind, Floats]
    mask_area: Floats


def _compare(
    there: _Objects,
    boxes: Floats | None,
    rles: list[list[Any]] | None,
    by_points: Floats | None,
    size: tuple[int, int],
    kinds: Sequence[Kind],
) -> _Piece:
    """All pairs of one image; `rles` of objects and of detections."""
    num_found = next((len(x) for x in (boxes, by_points, None if rles is None else rles[1]) if x is not None), 0)
    by_box = by_mask = np.zeros((num_found, len(there.label)))
    by_points = by_box if by_points is None else by_points
    mask_area = np.zeros(num_found)
    crowd = there.is_crowd.tolist()
    if boxes is not None and by_box.size:
        by_box = kernels.bbox_iou(boxes, there.boxes, crowd)
    if rles is not None and num_found:
        mask_area = np.asarray(kernels.area(rles[1]), dtype=np.float64)
        if by_mask.size:
            by_mask = kernels.iou(rles[1], rles[0], crowd)
    dt, gt = np.nonzero(np.maximum(np.maximum(by_box, by_mask), by_points) > FAINT)
    iou: dict[Kind, Floats] = {}
    if "bbox" in kinds:
        iou["bbox"] = by_box[dt, gt]
    if "segm" in kinds:
        iou["segm"] = by_mask[dt, gt]
    if "keypoints" in kinds:
        iou["keypoints"] = by_points[dt, gt]
    if "boundary" in kinds and rles is not None:
        iou["boundary"] = _capped_by_edges(by_mask[dt, gt], (dt, gt), there.is_crowd, rles, size)
    return _Piece(dt, gt, iou, mask_area)


def as_rle(segmentation: Any, size: tuple[int, int]) -> Any:
    """Run lengths of a segmentation, which may be polygons."""
    return segmentation if isinstance(segmentation, dict) else Masks.from_polygons([segmentation], size).to_rles()[0]


# Keypoints


def result_points(dataset: Dataset, results: Sequence[dict[str, Any]]) -> Floats:
    """Keypoints of results (D, J, 3), as the data set holds them: pixel corners.

    Raises:
        ValueError: the data set has no keypoints, or others.
    """
    if dataset.categories.keypoints is None:
        raise ValueError(f"{dataset.path}: no category has keypoints to score")
    joints = len(dataset.categories.keypoints.names)
    if any(len(entry["keypoints"]) != 3 * joints for entry in results):
        raise ValueError(f"some results have not {joints} keypoints of three numbers each, as those of {dataset.path} have")
    points = np.array([entry["keypoints"] for entry in results], dtype=np.float64).reshape(-1, joints, 3)
    points[..., :2] += 0.5
    return points


def _similarity(there: _Objects, points: Floats, schema: KeypointSchema | None) -> Floats:
    assert schema is not None
    boxes = there.boxes.copy()
    boxes[:, :2] += 0.5  # pycocotools compares pixel indices with corners
    boxes[:, 2:] += boxes[:, :2]
    found, objects, where, areas = map(torch.from_numpy, (points, there.keypoints, boxes, there.area))
    answer: Floats = similarity(found, objects, where, areas, schema).numpy()
    return answer


def _areas_of_points(results: Sequence[dict[str, Any]], points: Floats, source: Ints) -> Floats:
    """As in pycocotools: of the boxes where results have them, else of what the points span."""
    if all("bbox" in entry for entry in results):
        boxes = np.array([entry["bbox"] for entry in results], dtype=np.float64).reshape(-1, 4)[source]
        area: Floats = boxes[:, 2] * boxes[:, 3]
    else:
        area = np.ptp(points[..., :2], axis=1).prod(axis=1)
    return area


# Edges


def _capped_by_edges(
    iou: Floats, pairs: tuple[Ints, Ints], is_crowd: Bools, rles: list[list[Any]], size: tuple[int, int]
) -> Floats:
    """Where masks overlap by half, the smaller of their IoU and that of their edges; crowds have no edges."""
    dt, gt = pairs
    chosen = np.flatnonzero((iou >= 0.5) & ~is_crowd[gt]).tolist()
    edges: list[dict[int, _Edge]] = []
    for used, encoded in ((gt[chosen], rles[0]), (dt[chosen], rles[1])):
        rows = np.unique(used).tolist()
        edges.append(dict(zip(rows, _edges(Masks.from_rles([encoded[i] for i in rows], size), edge_width(size)), strict=True)))
    for pair in chosen:
        iou[pair] = min(iou[pair], _edge_iou(edges[0][int(gt[pair])], edges[1][int(dt[pair])]))
    return iou


def edge_width(size: tuple[int, int]) -> int:
    """How far the edge of a mask reaches into it, px, in an image of (height, width)."""
    return max(1, round(BOUNDARY_SHARE * float(np.hypot(*size))))


def edge(crop: Bitmap, width: int) -> Bitmap:
    """Pixels of a tight bitmap (h, w) no further than `width` from its outside, in steps of a chess king.

    Beyond the bitmap there is nothing: a mask that leaves the image has an edge at its border.
    """
    if min(crop.shape) <= 2 * width:
        return crop
    inner = _all_in_window(_all_in_window(crop, 2 * width + 1).T, 2 * width + 1).T  # (h - 2·width, w - 2·width)
    answer = crop.copy()
    answer[width:-width, width:-width] &= ~inner
    return answer


def _all_in_window(area: Bitmap, length: int) -> Bitmap:
    """Whether all of `length` rows in a stretch are on, for every stretch: windows of one, two, four, … rows joined."""
    reach = 1
    while 2 * reach <= length:
        area = area[:-reach] & area[reach:]
        reach *= 2
    rest = length - reach
    return area[:-rest] & area[rest:] if rest else area


@dataclass(frozen=True, eq=False)
class _Edge:
    pixels: Bitmap
    window: Window
    area: int


def _edges(masks: Masks, width: int) -> list[_Edge]:
    crops = ((edge(crop, width), window) for crop, window in masks.crops())
    return [_Edge(pixels, window, int(np.count_nonzero(pixels))) for pixels, window in crops]


def _edge_iou(a: _Edge, b: _Edge) -> float:
    """IoU of two edges, looked at where their windows meet."""
    x0, y0 = max(a.window[0], b.window[0]), max(a.window[1], b.window[1])
    x1, y1 = min(a.window[2], b.window[2]), min(a.window[3], b.window[3])
    if x1 <= x0 or y1 <= y0:
        return 0.0
    parts = [e.pixels[y0 - e.window[1] : y1 - e.window[1], x0 - e.window[0] : x1 - e.window[0]] for e in (a, b)]
    shared = int(np.count_nonzero(parts[0] & parts[1]))
    return shared / (a.area + b.area - shared)
