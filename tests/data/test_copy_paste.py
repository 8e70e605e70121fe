"""Pasted objects, beside pixels that say whose they are."""

import json
from collections import Counter

import numpy as np
import pytest
import torch

from maskwright.data.copy_paste import paste_objects
from maskwright.data.loader import Address, TrainingImages, training_batches
from maskwright.data.transforms import Compose, Flip, ScaleJitterCrop
from maskwright.formats.catalog import open_split
from maskwright.structures import InputSpec, Instances, Masks, ResizeRule
from tests.conftest import make_coco
from tests.structures.test_memory import peak_rise

CROWD = 9  # a label


def picture(size, *, first_label, seed):
    """An image whose pixels are the labels of its objects, which do not overlap; on the ground each has a number below 0."""
    rng = np.random.default_rng(seed)
    pixels = -1.0 - np.arange(size[0] * size[1], dtype=np.float32).reshape(size) - 1000 * first_label
    labels = [first_label + k for k in range(4)] + [CROWD]
    for label in labels:
        y, x = rng.integers(0, size[0] - 1), rng.integers(0, size[1] - 1)
        h, w = rng.integers(1, 7, 2)
        blob = pixels[y : y + h, x : x + w]
        blob[(blob < 0) & (rng.random(blob.shape) < 0.9)] = label
    there = [label for label in labels if (pixels == label).any()]
    masks = Masks.from_dense(torch.from_numpy(np.stack([pixels == label for label in there])))
    labels = torch.tensor(there)
    boxes = masks.boxes() + torch.tensor([-0.25, -0.25, 0.25, 0.25])  # as people annotate them
    instances = Instances(size, boxes=boxes, labels=labels, masks=masks, is_crowd=labels == CROWD)
    return torch.from_numpy(pixels)[None].expand(3, -1, -1).clone(), instances


@pytest.mark.parametrize("second_size", [(20, 24), (9, 40), (12, 10)])
def test_masks_are_the_pixels_that_are_left_of_each_object(second_size):
    seen = Counter()
    for seed in range(60):
        first = picture((20, 24), first_label=10, seed=seed)
        second = picture(second_size, first_label=20, seed=1000 + seed)
        before = first[0].clone()
        pixels, found = paste_objects(first, second, torch.Generator().manual_seed(seed))
        assert torch.equal(first[0], before)
        assert found.image_size == tuple(pixels.shape[1:]) == (20, 24)
        labels = found.labels.tolist()
        visible = set(pixels[0][pixels[0] > 0].tolist()) - {CROWD}
        assert set(labels) - {CROWD} == visible
        assert len(labels) == len(set(labels))  # the second one's crowd is not pasted
        for label, mask, box, tight, is_crowd in zip(
            labels, found.masks.to_dense(), found.boxes, found.masks.boxes(), found.is_crowd.tolist(), strict=True
        ):
            assert is_crowd == (label == CROWD)
            origin, (own, _, _) = (second, pixels) if label >= 20 else (first, pixels)
            assert torch.equal(mask, (before[0] if is_crowd else own) == label)
            whole = int((origin[0][0] == label).sum())
            if int(mask.sum()) == whole:
                assert label >= 20 or torch.equal(box, first[1].boxes[first[1].labels == label][0])
                assert (box - tight).abs().max() <= 0.25
                seen["whole"] += 1
            else:
                assert torch.equal(box, tight)
                seen["pasted and cut" if label >= 20 else "cut"] += 1
        if not (pixels > 19).any():
            assert torch.equal(pixels, before)
            assert found is first[1]
        ground = (pixels[0] < 0) | (pixels[0] < 20)
        assert torch.equal(pixels[:, ground], before[:, ground])
        seen["vanished"] += len(set(first[1].labels.tolist()) - set(labels))
        seen["under a crowd"] += int((pixels[0][before[0] == CROWD] > 19).any())
        seen[f"pasted {len([label for label in labels if label >= 20])}"] += 1
    assert min(seen[key] for key in ("whole", "cut", "vanished", "under a crowd", "pasted 1", "pasted 2", "pasted 3")) > 0
    assert (seen["pasted and cut"] > 0) == (second_size == (9, 40))


def test_boxes_that_are_not_cut_stay_as_annotated():
    masks = Masks.from_dense(torch.eye(8, dtype=torch.bool).reshape(1, 8, 8))
    first = Instances((8, 8), boxes=torch.tensor([[0.5, 0.5, 7.5, 7.5]]), labels=torch.tensor([0]), masks=masks)
    corner = torch.zeros(1, 8, 8, dtype=torch.bool)
    for place, box in (((0, 7), [0.5, 0.5, 7.5, 7.5]), ((0, 0), [1.0, 1.0, 8.0, 8.0])):
        corner.zero_()[(0, *place)] = True
        masks = Masks.from_dense(corner)
        second = Instances((8, 8), boxes=masks.boxes(), labels=torch.tensor([1]), masks=masks)
        pixels = torch.zeros(3, 8, 8)
        _, found = paste_objects((pixels, first), (pixels, second), torch.Generator().manual_seed(0))
        assert found.boxes[found.labels == 0].tolist() == [box]
        assert found.is_crowd is None


def test_the_second_image_lies_anywhere_over_the_first():
    """Rows of five over rows of three, columns of two within columns of four; every object alike often."""
    numbers = torch.arange(10.0).reshape(5, 2).expand(3, 5, 2)
    masks = Masks.from_dense(torch.eye(10, dtype=torch.bool).reshape(10, 5, 2))
    second = Instances((5, 2), boxes=masks.boxes(), labels=torch.arange(10), masks=masks)
    nothing = Instances.empty((3, 4), has_masks=True)
    places, objects, counts = Counter(), Counter(), Counter()
    for seed in range(400):
        generator = torch.Generator().manual_seed(seed)
        pixels, found = paste_objects((torch.full((3, 3, 4), -1.0), nothing), (numbers, second), generator)
        assert int((pixels[0] >= 0).sum()) == len(found)
        counts[len(found)] += 1
        objects.update(found.labels.tolist())
        row, column = (pixels[0] >= 0).nonzero()[0].tolist()
        number = int(pixels[0, row, column])
        places[number // 2 - row, column - number % 2] += 1
    assert set(places) == {(top, left) for top in range(3) for left in range(3)}
    assert min(places.values()) > 20
    assert set(counts) == {1, 2, 3, 4, 5, 6}
    assert min(counts.values()) > 40
    assert set(objects) == set(range(10))


def test_pasted_objects_bring_their_keypoints_and_hide_others():
    def person(x, *points):
        mask = torch.zeros(1, 10, 20, dtype=torch.bool)
        mask[0, :, x : x + 6] = True
        masks = Masks.from_dense(mask)
        keypoints = torch.tensor([points])
        return Instances((10, 20), boxes=masks.boxes(), labels=torch.tensor([0]), masks=masks, keypoints=keypoints)

    first = person(2, (3.5, 4.0, 2.0), (6.5, 4.0, 2.0), (8.0, 10.0, 2.0), (7.0, 2.0, 1.0), (0.0, 0.0, 0.0))
    second = person(6, (6.5, 1.0, 2.0), (9.0, 9.0, 1.0), (0.0, 0.0, 0.0), (7.0, 7.0, 2.0), (20.0, 10.0, 2.0))
    pixels = torch.zeros(3, 10, 20)
    _, found = paste_objects((pixels, first), (pixels, second), torch.Generator().manual_seed(0))
    behind, pasted = found.keypoints
    assert torch.equal(pasted, second.keypoints[0])
    assert behind[:, 2].tolist() == [2, 1, 1, 1, 0]  # (8, 10) lies on the edge of a pixel that is covered
    assert torch.equal(behind[:, :2], first.keypoints[0, :, :2])
    assert found.boxes.tolist() == [[2, 0, 6, 10], [6, 0, 12, 10]]


SPEC = InputSpec(resize=ResizeRule(48, 400), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
MOVES = Compose([ScaleJitterCrop(SPEC.resize, 48, 0.3, 1.6), Flip()])


def images_of(folder, **options):
    return TrainingImages(open_split(folder, "train"), spec=SPEC, transform=MOVES, batch_size=2, seed=0, **options)


def test_pasting_depends_on_neither_workers_nor_where_one_begins(coco_folder):
    images = images_of(coco_folder, copy_paste=0.7)

    def first(workers, start, count):
        batches = training_batches(images, workers=workers, start=start)
        return [next(batches) for _ in range(count)]

    straight, forked, later = first(0, 0, 6), first(2, 0, 6), first(0, 4, 2)
    for a, b in zip([*straight, *straight[4:]], [*forked, *later], strict=True):
        assert a.ids == b.ids
        assert torch.equal(a.images.pixels, b.images.pixels)
        assert all(torch.equal(s.boxes, t.boxes) for s, t in zip(a.targets, b.targets, strict=True))
        assert all(torch.equal(s.masks.buffer, t.masks.buffer) for s, t in zip(a.targets, b.targets, strict=True))


def test_as_many_images_are_pasted_into_as_asked_for(coco_folder):
    plain = images_of(coco_folder)
    for share in (0.0, 0.3, 1.0):
        images, pasted = images_of(coco_folder, copy_paste=share), 0
        for epoch in range(40):
            for index in range(4):
                row, still = images[Address(epoch, index)], plain[Address(epoch, index)]
                assert (row.id, row.key, row.original_size, row.pixels.shape) == (
                    (still.id, still.key, still.original_size, still.pixels.shape)
                )
                is_changed = not torch.equal(row.pixels, still.pixels)
                assert not is_changed or len(row.instances)
                pasted += is_changed
        assert (share == 0) == (pasted == 0)
        assert pasted <= 160 * share + 15
        assert pasted >= 160 * share * 0.7 - 15  # windows without an object give none


def test_the_second_image_is_another_one_where_there_is_one(tmp_path):
    for count in (1, 3):
        make_coco(tmp_path / str(count), images=count)
        images = images_of(tmp_path / str(count), copy_paste=1.0)
        drawn = {images._another(0, torch.Generator().manual_seed(seed)) for seed in range(40)}
        assert drawn == ({0} if count == 1 else {1, 2})


def test_a_second_image_that_cannot_be_read_is_named(coco_folder):
    (coco_folder / "images" / "train_1.png").write_bytes(b"no image")
    images = images_of(coco_folder, copy_paste=1.0)
    said = {answer for epoch in range(8) if isinstance(answer := images[Address(epoch, 0)], str)}
    assert len(said) == 1
    assert "train_1.png: not an image" in said.pop()


def test_crowds_of_a_file_are_not_pasted(coco_folder):
    file = coco_folder / "annotations" / "train.json"
    data = json.loads(file.read_text())
    for entry in data["annotations"]:
        entry["iscrowd"] = 1
    file.write_text(json.dumps(data))
    images, plain = images_of(coco_folder, copy_paste=1.0), images_of(coco_folder)
    assert all(torch.equal(images[Address(0, i)].pixels, plain[Address(0, i)].pixels) for i in range(4))


def test_pasting_makes_no_mask_of_the_whole_image():
    """300 objects on four megapixels are 1.2 GB dense."""
    g = torch.Generator().manual_seed(0)
    corners = (torch.rand(300, 2, generator=g) * 1900).int()
    crops = [(np.ones((60, 80), dtype=bool), (x, y, x + 80, y + 60)) for x, y in corners.tolist()]
    masks = Masks.from_crops(crops, (2000, 2000))
    instances = Instances((2000, 2000), boxes=masks.boxes(), labels=torch.zeros(300, dtype=torch.int64), masks=masks)
    pixels = torch.zeros(3, 2000, 2000)
    rise, (_, found) = peak_rise(lambda: paste_objects((pixels, instances), (pixels, instances.flip(horizontal=True)), g))
    assert len(found) > 300
    assert rise < 250e6  # pixels twice, and indices of those that are covered
