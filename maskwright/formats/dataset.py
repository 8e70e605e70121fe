"""A data set: images and their objects, whatever files they came from.

It is held compactly: numpy columns and one byte buffer for all segmentations, which forked workers share and which
does not grow with epochs. Masks are decoded one image at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from maskwright.formats import images
from maskwright.structures import Instances, Intensity, KeypointSchema, Masks, rle


@dataclass(frozen=True, eq=False)
class Sample:
    """One image with its objects, original frame.

    Args:
        image: RGB uint8 (H, W, 3).
        instances: its objects.
        id: the image's id in the annotation file.
        name: its file, for messages.
        input_size: (h, w) it shall have in the input frame; None leaves it to the input's resize rule.
        proposals: for detectors that consume them.
    """

    image: Tensor
    instances: Instances
    id: int
    name: str
    input_size: tuple[int, int] | None = None
    proposals: Instances | None = None

    def moved(self, change: Callable[[Instances], Instances]) -> Sample:
        """With objects and proposals changed alike."""
        proposals = None if self.proposals is None else change(self.proposals)
        return replace(self, instances=change(self.instances), proposals=proposals)


@dataclass(frozen=True)
class Categories:
    """The classes of a data set: index in 0 … K-1 → name and original id; and what their keypoints are, where they have any."""

    names: tuple[str, ...]
    ids: tuple[int, ...]
    keypoints: KeypointSchema | None = None

    def __len__(self) -> int:
        return len(self.names)

    def to_coco(self) -> list[dict[str, Any]]:
        """As COCO's files list them; its skeletons count from 1."""
        schema = self.keypoints
        points: dict[str, Any] = {}
        if schema is not None:
            points = {"keypoints": list(schema.names), "skeleton": [[a + 1, b + 1] for a, b in schema.skeleton]}
        return [{"id": number, "name": name, **points} for number, name in zip(self.ids, self.names, strict=True)]


class Dataset:
    """Images with annotations, read by `read_coco`; `dataset[i]` reads and decodes the i-th image."""

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
        """Whether every annotation has a segmentation."""
        return bool((np.diff(self._columns.segment_starts) > 0).all())

    def ids_without_mask(self) -> list[int]:
        """Annotations that have no segmentation."""
        found: list[int] = self._columns.ids[np.diff(self._columns.segment_starts) == 0].tolist()
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
            boxes=torch.from_numpy(_to_xyxy(columns.bboxes[rows], size)),
            labels=torch.from_numpy(columns.labels[rows].astype(np.int64)),
            masks=self._masks(rows, size) if self.has_masks else None,
            keypoints=torch.from_numpy(keypoints.copy()) if self.categories.keypoints else None,
            is_crowd=torch.from_numpy(columns.is_crowd[rows].copy()),
        )

    def boxes(self, index: int) -> npt.NDArray[np.float32]:
        """The boxes of an image, xyxy px (N, 4), without a look at the masks."""
        rows = slice(self._columns.image_starts[index], self._columns.image_starts[index + 1])
        return _to_xyxy(self._columns.bboxes[rows], self.image_size(index))

    def columns(self, index: int) -> Columns:
        """The annotations of an image as the file has them, which is what evaluators compare."""
        rows = np.arange(self._columns.image_starts[index], self._columns.image_starts[index + 1])
        return self._columns.take(rows, np.array([0, len(rows)]))

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
        bare = copy(self)
        bare.categories = replace(self.categories, keypoints=None)
        return bare

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

    def to_coco(self) -> dict[str, Any]:
        """The ground truth as a COCO dict with original ids; what an evaluator compares with."""
        columns = self._columns
        image_of = np.repeat(self.image_ids, np.diff(columns.image_starts))
        annotations = []
        for i in range(len(columns.ids)):
            entry: dict[str, Any] = {
                "id": int(columns.ids[i]),
                "image_id": int(image_of[i]),
                "category_id": self.categories.ids[columns.labels[i]],
                "bbox": columns.bboxes[i].tolist(),
                "area": float(columns.areas[i]),
                "iscrowd": int(columns.is_crowd[i]),
            }
            segmentation = columns.segmentation(i)
            if segmentation is not None:
                entry["segmentation"] = segmentation
            if self.categories.keypoints:
                points = columns.keypoints[i].astype(np.float64).copy()
                points[points[:, 2] > 0, :2] -= 0.5
                entry["keypoints"] = points.reshape(-1).tolist()
                entry["num_keypoints"] = int((points[:, 2] > 0).sum())
            annotations.append(entry)
        listed = [
            {
                "id": int(self.image_ids[i]),
                "height": self.image_size(i)[0],
                "width": self.image_size(i)[1],
                "file_name": self.file_name(i),
            }
            for i in range(len(self))
        ]
        return {"images": listed, "annotations": annotations, "categories": self.categories.to_coco()}

    def _masks(self, rows: slice, size: tuple[int, int]) -> Masks:
        parts = [self._columns.runs(row, size) for row in range(rows.start, rows.stop)]
        return Masks.from_runs(parts, size)


@dataclass(frozen=True, eq=False)
class Columns:
    """Annotations in columns, grouped by image: image i owns rows image_starts[i] … image_starts[i + 1]."""

    image_starts: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int64]
    bboxes: npt.NDArray[np.float64]  # x, y, width, height as the file has them: an evaluator must see the same bits
    labels: npt.NDArray[np.int32]
    areas: npt.NDArray[np.float64]
    is_crowd: npt.NDArray[np.bool_]
    keypoints: npt.NDArray[np.float32]
    segments: npt.NDArray[np.uint8]  # each segmentation as JSON text, one after the other
    segment_starts: npt.NDArray[np.int64]

    def segmentation(self, row: int) -> Any:
        """As it stood in the file."""
        begin, end = self.segment_starts[row], self.segment_starts[row + 1]
        return json.loads(self.segments[begin:end].tobytes()) if end > begin else None

    def runs(self, row: int, size: tuple[int, int]) -> rle.Runs:
        """The mask of one annotation."""
        segmentation = self.segmentation(row)
        if isinstance(segmentation, dict):
            return rle.runs_from_coco(segmentation, size)
        return rle.runs_from_polygons(segmentation, size)

    def take(self, rows: npt.NDArray[np.int64], image_starts: npt.NDArray[np.int64]) -> Columns:
        """Some rows, regrouped."""
        lengths = np.diff(self.segment_starts)[rows]
        texts = [self.segments[self.segment_starts[r] : self.segment_starts[r + 1]] for r in rows]
        return Columns(
            image_starts=image_starts,
            ids=self.ids[rows],
            bboxes=self.bboxes[rows],
            labels=self.labels[rows],
            areas=self.areas[rows],
            is_crowd=self.is_crowd[rows],
            keypoints=self.keypoints[rows],
            segments=np.concatenate(texts) if texts else np.empty(0, dtype=np.uint8),
            segment_starts=np.cumsum([0, *lengths]),
        )


def _to_xyxy(bboxes: npt.NDArray[np.float64], size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """float32 corners, cut to the image."""
    corners = np.concatenate([bboxes[:, :2], bboxes[:, :2] + bboxes[:, 2:]], axis=1)
    clipped: npt.NDArray[np.float32] = np.clip(corners, 0, [size[1], size[0], size[1], size[0]]).astype(np.float32)
    return clipped


def _size_message(image: Path, annotations: Path, got: tuple[int, int], stated: tuple[int, int]) -> str:
    turned = images.read_size(image)[1] == stated
    remedy = (
        "the annotations were made on the stored pixels: remove the EXIF orientation tag from the image"
        if turned
        else "use the image that was annotated, or correct the size in the annotation file"
    )
    shapes = f"the upright image is {got[0]} x {got[1]} (height x width) but {annotations} says {stated[0]} x {stated[1]}"
    return f"{image}: {shapes}: {remedy}"
