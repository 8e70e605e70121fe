"""From a recipe's options to transforms."""

from collections.abc import Sequence

from maskwright.data.patches import PatchAugmentation
from maskwright.data.transforms import ColorJitter, Compose, Flip, ScaleJitterCrop, ShortSide, Transform, Transpose
from maskwright.recipes.recipe import AugmentOptions
from maskwright.structures import InputSpec, KeypointSchema


def patch_augmentation(options: AugmentOptions) -> PatchAugmentation:
    """The steps that are switched on, for patches, which have scales of their own."""
    return PatchAugmentation(color=Compose(_colors(options)), geometry=Compose(_mirrors(options, None)))


def augmentation(options: AugmentOptions, spec: InputSpec, schema: KeypointSchema | None) -> Compose:
    """The steps that are switched on, geometry first.

    Raises:
        ValueError: steps that keypoints do not survive.
    """
    if schema is not None and (options.vertical_flip or options.transpose):
        raise ValueError("this data has keypoints: set augment.vertical_flip and augment.transpose to 0")
    steps: list[Transform] = []
    assert options.crop_px != "fit"  # a recipe is fitted before it is trained
    assert options.jitter != "fit"
    if options.crop_px is not None:
        steps.append(ScaleJitterCrop(spec.resize, options.crop_px, *options.jitter, options.jitter_axis))
    if options.short_sides:
        steps.append(ShortSide(options.short_sides, spec.resize))
    return Compose([*steps, *_mirrors(options, schema), *_colors(options)])


def _mirrors(options: AugmentOptions, schema: KeypointSchema | None) -> Sequence[Transform]:
    steps: list[Transform] = []
    if options.horizontal_flip:
        steps.append(Flip(options.horizontal_flip, schema=schema))
    if options.vertical_flip:
        steps.append(Flip(options.vertical_flip, horizontal=False))
    if options.transpose:
        steps.append(Transpose(options.transpose))
    return steps


def _colors(options: AugmentOptions) -> Sequence[Transform]:
    strength = options.color
    return [ColorJitter(brightness=strength, contrast=strength, saturation=strength)] if strength else []
