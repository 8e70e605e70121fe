"""Runs by name: what is trained, how long, and what to expect. A system's usual run has the name of the system."""

import difflib
from collections.abc import Callable

from maskwright.recipes import deepmask, embedmask, fast_rcnn, fcos, mask_rcnn, mnc
from maskwright.recipes.recipe import DataOptions, Recipe, Stage, parse_recipe, read_recipe
from maskwright.recipes.small import small_recipe
from maskwright.systems import find_builder

__all__ = ["RECIPES", "DataOptions", "Recipe", "Stage", "find_recipe", "parse_recipe", "read_recipe"]

RECIPES: dict[str, Callable[[], Recipe]] = {
    "deepmask-r50": deepmask.deepmask_r50,
    "deepmask-small": deepmask.deepmask_small,
    "deepmask-vgg": deepmask.deepmask_vgg,
    "embedmask-r50": embedmask.embedmask_r50,
    "embedmask-r50-arxiv": embedmask.embedmask_r50_arxiv,
    "embedmask-r50-fused": embedmask.embedmask_r50_fused,
    "embedmask-r50-scalar": embedmask.embedmask_r50_scalar,
    "embedmask-r101": embedmask.embedmask_r101,
    "embedmask-r101-arxiv": embedmask.embedmask_r101_arxiv,
    "embedmask-r101-fused": embedmask.embedmask_r101_fused,
    "embedmask-r101-scalar": embedmask.embedmask_r101_scalar,
    "embedmask-small": embedmask.embedmask_small,
    "embedmask-arxiv-small": embedmask.embedmask_arxiv_small,
    "embedmask-fused-small": embedmask.embedmask_fused_small,
    "fast-rcnn-r50-fpn": fast_rcnn.fast_rcnn_r50_fpn,
    "fast-rcnn-small": fast_rcnn.fast_rcnn_small,
    "fast-rcnn-vgg16": fast_rcnn.fast_rcnn_vgg16,
    "faster-rcnn-r50-c4": mask_rcnn.faster_rcnn_r50_c4,
    "faster-rcnn-r50-dc5": mask_rcnn.faster_rcnn_r50_dc5,
    "faster-rcnn-r50-fpn": mask_rcnn.faster_rcnn_r50_fpn,
    "faster-rcnn-r50-fpn-3x": mask_rcnn.faster_rcnn_r50_fpn_3x,
    "faster-rcnn-r50-fpn-torchvision": mask_rcnn.faster_rcnn_r50_fpn_torchvision,
    "faster-rcnn-r50-fpn-torchvision-v2": mask_rcnn.faster_rcnn_r50_fpn_torchvision_v2,
    "faster-rcnn-r101-c4": mask_rcnn.faster_rcnn_r101_c4,
    "faster-rcnn-r101-dc5": mask_rcnn.faster_rcnn_r101_dc5,
    "faster-rcnn-r101-fpn": mask_rcnn.faster_rcnn_r101_fpn,
    "faster-rcnn-small": mask_rcnn.faster_rcnn_small,
    "faster-rcnn-x101-fpn": mask_rcnn.faster_rcnn_x101_fpn,
    "fcis-r101": mnc.fcis_r101,
    "fcis-small": mnc.fcis_small,
    "fcos-r50": fcos.fcos_r50,
    "fcos-r50-torchvision": fcos.fcos_r50_torchvision,
    "fcos-small": fcos.fcos_small,
    "keypoint-rcnn-r50-fpn": mask_rcnn.keypoint_rcnn_r50_fpn,
    "keypoint-rcnn-r50-fpn-3x": mask_rcnn.keypoint_rcnn_r50_fpn_3x,
    "keypoint-rcnn-r50-fpn-torchvision": mask_rcnn.keypoint_rcnn_r50_fpn_torchvision,
    "keypoint-rcnn-r101-fpn": mask_rcnn.keypoint_rcnn_r101_fpn,
    "keypoint-rcnn-rivals-r50-fpn": mask_rcnn.keypoint_rcnn_rivals_r50_fpn,
    "keypoint-rcnn-small": mask_rcnn.keypoint_rcnn_small,
    "keypoint-rcnn-x101-fpn": mask_rcnn.keypoint_rcnn_x101_fpn,
    "mask-keypoint-rcnn-r50-fpn": mask_rcnn.mask_keypoint_rcnn_r50_fpn,
    "mask-keypoint-rcnn-small": mask_rcnn.mask_keypoint_rcnn_small,
    "mask-rcnn-c4-small": mask_rcnn.mask_rcnn_c4_small,
    "mask-rcnn-r50-c4": mask_rcnn.mask_rcnn_r50_c4,
    "mask-rcnn-r50-c4-paper": mask_rcnn.mask_rcnn_r50_c4_paper,
    "mask-rcnn-r50-dc5": mask_rcnn.mask_rcnn_r50_dc5,
    "mask-rcnn-r50-fpn": mask_rcnn.mask_rcnn_r50_fpn,
    "mask-rcnn-r50-fpn-3x": mask_rcnn.mask_rcnn_r50_fpn_3x,
    "mask-rcnn-r50-fpn-cityscapes": mask_rcnn.mask_rcnn_r50_fpn_cityscapes,
    "mask-rcnn-r50-fpn-cityscapes-from-coco": mask_rcnn.mask_rcnn_r50_fpn_cityscapes_from_coco,
    "mask-rcnn-r50-fpn-paper": mask_rcnn.mask_rcnn_r50_fpn_paper,
    "mask-rcnn-r50-fpn-torchvision": mask_rcnn.mask_rcnn_r50_fpn_torchvision,
    "mask-rcnn-r50-fpn-torchvision-v2": mask_rcnn.mask_rcnn_r50_fpn_torchvision_v2,
    "mask-rcnn-r101-c4": mask_rcnn.mask_rcnn_r101_c4,
    "mask-rcnn-r101-c4-paper": mask_rcnn.mask_rcnn_r101_c4_paper,
    "mask-rcnn-r101-dc5": mask_rcnn.mask_rcnn_r101_dc5,
    "mask-rcnn-r101-fpn": mask_rcnn.mask_rcnn_r101_fpn,
    "mask-rcnn-r101-fpn-paper": mask_rcnn.mask_rcnn_r101_fpn_paper,
    "mask-rcnn-rivals-c5-small": mask_rcnn.mask_rcnn_rivals_c5_small,
    "mask-rcnn-rivals-r50-c4": mask_rcnn.mask_rcnn_rivals_r50_c4,
    "mask-rcnn-rivals-r50-c5": mask_rcnn.mask_rcnn_rivals_r50_c5,
    "mask-rcnn-rivals-r50-fpn": mask_rcnn.mask_rcnn_rivals_r50_fpn,
    "mask-rcnn-small": mask_rcnn.mask_rcnn_small,
    "mask-rcnn-x101-fpn": mask_rcnn.mask_rcnn_x101_fpn,
    "mask-rcnn-x101-64x4d-fpn": mask_rcnn.mask_rcnn_x101_64x4d_fpn,
    "mask-rcnn-x101-64x4d-fpn-paper": mask_rcnn.mask_rcnn_x101_64x4d_fpn_paper,
    "mnc-r101": mnc.mnc_r101,
    "mnc-small": mnc.mnc_small,
    "mnc-stepwise-small": mnc.mnc_stepwise_small,
    "mnc-unshared-small": mnc.mnc_unshared_small,
    "mnc-vgg16": mnc.mnc_vgg16,
    "mnc-vgg16-released": mnc.mnc_vgg16_released,
    "multipath-small": fast_rcnn.multipath_small,
    "multipath-vgg16": fast_rcnn.multipath_vgg16,
    "sharpmask-r50": deepmask.sharpmask_r50,
    "sharpmask-small": deepmask.sharpmask_small,
}


def find_recipe(name: str) -> Recipe:
    """A recipe by its name or that of its system; a system from outside the package starts from that of the small sizes.

    Raises:
        ValueError: no such recipe or system.
    """
    if name in RECIPES:
        return RECIPES[name]()
    if ":" not in name:
        near = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else "'maskwright recipes' lists them"
        raise ValueError(f"no recipe or system is named {name!r}: {hint}")
    find_builder(name)
    return small_recipe(name)
