"""Weights of the authors' MNC (daijifeng001/MNC, Caffe), in our names.

The background is the first class there and the last here; boxes are regressed in units of a RoI there (the standard deviations
are folded into the saved numbers), in units of a standard deviation here.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from maskwright.weights.conversion import VOC_ROWS, Converted, numbered

_VGG16 = {  # place of each convolution in timm's network
    "conv1_1": 0, "conv1_2": 2, "conv2_1": 5, "conv2_2": 7, "conv3_1": 10, "conv3_2": 12, "conv3_3": 14, "conv4_1": 17,
    "conv4_2": 19, "conv4_3": 21, "conv5_1": 24, "conv5_2": 26, "conv5_3": 28,
}  # fmt: skip
_LAYERS = {
    **{theirs: f"backbones.0.network.features_{place}" for theirs, place in _VGG16.items()},
    "rpn_conv_3x3": "rpn.conv",
    "rpn_cls_score": "rpn.objectness",
    "rpn_bbox_pred": "rpn.deltas",
    "fc6_maskest": "mask_head.fc1",
    "mask_pred": "mask_head.fc2",
    "fc6": "category_head.box_path.fc1",
    "fc7": "category_head.box_path.fc2",
    "fc6_mask": "category_head.mask_path.fc1",
    "fc7_mask": "category_head.mask_path.fc2",
    "cls_score": "category_head.classes",
    "seg_cls_score": "category_head.mask_classes",
    "bbox_pred": "category_head.deltas",
}
_STD = (0.1, 0.1, 0.2, 0.2)


def recognizes(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of MNC."""
    return "seg_cls_score.0" in state and "fc6_maskest.0" in state


def convert(state: Mapping[str, Tensor]) -> Converted:
    """Tensors by our names.

    Raises:
        ValueError: layers that are missing or left over, or that do not belong together.
    """
    kinds = {0: "weight", 1: "bias"}
    missing = [f"{layer}.{i}" for layer in _LAYERS for i in kinds if f"{layer}.{i}" not in state]
    over = [name for name in state if name.rpartition(".")[0] not in _LAYERS and not name.rpartition(".")[0].endswith("_ext")]
    if missing or over:
        wrong = [f"missing {', '.join(missing[:5])}"] * bool(missing) + [f"left over {', '.join(over[:5])}"] * bool(over)
        raise ValueError("; ".join(wrong))
    tensors = {f"{ours}.{kinds[i]}": state[f"{theirs}.{i}"] for theirs, ours in _LAYERS.items() for i in kinds}
    tensors = {name: value.flatten() if name.endswith("bias") else value for name, value in tensors.items()}
    for name in ("fc1", "fc2"):
        tensors[f"mask_head.{name}.weight"] = _matrix(tensors[f"mask_head.{name}.weight"])
    for path in ("box_path", "mask_path"):
        for name in ("fc1", "fc2"):
            tensors[f"category_head.{path}.{name}.weight"] = _matrix(tensors[f"category_head.{path}.{name}.weight"])
    for name, rows in (("classes", 1), ("mask_classes", 1), ("deltas", 4)):
        for kind in kinds.values():
            key = f"category_head.{name}.{kind}"
            value = _matrix(tensors[key]) if kind == "weight" else tensors[key]
            tensors[key] = torch.cat([value[rows:], value[:rows]])
    for kind in kinds.values():
        value = tensors[f"category_head.deltas.{kind}"]
        if len(value) % 4:
            raise ValueError(f"bbox_pred has {len(value)} rows, expected four for each class")
        unit = value.new_tensor(_STD).repeat(len(value) // 4)
        tensors[f"category_head.deltas.{kind}"] = value / (unit[:, None] if kind == "weight" else unit)
    side = round(len(tensors["mask_head.fc2.bias"]) ** 0.5)
    num_classes = len(tensors["category_head.classes.bias"]) - 1
    _, ids = numbers = numbered(num_classes)
    names = VOC_ROWS if num_classes == len(VOC_ROWS) else numbers[0]
    return Converted(tensors, "mnc-vgg16-released", {"num_classes": num_classes, "mask_side": side}, names, ids)


def _matrix(value: Tensor) -> Tensor:
    """Rows and columns of a fully connected layer, which old files keep as (1, 1, rows, columns).

    Raises:
        ValueError: no such layer.
    """
    if value.ndim < 2 or value.numel() != value.shape[-1] * value.shape[-2]:
        raise ValueError(f"got a layer of {tuple(value.shape)}, expected rows and columns")
    return value.reshape(value.shape[-2], value.shape[-1])
