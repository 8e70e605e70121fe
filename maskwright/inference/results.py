"""What a model found in an image, and the forms people take it away in."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from maskwright.formats.coco import categories_to_coco
from maskwright.formats.coco_results import to_coco_results
from maskwright.formats.dataset import Categories
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
        """A FeatureCollection in pixel coordinates (x right, y down), exact outlines with holes; QuPath opens it.

        Keypoints are properties: x, y and how sure, of each.
        """
        features = []
        outlines = self._outlines()
        points = [None] * len(self) if self.keypoints is None else self.keypoints.tolist()
        for name, score, parts, joints in zip(self.names, self.scores.tolist(), outlines, points, strict=True):
            rings = [[_closed(ring) for ring in part] for part in parts]
            single = len(rings) == 1
            features.append(
                {
                    "type": "Feature",
                    "geometry": {
                        "type": "Polygon" if single else "MultiPolygon",
                        "coordinates": rings[0] if single else rings,
                    },
                    "properties": {
                        "objectType": "annotation",
                        "classification": {"name": name},
                        "score": round(score, 6),
                        **({} if joints is None else {"keypoints": joints}),
                    },
                }
            )
        return {"type": "FeatureCollection", "features": features}

    def plot(self) -> Image.Image:
        """The image with its objects drawn on it."""
        pixels = read_image(self.source, self.intensity) if isinstance(self.source, (str, Path)) else self.source
        return draw_instances(pixels, self.instances, self.categories.names, schema=self.categories.keypoints)

    def _outlines(self) -> Sequence[Sequence[Sequence[npt.NDArray[np.float64]]]]:
        """Per object its parts, each an outer ring and its holes; boxes where there are no masks."""
        if self.masks is not None:
            return self.masks.to_polygons()
        corners = [np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]]) for x1, y1, x2, y2 in self.boxes.tolist()]
        return [[[ring]] for ring in corners]


class CocoFile:
    """Results of several images as one COCO data set with scores: any COCO tool opens it, and it can be scored."""

    def __init__(self, categories: Categories) -> None:
        self.categories = categories
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add(self, result: Result, file_name: str) -> None:
        """One more image; of its masks only the encodings are kept."""
        height, width = result.instances.image_size
        image_id = len(self.images) + 1
        self.images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        entries = result.to_coco(image_id)
        areas = [e["bbox"][2] * e["bbox"][3] for e in entries] if result.masks is None else result.masks.areas().tolist()
        for entry, area in zip(entries, areas, strict=True):
            counts = {"num_keypoints": len(entry["keypoints"]) // 3} if "keypoints" in entry else {}
            self.annotations.append({"id": len(self.annotations) + 1, **entry, **counts, "area": area, "iscrowd": 0})

    def to_dict(self) -> dict[str, Any]:
        """As the file holds it."""
        return {"images": self.images, "annotations": self.annotations, "categories": categories_to_coco(self.categories)}


def _closed(ring: npt.NDArray[np.float64]) -> list[list[float]]:
    points: list[list[float]] = ring.tolist()
    return [*points, points[0]]
