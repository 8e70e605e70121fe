"""N binary masks of one image, each a tight bitmap with its window.

A mask is stored once, at the resolution of its image, and only where the object is: 300 nuclei on a 12-megapixel image take
about a megabyte where (N, H, W) would take 3.6 gigabytes. All rows share one byte buffer, so that indexing,
concatenating, moving to a device and passing between processes handle four tensors, whatever N is.

Masks of an image that was resized keep the bitmaps they were made with: what is covered, and what lies at a point, is read
from these, and the pixels of the resized image are only drawn for those who ask for them.

Rows that come once the bitmaps fill `BITMAP_BUDGET_BYTES` are kept as run lengths; nothing else changes.

Legend: N masks · T bytes in all · R RoIs · M side of a target grid · (h, w) a window's size · (H, W) the image's size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from maskwright.structures import boxes as box_functions
from maskwright.structures import polygons, rle
from maskwright.structures.rle import Bitmap, Runs, Window

BITMAP_BUDGET_BYTES = 256 * 2**20
"""Bitmaps of one image above this are kept as run lengths."""
FINE_BYTES = 8 * 2**20
"""Bitmaps of one image above this are not kept finer than the image they were resized to."""


class Masks:
    """Masks of one image; build them with the `from_*` constructors.

    Args:
        image_size: (height, width) of the image, px.
        windows: int32 (N, 4), half-open pixel windows x0, y0, x1, y1 inside the bitmaps' image; (0, 0, 0, 0) for an empty mask.
        starts: int64 (N + 1,), where each row's bytes begin in `buffer`.
        buffer: uint8 (T,), a row's bitmap in row-major order, or its int32 COCO counts.
        is_runs: bool (N,), which of the two a row holds.
        bitmap_size: (height, width) of the image the bitmaps were made for, if it was resized since; by default `image_size`.
    """

    def __init__(
        self,
        *,
        image_size: tuple[int, int],
        windows: Tensor,
        starts: Tensor,
        buffer: Tensor,
        is_runs: Tensor,
        bitmap_size: tuple[int, int] | None = None,
    ) -> None:
        n = len(windows)
        if windows.shape != (n, 4) or starts.shape != (n + 1,) or is_runs.shape != (n,) or buffer.ndim != 1:
            raise ValueError(
                f"got windows {tuple(windows.shape)}, starts {tuple(starts.shape)}, is_runs {tuple(is_runs.shape)}, "
                f"buffer {tuple(buffer.shape)}; expected (N, 4), (N + 1,), (N,), (T,): use Masks.from_dense or from_rles"
            )
        self.image_size = image_size
        self.bitmap_size = bitmap_size or image_size
        self.windows = windows
        self.starts = starts
        self.buffer = buffer
        self.is_runs = is_runs

    # Making masks

    @classmethod
    def empty(cls, image_size: tuple[int, int]) -> Masks:
        """No masks of an image."""
        return cls.from_crops([], image_size)

    @classmethod
    def from_crops(cls, crops: Iterable[tuple[Bitmap, Window]], image_size: tuple[int, int]) -> Masks:
        """From bitmaps (h, w) with their windows, taken one at a time; empty rows and columns are cut off."""
        return cls._pack((rle.tighten(crop, window) for crop, window in crops), image_size)

    @classmethod
    def from_dense(cls, dense: Tensor) -> Masks:
        """From a boolean or 0/1 tensor (N, H, W)."""
        if dense.ndim != 3:
            raise ValueError(f"got masks of shape {tuple(dense.shape)}, expected (N, H, W)")
        image_size = (int(dense.shape[1]), int(dense.shape[2]))
        bitmaps = dense.cpu().numpy() != 0
        return cls.from_crops(((bitmap, (0, 0, image_size[1], image_size[0])) for bitmap in bitmaps), image_size)

    @classmethod
    def from_rles(cls, rles: Sequence[dict[str, Any]], image_size: tuple[int, int]) -> Masks:
        """From COCO run-length encodings, compressed (str or bytes) or not.

        Raises:
            ValueError: an encoding that is damaged or made for another image size.
        """
        return cls.from_runs([rle.counts_to_runs(counts) for counts in rle.all_counts_from_coco(rles, image_size)], image_size)

    @classmethod
    def from_polygons(cls, objects: Sequence[Sequence[Sequence[float]]], image_size: tuple[int, int]) -> Masks:
        """From COCO polygons: per object a list of parts [x1, y1, x2, y2, …], px; the mask is the union of the parts.

        Raises:
            ValueError: a part with fewer than three points, an odd count or a value that is not finite.
        """
        return cls.from_runs([rle.runs_from_polygons(parts, image_size) for parts in objects], image_size)

    @classmethod
    def cat(cls, parts: Sequence[Masks]) -> Masks:
        """All masks of several sets over the same image, in order."""
        sizes = {part.image_size for part in parts}
        if len(sizes) != 1:
            raise ValueError(f"got masks of image sizes {sorted(sizes)}, expected one size: only masks of one image join")
        if len({part.bitmap_size for part in parts}) > 1:
            parts = [part.resampled() for part in parts]
        if sum(len(part.buffer) for part in parts) > BITMAP_BUDGET_BYTES:
            joined = cls._pack((row for part in parts for row in part._rows()), parts[0].bitmap_size)
            return joined._of_image(sizes.pop()).to(parts[0].device)
        offsets = np.cumsum([0] + [len(part.buffer) for part in parts])
        starts = [part.starts[:-1] + int(offset) for part, offset in zip(parts, offsets, strict=False)]
        return cls(
            image_size=sizes.pop(),
            windows=torch.cat([part.windows for part in parts]),
            starts=torch.cat([*starts, parts[0].starts.new_tensor([int(offsets[-1])])]),
            buffer=torch.cat([part.buffer for part in parts]),
            is_runs=torch.cat([part.is_runs for part in parts]),
            bitmap_size=parts[0].bitmap_size,
        )

    @classmethod
    def from_runs(cls, runs: Sequence[Runs], image_size: tuple[int, int]) -> Masks:
        """From runs of pixels in column-major order (see `structures.rle`)."""
        size = rle.check_size(image_size)
        return cls._pack(((mask_runs, rle.window_of_runs(mask_runs, size)) for mask_runs in runs), size)

    @classmethod
    def _pack(cls, rows: Iterable[tuple[Bitmap | Runs, Window]], image_size: tuple[int, int]) -> Masks:
        """Put rows into one buffer, as bitmaps while the budget lasts, then as run lengths."""
        pieces: list[npt.NDArray[np.uint8]] = []
        windows: list[Window] = []
        is_runs: list[bool] = []
        spent = 0
        for row, window in rows:
            area = (window[2] - window[0]) * (window[3] - window[1])
            fits = spent + area <= BITMAP_BUDGET_BYTES
            if fits:
                crop = row if isinstance(row, np.ndarray) else rle.runs_to_crop(row, image_size)[0]
                pieces.append(np.ascontiguousarray(crop).reshape(-1).view(np.uint8))
                spent += area
            else:
                runs = rle.crop_to_runs(row, window, image_size) if isinstance(row, np.ndarray) else row
                pieces.append(rle.runs_to_counts(runs, image_size).astype(np.int32).view(np.uint8))
            windows.append(window)
            is_runs.append(not fits)
        return cls(
            image_size=(int(image_size[0]), int(image_size[1])),
            windows=torch.tensor(windows, dtype=torch.int32).reshape(-1, 4),
            starts=torch.from_numpy(np.cumsum([0] + [piece.size for piece in pieces], dtype=np.int64)),
            buffer=torch.from_numpy(np.concatenate(pieces)) if pieces else torch.empty(0, dtype=torch.uint8),
            is_runs=torch.tensor(is_runs, dtype=torch.bool),
        )

    # Rows

    def __len__(self) -> int:
        return len(self.windows)

    def __repr__(self) -> str:
        return f"Masks({len(self)} of {self.image_size[0]}x{self.image_size[1]} px, {self.nbytes} bytes)"

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(t.numel() * t.element_size() for t in (self.windows, self.starts, self.buffer, self.is_runs))

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.buffer.device

    def __getitem__(self, index: Tensor | slice | Sequence[int]) -> Masks:
        """Rows by mask, indices or slice; always a `Masks`."""
        rows = torch.arange(len(self), device=self.device)[index.to(self.device) if isinstance(index, Tensor) else index]
        begins, ends = self.starts[:-1][rows], self.starts[1:][rows]
        # Slices, as an index of every byte would take eight times the memory of the masks.
        pieces = [self.buffer[a:b] for a, b in zip(begins.tolist(), ends.tolist(), strict=True)]
        return Masks(
            image_size=self.image_size,
            windows=self.windows[rows],
            starts=torch.cat([begins.new_zeros(1), (ends - begins).cumsum(0)]),
            buffer=torch.cat([self.buffer[:0], *pieces]),
            is_runs=self.is_runs[rows],
            bitmap_size=self.bitmap_size,
        )

    def to(self, device: torch.device | str) -> Masks:
        """The same masks on another device."""
        return Masks(
            image_size=self.image_size,
            windows=self.windows.to(device),
            starts=self.starts.to(device),
            buffer=self.buffer.to(device),
            is_runs=self.is_runs.to(device),
            bitmap_size=self.bitmap_size,
        )

    def _rows(self) -> Iterator[tuple[Bitmap | Runs, Window]]:
        """Each row as it is stored, a bitmap or runs, with its window."""
        buffer, starts = self.buffer.cpu().numpy(), self.starts.tolist()
        for i, (window, is_runs) in enumerate(zip(self.windows.tolist(), self.is_runs.tolist(), strict=True)):
            x0, y0, x1, y1 = window
            data = buffer[starts[i] : starts[i + 1]]
            if is_runs:
                yield rle.counts_to_runs(data.copy().view(np.int32).astype(np.int64)), (x0, y0, x1, y1)
            else:
                yield data.view(bool).reshape(y1 - y0, x1 - x0), (x0, y0, x1, y1)

    def crops(self) -> Iterator[tuple[Bitmap, Window]]:
        """Each mask as a bitmap (h, w) with its window, one at a time."""
        for row, window in self._rows():
            yield self._resized(*self._expand(row, window))

    def _expand(self, row: Bitmap | Runs, window: Window) -> tuple[Bitmap, Window]:
        return (row if isinstance(row, np.ndarray) else rle.runs_to_crop(row, self.bitmap_size)[0]), window

    def _resized(self, crop: Bitmap, window: Window) -> tuple[Bitmap, Window]:
        """A bitmap in pixels of the image, each of which takes the value found at its centre."""
        if self.bitmap_size == self.image_size:
            return crop, window
        x0, y0, x1, y1 = window
        scale_y, scale_x = (kept / shown for kept, shown in zip(self.bitmap_size, self.image_size, strict=True))
        rows, top = _sources(y0, y1, scale_y, self.image_size[0])
        columns, left = _sources(x0, x1, scale_x, self.image_size[1])
        return crop[np.ix_(rows - y0, columns - x0)], (left, top, left + len(columns), top + len(rows))

    # Looking at masks

    def areas(self) -> Tensor:
        """Pixels that are on, int64 (N,)."""
        rows = self._rows() if self.bitmap_size == self.image_size else self.crops()
        areas = [int(row.sum()) if isinstance(row, np.ndarray) else int((row[1] - row[0]).sum()) for row, _ in rows]
        return torch.tensor(areas, dtype=torch.int64, device=self.device)

    def centroids(self) -> Tensor:
        """Mean position of the pixels that are on, (x, y) px, float32 (N, 2); the middle of the image for an empty mask."""
        middle = (self.image_size[1] / 2, self.image_size[0] / 2)
        points = []
        for crop, (x0, y0, _, _) in self.crops():
            across, down = crop.sum(axis=0), crop.sum(axis=1)
            count = across.sum()
            sums = ((across * (np.arange(len(across)) + x0 + 0.5)).sum(), (down * (np.arange(len(down)) + y0 + 0.5)).sum())
            points.append((sums[0] / count, sums[1] / count) if count else middle)
        return torch.tensor(points, dtype=torch.float32, device=self.device).reshape(-1, 2)

    def boxes(self) -> Tensor:
        """Tight boxes, float32 xyxy px (N, 4); zeros for an empty mask."""
        return self.resampled().windows.to(torch.float32)

    def to_dense(self) -> Tensor:
        """Boolean (N, H, W) on the CPU: N·H·W bytes, only for small cases and tests."""
        dense = torch.zeros((len(self), *self.image_size), dtype=torch.bool)
        for i, (crop, (x0, y0, x1, y1)) in enumerate(self.crops()):
            dense[i, y0:y1, x0:x1] = torch.from_numpy(crop.copy())
        return dense

    def to_rles(self) -> list[dict[str, Any]]:
        """COCO compressed encodings {"size": [H, W], "counts": str}, byte for byte as pycocotools writes them."""
        rles = []
        for row, window in self.resampled()._rows():
            runs = rle.crop_to_runs(row, window, self.image_size) if isinstance(row, np.ndarray) else row
            counts = rle.counts_to_string(rle.runs_to_counts(runs, self.image_size))
            rles.append({"size": list(self.image_size), "counts": counts})
        return rles

    def to_polygons(self) -> list[list[polygons.Polygon]]:
        """Per mask its connected parts, each as rings [outer, hole, …] of (x, y) pixel corners, exact."""
        return [polygons.trace(crop, (window[0], window[1])) for crop, window in self.crops()]

    def paired_iou(self, others: Masks) -> Tensor:
        """Intersection over union of each mask with the same row of the other, float32 (N,); 0 where both are empty."""
        answers = []
        for (a, (x0, y0, x1, y1)), (b, (u0, v0, u1, v1)) in zip(self.crops(), others.crops(), strict=True):
            left, top, right, bottom = max(x0, u0), max(y0, v0), min(x1, u1), min(y1, v1)
            shared = 0
            if left < right and top < bottom:
                own = a[top - y0 : bottom - y0, left - x0 : right - x0]
                shared = int((own & b[top - v0 : bottom - v0, left - u0 : right - u0]).sum())
            answers.append(shared / max(1, int(a.sum()) + int(b.sum()) - shared))
        return torch.tensor(answers, dtype=torch.float32, device=self.device)

    def union(self) -> Tensor:
        """Pixels that any mask is on at, bool (H, W) on the CPU."""
        dense = np.zeros(self.image_size, dtype=bool)
        for crop, (x0, y0, x1, y1) in self.crops():
            dense[y0:y1, x0:x1] |= crop
        return torch.from_numpy(dense)

    def without(self, pixels: Tensor) -> Masks:
        """What is left of each mask, which keeps its row, where `pixels`, bool (H, W), are taken away."""
        taken = pixels.cpu().numpy()
        rows = ((crop & ~taken[y0:y1, x0:x1], (x0, y0, x1, y1)) for crop, (x0, y0, x1, y1) in self.crops())
        return Masks.from_crops(rows, self.image_size)

    # Moving with the image

    def resize(self, size: tuple[int, int]) -> Masks:
        """Masks of the image resized to `size`: a pixel takes the value found at its centre.

        `coverage` and `at` go on to look at the bitmaps there are, unless these are finer and exceed `FINE_BYTES`.
        """
        resized = self._of_image(size)
        is_finer = self.bitmap_size[0] * self.bitmap_size[1] > size[0] * size[1]
        return resized.resampled() if is_finer and len(self.buffer) > FINE_BYTES else resized

    def resampled(self) -> Masks:
        """The same masks with bitmaps of the image's own pixels."""
        return self if self.bitmap_size == self.image_size else Masks.from_crops(self.crops(), self.image_size).to(self.device)

    def _of_image(self, size: tuple[int, int]) -> Masks:
        """The same bitmaps for the image at another size."""
        return Masks(
            image_size=size,
            windows=self.windows,
            starts=self.starts,
            buffer=self.buffer,
            is_runs=self.is_runs,
            bitmap_size=self.bitmap_size,
        )

    def crop(self, window: Window) -> Masks:
        """Masks of the image cut to `window`; an object outside keeps its row with area 0."""
        left, top, right, bottom = window

        def cut(crop: Bitmap, window: Window) -> tuple[Bitmap, Window]:
            x0, y0, x1, y1 = window
            a, b, c, d = max(x0, left), max(y0, top), min(x1, right), min(y1, bottom)
            c, d = max(a, c), max(b, d)
            return crop[b - y0 : d - y0, a - x0 : c - x0], (a - left, b - top, c - left, d - top)

        return Masks.from_crops((cut(*row) for row in self.crops()), (bottom - top, right - left))

    def flip(self, *, horizontal: bool) -> Masks:
        """Masks of the mirrored image: left-right, or top-bottom."""
        height, width = self.image_size

        def flipped(crop: Bitmap, window: Window) -> tuple[Bitmap, Window]:
            x0, y0, x1, y1 = window
            if horizontal:
                return crop[:, ::-1], (width - x1, y0, width - x0, y1)
            return crop[::-1], (x0, height - y1, x1, height - y0)

        return Masks.from_crops((flipped(*row) for row in self.crops()), self.image_size)

    def transpose(self) -> Masks:
        """Masks of the image mirrored at its diagonal: x and y trade places."""
        size = (self.image_size[1], self.image_size[0])
        return Masks.from_crops(((crop.T, (y0, x0, y1, x1)) for crop, (x0, y0, x1, y1) in self.crops()), size)

    # Targets

    def coverage(self, boxes: Tensor, rows: Tensor, *, side: int, samples: int) -> Tensor:
        """How much of each cell of a grid laid over a box is covered by a mask, for many boxes in one gather.

        The box is stretched to side × side cells; each cell is probed at samples × samples regular points.

        Args:
            boxes: xyxy px in the masks' frame, (R, 4).
            rows: which mask each box looks at, int64 (R,).
            side: cells per side of the grid, M.
            samples: points per side of a cell.

        Returns:
            float32 (R, M, M) in [0, 1].
        """
        masks = self if not self.is_runs.any() else self._expanded(rows)
        boxes = box_functions.scale(boxes, from_size=self.image_size, to_size=self.bitmap_size)
        windows, starts = masks.windows[rows].long(), masks.starts[rows]
        t = (torch.arange(side * samples, device=boxes.device) + 0.5) / (side * samples)  # (M·samples,)
        x = (boxes[:, 0, None] + t * (boxes[:, 2] - boxes[:, 0])[:, None]).floor().long()  # (R, M·samples)
        y = (boxes[:, 1, None] + t * (boxes[:, 3] - boxes[:, 1])[:, None]).floor().long()
        x0, y0, x1, y1 = windows[:, :, None].unbind(1)
        inside = ((y >= y0) & (y < y1))[:, :, None] & ((x >= x0) & (x < x1))[:, None, :]
        index = starts[:, None, None] + ((y - y0) * (x1 - x0))[:, :, None] + (x - x0)[:, None, :]
        if len(masks.buffer) == 0:
            return boxes.new_zeros((len(boxes), side, side))
        on = masks.buffer[torch.where(inside, index, 0)] * inside  # (R, M·samples, M·samples)
        return on.reshape(len(boxes), side, samples, side, samples).to(torch.float32).mean(dim=(2, 4))

    def at(self, points: Tensor, rows: Tensor) -> Tensor:
        """Whether masks are on at points, False outside the image.

        Args:
            points: (x, y) px in the masks' frame, (R, 2).
            rows: which mask each point looks at, int64 (R,).

        Returns:
            bool (R,).
        """
        return self.coverage(torch.cat([points, points], dim=1), rows, side=1, samples=1).flatten() > 0

    def sample(self, size: tuple[int, int], *, step: int, first: tuple[int, int]) -> Tensor:
        """Every mask at regular pixels only: those at `first` + `step`·(i, j), row and column; off outside the image.

        Args:
            size: (h, w) of the answer.
            step: px from one sample to the next.
            first: (row, column) of the sample (0, 0).

        Returns:
            bool (N, h, w).
        """
        masks = self if not self.is_runs.any() else self._expanded(torch.arange(len(self)))
        answer = torch.zeros((len(masks), *size), dtype=torch.bool, device=masks.device)
        starts = masks.starts.tolist()
        places = []  # of the samples in the bitmaps, rows and columns
        for count, begin, kept, shown in zip(size, first, self.bitmap_size, self.image_size, strict=True):
            places.append(np.floor((begin + step * np.arange(count) + 0.5) * (kept / shown)).astype(np.int64))
        on_device = [torch.from_numpy(place).to(masks.device) for place in places]
        for i, (x0, y0, x1, y1) in enumerate(masks.windows.tolist()):
            crop = masks.buffer[starts[i] : starts[i + 1]].reshape(y1 - y0, x1 - x0)
            top, bottom = np.searchsorted(places[0], (y0, y1)).tolist()
            left, right = np.searchsorted(places[1], (x0, x1)).tolist()
            seen = crop[on_device[0][top:bottom] - y0][:, on_device[1][left:right] - x0]
            answer[i, top:bottom, left:right] = seen != 0
        return answer

    def padded_crops(self, rows: Tensor, size: tuple[int, int]) -> Tensor:
        """Bitmaps of some rows as they are kept, at the top left of a common size, bool (R, h, w); windows must not exceed it.

        Args:
            rows: int64 (R,).
            size: (h, w), px.
        """
        masks = self if not self.is_runs.any() else self._expanded(rows)
        windows = masks.windows[rows].long()
        y = torch.arange(size[0], device=masks.device)[None, :, None]
        x = torch.arange(size[1], device=masks.device)[None, None, :]
        width, height = (windows[:, 2:] - windows[:, :2])[:, :, None, None].unbind(1)
        inside = (y < height) & (x < width)
        if len(masks.buffer) == 0:
            return inside & False
        index = masks.starts[rows][:, None, None] + y * width + x
        return masks.buffer[torch.where(inside, index, 0)].to(torch.bool) & inside

    def _expanded(self, rows: Tensor) -> Masks:
        """The rows in use as bitmaps, whatever the budget; the others as nothing."""
        used = set(rows.tolist())
        nothing = (np.zeros((0, 0), dtype=bool), (0, 0, 0, 0))
        kept = [self._expand(*row) if i in used else nothing for i, row in enumerate(self._rows())]
        return Masks(
            image_size=self.image_size,
            windows=torch.tensor([window for _, window in kept], dtype=torch.int32).reshape(-1, 4),
            starts=torch.from_numpy(np.cumsum([0] + [crop.size for crop, _ in kept], dtype=np.int64)),
            buffer=torch.from_numpy(np.concatenate([crop.reshape(-1).view(np.uint8) for crop, _ in kept])),
            is_runs=torch.zeros(len(kept), dtype=torch.bool),
            bitmap_size=self.bitmap_size,
        ).to(self.device)


def _sources(low: int, high: int, scale: float, size: int) -> tuple[npt.NDArray[np.int64], int]:
    """Source pixels in [low, high) of the new pixels whose centres fall there, and the first such new pixel."""
    first = max(0, int(np.floor(low / scale)) - 1)
    last = min(size, int(np.ceil(high / scale)) + 1)
    new = np.arange(first, last)
    source = np.floor((new + 0.5) * scale).astype(np.int64)
    keep = (source >= low) & (source < high)
    kept = np.flatnonzero(keep)
    return source[keep], first + (int(kept[0]) if len(kept) else 0)
