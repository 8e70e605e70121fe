"""Run-length encodings of one binary mask, as COCO defines them.

Three forms of the same mask, all over the image in *column-major* order (down the first column, then the next):

* ``runs``: ``(starts, ends)``, int64 arrays of the half-open stretches that are on, sorted and not touching;
* ``counts``: COCO's uncompressed form, lengths of alternating off and on stretches, the first one off, summing to H·W;
* ``string``: COCO's compressed form, the counts as a base-32 text, each from the fourth on stored as the difference to the
  one two before it.

A *crop* is the bitmap (h, w) inside a window (x0, y0, x1, y1). Everything that comes from a file is checked before it is
used: these functions raise ``ValueError`` on hostile input and never allocate more than the mask needs.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Bitmap = npt.NDArray[np.bool_]
Runs = tuple[Ints, Ints]
Window = tuple[int, int, int, int]

MAX_MASK_PIXELS = 2**31 - 1  # counts are kept as int32
MAX_POLYGON_STEPS = 50_000_000  # points walked along the outline of one polygon, on a grid five times as fine as the pixels
_EMPTY = np.empty(0, dtype=np.int64)


def check_size(size: Sequence[Any]) -> tuple[int, int]:
    """(height, width) as two positive ints whose product a mask may have."""
    if not isinstance(size, (list, tuple)) or len(size) != 2 or not all(isinstance(s, (int, np.integer)) for s in size):
        raise ValueError(f"got mask size {size!r}, expected [height, width] as two integers")
    height, width = int(size[0]), int(size[1])
    if height <= 0 or width <= 0 or height * width > MAX_MASK_PIXELS:
        raise ValueError(f"got mask size {height} x {width}, expected positive sides and at most {MAX_MASK_PIXELS} px")
    return height, width


# Counts and strings


def counts_from_string(text: str | bytes) -> Ints:
    """Decode COCO's compressed counts."""
    return counts_from_strings([text])[0]


def counts_from_strings(texts: Sequence[str | bytes]) -> list[Ints]:
    """Decode many compressed counts at once, which takes little longer than one."""
    parts = [text.encode("utf-8", errors="replace") if isinstance(text, str) else text for text in texts]
    symbols = np.frombuffer(b"".join(parts), dtype=np.uint8).astype(np.int64) - 48
    if symbols.size == 0:
        return [_EMPTY for _ in texts]
    if symbols.min() < 0 or symbols.max() > 63:
        raise ValueError("compressed RLE holds characters outside '0' to 'o': the string is not COCO's encoding")
    last = (symbols & 0x20) == 0
    ends = np.cumsum([len(part) for part in parts])
    if not last[ends[ends > 0] - 1].all():
        raise ValueError("compressed RLE ends in the middle of a number: the string is cut")
    firsts = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
    lengths = np.diff(np.append(firsts, symbols.size))
    if lengths.max() > 8:
        raise ValueError("compressed RLE holds a number over 40 bits: the string is damaged")
    place = np.arange(symbols.size) - np.repeat(firsts, lengths)
    values = np.add.reduceat((symbols & 0x1F) << (5 * place), firsts)
    negative = (symbols[firsts + lengths - 1] & 0x10) != 0
    values[negative] -= np.int64(1) << (5 * lengths[negative])
    counts = np.split(values, np.searchsorted(firsts, ends)[:-1])
    for part in counts:
        part[1::2] = np.cumsum(part[1::2])
        part[2::2] = np.cumsum(part[2::2])  # the first three stand as they are; later ones add the value two before
    return counts


def counts_to_string(counts: Ints) -> str:
    """Encode counts in COCO's compressed form."""
    values = counts.astype(np.int64)
    values[3:] -= counts[1:-2]
    symbols: list[Ints] = []
    alive: list[Bitmap] = []
    more = np.ones(values.shape, dtype=bool)
    while more.any():
        low = values & 0x1F
        values = values >> 5
        done = np.where((low & 0x10) != 0, values == -1, values == 0)
        symbols.append(low + np.where(done, 0, 0x20) + 48)
        alive.append(more.copy())
        more &= ~done
    if not symbols:
        return ""
    text = np.stack(symbols, axis=1)[np.stack(alive, axis=1)].astype(np.uint8).tobytes()
    return text.decode("ascii")


def check_counts(counts: Any, size: tuple[int, int]) -> Ints:
    """Uncompressed counts as int64, checked: whole, finite, not negative, summing to height · width."""
    height, width = size
    try:
        values = np.asarray(counts)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"RLE counts are not a flat list of integers: {error}") from None
    if values.size == 0:
        values = values.astype(np.int64)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise ValueError("RLE counts are not a flat list of integers")
    if values.size and (values.min() < 0 or values.max() > MAX_MASK_PIXELS):
        raise ValueError(f"RLE counts range from {values.min()} to {values.max()}, expected 0 to {height * width}")
    values = values.astype(np.int64)
    if values.sum() != height * width:
        raise ValueError(
            f"RLE counts add up to {values.sum()}, expected {height} x {width} = {height * width}: "
            "the mask was made for another image size or is damaged"
        )
    return values


def counts_to_runs(counts: Ints) -> Runs:
    """Runs of the pixels that are on; stretches of length zero disappear."""
    edges = np.cumsum(counts)
    starts, ends = edges[0:-1:2], edges[1::2]
    return _merge_touching(starts, ends)


def runs_to_counts(runs: Runs, size: tuple[int, int]) -> Ints:
    """Counts in COCO's canonical form, as pycocotools writes them."""
    starts, ends = runs
    edges = np.empty(2 * len(starts) + 2, dtype=np.int64)
    edges[0], edges[1:-1:2], edges[2:-1:2], edges[-1] = 0, starts, ends, size[0] * size[1]
    counts = np.diff(edges)
    return counts[:-1] if len(counts) > 1 and counts[-1] == 0 else counts


def runs_from_coco(segmentation: dict[str, Any], image_size: tuple[int, int]) -> Runs:
    """Runs of a COCO RLE dict, compressed or not, after checking that it fits the image."""
    return counts_to_runs(counts_from_coco(segmentation, image_size))


def counts_from_coco(segmentation: dict[str, Any], image_size: tuple[int, int]) -> Ints:
    """Counts of a COCO RLE dict, compressed or not, after checking that it fits the image."""
    if "size" not in segmentation or "counts" not in segmentation:
        raise ValueError("an RLE needs the keys 'size' and 'counts'")
    size = check_size(segmentation["size"])
    if size != tuple(image_size):
        raise ValueError(
            f"RLE is {size[0]} x {size[1]} but the image is {image_size[0]} x {image_size[1]} (height x width): "
            "re-create the mask at the size of the image"
        )
    counts = segmentation["counts"]
    if isinstance(counts, (str, bytes)):
        counts = counts_from_string(counts)
    return check_counts(counts, size)


def all_counts_from_coco(segmentations: Sequence[dict[str, Any]], image_size: tuple[int, int]) -> list[Ints]:
    """The same for many masks of an image, faster.

    Raises:
        ValueError: what is wrong with the first that is damaged or does not fit.
    """
    try:
        texts = [segmentation["counts"] for segmentation in segmentations]
        whole = all(isinstance(text, (str, bytes)) for text in texts)
        fits = all(tuple(segmentation["size"]) == tuple(image_size) for segmentation in segmentations)
        counts = counts_from_strings(texts) if whole and fits else []
    except (KeyError, TypeError, ValueError):
        counts = []
    pixels = image_size[0] * image_size[1]
    if len(counts) == len(segmentations) and all(c.sum() == pixels and c.min(initial=0) >= 0 for c in counts):
        return counts
    return [counts_from_coco(segmentation, image_size) for segmentation in segmentations]


# Crops


def window_of_runs(runs: Runs, size: tuple[int, int]) -> Window:
    """The tight window of a mask; (0, 0, 0, 0) for an empty one."""
    starts, ends = runs
    height = size[0]
    if len(starts) == 0:
        return (0, 0, 0, 0)
    first, last = starts // height, (ends - 1) // height
    if (first != last).any():  # a run over a column's end covers its foot and the next one's head
        return (int(first[0]), 0, int(last[-1]) + 1, height)
    return (int(first[0]), int((starts - first * height).min()), int(last[-1]) + 1, int((ends - last * height).max()))


def runs_to_crop(runs: Runs, size: tuple[int, int]) -> tuple[Bitmap, Window]:
    """The tight bitmap (h, w) of a mask and its window; an empty mask has the window (0, 0, 0, 0)."""
    starts, ends = runs
    height = size[0]
    window = window_of_runs(runs, size)
    x0, y0, x1, y1 = window
    h, w = y1 - y0, x1 - x0
    if h == 0:
        return np.zeros((0, 0), dtype=bool), window
    column, last = starts // height, (ends - 1) // height
    change = np.zeros(w * h + 1, dtype=np.int8)
    change[(column - x0) * h + starts - column * height - y0] = 1
    change[(last - x0) * h + ends - last * height - y0] -= 1  # a run that ends a column may touch the next one's first
    on = np.cumsum(change[:-1], dtype=np.int8).view(bool).reshape(w, h)
    return np.ascontiguousarray(on.T), window


def crop_to_runs(crop: Bitmap, window: Window, size: tuple[int, int]) -> Runs:
    """Runs of a bitmap that lies in the image at `window`."""
    height = size[0]
    x0, y0, x1, y1 = window
    if crop.size == 0:
        return _EMPTY, _EMPTY
    padded = np.zeros((x1 - x0, y1 - y0 + 1), dtype=np.int8)
    padded[:, :-1] = crop.T
    change = np.diff(padded, axis=1, prepend=np.int8(0))
    column, row = np.nonzero(change == 1)
    starts = (column + x0) * height + row + y0
    column, row = np.nonzero(change == -1)
    ends = (column + x0) * height + row + y0
    return _merge_touching(starts, ends)


def tighten(crop: Bitmap, window: Window) -> tuple[Bitmap, Window]:
    """Cut empty rows and columns off a bitmap; nothing left gives the window (0, 0, 0, 0)."""
    rows, columns = np.flatnonzero(crop.any(axis=1)), np.flatnonzero(crop.any(axis=0))
    if len(rows) == 0:
        return np.zeros((0, 0), dtype=bool), (0, 0, 0, 0)
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    x0, y0 = window[0], window[1]
    return crop[top:bottom, left:right], (x0 + left, y0 + top, x0 + right, y0 + bottom)


# Polygons


def runs_from_polygons(polygons: Sequence[Sequence[float]], image_size: tuple[int, int]) -> Runs:
    """Union of filled polygons, each [x1, y1, x2, y2, …] in px, pixel for pixel as pycocotools fills them."""
    height, width = check_size(image_size)
    parts = [_polygon_runs(polygon, height, width) for polygon in polygons]
    if len(parts) == 1:
        return parts[0]
    return _union(np.concatenate([p[0] for p in parts] or [_EMPTY]), np.concatenate([p[1] for p in parts] or [_EMPTY]))


def check_polygon(polygon: Any) -> npt.NDArray[np.float64]:
    """Vertices (V, 2) of a flat coordinate list: an even number of finite values, at least three points."""
    try:
        flat = np.asarray(polygon)
        if flat.dtype.kind not in "iuf":
            raise TypeError
        flat = flat.astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("polygon is not a flat list of numbers [x1, y1, x2, y2, ...]") from None
    if flat.ndim != 1 or flat.size < 6 or flat.size % 2:
        raise ValueError(f"polygon has {flat.size} numbers, expected an even count of at least 6 (three points)")
    if not np.isfinite(flat).all():
        raise ValueError("polygon holds a coordinate that is not finite")
    return flat.reshape(-1, 2)


def _polygon_runs(polygon: Sequence[float], height: int, width: int) -> Runs:
    """Fill one polygon: walk its outline on a grid of 1/5 px, note where it changes column, and toggle there."""
    fine = 5
    vertices = check_polygon(polygon)
    if np.abs(vertices).max() > MAX_MASK_PIXELS:
        raise ValueError(f"polygon reaches to {np.abs(vertices).max():.3g} px, far outside the image of {height} x {width}")
    points = np.trunc(fine * vertices + 0.5).astype(np.int64)
    begin, end = points, np.roll(points, -1, axis=0)
    dx, dy = np.abs(end - begin).T
    along_x = dx >= dy
    steps = np.where(along_x, dx, dy) + 1
    if steps.sum() > MAX_POLYGON_STEPS:
        raise ValueError(f"polygon outline is {steps.sum() / fine:.3g} px long, far outside the image of {height} x {width}")
    flip = np.where(along_x, begin[:, 0] > end[:, 0], begin[:, 1] > end[:, 1])
    low, high = np.where(flip[:, None], end, begin), np.where(flip[:, None], begin, end)
    run = np.maximum(np.where(along_x, dx, dy), 1)
    slope = np.where(along_x, high[:, 1] - low[:, 1], high[:, 0] - low[:, 0]) / run

    edge = np.repeat(np.arange(len(points)), steps)
    step = np.arange(len(edge)) - np.repeat(np.cumsum(steps) - steps, steps)
    t = np.where(flip[edge], np.where(along_x, dx, dy)[edge] - step, step)
    minor = np.trunc(np.where(along_x, low[:, 1], low[:, 0])[edge] + slope[edge] * t + 0.5).astype(np.int64)
    major = np.where(along_x, low[:, 0], low[:, 1])[edge] + t
    u = np.where(along_x[edge], major, minor)
    v = np.where(along_x[edge], minor, major)

    turn = np.flatnonzero(u[1:] != u[:-1]) + 1
    x = (np.where(u[turn] < u[turn - 1], u[turn], u[turn] - 1) + 0.5) / fine - 0.5
    y = (np.minimum(v[turn], v[turn - 1]) + 0.5) / fine - 0.5
    on_column = (np.floor(x) == x) & (x >= 0) & (x <= width - 1)
    y = np.ceil(np.clip(y[on_column], 0, height))
    toggles = x[on_column].astype(np.int64) * height + y.astype(np.int64)

    toggles, times = np.unique(toggles, return_counts=True)
    toggles = toggles[times % 2 == 1]
    if len(toggles) % 2:
        toggles = np.append(toggles, height * width)
    return _merge_touching(toggles[0::2], toggles[1::2])


def _merge_touching(starts: Ints, ends: Ints) -> Runs:
    """Sorted runs without the empty ones, and with neighbours that touch made one."""
    keep = ends > starts
    starts, ends = starts[keep], ends[keep]
    if len(starts) < 2:
        return starts.astype(np.int64), ends.astype(np.int64)
    apart = starts[1:] > ends[:-1]
    return starts[np.append(True, apart)], ends[np.append(apart, True)]


def _union(starts: Ints, ends: Ints) -> Runs:
    """Union of runs that may overlap."""
    order = np.argsort(starts, kind="stable")
    starts, reach = starts[order], np.maximum.accumulate(ends[order]) if len(ends) else ends
    if len(starts) < 2:
        return starts, reach
    apart = starts[1:] > reach[:-1]
    return starts[np.append(True, apart)], reach[np.append(apart, True)]
