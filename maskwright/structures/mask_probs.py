"""What a mask head answers: probabilities on a grid laid over a window, before they become masks.

Mask R-CNN, DeepMask, MNC and EmbedMask all end here: `paste` draws N grids into one image without an (N, H, W) tensor.

Legend: N objects · M side of a grid · (H, W) the image's size · (h, w) the pixels of one window.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from maskwright.structures.masks import Masks
from maskwright.structures.rle import Bitmap, Window

Grid = npt.NDArray[np.float32]
Corners = npt.NDArray[np.float64]

_CHUNK_PX = 4 * 2**20  # pixels interpolated at a time: float32 a large mask never exists whole in float32


class _Grids:
    """Numbers on grids that are laid over windows of an image."""

    def __init__(self, grids: Tensor | Sequence[Tensor], boxes: Tensor) -> None:
        if len(grids) != len(boxes) or boxes.shape != (len(boxes), 4):
            raise ValueError(f"got {len(grids)} grids and boxes {tuple(boxes.shape)}, expected one box (4,) for each grid")
        self.grids = grids
        self.boxes = boxes

    def __len__(self) -> int:
        return len(self.boxes)

    def paste(self, image_size: tuple[int, int], threshold: float = 0.5) -> Masks:
        """Draw each grid into its window at the resolution of the image (Mask R-CNN, sec. 3.1, inference).

        A pixel is on when the number interpolated bilinearly at its centre reaches the threshold. Only the part of a window
        inside the image is computed and stored.

        Args:
            image_size: (height, width), px.
            threshold: of probabilities over 0; of logits any number.

        Returns:
            N masks; an object wholly outside the image keeps its row with area 0.
        """
        boxes = self.boxes.detach().cpu().to(torch.float64).numpy()

        def drawn(grid: Grid, box: Corners) -> tuple[Bitmap, Window]:
            window = _pixels_inside(box, image_size)
            return self._sample(grid, box, window, threshold), window

        return Masks.from_crops((drawn(grid, box) for grid, box in zip(self._arrays(), boxes, strict=True)), image_size)

    def _sample(self, grid: Grid, box: Corners, window: Window, threshold: float) -> Bitmap:
        """Where the grid reaches the threshold in the window, in stretches of rows that fit the memory budget."""
        x0, y0, x1, y1 = window
        rows = max(1, _CHUNK_PX // max(1, x1 - x0))
        pieces = [
            self._interpolate(grid, box, (x0, top, x1, min(top + rows, y1))) >= threshold
            for top in range(y0, max(y1, y0 + 1), rows)
        ]
        return np.concatenate(pieces)

    def _interpolate(self, grid: Grid, box: Corners, window: Window) -> Grid:
        """The grid stretched over the box, bilinear, at the pixel centres of the window."""
        x0, y0, x1, y1 = window
        down = self._weights(np.arange(y0, y1), box[1], box[3], grid.shape[0])
        across = self._weights(np.arange(x0, x1), box[0], box[2], grid.shape[1])
        stretched: Grid = (down @ grid @ across.T).astype(np.float32, copy=False)
        return stretched

    def _weights(self, pixels: npt.NDArray[np.int64], low: float, high: float, cells: int) -> Grid:
        """What each cell of an axis counts at pixels, (pixels, cells): nothing lies outside the grid."""
        return _hats((pixels + 0.5 - low) / max(high - low, 1e-12) * cells - 0.5, cells)

    def _arrays(self) -> list[Grid]:
        if isinstance(self.grids, Tensor):
            return list(self.grids.detach().to("cpu", torch.float32).numpy())
        return [grid.detach().to("cpu", torch.float32).numpy() for grid in self.grids]


def certainty(probs: Tensor, inside: Tensor) -> Tensor:
    """Mean probability of the cells of each mask, 0 where it has none: how sure a network is of what it drew.

    The better a mask fits, the surer it is, as a rule: SOLO's code ranks its answers so, too (there: maskness).

    Args:
        probs: in [0, 1], (N, …).
        inside: the cells that belong to the mask, bool (N, …).

    Returns:
        (N,).
    """
    cells = inside.flatten(1).to(probs.dtype)
    return (probs.flatten(1) * cells).sum(dim=1) / cells.sum(dim=1).clamp(min=1)


class MaskProbs(_Grids):
    """Mask probabilities with their windows; they fall to 0 outside, from a half cell inside on.

    Args:
        grids: (N, M, M), or a list of N tensors (m, n) where sizes differ.
        boxes: the windows the grids are stretched over, xyxy px, (N, 4); may stick out of the image.
    """


class MaskTiles(_Grids):
    """Mask logits or probabilities with their windows; to the end of the window a grid goes on as it is at its edge.

    Args:
        grids: (N, M, M), or a list of N tensors (m, n) where sizes differ.
        boxes: the windows the grids are stretched over, xyxy px, (N, 4); may stick out of the image.
    """

    def _weights(self, pixels: npt.NDArray[np.int64], low: float, high: float, cells: int) -> Grid:
        position = (pixels + 0.5 - low) / max(high - low, 1e-12) * cells - 0.5
        return _hats(np.clip(position, 0, cells - 1), cells)

    def vote(self, groups: Sequence[Tensor], weights: Tensor, image_size: tuple[int, int], threshold: float) -> Masks:
        """Average the probabilities of each group before thresholding (MNC, sec. 6, mask voting).

        Args:
            groups: for each answer the rows that vote, int64 (n,), at least one.
            weights: what each of them counts, one row for each answer (A, N), not negative; normalized within the group.
            image_size: (height, width), px.
            threshold: from which mean on a pixel is on; outside its window a row says 0.

        Returns:
            One mask for each group.

        Raises:
            ValueError: a group whose weights add up to nothing.
        """
        grids, corners = self._arrays(), self.boxes.detach().cpu().to(torch.float64).numpy()
        windows = np.array([_pixels_inside(box, image_size) for box in corners], dtype=np.int64).reshape(-1, 4)
        rows_of = [voters.cpu().numpy() for voters in groups]
        last = {int(row): number for number, rows in enumerate(rows_of) for row in rows}
        drawn: dict[int, Grid] = {}  # rows take part in many groups: drawn once, and kept as long as they are needed

        def mean(number: int, votes: npt.NDArray[np.float32]) -> tuple[Bitmap, Window]:
            rows = rows_of[number]
            whole = votes[rows].sum()
            if not whole > 0:
                raise ValueError(f"weights {votes[rows].tolist()} of a group add up to nothing: give at least one row a say")
            left, top = windows[rows, :2].min(axis=0).tolist()
            right, bottom = windows[rows, 2:].max(axis=0).tolist()
            total: Grid = np.zeros((bottom - top, right - left), dtype=np.float32)
            for row in rows.tolist():
                x0, y0, x1, y1 = windows[row].tolist()
                if row not in drawn:
                    drawn[row] = self._interpolate(grids[row], corners[row], (x0, y0, x1, y1))
                values = drawn.pop(row) if last[row] == number else drawn[row]
                total[y0 - top : y1 - top, x0 - left : x1 - left] += np.float32(votes[row] / whole) * values
            return total >= threshold, (left, top, right, bottom)

        counts = weights.detach().cpu().to(torch.float32).numpy()
        return Masks.from_crops((mean(number, counts[number]) for number in range(len(rows_of))), image_size)


def _pixels_inside(box: Corners, image_size: tuple[int, int]) -> Window:
    """Pixels of the image whose centres lie in the box."""
    height, width = image_size
    x0, y0 = (min(max(int(v), 0), size) for v, size in zip(np.ceil(box[:2] - 0.5), (width, height), strict=True))
    x1, y1 = (min(max(int(v), 0), size) for v, size in zip(np.floor(box[2:] - 0.5) + 1, (width, height), strict=True))
    return x0, y0, max(x0, x1), max(y0, y1)


def _hats(position: npt.NDArray[np.floating[Any]], cells: int) -> Grid:
    """Bilinear weights of cells at positions, counted from the middle of the first cell: (P,) → (P, cells)."""
    weights = 1 - np.abs(position[:, None] - np.arange(cells))
    hats: Grid = np.maximum(weights, 0).astype(np.float32)
    return hats
