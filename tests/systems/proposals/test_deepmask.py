"""DeepMask and SharpMask against the numbers of their papers and code."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from maskwright.layers.dropout import keyed_dropout
from maskwright.layers.padding import symmetric_pad
from maskwright.recipes import find_recipe
from maskwright.structures import ImageBatch, Instances, Masks, MaskTiles, PatchBatch, PatchGeometry
from maskwright.structures.patches import octaves_for
from maskwright.systems import SYSTEMS
from maskwright.systems.proposals.deepmask import Level, MaskHead, OriginalHead, WindowConv, window_labels
from maskwright.systems.proposals.sharpmask import Refinement, RefinementModule, window_patches
from maskwright.training.optimization import build_optimizer, learning_rate_factor, set_trainable

THRESHOLD = math.log(0.2 / 0.8)


def count(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


def on_meta(name, **arguments):
    with torch.device("meta"):
        return SYSTEMS[name](num_classes=1, **arguments)


@pytest.fixture(scope="module")
def r50():
    torch.manual_seed(0)
    return SYSTEMS["sharpmask-r50"](num_classes=1).eval()


def patch_batch(system, count, kind, seed=0):
    side = system.geometry.input_px
    pixels = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))
    sizes = [(side, side)] * count
    return PatchBatch(pixels=pixels, sizes=sizes, original_sizes=sizes, keys=list(range(count)), kind=kind)


def centred(side, half):
    dense = torch.zeros(1, side, side, dtype=torch.bool)
    dense[0, side // 2 - half : side // 2 + half, side // 2 - half : side // 2 + half] = True
    masks = Masks.from_dense(dense)
    return Instances((side, side), boxes=masks.boxes(), labels=torch.zeros(1, dtype=torch.int64), masks=masks)


# Sizes (spec, 2.1, 3.4, 5.4)


def test_parameter_counts_are_those_of_the_papers():
    deep, vgg, sharp = on_meta("deepmask-r50"), on_meta("deepmask-vgg"), on_meta("sharpmask-r50")
    assert count(deep) == 17_333_121
    assert count(deep.backbone, deep.head.reduce, deep.head.encode) == 15_198_016
    assert count(deep.mask_head) == 1_608_768
    assert count(deep.head.score) == 526_337
    assert count(vgg) == 75_844_545
    assert count(vgg.backbone) == 9_220_480
    assert count(vgg.head.reduce, vgg.head.encode, vgg.mask_head) == 53_252_160
    assert count(vgg.head.score_encode, vgg.head.score) == 13_371_905
    assert count(sharp) - count(deep) == count(sharp.refinement) == 2_750_535
    horizontal = [count(s.thin1, s.thin2, s.merge_features) for s in sharp.refinement.stages]
    assert horizontal == [612_976, 305_368, 152_428, 19_694]
    vertical = [count(s.mask, s.merge_mask) for s in sharp.refinement.stages]
    assert [vertical[0] + count(sharp.refinement.encode), *vertical[1:]] == [1_641_600 + 13_872, 3_480, 876, 222]
    assert count(sharp.refinement.logits) == 19


@pytest.mark.parametrize(
    ("arguments", "channels", "cells"),
    [
        ({}, 128, 10),
        ({"reduced": None}, 1024, 10),
        ({"window_px": 112, "reduced": None}, 1024, 7),
        ({"window_px": 112, "halvings": 3, "reduced": None}, 512, 14),
        ({"window_px": 112, "halvings": 3}, 128, 14),
    ],
)
def test_backbones_of_the_papers_table_are_numbers(arguments, channels, cells):
    system = on_meta("deepmask-r50", **arguments)
    assert system.head.encode.weight.shape == (512, channels, cells, cells)
    assert system.geometry.object_px == {160: 92, 112: 64}[system.geometry.window_px]
    assert system.stride * cells == system.geometry.window_px


def test_windows_must_fit_the_stride():
    with pytest.raises(ValueError, match="got window_px 104, expected a multiple of 16"):
        SYSTEMS["deepmask-r50"](num_classes=1, window_px=104)


def test_sharp_masks_take_each_windows_own_maps(monkeypatch):
    """The first corner of what a window is given, at every module, tells where it was taken."""
    system = SYSTEMS["sharpmask-small"](num_classes=1, max_detections=100)
    rows, columns = torch.arange(30.0)[:, None].expand(30, 40), torch.arange(40.0).expand(30, 40)
    maps = [
        F.interpolate(torch.stack([rows, columns])[None], scale_factor=2**i, mode="nearest") for i in range(3)
    ]  # each cell holds its row and column
    seen = []

    def refine(vectors, patches):
        seen.append([patch[:, :, 0, 0] for patch in patches])
        return torch.zeros(len(vectors), 80, 80)

    monkeypatch.setattr(system.refinement, "forward", refine)
    levels = []
    for _ in range(2):
        logits = torch.rand(21, 31, generator=torch.Generator().manual_seed(len(levels)))
        levels.append(Level(size=(160, 240), vectors=torch.zeros(224, 21, 31), logits=logits, maps=maps))
    place = torch.cat([level.logits.flatten() for level in levels]).topk(100).indices
    system._draw(levels, place, (160, 240))
    cells = torch.cat([place[place < 21 * 31], place[place >= 21 * 31] - 21 * 31])
    expected = torch.stack([cells // 31, cells % 31], dim=1).float()
    for module in range(3):
        assert torch.equal(torch.cat([chunk[module] for chunk in seen]), expected)


def test_mask_encodings_are_unfolded_channel_row_column():
    refinement = Refinement({8: 4, 4: 4, 2: 4}, size=1, cells=10)
    taken = {}
    refinement.stages[0].register_forward_pre_hook(lambda module, inputs: taken.update(mask=inputs[0]))
    with torch.no_grad():
        refinement.encode.weight.zero_()
        refinement.encode.bias.copy_(torch.arange(3200.0))
        refinement(torch.zeros(1, 1), [torch.zeros(1, k, 10 * 2**i, 10 * 2**i) for i, k in enumerate((16, 8, 4))])
    assert float(taken["mask"][0, 3, 4, 5]) == 3 * 100 + 4 * 10 + 5


def test_heads_a_and_b_are_larger_than_c_and_answer_alike():
    counts = {}
    for head in "abc":
        system = SYSTEMS["deepmask-r50"](num_classes=1, window_px=112, reduced=16, head=head)
        features = torch.randn(1, 1024, 9, 10)
        vectors, logits = system.head(features, None)
        assert vectors.shape == (1, 512, 3, 4)
        assert logits.shape == (1, 3, 4)
        counts[head] = count(system.head)
    assert counts["a"] == counts["b"] > counts["c"]


def test_shapes_of_a_patch_are_those_of_the_code(r50):
    features = r50.backbone(torch.zeros(1, 3, 192, 192))
    assert {s: tuple(f.shape[1:]) for s, f in features.items()} == {
        2: (64, 96, 96),
        4: (256, 48, 48),
        8: (512, 24, 24),
        16: (1024, 12, 12),
    }
    inside = r50._inside(features)
    assert {s: tuple(f.shape[2:]) for s, f in inside.items()} == {2: (80, 80), 4: (40, 40), 8: (20, 20), 16: (10, 10)}
    assert torch.equal(inside[8], features[8][..., 2:-2, 2:-2])
    assert [tuple(m.shape[1:]) for m in r50.refinement.horizontal(inside)] == [
        (16, 10, 10),
        (8, 20, 20),
        (4, 40, 40),
        (2, 80, 80),
    ]


def test_shapes_of_a_whole_image_are_those_of_the_code(r50):
    with torch.inference_mode():
        level = r50.look(torch.zeros(3, 480, 640), 0.0)
    assert level.vectors.shape == (512, 31, 41)
    assert level.logits.shape == (31, 41)
    assert [tuple(m.shape[1:]) for m in level.maps] == [(16, 40, 50), (8, 80, 100), (4, 160, 200), (2, 320, 400)]


@pytest.mark.parametrize(
    ("octave", "cells"),
    [(-2.5, 63), (-2, 99), (-1.5, 192), (-1, 336), (-0.5, 690), (0, 1271), (0.5, 2552), (1, 4941), (1.5, 9890)],
)
def test_a_scale_has_as_many_windows_as_the_code(octave, cells, monkeypatch):
    system = SYSTEMS["deepmask-small"](num_classes=1)
    system.geometry = PatchGeometry(160, 16, 92, (0, 0))

    def features(pixels):  # what a network of stride 16 answers in size
        return {16: pixels.new_zeros(1, 256, -(-pixels.shape[2] // 16), -(-pixels.shape[3] // 16))}

    system.stride = 16
    monkeypatch.setattr(system.backbone, "forward", features)
    with torch.inference_mode():
        assert system.look(torch.zeros(3, 480, 640), octave).logits.numel() == cells


def test_the_published_scales_fit_the_size_of_windows():
    assert on_meta("deepmask-r50").octaves == (-2.5, -2, -1.5, -1, -0.5, 0, 0.5)
    assert on_meta("deepmask-vgg").octaves == (-2, -1.5, -1, -0.5, 0, 0.5, 1)
    assert on_meta("deepmask-r50").geometry.octaves == (-3, 2)  # the range of the code's negatives


# The network


def test_symmetric_padding_repeats_the_edge_and_is_constant_to_the_gradient():
    x = torch.tensor([[1.0, 2, 3, 4]]).expand(4, 4).clone().requires_grad_()
    padded = symmetric_pad(x, 2, 2)
    assert padded[2].tolist() == [2, 1, 1, 2, 3, 4, 4, 3]
    assert torch.equal(symmetric_pad(x[None, None], 1, 1), F.pad(x[None, None], (1, 1, 1, 1), mode="replicate"))
    padded.sum().backward()
    assert torch.equal(x.grad, torch.ones(4, 4))


def test_backbone_pads_symmetrically_wherever_it_convolves(r50):
    constant = torch.ones(1, 3, 64, 64) * torch.tensor([0.3, -0.2, 0.9])[None, :, None, None]
    for maps in r50.backbone(constant).values():
        middle = maps[..., maps.shape[2] // 2, maps.shape[3] // 2][..., None, None]
        assert torch.allclose(maps, middle.expand_as(maps), atol=1e-4)


def test_norms_are_frozen(r50):
    system = SYSTEMS["deepmask-r50"](num_classes=1)
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(system.train().backbone(x)[16], system.eval().backbone(x)[16])
    before = {name: b.clone() for name, b in system.named_buffers()}
    batch = patch_batch(system, 2, "score")
    optimizer = build_optimizer(system, find_recipe("deepmask-r50").stages[0].optimizer)
    sum(v.total for v in system.loss(batch, [centred(192, 40)] * 2).values()).backward()
    optimizer.step()
    assert all(torch.equal(b, before[name]) for name, b in system.named_buffers())
    assert len(before) >= 2 * 43


def test_window_conv_is_a_linear_layer_over_channel_row_column():
    conv = WindowConv(128, 512, 10)
    x = torch.randn(3, 128, 10, 10)
    linear = F.linear(x.flatten(1), conv.weight.flatten(1), conv.bias)
    convolved = nn.Conv2d.forward(conv, x)[:, :, 0, 0]
    assert torch.allclose(linear, convolved, atol=1e-4)
    assert torch.equal(conv(x)[:, :, 0, 0], linear)
    assert torch.allclose(conv(F.pad(x, (1, 1, 1, 1)))[:, :, 1, 1], linear, atol=1e-4)


def test_original_score_head_equals_pooling_with_stride_window_by_window():
    torch.manual_seed(0)
    head = OriginalHead().eval()
    features = torch.randn(1, 512, 16, 15)
    dense = head(features, None).logits[0]
    assert dense.shape == (3, 2)
    for row in range(3):
        for column in range(2):
            window = features[..., row : row + 14, column : column + 14]
            pooled = F.max_pool2d(window, 2)  # 7 × 7, the paper's patch
            hidden = F.relu(F.linear(pooled.flatten(1), head.score_encode.weight.flatten(1), head.score_encode.bias))
            expected = head.score(hidden[:, :, None, None], None)
            assert torch.allclose(dense[row, column], expected.squeeze(), atol=1e-4)


def test_coarse_masks_are_enlarged_corner_on_corner():
    head = MaskHead(1, coarse=56, side=112)
    with torch.no_grad():
        head.logits.weight.zero_()
        head.logits.bias.copy_(torch.arange(56.0).repeat(56))
    row = head(torch.zeros(1, 1))[0, 0].detach()
    assert float(row[0]) == 0
    assert float(row[-1]) == 55
    assert torch.allclose(row, torch.arange(112) * 55 / 111, atol=1e-4)


def test_dropout_belongs_to_the_patch():
    generators = [torch.Generator().manual_seed(key) for key in (3, 4)]
    dropped = keyed_dropout(torch.ones(2, 1000), generators)
    alone = keyed_dropout(torch.ones(1, 1000), [torch.Generator().manual_seed(4)])
    assert torch.equal(dropped[1:], alone)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert 400 < int((dropped[0] == 0).sum()) < 600
    assert torch.equal(keyed_dropout(alone, None), alone)


# Learning


def test_losses_of_zero_logits_have_the_published_gradients(monkeypatch):
    system = SYSTEMS["sharpmask-small"](num_classes=1)
    system.mask_head = MaskHead(224, coarse=56, side=112)
    side = system.geometry.input_px
    targets = [centred(side, 20)] * 16 + [centred(side, 12)] * 16
    for grid, expected in ((112, 3.986e-5), (160, 1.953e-5)):
        logits = torch.zeros(32, grid, grid, requires_grad=True)
        loss = system._mask_loss(logits, targets)
        mean = loss.total / loss.count
        mean.backward()
        assert float(mean.detach()) / 32 == pytest.approx(math.log(2))
        assert logits.grad.abs().unique().tolist() == pytest.approx([expected], rel=1e-3)
        wanted = window_labels(targets, system.geometry, side=grid)
        assert torch.equal(logits.grad < 0, wanted)
    batch = patch_batch(system, 32, "score")
    logit = torch.zeros(32, 1, 1, requires_grad=True)
    monkeypatch.setattr(system.head.score, "forward", lambda vectors, generators: logit)
    score = system.loss(batch, [centred(side, 20)] * 16 + [centred(side, 20)[:0]] * 16)["score"]
    (score.total / score.count).backward()
    assert float(score.total.detach() / score.count) == pytest.approx(math.log(2))
    assert logit.grad.flatten().tolist() == pytest.approx([-0.015625] * 16 + [0.015625] * 16)


def test_labels_are_exact():
    geometry = PatchGeometry(80, 8, 46, (0, 0))
    dense = torch.zeros(1, 96, 96, dtype=torch.bool)
    dense[0, 8 + 10 : 8 + 30, 8 + 40 : 8 + 80] = True
    masks = Masks.from_dense(dense)
    target = Instances((96, 96), boxes=masks.boxes(), labels=torch.zeros(1, dtype=torch.int64), masks=masks)
    expected = torch.zeros(80, 80, dtype=torch.bool)
    expected[10:30, 40:80] = True
    assert torch.equal(window_labels([target], geometry, side=80)[0], expected)
    assert torch.equal(window_labels([target], geometry, side=40)[0], expected[::2, ::2])


def test_whole_images_are_refused_by_name():
    system = SYSTEMS["deepmask-small"](num_classes=1)
    images = ImageBatch(torch.zeros(1, 3, 96, 96), [(96, 96)], [(96, 96)], keys=[0])
    with pytest.raises(ValueError, match="expected a PatchBatch"):
        system.loss(images, [centred(96, 20)])


def test_second_stage_moves_the_refinement_alone():
    torch.manual_seed(0)
    system = SYSTEMS["sharpmask-small"](num_classes=1)
    stage = find_recipe("sharpmask-r50").stages[1]
    set_trainable(system, stage)
    assert sum(p.numel() for p in system.parameters() if p.requires_grad) == count(system.refinement)
    before = {name: value.clone() for name, value in system.state_dict().items()}
    optimizer = build_optimizer(system, stage.optimizer.model_copy(update={"lr": 0.1}))
    batch, targets = patch_batch(system, 2, "refined"), [centred(96, 20)] * 2
    for _ in range(10):
        optimizer.zero_grad()
        sum(v.total / v.count for v in system.loss(batch, targets).values()).backward()
        optimizer.step()
    moved = {name for name, value in system.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if name.startswith("refinement.")}


def test_schedules_are_the_intended_ones():
    first, second = find_recipe("sharpmask-r50").stages
    rates = {}
    for stage in (first, second):
        total = round(stage.epochs) * 4000
        rate = [stage.optimizer.lr * learning_rate_factor(stage.schedule, (e - 1) * 4000, total) for e in (1, 50, 51, 81, 121)]
        rates[stage.epochs] = rate[: 4 if stage is second else 5]
    assert rates[first.epochs] == pytest.approx([1e-3, 1e-3, 5e-4, 5e-4, 1e-4])
    assert rates[second.epochs] == pytest.approx([1e-3, 1e-3, 5e-4, 1e-4])
    assert (second.optimizer.momentum, second.optimizer.weight_decay) == (0, 0)
    assert set(second.patches.kinds) == {"refined"}


# Refinement


def test_split_and_concatenated_refinement_are_equal():
    torch.manual_seed(0)
    channels = {8: 32, 4: 16, 2: 8}
    split = Refinement(channels, size=24, cells=6, form="split").double()
    joined = Refinement(channels, size=24, cells=6, form="concatenated").double()
    joined.load_state_dict(split.state_dict())
    features = {s: torch.randn(3, c, 48 // s, 48 // s, dtype=torch.float64) for s, c in channels.items()}
    vectors = torch.randn(3, 24, dtype=torch.float64)
    one, two = (r(vectors, r.horizontal(features)) for r in (split, joined))
    assert one.shape == (3, 48, 48)
    assert float((one - two).detach().abs().max()) < 1e-6  # logits are float32
    stage = [r.stages[0] for r in (split, joined)]
    mask = torch.randn(3, 32, 6, 6, dtype=torch.float64)
    merged = [s(mask, s.horizontal(features[8])) for s in stage]
    assert float((merged[0] - merged[1]).detach().abs().max()) < 1e-12


def test_maps_of_the_whole_image_differ_from_those_of_a_window_in_a_ring_of_three():
    torch.manual_seed(0)
    module = RefinementModule(16, 8, 4, upsampling="nearest")
    whole = torch.randn(1, 16, 40, 40)
    of_image = module.horizontal(whole)[..., 10:30, 12:32]
    of_window = module.horizontal(whole[..., 10:30, 12:32])
    differs = (of_image - of_window).abs().amax(dim=(0, 1)) > 1e-5
    assert not differs[3:-3, 3:-3].any()
    for ring in range(3):
        inner = differs[ring : 20 - ring, ring : 20 - ring]
        assert inner[0].any()
        assert inner[-1].any()
        assert inner[:, 0].any()
        assert inner[:, -1].any()


@pytest.mark.parametrize("step", [1, 2, 4, 8])
def test_windows_take_their_own_part_of_a_map(step):
    rows = torch.arange(40.0)[:, None].expand(40, 50)
    maps = torch.stack([rows, torch.arange(50.0).expand(40, 50)])[None]
    maps = F.interpolate(maps, scale_factor=step, mode="nearest")
    r, c = torch.tensor([0, 7, 30]), torch.tensor([3, 0, 40])
    parts = window_patches(maps, r * step, c * step, 10 * step)
    assert parts.shape == (3, 2, 10 * step, 10 * step)
    assert parts[:, 0, 0, 0].tolist() == r.tolist()
    assert parts[:, 1, 0, 0].tolist() == c.tolist()
    assert parts[:, 0, -1, -1].tolist() == [9, 16, 39]
    out = window_patches(maps, r * step + 5, c * step, 10 * step)
    assert float(out[2, 0, -1].abs().max()) == 0  # filled where a window sticks out


def multiplications(refinement, cells):
    """Of the vertical nets for one window, module by module."""
    return [
        sum(conv.weight.numel() for conv in (stage.mask, stage.merge_mask)) * (cells * 2**i) ** 2
        for i, stage in enumerate(refinement.stages)
    ]


def test_schedule_b_costs_the_same_at_every_module():
    with torch.device("meta"):
        halved, constant = (SYSTEMS["sharpmask-r50"](num_classes=1, schedule=s).refinement for s in "ba")
    assert multiplications(halved, 10) == [1_382_400] * 4
    assert sum(multiplications(constant, 10)) == pytest.approx(156.7e6, rel=1e-3)
    assert halved.logits.weight.numel() * 160**2 == 460_800
    assert halved.encode.weight.numel() == 1_638_400


def test_upsampling_follows_the_relu():
    torch.manual_seed(0)
    for upsampling in ("nearest", "bilinear"):
        module = RefinementModule(4, 2, 2, upsampling=upsampling)
        mask, inside = torch.randn(1, 2, 5, 5), torch.randn(1, 2, 5, 5)
        before = F.relu(module.merge_mask(F.relu(module.mask(mask))) + inside)
        assert torch.allclose(module(mask, inside), F.interpolate(before, scale_factor=2, mode=upsampling))


# All windows of an image


def level_with(logits, size):
    return Level(size=size, vectors=torch.zeros(224, *logits.shape), logits=logits, maps=[])


@pytest.fixture
def foreground():
    """A small DeepMask with the code's windows, whose masks are all foreground."""
    system = SYSTEMS["deepmask-small"](num_classes=1, max_detections=1)
    system.geometry, system.stride, system.octaves = PatchGeometry(160, 16, 92, (0, 0)), 16, (0.0,)
    with torch.no_grad():
        system.mask_head.logits.weight.zero_()
        system.mask_head.logits.bias.fill_(3.0)
    return system


@pytest.mark.parametrize(("row", "column"), [(0, 0), (7, 3), (30, 40)])
def test_a_window_is_found_where_its_score_is(foreground, row, column, monkeypatch):
    logits = torch.full((31, 41), -5.0)
    logits[row, column] = 5.0
    monkeypatch.setattr(foreground, "look", lambda pixels, octave: level_with(logits, (480, 640)))
    (found,) = foreground.predict(ImageBatch(torch.zeros(1, 3, 480, 640), [(480, 640)], [(480, 640)]))
    expected = [max(0, 16 * column - 80), max(0, 16 * row - 80), min(640, 16 * column + 80), min(480, 16 * row + 80)]
    assert found.boxes.tolist() == [expected]
    assert found.masks.areas().tolist() == [(expected[2] - expected[0]) * (expected[3] - expected[1])]
    assert found.scores.tolist() == pytest.approx([1 / (1 + math.exp(-5))])


def test_windows_of_a_scale_lie_in_the_original_image(foreground, monkeypatch):
    logits = torch.full((20, 30), -5.0)
    logits[4, 6] = 1.0
    monkeypatch.setattr(foreground, "look", lambda pixels, octave: level_with(logits, (240, 321)))
    (found,) = foreground.predict(ImageBatch(torch.zeros(1, 3, 480, 640), [(480, 640)], [(480, 640)]))
    x = 640 / 321
    assert found.boxes[0].tolist() == pytest.approx([round(16 * x), 0, round(176 * x), 288], abs=0.51)


def test_fewer_windows_than_wanted_give_fewer_proposals(foreground, monkeypatch):
    foreground.max_detections = 1000
    monkeypatch.setattr(
        foreground, "look", lambda pixels, octave: level_with(torch.linspace(-1, 1, 12).reshape(3, 4), (32, 48))
    )
    (found,) = foreground.predict(ImageBatch(torch.zeros(1, 3, 32, 48), [(32, 48)], [(32, 48)]))
    assert len(found) == 12
    assert found.scores.max() < 0.9
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)


def test_the_best_windows_are_chosen_over_all_scales(foreground, monkeypatch):
    foreground.octaves, foreground.max_detections = (-1.0, 0.0), 3
    maps = {-1.0: torch.tensor([[0.3, 0.9]]), 0.0: torch.tensor([[0.5], [0.1]])}
    monkeypatch.setattr(foreground, "look", lambda pixels, octave: level_with(maps[octave], (16, 16)))
    (found,) = foreground.predict(ImageBatch(torch.zeros(1, 3, 16, 16), [(16, 16)], [(16, 16)]))
    assert found.scores.tolist() == pytest.approx([1 / (1 + math.exp(-v)) for v in (0.9, 0.5, 0.3)])


def test_suppression_is_optional(foreground, monkeypatch):
    foreground.max_detections = 4
    monkeypatch.setattr(foreground, "look", lambda pixels, octave: level_with(torch.tensor([[0.3, 0.2, 0.1, 0.0]]), (300, 400)))
    batch = ImageBatch(torch.zeros(1, 3, 300, 400), [(300, 400)], [(300, 400)])
    assert len(foreground.predict(batch)[0]) == 4
    foreground.nms_iou = 0.6
    assert 1 <= len(foreground.predict(batch)[0]) < 4


def test_large_scales_of_large_images_are_left_out():
    system = SYSTEMS["deepmask-small"](num_classes=1, octaves=(0.0, 1.0, 2.0))
    assert system._octaves_of((300, 512)) == (0.0, 1.0, 2.0)
    assert system._octaves_of((300, 513)) == (0.0, 1.0)
    assert system._octaves_of((300, 9000)) == (0.0,)


def test_around_the_image_it_is_gray(monkeypatch):
    seen = {}

    def backbone(pixels):
        seen["pixels"] = pixels
        return {16: pixels.new_zeros(1, 1024, 12, 12)}

    system = SYSTEMS["deepmask-r50"](num_classes=1)
    monkeypatch.setattr(system.backbone, "forward", backbone)
    system.look(torch.ones(3, 32, 32), 0.0)
    assert seen["pixels"].shape == (1, 3, 192, 192)
    assert seen["pixels"][0, :, 79, 100].tolist() == pytest.approx([0.0655, 0.1964, 0.4178], abs=1e-4)
    assert seen["pixels"][0, :, 80, 100].tolist() == [1, 1, 1]
    red = system.input.to_pixels(torch.tensor([[[255, 0, 0]]], dtype=torch.uint8))
    assert red.flatten().tolist() == pytest.approx([2.249, -2.036, -1.804], abs=1e-3)


# Drawing


@pytest.mark.parametrize(("logit", "area"), [(-1.30, 32 * 48), (-1.45, 0)])
def test_logits_are_cut_at_probability_a_fifth(logit, area):
    masks = MaskTiles(torch.full((1, 5, 5), logit), torch.tensor([[0.0, 0, 48, 32]])).paste((32, 48), THRESHOLD)
    assert masks.areas().tolist() == [area]


def test_logits_are_interpolated_before_they_are_cut():
    grid = torch.tensor([[[4.0, -4.0], [-4.0, -4.0]]])
    masks = MaskTiles(grid, torch.tensor([[0.0, 0, 8, 8]])).paste((8, 8), THRESHOLD)
    share = ((torch.arange(8) + 0.5) / 8 * 2 - 0.5).clamp(0, 1)  # from the first cell's centre to the second's
    expected = -4 + 8 * (1 - share)[:, None] * (1 - share)[None, :] >= THRESHOLD
    assert torch.equal(masks.to_dense()[0], expected)
    assert 0 < int(expected.sum()) < 64
    probability = (1 - share)[:, None] * (1 - share)[None, :] * (1 / (1 + math.exp(-4))) >= 0.2
    assert not torch.equal(expected, probability)  # the other order would be seen


# Scales of a data set


def test_octaves_cover_the_sizes_there_are():
    assert octaves_for([92.0] * 10, object_px=92) == (0.0,)
    assert octaves_for([46.0, 92.0, 184.0] * 50, object_px=92) == (-1.0, -0.5, 0.0, 0.5, 1.0)
    assert octaves_for([60.0] * 10, object_px=92) == (0.5,)
    assert octaves_for([46.0, 92.0] * 500 + [10000.0], object_px=92) == (0.0, 0.5, 1.0)  # one giant changes nothing
    with pytest.raises(ValueError, match="no objects to choose the scales"):
        octaves_for([], object_px=92)


def test_images_in_a_batch_are_looked_at_without_its_padding():
    torch.manual_seed(0)
    system = SYSTEMS["deepmask-small"](num_classes=1, octaves=(0.0,), max_detections=50)
    image = torch.randn(3, 40, 60)
    padded = torch.full((1, 3, 64, 96), 7.0)
    padded[0, :, :40, :60] = image
    with torch.inference_mode():
        one = system.predict(ImageBatch(image[None], [(40, 60)], [(40, 60)]))[0]
        two = system.predict(ImageBatch(padded, [(40, 60)], [(40, 60)]))[0]
    assert torch.equal(one.scores, two.scores)
    assert replace(one, masks=None).boxes.tolist() == two.boxes.tolist()
