import copy
import math

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from maskwright.layers.assignment import IGNORED, NEGATIVE, POSITIVE, BalancedSampler, IouMatcher, first_of_each
from maskwright.layers.backbones import Backbone
from maskwright.layers.box_coding import BoxCoder
from maskwright.layers.fpn import ConvolvedLevels, FeaturePyramid, SubsampledLevels
from maskwright.layers.grids import PyramidAnchors, RoundedAnchors, anchor_grid
from maskwright.layers.nms import nms_by_group
from maskwright.layers.norms import FrozenNorm, GroupNorm, fold_frozen_norms, freeze_norms, has_frozen_norms
from maskwright.layers.roi import MeanRoiWarp, RoiAlign, RoiAlignMax, RoiPool, Rois, RoundedRoiWarp, level_of
from maskwright.layers.towers import Tower, flatten_levels
from maskwright.structures import Instances
from maskwright.structures.boxes import iou, paired_iou

# Anchors


def test_anchor_shapes_are_unrounded_and_size_major():
    cell = PyramidAnchors.cell([32], [0.5, 1, 2])
    expected = [[-22.627, -11.314, 22.627, 11.314], [-16, -16, 16, 16], [-11.314, -22.627, 11.314, 22.627]]  # spec § 5.1
    assert torch.allclose(cell, torch.tensor(expected), atol=1e-3)
    five = PyramidAnchors.cell([32, 64], [0.5, 1, 2])
    areas = (five[:, 2] - five[:, 0]) * (five[:, 3] - five[:, 1])
    assert torch.allclose(areas, torch.tensor([1024.0] * 3 + [4096.0] * 3))


def test_anchor_centres_and_counts():
    grid = anchor_grid(PyramidAnchors.cell([64], [0.5, 1, 2]), (2, 3), (8, 8))
    centres = ((grid[:, :2] + grid[:, 2:]) / 2).reshape(2, 3, 3, 2)
    assert centres[0, 0, 0].tolist() == [0, 0]
    assert centres[0, 2, 1].tolist() == [16, 0]
    assert centres[1, 0, 2].tolist() == [0, 8]
    anchors = PyramidAnchors({s: (8 * s,) for s in (4, 8, 16, 32, 64)})
    assert sum(map(len, anchors(levels_of(800, 1344)))) == 268_569  # spec § 4.3


def levels_of(height, width):
    return {s: torch.zeros(1, 1, -(-height // s), -(-width // s)) for s in (4, 8, 16, 32, 64)}


def test_rounded_anchors_lie_whole_pixels_apart():
    anchors = RoundedAnchors({s: (8 * s,) for s in (4, 8, 16, 32, 64)})
    levels = anchors(levels_of(800, 1344))
    assert levels[0][:3].tolist() == [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]]  # spec § 5.1
    assert levels[4][:3].tolist() == [[-362, -181, 362, 181], [-256, -256, 256, 256], [-181, -362, 181, 362]]
    coarsest = (levels[4][:, :2] + levels[4][:, 2:]) / 2
    assert coarsest[3].tolist() == [64, 0]
    assert coarsest[3 * 21].tolist() == [0, 61]  # 800 // 13 rows


# Box coding


def test_deltas_of_the_spec():
    anchor, target = torch.tensor([10.0, 20, 50, 100]), torch.tensor([12.0, 18, 60, 90])
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
    deltas = coder.encode(target, anchor)
    assert torch.allclose(deltas, torch.tensor([1.5, -0.75, 0.91161, -0.52680]), atol=1e-5)  # spec § 6
    assert torch.allclose(coder.decode(deltas, anchor), target, atol=1e-4)
    far = BoxCoder().decode(torch.tensor([0.0, 0, 100, 100]), anchor)
    assert torch.allclose(far, torch.tensor([-1220.0, -2440, 1280, 2560]), atol=0.1)


def test_decoding_is_differentiable_and_float32():
    deltas = torch.zeros(2, 4, requires_grad=True)
    boxes = BoxCoder().decode(deltas.bfloat16(), torch.tensor([[0.0, 0, 1000, 10]]))
    boxes.sum().backward()
    assert boxes.dtype == torch.float32
    assert deltas.grad is not None


# Assignment


def targets(rows, crowd=None):
    boxes = torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)
    return Instances(
        (100, 100),
        boxes=boxes,
        labels=torch.arange(len(boxes)),
        is_crowd=None if crowd is None else torch.tensor(crowd),
    )


RPN = IouMatcher(positive=0.7, negative=0.3, rescue_above=0.0)


def test_thresholds_split_candidates():
    candidates = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 2], [50, 50, 60, 60]])
    assignment = RPN(candidates, targets([[0, 0, 10, 10]]))
    assert assignment.kind.tolist() == [POSITIVE, IGNORED, NEGATIVE, NEGATIVE]
    boundary = IouMatcher(positive=0.5, negative=0.5, rescue_above=None)(candidates, targets([[0, 0, 10, 10]]))
    assert boundary.kind.tolist() == [POSITIVE, POSITIVE, NEGATIVE, NEGATIVE]  # 0.5 exactly is positive
    between = IouMatcher(positive=0.7, negative=0.5, rescue_above=None)(candidates, targets([[0, 0, 10, 10]]))
    assert between.kind.tolist() == [POSITIVE, IGNORED, NEGATIVE, NEGATIVE]  # and not negative


def test_best_candidates_of_an_object_are_rescued_with_ties():
    candidates = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]])
    assignment = RPN(candidates, targets([[5, 0, 25, 10]]))
    assert assignment.kind.tolist() == [POSITIVE, POSITIVE, NEGATIVE]


def test_rescued_candidate_keeps_its_own_best_object():
    candidates = torch.tensor([[0.0, 0, 10, 10]])
    assignment = RPN(candidates, targets([[0, 0, 10, 9], [0, 0, 10, 4]]))
    assert assignment.kind.tolist() == [POSITIVE]
    assert assignment.target_index.tolist() == [0]


def test_object_that_overlaps_nothing_makes_nothing_positive():
    candidates = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 4], [50, 50, 60, 60]])
    assignment = RPN(candidates, targets([[0, 0, 10, 10], [90, 90, 95, 95]]))  # spec § 5.3, the trap
    assert assignment.kind.tolist() == [POSITIVE, IGNORED, NEGATIVE]
    as_released = IouMatcher(positive=0.7, negative=0.3, rescue_above=-1.0)
    assignment = as_released(candidates, targets([[0, 0, 10, 10], [90, 90, 95, 95]]))
    assert assignment.kind.tolist() == [POSITIVE, POSITIVE, POSITIVE]


def test_no_objects_makes_everything_negative():
    assignment = RPN(torch.rand(5, 4), targets([]))
    assert assignment.kind.tolist() == [NEGATIVE] * 5


def test_crowds_are_never_matched_and_shield_what_lies_in_them():
    candidates = torch.tensor([[0.0, 0, 10, 10], [45, 45, 55, 55], [52, 52, 58, 58], [0, 80, 5, 85]])
    objects = targets([[50, 50, 100, 100], [0, 0, 10, 10]], crowd=[True, False])
    assignment = RPN(candidates, objects)
    assert assignment.kind.tolist() == [POSITIVE, NEGATIVE, IGNORED, NEGATIVE]  # a quarter inside; wholly inside
    assert assignment.target_index[0] == 1
    inside = torch.tensor([[50.0, 50, 100, 100]])
    assert RPN(inside, objects).kind.tolist() == [IGNORED]


@pytest.mark.parametrize(
    ("positives", "negatives", "expected"), [(10, 1000, (10, 246)), (500, 100, (128, 100)), (0, 300, (0, 256))]
)
def test_sampler_counts(positives, negatives, expected):  # spec § 5.4
    kind = torch.cat([torch.full((positives,), POSITIVE), torch.full((negatives,), NEGATIVE), torch.full((50,), IGNORED)])
    chosen, others = BalancedSampler(256, 0.5)(kind, torch.Generator().manual_seed(0))
    assert (len(chosen), len(others)) == expected
    assert (kind[chosen] == POSITIVE).all()
    assert (kind[others] == NEGATIVE).all()
    assert len(set(chosen.tolist() + others.tolist())) == sum(expected)


def test_sampler_is_uniform():
    kind = torch.full((20,), NEGATIVE)
    g = torch.Generator().manual_seed(0)
    counts = torch.zeros(20)
    for _ in range(2000):
        counts[BalancedSampler(5, 0.5)(kind, g)[1]] += 1
    assert counts.min() > 400
    assert counts.max() < 600


# RoIs


@pytest.mark.parametrize(
    ("side", "level"),
    [(111.9, 2), (112, 3), (223.999, 3), (224, 4), (447.99, 4), (448, 5), (449, 5), (2000, 5), (1, 2), (0, 2)],
)
def test_level_assignment(side, level):  # spec § 8.4
    boxes = torch.tensor([[0.0, 0.0, side, side]])
    assert level_of(boxes, (4, 8, 16, 32)).item() == 2**level


def ramps():
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    return torch.stack([x, y])[None]


def test_roi_align_on_ramps():
    features = {1: ramps()}
    pool = RoiAlign(2, strides=(1,))
    out = pool(features, Rois.of([torch.tensor([[2.0, 3, 10, 7]])]))[0]
    assert out[0].tolist() == [[3.5, 7.5], [3.5, 7.5]]  # spec § 8.3, aligned
    assert out[1].tolist() == [[3.5, 3.5], [5.5, 5.5]]
    out = RoiAlign(2, strides=(8,), sampling_ratio=2)({8: ramps()}, Rois.of([torch.tensor([[40.0, 24, 120, 100]])]))[0]
    assert out[0].tolist() == [[7, 12], [7, 12]]
    assert out[1].tolist() == [[4.875, 4.875], [9.625, 9.625]]


def test_roi_align_over_the_edge_and_degenerate():
    ones = {1: torch.ones(1, 1, 8, 8)}
    pool = RoiAlign(2, strides=(1,), sampling_ratio=2)
    boxes = torch.tensor([[-2.0, -2, 0, 0], [7, 7, 9, 9], [9, 9, 9, 9], [3, 3, 3, 8]])
    out = pool(ones, Rois.of([boxes]))[:, 0]
    assert out[0].flatten().tolist() == [0, 0, 0, 0.25]  # spec § 8.3
    assert out[1].flatten().tolist() == [1, 0.5, 0.5, 0.25]
    assert torch.isfinite(out).all()
    assert pool(ones, Rois.of([torch.zeros(0, 4)])).shape == (0, 1, 2, 2)


def test_rois_read_their_own_image_and_level_in_order():
    strides = (4, 8, 16, 32)
    features = {
        s: torch.stack([torch.full((1, 2048 // s, 2048 // s), 10.0 * s), torch.full((1, 2048 // s, 2048 // s), 10.0 * s + 1)])
        for s in strides
    }
    sides = [500.0, 20.0, 130.0, 300.0]
    boxes = torch.tensor([[100.0, 100, 100 + s, 100 + s] for s in sides])
    out = RoiAlign(3, strides=strides)(features, Rois.of([boxes[:1], boxes[1:]]))
    assert out.mean(dim=(1, 2, 3)).tolist() == pytest.approx([320, 41, 81, 161], rel=1e-6)


@pytest.mark.parametrize("sampling_ratio", [0, 1, 2])
@pytest.mark.parametrize("aligned", [True, False])
def test_roi_align_equals_torchvisions(sampling_ratio, aligned):
    g = torch.Generator().manual_seed(0)
    features = torch.randn(3, 5, 20, 30, generator=g, requires_grad=True)
    corners = torch.rand(60, 2, generator=g) * torch.tensor([260.0, 180]) - 10
    boxes = torch.cat([corners, corners + 0.5 + torch.rand(60, 2, generator=g) ** 3 * 200], dim=1)
    rois = Rois(boxes, torch.randint(0, 3, (60,), generator=g))
    rows = torch.cat([rois.image_index[:, None].float(), boxes], dim=1)
    expected = torchvision.ops.roi_align(features, rows, 7, 1 / 8, sampling_ratio, aligned)
    pool = RoiAlign(7, strides=(8,), sampling_ratio=sampling_ratio, aligned=aligned)
    answer = pool({8: features}, rois)
    assert torch.allclose(answer, expected, atol=1e-5)
    weights = torch.randn(expected.shape, generator=g)
    (theirs,) = torch.autograd.grad((expected * weights).sum(), features)
    (mine,) = torch.autograd.grad((answer * weights).sum(), features)
    assert torch.allclose(mine, theirs, atol=1e-4)


def test_roi_align_passes_gradients_to_features_and_boxes_in_double():
    g = torch.Generator().manual_seed(0)
    features = torch.rand(2, 2, 6, 6, dtype=torch.float64, requires_grad=True, generator=g)
    boxes = torch.tensor([[0.7, 0.9, 4.3, 5.1], [1.3, 0.2, 2.8, 5.7]], dtype=torch.float64, requires_grad=True)
    pool = RoiAlign(2, strides=(1,))
    assert torch.autograd.gradcheck(lambda f, b: pool({1: f}, Rois(b, torch.tensor([0, 1]))), (features, boxes))


def test_roi_align_pools_in_float32_under_autocast_and_in_any_chunks(monkeypatch):
    features = {4: torch.randn(1, 8, 16, 16)}
    rois = Rois.of([torch.tensor([[3.0, 5, 50, 44]]).repeat(9, 1)])
    whole = RoiAlign(7, strides=(4,))(features, rois)
    monkeypatch.setattr("maskwright.layers.roi._LOOK_UPS", 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(RoiAlign(7, strides=(4,))(features, rois), whole)


@pytest.mark.parametrize(
    "pool",
    [
        RoiAlign(7, strides=(4,)),
        RoiAlignMax(7, strides=(4,), sampling_ratio=2),
        RoiPool(7, stride=4),
        RoundedRoiWarp(7, stride=4),
        MeanRoiWarp(7, stride=4),
    ],
    ids=lambda pool: type(pool).__name__,
)
def test_features_of_less_precision_are_pooled_in_float32(pool):
    features = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    rois = Rois.of([torch.tensor([[3.0, 5, 50, 44], [7, 7, 21, 30]])])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = pool({4: features}, rois)
    assert found.dtype == torch.float32
    assert torch.equal(found, pool({4: features.float()}, rois))


# Suppression


def test_groups_do_not_suppress_each_other():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10]])
    scores = torch.tensor([0.8, 0.9, 0.7])
    assert nms_by_group(boxes, scores, torch.tensor([0, 1, 0]), 0.5, keep=3).tolist() == [1, 0]
    assert nms_by_group(boxes, scores, torch.tensor([0, 1, 0]), 0.5, keep=1).tolist() == [1]
    assert nms_by_group(boxes[:0], scores[:0], torch.zeros(0, dtype=torch.int64), 0.5, keep=3).tolist() == []


def test_suppression_is_exact_far_from_the_origin_and_with_many_classes():
    g = torch.Generator().manual_seed(0)
    corner = torch.rand(4000, 2, generator=g) * 200
    boxes = torch.cat([corner, corner + 5 + torch.rand(4000, 2, generator=g) * 20], dim=1)
    scores, groups = torch.rand(4000, generator=g), torch.randint(0, 1200, (4000,), generator=g) // 300 * 400
    expected = []
    for group in groups.unique():
        rows = torch.nonzero(groups == group)[:, 0]
        expected += rows[torchvision.ops.nms(boxes[rows] + 1e5, scores[rows], 0.5)].tolist()
    kept = nms_by_group(boxes + 1e5, scores, groups, 0.5, keep=4000).tolist()
    assert sorted(kept) == sorted(expected)
    for keep in (1, 700, 1100):  # found in several stretches
        assert nms_by_group(boxes + 1e5, scores, groups, 0.5, keep=keep).tolist() == kept[:keep]
    assert len(kept) > 1100
    assert scores[kept].tolist() == sorted(scores[kept].tolist(), reverse=True)


# Backbone and pyramid


def test_backbone_equals_torchvision_with_its_weights():
    torch.manual_seed(0)
    theirs = torchvision.models.resnet50(weights=None).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
    ours = Backbone("resnet50", strides=(4, 8, 16, 32), norm="frozen")
    state = theirs.state_dict()
    ours.network.load_state_dict({k: state[k] for k in ours.network.state_dict()})
    ours.train()  # frozen norms do not care
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(pixels))))
    with torch.no_grad():
        mine = ours(pixels)
        for stride, layer in zip((4, 8, 16, 32), (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4), strict=True):
            x = layer(x)
            assert torch.allclose(mine[stride], x, atol=1e-4, rtol=1e-4)
    assert ours.channels == {4: 256, 8: 512, 16: 1024, 32: 2048}
    assert has_frozen_norms(ours.modules())
    before = ours(pixels)
    names = list(ours.state_dict())
    assert list(copy.deepcopy(ours).state_dict()) == names
    fold_frozen_norms(ours)
    assert not has_frozen_norms(ours.modules())
    for stride, level in ours(pixels).items():
        assert torch.allclose(level, before[stride], atol=1e-4)


def test_a_frozen_norm_is_the_norm_it_was_and_lets_gradients_through():
    g = torch.Generator().manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8, eps=0.01), nn.ReLU())
    for value in plain[1].state_dict().values():
        if value.is_floating_point():
            value.copy_(0.5 + torch.rand(value.shape, generator=g))
    frozen = copy.deepcopy(plain)
    freeze_norms(frozen, 3)
    assert frozen.state_dict().keys() == {k for k in plain.state_dict() if "num_batches" not in k}
    x = torch.randn(2, 3, 9, 7, generator=g)
    expected, answer = plain.eval()(x), frozen.train()(x)
    assert torch.allclose(answer, expected, atol=1e-5)
    answer.square().sum().backward()
    expected.square().sum().backward()
    assert torch.allclose(frozen[0].weight.grad, plain[0].weight.grad, atol=1e-3)
    assert [name for name, _ in frozen.named_parameters()] == ["0.weight"]
    moved = copy.deepcopy(frozen).double()
    assert torch.allclose(moved(x.double()).float(), expected, atol=1e-5)
    assert isinstance(frozen[1], FrozenNorm)


def with_statistics(network):
    """The network with norms that do something."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return network


@pytest.mark.parametrize(
    ("name", "done_before"),
    [
        ("resnet18", 1.0),
        ("resnext50_32x4d", 1.0),
        ("vgg11_bn", 1.0),  # convolutions with a bias
        ("efficientnet_b0", 1.0),  # norms that activate
        ("tf_efficientnet_lite0", 1.0),  # and TensorFlow's padding
        ("tf_mobilenetv3_small_100", 1.0),
        ("mobilenetv3_large_100", 1.0),
        ("regnety_002", 1.0),
        ("convnext_atto", None),  # no batch norms
        ("resnetv2_50", 0.6),  # norms before convolutions
        ("densenet121", 0.4),
        ("repvgg_a0", 0.7),  # norms of what no convolution answered
        ("ghostnet_100", 0.9),  # one convolution's answer is a feature map itself
        ("xception41", 1.0),
    ],
)
def test_any_timm_network_with_frozen_norms_is_what_timm_says_it_is(name, done_before):
    torch.manual_seed(0)
    theirs = with_statistics(timm.create_model(name, features_only=True)).eval()
    ours = Backbone(name, strides=theirs.feature_info.reduction(), norm="frozen")
    state = theirs.state_dict()
    ours.network.load_state_dict({k: state[k] for k in ours.network.state_dict()})
    pixels = torch.randn(2, 3, 64, 96)
    norms = [m for m in ours.modules() if isinstance(m, FrozenNorm)]
    assert (done_before is None) == (not norms)
    if norms:  # else they are right, but slow
        assert sum(norm.is_done_before for norm in norms) / len(norms) == pytest.approx(done_before, abs=0.1)
    with torch.no_grad():
        expected, frozen = theirs(pixels), list(ours.train()(pixels).values())
        fold_frozen_norms(ours)
        folded = list(ours(pixels).values())
    for a, b, c in zip(expected, frozen, folded, strict=True):
        assert torch.allclose(a, b, atol=1e-5 * float(a.abs().max()))
        assert torch.allclose(a, c, atol=1e-5 * float(a.abs().max()))


def test_a_convolution_whose_answer_is_taken_twice_does_not_do_the_norm():
    class Twice(nn.Module):
        def __init__(self, second):
            super().__init__()
            self.conv, self.norm, self.second = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), second

        def forward(self, x):
            answer = self.conv(x)
            other = answer.relu_() if self.second == "in place" else answer
            return self.norm(answer) + (other if self.second else 0)

    for second in ("in place", "beside", ""):
        plain = with_statistics(Twice(second)).eval()
        frozen = copy.deepcopy(plain)
        freeze_norms(frozen, 3)
        assert frozen.norm.is_done_before == (not second)
        x = torch.randn(1, 3, 8, 8)
        assert torch.allclose(frozen(x), plain(x), atol=1e-5)


@pytest.mark.parametrize(("name", "norm"), [("tf_efficientnet_lite0", "group"), ("mobilenetv3_large_100", "layer")])
def test_any_timm_network_can_have_norms_that_train(name, norm):
    torch.manual_seed(0)
    theirs = timm.create_model(name, features_only=True)
    torch.manual_seed(0)
    ours = Backbone(name, strides=(8, 16, 32), norm=norm)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in ours.modules())
    acts = [sum(isinstance(m, (nn.ReLU6, nn.Hardswish, nn.ReLU)) for m in network.modules()) for network in (theirs, ours)]
    assert acts[0] == acts[1] > 20
    ours(torch.randn(1, 3, 64, 64))[16].sum().backward()


def test_depthwise_convolutions_learn_in_float32_and_answer_in_the_precision_of_their_input():
    torch.manual_seed(0)
    pair = with_statistics(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8)))
    freeze_norms(pair, 8)
    x = torch.randn(1, 8, 16, 16).bfloat16()
    expected = pair(x.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answer = pair(x)
    assert answer.dtype == torch.bfloat16
    assert torch.equal(answer, expected.bfloat16())
    weight = pair[0].weight
    (exact,) = torch.autograd.grad(expected.sum(), weight)
    (found,) = torch.autograd.grad(answer.float().sum(), weight)
    assert torch.allclose(found, exact, rtol=1e-4, atol=1e-4)


def test_what_follows_the_last_map_is_left_away():
    assert len(Backbone("tf_efficientnet_lite0", strides=(4, 8), norm="frozen").network.blocks) == 3
    assert len(Backbone("tf_efficientnet_lite0", strides=(4, 8, 16, 32), norm="frozen").network.blocks) == 7
    assert len(Backbone("mobilenetv3_large_100", strides=(4, 16), norm="frozen").network.blocks) == 5
    dilated = Backbone("tf_efficientnet_lite0", strides=(8,), norm="frozen", dilated=True)
    assert dilated.channels == {8: 112}
    assert dilated(torch.zeros(1, 3, 64, 96))[8].shape == (1, 112, 8, 12)


def test_tensorflow_padding_is_that_of_even_sides_whatever_lies_beyond_the_image():
    torch.manual_seed(0)
    ours = Backbone("tf_efficientnet_lite0", strides=(4, 8, 16, 32), norm="frozen").eval()
    pixels = torch.randn(1, 3, 75, 101)
    stem = ours.network.conv_stem
    odd, even = stem(pixels), stem(F.pad(pixels, (0, 27, 0, 21)))
    assert odd.shape[2:] == (38, 51)
    assert torch.equal(odd, even[:, :, :38, :51])
    assert {stride: level.shape[2:] for stride, level in ours(pixels).items()} == {
        stride: (math.ceil(75 / stride), math.ceil(101 / stride)) for stride in (4, 8, 16, 32)
    }


def test_frozen_norms_do_not_learn():
    backbone = Backbone("resnet50", strides=(4,), norm="frozen")
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    backbone.train()
    for _ in range(3):
        backbone(torch.randn(2, 3, 32, 32))[4].sum().backward()
    after = backbone.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert not any("bn" in name for name, _ in backbone.named_parameters())


def test_pyramid_equals_torchvision_with_its_weights():
    channels = {4: 8, 8: 16, 16: 32}
    ours, theirs = FeaturePyramid(channels, channels=12, coarser=SubsampledLevels(1)), FeaturePyramidNetwork([8, 16, 32], 12)
    for i, stride in enumerate(channels):
        for mine, other in ((ours.lateral, theirs.inner_blocks), (ours.output, theirs.layer_blocks)):
            other[i][0].load_state_dict(mine[str(stride)].state_dict())
    features = {s: torch.randn(2, c, 80 // s, 112 // s) for s, c in channels.items()}
    expected = theirs({str(s): f for s, f in features.items()})
    out = ours(features)
    for stride in channels:
        assert torch.allclose(out[stride], expected[str(stride)], atol=1e-6)
    assert list(out) == [4, 8, 16, 32]
    assert torch.equal(out[32], nn.functional.max_pool2d(out[16], 1, 2))


def test_group_norm_trains_in_the_precision_of_its_input():
    norm, plain = GroupNorm(48), nn.GroupNorm(3, 48)
    x = torch.randn(2, 48, 5, 7)
    assert torch.allclose(norm(x), plain(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert norm(x.bfloat16()).dtype == torch.bfloat16
    assert math.isclose(float(norm(x).detach().std()), 1, rel_tol=0.01)
    assert GroupNorm(8).num_groups == 1


@torch.no_grad()
def test_convolved_levels_equal_torchvisions():
    ours, theirs = ConvolvedLevels(12, count=2), LastLevelP6P7(12, 12)
    for mine, conv in zip(ours.convs, (theirs.p6, theirs.p7), strict=True):
        conv.load_state_dict(mine.state_dict())
    level = torch.randn(2, 12, 13, 21)
    expected, _ = theirs([level], [level], ["p5"])
    found = ours(level)
    assert [f.shape[2:] for f in found] == [(7, 11), (4, 6)]
    for a, b in zip(found, expected[1:], strict=True):
        assert torch.equal(a, b)


@torch.no_grad()
def test_subsampled_levels_take_every_second_cell():
    level = torch.arange(35.0).reshape(1, 1, 5, 7)
    first, second = SubsampledLevels(2)(level)
    assert torch.equal(first, level[:, :, ::2, ::2])
    assert torch.equal(second, first[:, :, ::2, ::2])


@torch.no_grad()
def test_tower_is_convolution_norm_and_relu():
    tower = Tower(64, num_convs=2)
    theirs = nn.Sequential(
        *(part for _ in range(2) for part in (nn.Conv2d(64, 64, 3, padding=1), nn.GroupNorm(8, 64), nn.ReLU()))
    )
    theirs.load_state_dict(tower.state_dict())
    x = torch.randn(2, 64, 9, 11)
    assert torch.allclose(tower(x), theirs(x), atol=1e-5)
    assert Tower(256, num_convs=4)[1].num_groups == 32  # FCOS
    assert float(tower[0].weight.std()) == pytest.approx(0.01, rel=0.05)


def test_levels_are_laid_one_after_the_other():
    maps = {8: torch.arange(24.0).reshape(2, 2, 2, 3), 16: 100 + torch.arange(4.0).reshape(2, 2, 1, 1)}
    flat = flatten_levels(maps)
    assert flat.shape == (2, 7, 2)
    assert flat[0, :, 0].tolist() == [0, 1, 2, 3, 4, 5, 100]
    assert flat[1, :, 1].tolist() == [18, 19, 20, 21, 22, 23, 103]


def test_first_of_each_group():
    assert first_of_each(torch.tensor([2, 0, 2, 0, 4]), 5).tolist() == [1, -1, 0, -1, 4]
    assert first_of_each(torch.zeros(0, dtype=torch.int64), 2).tolist() == [-1, -1]


def test_paired_iou_is_the_diagonal():
    g = torch.Generator().manual_seed(0)
    low, other = torch.rand(20, 2, generator=g) * 30, torch.rand(20, 2, generator=g) * 30
    a = torch.cat([low, low + torch.rand(20, 2, generator=g) * 30], dim=1)
    b = torch.cat([other, other + torch.rand(20, 2, generator=g) * 30], dim=1)
    assert torch.allclose(paired_iou(a, b), iou(a, b).diagonal())
    assert paired_iou(torch.zeros(1, 4), torch.zeros(1, 4)).item() == 0


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (3, 1)])
def test_levels_of_a_map_one_cell_wide_have_gradients_in_bfloat16(size):
    torch.manual_seed(0)
    levels = ConvolvedLevels(64, count=2)
    for _ in range(20):  # of what lies in memory
        rubbish = [torch.full((64 * 64 * 9,), math.nan, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
        del rubbish
        levels.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            answers = levels(torch.randn(2, 64, *size))
        sum(answer.float().sum() for answer in answers).backward()
        assert all(torch.isfinite(p.grad).all() for p in levels.parameters())
    level = torch.randn(2, 64, *size)
    first, second = levels(level)
    plain = levels.convs[0](level)
    assert first.shape == plain.shape
    assert torch.allclose(first, plain, atol=1e-5)
    assert torch.allclose(second, levels.convs[1](plain.relu()), atol=1e-5)
