"""The systems, by name: each builder takes the number of classes, and options of its own by keyword."""

import difflib
import importlib
from collections.abc import Callable

from maskwright.systems.cascades.fcis import fcis_r101, fcis_small
from maskwright.systems.cascades.mnc import mnc_small, mnc_vgg16
from maskwright.systems.cascades.mnc_r101 import mnc_r101
from maskwright.systems.cascades.mnc_released import mnc_vgg16_released
from maskwright.systems.cascades.mnc_stepwise import mnc_stepwise_small, mnc_unshared_small
from maskwright.systems.one_stage.early import (
    embedmask_arxiv_small,
    embedmask_r50_arxiv,
    embedmask_r50_scalar,
    embedmask_r101_arxiv,
    embedmask_r101_scalar,
)
from maskwright.systems.one_stage.embedmask import embedmask_r50, embedmask_r101, embedmask_small
from maskwright.systems.one_stage.fcos import fcos_r50, fcos_small
from maskwright.systems.one_stage.fused import embedmask_fused_small, embedmask_r50_fused, embedmask_r101_fused
from maskwright.systems.one_stage.torchvision import fcos_r50_torchvision
from maskwright.systems.proposals.deepmask import deepmask_r50, deepmask_small, deepmask_vgg
from maskwright.systems.proposals.fast_rcnn import fast_rcnn_r50_fpn, fast_rcnn_small, fast_rcnn_vgg16
from maskwright.systems.proposals.multipath import multipath_small, multipath_vgg16
from maskwright.systems.proposals.sharpmask import sharpmask_r50, sharpmask_small
from maskwright.systems.rcnn.c4 import (
    faster_rcnn_r50_c4,
    faster_rcnn_r50_dc5,
    faster_rcnn_r101_c4,
    faster_rcnn_r101_dc5,
    mask_rcnn_c4_small,
    mask_rcnn_r50_c4,
    mask_rcnn_r50_dc5,
    mask_rcnn_r101_c4,
    mask_rcnn_r101_dc5,
)
from maskwright.systems.rcnn.keypoints import (
    keypoint_rcnn_r50_fpn,
    keypoint_rcnn_r101_fpn,
    keypoint_rcnn_small,
    keypoint_rcnn_x101_fpn,
    mask_keypoint_rcnn_r50_fpn,
    mask_keypoint_rcnn_small,
)
from maskwright.systems.rcnn.mask_rcnn import (
    faster_rcnn_r50_fpn,
    faster_rcnn_r101_fpn,
    faster_rcnn_small,
    faster_rcnn_x101_fpn,
    mask_rcnn_r50_fpn,
    mask_rcnn_r101_fpn,
    mask_rcnn_small,
    mask_rcnn_x101_64x4d_fpn,
    mask_rcnn_x101_fpn,
)
from maskwright.systems.rcnn.rivals import (
    keypoint_rcnn_rivals_r50_fpn,
    keypoint_rcnn_rivals_small,
    mask_rcnn_rivals_c4_small,
    mask_rcnn_rivals_c5_small,
    mask_rcnn_rivals_r50_c4,
    mask_rcnn_rivals_r50_c5,
    mask_rcnn_rivals_r50_fpn,
    mask_rcnn_rivals_small,
)
from maskwright.systems.rcnn.torchvision import (
    faster_rcnn_r50_fpn_torchvision,
    keypoint_rcnn_r50_fpn_torchvision,
    mask_rcnn_r50_fpn_torchvision,
)
from maskwright.systems.rcnn.torchvision_v2 import faster_rcnn_r50_fpn_torchvision_v2, mask_rcnn_r50_fpn_torchvision_v2
from maskwright.systems.system import Loss, System, Task

__all__ = ["SYSTEMS", "Builder", "Loss", "System", "Task", "find_builder"]

Builder = Callable[..., System]

SYSTEMS: dict[str, Builder] = {
    "deepmask-r50": deepmask_r50,
    "deepmask-small": deepmask_small,
    "deepmask-vgg": deepmask_vgg,
    "embedmask-r50": embedmask_r50,
    "embedmask-r50-arxiv": embedmask_r50_arxiv,
    "embedmask-r50-fused": embedmask_r50_fused,
    "embedmask-r50-scalar": embedmask_r50_scalar,
    "embedmask-r101": embedmask_r101,
    "embedmask-r101-arxiv": embedmask_r101_arxiv,
    "embedmask-r101-fused": embedmask_r101_fused,
    "embedmask-r101-scalar": embedmask_r101_scalar,
    "embedmask-small": embedmask_small,
    "embedmask-arxiv-small": embedmask_arxiv_small,
    "embedmask-fused-small": embedmask_fused_small,
    "fast-rcnn-r50-fpn": fast_rcnn_r50_fpn,
    "fast-rcnn-small": fast_rcnn_small,
    "fast-rcnn-vgg16": fast_rcnn_vgg16,
    "faster-rcnn-r50-c4": faster_rcnn_r50_c4,
    "faster-rcnn-r50-dc5": faster_rcnn_r50_dc5,
    "faster-rcnn-r50-fpn": faster_rcnn_r50_fpn,
    "faster-rcnn-r50-fpn-torchvision": faster_rcnn_r50_fpn_torchvision,
    "faster-rcnn-r50-fpn-torchvision-v2": faster_rcnn_r50_fpn_torchvision_v2,
    "faster-rcnn-r101-c4": faster_rcnn_r101_c4,
    "faster-rcnn-r101-dc5": faster_rcnn_r101_dc5,
    "faster-rcnn-r101-fpn": faster_rcnn_r101_fpn,
    "faster-rcnn-small": faster_rcnn_small,
    "faster-rcnn-x101-fpn": faster_rcnn_x101_fpn,
    "fcis-r101": fcis_r101,
    "fcis-small": fcis_small,
    "fcos-r50": fcos_r50,
    "fcos-r50-torchvision": fcos_r50_torchvision,
    "fcos-small": fcos_small,
    "keypoint-rcnn-r50-fpn": keypoint_rcnn_r50_fpn,
    "keypoint-rcnn-r50-fpn-torchvision": keypoint_rcnn_r50_fpn_torchvision,
    "keypoint-rcnn-r101-fpn": keypoint_rcnn_r101_fpn,
    "keypoint-rcnn-rivals-r50-fpn": keypoint_rcnn_rivals_r50_fpn,
    "keypoint-rcnn-rivals-small": keypoint_rcnn_rivals_small,
    "keypoint-rcnn-small": keypoint_rcnn_small,
    "keypoint-rcnn-x101-fpn": keypoint_rcnn_x101_fpn,
    "mask-keypoint-rcnn-r50-fpn": mask_keypoint_rcnn_r50_fpn,
    "mask-keypoint-rcnn-small": mask_keypoint_rcnn_small,
    "mask-rcnn-c4-small": mask_rcnn_c4_small,
    "mask-rcnn-r50-c4": mask_rcnn_r50_c4,
    "mask-rcnn-r50-dc5": mask_rcnn_r50_dc5,
    "mask-rcnn-r50-fpn": mask_rcnn_r50_fpn,
    "mask-rcnn-r50-fpn-torchvision": mask_rcnn_r50_fpn_torchvision,
    "mask-rcnn-r50-fpn-torchvision-v2": mask_rcnn_r50_fpn_torchvision_v2,
    "mask-rcnn-r101-c4": mask_rcnn_r101_c4,
    "mask-rcnn-r101-dc5": mask_rcnn_r101_dc5,
    "mask-rcnn-r101-fpn": mask_rcnn_r101_fpn,
    "mask-rcnn-rivals-c4-small": mask_rcnn_rivals_c4_small,
    "mask-rcnn-rivals-c5-small": mask_rcnn_rivals_c5_small,
    "mask-rcnn-rivals-r50-c4": mask_rcnn_rivals_r50_c4,
    "mask-rcnn-rivals-r50-c5": mask_rcnn_rivals_r50_c5,
    "mask-rcnn-rivals-r50-fpn": mask_rcnn_rivals_r50_fpn,
    "mask-rcnn-rivals-small": mask_rcnn_rivals_small,
    "mask-rcnn-small": mask_rcnn_small,
    "mask-rcnn-x101-fpn": mask_rcnn_x101_fpn,
    "mask-rcnn-x101-64x4d-fpn": mask_rcnn_x101_64x4d_fpn,
    "mnc-r101": mnc_r101,
    "mnc-small": mnc_small,
    "mnc-stepwise-small": mnc_stepwise_small,
    "mnc-unshared-small": mnc_unshared_small,
    "mnc-vgg16": mnc_vgg16,
    "mnc-vgg16-released": mnc_vgg16_released,
    "multipath-small": multipath_small,
    "multipath-vgg16": multipath_vgg16,
    "sharpmask-r50": sharpmask_r50,
    "sharpmask-small": sharpmask_small,
}


def find_builder(name: str) -> Builder:
    """The builder of a system of ours, or of "package.module:builder".

    Raises:
        ValueError: no such system; the message names the nearest ones.
    """
    if name in SYSTEMS:
        return SYSTEMS[name]
    if ":" in name:
        module, _, attribute = name.partition(":")
        try:
            builder = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"cannot import the system {name!r}: {error}") from error
        if not callable(builder):
            raise ValueError(f"{name!r} is not a function that builds a system")
        found: Builder = builder
        return found
    near = difflib.get_close_matches(name, SYSTEMS, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(SYSTEMS)}"
    raise ValueError(f"no system is named {name!r}: {hint}")
