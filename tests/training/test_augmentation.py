"""A recipe's options and the steps that come of them."""

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from maskwright.data.transforms import ColorJitter, Flip, ScaleJitterCrop, ShortSide, Transpose
from maskwright.recipes import find_recipe
from maskwright.recipes.recipe import AugmentOptions
from maskwright.structures import COCO_PERSON, InputSpec, ResizeRule
from maskwright.training.augmentation import augmentation, patch_augmentation

SPEC = InputSpec(resize=ResizeRule(320, 512))


def test_every_option_is_a_step():
    options = AugmentOptions(crop_px=64, jitter=(0.5, 1.5), horizontal_flip=0.1, vertical_flip=0.2, transpose=0.3, color=0.4)
    crop, horizontal, vertical, transpose, color = augmentation(options, SPEC, None).steps
    assert crop == ScaleJitterCrop(SPEC.resize, 64, 0.5, 1.5, "log")
    assert (horizontal, vertical) == (Flip(0.1), Flip(0.2, horizontal=False))
    assert transpose == Transpose(0.3)
    assert isinstance(color, ColorJitter)
    assert (color._jitter.brightness, color._jitter.contrast, color._jitter.saturation) == ((0.6, 1.4),) * 3
    scale, flip = augmentation(AugmentOptions(short_sides=(256, 320)), SPEC, None).steps
    assert scale == ShortSide((256, 320), SPEC.resize)
    assert flip == Flip(0.5)
    assert augmentation(AugmentOptions(horizontal_flip=0), SPEC, None).steps == []


def test_large_scale_jitter_is_asked_for_as_the_reference_says():
    text = (Path(__file__).parents[2] / "docs" / "reference.md").read_text()
    (command,) = re.findall(r"^maskwright train mask-rcnn-r50-fpn .*?jitter_axis=linear.*?$", text, re.DOTALL | re.MULTILINE)
    words = shlex.split(command.replace("\\\n", " "))
    changes = [value for option, value in pairwise(words) if option == "--set"]
    recipe = find_recipe(words[2]).with_changes(changes)
    spec = InputSpec(resize=ResizeRule(recipe.arguments["short_px"], recipe.arguments["long_px"]))
    (stage,) = recipe.stages
    jitter, _ = augmentation(stage.augment, spec, None).steps
    assert jitter == ScaleJitterCrop(ResizeRule(1024, 1024), 1024, 0.1, 2.0, "linear")
    assert stage.augment.copy_paste == 0.5


def test_patches_are_mirrored_and_colored_apart():
    found = patch_augmentation(AugmentOptions(horizontal_flip=0.1, vertical_flip=0.2, transpose=0.3, color=0.4))
    assert list(found.geometry.steps) == [Flip(0.1), Flip(0.2, horizontal=False), Transpose(0.3)]
    assert [type(step) for step in found.color.steps] == [ColorJitter]


def test_keypoints_are_mirrored_by_their_schema_and_nothing_else():
    (flip,) = augmentation(AugmentOptions(), SPEC, COCO_PERSON).steps
    assert flip.schema is COCO_PERSON
    for option in ("vertical_flip", "transpose"):
        with pytest.raises(
            ValueError, match=r"this data has keypoints: set augment\.vertical_flip and augment\.transpose to 0"
        ):
            augmentation(AugmentOptions(**{option: 0.5}), SPEC, COCO_PERSON)
