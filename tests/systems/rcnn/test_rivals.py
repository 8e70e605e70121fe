"""The parts Mask R-CNN was compared with."""

import math

import pytest
import torch
from torchvision.ops import roi_align, roi_pool

from maskwright.layers.roi import ByLevel, MeanRoiWarp, RoiAlign, RoiAlignMax, RoiPool, Rois, RoundedRoiWarp
from maskwright.structures import Instances, Masks
from maskwright.systems import SYSTEMS
from maskwright.systems.rcnn.mask_rcnn import MaskHead, SampledRois
from maskwright.systems.rcnn.rivals import (
    ROI_OPERATORS,
    AgnosticMaskHead,
    AgnosticStagedMaskHead,
    MlpMaskHead,
    SoftmaxMaskHead,
    SoftmaxStagedMaskHead,
)
from tests.contract.test_contract import batch_of, objects, total

STRIDES = (4, 8)
POOL = RoiAlign(14, strides=STRIDES, sampling_ratio=2)


def features(channels=8):
    g = torch.Generator().manual_seed(0)
    return {4: torch.randn(2, channels, 40, 50, generator=g), 8: torch.randn(2, channels, 20, 25, generator=g)}


def rois(count=12):
    g = torch.Generator().manual_seed(1)
    corner = torch.rand(count, 2, generator=g) * 60
    extent = torch.tensor([[20.0, 30.0], [110, 100]])[torch.arange(count) % 2] * (0.5 + torch.rand(count, 2, generator=g))
    return Rois(torch.cat([corner, corner + extent], dim=1), torch.arange(count) % 2)


def learning(labels, size=(160, 200)):
    """Two RoIs that hold two squares of given classes, and a RoI of the background."""
    dense = torch.zeros(2, *size, dtype=torch.bool)
    dense[0, 20:60, 20:60] = True
    dense[1, 80:140, 90:150] = True
    masks = Masks.from_dense(dense)
    target = Instances(size, boxes=masks.boxes(), labels=torch.tensor(labels), masks=masks)
    boxes = torch.cat([target.boxes + torch.tensor([-10.0, -5, 5, 10]), torch.tensor([[0.0, 100, 60, 150]])])
    index = torch.zeros(3, dtype=torch.int64)
    return SampledRois(Rois(boxes, index), torch.tensor([*labels, 3]), target.boxes, [torch.arange(2)]), [target]


# RoI operators


def test_the_greatest_sample_is_that_of_torchvision_cell_by_cell():
    """RoIAlign with one sample a cell on a grid twice as fine gives the samples."""
    found = RoiAlignMax(7, strides=(4,), sampling_ratio=2)(features(), rois())
    rows = torch.cat([rois().image_index[:, None].float(), rois().boxes], dim=1)
    samples = roi_align(features()[4], rows, 14, 0.25, sampling_ratio=1, aligned=True)
    assert torch.allclose(found, torch.nn.functional.max_pool2d(samples, 2), atol=1e-5)
    mean = RoiAlign(7, strides=(4,), sampling_ratio=2)(features(), rois())
    assert torch.allclose(mean, torch.nn.functional.avg_pool2d(samples, 2), atol=1e-5)


def test_the_greatest_sample_has_exact_gradients():
    pool = RoiAlignMax(2, strides=(4,), sampling_ratio=2)
    maps = torch.randn(1, 2, 8, 8, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[3.0, 5.0, 21.0, 25.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: pool({4: x}, Rois(boxes, torch.zeros(1, dtype=torch.int64))), (maps,))


def test_each_roi_is_pooled_from_its_level():
    pool = ByLevel({stride: RoiPool(7, stride=stride) for stride in STRIDES})
    both, where = features(), rois(40)
    found = pool(both, where)
    rows = torch.cat([where.image_index[:, None].float(), where.boxes], dim=1)
    side = (where.boxes[:, 2:] - where.boxes[:, :2]).prod(dim=1).sqrt()
    assert 0 < int((side < 112).sum()) < 40
    expected = torch.where(
        (side < 112)[:, None, None, None], roi_pool(both[4], rows, 7, 1 / 4), roi_pool(both[8], rows, 7, 1 / 8)
    )
    assert torch.equal(found, expected)
    assert pool(both, Rois(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))).shape == (0, 8, 7, 7)


def test_warped_samples_are_averaged_or_their_greatest_is_taken():
    where = rois()
    greatest, mean = RoundedRoiWarp(7, stride=4), MeanRoiWarp(7, stride=4)
    table = features()[4].permute(0, 2, 3, 1)
    samples = mean.samples(table, where.boxes, where.image_index).permute(0, 3, 1, 2)
    assert torch.equal(mean(features(), where), torch.nn.functional.avg_pool2d(samples, 2))
    assert torch.equal(greatest(features(), where), torch.nn.functional.max_pool2d(samples, 2))


# Mask heads


def zeroed(head):
    with torch.no_grad():
        head.predictor.weight.zero_()
        head.predictor.bias.zero_()
    return head


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(MaskHead, math.log(2)), (AgnosticMaskHead, math.log(2)), (MlpMaskHead, math.log(2)), (SoftmaxMaskHead, math.log(4))],
)
def test_the_loss_of_knowing_nothing(kind, expected):
    head = zeroed(kind(8, num_classes=3, pool=POOL))
    term = head.loss(features(), *learning([2, 0]))["mask"]
    assert term.count == 2 * 28**2
    assert (term.total / term.count).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", [MaskHead, MlpMaskHead])
def test_only_the_class_of_the_object_learns_without_competition(kind):
    head = kind(8, num_classes=3, pool=POOL)
    head.loss(features(), *learning([2, 2]))["mask"].total.backward()
    rows = head.CLASS_ROWS["predictor.bias"]
    of_class = head.predictor.bias.grad.reshape(3, rows).abs().sum(dim=1)
    assert of_class[2] > 0
    assert of_class[:2].tolist() == [0, 0]


def test_all_classes_compete_in_a_softmax():
    head = SoftmaxMaskHead(8, num_classes=3, pool=POOL)
    head.loss(features(), *learning([2, 2]))["mask"].total.backward()
    assert (head.predictor.bias.grad != 0).all()
    assert head.CLASS_ROWS == {"predictor.weight": 1, "predictor.bias": 1}
    with torch.no_grad():
        head.predictor.weight.zero_()
        head.predictor.bias.copy_(torch.tensor([0.0, 1.0, 3.0, 2.0]))
        shares = head(features(), rois(4), torch.tensor([0, 1, 2, 2])).sigmoid()[:, 5, 5]
    assert torch.allclose(shares, torch.tensor([0.0, 1.0, 3.0, 2.0]).softmax(dim=0)[[0, 1, 2, 2]], atol=1e-5)


def test_the_class_does_not_matter_to_an_agnostic_head():
    head = AgnosticMaskHead(8, num_classes=3, pool=POOL)
    with torch.no_grad():
        answers = [head(features(), rois(4), torch.full((4,), label)) for label in range(3)]
    assert torch.equal(answers[0], answers[2])
    assert head.predictor.weight.shape[0] == 1


OPERATORS = ["align", "align-max", "align-legacy", "pool", "warp", "warp-mean"]
COMBINATIONS = [
    *(("mask-rcnn-small", mask, roi) for mask, roi in zip(["sigmoid"] * 6, OPERATORS, strict=True)),
    *(("mask-rcnn-small", mask, "warp") for mask in ("softmax", "agnostic", "mlp", "mlp-3")),
    *(("mask-rcnn-c4-small", "sigmoid", roi) for roi in OPERATORS),
    *(("mask-rcnn-c4-small", mask, "pool") for mask in ("softmax", "agnostic")),
]


@pytest.mark.parametrize(("name", "mask", "roi"), COMBINATIONS)
def test_every_part_trains_and_predicts(name, mask, roi):
    torch.manual_seed(0)
    system = SYSTEMS[name](num_classes=3, mask=mask, roi=roi, score_threshold=0.0, max_detections=5)
    batch, targets = batch_of(system, [(64, 96)]), [objects((64, 96), 3)]
    total(system.loss(batch, targets)).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for n, p in system.named_parameters() if "mask" in n)
    rows = system.class_rows()
    state = system.state_dict()
    assert all(len(state[name]) >= 3 * count for name, count in rows.items())
    assert any("mask" in name for name in rows) == (mask != "agnostic")
    with torch.inference_mode():
        (found,) = system.predict(batch)
    assert len(found.masks) == len(found) == 5


@pytest.mark.parametrize("name", ["mask-rcnn-rivals-c5-small", "keypoint-rcnn-small"])
@pytest.mark.parametrize("roi", OPERATORS)
def test_roi_operators_of_other_heads_are_those_asked_for(name, roi):
    with torch.device("meta"):
        system = SYSTEMS[name](num_classes=1, roi=roi)
    names = {"align": "RoiAlign", "align-max": "RoiAlignMax", "align-legacy": "RoiAlign"}
    pools = [system.box_head.pool, *(head.pool for head in system.instance_heads.values())]
    assert {type(pool).__name__ for pool in pools} == {names.get(roi, "ByLevel")}
    assert {pool.strides for pool in pools} == {(16,) if "c5" in name else (4, 8, 16)}


@pytest.mark.parametrize("side", [7, 14])
@pytest.mark.parametrize("roi", OPERATORS)
def test_names_of_operators_stand_for_what_they_say(roi, side):
    pool = ROI_OPERATORS[roi](side, (8, 16), 2)
    assert (pool.side, pool.strides) == (side, (8, 16))
    if roi.startswith("align"):
        assert type(pool) is (RoiAlignMax if roi == "align-max" else RoiAlign)
        assert (pool.aligned, pool.sampling_ratio) == (roi != "align-legacy", 2)
    else:
        wanted = {"pool": RoiPool, "warp": RoundedRoiWarp, "warp-mean": MeanRoiWarp}[roi]
        assert [type(operator) for operator in pool.operators] == [wanted, wanted]
        assert [operator.stride for operator in pool.operators] == [8, 16]


@pytest.mark.parametrize("roi", OPERATORS)
def test_published_sizes_have_the_operator_in_every_head(roi):
    for kind, side in (("mask-rcnn-rivals-r50-fpn", 14), ("mask-rcnn-rivals-r50-c5", 14), ("keypoint-rcnn-rivals-r50-fpn", 14)):
        with torch.device("meta"):
            system = SYSTEMS[kind](num_classes=1, roi=roi)
        heads = [system.box_head.pool, *(head.pool for head in system.instance_heads.values())]
        assert [str(pool) for pool in heads] == [str(ROI_OPERATORS[roi](s, heads[0].strides, 2)) for s in (7, side)]
        assert heads[0].strides == ((32,) if "c5" in kind else (4, 8, 16, 32))
    with torch.device("meta"):
        staged = SYSTEMS["mask-rcnn-rivals-r50-c4"](num_classes=1, roi=roi).box_head.staged
    assert str(staged.pool) == str(ROI_OPERATORS[roi](7, (16,), 2))


def test_published_mask_branches():
    for mask, hidden in (("mlp", 2), ("mlp-3", 3)):
        with torch.device("meta"):
            head = SYSTEMS["mask-rcnn-rivals-r50-fpn"](num_classes=80, mask=mask).instance_heads["mask"]
        assert [layer.out_features for layer in head.layers] == [1024] * hidden
        assert (head.layers[0].in_features, head.predictor.out_features) == (14 * 14 * 256, 80 * 28 * 28)
    for mask, wanted in (("softmax", SoftmaxStagedMaskHead), ("agnostic", AgnosticStagedMaskHead)):
        with torch.device("meta"):
            assert type(SYSTEMS["mask-rcnn-rivals-r50-c4"](num_classes=80, mask=mask).instance_heads["mask"]) is wanted


def test_an_mlp_has_about_as_many_parameters_as_the_convolutions():
    parameters = {}
    for mask in ("sigmoid", "mlp", "mlp-3"):
        with torch.device("meta"):
            head = SYSTEMS["mask-rcnn-small"](num_classes=1, mask=mask).instance_heads["mask"]
        parameters[mask] = sum(p.numel() for p in head.parameters())
    assert parameters["mlp"] == pytest.approx(parameters["sigmoid"], rel=0.02)
    assert parameters["mlp-3"] == parameters["mlp"] + 25 * 25 + 25


def test_a_softmax_fits_a_head_of_another_width():
    head = SoftmaxMaskHead(8, num_classes=3, pool=POOL, hidden=16)
    assert head(features(), rois(4), torch.zeros(4, dtype=torch.int64)).shape == (4, 28, 28)
