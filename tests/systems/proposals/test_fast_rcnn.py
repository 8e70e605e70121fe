"""Detectors on proposals: Fast R-CNN and MultiPathNet."""

import pytest
import torch
from torch import nn

from maskwright.layers.assignment import IGNORED, NEGATIVE, POSITIVE, IouMatcher
from maskwright.layers.roi import RoiPool, Rois
from maskwright.structures import ImageBatch, InputSpec, Instances, Masks, ResizeRule
from maskwright.structures.boxes import iou
from maskwright.systems import SYSTEMS, Task
from maskwright.systems.proposals.multipath import FOVEAL, OVERLAPS, SkipPool, region, together
from maskwright.systems.proposals.propose_then_detect import ProposeThenDetect


def count(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


def on_meta(name):
    with torch.device("meta"):
        return SYSTEMS[name](num_classes=20)


def proposals(size, boxes):
    dense = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for row, (x0, y0, x1, y1) in zip(dense, boxes, strict=True):
        row[y0:y1, x0 : (x0 + x1) // 2 + 1] = True  # masks that are not their boxes
    masks = Masks.from_dense(dense)
    labels = torch.zeros(len(boxes), dtype=torch.int64)
    return Instances(size, boxes=torch.tensor(boxes).float(), labels=labels, scores=torch.ones(len(boxes)), masks=masks)


def test_layers_are_those_of_vgg16():
    fast, multi = on_meta("fast-rcnn-vgg16"), on_meta("multipath-vgg16")
    assert count(fast.features) == count(multi.features) == 14_714_688
    assert count(fast.box_head.fc1) == 25_088 * 4096 + 4096
    assert count(fast.box_head.fc2) == 4096 * 4096 + 4096
    assert fast.box_head.classes.weight.shape == (21, 4096)
    assert fast.box_head.deltas.weight.shape == (80, 4096)
    assert (fast.box_head.nms_iou, fast.box_head.dropout, fast.box_head.box_beta) == (0.3, 0.5, 1.0)
    assert [t.fc1.weight.shape for t in multi.box_head.towers] == [(4096, 25_088)] * 4
    mixed = [t.pool.mix.weight.shape[1] for t in (*multi.box_head.towers, multi.box_head.box_tower)]
    assert mixed == [256 + 512 + 512, 512 + 512, 512 + 512, 512, 256 + 512 + 512]
    assert [c.weight.shape for c in multi.box_head.classes] == [(21, 4 * 4096)] * 6
    assert multi.box_head.deltas.weight.shape == (80, 4096)
    assert [s.matcher.positive for s in multi.samplers] == list(OVERLAPS)


def test_regions_grow_around_their_centre():
    box = torch.tensor([[10.0, 10, 20, 20]])
    assert region(box, 4.0).tolist() == [[-5, -5, 35, 35]]
    assert region(box, 1.0).tolist() == box.tolist()
    assert FOVEAL == (1.0, 1.5, 2.0, 4.0)


def test_pooled_cells_have_length_1_before_they_are_scaled():
    pool = SkipPool({4: 3, 8: 5}, mixed=2, side=7)
    seen = {}
    pool.mix.register_forward_pre_hook(lambda module, inputs: seen.update(x=inputs[0]))
    features = {4: torch.rand(1, 3, 32, 32), 8: torch.rand(1, 5, 16, 16)}
    pool(features, Rois(torch.tensor([[10.0, 10, 100, 90], [-50, -60, 180, 190]]), torch.zeros(2, dtype=torch.int64)))
    for part in (seen["x"][:, :3], seen["x"][:, 3:]):
        assert part.flatten(1).norm(dim=1).tolist() == pytest.approx([1000, 1000], rel=1e-5)


def test_pooling_takes_the_greatest_of_rounded_cells():
    features = torch.arange(64.0).reshape(1, 1, 8, 8)
    pooled = RoiPool(2, stride=4)({4: features}, Rois(torch.tensor([[0.0, 0, 15, 15]]), torch.zeros(1, dtype=torch.int64)))
    assert pooled.flatten().tolist() == [18, 20, 34, 36]  # 15 px are rounded to cell 4; cells of the grid share cell 2


def test_far_candidates_are_no_negatives_where_a_floor_is_set():
    target = Instances((100, 100), boxes=torch.tensor([[0.0, 0, 10, 10]]), labels=torch.zeros(1, dtype=torch.int64))
    candidates = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 30], [50, 50, 60, 60]])
    matcher = IouMatcher(positive=0.5, negative=0.5, rescue_above=None, negative_from=0.1)
    assert matcher(candidates, target).kind.tolist() == [POSITIVE, NEGATIVE, IGNORED]
    assert matcher(candidates, target[:0]).kind.tolist() == [NEGATIVE] * 3


@pytest.mark.parametrize("name", ["fast-rcnn-small", "multipath-small"])
def test_detections_keep_the_masks_of_their_proposals(name):
    torch.manual_seed(0)
    system = SYSTEMS[name](num_classes=3, score_threshold=0.0)
    given = proposals((120, 160), [(10, 10, 60, 50), (70, 20, 150, 110), (5, 60, 50, 115)])
    batch = ImageBatch(torch.randn(1, 3, 64, 96), [(60, 80)], [(120, 160)], proposals=[given])
    with torch.inference_mode():
        (found,) = system.predict(batch)
    assert len(found) >= 3
    nearest = iou(found.boxes, given.boxes).argmax(dim=1)  # before training boxes hardly move
    assert len(nearest.unique()) == 3
    assert torch.equal(found.masks.windows, given.masks.windows[nearest])
    assert found.labels.max() < 3


def test_only_the_best_proposals_are_looked_at():
    torch.manual_seed(0)
    system = SYSTEMS["fast-rcnn-small"](num_classes=3, score_threshold=0.0, num_proposals=1)
    given = proposals((120, 160), [(10, 10, 60, 50), (70, 20, 150, 110)])
    batch = ImageBatch(torch.randn(1, 3, 64, 96), [(60, 80)], [(120, 160)], proposals=[given])
    with torch.inference_mode():
        (found,) = system.predict(batch)
    assert {tuple(v) for v in found.masks.windows.tolist()} == {tuple(given.masks.windows[0].tolist())}


def test_box_detectors_take_boxes_and_others_say_what_they_miss():
    system = SYSTEMS["fast-rcnn-small"](num_classes=3, score_threshold=0.0, has_masks=False)
    assert system.task == Task.BOXES
    given = proposals((120, 160), [(10, 10, 60, 50)])
    plain = Instances(given.image_size, boxes=given.boxes, labels=given.labels)
    batch = ImageBatch(torch.randn(1, 3, 64, 96), [(60, 80)], [(120, 160)], proposals=[plain])
    with torch.inference_mode():
        assert system.predict(batch)[0].masks is None
        with pytest.raises(ValueError, match=r"no masks to pass on: set arguments\.has_masks=false"):
            SYSTEMS["fast-rcnn-small"](num_classes=3, score_threshold=0.0).predict(batch)
        with pytest.raises(ValueError, match="got images without: train it with --set proposals=RUN"):
            system.predict(ImageBatch(batch.pixels, batch.sizes, batch.original_sizes))
        nothing = ImageBatch(batch.pixels, batch.sizes, batch.original_sizes, proposals=[plain[:0]])
        assert len(system.predict(nothing)[0]) == 0


def test_what_images_drew_is_put_together_positives_first():
    target = Instances((100, 100), boxes=torch.tensor([[0.0, 0, 10, 10]]), labels=torch.tensor([2]))
    system = SYSTEMS["multipath-small"](num_classes=3)
    boxes = torch.tensor([[0.0, 0, 10, 10], [50, 50, 90, 90]])
    parts = [s([boxes], [target], [torch.Generator().manual_seed(0)]) for s in system.samplers[:2]]
    both = together(parts)
    assert len(both.positives) == 4  # the proposal and the object itself, in two images
    assert both.positives.image_index.tolist() == [0, 0, 1, 1]
    assert both.labels.tolist() == [2, 2, 2, 2, 3, 3]
    assert both.rois.image_index.tolist() == [0, 0, 1, 1, 0, 1]


def test_the_mean_of_all_overlaps_decides():
    torch.manual_seed(0)
    head = SYSTEMS["multipath-small"](num_classes=2, score_threshold=0.0).box_head
    with torch.no_grad():
        for u, layer in enumerate(head.classes):
            layer.weight.zero_()
            layer.bias.copy_(torch.tensor([float(u), 0.0, 0.0]))
    features = {4: torch.rand(1, 64, 16, 16), 8: torch.rand(1, 128, 8, 8), 16: torch.rand(1, 256, 4, 4)}
    proposal = Instances((64, 64), boxes=torch.tensor([[5.0, 5, 40, 40]]), labels=torch.zeros(1, dtype=torch.int64))
    with torch.inference_mode():
        ((found, rows),) = head.answer(features, [proposal], keep=10)
    expected = torch.stack([torch.tensor([float(u), 0, 0]).softmax(0)[0] for u in range(6)]).mean()
    assert float(found.scores[0]) == pytest.approx(float(expected))
    assert rows.tolist() == [0] * len(found)


class Proposer(nn.Module):
    """Answers one square, and remembers what it was shown."""

    task, max_detections = Task.PROPOSALS, 10

    def __init__(self):
        super().__init__()
        self.input = InputSpec(resize=ResizeRule(None, None))

    def predict(self, images):
        self.seen = images.sizes
        return [proposals(size, [(10, 10, 60, 50)]) for size in images.original_sizes]


def test_a_proposer_and_a_detector_are_one_system():
    torch.manual_seed(0)
    detector = SYSTEMS["fast-rcnn-small"](num_classes=3, score_threshold=0.0, short_px=60)
    whole = ProposeThenDetect(Proposer(), detector)
    image = torch.randint(0, 255, (90, 120, 3), dtype=torch.uint8)
    plain = ImageBatch.collate([whole.input.to_pixels(image)], original_sizes=[(90, 120)], size_divisor=32, keys=[0])
    direct = ImageBatch.collate([detector.input.to_pixels(image)], original_sizes=[(90, 120)], size_divisor=32, keys=[0])
    direct = direct.with_proposals([proposals((90, 120), [(10, 10, 60, 50)])])
    with torch.inference_mode():
        (mine,), (theirs,) = whole.predict(plain), detector.predict(direct)
        target = Instances((90, 120), boxes=torch.tensor([[10.0, 10, 60, 50]]), labels=torch.tensor([1]))
        losses, expected = whole.loss(plain, [target]), detector.loss(direct, [target.resize((60, 80))])
    assert whole.proposer.seen == [(90, 120)]
    assert torch.allclose(mine.scores, theirs.scores, atol=1e-4)
    assert torch.allclose(mine.boxes, theirs.boxes, atol=0.05)
    assert float(losses["class"].total) == pytest.approx(float(expected["class"].total), rel=1e-3)
    whole.max_detections = 7
    assert detector.max_detections == 7
    assert whole.class_rows()["detector.box_head.classes.weight"] == 1


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_pixels_are_converted_between_specs(order):
    image = torch.randint(0, 255, (40, 50, 3), dtype=torch.uint8)
    source = InputSpec(resize=ResizeRule(None, None), channel_order="bgr", value_range=255, mean=(1, 2, 3), std=(4, 5, 6))
    wanted = InputSpec(resize=ResizeRule(24, None), channel_order=order)
    batch = ImageBatch.collate([source.to_pixels(image)], original_sizes=[(40, 50)], size_divisor=32)
    converted = wanted.convert(batch, source)
    assert converted.sizes == [(24, 30)]
    assert torch.allclose(converted.pixels[0, :, :24, :30], wanted.to_pixels(image), atol=1e-4)
