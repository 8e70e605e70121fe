"""Sizes: what one network of a family has that another has not, as one frozen value each.

A family declares its numbers and choices once, as the fields of a dataclass: type, bounds, and a line about each. The published
sizes, the small ones and every rival are values of it; a variant is `replace(SMALL, roi="pool")`. `Sized` makes a builder of a
value, whose fields are the arguments that recipes, runs and `--set` know. A network never sees the value, only the parts that
the family's build function makes of it.
"""

import inspect
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Annotated, Any, Generic, TypeVar, dataclass_transform, get_type_hints

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from maskwright.layers.backbones import Origin, pixels_of
from maskwright.structures import InputSpec, ResizeRule
from maskwright.systems.system import System

Count = Annotated[int, Field(gt=0)]
Whole = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""How many, or how large: one at least, or perhaps none; shares and scores; numbers that are not negative."""

Strides = Annotated[tuple[Count, ...], Field(min_length=1)]
"""Of maps, px from cell to cell, finest first."""

LITE_BACKBONE = "tf_efficientnet_lite0"
"""Of all lite sizes: EfficientNet-Lite0, whose ImageNet weights come with the package."""

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def size_class(cls: type[T]) -> type[T]:
    """Make a dataclass of sizes: frozen, fields given by name and checked, described by the text below them."""
    config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    made: Any = dataclass(frozen=True, kw_only=True, config=config)(cls)
    return made  # type: ignore[no-any-return]


@size_class
class Size:
    """What sizes of all families decide."""

    summary: str
    """What it is, in a line; no argument."""
    backbone: str
    """timm's name of the feature network."""
    short_px: Count | None
    """Shorter side of the input, px; null keeps the image's size."""
    long_px: Count | None
    """Longer side of the input at most, px; null sets no bound."""
    size_divisor: Count | None = None
    """Sides of a batch are padded to multiples of it; null pads nothing: images of unlike sizes are looked at apart."""
    max_detections: Count
    """Objects answered for an image at most."""
    score_threshold: Share
    """Scores up to it are not answered."""

    def input(self) -> InputSpec:
        """How an image becomes pixels: those that the backbone's weights expect."""
        resize = ResizeRule(self.short_px, self.long_px)
        return InputSpec(resize, size_divisor=self.size_divisor, **pixels_of(self.backbone))

    @classmethod
    def descriptions(cls) -> dict[str, str]:
        """What stands below each field, in the class or the nearest above it."""
        described: dict[str, str] = {}
        for part in reversed(cls.__mro__):
            for name, field in getattr(part, "__pydantic_fields__", {}).items():
                described[name] = field.description or described.get(name, "")
        return described


@size_class
class OriginSize(Size):
    """What sizes decide whose backbone may be one of several groups'."""

    weights_origin: Origin = "timm"
    """Whose weights the backbone is for: decides pixels, strides and the norms' eps."""

    def input(self) -> InputSpec:
        """How an image becomes pixels: those that the backbone's weights expect."""
        return replace(super().input(), **pixels_of(self.backbone, self.weights_origin))


@size_class
class TorchvisionInputSize(Size):
    """What sizes with torchvision's parts decide: images are resized and padded as there."""

    size_divisor: Count | None = 32
    """Sides of a batch are padded to multiples of it, which norms and all other parts see, as there."""

    def input(self) -> InputSpec:
        """How an image becomes pixels."""
        resize = ResizeRule(self.short_px, self.long_px, rounding="floor", antialias=False)
        return replace(super().input(), resize=resize)


S = TypeVar("S", bound=Size)


class Sized(Generic[S]):
    """Builds a family's network at one size: `builder(num_classes=3, short_px=640)`.

    Its signature names the fields of the size, for `inspect.signature` as for people, with bounds and defaults.

    Args:
        build: the network of a size and a number of classes.
        size: its fields are the defaults of the arguments.
    """

    def __init__(self, build: Callable[[S, int], System], size: S) -> None:
        self.build = build
        self.size = size
        self.__doc__ = size.summary
        hints = get_type_hints(type(size), include_extras=True)
        arguments = [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=getattr(size, f.name), annotation=hints[f.name])
            for f in fields(size)
            if f.name != "summary"
        ]
        num_classes = inspect.Parameter("num_classes", inspect.Parameter.KEYWORD_ONLY, annotation=int)
        self.__signature__ = inspect.Signature([num_classes, *arguments])

    def __repr__(self) -> str:
        return f"Sized({self.build.__qualname__}, {self.size!r})"

    def __call__(self, *, num_classes: int, **arguments: Any) -> System:
        """The network, weights not yet loaded.

        Raises:
            ValidationError: an argument that the size does not have, or a value it cannot have.
        """
        return self.build(replace(self.size, **arguments), num_classes)
