"""Files of detectron2's zoo by their published names and shapes: every entry has its place, and none is left."""

import pytest
import torch

from maskwright.systems import SYSTEMS
from maskwright.weights.detectron2 import convert

BLOCKS = {"r50": (3, 4, 6, 3), "r101": (3, 4, 23, 3), "x101": (3, 4, 23, 3)}


def layer(name, *shape, outputs=None):
    """Weight and bias."""
    return {f"{name}.weight": shape, f"{name}.bias": (outputs or shape[0],)}


def convolution(name, *shape):
    """With a norm, whose four numbers are frozen."""
    parts = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.weight": shape, **{f"{name}.norm.{part}": shape[:1] for part in parts}}


def body(depth, prefixes):
    """Stem and stages res2 to res5, each under a name of its own."""
    names = convolution(f"{prefixes[0]}.stem.conv1", 64, 3, 7, 7)
    channels = 64
    for stage, (prefix, blocks) in enumerate(zip(prefixes, BLOCKS[depth], strict=True)):
        wide = 256 * 2**stage
        narrow, groups = (wide, 32) if depth == "x101" else (wide // 4, 1)
        for block in range(blocks):
            place = f"{prefix}.res{stage + 2}.{block}"
            if block == 0:
                names |= convolution(f"{place}.shortcut", wide, channels, 1, 1)
            names |= convolution(f"{place}.conv1", narrow, channels, 1, 1)
            names |= convolution(f"{place}.conv2", narrow, narrow // groups, 3, 3)
            names |= convolution(f"{place}.conv3", wide, narrow, 1, 1)
            channels = wide
    return names


def file_of(kind, depth, on_top, classes):
    """Names and shapes of a zoo file."""
    bottom = "backbone.bottom_up" if on_top == "fpn" else "backbone"
    names = body(depth, [bottom, bottom, bottom, "roi_heads" if on_top == "c4" else bottom])
    width, per_cell = {"fpn": (256, 3), "c4": (1024, 15), "dc5": (2048, 15)}[on_top]
    if on_top == "fpn":
        for level, channels in zip(range(2, 6), (256, 512, 1024, 2048), strict=True):
            names |= layer(f"backbone.fpn_lateral{level}", 256, channels, 1, 1)
            names |= layer(f"backbone.fpn_output{level}", 256, 256, 3, 3)
    rpn, heads = "proposal_generator.rpn_head", "roi_heads"
    names |= layer(f"{rpn}.conv", width, width, 3, 3)
    names |= layer(f"{rpn}.objectness_logits", per_cell, width, 1, 1)
    names |= layer(f"{rpn}.anchor_deltas", 4 * per_cell, width, 1, 1)
    if on_top != "c4":
        names |= layer(f"{heads}.box_head.fc1", 1024, width * 49) | layer(f"{heads}.box_head.fc2", 1024, 1024)
    vector = 2048 if on_top == "c4" else 1024
    names |= layer(f"{heads}.box_predictor.cls_score", classes + 1, vector)
    names |= layer(f"{heads}.box_predictor.bbox_pred", 4 * classes, vector)
    if kind == "mask":
        for number in range(1, 5) if on_top != "c4" else ():
            names |= layer(f"{heads}.mask_head.mask_fcn{number}", 256, width if number == 1 else 256, 3, 3)
        names |= layer(f"{heads}.mask_head.deconv", 2048 if on_top == "c4" else 256, 256, 2, 2, outputs=256)
        names |= layer(f"{heads}.mask_head.predictor", classes, 256, 1, 1)
    if kind == "keypoint":
        for number in range(1, 9):
            names |= layer(f"{heads}.keypoint_head.conv_fcn{number}", 512, 256 if number == 1 else 512, 3, 3)
        names |= layer(f"{heads}.keypoint_head.score_lowres", 512, 17, 4, 4, outputs=17)
    return {name: torch.empty(shape, device="meta") for name, shape in names.items()}


@pytest.mark.parametrize(
    ("kind", "depth", "on_top", "entries", "parameters"),
    [
        ("mask", "r50", "fpn", 307, 44_343_216),
        ("faster", "r50", "fpn", 295, 41_699_936),
        ("keypoint", "r50", "fpn", 313, 59_133_158),
        ("mask", "r50", "c4", 279, 35_909_612),
        ("mask", "r50", "dc5", 291, 172_353_516),
        ("mask", "x101", "fpn", 562, 107_427_760),
        ("mask", "r101", "fpn", 562, None),
        ("faster", "x101", "fpn", 550, None),
        ("faster", "r50", "c4", 275, None),
        ("faster", "r101", "c4", 530, None),
        ("mask", "r101", "c4", 534, None),
        ("faster", "r50", "dc5", 279, None),
        ("mask", "r101", "dc5", 546, None),
        ("keypoint", "r101", "fpn", 568, None),
        ("keypoint", "x101", "fpn", 568, None),
    ],
)
def test_every_entry_has_a_place_and_every_place_an_entry(kind, depth, on_top, entries, parameters):
    state = file_of(kind, depth, on_top, classes=1 if kind == "keypoint" else 80)
    assert len(state) == entries
    converted = convert(state)
    assert converted.system == f"{kind}-rcnn-{depth}-{on_top}"
    assert converted.assumed == {"weights_origin": "detectron2-x101" if depth == "x101" else "detectron2"}
    with torch.device("meta"):
        system = SYSTEMS[converted.system](**converted.arguments, **converted.assumed)
    ours = {name: tuple(value.shape) for name, value in system.state_dict().items()}
    assert {name: tuple(value.shape) for name, value in converted.tensors.items()} == ours
    learnt = sum(value.numel() for name, value in state.items() if ".norm." not in name)
    assert learnt == sum(p.numel() for p in system.parameters())
    if parameters is not None:
        assert learnt == parameters
