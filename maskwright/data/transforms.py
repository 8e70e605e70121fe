"""Augmentation: image and instances move together.

Every transform takes an `InputSample` in the original frame and a random generator, and returns one. None of them resizes
pixels: a scale is a window of the image and the size it shall have in the input frame, and `InputSpec` does the resizing,
once. Colors are left to torchvision.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torchvision.transforms import v2

from maskwright.data.sample import InputSample
from maskwright.structures import Instances, KeypointSchema, ResizeRule
from maskwright.structures.rle import Window


class Transform(Protocol):
    """One step of an augmentation."""

    def __call__(self, sample: InputSample, generator: torch.Generator) -> InputSample:
        """The changed sample; the same generator state gives the same change."""


def _uniform(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


@dataclass(frozen=True)
class Flip:
    """Mirror left-right, or top-bottom, with probability `p`."""

    p: float = 0.5
    horizontal: bool = True
    schema: KeypointSchema | None = None

    def __call__(self, sample: InputSample, generator: torch.Generator) -> InputSample:
        """Mirror, or not."""
        if _uniform(generator, 0, 1) >= self.p:
            return sample
        moved = sample.moved(lambda objects: objects.flip(horizontal=self.horizontal, schema=self.schema))
        return replace(moved, image=sample.image.flip(1 if self.horizontal else 0))


@dataclass(frozen=True)
class ShortSide:
    """Draw the short side in the input frame from a list (Mask R-CNN, app. B: scale augmentation)."""

    choices: Sequence[int]
    rule: ResizeRule

    def __call__(self, sample: InputSample, generator: torch.Generator) -> InputSample:
        """Choose the size in the input frame, by the rule of the system's input but for the short side."""
        short = self.choices[int(torch.randint(len(self.choices), (), generator=generator))]
        return replace(sample, input_size=replace(self.rule, short_px=short).size(sample.instances.image_size))


@dataclass(frozen=True)
class ScaleJitterCrop:
    """Scale at random around the input's own scale, then cut a window of at most `crop_px`.

    With a rule of long side `crop_px` and factors from 0.1 to 2 on a linear axis it is large-scale jitter (Ghiasi et al.,
    Simple Copy-Paste, CVPR 2021), but for padding, which is left to the batch: what lies beside a small image is not of it.

    Args:
        rule: the resize rule of the system's input, scale 1 of the jitter.
        crop_px: side of the window in the input frame; smaller images are taken whole.
        low, high: factors the scale is drawn between.
        axis: that on which they are drawn evenly.
    """

    rule: ResizeRule
    crop_px: int
    low: float
    high: float
    axis: Literal["log", "linear"] = "log"

    def __call__(self, sample: InputSample, generator: torch.Generator) -> InputSample:
        """Choose a scale and cut a window."""
        height, width = sample.instances.image_size
        scale = self.rule.scale((height, width)) * self._factor(generator)
        side = max(1, round(self.crop_px / scale))
        h, w = min(side, height), min(side, width)
        top = int(torch.randint(height - h + 1, (), generator=generator))
        left = int(torch.randint(width - w + 1, (), generator=generator))
        cut = crop(sample, (left, top, left + w, top + h))
        input_size = (min(max(1, round(h * scale)), self.crop_px), min(max(1, round(w * scale)), self.crop_px))
        return replace(cut, input_size=input_size)

    def _factor(self, generator: torch.Generator) -> float:
        if self.axis == "linear":
            return _uniform(generator, self.low, self.high)
        return math.exp(_uniform(generator, math.log(self.low), math.log(self.high)))


@dataclass(frozen=True)
class Transpose:
    """Mirror at the diagonal with probability `p`; with both flips this gives all quarter turns, for images without an up."""

    p: float = 0.5

    def __call__(self, sample: InputSample, generator: torch.Generator) -> InputSample:
        """Transpose, or not."""
        if _uniform(generator, 0, 1) >= self.p:
            return sample
        size = None if sample.input_size is None else (sample.input_size[1], sample.input_size[0])
        return replace(sample.moved(Instances.transpose), image=sample.image.transpose(0, 1), input_size=size)


class ColorJitter:
    """Brightness, contrast and saturation by torchvision, all of them or none, with probability `p`."""

    def __init__(self, *, brightness: float, contrast: float, saturation: float, p: float = 0.8) -> None:
        self.p = p
        self._jitter = v2.ColorJitter(brightness=brightness, contrast=contrast, saturation=saturation)

    def __call__(self, sample: InputSample, generator: torch.Generator) -> InputSample:
        """Change the colors, or not."""
        if _uniform(generator, 0, 1) >= self.p:
            return sample
        seed = int(torch.randint(2**31, (), generator=generator))
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
            torch.manual_seed(seed)
            image = self._jitter(sample.image.permute(2, 0, 1)).permute(1, 2, 0)
        return replace(sample, image=image)


@dataclass(frozen=True)
class Compose:
    """One transform after the other."""

    steps: Sequence[Transform]

    def __call__(self, sample: InputSample, generator: torch.Generator) -> InputSample:
        """Apply every step."""
        for step in self.steps:
            sample = step(sample, generator)
        return sample


def crop(sample: InputSample, window: Window) -> InputSample:
    """Cut image and instances to x0, y0, x1, y1."""
    x0, y0, x1, y1 = window
    return replace(sample.moved(lambda objects: objects.crop(window)), image=sample.image[y0:y1, x0:x1])


def drop_unseen(instances: Instances) -> Instances:
    """Without objects that have no pixel left in the input frame."""
    if instances.masks is None:
        return instances
    return instances[instances.masks.areas() > 0]
