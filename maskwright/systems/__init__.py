"""The systems, by name: each builder takes the number of classes, and by keyword what its size decides."""

import difflib
import importlib
from collections.abc import Callable

from maskwright.systems.cascades import sizes as cascades
from maskwright.systems.one_stage import sizes as one_stage
from maskwright.systems.one_stage import torchvision as torchvision_fcos
from maskwright.systems.proposals import sizes as proposals
from maskwright.systems.rcnn import sizes as rcnn
from maskwright.systems.rcnn import torchvision as torchvision_rcnn
from maskwright.systems.size import Size, Sized
from maskwright.systems.system import Loss, System, Task

__all__ = ["RETIRED", "SYSTEMS", "Builder", "Loss", "Size", "Sized", "System", "Task", "current_name", "find_builder"]

Builder = Callable[..., System]

SYSTEMS: dict[str, Builder] = {
    "deepmask-r50": Sized(proposals.deepmask, proposals.DEEPMASK_R50),
    "deepmask-lite": Sized(proposals.deepmask, proposals.DEEPMASK_LITE),
    "deepmask-small": Sized(proposals.deepmask, proposals.DEEPMASK_SMALL),
    "deepmask-vgg": Sized(proposals.original_deepmask, proposals.DEEPMASK_VGG),
    "embedmask-r50": Sized(one_stage.embedmask, one_stage.EMBEDMASK_R50),
    "embedmask-r50-arxiv": Sized(one_stage.arxiv, one_stage.ARXIV_R50),
    "embedmask-r50-fused": Sized(one_stage.fused, one_stage.FUSED_R50),
    "embedmask-r50-scalar": Sized(one_stage.scalar, one_stage.SCALAR_R50),
    "embedmask-r101": Sized(one_stage.embedmask, one_stage.EMBEDMASK_R101),
    "embedmask-r101-arxiv": Sized(one_stage.arxiv, one_stage.ARXIV_R101),
    "embedmask-r101-fused": Sized(one_stage.fused, one_stage.FUSED_R101),
    "embedmask-r101-scalar": Sized(one_stage.scalar, one_stage.SCALAR_R101),
    "embedmask-lite": Sized(one_stage.embedmask, one_stage.EMBEDMASK_LITE),
    "embedmask-small": Sized(one_stage.embedmask, one_stage.EMBEDMASK_SMALL),
    "embedmask-arxiv-small": Sized(one_stage.arxiv, one_stage.ARXIV_SMALL),
    "embedmask-fused-lite": Sized(one_stage.fused, one_stage.FUSED_LITE),
    "embedmask-fused-small": Sized(one_stage.fused, one_stage.FUSED_SMALL),
    "fast-rcnn-r50-fpn": Sized(proposals.pyramid_fast_rcnn, proposals.FAST_R50_FPN),
    "fast-rcnn-lite": Sized(proposals.pyramid_fast_rcnn, proposals.FAST_LITE),
    "fast-rcnn-small": Sized(proposals.pyramid_fast_rcnn, proposals.FAST_SMALL),
    "fast-rcnn-vgg16": Sized(proposals.fast_rcnn, proposals.FAST_VGG16),
    "faster-rcnn-r50-c4": Sized(rcnn.c4, rcnn.FASTER_R50_C4),
    "faster-rcnn-r50-dc5": Sized(rcnn.rcnn, rcnn.FASTER_R50_DC5),
    "faster-rcnn-r50-fpn": Sized(rcnn.rcnn, rcnn.FASTER_R50_FPN),
    "faster-rcnn-r50-fpn-torchvision": Sized(torchvision_rcnn.first_rcnn, torchvision_rcnn.FASTER),
    "faster-rcnn-r50-fpn-torchvision-v2": Sized(torchvision_rcnn.second_rcnn, torchvision_rcnn.FASTER_V2),
    "faster-rcnn-r101-c4": Sized(rcnn.c4, rcnn.FASTER_R101_C4),
    "faster-rcnn-r101-dc5": Sized(rcnn.rcnn, rcnn.FASTER_R101_DC5),
    "faster-rcnn-r101-fpn": Sized(rcnn.rcnn, rcnn.FASTER_R101_FPN),
    "faster-rcnn-lite": Sized(rcnn.rcnn, rcnn.FASTER_LITE),
    "faster-rcnn-small": Sized(rcnn.rcnn, rcnn.FASTER_SMALL),
    "faster-rcnn-x101-fpn": Sized(rcnn.rcnn, rcnn.FASTER_X101_FPN),
    "fcis-r101": Sized(cascades.fcis, cascades.FCIS_R101),
    "fcis-lite": Sized(cascades.fcis, cascades.FCIS_LITE),
    "fcis-small": Sized(cascades.fcis, cascades.FCIS_SMALL),
    "fcos-r50": Sized(one_stage.fcos, one_stage.FCOS_R50),
    "fcos-r50-torchvision": Sized(torchvision_fcos.fcos_torchvision, torchvision_fcos.FCOS_R50),
    "fcos-lite": Sized(one_stage.fcos, one_stage.FCOS_LITE),
    "fcos-small": Sized(one_stage.fcos, one_stage.FCOS_SMALL),
    "keypoint-rcnn-r50-fpn": Sized(rcnn.rcnn, rcnn.KEYPOINT_R50_FPN),
    "keypoint-rcnn-r50-fpn-torchvision": Sized(torchvision_rcnn.first_rcnn, torchvision_rcnn.KEYPOINT),
    "keypoint-rcnn-r101-fpn": Sized(rcnn.rcnn, rcnn.KEYPOINT_R101_FPN),
    "keypoint-rcnn-rivals-r50-fpn": Sized(rcnn.rcnn, rcnn.KEYPOINT_RIVALS_R50_FPN),
    "keypoint-rcnn-lite": Sized(rcnn.rcnn, rcnn.KEYPOINT_LITE),
    "keypoint-rcnn-small": Sized(rcnn.rcnn, rcnn.KEYPOINT_SMALL),
    "keypoint-rcnn-x101-fpn": Sized(rcnn.rcnn, rcnn.KEYPOINT_X101_FPN),
    "mask-keypoint-rcnn-r50-fpn": Sized(rcnn.rcnn, rcnn.MASK_KEYPOINT_R50_FPN),
    "mask-keypoint-rcnn-lite": Sized(rcnn.rcnn, rcnn.MASK_KEYPOINT_LITE),
    "mask-keypoint-rcnn-small": Sized(rcnn.rcnn, rcnn.MASK_KEYPOINT_SMALL),
    "mask-rcnn-c4-small": Sized(rcnn.c4, rcnn.MASK_C4_SMALL),
    "mask-rcnn-r50-c4": Sized(rcnn.c4, rcnn.MASK_R50_C4),
    "mask-rcnn-r50-dc5": Sized(rcnn.rcnn, rcnn.MASK_R50_DC5),
    "mask-rcnn-r50-fpn": Sized(rcnn.rcnn, rcnn.MASK_R50_FPN),
    "mask-rcnn-r50-fpn-torchvision": Sized(torchvision_rcnn.first_rcnn, torchvision_rcnn.MASK),
    "mask-rcnn-r50-fpn-torchvision-v2": Sized(torchvision_rcnn.second_rcnn, torchvision_rcnn.MASK_V2),
    "mask-rcnn-r101-c4": Sized(rcnn.c4, rcnn.MASK_R101_C4),
    "mask-rcnn-r101-dc5": Sized(rcnn.rcnn, rcnn.MASK_R101_DC5),
    "mask-rcnn-r101-fpn": Sized(rcnn.rcnn, rcnn.MASK_R101_FPN),
    "mask-rcnn-rivals-c5-small": Sized(rcnn.rcnn, rcnn.RIVALS_C5_SMALL),
    "mask-rcnn-rivals-r50-c4": Sized(rcnn.c4, rcnn.RIVALS_R50_C4),
    "mask-rcnn-rivals-r50-c5": Sized(rcnn.rcnn, rcnn.RIVALS_R50_C5),
    "mask-rcnn-rivals-r50-fpn": Sized(rcnn.rcnn, rcnn.RIVALS_R50_FPN),
    "mask-rcnn-lite": Sized(rcnn.rcnn, rcnn.MASK_LITE),
    "mask-rcnn-small": Sized(rcnn.rcnn, rcnn.MASK_SMALL),
    "mask-rcnn-x101-fpn": Sized(rcnn.rcnn, rcnn.MASK_X101_FPN),
    "mask-rcnn-x101-64x4d-fpn": Sized(rcnn.rcnn, rcnn.MASK_X101_64X4D_FPN),
    "mnc-r101": Sized(cascades.mnc, cascades.MNC_R101),
    "mnc-lite": Sized(cascades.mnc, cascades.MNC_LITE),
    "mnc-small": Sized(cascades.mnc, cascades.MNC_SMALL),
    "mnc-stepwise-small": Sized(cascades.mnc, cascades.MNC_STEPWISE_SMALL),
    "mnc-unshared-small": Sized(cascades.mnc, cascades.MNC_UNSHARED_SMALL),
    "mnc-vgg16": Sized(cascades.mnc, cascades.MNC_VGG16),
    "mnc-vgg16-released": Sized(cascades.mnc, cascades.MNC_VGG16_RELEASED),
    "multipath-small": Sized(proposals.multipath, proposals.MULTIPATH_SMALL),
    "multipath-vgg16": Sized(proposals.multipath, proposals.MULTIPATH_VGG16),
    "sharpmask-r50": Sized(proposals.sharpmask, proposals.SHARPMASK_R50),
    "sharpmask-lite": Sized(proposals.sharpmask, proposals.SHARPMASK_LITE),
    "sharpmask-small": Sized(proposals.sharpmask, proposals.SHARPMASK_SMALL),
}

RETIRED: dict[str, tuple[str, str]] = {
    "keypoint-rcnn-rivals-small": ("keypoint-rcnn-small", "0.2"),  # small sizes have all the arguments of their rivals
    "mask-rcnn-rivals-c4-small": ("mask-rcnn-c4-small", "0.2"),
    "mask-rcnn-rivals-small": ("mask-rcnn-small", "0.2"),
}
"""Names that runs of earlier versions hold: what builds the same network from the same arguments, and since which version."""


def current_name(name: str) -> str:
    """The name of today of a system that a run or recipe of any version names."""
    return RETIRED.get(name, (name,))[0]


def find_builder(name: str) -> Builder:
    """The builder of a system of ours, or of "package.module:builder".

    Raises:
        ValueError: no such system; the message names the nearest ones.
    """
    if name in RETIRED:
        raise ValueError(f"{name} is {RETIRED[name][0]} since version {RETIRED[name][1]}: use that name")
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
