"""Outlines of a binary mask along its pixel edges, with holes: exact, and valid as GeoJSON.

A ring is (V, 2) float64 corners (x, y), not closed (the first corner is not repeated). Outer rings run clockwise as seen on
screen (y down), holes the other way. No ring touches itself; parts that meet only at a corner are separate.
"""

import numpy as np
import numpy.typing as npt

from maskwright.structures.rle import Bitmap

Ring = npt.NDArray[np.float64]
Polygon = list[Ring]
"""One connected part: its outer ring, then its holes."""

Corner = tuple[int, int]


def trace(crop: Bitmap, offset: Corner) -> list[Polygon]:
    """Connected parts of a bitmap (h, w) whose top left corner lies at `offset` (x, y)."""
    rings = [ring for loop in _loops(_edges(crop)) for ring in _simple(loop)]
    arrays = [np.array(_corners(ring), dtype=np.float64) for ring in rings]
    outers = [ring for ring in arrays if signed_area(ring) > 0]
    parts: list[Polygon] = [[ring] for ring in outers]
    for hole in (ring for ring in arrays if signed_area(ring) < 0):
        around = [i for i, outer in enumerate(outers) if _holds(outer, hole)]
        parts[min(around, key=lambda i: signed_area(outers[i]))].append(hole)
    return [[ring + np.array(offset, dtype=np.float64) for ring in part] for part in parts]


def signed_area(ring: Ring) -> float:
    """Area in px², positive for an outer ring."""
    x, y = ring[:, 0], ring[:, 1]
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def _edges(crop: Bitmap) -> dict[Corner, list[Corner]]:
    """Directed pixel edges between on and off, the on pixel to the right: corner → next corners."""
    padded = np.pad(crop, 1)
    inner = padded[1:-1, 1:-1]
    following: dict[Corner, list[Corner]] = {}
    for neighbour, begin, end in (
        (padded[:-2, 1:-1], (0, 0), (1, 0)),  # nothing above: left to right along the top edge
        (padded[1:-1, 2:], (1, 0), (1, 1)),  # nothing to the right: down
        (padded[2:, 1:-1], (1, 1), (0, 1)),  # nothing below: right to left
        (padded[1:-1, :-2], (0, 1), (0, 0)),  # nothing to the left: up
    ):
        rows, columns = np.nonzero(inner & ~neighbour)
        for x, y in zip(columns.tolist(), rows.tolist(), strict=True):
            following.setdefault((x + begin[0], y + begin[1]), []).append((x + end[0], y + end[1]))
    return following


def _loops(following: dict[Corner, list[Corner]]) -> list[list[Corner]]:
    """Closed walks along the edges. Where two pixels meet at a corner, turn right: stay with the pixel."""
    loops = []
    while following:
        here = start = next(iter(following))
        before: Corner | None = None
        loop = []
        while True:
            choices = following[here]
            if len(choices) == 2 and before is not None:
                dx, dy = here[0] - before[0], here[1] - before[1]
                right = (here[0] - dy, here[1] + dx)
                choices.remove(right)
                after = right
            else:
                after = choices.pop()
            if not choices:
                del following[here]
            loop.append(here)
            before, here = here, after
            if here == start:
                break
        loops.append(loop)
    return loops


def _simple(loop: list[Corner]) -> list[list[Corner]]:
    """Split a walk that passes a corner twice into walks that do not."""
    rings: list[list[Corner]] = []
    path: list[Corner] = []
    place: dict[Corner, int] = {}
    for corner in loop:
        if corner in place:
            cut = place[corner]
            rings.append(path[cut:])
            for gone in path[cut:]:
                del place[gone]
            path = path[:cut]
        place[corner] = len(path)
        path.append(corner)
    return [*rings, path]


def _corners(ring: list[Corner]) -> list[Corner]:
    """Drop the points in the middle of straight sides."""
    kept = []
    for i, (x, y) in enumerate(ring):
        before, after = ring[i - 1], ring[(i + 1) % len(ring)]
        if (x - before[0]) * (after[1] - y) != (y - before[1]) * (after[0] - x):
            kept.append((x, y))
    return kept


def _holds(outer: Ring, hole: Ring) -> bool:
    """Whether the hole lies inside the outer ring: cross the outline from a point just inside the hole's first corner."""
    x, y = hole[np.lexsort((hole[:, 1], hole[:, 0]))[0]] + 0.5  # leftmost, topmost corner; the hole's pixel is right below
    x1, y1, x2, y2 = outer[:, 0], outer[:, 1], np.roll(outer[:, 0], -1), np.roll(outer[:, 1], -1)
    vertical = (x1 == x2) & (x1 > x)
    return bool((vertical & (np.minimum(y1, y2) < y) & (y < np.maximum(y1, y2))).sum() % 2)
