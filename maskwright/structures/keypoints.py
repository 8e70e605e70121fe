"""Keypoints: (N, J, 3) float32 rows of x, y (px, pixel corners) and v: 0 not labelled, 1 labelled but hidden, 2 visible."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

USUAL_SIGMA = 0.067
"""Mean of COCO's."""

_OTHER_SIDE = {"left": "right", "right": "left", "l": "r", "r": "l"}
_LETTER = r"[^\W\d_]"
_SIDE = re.compile(
    rf"(?i:left|right)"  # left_eye, Right Eye, lefteye
    rf"|(?<!{_LETTER})[LRlr](?!{_LETTER})"  # L_eye, eye-l
    rf"|(?<!{_LETTER})[LRlr](?=[A-Z]+[a-z])"  # LEye, lEye
    rf"|(?<=[a-z])[LR](?![a-z])"  # eyeL
)
_FIRST_LETTER = re.compile(rf"^[lr](?={_LETTER})", re.IGNORECASE)  # lsho
_VOWELS = "aeiouy"


@dataclass(frozen=True)
class KeypointSchema:
    """What the J keypoints of a class are.

    Args:
        names: one name for each keypoint.
        flip_pairs: indices that trade places when the image is mirrored left-right.
        sigmas: spread of annotators for each keypoint relative to the object's scale (COCO's OKS); by default that of COCO's
            keypoints on average, for all.
        skeleton: index pairs to draw lines between.
    """

    names: tuple[str, ...]
    flip_pairs: tuple[tuple[int, int], ...] = ()
    sigmas: tuple[float, ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if not self.sigmas:
            object.__setattr__(self, "sigmas", (USUAL_SIGMA,) * len(self.names))
        if len(self.sigmas) != len(self.names):
            raise ValueError(f"got {len(self.sigmas)} sigmas for {len(self.names)} keypoints: give one for each, or none")
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"keypoints {', '.join(self.names)}: each needs a name of its own")
        if any(not 0 <= end < len(self.names) for pair in (*self.skeleton, *self.flip_pairs) for end in pair):
            raise ValueError(f"the skeleton names keypoints that are not there: there are {len(self.names)}, counted from 1")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "KeypointSchema":
        """What `dataclasses.asdict` gave, perhaps by way of JSON."""
        return cls(
            names=tuple(map(str, data["names"])),
            flip_pairs=tuple((int(a), int(b)) for a, b in data["flip_pairs"]),
            sigmas=tuple(map(float, data["sigmas"])),
            skeleton=tuple((int(a), int(b)) for a, b in data["skeleton"]),
        )

    @classmethod
    def from_names(cls, names: list[str], skeleton: list[tuple[int, int]]) -> "KeypointSchema":
        """A schema whose flip pairs are the names that differ in left and right alone; COCO's where the names are.

        Sides are words, letters of their own, or capitals (left eye, l_eye, LEye, eyeL). A first letter that is part of a word
        (lsho, rsho) is one where it cannot begin a word, or where several pairs have it: lip and rip alone are none.
        """
        if tuple(names) == COCO_PERSON.names:
            return COCO_PERSON
        pairs = _mirrored(names, _SIDE)
        taken = {end for pair in pairs for end in pair}
        further = [pair for pair in _mirrored(names, _FIRST_LETTER) if not taken & {*pair}]
        if len(further) > 1 or any(names[left][1].lower() not in _VOWELS for left, _ in further):
            pairs = sorted([*pairs, *further])
        return cls(names=tuple(names), flip_pairs=tuple(pairs), skeleton=tuple(skeleton))

    def with_flip_pairs(self, pairs: Sequence[tuple[str, str]]) -> "KeypointSchema":
        """The same keypoints, of which those that trade places are named.

        Raises:
            ValueError: a name that none of them has, or that has two partners.
        """
        named = [name for pair in pairs for name in pair]
        for name in named:
            if name not in self.names:
                near = difflib.get_close_matches(name, self.names, n=2)
                hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(self.names)}"
                raise ValueError(f"flip_pairs name {name!r}, which is no keypoint: {hint}")
            if named.count(name) > 1:
                raise ValueError(f"flip_pairs name {name!r} twice: a keypoint trades places with one other")
        return replace(self, flip_pairs=tuple((self.names.index(a), self.names.index(b)) for a, b in pairs))

    @property
    def flip_order(self) -> tuple[int, ...]:
        """For each keypoint, which one stands in its place in the mirrored image."""
        order = list(range(len(self.names)))
        for a, b in self.flip_pairs:
            order[a], order[b] = b, a
        return tuple(order)


def _mirrored(names: Sequence[str], side: re.Pattern[str]) -> list[tuple[int, int]]:
    """Left and right of names that are each other's once every side in them is the other, letter case aside."""

    def swapped(name: str) -> str:
        return side.sub(lambda match: _OTHER_SIDE[match[0].lower()], name).casefold()

    place = {name.casefold(): i for i, name in enumerate(names)}
    pairs: list[tuple[int, int]] = []
    for i, name in enumerate(names):
        first, other = side.search(name), place.get(swapped(name), i)
        is_left = first is not None and first[0].lower().startswith("l")
        if is_left and place[name.casefold()] == i and swapped(names[other]) == name.casefold():
            pairs.append((i, other))
    return pairs


COCO_PERSON: KeypointSchema = KeypointSchema(
    names=(
        "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
        "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
        "right_ankle",
    ),
    flip_pairs=((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)),
    sigmas=(
        0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089,
    ),  # COCO keypoint evaluation
    skeleton=(
        (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10), (1, 2),
        (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
    ),
)  # fmt: skip


def scale(keypoints: Tensor, *, from_size: tuple[int, int], to_size: tuple[int, int]) -> Tensor:
    """Keypoints (N, J, 3) of an image of `from_size` after it is resized to `to_size`."""
    factors = keypoints.new_tensor([to_size[1] / from_size[1], to_size[0] / from_size[0], 1.0])
    return keypoints * factors


def flip_horizontal(keypoints: Tensor, image_size: tuple[int, int], schema: KeypointSchema) -> Tensor:
    """Keypoints (N, J, 3) of the image mirrored left-right; left and right trade places, unlabelled points stay zero."""
    flipped = keypoints[:, list(schema.flip_order)].clone()
    flipped[..., 0] = image_size[1] - flipped[..., 0]
    return torch.where(flipped[..., 2:] > 0, flipped, torch.zeros_like(flipped))


def crop(keypoints: Tensor, window: tuple[int, int, int, int]) -> Tensor:
    """Keypoints (N, J, 3) of the image cut to x0, y0, x1, y1; a point that falls outside becomes unlabelled."""
    x0, y0, x1, y1 = window
    moved = keypoints - keypoints.new_tensor([x0, y0, 0])
    x, y, v = moved.unbind(-1)
    inside = (v > 0) & (x >= 0) & (y >= 0) & (x <= x1 - x0) & (y <= y1 - y0)
    return torch.where(inside[..., None], moved, torch.zeros_like(moved))


def hide(keypoints: Tensor, covered: Tensor) -> Tensor:
    """Keypoints (N, J, 3) of which the visible ones on pixels that are covered, bool (H, W), become hidden."""
    height, width = covered.shape
    x, y, v = keypoints.unbind(-1)
    column, row = x.floor().long().clamp(0, width - 1), y.floor().long().clamp(0, height - 1)
    return torch.stack([x, y, torch.where(covered[row, column], v.clamp(max=1), v)], dim=-1)


def similarity(found: Tensor, objects: Tensor, boxes: Tensor, areas: Tensor, schema: KeypointSchema) -> Tensor:
    """Object keypoint similarity of each pair, 0 to 1 (COCO keypoint evaluation): how near the labelled points are.

    Args:
        found: detections, (D, J, 3).
        objects: true keypoints, (G, J, 3).
        boxes: of the objects, xyxy px (G, 4): where nothing is labelled, points within twice their size are near.
        areas: of the objects, px², (G,), the square of their scale.
        schema: how exactly each point can be known.

    Returns:
        (D, G).
    """
    labelled = objects[..., 2] > 0  # (G, J)
    apart = found[:, None, :, :2] - objects[None, :, :, :2]  # (D, G, J, 2)
    margin = boxes[:, 2:] - boxes[:, :2]
    low, high = (boxes[:, :2] - margin)[:, None], (boxes[:, 2:] + margin)[:, None]  # (G, 1, 2)
    outside = (low - found[:, None, :, :2]).clamp(min=0) + (found[:, None, :, :2] - high).clamp(min=0)
    is_known = labelled.any(dim=1)
    apart = torch.where(is_known[:, None, None], apart, outside)
    spread = (2 * found.new_tensor(schema.sigmas)) ** 2
    scale = (areas + torch.finfo(torch.float64).eps)[:, None]
    near = torch.exp(-apart.square().sum(dim=-1) / spread / scale / 2)  # (D, G, J)
    counted = (labelled | ~is_known[:, None]).to(near.dtype)
    return (near * counted).sum(dim=-1) / counted.sum(dim=-1)


def to_cells(keypoints: Tensor, boxes: Tensor, *, side: int) -> tuple[Tensor, Tensor]:
    """The cell of a box's grid that each keypoint lies in (Mask R-CNN, sec. 5: a one-hot mask).

    Args:
        keypoints: (N, J, 3).
        boxes: xyxy px of the same frame (N, 4).
        side: cells per side, M; the right and bottom edges belong to the last one.

    Returns:
        Cells counted row by row, int64 (N, J), 0 where there is none; and whether there is one, bool (N, J): the keypoint is
        labelled, hidden or not, and lies in the box.
    """
    corner, extent = boxes[:, None, :2], (boxes[:, None, 2:] - boxes[:, None, :2])
    place = (keypoints[..., :2] - corner) * (side / extent)
    cell = torch.where(keypoints[..., :2] == boxes[:, None, 2:], side - 1, place.floor())  # (N, J, 2)
    inside = ((cell >= 0) & (cell < side)).all(dim=-1) & (keypoints[..., 2] > 0)
    column, row = cell.nan_to_num(-1).clamp(0, side - 1).to(torch.int64).unbind(-1)
    return torch.where(inside, side * row + column, 0), inside


def from_heatmaps(logits: Tensor, boxes: Tensor) -> Tensor:
    """The likeliest point of each map, looked for at the resolution of the image (Mask R-CNN, sec. 5; detectron2).

    Args:
        logits: over the cells of boxes, (N, J, M, M).
        boxes: xyxy px (N, 4).

    Returns:
        x, y and the share of the peak in the softmax over cells, (N, J, 3).
    """
    points = logits.new_zeros((*logits.shape[:2], 3))
    extents = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
    for i, (width, height) in enumerate(extents.ceil().int().tolist()):
        enlarged = F.interpolate(logits[i : i + 1], size=(height, width), mode="bicubic")[0].flatten(1)  # (J, height · width)
        peak, place = enlarged.max(dim=1)
        cell = torch.stack([place % width, place // width], dim=1) + 0.5
        points[i, :, :2] = boxes[i, :2] + cell * (extents[i] / cell.new_tensor([width, height]))
        points[i, :, 2] = (1 / (logits[i].flatten(1) - peak[:, None]).exp().sum(dim=1)).clamp(max=1)  # curves overshoot
    return points
