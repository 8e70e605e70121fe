"""What a model found in an image, and the forms people take it away in."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from maskwright.formats.coco_results import to_coco_results
from maskwright.formats.dataset import Categories
from maskwright.formats.geojson import to_geojson
from maskwright.formats.images import read_image
from maskwright.reports.drawing import draw_instances
from maskwright.structures import Instances, Intensity, Masks


@dataclass(frozen=True, eq=False)
class Result:
    """Objects of one image, best score first.

    Args:
        instances: boxes, labels, scores, masks and keypoints, original frame.
        categories: class names and original ids.
        source: the file, or the pixels, the objects were found in.
        intensity: how the file was read, where it has more than 8 bits.
    """

    instances: Instances
    categories: Categories
    source: str | Path | npt.NDArray[np.uint8]
    intensity: Intensity

    def __len__(self) -> int:
        return len(self.instances)

    @property
    def boxes(self) -> Tensor:
        """xyxy px, float32 (N, 4)."""
        return self.instances.boxes

    @property
    def labels(self) -> Tensor:
        """Class indices, int64 (N,)."""
        return self.instances.labels

    @property
    def scores(self) -> Tensor:
        """In [0, 1], float32 (N,)."""
        assert self.instances.scores is not None
        return self.instances.scores

    @property
    def masks(self) -> Masks | None:
        """Masks at the resolution of the image; None from a system that finds boxes."""
        return self.instances.masks

    @property
    def keypoints(self) -> Tensor | None:
        """x, y and how sure, float32 (N, J, 3); None from a system that finds none."""
        return self.instances.keypoints

    @property
    def names(self) -> list[str]:
        """Class name of each object."""
        return [self.categories.names[label] for label in self.labels.tolist()]

    @property
    def category_ids(self) -> list[int]:
        """Original class id of each object."""
        return [self.categories.ids[label] for label in self.labels.tolist()]

    @property
    def name(self) -> str:
        """The file, or "image" for pixels without one."""
        return str(self.source) if isinstance(self.source, (str, Path)) else "image"

    def to_coco(self, image_id: int = 1) -> list[dict[str, Any]]:
        """Entries of a COCO results file: bbox, score, compressed RLE, keypoints and original category ids."""
        return to_coco_results(self.instances, image_id, self.categories)

    def to_geojson(self) -> dict[str, Any]:
        """A FeatureCollection in pixel coordinates (x right, y down), exact outlines with holes; QuPath opens it."""
        return to_geojson(self.instances, self.categories)

    def plot(self) -> Image.Image:
        """The image with its objects drawn on it."""
        pixels = read_image(self.source, self.intensity) if isinstance(self.source, (str, Path)) else self.source
        return draw_instances(pixels, self.instances, self.categories.names, schema=self.categories.keypoints)
