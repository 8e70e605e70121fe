"""Windows of one size, cut around objects: what DeepMask and its kin learn from (DeepMask, sec. 3 and 4).

Legend: W side of the window a mask is predicted for · s scale of an image, 2^octave.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from maskwright.structures.images import ImageBatch

PatchKind = Literal["mask", "score", "refined"]
"""What a patch teaches: its object's mask, whether it holds an object at all, or the mask's fine shape (SharpMask)."""


@dataclass(frozen=True)
class PatchGeometry:
    """How large windows and the objects in them are, in px of the image at the window's scale.

    Args:
        window_px: side of the window a mask and a score are predicted for, W.
        context_px: further pixels on each side that the network sees in training.
        object_px: longer side of an object in its canonical window.
        octaves: base-2 logarithms of the smallest and largest scale at which windows are looked at.
    """

    window_px: int
    context_px: int
    object_px: int
    octaves: tuple[float, float]

    @property
    def input_px(self) -> int:
        """Side of a patch as the network sees it in training."""
        return self.window_px + 2 * self.context_px

    @property
    def window(self) -> tuple[int, int, int, int]:
        """The window within the patch, x0, y0, x1, y1."""
        low, high = self.context_px, self.context_px + self.window_px
        return low, low, high, high


@dataclass(frozen=True, eq=False)
class PatchBatch(ImageBatch):
    """Patches as the images of a batch, all of one kind.

    Targets hold the object of a patch in the patch's frame: exactly one for masks; one or, in a negative window, none for
    scores.

    Args:
        kind: what they teach.
    """

    kind: PatchKind = "mask"

    @classmethod
    def of(cls, images: ImageBatch, kind: PatchKind) -> "PatchBatch":
        """A batch of images as patches."""
        return cls(**vars(images), kind=kind)


STEP = 0.5  # octaves between neighbouring scales (DeepMask, sec. 4: 2^½)
REACH = 0.25  # octaves by which an object may differ from its canonical size (likewise: its jitter)


def octaves_for(sides_px: Sequence[float], *, object_px: int) -> tuple[float, ...]:
    """Octaves of an image pyramid that shows most objects near their canonical size, ascending, multiples of `STEP`.

    Args:
        sides_px: longer sides of the objects of a data set, original images; the middle 95 of 100 decide.
        object_px: longer side of an object in its canonical window.

    Raises:
        ValueError: there are no objects.
    """
    if not len(sides_px):
        raise ValueError("there are no objects to choose the scales of the pyramid from: give arguments.octaves")
    ideal = sorted(math.log2(object_px / max(side, 1.0)) for side in sides_px)
    cut = int(0.025 * len(ideal))
    low, high = ideal[cut], ideal[len(ideal) - 1 - cut]
    first, last = math.ceil((low - REACH) / STEP), math.floor((high + REACH) / STEP)
    if last < first:  # all objects of one size, between two steps
        first = last = round((low + high) / 2 / STEP)
    return tuple(STEP * i for i in range(first, last + 1))
