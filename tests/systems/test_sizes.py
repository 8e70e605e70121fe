"""Sizes: fields are arguments, and what does not fit together is said before anything is built."""

import json
from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from maskwright.recipes import find_recipe
from maskwright.runs.checkpoints import all_arguments, build_system
from maskwright.systems import SYSTEMS, find_builder
from maskwright.systems.rcnn.sizes import MASK_SMALL, rcnn


@pytest.mark.parametrize("name", SYSTEMS)
def test_arguments_survive_json(name):
    """Runs hold every argument: what was saved builds the same size again."""
    builder = find_builder(name)
    arguments = json.loads(json.dumps(all_arguments(name, {"num_classes": 2})))
    del arguments["num_classes"]
    assert type(builder.size)(summary=builder.size.summary, **arguments) == builder.size


def test_fields_of_a_size_are_arguments_with_bounds():
    with torch.device("meta"):
        assert build_system("mask-rcnn-small", {"num_classes": 2, "fpn_channels": 64}).box_head.fc1.in_features == 64 * 49
        assert build_system("fcos-small", {"num_classes": 2, "nms_iou": 0.5}).head.nms_iou == 0.5
    with pytest.raises(ValueError, match=r"fcos-small do not fit:\n  nms_iou: Input should be less than or equal to 1 \(got 2"):
        build_system("fcos-small", {"num_classes": 2, "nms_iou": 2})
    recipe = find_recipe("mask-rcnn-small").with_changes(["arguments.anchors={4: [16], 8: [32], 16: [64]}"])
    with torch.device("meta"):
        system = build_system(recipe.system, {"num_classes": 2, **recipe.arguments})
    assert list(system.rpn.anchors.shapes) == [4, 8, 16]
    assert system.fpn.coarser.count == 0


def test_sides_and_shares_reach_their_parts():
    given = {"box_side": 5, "mask_side": 20, "num_keypoints": 3, "keypoint_side": 40, "positive_fraction": 0.5}
    with torch.device("meta"):
        system = build_system("mask-rcnn-small", {"num_classes": 2, "rpn_per_image": 64, **given})
        cascade = build_system("mnc-small", {"num_classes": 2, "voting_iou": 0.4})
        c4, finer = (build_system("mask-rcnn-c4-small", {"num_classes": 2, **a}) for a in ({}, FINER))
    heads = system.instance_heads
    assert [system.box_head.pool.side, heads["mask"].pool.side, heads["keypoint"].pool.side] == [5, 10, 10]
    assert system.roi_sampler.sampler.positive_fraction == 0.5
    assert (system.rpn.sampler.count, cascade.voting.nms_iou) == (64, 0.4)
    assert [s.box_head.staged.stage.blocks[0].conv1.in_channels for s in (c4, finer)] == [128, 64]


FINER = {"strides": [4], "anchors": {4: [24, 48, 96, 192, 384]}}  # the stage after the map looks at RoIs


def test_a_size_is_frozen_and_a_variant_is_a_replacement():
    with pytest.raises(FrozenInstanceError):
        MASK_SMALL.roi = "pool"
    variant = replace(MASK_SMALL, roi="pool")
    assert (variant.roi, MASK_SMALL.roi) == ("pool", "align")
    with torch.device("meta"):
        assert type(rcnn(variant, 2).box_head.pool).__name__ == "ByLevel"


def test_every_field_is_described():
    undescribed = [
        f"{name}: {field}"
        for name, builder in SYSTEMS.items()
        for field, text in type(builder.size).descriptions().items()
        if not text.endswith((".", ")"))
    ]
    assert undescribed == []


@pytest.mark.parametrize("backbone", ["resnet34", "resnet26"])
@pytest.mark.parametrize("name", [n for n in SYSTEMS if n.endswith("-small")])
def test_another_resnet_is_an_argument_in_every_family(name, backbone):
    with torch.device("meta"):
        system = build_system(name, {"num_classes": 2, "backbone": backbone})
        usual = build_system(name, {"num_classes": 2})
    counts = [sum(p.numel() for p in s.parameters()) for s in (system, usual)]
    assert counts[0] != counts[1]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("mask-rcnn-small", {"backbone": "resnet99"}, "timm has no backbone 'resnet99'; near it: resnet"),
        ("mask-rcnn-small", {"backbone": "hf_hub:somebody/something"}, "timm has no backbone 'hf_hub:somebody/something'"),
        ("mask-rcnn-small", {"backbone": "swin_tiny_patch4_window7_224"}, "swin_tiny_patch4_window7_224' .its images have one"),
        ("mask-rcnn-small", {"strides": []}, "strides: Tuple should have at least 1 item"),
        (
            "mask-rcnn-small",
            {"strides": [16, 8, 4]},
            r"got strides \[16, 8, 4\] of resnet18, expected each once, the finest first",
        ),
        ("multipath-small", {"strides": [4, 4, 4]}, r"got strides \[4, 4, 4\] of resnet18, expected each once"),
        ("mask-rcnn-small", {"anchors": {}}, "anchors: Dictionary should have at least 1 item"),
        ("mnc-small", {"anchors": []}, "anchors: Tuple should have at least 1 item"),
        ("mask-rcnn-small", {"anchors": {4: []}}, r"anchors\.4: Tuple should have at least 1 item"),
        ("deepmask-small", {"octaves": [100.0]}, r"octaves\.0: Input should be less than or equal to 4"),
        ("deepmask-small", {"backbone": "vgg11"}, "vgg11 cannot be had dilated from stride 8 on"),
        ("deepmask-vgg", {"window_px": 225}, "got window_px 225, expected a multiple of 16"),
        ("mnc-small", {"stride": 32}, "got a dilated stage of resnet18 after stride 32"),
        ("mnc-small", {"norm": "none"}, "resnet18 has batch norms, got norm='none', expected 'frozen' or 'group'"),
        ("mnc-small", {"category_hidden": None}, "got reduced beside category_hidden=null"),
        ("embedmask-fused-small", {"strides": [8, 16], "bounds": [64]}, r"got strides \(8, 16\), expected three at least"),
        ("fcos-small", {"bounds": [256, 128, 64]}, "got bounds .256, 128, 64., expected each greater than the one before"),
        ("sharpmask-small", {"width": 3}, "got width 3, expected 8 at least"),
        ("fast-rcnn-small", {"dropout": 1.0}, "dropout: Input should be less than 1"),
        ("mask-rcnn-small", {"box_beta": float("inf")}, "box_beta: Input should be a finite number"),
        ("mask-rcnn-small", {"mask_side": 27}, "mask_side: Input should be a multiple of 2"),
        ("mask-rcnn-small", {"backbone": "vit_tiny_patch16_224"}, "vit_tiny_patch16_224' .its images have one size"),
        ("mask-rcnn-c4-small", {"backbone": "convnext_atto", "strides": [8]}, "convnext_atto has no stage 'layer3'"),
        ("mask-rcnn-small", {"strides": [3, 8]}, r"got strides \[3\] of resnet18, expected some of \[2, 4, 8, 16, 32\]"),
        (
            "mask-rcnn-small",
            {"anchors": {4: [24], 8: [48], 128: [96]}},
            "got anchors at strides 4, 8, 128, expected some of 4, 8, 16",
        ),
        ("mask-rcnn-small", {"anchors": {4: [24, 48], 8: [48]}}, "expected as many at every stride"),
        ("mask-rcnn-small", {"fpn_channels": None}, "got strides .4, 8, 16. without a pyramid, expected one map"),
        ("mask-rcnn-c4-small", {"strides": [4, 8]}, "got strides .4, 8., expected the one map of a system without a pyramid"),
        ("fcos-small", {"strides": [8, 16, 64, 128]}, r"got strides \(8, 16, 64, 128\) on maps of \(8, 16\), expected those"),
        ("fcos-small", {"bounds": [64, 128]}, r"got bounds \(64, 128\) for 4 levels, expected one between each two"),
        ("mask-rcnn-small", {"sampling_ratio": -1}, "sampling_ratio: Input should be greater than or equal to 0"),
        ("mask-rcnn-small", {"mask": "softmx"}, "mask: Input should be 'sigmoid', 'softmax', 'agnostic', 'mlp' or 'mlp-3'"),
        ("deepmask-small", {"window_px": 81}, "got window_px 81, expected a multiple of 8"),
    ],
)
def test_what_does_not_fit_together_is_said(name, arguments, message):
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        build_system(name, {"num_classes": 1, **arguments})
