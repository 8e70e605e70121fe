"""Weights of torchvision's Faster, Mask and Keypoint R-CNN (R50-FPN) and FCOS, in our names.

Theirs hold the background as the first class, R-CNN's ours as the last; the background's box, mask and, with FCOS, class, which
nothing ever reads or trains, are left out.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from maskwright.weights.conversion import COCO_ROWS, Converted, numbered, person_keypoints, rename
from maskwright.weights.published import PUBLISHED

_KIND = r"\.(?P<kind>weight|bias)"
_BODY = (r"backbone\.body\.(?P<rest>.+)", "backbone.network.{rest}")
_RCNN = [  # theirs → ours; files written before torchvision 0.13 lack the optional parts
    _BODY,
    (r"backbone\.fpn\.inner_blocks\.(?P<level>[0-3])(\.0)?" + _KIND, "fpn.lateral.{level}.{kind}"),
    (r"backbone\.fpn\.layer_blocks\.(?P<level>[0-3])(\.0)?" + _KIND, "fpn.output.{level}.{kind}"),
    (r"rpn\.head\.conv(\.0\.0)?" + _KIND, "rpn.conv.{kind}"),
    (r"rpn\.head\.cls_logits" + _KIND, "rpn.objectness.{kind}"),
    (r"rpn\.head\.bbox_pred" + _KIND, "rpn.deltas.{kind}"),
    (r"roi_heads\.box_head\.fc6" + _KIND, "box_head.fc1.{kind}"),
    (r"roi_heads\.box_head\.fc7" + _KIND, "box_head.fc2.{kind}"),
    (r"roi_heads\.box_predictor\.cls_score" + _KIND, "box_head.classes.{kind}"),
    (r"roi_heads\.box_predictor\.bbox_pred" + _KIND, "box_head.deltas.{kind}"),
    (r"roi_heads\.mask_head\.(?P<index>[0-3])\.0" + _KIND, "instance_heads.mask.convs.{index}.{kind}"),
    (r"roi_heads\.mask_head\.mask_fcn(?P<number>[1-4])" + _KIND, "instance_heads.mask.convs.{number}.{kind}"),
    (r"roi_heads\.mask_predictor\.conv5_mask" + _KIND, "instance_heads.mask.deconv.{kind}"),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits" + _KIND, "instance_heads.mask.predictor.{kind}"),
    (r"roi_heads\.keypoint_head\.(?P<place>\d+)" + _KIND, "instance_heads.keypoint.convs.{place}.{kind}"),
    (r"roi_heads\.keypoint_predictor\.kps_score_lowres" + _KIND, "instance_heads.keypoint.deconv.{kind}"),
]
_NORM = r"\.1\.(?P<part>weight|bias|running_mean|running_var)"
_SECOND = [  # of the second versions; the others are tried after them
    (r"backbone\.fpn\.inner_blocks\.(?P<level>[0-3])\.0\.weight", "fpn.lateral.{level}.0.weight"),
    (r"backbone\.fpn\.inner_blocks\.(?P<level>[0-3])" + _NORM, "fpn.lateral.{level}.1.{part}"),
    (r"backbone\.fpn\.layer_blocks\.(?P<level>[0-3])\.0\.weight", "fpn.output.{level}.0.weight"),
    (r"backbone\.fpn\.layer_blocks\.(?P<level>[0-3])" + _NORM, "fpn.output.{level}.1.{part}"),
    (r"rpn\.head\.conv\.(?P<layer>[01])\.0" + _KIND, "rpn.conv.{layer}.{kind}"),
    (r"roi_heads\.box_head\.(?P<index>[0-3])\.0\.weight", "box_head.convs.{index}.0.weight"),
    (r"roi_heads\.box_head\.(?P<index>[0-3])" + _NORM, "box_head.convs.{index}.1.{part}"),
    (r"roi_heads\.box_head\.5" + _KIND, "box_head.fc.{kind}"),
    (r"roi_heads\.mask_head\.(?P<index>[0-3])\.0\.weight", "instance_heads.mask.convs.{index}.0.weight"),
    (r"roi_heads\.mask_head\.(?P<index>[0-3])" + _NORM, "instance_heads.mask.convs.{index}.1.{part}"),
    *_RCNN,
]
_RCNN_TABLES = {
    "level": {"0": "4", "1": "8", "2": "16", "3": "32"},
    "number": {"1": "0", "2": "1", "3": "2", "4": "3"},
    "place": {str(2 * layer): str(layer) for layer in range(8)},
    "layer": {"0": "0", "1": "2"},  # ReLU between
}
_FCOS = [
    _BODY,
    (r"backbone\.fpn\.inner_blocks\.(?P<level>[0-2])(\.0)?" + _KIND, "fpn.lateral.{level}.{kind}"),
    (r"backbone\.fpn\.layer_blocks\.(?P<level>[0-2])(\.0)?" + _KIND, "fpn.output.{level}.{kind}"),
    (r"backbone\.fpn\.extra_blocks\.(?P<extra>p[67])" + _KIND, "fpn.coarser.convs.{extra}.{kind}"),
    (r"head\.classification_head\.conv\.(?P<index>\d+)" + _KIND, "head.class_tower.{index}.{kind}"),
    (r"head\.classification_head\.cls_logits" + _KIND, "head.classes.{kind}"),
    (r"head\.regression_head\.conv\.(?P<index>\d+)" + _KIND, "head.box_tower.{index}.{kind}"),
    (r"head\.regression_head\.bbox_reg" + _KIND, "head.ltrb.{kind}"),
    (r"head\.regression_head\.bbox_ctrness" + _KIND, "head.centerness.{kind}"),
]
_FCOS_TABLES = {"level": {"0": "8", "1": "16", "2": "32"}, "extra": {"p6": "0", "p7": "1"}}

OFFICIAL = {published.digest for published in PUBLISHED.values() if published.arguments.get("norm_eps") == 0}
"""Beginnings of the SHA-256 of the files torchvision publishes whose norms want eps 0 (those of FCOS want the usual 1e-5)."""


def recognizes(state: Mapping[str, Tensor]) -> bool:
    """Whether names look like torchvision's Faster R-CNN, Mask R-CNN or FCOS, of whatever backbone and version."""
    marks = ("roi_heads.box_predictor.cls_score.weight", "head.classification_head.cls_logits.weight")
    return any(name.startswith("backbone.body.") for name in state) and any(mark in state for mark in marks)


def convert(state: Mapping[str, Tensor]) -> Converted:
    """Rename, and move or drop the background's rows; the caller checks that the result is complete.

    Raises:
        ValueError: names that have no place in the network, all of them listed up to a limit.
    """
    if "head.classification_head.cls_logits.weight" in state:
        return _convert_fcos(state)
    is_second = any(name.startswith("roi_heads.box_head.5.") for name in state)
    tensors = rename(state, _SECOND if is_second else _RCNN, _RCNN_TABLES)
    for name, value in tensors.items():
        if name.startswith("box_head.classes."):
            tensors[name] = torch.cat([value[1:], value[:1]])
        elif name.startswith("box_head.deltas."):
            tensors[name] = value[4:]
        elif name.startswith("instance_heads.mask.predictor."):
            tensors[name] = value[1:]
    names, ids = _classes(len(state["roi_heads.box_predictor.cls_score.weight"]) - 1)
    heads = [head for head in ("mask", "keypoint") if any(name.startswith(f"instance_heads.{head}.") for name in tensors)]
    arguments: dict[str, Any] = {"num_classes": len(names), **({"branch_norm": "frozen"} if is_second else {})}
    points = None
    if "keypoint" in heads:
        points = person_keypoints(tensors.get("instance_heads.keypoint.deconv.weight"))
        arguments["num_keypoints"] = len(points.names)
        names = ("person",) if len(names) == 1 else names
    return Converted(
        tensors,
        system=f"{'-'.join(heads) or 'faster'}-rcnn-r50-fpn-torchvision{'-v2' if is_second else ''}",
        arguments=arguments,
        names=names,
        ids=ids,
        keypoints=points,
        norm_eps_unknown=not is_second and not any(name.endswith("num_batches_tracked") for name in state),
    )


def _convert_fcos(state: Mapping[str, Tensor]) -> Converted:
    tensors = rename(state, _FCOS, _FCOS_TABLES)
    for name in ("head.classes.weight", "head.classes.bias"):
        tensors[name] = tensors[name][1:]
    names, ids = _classes(len(tensors["head.classes.weight"]))
    arguments = {"num_classes": len(names)}
    return Converted(tensors, system="fcos-r50-torchvision", arguments=arguments, names=names, ids=ids)


def _classes(num_classes: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names of COCO's rows, "unused 12" where COCO has no such id; for another number of classes plain numbers."""
    names, ids = numbered(num_classes)
    if num_classes == len(COCO_ROWS) - 1:
        names = tuple(f"unused {row}" if name == "N/A" else name for row, name in enumerate(COCO_ROWS))[1:]
    return names, ids
