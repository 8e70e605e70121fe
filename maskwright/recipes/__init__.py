"""Runs, by the name of their system: what is trained, how long, and what to expect."""

from collections.abc import Callable

from maskwright.recipes import mask_rcnn
from maskwright.recipes.recipe import DataOptions, Recipe, Stage, parse_recipe, read_recipe
from maskwright.systems import find_builder

__all__ = ["RECIPES", "DataOptions", "Recipe", "Stage", "find_recipe", "parse_recipe", "read_recipe"]

RECIPES: dict[str, Callable[[], Recipe]] = {
    "faster-rcnn-r50-fpn": mask_rcnn.faster_rcnn_r50_fpn,
    "faster-rcnn-r50-fpn-torchvision": mask_rcnn.faster_rcnn_r50_fpn_torchvision,
    "faster-rcnn-small": mask_rcnn.faster_rcnn_small,
    "mask-rcnn-r50-fpn": mask_rcnn.mask_rcnn_r50_fpn,
    "mask-rcnn-r50-fpn-torchvision": mask_rcnn.mask_rcnn_r50_fpn_torchvision,
    "mask-rcnn-r101-fpn": mask_rcnn.mask_rcnn_r101_fpn,
    "mask-rcnn-small": mask_rcnn.mask_rcnn_small,
    "mask-rcnn-x101-fpn": mask_rcnn.mask_rcnn_x101_fpn,
}


def find_recipe(system: str) -> Recipe:
    """The recipe of a system; a system from outside the package starts from the small one's.

    Raises:
        ValueError: no such system.
    """
    find_builder(system)
    if system in RECIPES:
        return RECIPES[system]()
    return mask_rcnn.mask_rcnn_small().model_copy(update={"system": system})
