"""Proposals of a data set's images, kept in a few arrays: written and read as COCO results."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskwright.formats.coco_results import check_results, result_boxes, result_code
from maskwright.formats.dataset import Dataset
from maskwright.formats.files import read_json
from maskwright.structures import Instances, Masks


class Proposals:
    """The best proposals of every image, best first; classes are forgotten.

    Args:
        results: entries of a COCO results file.
        most: proposals of an image that are kept.
    """

    def __init__(self, results: Sequence[Mapping[str, Any]], *, most: int) -> None:
        image_ids = np.array([entry["image_id"] for entry in results], dtype=np.int64)
        scores = np.array([entry["score"] for entry in results], dtype=np.float32)
        order = np.lexsort((-scores, image_ids))
        starts = np.flatnonzero(np.diff(image_ids[order], prepend=-1) != 0) if len(order) else order
        rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
        kept = order[rank < most]
        self._image_ids = image_ids[kept]
        self._scores = scores[kept]
        self._boxes = result_boxes([results[i] for i in kept])
        self._codes = [result_code(results[i]) for i in kept]
        self.has_masks = all(code is not None for code in self._codes)

    def __len__(self) -> int:
        return len(self._image_ids)

    def of(self, image_id: int, image_size: tuple[int, int], *, with_masks: bool) -> Instances:
        """The proposals of an image in its original frame."""
        rows = slice(*np.searchsorted(self._image_ids, [image_id, image_id + 1]).tolist())
        codes = self._codes[rows]
        masks = None
        if with_masks and self.has_masks:
            masks = Masks.from_rles([{"size": list(image_size), "counts": code} for code in codes], image_size)
        boxes = torch.from_numpy(self._boxes[rows].copy())
        labels = torch.zeros(len(boxes), dtype=torch.int64)
        return Instances(
            image_size, boxes=boxes, labels=labels, scores=torch.from_numpy(self._scores[rows].copy()), masks=masks
        )


def read_proposals(path: Path, dataset: Dataset, *, most: int) -> Proposals:
    """Somebody's proposals for the images of a data set.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    return Proposals(check_results(path, read_json(path), dataset), most=most)
