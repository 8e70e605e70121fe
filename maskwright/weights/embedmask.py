"""Weights of the authors' EmbedMask, of all four versions of their code, in our names.

V1 to V3 are written by maskrcnn-benchmark (yinghdb/EmbedMask), V4 by detectron2 (yinghdb/AdelaiDet). The version is told by the
layer that predicts margins, the depth of the ResNet by its blocks.
"""

from collections.abc import Mapping

from torch import Tensor

from maskwright.weights.conversion import COCO_ROWS, Converted, numbered, rename

_KIND = r"\.(?P<kind>weight|bias)"
_HEAD = r"rpn\.head\."


def _fcos(head: str, centerness: str) -> list[tuple[str, str]]:
    """The head of FCOS, which all four versions have.

    Args:
        head: what names begin with.
        centerness: what its layer is called.
    """
    return [
        (head + r"cls_tower\.(?P<index>\d+)" + _KIND, "fcos.class_tower.{index}.{kind}"),
        (head + r"bbox_tower\.(?P<index>\d+)" + _KIND, "fcos.box_tower.{index}.{kind}"),
        (head + r"cls_logits" + _KIND, "fcos.classes.{kind}"),
        (head + r"bbox_pred" + _KIND, "fcos.ltrb.{kind}"),
        (head + centerness + _KIND, "fcos.centerness.{kind}"),
        (head + r"scales\.(?P<stride>[0-4])\.scale", "fcos.scales.{stride}.scale"),
    ]


_EARLY = [  # V1 to V3
    (r"backbone\.body\.stem\.(?P<rest>.+)", "backbone.network.{rest}"),
    (r"backbone\.body\.(?P<rest>layer[1-4]\..+)", "backbone.network.{rest}"),
    (r"backbone\.fpn\.fpn_inner(?P<level>[234])" + _KIND, "fpn.lateral.{level}.{kind}"),
    (r"backbone\.fpn\.fpn_layer(?P<level>[234])" + _KIND, "fpn.output.{level}.{kind}"),
    (r"backbone\.fpn\.top_blocks\.(?P<extra>p[67])" + _KIND, "fpn.coarser.convs.{extra}.{kind}"),
    *_fcos(_HEAD, "centerness"),
    (_HEAD + r"mask_tower\.(?P<index>\d+)" + _KIND, "pixel_head.body.tower.{index}.{kind}"),
    (_HEAD + r"(?P<head>proposal|pixel)_embed_pred" + _KIND, "{head}_head.embedding.{kind}"),
    (_HEAD + r"(?P<head>proposal|pixel)_spatial_embed_pred" + _KIND, "{head}_head.embedding.{kind}#0"),
    (_HEAD + r"(?P<head>proposal|pixel)_other_embed_pred" + _KIND, "{head}_head.embedding.{kind}#1"),
    (_HEAD + r"proposal_margin_pred" + _KIND, "proposal_head.margin.conv.{kind}"),
    (_HEAD + r"margin_scales\.(?P<stride>[0-4])\.scale", "proposal_head.margin.scales.{stride}.scale"),
    (_HEAD + r"position_scale\.scale", "positions.factor"),
]
_NORM = r"(?P<rest>weight|bias|running_mean|running_var)"
_BLOCK = r"backbone\.bottom_up\.res(?P<stage>[2-5])\.(?P<block>\d+)\."
_OURS = "backbone.network.layer{stage}.{block}."
_FCOS = r"proposal_generator\.fcos_head\."
_BRANCH = r"mask_branch\."
_FUSED = [  # V4
    (r"backbone\.bottom_up\.stem\.conv1\.weight", "backbone.network.conv1.weight"),
    (r"backbone\.bottom_up\.stem\.conv1\.norm\." + _NORM, "backbone.network.bn1.{rest}"),
    (_BLOCK + r"conv(?P<index>[123])\.weight", _OURS + "conv{index}.weight"),
    (_BLOCK + r"conv(?P<index>[123])\.norm\." + _NORM, _OURS + "bn{index}.{rest}"),
    (_BLOCK + r"shortcut\.weight", _OURS + "downsample.0.weight"),
    (_BLOCK + r"shortcut\.norm\." + _NORM, _OURS + "downsample.1.{rest}"),
    (r"backbone\.fpn_lateral(?P<number>[345])" + _KIND, "fpn.lateral.{number}.{kind}"),
    (r"backbone\.fpn_output(?P<number>[345])" + _KIND, "fpn.output.{number}.{kind}"),
    (r"backbone\.top_block\.(?P<extra>p[67])" + _KIND, "fpn.coarser.convs.{extra}.{kind}"),
    *_fcos(_FCOS, "ctrness"),
    (
        _BRANCH + r"(?P<part>refine|tower)\.(?P<index>\d)\.(?P<sub>[01])\." + _NORM,
        "pixel_head.body.{part}.{index}.{sub}.{rest}",
    ),
    (_BRANCH + r"tower\.4" + _KIND, "pixel_head.body.tower.4.{kind}"),
    (_BRANCH + r"seg_head\.(?P<index>[01])\.(?P<sub>[01])\." + _NORM, "extra_heads.semantic.hidden.{index}.{sub}.{rest}"),
    (_BRANCH + r"logits" + _KIND, "extra_heads.semantic.classes.{kind}"),
    (r"proposal_head\.margin_conv" + _KIND, "proposal_head.margin.reduce.{kind}"),
    (r"proposal_head\.spatial_margin_head" + _KIND, "proposal_head.margin.conv.{kind}#0"),
    (r"proposal_head\.free_margin_head" + _KIND, "proposal_head.margin.conv.{kind}#1"),
    (r"proposal_head\.margin_scales\.(?P<stride>[0-4])\.scale", "proposal_head.margin.scales.{stride}.scale"),
    (r"proposal_head\.embed_conv" + _KIND, "proposal_head.reduce.{kind}"),
    (r"proposal_head\.embed_head\.spatial_embed_head" + _KIND, "proposal_head.embedding.{kind}#0"),
    (r"proposal_head\.embed_head\.free_embed_head" + _KIND, "proposal_head.embedding.{kind}#1"),
    (r"pixel_head\.spatial_embed_head" + _KIND, "pixel_head.embedding.{kind}#0"),
    (r"pixel_head\.free_embed_head" + _KIND, "pixel_head.embedding.{kind}#1"),
]
_FUSED_UNUSED = r".*num_batches_tracked|mask_pred\.(sizes_of_interest|_iter)|pixel_mean|pixel_std"
_TABLES = {
    "level": {"2": "8", "3": "16", "4": "32"},
    "number": {"3": "8", "4": "16", "5": "32"},
    "stage": {"2": "1", "3": "2", "4": "3", "5": "4"},
    "extra": {"p6": "0", "p7": "1"},
    "stride": {"0": "8", "1": "16", "2": "32", "3": "64", "4": "128"},
}
_MARGIN = "rpn.head.proposal_margin_pred.weight"
_FUSED_CLASSES = "proposal_generator.fcos_head.cls_logits.weight"


def recognizes(state: Mapping[str, Tensor]) -> bool:
    """Whether names look like one of the four versions."""
    return _MARGIN in state or (_FUSED_CLASSES in state and any(name.startswith("proposal_head.") for name in state))


def convert(state: Mapping[str, Tensor]) -> Converted:
    """Rename, and put the two halves of embeddings together; the caller checks that the result is complete.

    Raises:
        ValueError: names that have no place in the network, all of them listed up to a limit.
    """
    if _MARGIN not in state:
        depth = 101 if any(name.startswith("backbone.bottom_up.res4.6.") for name in state) else 50
        tensors = rename(state, _FUSED, _TABLES, unused=_FUSED_UNUSED)
        origin = {"weights_origin": "detectron2", "branch_norm": "frozen"}
        return _converted(tensors, f"embedmask-r{depth}-fused", origin)
    depth = 101 if any(name.startswith("backbone.body.layer3.6.") for name in state) else 50
    margin = state[_MARGIN]
    tensors = rename(state, _EARLY, _TABLES)
    if margin.shape[1:] == (4, 1, 1):
        tensors["proposal_head.margin.linear.weight"] = tensors.pop("proposal_head.margin.conv.weight").flatten(1)
        tensors["proposal_head.margin.linear.bias"] = tensors.pop("proposal_head.margin.conv.bias")
        return _converted(tensors, f"embedmask-r{depth}-arxiv", {"weights_origin": "caffe"})
    version = "-scalar" if len(margin) == 1 else ""
    return _converted(tensors, f"embedmask-r{depth}{version}", {"weights_origin": "caffe"})


def _converted(tensors: dict[str, Tensor], system: str, arguments: dict[str, str]) -> Converted:
    num_classes = len(tensors["fcos.classes.weight"])
    names, ids = numbered(num_classes)
    coco = [(name, row) for row, name in enumerate(COCO_ROWS) if row and name != "N/A"]
    if num_classes == len(coco):
        names, ids = tuple(name for name, _ in coco), tuple(row for _, row in coco)
    return Converted(tensors, system=system, arguments={"num_classes": num_classes, **arguments}, names=names, ids=ids)
