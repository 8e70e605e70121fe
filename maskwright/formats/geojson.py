"""GeoJSON in the coordinates of an image, as QuPath opens it; written only."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from maskwright.formats.dataset import Categories
from maskwright.structures import Instances
from maskwright.structures.polygons import Polygon, Ring


def to_geojson(instances: Instances, categories: Categories) -> dict[str, Any]:
    """Detections of an image as a FeatureCollection in pixel coordinates (x right, y down), exact outlines with holes.

    Keypoints are properties: x, y and how sure, of each.
    """
    assert instances.scores is not None
    names = [categories.names[label] for label in instances.labels.tolist()]
    points = [None] * len(instances) if instances.keypoints is None else instances.keypoints.tolist()
    features = []
    for name, score, parts, joints in zip(names, instances.scores.tolist(), _outlines(instances), points, strict=True):
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


def _outlines(instances: Instances) -> Sequence[Sequence[Polygon]]:
    """Per object its parts, each an outer ring and its holes; boxes where there are no masks."""
    if instances.masks is not None:
        return instances.masks.to_polygons()
    corners = [np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]]) for x1, y1, x2, y2 in instances.boxes.tolist()]
    return [[[ring]] for ring in corners]


def _closed(ring: Ring) -> list[list[float]]:
    points: list[list[float]] = ring.tolist()
    return [*points, points[0]]
