"""What every system promises, at its small size."""

import copy
import inspect
from dataclasses import replace
from functools import lru_cache, partial

import pytest
import torch

from maskwright.formats.dataset import Categories
from maskwright.recipes import find_recipe
from maskwright.runs import ModelCard, open_model, save_model
from maskwright.structures import ImageBatch, Instances, Masks, PatchBatch
from maskwright.systems import SYSTEMS, Task
from maskwright.systems.proposals.fast_rcnn import FastRCNN
from tests.conftest import needs_proposals

RIVALS = [  # operators that neither round corners nor take the greatest: there last bits would decide
    "mask-rcnn-small mask=softmax roi=align-legacy certainty_power=0",  # nothing is sure of anything yet
    "mask-rcnn-c4-small mask=agnostic roi=align-legacy",
    "keypoint-rcnn-small roi=align-legacy",
]
LITE = ["mask-rcnn-lite", "embedmask-lite", "sharpmask-lite"]  # one of a kind: what is new in all of them is the backbone
SMALL = [*(name for name in SYSTEMS if name.endswith("-small")), *LITE, *RIVALS]
FEW = {"num_proposals": 50, "num_candidates": 50, "max_detections": 20}  # enough to answer with
each = partial(pytest.mark.parametrize, "name", scope="module")  # all tests of a system one after the other: built once


def system_of(name):
    """The system of a name, which further words give arguments."""
    return name.split()[0]


def arguments_of(name, **arguments):
    known = inspect.signature(SYSTEMS[system_of(name)]).parameters
    few = {key: value for key, value in FEW.items() if key in known}
    variant = dict(word.split("=") for word in name.split()[1:])
    return {"num_classes": 3, "score_threshold": 0.0, **few, **variant, **arguments}


def build(name, **arguments):
    """A system of one's own, with the same first weights each time."""
    return copy.deepcopy(built(name, **arguments))


@lru_cache(maxsize=4)
def built(name, **arguments):
    torch.manual_seed(0)
    return SYSTEMS[system_of(name)](**arguments_of(name, **arguments))


def batch_of(system, sizes, seed=0):
    g = torch.Generator().manual_seed(seed)
    images = [torch.randn(3, *size, generator=g) for size in sizes]
    originals = [(2 * h, 2 * w) for h, w in sizes]
    batch = ImageBatch.collate(
        images, original_sizes=originals, size_divisor=system.input.size_divisor, keys=list(range(len(sizes)))
    )
    return batch.with_proposals([proposals(size) for size in originals]) if isinstance(system, FastRCNN) else batch


def proposals(size):
    """Rectangles of all sizes all over an image."""
    dense = torch.zeros(30, *size, dtype=torch.bool)
    g = torch.Generator().manual_seed(size[0])
    for row, (y, x, h, w) in zip(dense, torch.rand(30, 4, generator=g).tolist(), strict=True):
        top, left = int(0.8 * y * size[0]), int(0.8 * x * size[1])
        row[top : top + 8 + int(h * size[0]), left : left + 8 + int(w * size[1])] = True
    masks = Masks.from_dense(dense)
    return Instances(size, boxes=masks.boxes(), labels=torch.zeros(30, dtype=torch.int64), scores=torch.ones(30), masks=masks)


def part_of(batch, i):
    return replace(
        batch,
        pixels=batch.pixels[i : i + 1],
        sizes=batch.sizes[i : i + 1],
        original_sizes=batch.original_sizes[i : i + 1],
        keys=batch.keys[i : i + 1],
        proposals=None if batch.proposals is None else batch.proposals[i : i + 1],
    )


def objects(size, n, seed=0, crowd=False):
    g = torch.Generator().manual_seed(seed)
    dense = torch.zeros(n, *size, dtype=torch.bool)
    for row in dense:
        y, x = int(torch.randint(0, size[0] - 30, (), generator=g)), int(torch.randint(0, size[1] - 30, (), generator=g))
        row[y : y + 28, x : x + 24] = True
    masks = Masks.from_dense(dense)
    flags = torch.zeros(n, dtype=torch.bool)
    if crowd:
        flags[0] = True
    return with_points(Instances(size, boxes=masks.boxes(), labels=torch.arange(n) % 3, masks=masks, is_crowd=flags))


def with_points(instances):
    """Keypoints all over the boxes."""
    share = torch.rand(len(instances), 17, 2, generator=torch.Generator().manual_seed(0))
    corner, extent = instances.boxes[:, None, :2], (instances.boxes[:, 2:] - instances.boxes[:, :2])[:, None]
    return instances.with_keypoints(torch.cat([corner + share * extent, torch.full((len(instances), 17, 1), 2.0)], dim=2))


def bars(size, lengths):
    """Objects for every level of a pyramid, so that all its parts learn; square where the image is as high as they are long."""
    dense = torch.zeros(len(lengths), *size, dtype=torch.bool)
    for row, length in zip(dense, lengths, strict=True):
        height = min(length, size[0] - 4)
        y, x = (size[0] - height) // 3, 2 * (size[1] - length) // 3
        row[y : y + height, x : x + length] = True
    masks = Masks.from_dense(dense)
    return with_points(Instances(size, boxes=masks.boxes(), labels=torch.arange(len(lengths)) % 3, masks=masks))


def total(losses):
    return sum(loss.total / loss.count.clamp(min=1) for loss in losses.values())


def kinds_of(name):
    """The kinds of patches a system's recipe trains on; none where it trains on whole images."""
    return sorted({kind for stage in find_recipe(system_of(name)).stages if stage.patches for kind in stage.patches.kinds})


def patches_of(system, kind, targets, seed=0):
    """A batch of patches for targets of any size, of which the first object is the one that is learnt."""
    side = system.geometry.input_px
    batch = batch_of(system, [(side, side)] * len(targets), seed)
    learnt = [t.resize((side, side)) for t in targets]
    return PatchBatch.of(batch, kind), [t[torch.nonzero(~t.crowd)[:1, 0]] for t in learnt]


def loss_of(name, system, batch, targets):
    """All terms a recipe learns from: of whole images, or of a batch of patches of each kind."""
    losses = {}
    for kind in kinds_of(name):
        held = [t for t in targets if kind == "score" or len(t)]
        if held:
            losses |= system.loss(*patches_of(system, kind, held))
    return losses or system.loss(batch, targets)


@each(SMALL)
def test_loss_is_finite_and_reaches_every_parameter(name):
    system = build(name)
    with torch.no_grad():
        for parameter in system.parameters():  # residual branches start at zero and send no gradient in the first step
            parameter.add_(0.01 * torch.randn_like(parameter))
    sizes = [(64, 1056), (96, 80)]  # no more pixels than an object takes that is learnt on the coarsest level
    batch = batch_of(system, sizes)
    targets = [bars(sizes[0], [24, 100, 200, 400, 1050]), objects(sizes[1], 3, crowd=True)]
    losses = loss_of(name, system, batch, targets)
    # Each image draws one of MultiPathNet's six classifiers: here are keys that draw each.
    drawn = {int(torch.randint(6, (), generator=torch.Generator().manual_seed(key))): key for key in range(40)}
    for number in drawn.values() if name == "multipath-small" else ():
        further = loss_of(name, system, replace(part_of(batch, 1), keys=[number]), targets[1:])
        losses |= {f"{key} {number}": loss for key, loss in further.items()}
    assert all(loss.total.dtype == torch.float32 and loss.total.shape == () for loss in losses.values())
    total(losses).backward()
    for key, parameter in system.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        assert parameter.grad.abs().sum() > 0, key


@each(SMALL)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_images_without_objects_train(name, precision):
    system = build(name)
    size = (16, 16)  # whose coarsest maps have one cell
    nothing = [with_points(Instances.empty(size, has_masks=True))] * 2
    with torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
        losses = loss_of(name, system, batch_of(system, [size] * 2), nothing)
    total(losses).backward()
    for key, parameter in system.named_parameters():
        taken = parameter.grad is not None
        assert torch.isfinite(parameter.grad).all() if taken else kinds_of(name), key  # several processes wait for gradients
    assert all(torch.isfinite(loss.total) for loss in losses.values())


@each([name for name in SMALL if needs_proposals(system_of(name))])
@pytest.mark.parametrize("sides", [[], [20], [900]])
def test_parts_without_a_region_take_part_too(name, sides):
    """Whatever levels of a pyramid the regions are on, and if there are none: several processes wait for all gradients."""
    system = build(name)
    batch = batch_of(system, [(480, 480)])
    given = bars((960, 960), sides)  # twice the input's size
    given = replace(given, scores=torch.ones(len(sides)), keypoints=None)
    total(system.loss(batch.with_proposals([given]), [bars((480, 480), [40])[:0]])).backward()
    missing = [key for key, parameter in system.named_parameters() if parameter.grad is None]
    assert not missing


@each([name for name in SMALL if not kinds_of(name)])
def test_only_crowds_train_like_nothing_to_find(name):
    system, batch = build(name), batch_of(build(name), [(64, 64)])
    crowd, nothing = ([target] for target in (objects((64, 64), 1, crowd=True), objects((64, 64), 1)[:0]))
    crowded, empty = loss_of(name, system, batch, crowd), loss_of(name, system, batch, nothing)
    assert torch.isfinite(total(crowded))
    idle = [key for key, loss in empty.items() if float(loss.total.detach()) == 0]
    assert idle  # at least of boxes
    for key in idle:
        assert float(crowded[key].total.detach()) == 0, key


@each(SMALL)
def test_predictions_are_sorted_and_inside_the_true_image(name):
    system = build(name)
    batch = batch_of(system, [(40, 100), (70, 50)])
    with torch.inference_mode():
        found = system.predict(batch)
    for instances, (height, width) in zip(found, batch.original_sizes, strict=True):
        assert instances.image_size == (height, width)
        assert len(instances) > 0
        scores = instances.scores.tolist()
        assert scores == sorted(scores, reverse=True)
        assert (instances.boxes >= 0).all()
        assert (instances.boxes <= torch.tensor([width, height, width, height])).all()
        if system.task.has_keypoints:
            x, y, sure = instances.keypoints.unbind(-1)
            assert len(x) == len(instances)
            assert ((x >= 0) & (x <= width) & (y >= 0) & (y <= height) & (sure > 0) & (sure <= 1)).all()
        if system.task.has_masks:
            assert instances.masks.image_size == (height, width)
            assert len(instances.masks) == len(instances)


@each(SMALL)
def test_images_of_equal_size_answer_alone_as_together(name):
    system = build(name)
    batch = batch_of(system, [(64, 96)] * 3)
    with torch.inference_mode():
        together = system.predict(batch)
        alone = [system.predict(part_of(batch, i))[0] for i in range(3)]
    for a, b in zip(together, alone, strict=True):
        assert torch.allclose(a.boxes, b.boxes, atol=1e-2)
        assert torch.allclose(a.scores, b.scores, atol=1e-5)
        assert a.labels.tolist() == b.labels.tolist()
        if system.task.has_keypoints:
            assert torch.allclose(a.keypoints, b.keypoints, atol=0.5)
        if system.task.has_masks:
            assert (a.masks.areas() - b.masks.areas()).abs().max() <= 0.01 * a.masks.areas().max()
            assert torch.allclose(a.masks.centroids(), b.masks.centroids(), atol=0.5)


def padded(batch, divisor):
    """The same images with more padding."""
    height, width = (-(-side // divisor) * divisor + divisor for side in batch.pixels.shape[2:])
    pixels = batch.pixels.new_zeros((len(batch), 3, height, width))
    pixels[:, :, : batch.pixels.shape[2], : batch.pixels.shape[3]] = batch.pixels
    return replace(batch, pixels=pixels)


@each(SMALL)
def test_an_image_answers_alone_as_beside_a_larger_one_padded_or_not(name):
    system = build(name)
    batch = batch_of(system, [(70, 101), (128, 160), (70, 101)])
    with torch.inference_mode():
        alone = [system.predict(part_of(batch, 0)), system.predict(padded(part_of(batch, 0), 64))]
        alone += [system.predict(replace(part_of(batch, 0), pixels=batch.pixels[:1, :, :70, :101]))]
        together = system.predict(batch)
    for (other,) in [*alone, together[:1]]:
        assert len(other) == len(together[0]) > 0
        assert torch.allclose(other.scores, together[0].scores, atol=1e-5)
        assert torch.allclose(other.boxes, together[0].boxes, atol=1e-2)  # px
        assert other.labels.tolist() == together[0].labels.tolist()
        if system.task.has_masks:
            assert (other.masks.areas() - together[0].masks.areas()).abs().max() <= 0.01 * other.masks.areas().max()
    assert [len(found) > 0 for found in together] == [True] * 3
    assert not torch.equal(together[2].scores, together[0].scores)  # each has its own answer


@each([name for name in SMALL if not kinds_of(name)])
def test_an_image_teaches_alone_as_beside_a_larger_one_padded_or_not(name):
    system = build(name)
    batch, targets = batch_of(system, [(70, 101), (128, 160)]), [objects((70, 101), 3), objects((128, 160), 4)]
    with torch.inference_mode():
        whole, more = system.loss(batch, targets), system.loss(padded(batch, 64), targets)
        parts = [system.loss(replace(part_of(batch, i), num_in_step=2), targets[i : i + 1]) for i in range(2)]
    for key, loss in whole.items():
        for total, count in (more[key], [sum(numbers) for numbers in zip(*(part[key] for part in parts), strict=True)]):
            assert torch.allclose(count, loss.count), key
            assert torch.allclose(total, loss.total, rtol=1e-4, atol=1e-4), key


@each(SMALL)
def test_neither_verb_asks_for_training_mode(name):
    system = build(name)
    batch, targets = batch_of(system, [(64, 64)]), [objects((64, 64), 2)]
    with torch.inference_mode():
        one = (total(loss_of(name, system.train(), batch, targets)), system.predict(batch)[0].boxes)
        two = (total(loss_of(name, system.eval(), batch, targets)), system.predict(batch)[0].boxes)
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])


def apart(system, batch, targets):
    """How far the gradient of two micro-batches is from that of one batch, in lengths of the latter."""
    system.zero_grad(set_to_none=True)
    total(system.loss(batch, targets)).backward()
    whole = torch.cat([p.grad.flatten() for p in system.parameters() if p.grad is not None])
    system.zero_grad(set_to_none=True)
    parts = [system.loss(part_of(batch, i), targets[i : i + 1]) for i in range(2)]
    counts = {key: sum(part[key].count for part in parts) for key in parts[0]}
    for part in parts:
        sum(loss.total / counts[key].clamp(min=1) for key, loss in part.items()).backward()
    halves = torch.cat([p.grad.flatten() for p in system.parameters() if p.grad is not None])
    return float((whole - halves).norm() / whole.norm())


@each(SMALL)
def test_two_micro_batches_give_the_gradient_of_one(name):
    """But for an image in which a ReLU's input rounds to the other side of zero: of three at most two are such, and barely."""
    system = build(name)
    targets = [objects((64, 96), 5), objects((64, 96), 1, seed=3)]
    for kind in kinds_of(name) or [None]:
        found = []
        for seed in range(3):
            lesson = patches_of(system, kind, targets, seed) if kind else (batch_of(system, [(64, 96)] * 2, seed), targets)
            found.append(apart(system, *lesson))
            if found[-1] < 1e-5:
                break
        assert found[-1] < 1e-5, found
        assert max(found) < 1e-4, found


@each(SMALL)
def test_saved_and_loaded_is_the_same(name, tmp_path):
    system = build(name, max_detections=7)
    arguments = arguments_of(name, max_detections=7)
    card = ModelCard(system_of(name), arguments, Categories(("a", "b", "c"), (4, 2, 9)), system.input)
    save_model(tmp_path, card, system.state_dict())
    again, back = open_model(tmp_path)
    batch = batch_of(system, [(64, 64)])
    with torch.inference_mode():
        (one,), (two,) = system.predict(batch), again.predict(batch)
    assert torch.equal(one.boxes, two.boxes)
    assert torch.equal(one.scores, two.scores)
    if system.task.has_masks:
        assert one.masks.to_rles() == two.masks.to_rles()
    if system.task.has_keypoints:
        assert torch.equal(one.keypoints, two.keypoints)
    assert back == card
    assert again.max_detections == 7


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@each(SMALL)
def test_gpu_agrees_with_cpu(name):
    system = build(name)
    batch, targets = batch_of(system, [(64, 96)] * 2), [objects((64, 96), 3)] * 2
    with torch.inference_mode():
        lessons = [patches_of(system, kind, targets) for kind in kinds_of(name)] or [(batch, targets)]
        cpu = sum(total(system.loss(*lesson)) for lesson in lessons)
        moved = system.to("cuda")
        gpu = sum(total(moved.loss(b.to("cuda"), [t.to("cuda") for t in there])) for b, there in lessons)
        (found, _) = moved.predict(batch.to("cuda"))
        with torch.autocast("cuda", dtype=torch.bfloat16):
            moved.predict(batch.to("cuda"))
    assert len(found[found.scores > 0].to("cpu")) == len(found)
    assert torch.allclose(cpu, gpu.cpu(), rtol=1e-2)


@each(SMALL)
def test_scores_and_coordinates_stay_float32_under_autocast(name):
    system = build(name)
    batch = batch_of(system, [(64, 96)])
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        (found,) = system.predict(batch)
    assert found.boxes.dtype == found.scores.dtype == torch.float32
    numbers = found.scores if system.task == Task.PROPOSALS else found.boxes  # boxes of masks are whole pixels
    assert len(numbers.unique()) > len(numbers.bfloat16().unique())  # not rounded on the way
