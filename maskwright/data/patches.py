"""Windows cut around objects, and beside them: what DeepMask and SharpMask learn from.

Source: DeepMask (arXiv 1506.06204), sec. 3.3 and 4.1, and the authors' sampler. An object is canonical in a window when it is
centred and its longer side has a fixed length. Masks are learnt from windows close to that; scores from as many such windows
as from ones that show no object that way.

Legend: a window's octave is the base-2 logarithm of its scale, relative to the input frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils import data as torch_data

from maskwright.data.loader import Address, Batch, Row, key_of, padded_together
from maskwright.data.sample import InputSample
from maskwright.data.transforms import Transform
from maskwright.formats.dataset import Dataset
from maskwright.structures import InputSpec, PatchBatch, PatchGeometry, PatchKind
from maskwright.structures.rle import Window

JITTER_PX, JITTER_OCTAVES = 16.0, 0.25  # DeepMask, sec. 4.1: of positives, in px of the window
APART_PX, APART_OCTAVES = 32.0, 1.0  # DeepMask, sec. 4.1: from any canonical window, of negatives
_TRIES = 1000
_STEP = 0.25  # octaves; objects are drawn by their size in such steps


class Patch(NamedTuple):
    """Where a patch is cut: an image, a square window of it, and the object in the middle; -1 where there is none."""

    image: int
    object: int
    window: Window


class Objects:
    """Sizes and places of all objects of a data set, without decoding a mask.

    `teaching` are those that may teach a mask: no crowds, and not too small.

    Args:
        dataset: where they are.
        spec: how large an image is in the input frame.
        geometry: of windows.
        min_area_px: mask area from which an object may teach, original image (the code: 100).
        min_side_px: of its box, likewise (the code: 5).
    """

    def __init__(
        self, dataset: Dataset, spec: InputSpec, geometry: PatchGeometry, *, min_area_px: float, min_side_px: float
    ) -> None:
        columns = [dataset.columns(i) for i in range(len(dataset))]
        counts = [len(c.ids) for c in columns]
        self.dataset = dataset
        self.geometry = geometry
        self.starts = np.cumsum([0, *counts])
        self.image = np.repeat(np.arange(len(dataset)), counts)
        self.label = np.concatenate([c.labels for c in columns])
        self.is_crowd = np.concatenate([c.is_crowd for c in columns])
        boxes = np.concatenate([dataset.boxes(i) for i in range(len(dataset))]).astype(np.float64)
        sides = boxes[:, 2:] - boxes[:, :2]
        self.scale = np.array([spec.resize.scale(dataset.image_size(i)) for i in range(len(dataset))])  # to the input frame
        self.centre = (boxes[:, :2] + boxes[:, 2:]) / 2
        self.side = sides.max(axis=1, initial=0.0)
        self.octave = np.log2(geometry.object_px / np.maximum(self.side * self.scale[self.image], 1e-3))
        area = np.concatenate([c.areas for c in columns])
        teaches = ~self.is_crowd & (area >= min_area_px) & (sides.min(axis=1, initial=np.inf) >= min_side_px)
        self.teaching = np.flatnonzero(teaches)
        self.by_label = [self.teaching[self.label[self.teaching] == k] for k in np.unique(self.label[self.teaching])]
        self.by_image = _grouped(self.teaching, self.image[self.teaching])

    def of(self, image: int) -> slice:
        """The objects of an image."""
        return slice(int(self.starts[image]), int(self.starts[image + 1]))

    def patch(self, image: int, object: int, centre: npt.NDArray[np.float64], octave: float) -> Patch:
        """The patch around a point of an image (x, y) at an octave, its corners whole pixels."""
        side = self.geometry.input_px / (2**octave * self.scale[image])
        x, y = (round(float(c - side / 2)) for c in centre)
        length = max(1, round(side))
        return Patch(image, object, (x, y, x + length, y + length))


def _grouped(values: npt.NDArray[np.int64], groups: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """Values of each group there is, in order of the groups."""
    order = np.argsort(groups, kind="stable")
    return np.split(values[order], np.flatnonzero(np.diff(groups[order])) + 1)


class PatchSampler(Protocol):
    """Who decides where a patch is cut."""

    objects: Objects

    def mask(self, generator: torch.Generator) -> Patch:
        """One that teaches a mask."""

    def score(self, generator: torch.Generator) -> Patch:
        """One that teaches whether there is an object, with or without one alike often."""


class PaperSampler:
    """Positives close to canonical; negatives at least 32 px or an octave from any (DeepMask, sec. 4.1)."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects

    def mask(self, generator: torch.Generator) -> Patch:
        """An object of a class drawn first, so that rare classes are seen as often (the code)."""
        return self._around(_drawn(_one(self.objects.by_label, generator), generator), generator)

    def score(self, generator: torch.Generator) -> Patch:
        """With an object: of an image, a size, then an object drawn, each evenly; without: anywhere that is far from all."""
        if float(torch.rand((), generator=generator)) < 0.5:
            return self._around(self._evenly_by_size(generator), generator)
        for _ in range(_TRIES):
            image, centre, octave = self._anywhere(generator)
            if self._is_negative(image, centre, octave):
                return self.objects.patch(image, -1, centre, octave)
        raise ValueError(
            f"{self.objects.dataset.path}: found no window far from all objects in {_TRIES} tries: its images are too full"
        )

    def _around(self, object: int, generator: torch.Generator) -> Patch:
        """A window off the canonical one by up to 16 px and a quarter of an octave."""
        o = self.objects
        octave = float(o.octave[object]) + JITTER_OCTAVES * float(_symmetric(1, generator)[0])
        image = int(o.image[object])
        shift = JITTER_PX * _symmetric(2, generator) / (2**octave * o.scale[image])
        return o.patch(image, object, o.centre[object] + shift, octave)

    def _evenly_by_size(self, generator: torch.Generator) -> int:
        there = _one(self.objects.by_image, generator)
        sizes = np.floor(self.objects.octave[there] / _STEP).astype(np.int64)
        return _drawn(_one(_grouped(there, sizes), generator), generator)

    def _anywhere(self, generator: torch.Generator) -> tuple[int, npt.NDArray[np.float64], float]:
        """An image, a point of it and an octave."""
        o = self.objects
        image = int(torch.randint(len(o.dataset), (), generator=generator))
        low, high = o.geometry.octaves
        x, y, octave = torch.rand(3, dtype=torch.float64, generator=generator).tolist()
        height, width = o.dataset.image_size(image)
        return image, np.array([x * width, y * height]), low + (high - low) * octave

    def _is_negative(self, image: int, centre: npt.NDArray[np.float64], octave: float) -> bool:
        """Whether no object is nearly canonical, and the window's middle is in no crowd, which may hide some."""
        o = self.objects
        rows = o.of(image)
        distance = np.linalg.norm(o.centre[rows] - centre, axis=1) * 2**octave * o.scale[image]
        far = (np.abs(o.octave[rows] - octave) >= APART_OCTAVES) | (distance >= APART_PX)
        crowd = o.is_crowd[rows] & (np.abs(o.centre[rows] - centre).max(axis=1) < o.side[rows] / 2)
        return bool(far.all()) and not bool(crowd.any())


class OfficialSampler(PaperSampler):
    """Scores as in the authors' code: positives exactly centred at scales of quarter octaves, negatives 48 px from them.

    Its distances are kept as they are: each object's centre is taken at its own scale, whatever the window's. It knows
    windows close to canonical ones of the next scale as negatives.
    """

    CLOSE_PX, CLOSE_STEPS, TRIES = 48.0, 10, 100

    def __init__(self, objects: Objects) -> None:
        super().__init__(objects)
        self.octaves = _STEP * -(np.ceil(objects.octave / -_STEP) - 1)  # so large that the object just exceeds its size

    def score(self, generator: torch.Generator) -> Patch:
        """As the code draws it; after a hundred windows that are too close, the last one."""
        o = self.objects
        if float(torch.rand((), generator=generator)) < 0.5:
            there = _one(o.by_image, generator)
            row = _drawn(_one(_grouped(there, (self.octaves[there] / _STEP).astype(np.int64)), generator), generator)
            return o.patch(int(o.image[row]), row, o.centre[row], float(self.octaves[row]))
        image = int(o.image[_one(o.by_image, generator)[0]])  # images without objects are never looked at
        rows, (height, width) = o.of(image), o.dataset.image_size(image)
        low, high = (round(octave / _STEP) for octave in o.geometry.octaves)
        for _ in range(self.TRIES):
            octave = _STEP * int(torch.randint(low, high + 1, (), generator=generator))
            factor = 2**octave * o.scale[image]
            x, y = (int(torch.randint(max(1, round(n * factor)), (), generator=generator)) for n in (width, height))
            own = o.centre[rows] * (2 ** self.octaves[rows] * o.scale[image])[:, None]
            close = np.linalg.norm(own - (x, y), axis=1) < self.CLOSE_PX
            if not (close & (np.abs(self.octaves[rows] - octave) <= self.CLOSE_STEPS * _STEP)).any():
                break
        return o.patch(image, -1, np.array([x, y]) / factor, octave)


SAMPLERS: dict[Literal["paper", "official"], type[PaperSampler]] = {"paper": PaperSampler, "official": OfficialSampler}


def _one(groups: Sequence[npt.NDArray[np.int64]], generator: torch.Generator) -> npt.NDArray[np.int64]:
    return groups[int(torch.randint(len(groups), (), generator=generator))]


def _drawn(values: npt.NDArray[np.int64], generator: torch.Generator) -> int:
    return int(values[int(torch.randint(len(values), (), generator=generator))])


def _symmetric(count: int, generator: torch.Generator) -> npt.NDArray[np.float64]:
    """Even draws from -1 to 1."""
    return (2 * torch.rand(count, dtype=torch.float64, generator=generator) - 1).numpy()


@dataclass(frozen=True)
class PatchAugmentation:
    """What is done to patches: colors before gray is added around the image, mirroring after."""

    color: Transform
    geometry: Transform


class TrainingPatches(torch_data.Dataset[Row | str]):
    """Patches of a data set; every batch is of one kind.

    Args:
        kinds: share of batches of each kind.
        num_batches: in an epoch.
        batch_size: patches in a batch.
        seed: of all draws.
    """

    def __init__(
        self,
        sampler: PatchSampler,
        *,
        spec: InputSpec,
        augment: PatchAugmentation,
        kinds: dict[PatchKind, float],
        num_batches: int,
        batch_size: int,
        seed: int,
    ) -> None:
        self.sampler = sampler
        self.dataset = sampler.objects.dataset
        self.spec = spec
        self.augment = augment
        self.kinds = kinds
        self.num_batches = num_batches
        self.batch_size = batch_size
        self.seed = seed

    def __len__(self) -> int:
        return self.num_batches * self.batch_size

    def batches(self, epoch: int) -> list[list[int]]:
        """Numbers of the patches of each batch of an epoch."""
        return [list(range(i * self.batch_size, (i + 1) * self.batch_size)) for i in range(self.num_batches)]

    def kind_of(self, epoch: int, batch: int) -> PatchKind:
        """What a batch teaches."""
        generator = torch.Generator().manual_seed(key_of(self.seed, epoch, -1 - batch))
        shares = torch.tensor(list(self.kinds.values()), dtype=torch.float64)
        return list(self.kinds)[int(torch.multinomial(shares, 1, generator=generator))]

    def __getitem__(self, address: Address) -> Row | str:
        kind = self.kind_of(address.epoch, address.index // self.batch_size)
        key = key_of(self.seed, address.epoch, address.index)
        generator = torch.Generator().manual_seed(key_of(key, 0, 0))  # not the system's: its dropout would know the label
        try:  # a worker's exceptions reach the user wrapped in its traceback; a message does not
            patch = self.sampler.score(generator) if kind == "score" else self.sampler.mask(generator)
            sample = self.read(patch, generator)
        except ValueError as error:
            return str(error)
        side = self.sampler.objects.geometry.input_px
        pixels = self.spec.to_pixels(sample.image, (side, side))
        # However thin it is in the patch, the object stays: whether it is there is what a score is taught by.
        size, objects = sample.instances.image_size, sample.instances.resize((side, side))
        return Row(sample.id, sample.name, size, None, pixels, objects, key, address.weight, kind)

    def read(self, patch: Patch, generator: torch.Generator) -> InputSample:
        """A patch with its object; what lies outside the image is middle gray."""
        first = self.sampler.objects.starts[patch.image]
        rows = slice(patch.object - first, patch.object - first + 1) if patch.object >= 0 else slice(0, 0)
        whole = InputSample.of(self.dataset.read(patch.image, self.spec.intensity, rows=rows))
        colored = self.augment.color(replace(whole, image=_overlap(whole.image, patch.window)), generator)
        image = _surrounded(colored.image, patch.window)
        cut = replace(whole, image=image, instances=whole.instances.crop(patch.window))
        return self.augment.geometry(cut, generator)

    def collate(self, answers: Sequence[Row | str]) -> Batch | str:
        """A batch of patches; or the message of one that could not be read."""
        batch = padded_together(answers, self.spec)
        if isinstance(batch, str):
            return batch
        kind = next(answer.kind for answer in answers if not isinstance(answer, str))
        assert kind is not None
        return replace(batch, images=PatchBatch.of(batch.images, kind))


def _overlap(image: Tensor, window: Window) -> Tensor:
    """The part of an image (H, W, 3) inside a window."""
    x0, y0, x1, y1 = (max(0, v) for v in window)
    return image[y0:y1, x0:x1]


def _surrounded(inside: Tensor, window: Window) -> Tensor:
    """The pixels of a window, float32 (h, w, 3) in 0 … 255, from those of its part inside the image."""
    x0, y0, x1, y1 = window
    whole = torch.full((y1 - y0, x1 - x0, 3), 127.5)
    top, left = max(0, -y0), max(0, -x0)
    whole[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return whole
