"""How an image becomes pixels a network sees, and how answers find their way back.

Legend: B images · (H, W) the padded batch · (h, w) one image in the input frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.structures import boxes as box_functions
from maskwright.structures.instances import Instances

MIN_SIDE_PX = 32
"""Sides of a batch are no shorter: a network of stride 32 answers the smallest image with one cell."""


@dataclass(frozen=True)
class ResizeRule:
    """Scale so that the short side is `short_px`, unless the long side would exceed `long_px`; None keeps the size.

    `rounding` decides fractional sides: "half_up" is int(x + 0.5) (detectron2); "floor" is torchvision's, which makes 799 of
    800 where the division's last bit says so.
    """

    short_px: int | None
    long_px: int | None
    rounding: Literal["half_up", "floor"] = "half_up"
    antialias: bool = True

    def __post_init__(self) -> None:
        for name, value in (("short_px", self.short_px), ("long_px", self.long_px)):
            if value is not None and not (isinstance(value, int) and value > 0):
                raise ValueError(f"got {name}={value!r}, expected a number of pixels")

    def scale(self, image_size: tuple[int, int]) -> float:
        """Factor from the original to the input frame."""
        short, long = min(image_size), max(image_size)
        wanted = 1.0 if self.short_px is None else self.short_px / short
        return wanted if self.long_px is None else min(wanted, self.long_px / long)

    def size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) in the input frame; no side vanishes."""
        factor = self.scale(image_size)
        offset = 0.5 if self.rounding == "half_up" else 0.0
        return max(1, int(image_size[0] * factor + offset)), max(1, int(image_size[1] * factor + offset))


@dataclass(frozen=True)
class Intensity:
    """How 16-bit and float images become 8 bits; 8-bit images are left alone.

    "full": the whole range of the type, 0 … 65535, and 0 … 1 for float images. "window": `low` … `high` in the file's values.
    "percentile": the values at percentiles `low` and `high` of each image.
    """

    policy: Literal["full", "window", "percentile"] = "full"
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        given = self.low is not None and self.high is not None
        if (self.policy != "full") != given or (given and not self.low < self.high):  # type: ignore[operator]
            raise ValueError(
                f"got intensity {self.policy!r} with low={self.low}, high={self.high}: "
                "'full' takes none, 'window' and 'percentile' need low < high"
            )

    def __str__(self) -> str:
        return self.policy if self.policy == "full" else f"{self.policy} {self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class InputSpec:
    """How an image becomes pixels: saved with the run, applied by one function in training, evaluation and prediction.

    Args:
        resize: size in the input frame.
        channel_order: of the pixels the network sees.
        value_range: the value of full white: 1 or 255.
        mean, std: per channel, in the network's order and range.
        size_divisor: sides of a batch are padded to multiples of it, at the right and the bottom; None for systems that look at
            images of one size at a time, so that no padding is ever seen (`ImageBatch.alike`).
        intensity: policy for images of more than 8 bits.
    """

    resize: ResizeRule
    channel_order: Literal["rgb", "bgr"] = "rgb"
    value_range: Literal[1, 255] = 1
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # ImageNet
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    size_divisor: int | None = None
    intensity: Intensity = Intensity()

    def to_pixels(self, image: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Resize and normalize one image.

        Args:
            image: RGB (H, W, 3), uint8 or of the same range.
            size: (h, w) in the input frame; by default what the resize rule says.

        Returns:
            float32 (3, h, w).
        """
        pixels = image.permute(2, 0, 1)[None].to(torch.float32)
        wanted = self.resize.size((image.shape[0], image.shape[1])) if size is None else size
        if wanted != tuple(image.shape[:2]):
            pixels = F.interpolate(pixels, size=wanted, mode="bilinear", antialias=self.resize.antialias)
        pixels = pixels[0] * (self.value_range / 255)
        if self.channel_order == "bgr":
            pixels = pixels.flip(0)
        return (pixels - pixels.new_tensor(self.mean)[:, None, None]) / pixels.new_tensor(self.std)[:, None, None]

    def middle_gray(self) -> Tensor:
        """A pixel half way between black and white, as the network sees it, float32 (3,)."""
        return (torch.full((3,), self.value_range / 2) - torch.tensor(self.mean)) / torch.tensor(self.std)

    def convert(self, images: ImageBatch, source: InputSpec) -> ImageBatch:
        """Pixels that were made by another spec as this one would have made them; exact where that one kept the size."""
        plain = []
        for pixels, (height, width), original in zip(images.pixels, images.sizes, images.original_sizes, strict=True):
            mean, std = (pixels.new_tensor(v)[:, None, None] for v in (source.mean, source.std))
            values = (pixels[:, :height, :width] * std + mean) * (255 / source.value_range)
            rgb = values if source.channel_order == "rgb" else values.flip(0)
            plain.append(self.to_pixels(rgb.permute(1, 2, 0), self.resize.size(original)))
        return ImageBatch.collate(
            plain,
            original_sizes=images.original_sizes,
            size_divisor=self.size_divisor,
            keys=images.keys,
            proposals=images.proposals,
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON would hold it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> InputSpec:
        """What `to_dict` gave, after a trip through JSON."""
        return cls(
            **{
                **data,
                "resize": ResizeRule(**data["resize"]),
                "intensity": Intensity(**data["intensity"]),
                "mean": tuple(data["mean"]),
                "std": tuple(data["std"]),
            }
        )


@dataclass(frozen=True, eq=False)
class ImageBatch:
    """A batch in the input frame.

    Args:
        pixels: normalized, zero padded at the right and bottom, float32 (B, 3, H, W); no side is less than `MIN_SIDE_PX`.
        sizes: true (height, width) of each image inside the padding, input frame.
        original_sizes: (height, width) of each image as it is on disk, upright.
        keys: for each image a number that decides every random draw made for it (training).
        proposals: what detectors on proposals classify, original frame, so that masks stay as they were drawn.
        num_in_step: images that one step learns from, in this process; None where they are those of the batch. It matters to
            bounds on gradients, as losses are means over the step.
    """

    pixels: Tensor
    sizes: list[tuple[int, int]]
    original_sizes: list[tuple[int, int]]
    keys: list[int] | None = None
    proposals: list[Instances] | None = None
    num_in_step: int | None = None

    def __len__(self) -> int:
        return len(self.sizes)

    @classmethod
    def collate(
        cls,
        images: Sequence[Tensor],
        *,
        original_sizes: Sequence[tuple[int, int]],
        size_divisor: int | None,
        keys: Sequence[int] | None = None,
        proposals: Sequence[Instances] | None = None,
    ) -> ImageBatch:
        """Pad normalized images (3, h, w) into one batch, whose sides are multiples of `size_divisor`."""
        sizes = [(int(image.shape[1]), int(image.shape[2])) for image in images]
        longest = (max(MIN_SIDE_PX, *sides) for sides in zip(*sizes, strict=True))
        height, width = (-(-side // (size_divisor or 1)) * (size_divisor or 1) for side in longest)
        pixels = images[0].new_zeros((len(images), 3, height, width))
        for row, image, (h, w) in zip(pixels, images, sizes, strict=True):
            row[:, :h, :w] = image
        return cls(
            pixels=pixels,
            sizes=sizes,
            original_sizes=list(original_sizes),
            keys=None if keys is None else list(keys),
            proposals=None if proposals is None else list(proposals),
        )

    def alike(self) -> list[tuple[list[int], Self]]:
        """The batch in parts of one size each, whose padding is cut off, with the places of their images in the whole.

        A side of less than `MIN_SIDE_PX` stays padded to it.
        """
        groups: dict[tuple[int, int], list[int]] = {}
        for place, size in enumerate(self.sizes):
            groups.setdefault(size, []).append(place)
        count = self.num_in_step or len(self)
        parts = []
        for size, places in groups.items():
            height, width = (max(MIN_SIDE_PX, side) for side in size)
            rows = self.pixels if len(groups) == 1 else self.pixels[places]
            part = replace(
                self,
                pixels=rows[:, :, :height, :width],
                sizes=[size] * len(places),
                original_sizes=[self.original_sizes[i] for i in places],
                keys=None if self.keys is None else [self.keys[i] for i in places],
                proposals=None if self.proposals is None else [self.proposals[i] for i in places],
                num_in_step=count,
            )
            parts.append((places, part))
        return parts

    def to(self, device: torch.device | str) -> ImageBatch:
        """The same batch on another device."""
        proposals = None if self.proposals is None else [p.to(device) for p in self.proposals]
        return replace(self, pixels=self.pixels.to(device), proposals=proposals)

    def with_proposals(self, proposals: Sequence[Instances]) -> ImageBatch:
        """The same batch with proposals for each image, original frame."""
        return replace(self, proposals=list(proposals))

    def generators(self) -> list[torch.Generator]:
        """One random generator for each image: among images of one size, a draw does not depend on who shares the batch."""
        if self.keys is None:
            raise ValueError("this batch has no keys to draw random samples by: give ImageBatch(keys=...) for training")
        return [torch.Generator().manual_seed(key) for key in self.keys]

    def to_original_frame(self, detections: Sequence[Instances]) -> list[Instances]:
        """Boxes of each image from the input frame to the original one, cut to the image; masks are pasted after this."""
        return [
            replace(
                d,
                image_size=original,
                boxes=box_functions.clip(box_functions.scale(d.boxes, from_size=size, to_size=original), original),
            )
            for d, size, original in zip(detections, self.sizes, self.original_sizes, strict=True)
        ]
