"""FCIS: position-sensitive maps, their joint answer to mask and class, and the hardest RoIs."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import ps_roi_align

from maskwright.layers.roi import PositionSensitiveAlign, Rois
from maskwright.structures.boxes import iou
from maskwright.systems import SYSTEMS
from maskwright.systems.cascades.fcis import PARTS, SIDE, Answers, LabelledRois, ScoreMaps
from tests.systems.cascades.test_mnc import batch, objects


def small(seed=0, **arguments):
    torch.manual_seed(seed)
    return SYSTEMS["fcis-small"](num_classes=3, **arguments)


def test_parts_are_read_as_torchvision_reads_them():
    maps = torch.randn(2, 49 * 5, 12, 17, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[3.2, 10.1, 100.3, 77.7], [20.0, 5.0, 60.0, 90.0], [0.0, 0.0, 136.0, 96.0]], dtype=torch.float64)
    images = torch.tensor([0, 1, 1])
    ours = PositionSensitiveAlign(7, parts=7, stride=8)(maps, Rois(boxes, images))
    channel_first = maps.unflatten(1, (49, 5)).transpose(1, 2).flatten(1, 2)
    theirs = ps_roi_align(channel_first, torch.cat([images[:, None].double(), boxes], 1), 7, 1 / 8, sampling_ratio=1)
    torch.testing.assert_close(ours, theirs)
    upstream = torch.randn_like(ours)
    grads = [torch.autograd.grad((answer * upstream).sum(), maps)[0] for answer in (ours, theirs)]
    torch.testing.assert_close(*grads)


def test_a_finer_grid_has_as_many_points_in_every_part():
    maps = torch.arange(4.0, dtype=torch.float64).reshape(1, 4, 1, 1).expand(1, 4, 8, 8)  # each part is its number everywhere
    rois = Rois(torch.tensor([[8.0, 8, 48, 40]], dtype=torch.float64), torch.tensor([0]))
    read = PositionSensitiveAlign(6, parts=2, stride=8)(maps, rois).round(decimals=9)
    assert read.shape == (1, 1, 6, 6)
    assert read[0, 0].unflatten(0, (2, 3)).unflatten(2, (2, 3)).amax(dim=(1, 3)).tolist() == [[0, 1], [2, 3]]
    assert read[0, 0].unflatten(0, (2, 3)).unflatten(2, (2, 3)).amin(dim=(1, 3)).tolist() == [[0, 1], [2, 3]]
    with pytest.raises(ValueError, match="as many points in every part"):
        PositionSensitiveAlign(20, parts=7, stride=8)


def test_channels_of_a_class_stay_together():
    maps = ScoreMaps(4, num_classes=2, stride=8)
    nn.init.zeros_(maps.scores.weight)
    values = torch.arange(3 * 2 * PARTS**2).float()  # class, inside or outside, part
    maps.scores.bias.data = values
    read = maps.read(maps({8: torch.zeros(1, 4, 10, 10)}), Rois(torch.tensor([[8.0, 8, 64, 64]]), torch.tensor([0])))
    by_name = values.reshape(3, 2, PARTS, PARTS)
    cells = SIDE // PARTS
    for side, found in enumerate((read.inside, read.outside)):
        wanted = by_name[:, side].repeat_interleave(cells, dim=1).repeat_interleave(cells, dim=2)
        torch.testing.assert_close(found[0], wanted)
    rows = maps.CLASS_ROWS["scores.bias"]
    assert values[rows : 2 * rows].tolist() == by_name[1].flatten().tolist()


def test_one_pair_of_maps_answers_mask_and_class():
    inside, outside = torch.zeros(1, 2, SIDE, SIDE), torch.zeros(1, 2, SIDE, SIDE)
    inside[0, 0, :7], outside[0, 0, 7:14] = 3.0, 2.0  # a third inside, a third outside, a third neither
    answers = Answers(inside, outside, torch.zeros(1, 4))
    assert answers.classes[0].tolist() == pytest.approx([5 / 3, 0])
    probs = torch.stack([inside, outside]).softmax(dim=0)[0]
    torch.testing.assert_close(answers.mask_logits.sigmoid(), probs)


def test_first_losses_are_those_of_knowing_nothing():
    system = small()
    for layer in (system.maps.scores, system.rpn.objectness):
        nn.init.zeros_(layer.weight)
    targets = [objects((20, 20, 70, 70), (60, 10, 120, 60), size=(96, 128), labels=[0, 2])]
    losses = {name: float((loss.total / loss.count).detach()) for name, loss in system.loss(batch(), targets).items()}
    assert losses["class"] == pytest.approx(math.log(4), abs=1e-5)
    with torch.no_grad():
        proposals = system.rpn.boxes(system.rpn(system.features(batch().pixels)), [(96, 128)], among=2000)
    share = system._label(proposals, targets).labels.lt(3).sum() / 128  # all weigh alike but for the mask, so all positives
    assert losses["mask"] == pytest.approx(10 * math.log(2) * float(share), abs=1e-4)
    assert losses["rpn_objectness"] == pytest.approx(math.log(2), abs=1e-5)
    nothing = system.loss(batch(), [objects(size=(96, 128))])
    assert float(nothing["mask"].total.detach()) == 0


def test_the_hardest_of_each_image_are_learnt():
    system = small(hard_rois=2)
    rois = Rois(torch.zeros(6, 4), torch.tensor([0, 0, 0, 1, 1, 1]))
    labelled = LabelledRois(rois, torch.zeros(6, dtype=torch.int64), torch.zeros(6, dtype=torch.int64))
    classes, masks, boxes = torch.tensor([1.0, 2, 3, 9, 8, 7]), torch.tensor([1.0, 0, 0, 0, 0, 0]), torch.zeros(6)
    boxes[5] = 5
    assert system._hardest((classes, masks, boxes), labelled, 2).tolist() == [0, 2, 5, 3]


def test_background_teaches_classes_only():
    system = small()
    target = objects((20, 20, 70, 70), size=(96, 128), labels=[1])
    labelled = system._label([torch.tensor([[22.0, 20, 72, 70], [80, 60, 120, 90]])], [target])
    assert labelled.labels.tolist() == [1, 3, 1]  # the last is the object's own box
    assert iou(labelled.rois.boxes, target.boxes)[2, 0] == 1
    features = system.features(batch().pixels)
    read = system.maps.read(system.maps(features), labelled.rois)
    classes, masks, boxes = system._terms(read, labelled, [target])
    assert (classes > 0).all()
    assert masks[1] == boxes[1] == 0
    assert (masks[[0, 2]] > 0).all()
    wanted = F.cross_entropy(read.classes, torch.tensor([1, 3, 1]), reduction="none")
    torch.testing.assert_close(classes, wanted)


def test_proposals_and_moved_boxes_both_answer(monkeypatch):
    system, usual, voted = small(), SYSTEMS["fcis-small"](num_classes=3).voting, []

    def voting(boxes, *rest, **options):
        voted.append(boxes)
        return usual(boxes, *rest, **options)

    monkeypatch.setattr(system, "voting", voting)
    with torch.no_grad():
        features = system.features(batch().pixels)
        (proposals,) = system.rpn.boxes(system.rpn(features), batch().sizes, among=system.rpn.candidates_at_inference)
        system.maps.deltas.bias.fill_(0.5)  # to the right and down, and larger
        found = system.predict(batch())[0]
        system.maps.deltas.bias.zero_()
        system.maps.deltas.weight.zero_()
        still = system.predict(batch())[0]
    assert not torch.equal(found.boxes, still.boxes)
    for boxes in voted:  # at the resolution of the input
        first, second = boxes.chunk(2)
        assert torch.allclose(first, proposals, atol=1e-4)
    assert torch.allclose(second, proposals, atol=1e-3)
    assert not torch.allclose(voted[0].chunk(2)[1], proposals, atol=1.0)
