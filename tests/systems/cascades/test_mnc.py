"""MNC against its specification: golden numbers, closed forms of gradients, and the likeliest mistakes."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from maskwright.layers.gradients import clamp_gradient
from maskwright.layers.roi import Rois, RoiWarp, RoundedRoiWarp
from maskwright.recipes import find_recipe
from maskwright.structures import ImageBatch, Instances, Masks, MaskTiles
from maskwright.structures.boxes import iou
from maskwright.systems import SYSTEMS
from maskwright.systems.cascades import mnc
from maskwright.systems.cascades.mnc import (
    CODER,
    Answers,
    CascadeSampler,
    CategoryHead,
    InsideMatcher,
    cut,
    mask_targets,
    resize_masks,
    show_masks,
)
from maskwright.systems.cascades.sizes import MNC_VGG16
from maskwright.systems.cascades.voting import MASK_THRESHOLD, MaskVoting
from maskwright.systems.rcnn.mask_rcnn import SampledRois, box_losses
from maskwright.systems.rcnn.rpn import PairwiseObjectness
from maskwright.training import train
from tests.conftest import tiny_recipe
from tests.contract.test_contract import part_of

LN2 = math.log(2)
PARTS = ("backbones.0", "backbones.1", "backbones.2", "rpn", "mask_head", "category_head")
OBJECT = torch.tensor([[100.0, 100, 300, 300]])  # spec § 28, restated half-open
ROI = torch.tensor([[120.0, 90, 320, 290]])
SIZE = (400, 400)


def count(module):
    return sum(p.numel() for p in module.parameters())


def square(*, disc=False):
    y, x = torch.meshgrid(torch.arange(400) + 0.5, torch.arange(400) + 0.5, indexing="ij")
    inside = (x - 200) ** 2 + (y - 200) ** 2 <= 100**2 if disc else (x > 100) & (x < 300) & (y > 100) & (y < 300)
    return Masks.from_dense(inside[None])


def objects(*boxes, size=SIZE, labels=None):
    dense = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for row, (x0, y0, x1, y1) in zip(dense, boxes, strict=True):
        row[y0:y1, x0:x1] = True
    names = torch.zeros(len(boxes), dtype=torch.int64) if labels is None else torch.tensor(labels)
    return Instances(size, boxes=torch.tensor(boxes).float().reshape(-1, 4), labels=names, masks=Masks.from_dense(dense))


def batch(size=(96, 128), count=1):
    g = torch.Generator().manual_seed(0)
    images = [torch.randn(3, *size, generator=g) for _ in range(count)]
    return ImageBatch.collate(images, original_sizes=[size] * count, size_divisor=32, keys=list(range(count)))


def small(seed=0, **arguments):
    torch.manual_seed(seed)
    return SYSTEMS["mnc-small"](num_classes=3, **arguments)


# Shapes and counts


def test_parameters_are_those_of_the_released_network():
    with torch.device("meta"):
        system = SYSTEMS["mnc-vgg16"](num_classes=20)
        assert count(system) == 283_029_933
        assert count(SYSTEMS["mnc-vgg16"](num_classes=20, mask_side=28)) - count(system) == 88_151
        assert system.backbones[0](torch.zeros(1, 3, 600, 1000))[16].shape == (1, 512, 38, 63)  # pooling rounds up
    assert count(system.backbones) == 14_714_688
    assert count(system.rpn.conv) == 2_359_808
    assert (count(system.rpn.objectness), count(system.rpn.deltas)) == (9_234, 18_468)
    assert (count(system.mask_head.fc1), count(system.mask_head.fc2)) == (25_690_368, 113_337)
    head = system.category_head
    assert [count(m) for m in head.box_path.children()] == [102_764_544, 16_781_312]
    assert (count(head.classes), count(head.mask_classes), count(head.deltas)) == (172_053, 172_053, 688_212)
    assert system.input.size_divisor == 1


def test_anchors_cover_the_published_sizes():
    (anchors,) = MNC_VGG16.anchor_grid()({16: torch.zeros(1, 1, 38, 63)})
    inclusive = [
        [-84, -40, 99, 55], [-176, -88, 191, 103], [-360, -184, 375, 199], [-56, -56, 71, 71], [-120, -120, 135, 135],
        [-248, -248, 263, 263], [-36, -80, 51, 95], [-80, -168, 95, 183], [-168, -344, 183, 359],
    ]  # fmt: skip
    assert anchors[:9].tolist() == [[x0, y0, x1 + 1, y1 + 1] for x0, y0, x1, y1 in inclusive]
    assert anchors[9].tolist() == [-68, -40, 116, 56]  # the next cell of the row
    matcher = InsideMatcher(positive=0.7, negative=0.3, rescue_above=0.0)
    kind = matcher(anchors, objects((200, 200, 330, 330), size=(600, 1000))).kind
    outside = (anchors[:, :2] < 0).any(dim=1) | (anchors[:, 2] > 1000) | (anchors[:, 3] > 600)
    assert (kind[outside] == -1).all()
    assert (len(anchors), int((~outside).sum())) == (21_546, 8_151)
    (smaller,) = MNC_VGG16.anchor_grid()({16: torch.zeros(1, 1, 38, 50)})
    is_inside = (smaller[:, :2] >= 0).all(dim=1) & (smaller[:, 2] <= 800) & (smaller[:, 3] <= 600)
    assert (len(smaller), int(is_inside.sum())) == (17_100, 5_944)
    assert (kind[~outside] == 1).any()


@pytest.mark.parametrize(
    ("name", "counts"), [("mnc-vgg16", False), ("fcis-r101", False), ("mnc-small", True), ("fcis-small", True)]
)
def test_small_sizes_learn_from_anchors_that_leave_the_image(name, counts):
    with torch.device("meta"):
        rpn = SYSTEMS[name](num_classes=2).rpn
    anchors = torch.tensor([[-40.0, -40.0, 280.0, 280.0], [0.0, 0.0, 30.0, 30.0]])  # the first sticks out on all sides
    kind = rpn.matcher(anchors, objects((0, 0, 256, 256), size=(256, 256))).kind
    assert (kind[0].item() != -1) == counts
    assert kind[1].item() == 0 if counts else kind[1].item() == 1  # alone, the other is the best there is


def test_objectness_is_a_softmax_of_two():
    layer = PairwiseObjectness(4, anchors=3)
    x = torch.randn(2, 4, 5, 5)
    against, for_it = nn.functional.conv2d(x, layer.weight, layer.bias).chunk(2, dim=1)
    probs = torch.stack([against, for_it]).softmax(dim=0)[1]
    torch.testing.assert_close(layer(x).sigmoid(), probs)


# RoI warping (spec § 5)


def warp_inputs(dtype=torch.float64):
    g = torch.Generator().manual_seed(1)
    features = torch.randn(2, 3, 9, 11, generator=g, dtype=dtype)
    boxes = torch.tensor([[20.3, 17.2, 130.7, 90.1], [3.1, 40.9, 77.7, 120.3]], dtype=dtype)
    return features, boxes, torch.tensor([0, 1])


def test_gradients_of_warping_are_exact_in_features_and_boxes():
    features, boxes, images = warp_inputs()
    warp = RoiWarp(4, stride=16)
    features.requires_grad_()
    boxes.requires_grad_()
    assert torch.autograd.gradcheck(lambda f, b: warp({16: f}, Rois(b, images)), (features, boxes))


def test_gradients_of_boxes_have_the_closed_form():
    features, boxes, images = warp_inputs()
    warp = RoiWarp(4, stride=16)
    boxes.requires_grad_()
    table = features.permute(0, 2, 3, 1)
    upstream = torch.randn(2, 8, 8, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (warp.samples(table, boxes, images) * upstream).sum().backward()
    ratio = torch.arange(8, dtype=torch.float64) / 8
    for i in range(2):
        x1, y1, x2, y2 = (boxes[i].detach() / 16).tolist()
        wanted = torch.zeros(4, dtype=torch.float64)
        for q in range(8):
            for p in range(8):
                x, y = x1 + ratio[p] * (x2 - x1), y1 + ratio[q] * (y2 - y1)
                u, v = int(x), int(y)
                a, b = x - u, y - v
                f = table[i]
                right = min(u + 1, 10)
                down = min(v + 1, 8)
                fx = (1 - b) * (f[v, right] - f[v, u]) + b * (f[down, right] - f[down, u])
                fy = (1 - a) * (f[down, u] - f[v, u]) + a * (f[down, right] - f[v, right])
                gx, gy = (upstream[i, q, p] * fx).sum() / 16, (upstream[i, q, p] * fy).sum() / 16
                wanted += torch.stack([gx * (1 - ratio[p]), gy * (1 - ratio[q]), gx * ratio[p], gy * ratio[q]])
        torch.testing.assert_close(boxes.grad[i], wanted, rtol=1e-9, atol=1e-12)


def ramps():
    u, v = torch.arange(63.0).expand(38, 63), torch.arange(38.0)[:, None].expand(38, 63)
    return torch.stack([u, v], dim=-1)[None]


def test_samples_lie_where_they_should():
    boxes = torch.tensor([[160.0, 96, 480, 320], [120, 90, 319, 289]])
    x, y = RoiWarp(14, stride=16).samples(ramps(), boxes, torch.zeros(2, dtype=torch.int64)).unbind(-1)
    assert x[0, 0, [0, -1]].tolist() == pytest.approx([10.0, 29.2857], abs=1e-4)
    assert y[0, [0, -1], 0].tolist() == pytest.approx([6.0, 19.5], abs=1e-4)
    assert x[1, 0, [0, -1]].tolist() == pytest.approx([7.5, 19.4933], abs=1e-4)
    assert y[1, [0, -1], 0].tolist() == pytest.approx([5.625, 17.6183], abs=1e-4)
    x, y = RoundedRoiWarp(14, stride=16).samples(ramps(), boxes[1:], torch.zeros(1, dtype=torch.int64)).unbind(-1)
    assert x[0, 0, [0, -1]].tolist() == pytest.approx([8, 19.5714], abs=1e-4)
    assert y[0, [0, -1], 0].tolist() == pytest.approx([6, 17.5714], abs=1e-4)


def test_x_and_y_are_not_swapped():
    features, _, images = warp_inputs()
    boxes = torch.tensor([[10.0, 30, 150, 60], [20, 10, 50, 120]], dtype=torch.float64)
    warp = RoiWarp(4, stride=16)
    turned = warp({16: features.transpose(2, 3)}, Rois(boxes[:, [1, 0, 3, 2]], images))
    torch.testing.assert_close(turned, warp({16: features}, Rois(boxes, images)).transpose(2, 3))


def test_rounding_is_a_step_gradients_ignore():
    features, boxes, images = warp_inputs()
    rounded = (boxes / 16 + 0.5).floor() * 16
    answers = []
    for warp, where in ((RoundedRoiWarp(4, stride=16), boxes), (RoiWarp(4, stride=16), rounded)):
        at = where.clone().requires_grad_()
        warped = warp({16: features}, Rois(at, images))
        warped.square().sum().backward()
        answers.append((warped, at.grad))
    torch.testing.assert_close(answers[0], answers[1])
    half = torch.tensor([[8.0, 8, 104, 104]], dtype=torch.float64)  # 0.5 cells are rounded up, and 6.5
    assert RoundedRoiWarp(4, stride=16).corners(half / 16).tolist() == [[1, 1, 7, 7]]


def test_outside_the_map_there_is_its_edge_for_half_a_cell_and_then_nothing():
    table = torch.ones(1, 4, 4, 1)
    box = torch.tensor([[-32.0, 0, 32, 16]])  # samples at -2, -1, 0, 1 cells
    seen = RoiWarp(2, stride=16).samples(table, box, torch.zeros(1, dtype=torch.int64))
    assert seen[0, 0, :, 0].tolist() == [0, 0, 1, 1]
    box = torch.tensor([[-8.0, 0, 56, 16]])  # at -0.5, 0.5, …
    assert RoiWarp(2, stride=16).samples(table, box, torch.zeros(1, dtype=torch.int64))[0, 0, 0, 0] == 1


def test_pieces_of_a_batch_of_rois_are_one_batch(monkeypatch):
    features, boxes, images = warp_inputs()
    whole = RoiWarp(4, stride=16)({16: features}, Rois(boxes, images))
    monkeypatch.setattr("maskwright.layers.roi._WARPED", 1)
    assert torch.equal(RoiWarp(4, stride=16)({16: features}, Rois(boxes, images)), whole)


# Boxes: coding, bridge, gradients (spec § 8)


def test_deltas_of_the_golden_pair():
    assert float(iou(OBJECT, ROI)) == pytest.approx(0.746725, abs=1e-6)
    assert CODER.encode(OBJECT, ROI)[0].tolist() == pytest.approx([-1.0, 0.5, 0, 0], abs=1e-6)
    assert CODER.decode(CODER.encode(OBJECT, ROI), ROI)[0].tolist() == pytest.approx([100, 100, 300, 300], abs=1e-3)


def answers_with(system, boxes, targets, *, best):
    """Answers whose best class `best` moves every box exactly onto its target; the other classes would not move it."""
    classes = torch.zeros(len(boxes), 4)
    classes[:, best] = 5.0
    classes[:, 3] = 9.0  # background
    deltas = torch.zeros(len(boxes), 4, 4)
    deltas[:, best] = CODER.encode(targets, boxes)
    deltas.requires_grad_()
    return Answers(torch.zeros(len(boxes), 21, 21), torch.zeros(len(boxes), 4), classes, deltas)


def test_the_bridge_scales_deltas_back_and_takes_the_best_object_class():
    system = small()
    g = torch.Generator().manual_seed(0)
    corners = 40 + 100 * torch.rand(50, 2, generator=g)
    targets = torch.cat([corners, corners + 60 + 100 * torch.rand(50, 2, generator=g)], dim=1)
    boxes = targets + 8 * torch.randn(50, 4, generator=g)
    answers = answers_with(system, boxes, targets, best=1)
    (moved,) = system.bridge(Rois.of([boxes]), answers, [SIZE], classes=3, bound=1 / 512)
    assert iou(moved, targets).diagonal().min() >= 0.95
    (moved * torch.randn(50, 4, generator=g)).sum().backward()
    grads = answers.deltas.grad.abs().amax(dim=(0, 2))
    assert grads[1] > 0
    assert grads[[0, 2, 3]].tolist() == [0, 0, 0]
    assert answers.deltas.grad.abs().max() == 1 / 512  # the greatest is cut


def test_the_background_moves_boxes_only_as_in_the_code():
    boxes = torch.tensor([[100.0, 100, 200, 200]])
    answers = answers_with(None, boxes, boxes + 20, best=0)
    system = small()
    torch.testing.assert_close(system.bridge(Rois.of([boxes]), answers, [SIZE], classes=3)[0], boxes + 20)
    paths = (nn.Identity(), nn.Identity())
    head = CategoryHead(*paths, width=2, num_classes=3, moves_by_background=True)
    torch.testing.assert_close(system.bridge(Rois.of([boxes]), answers, [SIZE], classes=head.moves_by)[0], boxes)


def test_boxes_that_leave_the_image_pass_no_gradient():
    boxes = torch.tensor([[10.0, 10, 50, 50], [-5, 10, 50, 50]], requires_grad=True)
    kept = cut(boxes, (100, 100))
    assert kept.tolist() == [[10, 10, 50, 50], [0, 10, 50, 50]]
    kept.sum().backward()
    assert boxes.grad.tolist() == [[1, 1, 1, 1], [0, 0, 0, 0]]


def test_gradients_are_clamped_and_nothing_else():
    x = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    y = clamp_gradient(x, 0.5)
    assert torch.equal(x, y)
    (y * torch.tensor([0.25, 4.0, -7.0])).sum().backward()
    assert x.grad.tolist() == [0.25, 0.5, -0.5]


def test_later_stages_move_the_anchors_of_their_boxes():
    """Cut the way from a box to its features, and these gradients vanish."""
    size = (192, 256)
    system = small(num_proposals=1000)
    images, targets = batch(size), [objects((64, 64, 128, 128), (140, 60, 180, 130), size=size, labels=[0, 2])]
    terms = ("mask", "class", "mask_class", "box", "mask_again", "class_again")
    for name in terms:
        system.zero_grad()
        loss = system.loss(images, targets)[name]
        (loss.total / loss.count).backward()
        assert system.rpn.deltas.weight.grad.abs().max() > 0, name
    stepwise = SYSTEMS["mnc-stepwise-small"](num_classes=3, num_proposals=1000)
    sum(loss.total for name, loss in stepwise.loss(images, targets).items() if name in terms).backward()
    assert stepwise.rpn.deltas.weight.grad is None


def test_targets_of_boxes_are_no_way_to_lower_the_loss():
    target = objects((100, 100, 200, 200))
    boxes = torch.tensor([[110.0, 100, 210, 200]], requires_grad=True)
    sampled = sampled_at(boxes, target, torch.tensor([0]))
    losses = box_losses(sampled, torch.zeros(1, 4), torch.zeros(1, 4, 4, requires_grad=True), coder=CODER, beta=1.0)
    assert torch.autograd.grad(losses["box"].total, boxes, allow_unused=True)[0] is None


def test_weights_are_shared_by_both_passes():
    system = small()
    images, targets = batch(), [objects((20, 20, 70, 70), size=(96, 128))]
    grads = []
    for names in (("class",), ("class_again",), ("class", "class_again")):
        system.zero_grad()
        losses = system.loss(images, targets)
        sum(losses[name].total for name in names).backward()
        grads.append(system.category_head.box_path.fc1.weight.grad.clone())
    torch.testing.assert_close(grads[0] + grads[1], grads[2])
    assert not torch.equal(grads[0], grads[2])


# Labels and losses (spec § 6, 7, 9, 11)


@pytest.mark.parametrize(("side", "rectangle", "disc"), [(14, 169, 143), (21, 380, 324), (28, 675, 574)])
def test_golden_mask_targets(side, rectangle, disc):
    row = torch.tensor([0])
    assert mask_targets(square(), ROI, row, side=side).sum() == rectangle
    assert mask_targets(square(disc=True), ROI, row, side=side).sum() == disc


def test_mask_targets_are_interpolated_between_pixels_of_the_resized_image():
    resized, rows = square(disc=True).resize((90, 70)), torch.tensor([0, 0])
    made = Masks.from_dense(resized.to_dense())
    boxes = torch.tensor([[10.0, 10, 60, 70], [20.4, 30.7, 41, 55]])
    assert resized.bitmap_size != made.bitmap_size
    assert torch.equal(mask_targets(resized, boxes, rows, side=21), mask_targets(made, boxes, rows, side=21))


def test_the_golden_disc_comes_back():
    disc = square(disc=True)
    assert int(disc.areas()) == 31_428
    inside = Masks.from_dense(disc.to_dense() & objects((120, 90, 320, 290)).masks.to_dense())
    assert int(inside.areas()) == 29_204
    for side, clipped, full in ((14, 0.959, 0.893), (21, 0.973, 0.906), (28, 0.980, 0.911)):
        target = mask_targets(disc, ROI, torch.tensor([0]), side=side)
        back = MaskTiles(target, ROI).paste(SIZE, MASK_THRESHOLD)
        assert float(inside.paired_iou(back)) == pytest.approx(clipped, abs=1e-3)
        assert float(disc.paired_iou(back)) == pytest.approx(full, abs=1e-3)


def test_boxes_are_drawn_by_overlap():
    g = torch.Generator().manual_seed(0)
    object_box = torch.tensor([100.0, 100, 200, 200])
    hits = object_box + 5 * torch.randn(100, 4, generator=g)
    near = object_box + torch.tensor([50.0, 0, 50, 0]) + 5 * torch.randn(100, 4, generator=g)
    far = object_box + 190 + 5 * torch.randn(100, 4, generator=g)
    target = objects((100, 100, 200, 200), labels=[2])
    sampled = CascadeSampler(num_classes=3).draw([torch.cat([hits, near, far])], [target], batch().generators())
    assert len(sampled.target_boxes) == 19
    assert sampled.labels.tolist() == [2] * 19 + [3] * 45
    overlap = iou(sampled.rois.boxes, target.boxes)[:, 0]
    assert (overlap[:19] >= 0.5).all()
    assert int(((overlap >= 0.1) & (overlap < 0.5)).sum()) == 38
    assert int((overlap < 0.1).sum()) == 7
    scarce = CascadeSampler(num_classes=3).draw([torch.cat([hits[:3], far])], [target], batch().generators())
    assert scarce.labels.tolist() == [2] * 4 + [3] * 9  # with the object's own box; what is short is not made up for
    everything = CascadeSampler(num_classes=3).label([torch.cat([hits, near, far])], [target])
    assert len(everything.rois) == 301


def sampled_at(boxes, target, rows):
    background = len(boxes) - len(rows)
    return SampledRois(
        rois=Rois.of([boxes]),
        labels=torch.cat([target.labels[rows], torch.full((background,), 3)]),
        target_boxes=target.boxes[rows],
        target_rows=[rows],
    )


def test_a_mask_that_misses_its_object_has_the_background_as_class():
    target = objects((100, 100, 300, 300), labels=[1])
    boxes = torch.tensor([[100.0, 100, 300, 300], [100, 100, 300, 300], [0, 0, 50, 50]])
    sampled = sampled_at(boxes, target, torch.tensor([0, 0]))
    probs = torch.stack([torch.zeros(21, 21), torch.full((21, 21), 0.45), torch.ones(21, 21)])
    shown = show_masks(probs, sampled, [target], num_classes=3)
    assert sampled.labels.tolist() == [1, 1, 3]
    assert shown.labels.tolist() == [3, 1, 3]
    assert mask_targets(target.masks, boxes[:1], torch.tensor([0]), side=21).min() == 1  # still the whole object


def test_first_losses_are_those_of_knowing_nothing():
    system = small()
    for module in (
        system.mask_head.fc2,
        system.category_head.classes,
        system.category_head.mask_classes,
        system.rpn.objectness,
    ):
        nn.init.zeros_(module.weight)
    targets = [objects((20, 20, 70, 70), (60, 10, 120, 60), size=(96, 128), labels=[0, 2])] * 2
    losses = {name: float((loss.total / loss.count).detach()) for name, loss in system.loss(batch(count=2), targets).items()}
    assert losses["rpn_objectness"] == pytest.approx(LN2, abs=1e-4)
    for name in ("mask", "mask_again"):
        assert losses[name] == pytest.approx(2 * LN2, abs=1e-4)
    for name in ("class", "mask_class", "class_again", "mask_class_again"):
        assert losses[name] == pytest.approx(math.log(4), abs=1e-4)
    nothing = system.loss(batch(), [objects(size=(96, 128))])
    assert float(nothing["mask"].total.detach()) == float(nothing["mask"].count) == 0


def test_masks_teach_at_positive_rois_only():
    system = small()
    logits = []
    system.mask_head.register_forward_hook(lambda module, inputs, output: logits.append(output))
    losses = system.loss(batch(), [objects((20, 20, 70, 70), size=(96, 128))])
    (grad,) = torch.autograd.grad(losses["mask"].total, logits[0])
    taught = (grad.abs().amax(dim=(1, 2)) > 0).nonzero()[:, 0]
    assert 1 <= len(taught) <= 38  # 30 % of 128
    assert taught.tolist() == list(range(len(taught)))


def test_classes_teach_masks_all_or_only_good_ones():
    head = CategoryHead(nn.Identity(), nn.Identity(), width=1, num_classes=3)
    coded = CategoryHead(nn.Identity(), nn.Identity(), width=1, num_classes=3, is_selective=True)
    target = objects((100, 100, 300, 300), labels=[1])
    boxes = torch.tensor([[100.0, 100, 300, 300], [100, 100, 300, 300]])
    probs = torch.stack([torch.zeros(21, 21), torch.ones(21, 21)]).requires_grad_()
    shown = show_masks(probs, sampled_at(boxes, target, torch.tensor([0, 0])), [target], num_classes=3)
    for part, taught in ((head, [1, 1]), (coded, [0, 1])):
        (grad,) = torch.autograd.grad(part.passed(shown).sum(), probs)
        assert grad[:, 0, 0].tolist() == taught


def test_masks_are_read_from_the_left():
    ramp = torch.arange(21.0).expand(1, 21, 21)
    assert resize_masks(ramp, 14)[0, 0].tolist() == [1.5 * j for j in range(14)]
    assert resize_masks(ramp.transpose(1, 2), 14)[0, :, 0].tolist() == [1.5 * j for j in range(14)]


def test_the_mask_path_comes_first():
    with torch.device("meta"):
        head = SYSTEMS["mnc-vgg16"](num_classes=20).category_head
    assert head.classes.in_features == 8192
    paths = CategoryHead(Constant(1.0), Constant(2.0), width=1, num_classes=3)
    nn.init.zeros_(paths.classes.bias)
    paths.classes.weight.data = torch.tensor([[1.0, 0.0]] * 4)
    assert paths(torch.zeros(1, 2, 14, 14), torch.zeros(1, 21, 21))[0].tolist() == [[2.0] * 4]


class Constant(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return x.new_full((len(x), 1), self.value)


# Voting (spec § 12)


def voted(boxes, grids, scores, keep=10, **options):
    return MaskVoting(**options)(torch.tensor(boxes), torch.stack(grids)[:, None], torch.tensor(scores), (100, 100), keep=keep)


ONE, NOTHING = torch.ones(21, 21), torch.zeros(21, 21)
HERE, THERE = [10.0, 10, 50, 50], [60.0, 60, 90, 90]


def test_masks_vote_by_score():
    found = voted([HERE, HERE], [ONE, NOTHING], [[0.6], [0.3]])
    assert found.scores.tolist() == pytest.approx([0.6])
    assert found.masks.areas().tolist() == [1600]  # 0.667 reaches 0.4
    assert voted([HERE, HERE], [NOTHING, ONE], [[0.6], [0.3]]).masks.areas().tolist() == [0]  # 0.333 does not
    twice = voted([HERE, HERE], [NOTHING, ONE], [[0.06], [0.03]])
    assert twice.masks.areas().tolist() == [0]


def test_each_class_votes_by_its_own_score():
    found = voted([HERE, HERE], [ONE, NOTHING], [[0.6, 0.1], [0.3, 0.5]])
    assert found.labels.tolist() == [0, 1]
    assert found.masks.areas().tolist() == [1600, 0]


def test_boxes_apart_do_not_vote_for_each_other():
    found = voted([HERE, THERE], [ONE, NOTHING], [[0.6], [0.5]])
    assert found.masks.areas().tolist() == [1600, 0]
    assert len(voted([HERE, THERE], [ONE, NOTHING], [[0.6], [0.5]], keep=1)) == 1


def test_who_may_vote():
    boxes, grids, scores = [HERE, HERE, THERE], [ONE, NOTHING, ONE], [[0.3, 0.9], [0.8, 0.1], [0.0, 0.0]]
    assert voted(boxes, grids, scores, partners="all").masks.areas().tolist() == [1600, 0]
    assert voted(boxes, grids, scores, partners="none").masks.areas().tolist() == [1600, 0]
    grids = [ONE, NOTHING, ONE]
    shifted = [HERE, [11.0, 10, 51, 50], THERE]
    both = voted(shifted, grids, [[0.5], [0.45], [0.0]], partners="all", nms_iou=0.99)
    few = voted(shifted, grids, [[0.5], [0.45], [0.0]], partners="suppressed", nms_iou=0.99)
    assert both.masks.areas().tolist()[1] > 0  # the better one says there is something
    assert few.masks.areas().tolist()[1] == 0  # it was not suppressed by the worse one


def test_overlaps_that_suppress_and_that_vote():
    """IoU above 0.3 suppresses; from 0.5 on boxes vote for each other."""

    def beside(overlap):  # of a box 40 px wide, moved to the right
        shift = 40 * (1 - overlap) / (1 + overlap)
        return [10 + shift, 10.0, 50 + shift, 50.0]

    for overlap, count in ((0.25, 2), (0.35, 1)):
        assert len(voted([HERE, beside(overlap)], [ONE, ONE], [[0.6], [0.5]])) == count
    for overlap, area in ((0.45, 0), (0.55, 1)):
        found = voted([HERE, beside(overlap)], [NOTHING, ONE], [[0.5], [0.45]])
        assert (int(found.masks.areas()[0]) > 0) == bool(area)


# Passes


def test_images_that_no_anchor_fits_and_crowds_that_cover_all():
    for name in ("mnc-small", "fcis-small"):
        system = SYSTEMS[name](num_classes=3)
        for size in ((12, 512), (96, 128)):
            everything = replace(objects((0, 0, size[1], size[0]), size=size), is_crowd=torch.tensor([True]))
            one = objects((2, 2, 10, 10), size=size)
            for target in (everything, one):
                losses = system.loss(batch(size), [target])
                assert all(bool(torch.isfinite(loss.total)) for loss in losses.values())
        system.rpn.min_side_px = 1000.0
        assert len(system.predict(batch())[0]) == 0


def test_bounds_are_those_of_the_step_and_not_of_its_parts(monkeypatch):
    """Losses are means over all images of a step, in whatever parts they are computed."""
    system, images, bounds = small(), batch(count=2), []
    usual = mnc.clamp_gradient
    monkeypatch.setattr(mnc, "clamp_gradient", lambda x, bound: bounds.append(bound) or usual(x, bound))
    with torch.no_grad():
        for layer in (system.category_head.classes, system.category_head.mask_classes):
            layer.weight *= 100  # steep enough for the bound
    targets = [objects((20, 20, 70, 70), size=(96, 128)), objects((60, 10, 120, 60), (5, 5, 40, 80), size=(96, 128))]

    def gradient(parts):
        system.zero_grad()
        losses = [system.loss(*part) for part in parts]
        counts = {name: sum(loss[name].count for loss in losses) for name in losses[0]}
        sum(loss[name].total / counts[name].clamp(min=1) for loss in losses for name in loss).backward()
        return system.rpn.deltas.weight.grad.clone()

    whole = gradient([(images, targets)])
    halves = [(part_of(images, i), targets[i : i + 1]) for i in range(2)]
    assert set(bounds) == {1 / 1024}
    in_step = gradient([(replace(part, num_in_step=2), target) for part, target in halves])
    assert set(bounds) == {1 / 1024}
    assert (in_step - whole).norm() <= 1e-4 * whole.norm()
    assert (gradient(halves) - whole).norm() > 1e-3 * whole.norm()  # each part as a step of its own: the bound matters here


def test_training_tells_its_parts_how_many_images_the_step_has(coco_folder, tmp_path, console, monkeypatch):
    bounds, usual = set(), mnc.clamp_gradient
    monkeypatch.setattr(mnc, "clamp_gradient", lambda x, bound: bounds.add(bound) or usual(x, bound))
    recipe = tiny_recipe(coco_folder, "batch_size=4", "micro_batches=2", system="mnc-small")
    train(recipe, tmp_path / "run", device="cpu", console=console)
    assert min(bounds) == 1 / 512 / 4
    assert bounds == {1 / 512 / 4, math.inf}


def test_gradients_of_later_stages_are_bounded_and_stay_inside():
    system = small(num_proposals=1000)
    size = (192, 256)
    with torch.no_grad():
        features = system._features(batch(size).pixels)
        candidates = system.rpn(features[0])
    deltas = [d.clone().requires_grad_() for d in candidates.deltas]
    (boxes,) = system.rpn.boxes(candidates._replace(deltas=deltas), [size], among=2000, bound=1 / 512)
    (1e6 * boxes).sum().backward()
    grad = deltas[0].grad[0]
    assert grad.abs().max() == 1 / 512
    anchors = torch.cat(candidates.anchors)
    outside = (anchors[:, :2] < 0).any(dim=1) | (anchors[:, 2] > 256) | (anchors[:, 3] > 192)
    assert (grad[outside] == 0).all()
    assert int((grad.abs().amax(dim=1) > 0).sum()) > 100
    decoded = system.rpn.coder.decode(deltas[0][0].detach(), anchors)
    sticks_out = (decoded[:, :2] < 0).any(dim=1) | (decoded[:, 2] > 256) | (decoded[:, 3] > 192)
    assert (grad[sticks_out] == 0).all()


@pytest.mark.parametrize("name", ["mnc-stepwise-small", "mnc-unshared-small"])
def test_each_step_teaches_what_it_should(name):
    torch.manual_seed(0)
    system = SYSTEMS[name](num_classes=3, num_proposals=100)
    heads = ["backbones.0", "category_head", "mask_head"]
    wanted = {
        "mnc-stepwise-small": [["backbones.0", "rpn"], [*heads, "rpn"], ["rpn"], heads[1:]],
        "mnc-unshared-small": [["backbones.0", "rpn"], ["backbones.1", "mask_head"], ["backbones.2", "category_head"]],
    }[name]
    stages = find_recipe(name).stages
    assert [stage.is_scored for stage in stages] == [False] * (len(stages) - 1) + [True]
    for stage, parts in zip(stages, wanted, strict=True):
        system.zero_grad()
        losses = system.loss(batch(), [objects((20, 20, 70, 70), size=(96, 128))])
        sum(losses[term].total for term in stage.losses).backward()
        taught = {n for n, p in system.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        moved = {n for n in taught if not n.startswith(stage.frozen)} if stage.frozen else taught
        assert sorted({next(part for part in PARTS if n.startswith(part)) for n in moved}) == sorted(parts)


def test_three_stages_and_five(monkeypatch):
    system, voted = small(score_threshold=0.0, partners="none"), []
    usual = system.voting

    def voting(boxes, *rest, **options):
        voted.append(boxes)
        return usual(boxes, *rest, **options)

    monkeypatch.setattr(system, "voting", voting)
    images = batch(count=2)
    with torch.no_grad():
        answers = {}
        for stages in (3, 5):
            system.stages_at_inference = stages
            answers[stages] = system.predict(images)
        features = system._features(images.pixels)
        proposals = system.rpn.boxes(system.rpn(features[0]), images.sizes, among=system.rpn.candidates_at_inference)
        moved = system.bridge(
            Rois.of(proposals),
            system._look(features, Rois.of(proposals)),
            images.sizes,
            classes=system.category_head.moves_by,
        )
    for three, five, first, second in zip(voted[:2], voted[2:], proposals, moved, strict=True):
        assert torch.allclose(three, first, atol=1e-4)
        assert torch.allclose(five, torch.cat([first, second]), atol=1e-4)
    assert any(not torch.equal(a.boxes, b.boxes) for a, b in zip(answers[3], answers[5], strict=True))


def test_unshared_features_are_those_of_each_stage():
    torch.manual_seed(0)
    system = SYSTEMS["mnc-unshared-small"](num_classes=3)
    losses = system.loss(batch(), [objects((20, 20, 70, 70), size=(96, 128))])
    for i, names in enumerate([("rpn_objectness", "rpn_box"), ("mask",), ("class", "box", "mask_class")]):
        system.zero_grad()
        sum(losses[name].total for name in names).backward(retain_graph=True)
        learning = [any(p.grad is not None and p.grad.abs().max() > 0 for p in b.parameters()) for b in system.backbones]
        assert learning == [i == k for k in range(3)]


def test_a_mirrored_image_has_mirrored_labels():
    target = objects((20, 20, 70, 70), (60, 10, 120, 60), size=(96, 128), labels=[0, 2])
    sampled = CascadeSampler(num_classes=3).label([torch.tensor([[22.0, 18, 66, 74], [5, 5, 20, 20]])], [target])
    mirrored = replace(
        target, boxes=torch.tensor([[58.0, 20, 108, 70], [8, 10, 68, 60]]), masks=target.masks.flip(horizontal=True)
    )
    other = CascadeSampler(num_classes=3).label([torch.tensor([[62.0, 18, 106, 74], [108, 5, 123, 20]])], [mirrored])
    a = mask_targets(target.masks, sampled.positives.boxes, sampled.target_rows[0], side=21)
    b = mask_targets(mirrored.masks, other.positives.boxes, other.target_rows[0], side=21)
    assert torch.equal(a.flip(-1), b)
    assert torch.equal(sampled.labels, other.labels)
