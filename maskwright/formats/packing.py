"""Masks as they were annotated, in bytes: polygons or run lengths, exact, and drawn only when an image is looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from maskwright.structures import Masks, rle

Ring = npt.NDArray[np.float64]
"""Corners of a polygon, (V, 2), x and y in px."""


class Form(IntEnum):
    """What the bytes of a mask are."""

    NOTHING = 0
    WHOLE = 1  # corners in int16
    HUNDREDTHS = 2  # of a px: corners in int32; / 100 gives the same float64, and most tools write two decimals
    FLOATS = 3  # corners in float64
    COUNTS = 4  # run lengths in int32, as they stood
    TEXT = 5  # run lengths in their compressed form


_STEPS: dict[Form, tuple[type[np.signedinteger[Any]], int]] = {
    Form.WHOLE: (np.int16, 1),
    Form.HUNDREDTHS: (np.int32, 100),
}
"""Of the forms that count corners in steps: the type of a number, and steps in a px."""


@dataclass(frozen=True, slots=True)
class PackedMask:
    """One mask, made by what checks it; polygons begin with the number of rings and the corners of each, int32."""

    form: Form
    data: bytes

    @classmethod
    def of_rings(cls, rings: Sequence[Ring]) -> PackedMask:
        """From the outlines of an object's parts."""
        head = np.array([len(rings), *(len(ring) for ring in rings)], dtype=np.int32).tobytes()
        corners = np.concatenate(rings) if len(rings) > 1 else rings[0]
        for form, (kind, steps) in _STEPS.items():
            counted = np.rint(corners * steps)
            if np.abs(counted).max() <= np.iinfo(kind).max and (counted / steps == corners).all():
                return cls(form, head + counted.astype(kind).tobytes())
        return cls(Form.FLOATS, head + corners.tobytes())

    @classmethod
    def of_counts(cls, counts: rle.Ints) -> PackedMask:
        """From run lengths that add up to the image."""
        return cls(Form.COUNTS, counts.astype(np.int32).tobytes())

    @classmethod
    def of_text(cls, text: str | bytes) -> PackedMask:
        """From compressed run lengths."""
        return cls(Form.TEXT, text.encode() if isinstance(text, str) else text)

    @classmethod
    def of_runs(cls, runs: rle.Runs, size: tuple[int, int]) -> PackedMask:
        """From runs of pixels of an image of (height, width)."""
        return cls.of_text(rle.counts_to_string(rle.runs_to_counts(runs, size)))

    @property
    def rings(self) -> list[Ring] | None:
        """The outlines as they were given; None of run lengths."""
        if self.form not in (*_STEPS, Form.FLOATS):
            return None
        count = int(np.frombuffer(self.data, dtype=np.int32, count=1)[0])
        lengths = np.frombuffer(self.data, dtype=np.int32, count=count, offset=4)
        begin = 4 * (count + 1)
        if self.form in _STEPS:
            kind, steps = _STEPS[self.form]
            flat = np.frombuffer(self.data, dtype=kind, offset=begin) / steps
        else:
            flat = np.frombuffer(self.data, dtype=np.float64, offset=begin)
        return np.split(flat.reshape(-1, 2), np.cumsum(lengths)[:-1])

    @property
    def counts(self) -> list[int] | str | None:
        """The run lengths as they were given, listed or compressed; None of polygons."""
        if self.form == Form.COUNTS:
            listed: list[int] = np.frombuffer(self.data, dtype=np.int32).tolist()
            return listed
        return self.data.decode() if self.form == Form.TEXT else None

    def runs(self, size: tuple[int, int]) -> rle.Runs:
        """The pixels in an image of (height, width)."""
        if self.form == Form.TEXT:
            return rle.counts_to_runs(rle.counts_from_string(self.data))
        if self.form == Form.COUNTS:
            return rle.counts_to_runs(np.frombuffer(self.data, dtype=np.int32).astype(np.int64))
        return rle.runs_from_polygons([ring.reshape(-1).tolist() for ring in self.rings or []], size)

    def to_rle(self, size: tuple[int, int]) -> dict[str, Any]:
        """Run lengths with the size of the image, as evaluators take them; polygons are drawn."""
        if self.counts is not None:
            return {"size": list(size), "counts": self.counts}
        return Masks.from_runs([self.runs(size)], size).to_rles()[0]


@dataclass(frozen=True, eq=False)
class PackedMasks:
    """Masks one after the other: row i holds data[starts[i] : starts[i + 1]] in the form forms[i]."""

    forms: npt.NDArray[np.uint8]
    starts: npt.NDArray[np.int64]
    data: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.forms)

    def __getitem__(self, row: int) -> PackedMask:
        return PackedMask(Form(int(self.forms[row])), self.data[self.starts[row] : self.starts[row + 1]].tobytes())

    @property
    def exists(self) -> npt.NDArray[np.bool_]:
        """Which rows have a mask, (N,)."""
        exists: npt.NDArray[np.bool_] = self.forms != Form.NOTHING
        return exists

    def take(self, rows: npt.NDArray[np.int64]) -> PackedMasks:
        """Some rows."""
        pieces = [self.data[self.starts[row] : self.starts[row + 1]] for row in rows]
        return PackedMasks(
            forms=self.forms[rows],
            starts=np.cumsum([0, *np.diff(self.starts)[rows]]),
            data=np.concatenate(pieces) if pieces else np.empty(0, dtype=np.uint8),
        )
