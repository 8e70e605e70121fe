"""A data set: images and their objects, whatever files they came from.

It is held compactly: numpy columns and one byte buffer for all masks, which forked workers share and which does not grow
with epochs. Masks are drawn one image at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from maskwright.formats import images
from maskwright.formats.packing import PackedMasks
from maskwright.structures import Instances, Intensity, KeypointSchema, Masks


@dataclass(frozen=True, eq=False)
class Sample:
    """One image with its objects, original frame.

    Args:
        image: RGB uint8 (H, W, 3).
        instances: its objects.
        id: the image's id in the annotation file.
        name: its file, for messages.
    """

    image: Tensor
    instances: Instances
    id: int
    name: str


@dataclass(frozen=True)
class Categories:
    """The classes of a data set: index in 0 … K-1 → name and original id; and what their keypoints are, where they have any."""

    names: tuple[str, ...]
    ids: tuple[int, ...]
    keypoints: KeypointSchema | None = None

    def __len__(self) -> int:
        return len(self.names)


class Dataset:
    """Images with their objects, made by a reader's `DatasetBuilder`; `read(i)` reads the i-th image and draws its masks."""

    def __init__(
        self,
        *,
        path: Path,
        image_folder: Path,
        categories: Categories,
        image_ids: npt.NDArray[np.int64],
        sizes: npt.NDArray[np.int32],
        file_names: Sequence[str],
        columns: Columns,
        problems: Sequence[str] = (),
    ) -> None:
        self.path = path
        self.image_folder = image_folder
        self.categories = categories
        self.image_ids = image_ids
        self.sizes = sizes
        self.problems = tuple(problems)
        names = [name.encode() for name in file_names]
        self._names = np.frombuffer(b"".join(names), dtype=np.uint8)
        self._name_starts = np.cumsum([0] + [len(name) for name in names])
        self._columns = columns

    def __len__(self) -> int:
        return len(self.image_ids)

    def __repr__(self) -> str:
        return f"Dataset({self.path}: {len(self)} images, {self.num_instances} instances, {len(self.categories)} classes)"

    @property
    def num_instances(self) -> int:
        """Annotations, crowds included."""
        return len(self._columns.ids)

    @property
    def has_masks(self) -> bool:
        """Whether every annotation has a mask."""
        return bool(self._columns.masks.exists.all())

    def ids_without_mask(self) -> list[int]:
        """Annotations that have no mask."""
        found: list[int] = self._columns.ids[~self._columns.masks.exists].tolist()
        return found

    def file_name(self, index: int) -> str:
        """The image's path relative to the image folder."""
        return self._names[self._name_starts[index] : self._name_starts[index + 1]].tobytes().decode()

    def image_size(self, index: int) -> tuple[int, int]:
        """(height, width) as the annotation file states it."""
        return int(self.sizes[index, 0]), int(self.sizes[index, 1])

    def image_path(self, index: int) -> Path:
        """Where the image lies."""
        return self.image_folder / self.file_name(index)

    def instances(self, index: int, rows: slice = slice(None)) -> Instances:
        """The objects of an image, or some of them; masks where every object of the data set has one."""
        size, columns = self.image_size(index), self._columns
        there = range(columns.image_starts[index], columns.image_starts[index + 1])[rows]
        rows = slice(there.start, there.stop)
        keypoints = columns.keypoints[rows]
        return Instances(
            image_size=size,
            boxes=torch.from_numpy(columns.boxes(rows, size)),
            labels=torch.from_numpy(columns.labels[rows].astype(np.int64)),
            masks=Masks.from_runs([columns.masks[row].runs(size) for row in there], size) if self.has_masks else None,
            keypoints=torch.from_numpy(keypoints.copy()) if self.categories.keypoints else None,
            is_crowd=torch.from_numpy(columns.is_crowd[rows].copy()),
        )

    def boxes(self, index: int) -> npt.NDArray[np.float32]:
        """The boxes of an image, xyxy px (N, 4), without a look at the masks."""
        rows = slice(self._columns.image_starts[index], self._columns.image_starts[index + 1])
        return self._columns.boxes(rows, self.image_size(index))

    def columns(self, index: int) -> Columns:
        """The annotations of an image as the file has them, which is what evaluators compare."""
        rows = np.arange(self._columns.image_starts[index], self._columns.image_starts[index + 1])
        return self._columns.take(rows, np.array([0, len(rows)]))

    def num_objects(self, *, with_keypoints: bool = False) -> npt.NDArray[np.int64]:
        """Of each image, crowds left out, (images,).

        Args:
            with_keypoints: count those alone that have a visible one.
        """
        columns = self._columns
        counted = ~columns.is_crowd
        if with_keypoints:
            counted &= (columns.keypoints[:, :, 2] > 0).any(axis=1)
        before = np.concatenate([[0], np.cumsum(counted)])[columns.image_starts]
        return np.diff(before)

    def check_image(self, index: int) -> None:
        """Look at an image's header: whether it is one, and of the size its annotations were made for.

        Raises:
            ValueError: it is not.
        """
        path, size = self.image_path(index), self.image_size(index)
        upright, _ = images.read_size(path)
        if upright != size:
            raise ValueError(_size_message(path, self.path, upright, size))

    def read(self, index: int, intensity: Intensity | None = None, *, rows: slice = slice(None)) -> Sample:
        """The image and its objects, or some of them.

        Raises:
            ValueError: the image cannot be read, or is not the size its annotations were made for.
        """
        path = self.image_path(index)
        pixels = images.read_image(path, intensity)
        size = self.image_size(index)
        if pixels.shape[:2] != size:
            raise ValueError(_size_message(path, self.path, (pixels.shape[0], pixels.shape[1]), size))
        return Sample(torch.from_numpy(pixels), self.instances(index, rows), int(self.image_ids[index]), str(path))

    def without_keypoints(self) -> Dataset:
        """The same data set for those who have no use for keypoints."""
        return self.with_schema(None)

    def with_schema(self, schema: KeypointSchema | None) -> Dataset:
        """The same data set, whose keypoints are what `schema` says."""
        changed = copy(self)
        changed.categories = replace(self.categories, keypoints=schema)
        return changed

    def subset(self, indices: Sequence[int]) -> Dataset:
        """The same data set with some of its images."""
        columns = self._columns
        counts = np.diff(columns.image_starts)
        rows = np.concatenate(
            [np.arange(columns.image_starts[i], columns.image_starts[i + 1]) for i in indices] or [np.empty(0, dtype=np.int64)]
        )
        return Dataset(
            path=self.path,
            image_folder=self.image_folder,
            categories=self.categories,
            image_ids=self.image_ids[list(indices)],
            sizes=self.sizes[list(indices)],
            file_names=[self.file_name(i) for i in indices],
            columns=columns.take(rows, np.cumsum([0, *counts[list(indices)]])),
            problems=self.problems,
        )


@dataclass(frozen=True, eq=False)
class Columns:
    """Annotations in columns, grouped by image: image i owns rows image_starts[i] … image_starts[i + 1].

    Boxes are held by their top left corner and their extent, not by two corners: evaluators compare widths and heights, and
    in float64 (x + w) - x is not w. Whoever wants corners adds once and gets the same bits every time.

    Args:
        ids: of the annotations.
        corners: left and top of each box as annotated, px, (N, 2); may lie outside the image.
        extents: width and height of each box, px, (N, 2).
        labels: class indices.
        areas: px², as annotated, else of the mask, else of the box.
        keypoints: (N, J, 3), pixel corners.
        masks: as annotated.
    """

    image_starts: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int64]
    corners: npt.NDArray[np.float64]
    extents: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int32]
    areas: npt.NDArray[np.float64]
    is_crowd: npt.NDArray[np.bool_]
    keypoints: npt.NDArray[np.float32]
    masks: PackedMasks

    def __len__(self) -> int:
        return len(self.ids)

    def boxes(self, rows: slice, size: tuple[int, int]) -> npt.NDArray[np.float32]:
        """xyxy px (N, 4), cut to an image of (height, width)."""
        corners = np.concatenate([self.corners[rows], self.corners[rows] + self.extents[rows]], axis=1)
        clipped: npt.NDArray[np.float32] = np.clip(corners, 0, [size[1], size[0], size[1], size[0]]).astype(np.float32)
        return clipped

    def take(self, rows: npt.NDArray[np.int64], image_starts: npt.NDArray[np.int64]) -> Columns:
        """Some rows, regrouped."""
        return Columns(
            image_starts=image_starts,
            ids=self.ids[rows],
            corners=self.corners[rows],
            extents=self.extents[rows],
            labels=self.labels[rows],
            areas=self.areas[rows],
            is_crowd=self.is_crowd[rows],
            keypoints=self.keypoints[rows],
            masks=self.masks.take(rows),
        )


def _size_message(image: Path, annotations: Path, got: tuple[int, int], stated: tuple[int, int]) -> str:
    turned = images.read_size(image)[1] == stated
    remedy = (
        "the annotations were made on the stored pixels: remove the EXIF orientation tag from the image"
        if turned
        else "use the image that was annotated, or correct the size in the annotation file"
    )
    shapes = f"the upright image is {got[0]} x {got[1]} (height x width) but {annotations} says {stated[0]} x {stated[1]}"
    return f"{image}: {shapes}: {remedy}"
