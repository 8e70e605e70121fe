"""FCOS: assignment, losses and ranking by hand."""

import math

import pytest
import torch

from maskwright.layers.grids import cell_centres, cell_corners
from maskwright.structures import Instances, Masks
from maskwright.systems import SYSTEMS
from maskwright.systems.one_stage.fcos import (
    BACKGROUND,
    IGNORED,
    Answers,
    CenterAssigner,
    FCOSHead,
    LevelScales,
    Locations,
    Ranking,
    centerness,
    on_the_image,
    sides,
    weighted_giou,
)
from maskwright.systems.one_stage.torchvision import StrictAssigner, everything

STRIDES = (8, 16, 32, 64, 128)


def maps(size, strides=STRIDES, channels=1, batch=1):
    return {s: torch.zeros(batch, channels, -(-size[0] // s), -(-size[1] // s)) for s in strides}


def locations(size=(800, 1344), points=cell_centres, strides=STRIDES):
    levels = points(maps(size, strides))
    counts = [len(p) for p in levels]
    per_point = torch.tensor(strides, dtype=torch.float32).repeat_interleave(torch.tensor(counts))
    return Locations(torch.cat(levels), per_point, counts)


def boxed(*boxes, size=(800, 1344), labels=None, crowd=None, masks=None):
    labels = torch.zeros(len(boxes), dtype=torch.int64) if labels is None else torch.tensor(labels)
    crowd = None if crowd is None else torch.tensor(crowd)
    return Instances(
        size, boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), labels=labels, is_crowd=crowd, masks=masks
    )


def test_locations_of_an_image():
    grid = locations()
    assert grid.counts == [16800, 4200, 1050, 273, 77]  # spec, sec. 2
    assert len(grid.points) == 22400
    assert grid.points[0].tolist() == [4.0, 4.0]
    assert grid.points[167].tolist() == [1340.0, 4.0]  # x first: the end of the first row
    assert grid.points[16799].tolist() == [1340.0, 796.0]
    assert grid.points[16800].tolist() == [8.0, 8.0]
    assert grid.points[-1].tolist() == [64 + 10 * 128, 64 + 6 * 128]


def test_six_positives_on_two_levels_each():
    grid = locations()
    matched = CenterAssigner()(grid, boxed((100, 100, 220, 180)))
    points = grid.points[matched == 0]
    level3, level4 = points[:6], points[6:]
    assert {tuple(p) for p in level3.tolist()} == {(x, y) for x in (156.0, 164.0) for y in (132.0, 140.0, 148.0)}
    assert len(level4) == 6
    assert ((matched == 0).split(grid.counts)[0].sum(), (matched == 0).split(grid.counts)[1].sum()) == (6, 6)


def test_torchvision_has_other_points():
    grid = locations(points=cell_corners)
    counts = [int((m == 0).sum()) for m in StrictAssigner()(grid, boxed((100, 100, 220, 180))).split(grid.counts)]
    assert counts == [2, 6, 0, 0, 0]  # spec, sec. 16


def test_a_distance_on_a_bound_belongs_to_both_levels_or_to_none():
    grid = locations()
    target = boxed((68, 68, 196, 196))  # 64 px from the location (132, 132) of P3 to each side, and 64 at P4's (136, 136) - 4
    assert (CenterAssigner()(grid, target).split(grid.counts)[0] == 0).sum() == 1
    assert (StrictAssigner()(grid, target).split(grid.counts)[0] == 0).sum() == 0


def test_the_smallest_object_wins_where_several_ask():
    grid = locations()
    small, large = (116.0, 116, 164, 164), (100.0, 100, 180, 180)
    for boxes, winner in (((small, large), 0), ((large, small), 1)):
        matched = CenterAssigner()(grid, boxed(*boxes))
        middle = torch.nonzero((grid.points == 140).all(dim=1))[0, 0]
        assert matched[middle] == winner
    twins = CenterAssigner()(grid, boxed(small, small))
    assert set(twins.unique().tolist()) == {BACKGROUND, 0}


def test_tiny_objects_may_have_no_location():
    matched = CenterAssigner()(locations(), boxed((0.5, 0.5, 3.5, 3.5)))
    assert (matched == BACKGROUND).all()
    assert (CenterAssigner()(locations(), boxed()) == BACKGROUND).all()


def test_locations_in_a_crowd_are_ignored_unless_they_have_an_object():
    grid = locations((128, 128))
    dense = torch.zeros(2, 128, 128, dtype=torch.bool)
    dense[0, :64, :64] = True
    dense[0, 40:64, 40:64] = False  # the crowd's mask does not fill its box
    dense[1, 8:24, 8:24] = True
    masks = Masks.from_dense(dense)
    target = boxed((0, 0, 64, 64), (8, 8, 24, 24), size=(128, 128), crowd=[True, False], masks=masks)
    matched = CenterAssigner()(grid, target)
    p3 = matched[: grid.counts[0]].reshape(16, 16)
    assert p3[1, 1] == 1
    assert p3[0, 4] == IGNORED
    assert p3[6, 6] == BACKGROUND
    assert p3[0, 8] == BACKGROUND
    no_masks = CenterAssigner()(grid, boxed((0, 0, 64, 64), size=(128, 128), crowd=[True]))
    assert (no_masks[: grid.counts[0]] == IGNORED).sum() == 64


def test_centerness_by_hand():
    ltrb = torch.tensor([[2.0, 3, 2, 3], [1, 2, 4, 2], [1, 1, 4, 9]])
    assert torch.allclose(centerness(ltrb), torch.tensor([1.0, 0.5, (1 / 4 * 1 / 9) ** 0.5]))
    assert sides(torch.tensor([[5.0, 7.0]]), torch.tensor([[1.0, 2, 11, 20]])).tolist() == [[4.0, 5.0, 6.0, 13.0]]


def test_giou_of_the_spec():
    one, two = torch.ones(1, 4, requires_grad=True), torch.full((1, 4), 2.0)
    loss = weighted_giou(one, two, torch.ones(1))
    assert float(loss.total.detach()) == pytest.approx(1 - 5 / 17, abs=1e-5)  # .7059; without smoothing .75
    nothing = weighted_giou(torch.zeros(1, 4), two, torch.ones(1))
    assert float(nothing.total) == pytest.approx(0.9412, abs=1e-4)
    weighted = weighted_giou(one.detach().repeat(2, 1), two.repeat(2, 1), torch.tensor([0.25, 0.5]))
    assert float(weighted.total / weighted.count) == pytest.approx(1 - 5 / 17, abs=1e-5)
    assert float(weighted.count) == 0.75  # the weights divide the box loss, not the number of positives


def answers_for(grid, logits, ltrb, centre):
    return Answers(logits, ltrb, centre, {}, grid)


def head(num_classes=2, **options):
    options = {"ranking": Ranking(class_floor=0.05, power=1.0), **options}
    return FCOSHead(8, num_classes=num_classes, num_convs=1, scales=LevelScales(STRIDES), **options)


def logit(p):
    return math.log(p / (1 - p))


def test_losses_by_hand_and_their_normalizers():
    grid = locations((128, 128))
    target = boxed((20, 20, 60, 52), (70, 60, 110, 120), size=(128, 128), labels=[1, 0])
    matched = CenterAssigner()(grid, target)
    positive = matched >= 0
    count = int(positive.sum())
    p = len(grid.points)
    logits = torch.full((1, p, 2), logit(0.01))
    wanted = sides(grid.points[positive], target.boxes[matched[positive]]) / grid.strides[positive, None]
    ltrb = torch.zeros(1, p, 4)
    ltrb[0, positive] = wanted
    centre = torch.full((1, p), logit(0.3))
    losses = head().loss(answers_for(grid, logits, ltrb, centre), [matched], [target])
    right, wrong = -0.25 * 0.99**2 * math.log(0.01), -0.75 * 0.01**2 * math.log(0.99)
    assert float(losses["class"].total) == pytest.approx(count * right + (2 * p - count) * wrong, rel=1e-4)
    assert float(losses["class"].count) == float(losses["centerness"].count) == count
    assert float(losses["box"].total) == pytest.approx(0, abs=1e-4)  # exact targets, in stride units
    c = centerness(wanted)
    assert float(losses["box"].count) == pytest.approx(float(c.sum()), rel=1e-6)
    expected = -(c * math.log(0.3) + (1 - c) * math.log(0.7)).sum()
    assert float(losses["centerness"].total) == pytest.approx(float(expected), rel=1e-5)


def test_the_batch_twice_gives_the_same_means():
    torch.manual_seed(0)
    grid = locations((128, 128))
    target = boxed((20, 20, 60, 52), (70, 60, 110, 120), size=(128, 128), labels=[1, 0])
    matched = CenterAssigner()(grid, target)
    p = len(grid.points)
    one = answers_for(grid, torch.randn(1, p, 2), torch.rand(1, p, 4), torch.randn(1, p))
    two = answers_for(grid, *(t.repeat(2, *[1] * (t.ndim - 1)) for t in one[:3]))
    single, double = head().loss(one, [matched], [target]), head().loss(two, [matched] * 2, [target] * 2)
    for name, loss in single.items():
        assert float(loss.total / loss.count) == pytest.approx(float(double[name].total / double[name].count), rel=1e-5)


def test_locations_of_a_crowd_have_no_class_loss():
    grid = locations((128, 128))
    nothing = boxed(size=(128, 128))
    p = len(grid.points)
    loud = answers_for(grid, torch.full((1, p, 2), 4.0), torch.zeros(1, p, 4), torch.zeros(1, p))
    matched = CenterAssigner()(grid, boxed((0, 0, 128, 128), size=(128, 128), crowd=[True]))
    assert (matched == IGNORED).all()
    assert float(head().loss(loud, [matched], [nothing])["class"].total) == 0
    assert float(head().loss(loud, [torch.full_like(matched, BACKGROUND)], [nothing])["class"].total) > 100


# Inference


def detect(pairs, *, boxes=None, **options):
    """Detections from (location, class, class probability, centerness) alone."""
    grid = locations((128, 128))
    p = len(grid.points)
    logits, centre, ltrb = torch.full((1, p, 2), -20.0), torch.zeros(1, p), torch.ones(1, p, 4)
    for location, label, prob, middle in pairs:
        logits[0, location, label] = logit(prob)
        centre[0, location] = logit(middle)
    for location, wanted in (boxes or {}).items():
        ltrb[0, location] = sides(grid.points[location], torch.tensor(wanted)) / grid.strides[location]
    (found,) = head(**options).detect(answers_for(grid, logits, ltrb, centre), [(120, 128)], keep=5)
    return found


def test_what_counts_as_a_candidate():
    weak = [(100, 0, 0.06, 0.5)]
    assert detect(weak).instances.scores.tolist() == pytest.approx([0.03])  # V1 to V3
    root = detect(weak, ranking=Ranking(class_floor=0.05))
    assert root.instances.scores.tolist() == pytest.approx([0.03**0.5])  # FCOS
    assert len(detect(weak, ranking=Ranking(score_floor=0.05**0.5)).instances) == 0  # V4
    assert len(detect(weak, ranking=Ranking(score_floor=0.2)).instances) == 0  # torchvision
    assert len(detect([(100, 0, 0.05, 0.99)]).instances) == 0
    assert detect([(100, 0, 0.06, 0.5), (37, 1, 0.9, 0.9)]).location.tolist() == [37, 100]


def test_only_boxes_of_one_class_suppress_each_other():
    base, over, under = [20.0, 20, 84, 84], [20.0, 20, 84, 20 + 64 * 0.61], [20.0, 20, 84, 20 + 64 * 0.59]
    grid = locations((128, 128))
    near = [int(i) for i in torch.nonzero(((grid.points > 30) & (grid.points < 50)).all(dim=1))[:2, 0]]
    for second, label, count in ((base, 1, 2), (base, 0, 1), (over, 0, 1), (under, 0, 2)):
        pairs = [(near[0], 0, 0.9, 0.9), (near[1], label, 0.8, 0.9)]
        assert len(detect(pairs, boxes={near[0]: base, near[1]: second}).instances) == count


def test_boxes_are_cut_to_the_true_image_and_empty_ones_dropped():
    found = detect([(234, 0, 0.9, 0.9)], boxes={234: [60.0, 100, 140, 127]})
    assert found.instances.boxes.tolist() == [[60.0, 100.0, 128.0, 120.0]]
    grid = locations((128, 128))
    last = int(torch.nonzero((grid.points[:, 1] == 116) & (grid.points[:, 0] == 60))[0, 0])
    assert len(detect([(last, 0, 0.9, 0.9)], boxes={last: [50.0, 120, 70, 127]}).instances) == 0


def test_points_in_the_padding_answer_nothing():
    grid = locations((128, 128))
    for y, count in ((116, 1), (124, 0)):  # the image ends at 120 px
        point = int(torch.nonzero((grid.points == torch.tensor([60.0, y])).all(dim=1))[0, 0])
        for answered, kept in ((on_the_image, count), (everything, 1)):
            found = detect([(point, 0, 0.9, 0.9)], boxes={point: [50.0, 100, 70, 127]}, answered=answered)
            assert len(found.instances) == kept


def test_candidates_are_counted_by_level():
    pairs = [(i, 0, 0.5 + i / 1000, 0.9) for i in range(20)] + [(260, 0, 0.4, 0.9), (300, 0, 0.3, 0.9)]
    found = detect(pairs, num_candidates=2, nms_iou=1.0)
    assert found.location.tolist() == [19, 18, 260, 300]


def test_first_class_logits_say_one_in_a_hundred():
    with torch.no_grad():
        answers = head()({s: torch.randn(1, 8, 4, 4) for s in STRIDES})
    assert float(answers.logits.sigmoid().mean()) == pytest.approx(0.01, rel=0.05)
    assert answers.logits.shape == (1, 80, 2)


def test_boxes_begin_a_stride_from_their_points_where_the_relu_is_open():
    answers = head()({s: torch.randn(1, 8, 4, 4) for s in STRIDES})
    assert float(answers.ltrb.detach().mean()) == pytest.approx(1.0, abs=0.1)
    assert (answers.ltrb > 0).all()


def test_a_box_of_no_extent_learns_nothing():
    raw = torch.full((1, 4), -0.1, requires_grad=True)
    weighted_giou(torch.relu(raw), torch.full((1, 4), 2.0), torch.ones(1)).total.backward()
    assert (raw.grad == 0).all()  # which is why they do not begin there


def test_levels_have_factors_of_their_own():
    scales = LevelScales((8, 16))
    with torch.no_grad():
        scales["16"].scale.fill_(3.0)
    x = torch.ones(1, 4, 2, 2)
    assert float(scales(x, 8).detach().mean()) == 1
    assert float(scales(x, 16).detach().mean()) == 3


def test_parameters_of_the_paper_size():
    with torch.device("meta"):
        system = SYSTEMS["fcos-r50"](num_classes=80)
    assert sum(p.numel() for p in system.parameters()) == pytest.approx(32.24e6, abs=0.005e6)  # spec, sec. 8.5
