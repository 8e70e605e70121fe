"""Numbers of the published R-CNNs: sizes, constants of training and inference, and small examples worked out elsewhere."""

import math
import re

import pytest
import torch
from torch import nn

from maskwright.layers.assignment import IouMatcher, SampledMeanSampler
from maskwright.layers.backbones import Backbone, LastStage
from maskwright.layers.box_coding import BoxCoder
from maskwright.layers.grids import CaffeAnchors, PyramidAnchors
from maskwright.layers.norms import FrozenNorm
from maskwright.layers.roi import RoiAlign, RoiPool, Rois, level_of
from maskwright.recipes import RECIPES, find_recipe
from maskwright.structures import Instances
from maskwright.structures import boxes as box_functions
from maskwright.systems import SYSTEMS
from maskwright.systems.rcnn.mask_rcnn import RoiSampler, SampledRois, box_losses
from maskwright.systems.rcnn.rpn import RegionProposalNetwork
from maskwright.systems.rcnn.sizes import MASK_R50_C4, MASK_R50_FPN


def built(name, **arguments):
    """A network without numbers."""
    with torch.device("meta"):
        return SYSTEMS[name](**{"num_classes": 1 if "keypoint" in name else 80, **arguments})


def count(*parts):
    return sum(p.numel() for part in parts for p in part.parameters())


# Constants (spec § 5.6, 7, 9, 11, 16)


@pytest.mark.parametrize(
    ("name", "kept", "candidates", "betas", "divisor"),
    [
        ("mask-rcnn-r50-fpn", 1000, (2000, 0), (0, 0), 32),
        ("faster-rcnn-r101-fpn", 1000, (2000, 0), (0, 0), 32),
        ("keypoint-rcnn-r50-fpn", 1500, (2000, 0), (0.5, 0), 32),
        ("mask-keypoint-rcnn-r50-fpn", 1500, (2000, 0), (0.5, 0), 32),
        ("mask-rcnn-r50-c4", 2000, (12000, 6000), (0, 0), 1),
        ("faster-rcnn-r101-dc5", 2000, (12000, 6000), (0, 0), 1),
        ("mask-rcnn-r50-fpn-torchvision", 2000, (2000, 0), (1 / 9, 1 / 9), 32),
        ("mask-rcnn-r50-fpn-torchvision-v2", 2000, (2000, 0), (1 / 9, 1 / 9), 32),
    ],
)
def test_constants(name, kept, candidates, betas, divisor):
    system = built(name)
    assert system.num_training_proposals == kept
    assert (system.num_training_candidates, system.num_candidates) == candidates
    assert (system.box_head.box_beta, system.rpn.box_beta) == betas
    assert system.input.size_divisor == divisor  # without a pyramid, detectron2 pads to the largest image alone
    assert (system.num_proposals, system.max_detections) == (1000, 100)
    assert (system.box_head.nms_iou, system.rpn.nms_iou, system.box_head.score_threshold) == (0.5, 0.7, 0.05)
    assert (system.roi_sampler.sampler.count, system.roi_sampler.sampler.positive_fraction) == (512, 0.25)
    assert (system.rpn.sampler.count, system.rpn.sampler.positive_fraction) == (256, 0.5)
    sides = (1e-3, 1e-2) if "torchvision" in name else (0, 0)
    assert (system.rpn.min_side_px, system.box_head.min_side_px) == sides


def test_c4_of_the_paper():
    recipe = find_recipe("mask-rcnn-r50-c4-paper")
    assert recipe.arguments == {"roi_side": 7, "per_image": 64, "num_proposals": 300}
    paper, usual = built(recipe.system, **recipe.arguments), built(recipe.system)
    assert paper.roi_sampler.sampler.count == 64
    assert count(paper) == count(usual)
    for system, side in ((paper, 7), (usual, 14)):  # fig. 4: both answer 7×7, and masks of 14×14
        staged = system.box_head.staged
        assert staged.pool.side == side
        assert staged.stage(torch.zeros(2, 1024, side, side, device="meta")).shape == (2, 2048, 7, 7)


@pytest.mark.parametrize("origin", ["timm", "detectron2"])
def test_the_last_stage_with_stride_1_is_that_of_a_larger_map(origin):
    """Every second cell of what the stage of stride 1 sees first is what that of stride 2 sees."""
    moved = origin == "detectron2"
    whole, kept = (LastStage("resnet18", norm="group", stride=stride) for stride in (2, 1))
    kept.load_state_dict(whole.state_dict())
    strides = {stage: {c.stride for c in stage.modules() if isinstance(c, nn.Conv2d)} for stage in (whole, kept)}
    assert strides == {whole: {(1, 1), (2, 2)}, kept: {(1, 1)}}
    deep = LastStage("resnet50", norm="group", stride=1, stride_in_1x1=moved)
    assert {c.stride for c in deep.modules() if isinstance(c, nn.Conv2d)} == {(1, 1)}
    x = torch.randn(1, 256, 14, 14)
    with torch.no_grad():
        assert torch.allclose(whole.blocks[0].conv1(x), kept.blocks[0].conv1(x)[..., ::2, ::2], atol=1e-5)
        assert torch.allclose(whole.blocks[0].downsample[0](x), kept.blocks[0].downsample[0](x)[..., ::2, ::2], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "epochs", "drops"),
    [
        ("keypoint-rcnn-r50-fpn", 25, (60 / 90, 80 / 90)),
        ("keypoint-rcnn-r50-fpn-3x", 76, (210 / 270, 250 / 270)),
        ("mask-rcnn-r50-fpn-torchvision", 26, (16 / 26, 22 / 26)),
        ("keypoint-rcnn-r50-fpn-torchvision", 46, (36 / 46, 43 / 46)),
    ],
)
def test_schedules_of_releases(name, epochs, drops):
    (stage,) = find_recipe(name).stages
    assert (stage.epochs, stage.schedule.drops) == (epochs, pytest.approx(drops))
    assert (stage.schedule.warmup_steps, stage.schedule.warmup_factor) == (1000, 0.001)
    assert stage.optimizer.norm_weight_decay == (1e-4 if "torchvision" in name else 0)
    if "keypoint" in name:
        assert stage.augment.short_sides == (640, 672, 704, 736, 768, 800)
        assert find_recipe(name).train_on == "keypoints"


def test_images_without_objects_are_learnt_from_and_where_keypoints_are_learnt_those_with_some():
    for name in RECIPES:  # Mask R-CNN, sec. 5: "images that contain annotated keypoints"
        assert find_recipe(name).train_on == ("keypoints" if re.search("keypoint-rcnn.*-[rx](50|101)", name) else "all"), name


@pytest.mark.parametrize(
    ("name", "steps", "images"),
    [
        ("mask-rcnn-r50-fpn-paper", 160_000, 118_287),
        ("mask-rcnn-x101-64x4d-fpn-paper", 160_000, 118_287),
        ("mask-rcnn-r50-fpn-cityscapes", 24_000, 2_975),
        ("mask-rcnn-r50-fpn-cityscapes-from-coco", 4_000, 2_975),
    ],
)
def test_steps_of_the_paper(name, steps, images):
    (stage,) = find_recipe(name).stages
    assert stage.epochs * images / stage.batch_size == pytest.approx(steps, rel=1e-3)


def test_detectrons_recipe_of_its_widest_resnext():
    (stage,) = find_recipe("mask-rcnn-x101-64x4d-fpn").stages
    assert (stage.batch_size, stage.lr, stage.optimizer.bias_lr_factor, stage.optimizer.bias_weight_decay) == (8, 0.01, 2, 0)
    assert (stage.schedule.warmup_steps, stage.schedule.warmup_factor) == (500, pytest.approx(1 / 3))
    assert stage.augment.short_sides == ()


def test_what_is_frozen():
    (stage,) = find_recipe("mask-rcnn-r50-fpn").stages
    system = built("mask-rcnn-r50-fpn")
    frozen = [p.numel() for name, p in system.named_parameters() if name.startswith(stage.frozen)]
    assert sum(frozen) == 222_400  # stem and first stage, spec § 4.1


# Sizes (spec § 4.1, 4.3, 4.4)


def test_parts():
    fpn = built("mask-rcnn-r50-fpn")
    mask = fpn.instance_heads["mask"]
    assert count(fpn.fpn) == 3_344_384
    assert count(fpn.rpn) == 593_935
    assert count(fpn.box_head.fc1, fpn.box_head.fc2) == 13_895_680
    assert count(fpn.box_head.classes, fpn.box_head.deltas) == 411_025
    assert (count(mask.convs), count(mask.deconv), count(mask.predictor)) == (2_360_320, 262_400, 20_560)
    c4 = built("mask-rcnn-r50-c4")
    assert count(c4.rpn) == 9_515_083
    assert count(c4.box_head.staged) == 14_942_208
    assert count(c4.box_head.classes, c4.box_head.deltas) == 821_649
    assert count(c4.instance_heads["mask"]) == 2_117_968


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet50", 23_508_032),
        ("resnet101", 42_500_160),
        ("resnext101_32x8d", 86_742_336),
        ("resnext101_64x4d", 81_406_272),
    ],
)
def test_bodies_with_their_norms(name, parameters):
    with torch.device("meta"):
        body = Backbone(name, strides=(4, 8, 16, 32), norm="frozen")
    norms = [m for m in body.modules() if isinstance(m, FrozenNorm)]
    assert count(body) + 2 * sum(len(m.weight) for m in norms) == parameters
    if name == "resnet50":
        assert (len(norms), sum(len(m.weight) for m in norms), count(body)) == (53, 26_560, 23_454_912)


@pytest.mark.parametrize(
    ("name", "theirs", "background"),
    [
        ("mask-rcnn-r50-fpn-torchvision", 44_401_393, 4_357),
        ("faster-rcnn-r50-fpn-torchvision", 41_755_286, 4_100),
        ("keypoint-rcnn-r50-fpn-torchvision", 59_137_258, 4_100),
    ],
)
def test_torchvisions_counts_but_for_rows_of_the_background(name, theirs, background):
    assert count(built(name, num_classes=1 if "keypoint" in name else 90)) == theirs - background


def test_numbers_of_anchors():
    def number(anchors, height, width):
        features = {s: torch.zeros(1, 1, math.ceil(height / s), math.ceil(width / s), device="meta") for s in anchors.shapes}
        return sum(features[s].shape[2] * features[s].shape[3] * anchors.per_cell for s in anchors.shapes)

    fpn, c4 = PyramidAnchors(MASK_R50_FPN.anchors), PyramidAnchors(MASK_R50_C4.anchors)
    assert (number(fpn, 800, 1088), number(fpn, 1024, 2048), number(c4, 800, 1088)) == (217_413, 523_776, 51_000)


def test_cells_of_the_first_code():
    rows = CaffeAnchors.cell([32, 64], (0.5, 1.0, 2.0))
    inclusive = [
        [-15, -4, 30, 19], [-38, -16, 53, 31], [-8, -8, 23, 23], [-24, -24, 39, 39], [-3, -14, 18, 29], [-14, -36, 29, 51],
    ]  # fmt: skip
    assert rows.tolist() == [[x0, y0, x1 + 1, y1 + 1] for x0, y0, x1, y1 in inclusive]


# Examples (spec § 5.3, 5.5, 7, 8, 9, 21)


def test_an_object_without_overlap_takes_all_anchors_without_overlap_at_torchvisions(monkeypatch):
    iou = torch.tensor([[0.9, 0.5, 0.2, 0.0], [0.1, 0.35, 0.35, 0.0], [0.0, 0.0, 0.0, 0.0]]).T  # (anchors, objects)
    monkeypatch.setattr(box_functions, "iou", lambda *_: iou)
    target = Instances((9, 9), boxes=torch.tensor([[0.0, 0, 1, 1]] * 3), labels=torch.zeros(3, dtype=torch.int64))
    found = IouMatcher(positive=0.7, negative=0.3, rescue_above=-1.0)(torch.zeros(4, 4), target)
    assert (found.kind.tolist(), found.target_index.tolist()) == ([1, 1, 1, 1], [0, 0, 1, 0])
    found = IouMatcher(positive=0.7, negative=0.3, rescue_above=0.0)(torch.zeros(4, 4), target)
    assert found.kind.tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize(("per_image", "positives"), [(64, 16), (512, 128)])
def test_a_quarter_of_rois_hold_objects_at_most(per_image, positives):
    box = torch.tensor([[10.0, 10, 50, 50]])
    away = torch.tensor([[100.0, 100, 140, 140]])
    target = Instances((200, 200), boxes=box, labels=torch.zeros(1, dtype=torch.int64))
    proposals = torch.cat([box.expand(399, 4), away.expand(2000, 4)])
    sampler = RoiSampler(num_classes=1, per_image=per_image)
    sampled = sampler([proposals], [target], [torch.Generator().manual_seed(0)])
    assert (len(sampled.rois), len(sampled.positives)) == (per_image, positives)


@pytest.mark.parametrize(("beta", "loss"), [(0.0, 0.05), (1 / 9, 0.01125), (0.5, 0.0025), (1.0, 0.00125)])
def test_box_loss_of_a_small_error(beta, loss):
    """One error of 0.05 in one of 512 RoIs; and the same in one anchor."""
    box = torch.tensor([[10.0, 20, 50, 80]])
    rois = Rois(box.expand(512, 4), torch.zeros(512, dtype=torch.int64))
    sampled = SampledRois(rois, torch.tensor([0] + [1] * 511), box, [torch.tensor([0])])
    deltas = torch.zeros(512, 1, 4)
    deltas[0, 0, 2] = 0.05
    coder = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))
    found = box_losses(sampled, torch.zeros(512, 2), deltas, coder=coder, beta=beta)["box"]
    assert found.total.item() == pytest.approx(loss, rel=1e-5)
    assert found.count.item() == 512
    rpn = RegionProposalNetwork(4, anchors=PyramidAnchors({4: (8,)}), box_beta=beta)
    target = Instances((8, 8), boxes=torch.tensor([[0.0, 0, 8, 8]]), labels=torch.zeros(1, dtype=torch.int64))
    candidates = rpn({4: torch.zeros(1, 4, 2, 2)})
    wanted = rpn.coder.encode(target.boxes, candidates.anchors[0][:1])
    shifted = torch.zeros(1, 12, 4)
    shifted[0, 0] = wanted + torch.tensor([0.05, 0, 0, 0])
    drawn = type(rpn.draw(candidates.anchors[0], target, torch.Generator()))(
        torch.tensor([0]), torch.tensor([3]), torch.tensor([0])
    )
    losses = rpn.loss_of(candidates._replace(deltas=[shifted]), [target], [drawn])
    assert losses["rpn_box"].total.item() == pytest.approx(loss, rel=1e-4)


def test_torchvisions_rpn_divides_by_what_was_drawn():
    rpn = RegionProposalNetwork(
        4, anchors=PyramidAnchors({4: (8,)}, ratios=(1.0,)), sampler=SampledMeanSampler(256, positive_fraction=0.5)
    )
    nn.init.zeros_(rpn.objectness.weight)
    target = Instances((36, 40), boxes=torch.tensor([[0.0, 0, 8, 8]]), labels=torch.zeros(1, dtype=torch.int64))
    features = {4: torch.zeros(1, 4, 9, 10)}
    candidates = rpn(features)
    found = rpn.loss(candidates, [target], [torch.Generator().manual_seed(0)])["rpn_objectness"]
    kind = rpn.matcher(candidates.anchors[0], target).kind
    drawn = int((kind >= 0).sum())
    assert drawn < 256
    assert found.count.item() == drawn
    assert (found.total / found.count).item() == pytest.approx(math.log(2), rel=1e-6)


def ramps(height, width):
    """x and y of each cell, (1, 2, H, W)."""
    y, x = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    return torch.stack([x, y])[None]


def of(*corners):
    return Rois(torch.tensor([[float(c) for c in corners]]), torch.zeros(1, dtype=torch.int64))


def test_roi_pool_on_ramps():
    found = RoiPool(2, stride=8)({8: ramps(20, 20)}, of(40, 24, 120, 100))[0]
    assert found.tolist() == [[[10, 15], [10, 15]], [[8, 8], [13, 13]]]


@pytest.mark.parametrize("samples", [0, 1, 2])
def test_roi_align_half_a_cell_off_on_ramps(samples):
    align = RoiAlign(2, strides=(1,), sampling_ratio=samples, aligned=False)
    found = align({1: ramps(16, 16)}, of(2, 3, 10, 7))[0]
    assert torch.allclose(found, torch.tensor([[[4.0, 8], [4, 8]], [[4, 4], [6, 6]]]), atol=1e-5)
    ones = {1: torch.ones(1, 1, 8, 8)}
    assert align(ones, of(-2, -2, 0, 0)).flatten().tolist() == pytest.approx([0, 0, 0, 1], abs=1e-6)
    assert align(ones, of(7, 7, 9, 9)).flatten().tolist() == pytest.approx([1, 0, 0, 0], abs=1e-6)
    assert align(ones, of(9, 9, 9, 9)).abs().max() == 0
    assert RoiAlign(2, strides=(1,), sampling_ratio=samples)(ones, of(9, 9, 9, 9)).abs().max() == 0


def test_roi_align_half_a_cell_off_at_an_eighth():
    found = RoiAlign(2, strides=(8,), sampling_ratio=2, aligned=False)({8: ramps(20, 20)}, of(40, 24, 120, 100))[0]
    assert torch.allclose(found[0, 0], torch.tensor([7.5, 12.5]), atol=1e-5)
    assert torch.allclose(found[1, :, 0], torch.tensor([5.375, 10.125]), atol=1e-5)


def test_levels_by_side_with_torchvisions_tolerance():
    sides = torch.tensor([1.0, 111, 112, 223, 224, 447, 448, 2000, 111.99998, 223.9999])
    boxes = torch.stack([torch.zeros(10), torch.zeros(10), sides, sides], dim=1)
    strides = level_of(boxes, (4, 8, 16, 32), tolerance=1e-6)
    assert strides.tolist() == [4, 4, 8, 8, 16, 16, 32, 32, 8, 16]
    assert level_of(boxes[-2:], (4, 8, 16, 32), tolerance=0.0).tolist() == [4, 8]


# First weights (spec § 5.2, 9, 10.1)


def test_first_weights():
    system = SYSTEMS["mask-rcnn-small"](num_classes=80)
    layers = {
        system.rpn.conv: 0.01,
        system.rpn.objectness: 0.01,
        system.rpn.deltas: 0.01,
        system.box_head.classes: 0.01,
        system.box_head.deltas: 0.001,
        system.instance_heads["mask"].predictor: 0.001,
    }
    for layer, std in layers.items():
        assert layer.weight.std().item() == pytest.approx(std, rel=0.1)
        assert layer.weight.mean().item() == pytest.approx(0, abs=std / 10)
        assert not layer.bias.any()


def test_a_norm_that_never_saw_anything_stays_finite():
    norm = nn.BatchNorm2d(1, eps=1e-5)
    nn.init.zeros_(norm.running_var)
    scale, shift = FrozenNorm(norm).factors()
    assert (scale.item(), shift.item()) == (pytest.approx(316.2278, rel=1e-6), 0)
