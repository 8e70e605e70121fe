"""The objects of one image: one frozen value for ground truth, proposals and detections alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from maskwright.structures import boxes as box_functions
from maskwright.structures import keypoints as keypoint_functions
from maskwright.structures.keypoints import KeypointSchema
from maskwright.structures.masks import Masks


@dataclass(frozen=True, eq=False)
class Instances:
    """N objects of an image, in columns of equal length; index it like a tensor and all columns move together.

    Args:
        image_size: (height, width) of the frame the coordinates belong to, px.
        boxes: float32 xyxy px, (N, 4).
        labels: class indices 0 … K-1, int64 (N,).
        scores: in [0, 1], float32 (N,); detections and proposals.
        masks: N masks of the same frame.
        keypoints: x, y, v, float32 (N, J, 3); v of detections says how sure they are, in [0, 1].
        is_crowd: bool (N,), regions to be ignored; None where there are none.
    """

    image_size: tuple[int, int]
    boxes: Tensor
    labels: Tensor
    scores: Tensor | None = None
    masks: Masks | None = None
    keypoints: Tensor | None = None
    is_crowd: Tensor | None = None

    def __post_init__(self) -> None:
        n = len(self.boxes)
        if self.boxes.shape != (n, 4):
            raise ValueError(f"boxes are {tuple(self.boxes.shape)}, expected (N, 4) xyxy px")
        for name in ("labels", "scores", "is_crowd"):
            column = getattr(self, name)
            if column is not None and column.shape != (n,):
                raise ValueError(f"{name} are {tuple(column.shape)} but there are {n} boxes: expected ({n},)")
        if not self.boxes.is_floating_point():
            raise ValueError(f"boxes are {self.boxes.dtype}, expected floating point px")
        if self.labels.dtype != torch.int64:
            raise ValueError(f"labels are {self.labels.dtype}, expected torch.int64 class indices")
        if self.masks is not None and (len(self.masks) != n or self.masks.image_size != self.image_size):
            height, width = self.masks.image_size
            raise ValueError(
                f"masks are ({len(self.masks)}, {height}, {width}) but image_size is {self.image_size} with {n} boxes: "
                "resize image and Instances together with data.transforms"
            )
        if self.keypoints is not None and (
            self.keypoints.ndim != 3 or len(self.keypoints) != n or self.keypoints.shape[2] != 3
        ):
            raise ValueError(f"keypoints are {tuple(self.keypoints.shape)} but there are {n} boxes: expected ({n}, J, 3)")

    def __len__(self) -> int:
        return len(self.boxes)

    def __repr__(self) -> str:
        columns = ", ".join(f.name for f in fields(self)[1:] if getattr(self, f.name) is not None)
        return f"Instances({len(self)} in {self.image_size[0]}x{self.image_size[1]} px: {columns})"

    def __getitem__(self, index: Tensor | slice | Sequence[int]) -> Instances:
        """Rows by mask, indices or slice; always an `Instances`."""
        columns: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)[1:]}
        moved: dict[str, Any] = {name: None if column is None else column[index] for name, column in columns.items()}
        return replace(self, **moved)

    @property
    def crowd(self) -> Tensor:
        """`is_crowd`, all False where it is None, bool (N,)."""
        return torch.zeros(len(self), dtype=torch.bool, device=self.boxes.device) if self.is_crowd is None else self.is_crowd

    @classmethod
    def empty(cls, image_size: tuple[int, int], *, has_masks: bool = False) -> Instances:
        """No objects."""
        return cls(
            image_size=image_size,
            boxes=torch.zeros((0, 4)),
            labels=torch.zeros(0, dtype=torch.int64),
            masks=Masks.empty(image_size) if has_masks else None,
        )

    @classmethod
    def cat(cls, parts: Sequence[Instances]) -> Instances:
        """All objects of several sets over the same image; columns must be the same ones."""
        columns: dict[str, Any] = {}
        for f in fields(cls)[1:]:
            values = [getattr(part, f.name) for part in parts]
            if f.name == "is_crowd" and any(value is not None for value in values):
                values = [part.crowd for part in parts]
            missing = [value is None for value in values]
            if any(missing) and not all(missing):
                raise ValueError(f"{f.name} are given in some parts and missing in others: drop the column or fill it")
            if all(missing):
                columns[f.name] = None
            else:
                columns[f.name] = Masks.cat(values) if f.name == "masks" else torch.cat(values)
        return replace(parts[0], **columns)

    def to(self, device: torch.device | str) -> Instances:
        """The same objects on another device."""
        columns: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)[1:]}
        moved: dict[str, Any] = {name: None if column is None else column.to(device) for name, column in columns.items()}
        return replace(self, **moved)

    def by_score(self) -> Instances:
        """The same objects, best first; those of one score stay in order."""
        assert self.scores is not None
        order = self.scores.argsort(descending=True, stable=True)
        is_sorted = torch.equal(order, torch.arange(len(self), device=order.device))
        return self if is_sorted else self[order]

    def with_masks(self, masks: Masks) -> Instances:
        """The same objects with masks of the same frame."""
        return replace(self, masks=masks)

    def with_keypoints(self, keypoints: Tensor) -> Instances:
        """The same objects with keypoints of the same frame."""
        return replace(self, keypoints=keypoints)

    def resize(self, size: tuple[int, int]) -> Instances:
        """The objects of the image resized to `size` (height, width)."""
        return replace(
            self,
            image_size=size,
            boxes=box_functions.scale(self.boxes, from_size=self.image_size, to_size=size),
            masks=None if self.masks is None else self.masks.resize(size),
            keypoints=None
            if self.keypoints is None
            else keypoint_functions.scale(self.keypoints, from_size=self.image_size, to_size=size),
        )

    def crop(self, window: tuple[int, int, int, int]) -> Instances:
        """What is left of the objects in a window x0, y0, x1, y1; boxes shrink to the visible mask.

        Objects with less than a pixel left are dropped.
        """
        x0, y0, x1, y1 = window
        size = (y1 - y0, x1 - x0)
        boxes = box_functions.clip(self.boxes - self.boxes.new_tensor([x0, y0, x0, y0]), size)
        masks = None if self.masks is None else self.masks.crop(window)
        touched = (boxes != self.boxes - self.boxes.new_tensor([x0, y0, x0, y0])).any(dim=1)
        if masks is not None:
            boxes = torch.where(touched[:, None], masks.boxes().to(boxes), boxes)
        keypoints = None if self.keypoints is None else keypoint_functions.crop(self.keypoints, window)
        left = replace(self, image_size=size, boxes=boxes, masks=masks, keypoints=keypoints)
        return left[box_functions.is_valid(boxes) & (~touched | box_functions.is_valid(boxes, min_px=0.999))]

    def flip(self, *, horizontal: bool, schema: KeypointSchema | None = None) -> Instances:
        """The objects of the mirrored image; keypoints need a schema, and a left-right flip."""
        keypoints = self.keypoints
        if keypoints is not None:
            if schema is None or not horizontal:
                raise ValueError("got keypoints to flip: give their schema and flip left-right, or drop the keypoints")
            keypoints = keypoint_functions.flip_horizontal(keypoints, self.image_size, schema)
        return replace(
            self,
            boxes=box_functions.flip(self.boxes, self.image_size, horizontal=horizontal),
            masks=None if self.masks is None else self.masks.flip(horizontal=horizontal),
            keypoints=keypoints,
        )

    def transpose(self) -> Instances:
        """The objects of the image mirrored at its diagonal."""
        if self.keypoints is not None:
            raise ValueError("got keypoints to transpose: a person turned on its side is not augmentation; use flips")
        return replace(
            self,
            image_size=(self.image_size[1], self.image_size[0]),
            boxes=self.boxes[:, [1, 0, 3, 2]],
            masks=None if self.masks is None else self.masks.transpose(),
        )
