"""Weights of detectron2's R-CNNs (Faster, Mask and Keypoint on FPN: R50, R101, X101-32×8d; Faster and Mask on C4 and DC5: R50,
R101), in our names.

Its zoo's .pkl files and checkpoints of its training (.pth) have the same names. Rows of classes lie as ours do, the background
last. What the names do not tell is whose ResNet it began with. The zoo's ResNet-50 and -101 have the stage stride in the 1×1
convolution and take BGR pixels with std 1; its ResNeXt has it in the 3×3 convolution and takes BGR pixels with a std;
torchvision's ResNets have it in the 3×3 convolution and take RGB pixels. Older files hold the mean and std of their pixels,
which decides; for newer ones the zoo's is assumed.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from maskwright.weights.conversion import COCO_ROWS, Converted, numbered, person_keypoints, rename

_KIND = r"\.(?P<kind>weight|bias)"
_NORM = r"\.norm\.(?P<part>weight|bias|running_mean|running_var)"
_BODY = r"backbone\.(bottom_up\.)?"  # beneath an FPN, or alone


def _blocks(theirs: str, ours: str) -> list[tuple[str, str]]:
    """Rules for the bottlenecks of a stage."""
    return [
        (theirs + r"conv(?P<number>[123])\.weight", ours + "conv{number}.weight"),
        (theirs + r"conv(?P<number>[123])" + _NORM, ours + "bn{number}.{part}"),
        (theirs + r"shortcut\.weight", ours + "downsample.0.weight"),
        (theirs + r"shortcut" + _NORM, ours + "downsample.1.{part}"),
    ]


_RULES = [
    (_BODY + r"stem\.conv1\.weight", "backbone.network.conv1.weight"),
    (_BODY + r"stem\.conv1" + _NORM, "backbone.network.bn1.{part}"),
    *_blocks(_BODY + r"res(?P<stage>[2-5])\.(?P<index>\d+)\.", "backbone.network.layer{stage}.{index}."),
    *_blocks(r"roi_heads\.res5\.(?P<index>\d+)\.", "box_head.staged.stage.blocks.{index}."),
    (r"backbone\.fpn_lateral(?P<level>[2-5])" + _KIND, "fpn.lateral.{level}.{kind}"),
    (r"backbone\.fpn_output(?P<level>[2-5])" + _KIND, "fpn.output.{level}.{kind}"),
    (r"proposal_generator\.rpn_head\.conv" + _KIND, "rpn.conv.{kind}"),
    (r"proposal_generator\.rpn_head\.objectness_logits" + _KIND, "rpn.objectness.{kind}"),
    (r"proposal_generator\.rpn_head\.anchor_deltas" + _KIND, "rpn.deltas.{kind}"),
    (r"roi_heads\.box_head\.fc(?P<number>[12])" + _KIND, "box_head.fc{number}.{kind}"),
    (r"roi_heads\.box_predictor\.cls_score" + _KIND, "box_head.classes.{kind}"),
    (r"roi_heads\.box_predictor\.bbox_pred" + _KIND, "box_head.deltas.{kind}"),
    (r"roi_heads\.mask_head\.mask_fcn(?P<layer>[1-4])" + _KIND, "instance_heads.mask.convs.{layer}.{kind}"),
    (r"roi_heads\.mask_head\.deconv" + _KIND, "instance_heads.mask.deconv.{kind}"),
    (r"roi_heads\.mask_head\.predictor" + _KIND, "instance_heads.mask.predictor.{kind}"),
    (r"roi_heads\.keypoint_head\.conv_fcn(?P<layer>[1-8])" + _KIND, "instance_heads.keypoint.convs.{layer}.{kind}"),
    (r"roi_heads\.keypoint_head\.score_lowres" + _KIND, "instance_heads.keypoint.deconv.{kind}"),
]
_TABLES = {
    "stage": {"2": "1", "3": "2", "4": "3", "5": "4"},
    "level": {"2": "4", "3": "8", "4": "16", "5": "32"},
    "layer": {str(layer): str(layer - 1) for layer in range(1, 9)},
}
_UNUSED = r"pixel_mean|pixel_std|proposal_generator\.anchor_generator\.cell_anchors\.\d+|.*num_batches_tracked"
_PIXELS = {  # mean and std of the channels in the network's order, in grey levels of 255
    "detectron2": (103.53, 116.28, 123.675, 1, 1, 1),
    "detectron2-x101": (103.53, 116.28, 123.675, 57.375, 57.12, 58.395),
    "timm": (123.675, 116.28, 103.53, 58.395, 57.12, 57.375),
}
_LAST_BLOCKS = {"5": "r50", "22": "r101"}  # of the fourth stage, by its number


def recognizes(state: Mapping[str, Tensor]) -> bool:
    """Whether names look like detectron2's two-stage detectors, of whatever body."""
    return "proposal_generator.rpn_head.conv.weight" in state and "roi_heads.box_predictor.cls_score.weight" in state


def convert(state: Mapping[str, Tensor]) -> Converted:
    """Rename; the caller checks that the result is complete.

    Raises:
        ValueError: another body, or names that have no place in the network, all of them listed up to a limit.
    """
    marks = {"fpn": "backbone.fpn_lateral2", "dc5": "backbone.res5.0.conv1", "c4": "roi_heads.res5.0.conv1"}
    on_top = next((body for body, mark in marks.items() if f"{mark}.weight" in state), None)
    if on_top is None:
        raise ValueError(f"it has neither an FPN nor the last stage of C4 or DC5: {', '.join(marks.values())} are missing")
    tensors = rename(state, _RULES, _TABLES, unused=_UNUSED)
    blocks = [name.split(".")[3] for name in tensors if name.startswith("backbone.network.layer3.")]
    depth = _LAST_BLOCKS.get(max(blocks, key=int, default=""))
    if depth is None:
        raise ValueError(f"its ResNet has {len(set(blocks))} blocks in the fourth stage: only R50, R101 and X101 are known")
    body = "backbone.bottom_up" if on_top == "fpn" else "backbone"
    is_resnext = _shape(state, f"{body}.res2.0.conv2.weight", 4)[1] < 64  # groups of 8 channels
    has_masks, has_points = (any(n.startswith(f"instance_heads.{head}.") for n in tensors) for head in ("mask", "keypoint"))
    kind = f"{'mask-' if has_masks else ''}keypoint" if has_points else "mask" if has_masks else "faster"
    count = _shape(state, "roi_heads.box_predictor.cls_score.weight", 2)[0] - 1
    names, ids = _classes(count, has_points=has_points)
    arguments: dict[str, Any] = {"num_classes": count}
    points = None
    if has_points:
        points = person_keypoints(state.get("roi_heads.keypoint_head.score_lowres.weight"))
        arguments["num_keypoints"] = len(points.names)
    system = f"{kind}-rcnn-{'x101' if is_resnext else depth}-{on_top}"
    assumed = {}
    if {"pixel_mean", "pixel_std"} <= state.keys():
        arguments["weights_origin"] = _origin(state)
    else:
        assumed["weights_origin"] = "detectron2-x101" if is_resnext else "detectron2"  # as in the zoo
    return Converted(tensors, system=system, arguments=arguments, names=names, ids=ids, keypoints=points, assumed=assumed)


def _origin(state: Mapping[str, Tensor]) -> str:
    """Whose ResNet it was trained from, by the mean and std of its pixels."""
    found = torch.cat([state[f"pixel_{part}"].flatten().to(torch.float32) for part in ("mean", "std")])
    for name, wanted in _PIXELS.items():
        if found.shape == (6,) and torch.allclose(found, found.new_tensor(wanted), atol=0.01):
            return name
    given = ", ".join(f"{value:g}" for value in found.tolist())
    raise ValueError(f"its pixels have mean and std {given}, which no ResNet here has")


def _shape(state: Mapping[str, Tensor], name: str, dimensions: int) -> tuple[int, ...]:
    if name not in state or state[name].ndim != dimensions:
        got = "is missing" if name not in state else f"is {tuple(state[name].shape)}"
        raise ValueError(f"{name} {got}, expected {dimensions} dimensions")
    return tuple(state[name].shape)


def _classes(count: int, *, has_points: bool) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """COCO's 80 in the order of their ids, a person where there are keypoints, else plain numbers."""
    listed = [(name, row) for row, name in enumerate(COCO_ROWS) if row and name != "N/A"]
    if count == len(listed):
        return tuple(name for name, _ in listed), tuple(row for _, row in listed)
    if has_points and count == 1:
        return ("person",), (1,)
    return numbered(count)
