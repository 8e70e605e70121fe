"""Patches: where they are cut, what they show, and that batches are mixed as the paper says."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from maskwright.data.loader import Address, training_batches
from maskwright.data.patches import (
    APART_OCTAVES,
    APART_PX,
    Objects,
    OfficialSampler,
    PaperSampler,
    PatchAugmentation,
    TrainingPatches,
)
from maskwright.data.transforms import Compose, Flip
from maskwright.formats.catalog import open_split
from maskwright.structures import InputSpec, PatchBatch, PatchGeometry, ResizeRule
from maskwright.systems.proposals.deepmask import window_labels
from tests.conftest import make_coco

SPEC = InputSpec(resize=ResizeRule(None, None))
GEOMETRY = PatchGeometry(160, 16, 92, (-3.0, 2.0))
NOTHING = Compose([])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def folder_of(root, boxes, *, size=(300, 400), crowd=(), empty=0):
    """A data set of one image with white rectangles x, y, w, h on black, and further images without objects."""
    (root / "images").mkdir(parents=True)
    (root / "annotations").mkdir()
    pixels = np.zeros((*size, 3), dtype=np.uint8)
    data = {"images": [], "annotations": [], "categories": [{"id": 7, "name": "box"}, {"id": 9, "name": "rare"}]}
    for i, (x, y, w, h) in enumerate(boxes):
        pixels[y : y + h, x : x + w] = 255
        entry = {"id": i + 1, "image_id": 1, "category_id": 9 if i == 0 else 7, "bbox": [x, y, w, h], "iscrowd": 0}
        entry |= {"area": w * h, "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}
        if i in crowd:
            counts = [size[0] * x + y, *[h, size[0] - h] * (w - 1), h]
            counts.append(size[0] * size[1] - sum(counts))
            entry |= {"iscrowd": 1, "segmentation": {"size": list(size), "counts": counts}}
        data["annotations"].append(entry)
    for number in range(1 + empty):
        Image.fromarray(pixels if number == 0 else pixels * 0).save(root / "images" / f"{number}.png")
        data["images"].append({"id": number + 1, "file_name": f"{number}.png", "height": size[0], "width": size[1]})
    (root / "annotations" / "train.json").write_text(json.dumps(data))
    return open_split(root, "train")


def objects_of(dataset, spec=SPEC, **options):
    return Objects(dataset, spec, GEOMETRY, **{"min_area_px": 100, "min_side_px": 5, **options})


def patches_of(dataset, *, kinds, augment=NOTHING, num_batches=4, batch_size=4):
    return TrainingPatches(
        PaperSampler(objects_of(dataset)),
        spec=SPEC,
        augment=PatchAugmentation(NOTHING, augment),
        kinds=kinds,
        num_batches=num_batches,
        batch_size=batch_size,
        seed=0,
    )


def scale_of(patch):
    return GEOMETRY.input_px / (patch.window[2] - patch.window[0])


def test_positives_are_nearly_canonical(tmp_path):
    dataset = folder_of(tmp_path, [(100, 90, 80, 40)])
    sampler = PaperSampler(objects_of(dataset))
    g = generator()
    sides, offsets = [], []
    for _ in range(10_000):
        patch = sampler.mask(g)
        scale = scale_of(patch)
        x0, y0, x1, y1 = patch.window
        sides.append(80 * scale)
        offsets.append([((x0 + x1) / 2 - 140) * scale, ((y0 + y1) / 2 - 110) * scale])
        assert x1 - x0 == y1 - y0
    offsets = np.array(offsets)
    slack = 0.01 * 92  # corners are whole pixels
    assert 92 * 2**-0.25 - slack <= min(sides) < 78.5
    assert 108 < max(sides) <= 92 * 2**0.25 + slack
    assert 15 < offsets.max() <= 17
    assert -17 <= offsets.min() < -15
    assert abs(offsets.mean()) < 0.5


@pytest.mark.parametrize("box", [(60, 70, 10, 10), (30, 20, 200, 150), (3, 3, 40, 60), (380, 280, 10, 10)])
def test_labels_lie_where_the_object_is_seen(tmp_path, box):
    patches = patches_of(folder_of(tmp_path, [box]), kinds={"mask": 1.0})
    for seed in range(20):
        g = generator(seed)
        sample = patches.read(patches.sampler.mask(g), g)
        assert sample.image.shape[0] == sample.image.shape[1]
        row = patches[Address(seed, 0)]
        label = window_labels([row.instances], GEOMETRY, side=112)[0].float()
        white = row.pixels[0] * 0.229 + 0.485
        seen = (white > 0.51)[16:-16, 16:-16].float()  # gray outside of the image, black beside the object

        def middle(weights, side):
            at = (torch.arange(side) + 0.5) / side * 160
            return (weights.sum(0) @ at / weights.sum(), weights.sum(1) @ at / weights.sum())

        for mine, theirs in zip(middle(label, 112), middle(seen, 160), strict=True):
            assert abs(float(mine - theirs)) < 1.5 * 160 / 112 / 2  # half of what resampling conventions alone would cost
        assert abs(float(label.mean() - seen.mean())) < 0.02


def test_outside_the_image_it_is_middle_gray(tmp_path):
    patches = patches_of(folder_of(tmp_path, [(0, 0, 40, 60)]), kinds={"mask": 1.0})
    row = patches[Address(0, 0)]
    assert row.pixels.shape == (3, 192, 192)
    assert row.pixels[:, 0, 0].tolist() == pytest.approx([0.0655, 0.1964, 0.4178], abs=1e-4)


def test_mirroring_moves_image_and_object_together(tmp_path):
    dataset = folder_of(tmp_path, [(100, 90, 80, 40), (200, 200, 30, 60)])
    plain, mirrored = (patches_of(dataset, kinds={"mask": 1.0}, augment=Compose(steps)) for steps in ([], [Flip(1.0)]))
    a, b = plain[Address(0, 3)], mirrored[Address(0, 3)]
    assert torch.allclose(a.pixels.flip(2), b.pixels, atol=1e-3)
    one, two = (window_labels([row.instances], GEOMETRY, side=160)[0] for row in (a, b))
    assert torch.equal(one.flip(1), two)
    assert not torch.equal(one, two)


def test_classes_are_seen_alike_often(tmp_path):
    dataset = folder_of(tmp_path, [(10, 10, 30, 30), *[(50 + 12 * i, 100, 10, 10) for i in range(20)]])
    sampler, g = PaperSampler(objects_of(dataset)), generator()
    drawn = Counter(sampler.mask(g).object for _ in range(2000))
    assert 0.45 < drawn[0] / 2000 < 0.55
    assert all(20 < drawn[i] < 90 for i in range(1, 21))


def test_crowds_and_tiny_objects_teach_no_masks(tmp_path):
    boxes = [(10, 10, 50, 50), (100, 100, 80, 60), (200, 20, 9, 9), (220, 20, 4, 60)]
    sampler, g = PaperSampler(objects_of(folder_of(tmp_path, boxes, crowd=(1,)))), generator()
    assert {sampler.mask(g).object for _ in range(200)} == {0}
    assert len(objects_of(sampler.objects.dataset, min_area_px=4000).teaching) == 0


def test_an_object_too_thin_to_be_seen_in_its_patch_is_there(tmp_path):
    patches = patches_of(folder_of(tmp_path, [(20, 100, 360, 5)]), kinds={"mask": 1.0})
    for index in range(16):
        row = patches[Address(0, index)]
        assert len(row.instances) == 1
        assert window_labels([row.instances], GEOMETRY, side=112).shape == (1, 112, 112)


def test_half_of_the_score_patches_hold_an_object_and_the_others_keep_the_papers_distance(tmp_path):
    boxes = [(40, 40, 30, 20), (200, 100, 90, 70), (120, 220, 50, 60), (300, 30, 80, 80)]
    dataset = folder_of(tmp_path, boxes, crowd=(3,), empty=1)
    sampler, g = PaperSampler(objects_of(dataset)), generator()
    drawn = [sampler.score(g) for _ in range(3000)]
    assert abs(np.mean([p.object >= 0 for p in drawn]) - 0.5) < 0.03
    negatives = [p for p in drawn if p.object < 0]
    assert {p.image for p in negatives} == {0, 1}
    nearest = []
    for patch in negatives:
        scale = scale_of(patch)
        x, y = (patch.window[0] + patch.window[2]) / 2, (patch.window[1] + patch.window[3]) / 2
        assert 2**-3.05 <= scale <= 2**2.1
        assert -1 <= x <= 401
        assert -1 <= y <= 301
        for bx, by, w, h in boxes if patch.image == 0 else []:
            octaves = abs(np.log2(92 / max(w, h)) - np.log2(scale))
            distance = np.hypot(x - bx - w / 2, y - by - h / 2) * scale
            assert octaves >= APART_OCTAVES - 0.05 or distance >= APART_PX - 2  # corners are whole pixels
            nearest.append(max(octaves / APART_OCTAVES, distance / APART_PX))
        if patch.image == 0:
            assert not (300 < x < 380 and 30 < y < 110)  # inside a crowd there may be anything
    assert min(nearest) < 1.1  # they come as close as they may


def test_positive_scores_come_from_all_sizes_alike_often(tmp_path):
    boxes = [(10, 10, 120, 120), *[(150 + 12 * i, 200, 10, 10) for i in range(15)]]
    sampler, g = PaperSampler(objects_of(folder_of(tmp_path, boxes))), generator()
    drawn = Counter(p.object for p in (sampler.score(g) for _ in range(2000)) if p.object >= 0)
    assert 0.4 < drawn[0] / sum(drawn.values()) < 0.6


def test_official_rule_centres_its_positives_and_keeps_its_distances(tmp_path):
    boxes = [(40, 40, 30, 20), (200, 100, 92, 70), (120, 220, 50, 60)]
    dataset = folder_of(tmp_path, boxes, empty=1)
    objects = objects_of(dataset)
    sampler, g = OfficialSampler(objects), generator()
    at_scale = objects.side * 2**sampler.octaves
    assert (at_scale > 92).all()
    assert (at_scale <= 92 * 2**0.25 + 1e-9).all()
    expected = [-(np.ceil(4 * np.log2(side / 92)) - 1) / 4 for side in (30, 92, 60)]
    assert sampler.octaves.tolist() == pytest.approx(expected)
    drawn = [sampler.score(g) for _ in range(1500)]
    assert abs(np.mean([p.object >= 0 for p in drawn]) - 0.5) < 0.04
    for patch in drawn:
        scale = scale_of(patch)
        x, y = (patch.window[0] + patch.window[2]) / 2, (patch.window[1] + patch.window[3]) / 2
        assert patch.image == 0
        if patch.object >= 0:
            bx, by, w, h = boxes[patch.object]
            assert np.hypot(x - bx - w / 2, y - by - h / 2) <= 1
            assert scale == pytest.approx(2 ** sampler.octaves[patch.object], rel=0.02)
        else:
            octave = round(4 * np.log2(scale)) / 4
            own = objects.centre * 2 ** sampler.octaves[:, None]
            near = np.hypot(*(own - np.array([x, y]) * scale).T) < 48 - 3
            assert not (near & (np.abs(sampler.octaves - octave) <= 2.5)).any()


def test_batches_are_of_one_kind_and_kinds_are_mixed(tmp_path):
    dataset = folder_of(tmp_path, [(100, 90, 80, 40)])
    patches = patches_of(dataset, kinds={"mask": 0.5, "score": 0.5}, num_batches=2000, batch_size=2)
    kinds = Counter(patches.kind_of(0, batch) for batch in range(2000))
    assert abs(kinds["score"] / 2000 - 0.5) < 0.04
    assert [patches.kind_of(0, b) for b in range(50)] != [patches.kind_of(1, b) for b in range(50)]
    batches = training_batches(patches, workers=0)
    for number in range(6):
        batch = next(batches)
        assert isinstance(batch.images, PatchBatch)
        assert batch.images.kind == patches.kind_of(0, number)
        assert batch.images.pixels.shape == (2, 3, 192, 192)
        if batch.images.kind == "mask":
            assert [len(t) for t in batch.targets] == [1, 1]


def test_what_a_system_draws_by_does_not_tell_the_label(tmp_path):
    patches = patches_of(folder_of(tmp_path, [(100, 90, 80, 40)]), kinds={"score": 1.0}, num_batches=50, batch_size=8)
    rows = [patches[Address(0, i)] for i in range(400)]
    has_object = torch.tensor([len(row.instances) > 0 for row in rows]).float()
    draws = torch.stack([torch.rand(8, generator=generator(row.key)) for row in rows])
    assert 0.4 < float(has_object.mean()) < 0.6
    correlation = torch.corrcoef(torch.cat([has_object[:, None], draws], dim=1).T)[0, 1:]
    assert float(correlation.abs().max()) < 0.2


def test_patches_depend_on_neither_workers_nor_where_one_begins(tmp_path):
    patches = patches_of(folder_of(tmp_path, [(100, 90, 80, 40)]), kinds={"mask": 0.5, "score": 0.5}, num_batches=3)

    def first(workers, start, count):
        batches = training_batches(patches, workers=workers, start=start)
        return [next(batches) for _ in range(count)]

    straight, forked, later = first(0, 0, 5), first(1, 0, 5), first(0, 3, 2)
    for a, b in zip(straight, [*forked[:3], *later], strict=True):
        assert torch.equal(a.images.pixels, b.images.pixels)
        assert a.images.keys == b.images.keys
        assert a.images.kind == b.images.kind
    assert not torch.equal(straight[0].images.pixels, straight[3].images.pixels)  # another epoch


def test_labels_look_at_masks_of_the_file(tmp_path):
    patches = patches_of(folder_of(tmp_path, [(100, 90, 150, 130)]), kinds={"mask": 1.0})
    for index in range(4):
        row = patches[Address(0, index)]
        assert row.instances.masks.image_size == row.instances.image_size == (192, 192)
        assert row.instances.masks.bitmap_size == row.original_size != (192, 192)


def test_sizes_are_those_of_the_input_frame(tmp_path):
    dataset = folder_of(tmp_path, [(100, 90, 80, 40)])
    halved = objects_of(dataset, spec=InputSpec(resize=ResizeRule(None, 200)))
    assert halved.octave[0] == pytest.approx(np.log2(92 / 40))
    patch = PaperSampler(halved).mask(generator())
    assert 77 < 80 * scale_of(patch) < 110


def test_an_unreadable_image_is_named(tmp_path):
    make_coco(tmp_path, images=1, split="train", size=(200, 300))
    dataset = open_split(tmp_path, "train")
    patches = patches_of(dataset, kinds={"mask": 1.0})
    dataset.image_path(0).write_bytes(b"no image")
    with pytest.raises(ValueError, match=dataset.image_path(0).name):
        next(training_batches(patches, workers=0))
