"""Weights of torchvision's `fasterrcnn_resnet50_fpn` and `maskrcnn_resnet50_fpn`, first versions, in our names.

Theirs hold the background as the first class, ours as the last; the background's box and mask, which nothing ever reads or
trains, are left out.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights, MaskRCNN_ResNet50_FPN_Weights

_STRIDES = {"0": "4", "1": "8", "2": "16", "3": "32"}
_NAMES = [  # theirs → ours; files written before torchvision 0.13 lack the optional parts
    (r"backbone\.body\.(?P<rest>.+)", "backbone.network.{rest}"),
    (r"backbone\.fpn\.inner_blocks\.(?P<level>[0-3])(\.0)?\.(?P<kind>weight|bias)", "fpn.lateral.{level}.{kind}"),
    (r"backbone\.fpn\.layer_blocks\.(?P<level>[0-3])(\.0)?\.(?P<kind>weight|bias)", "fpn.output.{level}.{kind}"),
    (r"rpn\.head\.conv(\.0\.0)?\.(?P<kind>weight|bias)", "rpn.conv.{kind}"),
    (r"rpn\.head\.cls_logits\.(?P<kind>weight|bias)", "rpn.objectness.{kind}"),
    (r"rpn\.head\.bbox_pred\.(?P<kind>weight|bias)", "rpn.deltas.{kind}"),
    (r"roi_heads\.box_head\.fc6\.(?P<kind>weight|bias)", "box_head.fc1.{kind}"),
    (r"roi_heads\.box_head\.fc7\.(?P<kind>weight|bias)", "box_head.fc2.{kind}"),
    (r"roi_heads\.box_predictor\.cls_score\.(?P<kind>weight|bias)", "box_head.classes.{kind}"),
    (r"roi_heads\.box_predictor\.bbox_pred\.(?P<kind>weight|bias)", "box_head.deltas.{kind}"),
    (r"roi_heads\.mask_head\.(?P<index>[0-3])\.0\.(?P<kind>weight|bias)", "instance_heads.mask.convs.{index}.{kind}"),
    (r"roi_heads\.mask_head\.mask_fcn(?P<number>[1-4])\.(?P<kind>weight|bias)", "instance_heads.mask.convs.{number}.{kind}"),
    (r"roi_heads\.mask_predictor\.conv5_mask\.(?P<kind>weight|bias)", "instance_heads.mask.deconv.{kind}"),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.(?P<kind>weight|bias)", "instance_heads.mask.predictor.{kind}"),
]
COCO_NAMES: list[str] = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]  # by row, "N/A" where COCO has no such id
OFFICIAL = {
    w.COCO_V1.url.rsplit("-", 1)[1].split(".")[0] for w in (FasterRCNN_ResNet50_FPN_Weights, MaskRCNN_ResNet50_FPN_Weights)
}
"""Beginnings of the SHA-256 of the files torchvision publishes, whose norms want eps 0."""


@dataclass(frozen=True)
class Converted:
    """Tensors by our names, and what they tell of the network.

    Args:
        num_classes: the background not counted.
        has_trained_norms: its norms were trained along, with eps 1e-5, and not frozen.
    """

    tensors: dict[str, Tensor]
    num_classes: int
    has_masks: bool
    has_trained_norms: bool


def is_torchvision(state: Mapping[str, Tensor]) -> bool:
    """Whether names look like torchvision's Faster or Mask R-CNN, of whatever backbone and version."""
    return any(name.startswith("backbone.body.") for name in state) and "roi_heads.box_predictor.cls_score.weight" in state


def is_second_version(state: Mapping[str, Tensor]) -> bool:
    """Whether it is one of the `_v2` models, with norms in pyramid and heads and two convolutions in the RPN."""
    marks = ("rpn.head.conv.1.", "roi_heads.box_head.5.", "backbone.fpn.inner_blocks.0.1.")
    return any(name.startswith(marks) for name in state)


def convert(state: Mapping[str, Tensor]) -> Converted:
    """Rename, and move the background's row to the end; the caller checks that the result is complete.

    Raises:
        ValueError: names that have no place in the network, all of them listed up to a limit.
    """
    rows = len(state["roi_heads.box_predictor.cls_score.weight"])
    tensors: dict[str, Tensor] = {}
    unknown = []
    for theirs, value in state.items():
        if theirs.endswith("num_batches_tracked"):
            continue  # counts the steps of a norm that was trained; nothing depends on it
        ours = _rename(theirs)
        if ours is None:
            unknown.append(theirs)
        else:
            tensors[ours] = value
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise ValueError(f"left over: {', '.join(unknown[:5])}{more}")
    for name, value in tensors.items():
        if name.startswith("box_head.classes."):
            tensors[name] = torch.cat([value[1:], value[:1]])
        elif name.startswith("box_head.deltas."):
            tensors[name] = value[4:]
        elif name.startswith("instance_heads.mask.predictor."):
            tensors[name] = value[1:]
    return Converted(
        tensors,
        num_classes=rows - 1,
        has_masks=any(name.startswith("instance_heads.mask.") for name in tensors),
        has_trained_norms=any(name.endswith("num_batches_tracked") for name in state),
    )


def class_names(num_classes: int) -> list[str]:
    """Names of COCO's rows, "unused 12" where COCO has no such id; for another number of classes plain numbers."""
    if num_classes != len(COCO_NAMES) - 1:
        return [str(row) for row in range(1, num_classes + 1)]
    return [f"unused {row}" if name == "N/A" else name for row, name in enumerate(COCO_NAMES)][1:]


def _rename(theirs: str) -> str | None:
    for pattern, ours in _NAMES:
        if match := re.fullmatch(pattern, theirs):
            parts = {key: value for key, value in match.groupdict().items() if value is not None}
            if "level" in parts:
                parts["level"] = _STRIDES[parts["level"]]
            if "number" in parts:
                parts["number"] = str(int(parts["number"]) - 1)
            return ours.format(**parts)
    return None
