"""EmbedMask: the spec's golden values, and each of its likeliest mistakes."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from maskwright.layers.backbones import ORIGINS, pixels_of
from maskwright.layers.losses import logits_of_energy, lovasz_hinge
from maskwright.recipes import find_recipe
from maskwright.structures import ImageBatch, InputSpec, Instances, Masks, ResizeRule
from maskwright.systems import SYSTEMS
from maskwright.systems.one_stage.early import AveragedPositives, BoxMargin, around_box, grown_by_a_cell
from maskwright.systems.one_stage.embedmask import (
    PRIOR_LOG_PRECISION,
    EmbeddingMargin,
    FixedMargin,
    InMaskAssigner,
    Positions,
    ProposalHead,
    Proposals,
    SharedEmbeddings,
    best_positive,
    cut_log_probability,
    cut_probability,
    draw_windows,
    embedding_energies,
    everywhere,
    grown_by_two_cells,
    overlaps,
)
from maskwright.systems.one_stage.fcos import BACKGROUND, Answers, CenterAssigner, Found, sides
from maskwright.systems.one_stage.fused import (
    MiddleAssigner,
    UpsampledProbabilities,
    aligned_bilinear,
    all_positives,
    grown_by_a_quarter,
)
from maskwright.systems.one_stage.sizes import FCOS_R50
from maskwright.training.optimization import build_optimizer, set_trainable
from tests.systems.one_stage.test_fcos import boxed, locations, maps

VERSIONS = ["embedmask-small", "embedmask-arxiv-small", "embedmask-fused-small"]
PAPER = {  # spec, sec. 8.5, millions of parameters at 80 classes
    "embedmask-r50-arxiv": 34.75,
    "embedmask-r50-scalar": 34.65,
    "embedmask-r50": 34.72,
    "embedmask-r101": 34.72 + 18.94,
}
GENERATOR = torch.Generator()


def rectangles(size, *boxes, **options):
    dense = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for row, (x0, y0, x1, y1) in zip(dense, boxes, strict=True):
        row[y0:y1, x0:x1] = True
    return boxed(*boxes, size=size, masks=Masks.from_dense(dense), **options)


def exact_answers(grid, target, matched, features=None):
    """Answers whose boxes are exactly those of the objects."""
    ltrb = torch.ones(1, len(grid.points), 4)
    positive = matched >= 0
    wanted = sides(grid.points[positive], target.boxes[matched[positive]])
    ltrb[0, positive] = wanted / grid.strides[positive, None]
    p = len(grid.points)
    return Answers(torch.zeros(1, p, 1), ltrb, torch.zeros(1, p), features or {}, grid)


# 1 to 3: φ, its logit, and the Lovász hinge


def test_half_probability_at_the_prior_margin():
    assert pytest.approx(-1.752807, abs=1e-6) == PRIOR_LOG_PRECISION
    distance = torch.tensor([1.0, 2.0, 4.0])
    pixels = torch.stack([distance, torch.zeros(3)])  # (D, M)
    energy = embedding_energies(pixels, torch.zeros(1, 2), torch.full((1, 1), math.exp(PRIOR_LOG_PRECISION)))
    assert torch.exp(-energy[0]).tolist() == pytest.approx([0.840896, 0.5, 0.0625], abs=1e-6)
    sigma = (1 / (2 * math.exp(PRIOR_LOG_PRECISION))) ** 0.5
    assert sigma == pytest.approx(1.69864, abs=1e-5)


def test_energy_by_products_is_the_sum_of_squares():
    g = torch.Generator().manual_seed(0)
    pixels, q = 5 + torch.randn(6, 50, generator=g), 5 + torch.randn(4, 6, generator=g)
    for s in (torch.rand(4, 6, generator=g), torch.rand(4, 1, generator=g)):
        direct = ((pixels[None] - q[:, :, None]).square() * s[:, :, None]).sum(dim=1)
        assert torch.allclose(embedding_energies(pixels, q, s), direct, atol=1e-4)


def test_logit_is_finite_where_the_probability_is_not_between():
    energy = torch.tensor([0.1, 1.0, 5.0, 30.0])
    assert logits_of_energy(energy).tolist() == pytest.approx([2.25217, -0.541325, -4.99324, -20.7233], abs=1e-3)
    for dtype in (torch.float32, torch.bfloat16):
        e = torch.tensor([[0.0, 0.0, 0.0]], dtype=dtype, requires_grad=True)
        loss = lovasz_hinge(logits_of_energy(e), torch.tensor([[True, True, False]]))
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(4.9385, abs=1e-3)
        loss.sum().backward()
        assert torch.isfinite(e.grad).all()
    far = torch.tensor([[200.0, 1e30]], requires_grad=True)  # φ = 0
    lovasz_hinge(logits_of_energy(far), torch.tensor([[True, False]])).sum().backward()
    assert torch.isfinite(far.grad).all()


def logit(probs):
    p = torch.tensor(probs)
    return torch.log(p / (1 - p))


def test_lovasz_by_hand():
    halves = lovasz_hinge(torch.zeros(2, 4), torch.tensor([[True, False, False, True], [True] * 4]))
    assert halves.tolist() == pytest.approx([1.0, 1.0])
    one = lovasz_hinge(logit([0.9, 0.6, 0.3, 0.2])[None], torch.tensor([[True, False, True, False]]))
    assert one.item() == pytest.approx(1.157893, abs=1e-5)
    empty = lovasz_hinge(torch.tensor([[0.5] + [-2.0] * 7]), torch.zeros(1, 8, dtype=torch.bool))
    assert empty.item() == pytest.approx(1.5)
    assert lovasz_hinge(torch.zeros(0, 4), torch.zeros(0, 4, dtype=torch.bool)).shape == (0,)
    assert lovasz_hinge(torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.bool)).tolist() == [0.0, 0.0]


def reference_lovasz(margins, wanted):
    """The definition, pixel by pixel."""
    order = sorted(range(len(margins)), key=lambda i: -margins[i])
    total, loss, before = sum(wanted), 0.0, 0.0
    hits = misses = 0
    for i in order:
        hits, misses = hits + wanted[i], misses + (1 - wanted[i])
        jaccard = 1 - (total - hits) / (total + misses)
        loss += max(margins[i], 0.0) * (jaccard - before)
        before = jaccard
    return loss


def test_lovasz_is_of_each_mask_alone_and_equals_the_loop():
    g = torch.Generator().manual_seed(0)
    logits, wanted = 3 * torch.randn(5, 40, generator=g), torch.rand(5, 40, generator=g) < 0.3
    each = lovasz_hinge(logits, wanted)
    for row in range(5):
        margins = [1 - f * (1 if y else -1) for f, y in zip(logits[row].tolist(), wanted[row].tolist(), strict=True)]
        assert each[row].item() == pytest.approx(reference_lovasz(margins, [int(y) for y in wanted[row]]), rel=1e-4)
    pooled = lovasz_hinge(logits.reshape(1, -1), wanted.reshape(1, -1))
    assert abs(pooled.item() - each.mean().item()) > 1e-3


def test_pixels_left_out_add_nothing():
    g = torch.Generator().manual_seed(1)
    logits, wanted = torch.randn(1, 30, generator=g), torch.rand(1, 30, generator=g) < 0.4
    padded = lovasz_hinge(torch.cat([logits, torch.full((1, 9), -1e4)], 1), torch.cat([wanted, torch.zeros(1, 9) > 1], 1))
    assert padded.item() == pytest.approx(lovasz_hinge(logits, wanted).item(), rel=1e-6)


# 4 to 7: units and places


def test_boxes_are_compared_in_pixels():
    grid = locations((256, 256))
    target = rectangles((256, 256), (60, 80, 180, 160))
    matched = InMaskAssigner()(grid, target)
    index = torch.nonzero(matched >= 0)[:, 0]
    answers = exact_answers(grid, target, matched)
    assert overlaps(answers, 0, index, target.boxes[matched[index]]).tolist() == pytest.approx([1.0] * len(index), abs=1e-5)
    forgotten = answers._replace(ltrb=answers.ltrb / grid.strides[:, None])
    on_p3 = index[index < grid.counts[0]][:1]
    assert overlaps(forgotten, 0, on_p3, target.boxes).item() == pytest.approx(1 / 64, abs=0.003)


def test_positions_are_x_then_y():
    positions = Positions(1.0)(locations())
    p3 = positions[:16800].reshape(100, 168, 2) * 100
    assert (p3[0, 0, 0].item(), p3[0, -1, 0].item()) == pytest.approx((4.0, 1340.0))
    assert (p3[0, 0, 1].item(), p3[-1, 0, 1].item()) == pytest.approx((4.0, 796.0))
    factor = nn.Parameter(torch.tensor([2.0]))
    assert torch.allclose(Positions(factor)(locations()), 2 * positions)
    assert (Positions(0.0)(locations()) == 0).all()


@torch.no_grad()
def test_pixels_and_proposals_have_the_coordinates_of_their_cells():
    system = SYSTEMS["embedmask-small"](num_classes=2)
    for head in (system.pixel_head, system.proposal_head):
        head.embedding.weight.zero_()
        head.embedding.bias.copy_(torch.arange(16.0))
    features = maps((192, 320), (8, 16, 32, 64), 128, batch=2)
    answers = system.fcos(features)
    pixels, proposals = system._embed(features, answers)
    assert pixels.shape == (2, 16, 24, 40)
    assert pixels[1, 0, 5].tolist() == pytest.approx([(4 + 8 * j) / 20 for j in range(40)], abs=1e-5)
    assert pixels[1, 1, :, 7].tolist() == pytest.approx([1 + (4 + 8 * i) / 20 for i in range(24)], abs=1e-5)
    assert (pixels[:, 5] == 5).all()
    assert torch.allclose(proposals.embeddings[1, :, 0] * 20, answers.locations.points[:, 0], atol=1e-3)
    assert torch.allclose(proposals.embeddings[1, :, 1] * 20 - 20, answers.locations.points[:, 1], atol=1e-3)


@torch.no_grad()
def test_every_location_has_the_vector_of_its_own_cell():
    head = ProposalHead(nn.Identity(), 8, dim=4, margin=FixedMargin())
    g = torch.Generator().manual_seed(0)
    features = {s: torch.randn(2, 8, *m.shape[2:], generator=g) for s, m in maps((96, 160)).items()}
    grid = locations((96, 160))
    answers = Answers(
        torch.zeros(2, len(grid.points), 1),
        torch.zeros(2, len(grid.points), 4),
        torch.zeros(2, len(grid.points)),
        features,
        grid,
    )
    proposals = head(answers, torch.zeros(0), torch.zeros(len(grid.points), 2))
    for image in range(2):
        for location in (0, 19, 20, 239, 240, 300, len(grid.points) - 1):
            stride = int(grid.strides[location])
            x, y = (grid.points[location] / stride).long().tolist()
            expected = head.embedding(features[stride])[image, :, y, x]
            assert torch.allclose(proposals.embeddings[image, location], expected, atol=1e-6)


def test_the_best_location_teaches_its_own_vector():
    grid = locations((256, 256))
    target = rectangles((256, 256), (60, 80, 180, 160), (100, 100, 130, 125), (2, 2, 4, 4), crowd=[False] * 3)
    matched = InMaskAssigner()(grid, target)
    answers = exact_answers(grid, target, matched)
    ids = torch.arange(len(grid.points), dtype=torch.float32)
    proposals = Proposals(ids[None, :, None], ids[None, :, None])
    worse = torch.nonzero(matched == 0)[:-1, 0]
    answers.ltrb[0, worse] *= 0.9
    lessons = best_positive(answers, proposals, 0, matched, target, GENERATOR)
    assert lessons.rows.tolist() == [0, 1]  # the tiny one has no location
    assert lessons.embeddings[0].item() == torch.nonzero(matched == 0)[-1].item()
    assert lessons.embeddings[1].item() == torch.nonzero(matched == 1)[0].item()  # the first of equals
    assert (lessons.weight, lessons.normalizer) == (0.25, 1.0)  # a weight of 0.5, two objects
    nothing = best_positive(answers, proposals, 0, torch.full_like(matched, BACKGROUND), target, GENERATOR)
    assert nothing.embeddings.shape == (0, 1)


# 8 to 10: targets, upsampling, windows


def test_one_lit_pixel_lights_its_cell_from_the_middle_only():
    coupling = SYSTEMS["embedmask-small"](num_classes=1).coupling
    lit = set()
    for y in range(8):
        for x in range(8):
            dense = torch.zeros(1, 8, 8, dtype=torch.bool)
            dense[0, y, x] = True
            if coupling.targets(Masks.from_dense(dense), (2, 2))[0, 0, 0]:
                lit.add((y, x))
    assert lit == {(1, 1), (1, 2), (2, 1), (2, 2)}


def test_targets_are_bilinear_resizing_above_zero():
    coupling = SYSTEMS["embedmask-small"](num_classes=1).coupling
    g = torch.Generator().manual_seed(0)
    dense = torch.rand(3, 61, 83, generator=g) < 0.1
    padded = torch.zeros(3, 64, 96)
    padded[:, :61, :83] = dense
    expected = nn.functional.interpolate(padded[None], size=(16, 24), mode="bilinear", align_corners=False)[0] > 0
    assert torch.equal(coupling.targets(Masks.from_dense(dense), (16, 24)), expected)
    fused = UpsampledProbabilities().targets(Masks.from_dense(dense), (16, 24))
    assert torch.equal(fused, padded[:, 2::4, 2::4] > 0)


def test_embeddings_are_upsampled_not_probabilities():
    coupling = SYSTEMS["embedmask-small"](num_classes=1).coupling
    pixels = torch.tensor([[[0.0, 4.0]]])  # D = 1, one row of two cells
    energies = coupling.energies(pixels, torch.zeros(1, 1), torch.full((1, 1), math.log(2) / 4))
    assert torch.exp(-energies[0, 0, 1]).item() == pytest.approx(0.8409, abs=1e-4)  # .7656 after interpolating φ


def test_v4_upsamples_probabilities_to_the_samples_of_its_targets():
    pixels = torch.tensor([[[0.0, 4.0, 4.0]]])
    s = torch.full((1, 1), math.log(2) / 4)
    probs = torch.exp(-UpsampledProbabilities().energies(pixels, torch.zeros(1, 1), s))[0, 0]
    assert probs.tolist() == pytest.approx([1, 1, 0.53125, 0.0625, 0.0625, 0.0625], abs=1e-4)  # cell j on sample 2 j + 1


def test_aligned_bilinear_by_hand():
    ramp = torch.arange(4.0)[None, None, None].repeat(1, 1, 3, 1)
    fine = aligned_bilinear(ramp, 2)
    assert fine.shape == (1, 1, 6, 8)
    assert fine[0, 0, 3].tolist() == pytest.approx([0, 0, 0.5, 1, 1.5, 2, 2.5, 3])


def test_windows_of_the_spec():
    box = torch.tensor([[40.0, 40, 120, 80]])
    region = around_box(box, (100, 100))
    assert region.any(dim=1).sum() == 26
    assert region.any(dim=2).sum() == 14
    assert around_box(torch.tensor([[0.0, 0, 400, 400]]), (100, 100)).any(dim=1).sum() == 99
    assert grown_by_two_cells(box, 4, (100, 100)).tolist() == [[8, 8, 32, 22]]  # 24 columns
    assert grown_by_a_cell(box, 4, (100, 100)).tolist() == [[9, 9, 31, 21]]
    assert grown_by_a_quarter(box, 8, (50, 50)).tolist() == [[1, 2, 18, 12]]
    nothing = torch.tensor([[0.0, 0, 0, 0], [400, 400, 400, 400]])
    for windows in (grown_by_two_cells, grown_by_a_cell):
        assert min(windows(nothing, 4, (100, 100)).tolist()[0][2:]) > 0
    assert grown_by_two_cells(nothing, 4, (100, 100)).tolist() == [[0, 0, 2, 2], [98, 98, 100, 100]]
    assert everywhere(box, (3, 3)).all()


# 11: normalizers


def scene(size=(192, 256)):
    return rectangles(size, (20, 20, 84, 100), (120, 40, 150, 64), (90, 100, 230, 180), labels=[0, 1, 2])


def batch(count, size=(192, 256), seed=0):
    g = torch.Generator().manual_seed(seed)
    image = torch.randn(3, *size, generator=g)
    return ImageBatch.collate([image] * count, original_sizes=[size] * count, size_divisor=32, keys=[7] * count)


@pytest.mark.parametrize("name", VERSIONS)
def test_the_batch_twice_gives_the_same_loss(name):
    torch.manual_seed(0)
    system = SYSTEMS[name](num_classes=3)
    with torch.no_grad():
        once, twice = system.loss(batch(1), [scene()]), system.loss(batch(2), [scene()] * 2)
    for term, loss in once.items():
        assert loss.total / loss.count == pytest.approx(float(twice[term].total / twice[term].count), rel=1e-4), term
        assert float(loss.total) > 0 or term == "smooth"


@pytest.mark.parametrize("name", VERSIONS)
def test_objects_without_a_location_and_empty_masks_make_no_nan(name):
    torch.manual_seed(0)
    system = SYSTEMS[name](num_classes=3)
    target = rectangles((192, 256), (1, 1, 3, 3), (40, 40, 100, 100))
    masks = Masks.cat([target.masks[:1], Masks.from_dense(torch.zeros(1, 192, 256, dtype=torch.bool))])
    for case in (target, target[:1], target.with_masks(masks)):
        losses = system.loss(batch(1), [case])
        total = sum(loss.total / loss.count.clamp(min=1) for loss in losses.values())
        total.backward()
        assert all(torch.isfinite(p.grad).all() for p in system.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", VERSIONS)
def test_nothing_found_is_an_answer(name):
    system = SYSTEMS[name](num_classes=3)  # untrained: no score exceeds the threshold
    with torch.inference_mode():
        answers = system.predict(batch(2))
    assert [len(a) for a in answers] == [0, 0]
    assert [a.masks.image_size for a in answers] == [(192, 256)] * 2


def test_targets_without_masks_are_named():
    with pytest.raises(
        ValueError, match="the targets have no masks: train a box system such as faster-rcnn-small or fcos-small"
    ):
        SYSTEMS["embedmask-small"](num_classes=3).loss(batch(1), [boxed((20, 20, 84, 100), size=(192, 256))])


# 14: conventions of other people's backbones; the rates of biases


def test_frozen_norms_of_the_authors_add_nothing_to_the_variance():
    network = ORIGINS["caffe"].backbone("resnet50", strides=(8, 16, 32), norm="frozen").network
    norm = network.bn1
    norm.weight.fill_(1.0)
    norm.running_var.fill_(1e-4)
    assert norm.factors()[0].tolist() == pytest.approx([100.0] * 64, rel=1e-4)
    for origin in ("timm", "detectron2"):
        usual = ORIGINS[origin].backbone("resnet50", strides=(8, 16, 32), norm="frozen").network
        assert usual.bn1.eps == 1e-5
    assert strides_of(network.layer2[0]) == [(2, 2), (1, 1)]
    assert strides_of(ORIGINS["timm"].backbone("resnet50", strides=(8, 16, 32), norm="frozen").network.layer2[0]) == [
        (1, 1),
        (2, 2),
    ]


def strides_of(block):
    """Of a bottleneck's first two convolutions."""
    return [conv.folded().stride for conv in (block.conv1, block.conv2)]


def test_a_picture_of_the_mean_is_zero():
    spec = InputSpec(ResizeRule(None, None), **pixels_of("resnet50", "caffe"))
    rgb = torch.tensor([122.7717, 115.9465, 102.9801])
    image = rgb.round().to(torch.uint8).expand(4, 5, 3)
    off = (rgb.round() - rgb).flip(0)  # what rounding to 8 bits leaves, in the network's order: blue first
    assert torch.allclose(spec.to_pixels(image), off[:, None, None].expand(3, 4, 5), atol=1e-4)


def test_biases_learn_twice_as_fast_and_do_not_decay():
    recipe = find_recipe("embedmask-r50")
    system = SYSTEMS["embedmask-r50"](num_classes=2)
    set_trainable(system, recipe.stages[0])
    assert not system.backbone.network.conv1.weight.requires_grad
    assert not any(p.requires_grad for p in system.backbone.network.layer1.parameters())
    assert all(p.requires_grad for p in system.backbone.network.layer2.parameters())
    groups = build_optimizer(system, recipe.stages[0].optimizer).param_groups
    fast = [g for g in groups if g["lr_factor"] == 2.0]
    biases = [p for name, p in system.named_parameters() if name.endswith("bias") and p.requires_grad]
    assert sum(len(g["params"]) for g in fast) == len(biases) > 30
    assert all(g["weight_decay"] == 0 and g["lr"] == 0.02 for g in fast)
    assert all(g["weight_decay"] == 1e-4 for g in groups if g["lr_factor"] == 1.0)


# 15: what is cut, and where


def block_map(energy_on, energy_off):
    pixels = torch.full((1, 6, 6), energy_off**0.5)
    pixels[:, 2:4, 2:4] = energy_on**0.5
    return pixels


def drawn(pixels, cut, stride=4, first_px=0.0, windows=None, image_size=None):
    size = (pixels.shape[1] * stride, pixels.shape[2] * stride)
    windows = torch.tensor([[0, 0, pixels.shape[2], pixels.shape[1]]]) if windows is None else windows
    one = torch.ones(len(windows), 1)
    sizes = (size, image_size or size)
    return draw_windows(pixels, 0 * one, one, windows, cut=cut, stride=stride, first_px=first_px, sizes=sizes)[0]


def test_maps_are_upsampled_before_they_are_cut():
    block = block_map(0.0, 100.0)
    assert drawn(block, cut_probability(0.5)).areas().tolist() == [60]  # 64 after cutting first
    logs = block_map(0.05, 10.0)
    assert drawn(logs, cut_log_probability(0.53)).areas().tolist() == [16]


def test_windows_at_the_border_reach_it():
    inside = torch.zeros(1, 6, 6)
    for windows in ([[0, 0, 6, 6]], [[0, 0, 3, 3]]):
        for cut in (cut_probability(0.5), cut_log_probability(0.53)):
            masks = drawn(inside, cut, windows=torch.tensor(windows))
            side = 24 if windows[0][2] == 6 else 12
            assert masks.boxes().tolist()[0][:2] == [0, 0]
            assert side - 2 <= masks.boxes().tolist()[0][2] <= side
    fused = drawn(torch.zeros(1, 3, 3), cut_probability(0.5), stride=8, first_px=2.5)
    assert fused.areas().tolist() == [24 * 24]


def test_a_window_changes_nothing_inside_it():
    g = torch.Generator().manual_seed(0)
    pixels = torch.nn.functional.interpolate(torch.randn(1, 1, 5, 5, generator=g), size=(30, 30), mode="bicubic")[0]
    for cut in (cut_probability(0.6), cut_log_probability(0.6)):
        whole = drawn(pixels, cut).to_dense()[0]
        part = drawn(pixels, cut, windows=torch.tensor([[8, 10, 20, 24]])).to_dense()[0]
        assert torch.equal(whole[44:92, 36:76], part[44:92, 36:76])
        assert not part[:40].any()
        assert not part[:, 80:].any()
        assert whole.any()


def test_masks_follow_the_resized_image():
    masks = drawn(block_map(0.0, 100.0), cut_probability(0.5), image_size=(48, 12))
    assert masks.image_size == (48, 12)
    assert masks.boxes().tolist() == [[4, 16, 8, 32]]


# What else the spec names


def test_an_annulus_has_no_location_in_its_hole():
    y, x = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
    radius = (y - 128) ** 2 + (x - 128) ** 2
    ring = (radius < 60**2) & (radius > 40**2)
    masks = Masks.from_dense(ring[None])
    target = Instances((256, 256), boxes=masks.boxes(), labels=torch.zeros(1, dtype=torch.int64), masks=masks)
    grid = locations((256, 256))
    assert (CenterAssigner()(grid, target) >= 0).any()
    assert (InMaskAssigner()(grid, target) == BACKGROUND).all()


def test_v4_samples_around_the_middle_of_the_mask():
    dense = torch.zeros(1, 256, 256, dtype=torch.bool)
    dense[0, 100:108, 40:200] = True  # an L whose weight is left
    dense[0, 20:108, 40:80] = True
    masks = Masks.from_dense(dense)
    centroid = masks.centroids()[0]
    ys, xs = np.nonzero(dense[0].numpy())
    assert centroid.tolist() == pytest.approx([xs.mean() + 0.5, ys.mean() + 0.5], abs=1e-3)
    target = Instances((256, 256), boxes=masks.boxes(), labels=torch.zeros(1, dtype=torch.int64), masks=masks)
    grid = locations((256, 256))
    points = grid.points[MiddleAssigner()(grid, target) >= 0]
    assert len(points) > 0
    reach = 1.5 * grid.strides[MiddleAssigner()(grid, target) >= 0]
    assert ((points - centroid).abs().amax(dim=1) < reach).all()
    assert not torch.equal(MiddleAssigner()(grid, target), CenterAssigner()(grid, target))


def test_v1_margin_does_not_move_the_box():
    margin = BoxMargin()
    assert margin.linear.bias.item() == pytest.approx(-1.752807, abs=1e-6)
    grid = locations((64, 64))
    ltrb = torch.rand(1, len(grid.points), 4, requires_grad=True)
    answers = Answers(torch.zeros(1, len(grid.points), 1), ltrb, torch.zeros(1, len(grid.points)), {}, grid)
    out = margin(answers)
    assert out.shape == (1, len(grid.points), 1)
    assert not [leaf for leaf in (ltrb,) if torch.autograd.grad(out.sum(), leaf, allow_unused=True)[0] is not None]
    px = ltrb.detach()[0, -1] * grid.strides[-1] / 800
    expected = margin.linear.weight[0] @ px + margin.linear.bias
    assert out[0, -1].item() == pytest.approx(expected.item(), rel=1e-5)


def averaged(smooth, ious):
    """Two objects' worth of locations; the first one's boxes overlap by `ious`."""
    grid = locations((256, 256))
    target = rectangles((256, 256), (60, 80, 188, 160), (2, 2, 4, 4), (200, 200, 250, 250))
    # The second has no location, but counts as an object; the third is a crowd and does not.
    target = replace(target, is_crowd=torch.tensor([False, False, True]))
    matched = InMaskAssigner()(grid, target)
    index = torch.nonzero(matched >= 0)[: len(ious), 0]
    matched = torch.full_like(matched, BACKGROUND).index_fill(0, index, 0)
    answers = exact_answers(grid, target, matched)
    for location, iou in zip(index.tolist(), ious, strict=True):
        box = torch.tensor([60.0, 80, 60 + 128 * iou, 160])
        answers.ltrb[0, location] = sides(grid.points[location], box) / grid.strides[location]
    vectors = torch.zeros(1, len(grid.points), 2)
    vectors[0, index] = torch.tensor([[1.0, 0.0], [3.0, 0.0], [3.0, 2.0]])[: len(ious)]
    precisions = vectors.sum(dim=2, keepdim=True)
    lessons = AveragedPositives(smooth=smooth)(answers, Proposals(vectors, precisions), 0, matched, target, GENERATOR)
    assert (lessons.weight, lessons.normalizer) == (0.25, 1.0)
    return lessons, float(lessons.losses["smooth"].total)


def test_v1_averages_the_good_locations():
    lessons, smooth = averaged("mean", [0.9, 0.8, 0.4])
    assert lessons.embeddings.tolist() == [[2.0, 0.0]]
    assert lessons.precisions.tolist() == [[2.0]]  # of precisions, not of margins
    assert smooth == pytest.approx(0.1 * ((1 + 1) + (1 + 1)) / 2 / 2)  # two locations, two objects
    assert averaged("sum", [0.9, 0.8, 0.4])[1] == pytest.approx(0.1 * 4 / 2)
    lessons, smooth = averaged("mean", [0.3, 0.45, 0.4])
    assert lessons.embeddings.tolist() == [[3.0, 0.0]]  # only the best, where none is good
    assert smooth == 0


def test_v4_takes_every_location_up_to_a_limit():
    grid = locations((256, 256))
    target = rectangles((256, 256), (60, 80, 180, 160), (100, 100, 130, 125))
    matched = MiddleAssigner()(grid, target)
    ids = torch.arange(len(grid.points), dtype=torch.float32)[None, :, None]
    lessons = all_positives(exact_answers(grid, target, matched), Proposals(ids, ids), 0, matched, target, GENERATOR)
    assert sorted(lessons.embeddings[:, 0].tolist()) == torch.nonzero(matched >= 0)[:, 0].tolist()
    assert torch.equal(matched[lessons.embeddings[:, 0].long()], lessons.rows)
    assert lessons.normalizer == len(lessons.rows)
    many = all_positives(exact_answers(grid, target, matched), Proposals(ids, ids), 0, matched * 0, target, GENERATOR)
    assert len(many.rows) == 250


@torch.no_grad()
def test_rivals():
    grid = locations((64, 96))
    features = maps((64, 96), channels=8)
    p = len(grid.points)
    answers = Answers(torch.zeros(1, p, 1), torch.zeros(1, p, 4), torch.zeros(1, p), features, grid)
    assert FixedMargin()(answers).exp().unique().tolist() == pytest.approx([math.log(2) / 4])
    assert not list(FixedMargin().parameters())
    learned = EmbeddingMargin(nn.Identity(), 8, dim=4, strides=FCOS_R50.strides)
    assert learned(answers).unique().tolist() == pytest.approx([-1.752807], abs=1e-6)
    learned.scales["16"].scale.fill_(2.0)  # of the coordinates' margins only, bias and all
    assert learned(answers)[0, grid.counts[0]].tolist() == pytest.approx([-3.505614] * 2 + [-1.752807] * 2, abs=1e-5)
    coordinates = torch.stack(torch.meshgrid(8 * torch.arange(8.0) + 4, 8 * torch.arange(12.0) + 4, indexing="ij")).flip(0)
    shared = SharedEmbeddings(margin=FixedMargin())(answers, coordinates[None], torch.zeros(p, 2))
    inside = (grid.points[:, 0] < 92) & (grid.points[:, 1] < 60)
    assert torch.allclose(shared.embeddings[0, inside], grid.points[inside], atol=1e-3)
    small = SYSTEMS["embedmask-small"]
    assert isinstance(small(num_classes=1, margin="fixed").proposal_head.margin, FixedMargin)
    assert isinstance(small(num_classes=1, embeddings="shared").proposal_head, SharedEmbeddings)


@pytest.mark.parametrize("name", VERSIONS)
def test_perfect_embeddings_give_perfect_masks(name):
    """One vector for each object, on its pixels and at its location."""
    size = (512, 768)
    y, x = torch.meshgrid(torch.arange(512), torch.arange(768), indexing="ij")
    discs = [(130, 140, 110), (350, 300, 100), (300, 590, 140)]
    masks = Masks.from_dense(torch.stack([(y - b) ** 2 + (x - a) ** 2 < r**2 for b, a, r in discs]))
    coupling = SYSTEMS[name](num_classes=1).coupling
    pixels, vectors = torch.zeros(3, 64, 96), 3 * torch.eye(3)
    middle = 6 if "fused" in name else 4  # the pixel a cell lands on
    for row, mask in enumerate(masks.sample((64, 96), step=8, first=(middle, middle))):
        pixels[row, mask] = 3.0
    proposals = Proposals(vectors[None], torch.full((1, 3, 1), math.log(2) / 4))
    found = Found(Instances(size, boxes=masks.boxes(), labels=torch.zeros(3, dtype=torch.int64)), torch.arange(3))
    drawn, sure = coupling.draw(pixels, proposals, 0, found, size)
    answer, truth = drawn.to_dense(), masks.to_dense()
    iou = (answer & truth).sum(dim=(1, 2)) / (answer | truth).sum(dim=(1, 2))
    assert float(iou.min()) > 0.94
    assert float(sure.min()) > 0.95  # φ is 1 on an object's own cells
    unsure = Proposals(vectors[None] * 0.9, torch.full((1, 3, 1), math.log(2) / 4))
    assert (coupling.draw(pixels, unsure, 0, found, size)[1] < sure).all()


@pytest.mark.parametrize(
    ("name", "first"), [("embedmask-small", 4.0), ("embedmask-arxiv-small", 4.0), ("embedmask-fused-small", 6.5)]
)
def test_masks_are_drawn_where_their_cells_are(name, first):
    """Cells say where they are; a detection claims what is within 40 px of its own point."""
    coupling = SYSTEMS[name](num_classes=1).coupling
    y, x = torch.meshgrid(first + 8 * torch.arange(24.0), first + 8 * torch.arange(40.0), indexing="ij")
    point = torch.tensor([151.0, 93.0])
    precision = -math.log(0.53 if name == "embedmask-small" else 0.5) / 40**2
    proposals = Proposals(point[None, None], torch.full((1, 1, 1), precision))
    box = torch.cat([point - 42, point + 42])[None]
    found = Found(Instances((192, 320), boxes=box, labels=torch.tensor([0])), torch.tensor([0]))
    masks, _ = coupling.draw(torch.stack([x, y]), proposals, 0, found, (192, 320))
    assert (masks.centroids()[0] - point).abs().max() < 0.3
    assert masks.areas().item() == pytest.approx(math.pi * 40**2, rel=0.01)
    tiny = Found(Instances((192, 320), boxes=torch.tensor([[147.0, 89, 155, 97]]), labels=torch.tensor([0])), found.location)
    near = Proposals(point[None, None], torch.full((1, 1, 1), precision * 100))  # within 4 px: less than a cell
    coupling.windows, usual = (lambda boxes, stride, size: torch.tensor([[0, 0, size[1], size[0]]])), coupling.windows
    whole, _ = coupling.draw(torch.stack([x, y]), near, 0, tiny, (192, 320))
    coupling.windows = usual
    inside, _ = coupling.draw(torch.stack([x, y]), near, 0, tiny, (192, 320))
    assert whole.areas().item() > 20
    assert torch.equal(whole.to_dense(), inside.to_dense())


def cut_of(coupling):
    """The energy up to which a pixel belongs to a mask."""
    energies = torch.linspace(0, 2, 20001)
    return energies[coupling.cut.values(energies) >= coupling.cut.threshold].max().item()


def test_v3_cuts_logarithms_or_probabilities():
    """Across an edge from φ = 0.95 to almost nothing, the cut in ln φ lies nearer to the inside (spec § 13.4)."""
    edge = torch.tensor([0.05] * 8 + [10.0] * 8).sqrt().expand(1, 16, 16)
    widths = {}
    for cut in ("log", "probability"):
        coupling = SYSTEMS["embedmask-small"](num_classes=1, cut=cut).coupling
        assert cut_of(coupling) == pytest.approx(-math.log(0.53), abs=2e-4)
        widths[cut] = drawn(edge, coupling.cut).areas().item() / 64
    assert widths["log"] == pytest.approx(4 * (7.5 + (-math.log(0.53) - 0.05) / 9.95), abs=0.5)  # samples in cells' middles
    assert widths["probability"] == pytest.approx(4 * (7.5 + (math.exp(-0.05) - 0.53) / math.exp(-0.05)), abs=0.5)


@pytest.mark.parametrize(
    ("names", "assigner", "teacher", "region", "windows", "tau", "ranking"),
    [
        (["r50-arxiv", "arxiv-small"], InMaskAssigner, AveragedPositives, around_box, grown_by_a_cell, 0.5, (0.05, 0.0, 1.0)),
        (["r50-scalar"], InMaskAssigner, best_positive, around_box, grown_by_a_cell, 0.53, (0.05, 0.0, 1.0)),
        (["r50", "r101", "small"], InMaskAssigner, best_positive, everywhere, grown_by_two_cells, 0.53, (0.05, 0.0, 1.0)),
        (
            ["r50-fused", "fused-small"],
            MiddleAssigner,
            all_positives,
            everywhere,
            grown_by_a_quarter,
            0.5,
            (0.05, 0.05**0.5, 0.5),
        ),
    ],
)
def test_versions_have_their_parts(names, assigner, teacher, region, windows, tau, ranking):
    for name in names:
        with torch.device("meta"):
            system = SYSTEMS[f"embedmask-{name}"](num_classes=80)
        coupling = system.coupling
        assert type(system.assigner) is assigner
        assert coupling.teacher is teacher or type(coupling.teacher) is teacher
        assert (coupling.region, coupling.windows) == (region, windows)
        assert cut_of(coupling) == pytest.approx(-math.log(tau), abs=2e-4)
        found = system.fcos.ranking
        power = 0.5 if name.endswith("small") else ranking[2]  # scores of small sizes are roots
        assert (found.class_floor, found.score_floor, found.power) == pytest.approx((*ranking[:2], power))


def test_only_the_pixels_of_a_region_teach():
    """The loss of V1, against a loop over the pixels that the spec keeps."""
    torch.manual_seed(0)
    system = SYSTEMS["embedmask-arxiv-small"](num_classes=3)
    target = scene()
    images = batch(1)
    with torch.no_grad():
        features = system.fpn(system.backbone(images.pixels))
        answers = system.fcos(features)
        matched = [system.assigner(answers.locations, target)]
        pixels, proposals = system._embed(features, answers)
        found = system._mask_loss(images, answers, matched, [target], pixels, proposals)["mask"]
        lessons = system.coupling.teacher(answers, proposals, 0, matched[0], target, GENERATOR)
        logits = logits_of_energy(system.coupling.energies(pixels[0], lessons.embeddings, lessons.precisions))
        wanted = system.coupling.targets(target.masks, (48, 64))
        expected = 0.0
        for row, logit_map in zip(lessons.rows.tolist(), logits, strict=True):
            x0, y0, x1, y1 = (target.boxes[row] / 4).tolist()
            w, h = x1 - x0, y1 - y0
            left, top = max(0, x0 - 0.1 * w - 1), max(0, y0 - 0.1 * h - 1)
            right, bottom = min(63, x1 + 0.1 * w + 1), min(47, y1 + 0.1 * h + 1)
            columns = [c for c in range(64) if left <= c < right]
            rows = [r for r in range(48) if top <= r < bottom]
            part, truth = logit_map[rows][:, columns].reshape(1, -1), wanted[row][rows][:, columns].reshape(1, -1)
            expected += lovasz_hinge(part, truth).item() / 3  # all objects of the image
    assert found.total.item() == pytest.approx(0.5 * expected, rel=1e-5)
    assert found.count.item() == 1


def test_v4_means_over_the_locations_of_a_batch():
    torch.manual_seed(0)
    system = SYSTEMS["embedmask-fused-small"](num_classes=3)
    with torch.no_grad():
        one = system.loss(batch(1), [scene()])["mask"]
        matched = system.assigner(locations((192, 256), strides=(8, 16, 32, 64)), scene())
    assert one.count.item() == int((matched >= 0).sum()) > 10
    assert 0.5 < (one.total / one.count).item() < 4  # weight 1


def test_semantic_labels_are_those_of_the_smallest_mask():
    from maskwright.systems.one_stage.fused import SemanticHead

    head = SemanticHead(8, 8, num_classes=3, norm="group")
    nested = rectangles(
        (64, 64), (0, 0, 64, 64), (16, 16, 48, 48), (40, 0, 64, 12), labels=[0, 2, 1], crowd=[False, False, True]
    )
    alone = rectangles((64, 64), (8, 8, 13, 16), (40, 0, 64, 12), labels=[1, 0], crowd=[False, True])
    wanted = torch.zeros(2, 3, 8, 8)
    wanted[0, 0] = 1
    wanted[0, :, 2:6, 2:6] = torch.tensor([0.0, 0, 1])[:, None, None]
    wanted[1, 1, 1, 1] = 1  # the sample at (12, 12); at (8, 8) there would be none but this as well, at (20, 12) none
    for labels, right in ((wanted, True), (wanted.flip(1), False)):
        head.classes = nn.Module()
        head.classes.forward = lambda x, labels=labels: 40 * labels - 20
        loss = head.loss({8: torch.zeros(2, 8, 8, 8)}, [nested, alone])["semantic"]
        assert loss.count.item() == 64 + 1
        assert (loss.total.item() < 1e-3) == right
    shout = torch.full((2, 3, 8, 8), -20.0)
    shout[1, 0, 0, 5:] = 20.0  # in the crowd of the second image alone, where nobody listens
    head.classes.forward = lambda x: shout
    quiet = torch.full((2, 3, 8, 8), -20.0)
    loud = head.loss({8: torch.zeros(2, 8, 8, 8)}, [nested, alone])["semantic"].total
    head.classes.forward = lambda x: quiet
    assert loud.item() == pytest.approx(head.loss({8: torch.zeros(2, 8, 8, 8)}, [nested, alone])["semantic"].total.item())


def test_paper_sizes_have_their_parameters():
    for name, millions in PAPER.items():
        with torch.device("meta"):
            system = SYSTEMS[name](num_classes=80)
        assert sum(p.numel() for p in system.parameters()) / 1e6 == pytest.approx(millions, abs=0.0051)
