import math
import re

import numpy as np
import pytest
import torch

from maskwright.layers.grids import PyramidAnchors
from maskwright.layers.roi import RoiAlign, Rois
from maskwright.structures import ImageBatch, Instances, Masks
from maskwright.systems import SYSTEMS, find_builder
from maskwright.systems.rcnn.mask_rcnn import (
    BoxHead,
    MaskHead,
    RoiSampler,
    SampledRois,
    mask_targets,
)
from maskwright.systems.rcnn.rpn import Candidates, RegionProposalNetwork

LN2 = math.log(2)


@pytest.mark.parametrize(
    ("name", "parameters"),  # spec § 4.4, frozen norms not counted
    [
        ("faster-rcnn-r50-fpn", 41_699_936),
        ("mask-rcnn-r50-fpn", 44_343_216),
        ("mask-rcnn-x101-fpn", 107_427_760),
        ("mask-rcnn-r50-c4", 35_909_612),
        ("mask-rcnn-r50-dc5", 172_353_516),
    ],
)
def test_parameter_counts_are_those_of_the_release(name, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in SYSTEMS[name](num_classes=80).parameters()) == parameters


SIZED = {name: words for name, build in SYSTEMS.items() if (words := re.search(r"([\d.]+) M parameters", build.__doc__ or ""))}


@pytest.mark.parametrize("name", SIZED)
def test_the_size_a_system_names_is_its_own(name):
    counts = []
    for num_classes in (1, 20, 80):  # persons, VOC, COCO
        with torch.device("meta"):
            counts.append(sum(p.numel() for p in SYSTEMS[name](num_classes=num_classes).parameters()) / 1e6)
    assert min(abs(float(SIZED[name][1]) - count) for count in counts) <= 0.05


@pytest.mark.parametrize("name", [n for n in SYSTEMS if n.endswith("-small")])
def test_small_sizes_hold_at_most_five_million_parameters(name):
    larger = {"mnc-unshared-small": 11_000_000, "mask-keypoint-rcnn-small": 6_000_000}  # three backbones, two instance heads
    most = larger.get(name, 5_000_000)
    with torch.device("meta"):
        assert sum(p.numel() for p in SYSTEMS[name](num_classes=80).parameters()) <= most


def test_unknown_names_get_a_suggestion():
    with pytest.raises(ValueError, match="did you mean mask-rcnn-small"):
        find_builder("mask-rcn-small")
    with pytest.raises(ValueError, match="cannot import"):
        find_builder("nowhere.at_all:build")
    with pytest.raises(ValueError, match="not a function"):
        find_builder("math:pi")
    assert find_builder("maskwright.systems.rcnn.sizes:rcnn") is SYSTEMS["mask-rcnn-small"].build


# RPN


def rpn():
    return RegionProposalNetwork(4, anchors=PyramidAnchors({4: (16,), 8: (32,)}))


def features(batch=1, channels=4):
    g = torch.Generator().manual_seed(0)
    return {4: torch.randn(batch, channels, 16, 16, generator=g), 8: torch.randn(batch, channels, 8, 8, generator=g)}


def one_object(label=0, box=(8.0, 8, 24, 24), size=(64, 64)):
    dense = torch.zeros(1, *size, dtype=torch.bool)
    dense[0, int(box[1]) : int(box[3]), int(box[0]) : int(box[2])] = True
    return Instances(size, boxes=torch.tensor([box]), labels=torch.tensor([label]), masks=Masks.from_dense(dense))


def generators(n=1):
    return [torch.Generator().manual_seed(i) for i in range(n)]


def test_rpn_orders_anchors_as_its_outputs():
    head = rpn()
    with torch.no_grad():
        for layer in (head.objectness, head.deltas):
            layer.weight.zero_()
        head.objectness.bias.copy_(torch.tensor([0.0, 1.0, 2.0]))
        head.deltas.bias.copy_(torch.arange(12.0))
    out = head(features())
    assert out.logits[0][0, :6].tolist() == [0, 1, 2, 0, 1, 2]
    assert out.deltas[0][0, 1].tolist() == [4, 5, 6, 7]
    assert [len(a) for a in out.anchors] == [16 * 16 * 3, 8 * 8 * 3]
    assert out.anchors[1].shape[0] == out.logits[1].shape[1]


def test_rpn_loss_at_zero_logits_is_ln2_of_what_was_sampled():
    with torch.no_grad():
        candidates = rpn()(features())
    zero = Candidates([t * 0 for t in candidates.logits], [t * 0 for t in candidates.deltas], candidates.anchors)
    losses = rpn().loss(zero, [one_object()], generators())
    assert losses["rpn_objectness"].count == 256
    assert float(losses["rpn_objectness"].total) == pytest.approx(256 * LN2, rel=1e-5)
    few = Candidates([t[:, :90] for t in zero.logits[:1]], [t[:, :90] for t in zero.deltas[:1]], [zero.anchors[0][:90]])
    loss = rpn().loss(few, [Instances.empty((64, 64), has_masks=True)], generators())["rpn_objectness"]
    assert float(loss.total / loss.count) == pytest.approx(LN2 * 90 / 256, rel=1e-5)  # spec § 21, 10: detectron2's form


def test_rpn_box_loss_counts_only_positives():
    anchors = torch.tensor([[0.0, 0, 16, 16], [40, 40, 56, 56]])
    deltas = torch.tensor([[[0.0, 0.05, 0, 0], [9.0, 9, 9, 9]]])
    candidates = Candidates([torch.zeros(1, 2)], [deltas], [anchors])
    loss = rpn().loss(candidates, [one_object(box=(0.0, 0, 16, 16))], generators())["rpn_box"]
    assert float(loss.total) == pytest.approx(0.05)
    none = rpn().loss(candidates, [Instances.empty((64, 64))], generators())["rpn_box"]
    assert float(none.total) == 0


def test_proposals_are_clipped_valid_sorted_and_detached():
    head = rpn()
    (proposals,) = head.propose(head(features()), [(50, 40)], per_level=100, keep=30)
    assert 0 < len(proposals) <= 30
    assert not proposals.boxes.requires_grad
    assert (proposals.boxes >= 0).all()
    assert (proposals.boxes <= torch.tensor([40.0, 50, 40, 50])).all()
    assert ((proposals.boxes[:, 2:] - proposals.boxes[:, :2]) > 0).all()
    assert proposals.scores.tolist() == sorted(proposals.scores.tolist(), reverse=True)


def test_proposals_are_suppressed_within_a_level_only():
    box = torch.tensor([[4.0, 4, 20, 20]])
    candidates = Candidates(
        [torch.tensor([[2.0, 1.0]]), torch.tensor([[3.0]])],
        [torch.zeros(1, 2, 4), torch.zeros(1, 1, 4)],
        [box.repeat(2, 1), box],
    )
    (proposals,) = rpn().propose(candidates, [(64, 64)], per_level=10, keep=10)
    assert proposals.scores.tolist() == pytest.approx([torch.sigmoid(torch.tensor(v)).item() for v in (3.0, 2.0)])


def test_proposals_that_are_not_finite_are_dropped():
    candidates = Candidates(
        [torch.tensor([[1.0, float("nan"), 2.0]])], [torch.zeros(1, 3, 4)], [torch.rand(3, 4).cumsum(1) * 10]
    )
    candidates.deltas[0][0, 2] = float("inf")
    (proposals,) = rpn().propose(candidates, [(64, 64)], per_level=10, keep=10)
    assert len(proposals) == 1


# RoI sampling


def test_objects_themselves_are_candidates_and_quotas_hold():
    sampler = RoiSampler(num_classes=3, per_image=8)
    target = one_object(label=2)
    sampled = sampler([torch.tensor([[40.0, 40, 60, 60]]).repeat(20, 1)], [target], generators())
    assert sampled.labels.tolist() == [2] + [3] * 7
    assert torch.equal(sampled.positives.boxes, target.boxes)
    many = sampler([target.boxes.repeat(20, 1)], [target], generators())
    assert (many.labels == 2).sum() == 2  # a quarter of eight; nothing else to fill up with
    none = sampler([torch.zeros(0, 4)], [Instances.empty((64, 64))], generators())
    assert len(none.rois) == 0


def test_crowds_are_no_candidates():
    target = Instances(
        (64, 64), boxes=torch.tensor([[0.0, 0, 60, 60]]), labels=torch.tensor([0]), is_crowd=torch.tensor([True])
    )
    sampled = RoiSampler(num_classes=1, per_image=8)(
        [torch.tensor([[10.0, 10, 20, 20], [0, 0, 64, 64]])], [target], generators()
    )
    assert sampled.rois.boxes.tolist() == []  # the one lies in the crowd, and so does most of the other


def test_positives_of_all_images_come_first():
    sampler = RoiSampler(num_classes=3, per_image=4)
    proposals = [torch.tensor([[40.0, 40, 60, 60]]), torch.tensor([[30.0, 30, 62, 62]])]
    sampled = sampler(proposals, [one_object(0), one_object(1)], generators(2))
    assert sampled.labels.tolist() == [0, 1, 3, 3]
    assert sampled.rois.image_index.tolist() == [0, 1, 0, 1]
    assert [rows.tolist() for rows in sampled.target_rows] == [[0], [0]]


# Box head


def box_head(k=3):
    return BoxHead(4, hidden=16, num_classes=k, pool=RoiAlign(7, strides=(4, 8)))


def sampled_rois(labels, boxes, target_boxes, k=3):
    rois = Rois(torch.tensor(boxes), torch.zeros(len(boxes), dtype=torch.int64))
    return SampledRois(rois, torch.tensor(labels), torch.tensor(target_boxes).reshape(-1, 4), [torch.arange(len(target_boxes))])


def test_box_loss_reads_the_slice_of_its_class_and_divides_by_all():
    head = box_head()
    with torch.no_grad():
        head.deltas.weight.zero_()
        head.deltas.bias.copy_(torch.arange(12.0))
        head.classes.weight.zero_()
        head.classes.bias.zero_()
    box = [8.0, 8, 24, 24]
    with torch.no_grad():
        losses = head.loss(features(), sampled_rois([1, 3, 3, 3], [box] * 4, [box]))
    assert float(losses["box"].total) == pytest.approx(4 + 5 + 6 + 7)  # deltas of class 1 are 4 … 7, wanted 0
    assert losses["box"].count == 4
    assert float(losses["class"].total / losses["class"].count) == pytest.approx(math.log(4))


def test_background_is_the_last_class():
    head = box_head()
    with torch.no_grad():
        head.classes.weight.zero_()
        head.classes.bias.copy_(torch.tensor([0.0, 0, 0, 20]))
    proposals = [Instances((64, 64), boxes=torch.tensor([[8.0, 8, 24, 24]]), labels=torch.tensor([0]))]
    assert len(head.detect(features(), proposals, keep=10)[0]) == 0


def test_detections_are_thresholded_suppressed_by_class_and_limited_over_all():
    head = box_head()
    with torch.no_grad():
        head.deltas.weight.zero_()
        head.deltas.bias.zero_()
        head.classes.weight.zero_()
        head.classes.bias.copy_(torch.log(torch.tensor([0.6, 0.3, 0.04, 0.06])))
    boxes = torch.tensor([[8.0, 8, 24, 24], [8, 8, 24, 25], [40, 40, 60, 60]])
    proposals = [Instances((64, 64), boxes=boxes, labels=torch.zeros(3, dtype=torch.int64))]
    (found,) = head.detect(features(), proposals, keep=10)
    assert found.labels.tolist() == [0, 0, 1, 1]  # class 2 is under 0.05; the near-copy is suppressed in each class
    assert found.scores.tolist() == pytest.approx([0.6, 0.6, 0.3, 0.3])
    (found,) = head.detect(features(), proposals, keep=3)
    assert found.labels.tolist() == [0, 0, 1]


def test_deltas_move_boxes_of_their_class():
    head = box_head(k=2)
    with torch.no_grad():
        head.deltas.weight.zero_()
        head.deltas.bias.copy_(torch.tensor([0.0, 0, 0, 0, 10, 0, 0, 0]))  # class 1 moves by one width
        head.classes.weight.zero_()
        head.classes.bias.zero_()
    proposals = [Instances((64, 64), boxes=torch.tensor([[8.0, 8, 24, 24]]), labels=torch.tensor([0]))]
    (found,) = head.detect(features(), proposals, keep=10)
    assert dict(zip(found.labels.tolist(), found.boxes.tolist(), strict=True)) == {
        0: [8, 8, 24, 24],
        1: [24, 8, 40, 24],
    }


# Mask head


def mask_head(k=3):
    return MaskHead(4, num_classes=k, pool=RoiAlign(14, strides=(4, 8)))


def test_mask_loss_at_zero_logits_is_ln2_and_only_the_class_of_the_object_learns():
    head = mask_head()
    with torch.no_grad():
        head.predictor.weight.zero_()
    sampled = sampled_rois([1, 3], [[8.0, 8, 24, 24], [30.0, 30, 50, 50]], [[8.0, 8, 24, 24]])
    loss = head.loss(features(), sampled, [one_object(1)])["mask"]
    assert loss.count == 28 * 28
    assert float((loss.total / loss.count).detach()) == pytest.approx(LN2, rel=1e-6)
    loss.total.backward()
    gradient = head.predictor.bias.grad
    assert gradient[1] != 0
    assert gradient[0] == gradient[2] == 0


def test_background_rois_do_not_change_the_mask_loss():
    head = mask_head()
    box = [8.0, 8, 24, 24]
    one = head.loss(features(), sampled_rois([1], [box], [box]), [one_object(1)])["mask"]
    two = head.loss(features(), sampled_rois([1, 3, 3], [box, [30.0, 30, 50, 50], [0.0, 0, 9, 9]], [box]), [one_object(1)])[
        "mask"
    ]
    assert torch.equal(one.total, two.total)


def test_scores_are_multiplied_by_the_certainty_of_masks():
    """Two boxes, whose masks have probability 0.8 and 0.6 everywhere: 0.5 · 0.8² > 0.6 · 0.6²."""
    found = Instances(
        (64, 64),
        boxes=torch.tensor([[8.0, 8, 24, 24], [30.0, 30, 50, 50]]),
        labels=torch.tensor([0, 1]),
        scores=torch.tensor([0.6, 0.5]),
    )
    for power, expected in ((0.0, [0.6, 0.5]), (2.0, [0.6 * 0.36, 0.5 * 0.64])):
        head = MaskHead(4, num_classes=2, pool=RoiAlign(14, strides=(4, 8)), certainty_power=power)
        with torch.no_grad():
            head.predictor.weight.zero_()
            head.predictor.bias.copy_(torch.tensor([0.6, 0.8]).logit())
        (drawn,) = head.complete([found], features(), Rois.of([found.boxes]))
        assert drawn.scores.tolist() == pytest.approx(expected, rel=1e-5)
    assert drawn.by_score().labels.tolist() == [1, 0]


def test_mask_targets_of_the_spec():
    dense = torch.zeros(1, 20, 20, dtype=torch.bool)
    dense[0, 5:15, 4:14] = True
    cells = mask_targets(Masks.from_dense(dense), torch.tensor([[0.0, 0, 20, 20]]), torch.tensor([0]), side=4)
    assert cells[0].tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]  # spec § 10.3


def test_mask_targets_are_as_fine_as_the_file_says():
    """A star of 196 px that is shown at 19.6 px: cells of 7×7 px of the file, half of which are counted."""
    yy, xx = np.mgrid[:240, :240] - 117.5
    radius, angle = np.hypot(xx, yy), np.arctan2(yy, xx)
    star = torch.from_numpy(radius < 60 + 38 * np.cos(6 * angle))[None]
    shown = Instances(
        (240, 240), boxes=torch.tensor([[20.0, 20, 216, 216]]), labels=torch.tensor([0]), masks=Masks.from_dense(star)
    )
    shown = shown.resize((24, 24))
    cells = mask_targets(shown.masks, shown.boxes, torch.tensor([0]), side=28)[0]
    area = torch.nn.functional.avg_pool2d(star[:, 20:216, 20:216].to(torch.float32), 7)[0]
    wrong = (cells != (area >= 0.5)).float().mean()
    coarse = mask_targets(shown.masks.resampled(), shown.boxes, torch.tensor([0]), side=28)[0]
    assert wrong < 0.01  # of 16 points instead of 49
    assert (coarse != (area >= 0.5)).float().mean() > 0.05


def test_masks_are_needed_by_name():
    target = Instances((64, 64), boxes=torch.tensor([[8.0, 8, 24, 24]]), labels=torch.tensor([0]))
    with pytest.raises(ValueError, match="the targets have no masks"):
        mask_head().loss(features(), sampled_rois([0], [[8.0, 8, 24, 24]], [[8.0, 8, 24, 24]]), [target])


# The whole


def batch_of(sizes, divisor=32):
    g = torch.Generator().manual_seed(1)
    images = [torch.randn(3, *size, generator=g) for size in sizes]
    return ImageBatch.collate(images, original_sizes=list(sizes), size_divisor=divisor, keys=list(range(len(sizes))))


def test_first_losses_are_those_of_knowing_nothing():
    torch.manual_seed(0)
    system = SYSTEMS["mask-rcnn-small"](num_classes=80)
    losses = system.loss(batch_of([(64, 96)]), [one_object(5, size=(64, 96))])
    value = {name: float((loss.total / loss.count).detach()) for name, loss in losses.items()}
    assert value["rpn_objectness"] == pytest.approx(LN2, abs=0.05)  # spec § 21.1
    assert value["class"] == pytest.approx(math.log(81), abs=0.2)
    assert value["mask"] == pytest.approx(LN2, abs=0.05)


def test_box_losses_send_no_gradient_through_proposals():
    torch.manual_seed(0)
    system = SYSTEMS["faster-rcnn-small"](num_classes=2)
    losses = system.loss(batch_of([(64, 64)]), [one_object()])
    (losses["class"].total + losses["box"].total).backward()
    assert system.rpn.deltas.weight.grad is None
    assert system.rpn.objectness.weight.grad is None
    assert system.box_head.fc1.weight.grad is not None


def test_class_rows_name_parameters():
    system = SYSTEMS["mask-rcnn-small"](num_classes=5)
    state = system.state_dict()
    for name, rows in system.class_rows().items():
        assert state[name].shape[0] in (5 * rows, 5 * rows + 1)
    assert len(system.class_rows()) == 6


def test_more_detections_when_asked_for():
    torch.manual_seed(0)
    system = SYSTEMS["faster-rcnn-small"](num_classes=3, max_detections=4)
    with torch.no_grad():
        assert len(system.predict(batch_of([(64, 96)]))[0]) == 4
        system.max_detections = 9
        assert len(system.predict(batch_of([(64, 96)]))[0]) == 9
