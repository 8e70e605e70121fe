import json

import numpy as np
import pytest
import torch
from PIL import Image

from maskwright.data.loader import Address, TrainingImages, evaluation_batches, key_of, prepare, training_batches
from maskwright.data.sample import InputSample
from maskwright.data.transforms import ColorJitter, Compose, Flip, ScaleJitterCrop, ShortSide, Transpose
from maskwright.formats.catalog import open_split
from maskwright.structures import COCO_PERSON, InputSpec, Instances, Masks, ResizeRule
from tests.conftest import make_coco

SPEC = InputSpec(resize=ResizeRule(96, 400), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def sample(seed: int = 0, size: tuple[int, int] = (60, 90)) -> InputSample:
    """An image whose red channel is the mask, so that both must move alike."""
    rng = np.random.default_rng(seed)
    dense = np.zeros((1, *size), dtype=bool)
    dense[0, 20:45, 30:70] = rng.random((25, 40)) < 0.9
    image = torch.zeros(*size, 3, dtype=torch.uint8)
    image[..., 0] = torch.from_numpy(dense[0]) * 255
    masks = Masks.from_dense(torch.from_numpy(dense))
    instances = Instances(size, boxes=masks.boxes(), labels=torch.zeros(1, dtype=torch.int64), masks=masks)
    return InputSample(image, instances, 1, "a.png")


@pytest.mark.parametrize(
    "transform",
    [
        Flip(1.0),
        Flip(1.0, horizontal=False),
        Transpose(1.0),
        ScaleJitterCrop(ResizeRule(None, None), 40, 1.0, 1.0),
        Compose([ScaleJitterCrop(ResizeRule(None, None), 48, 1.0, 1.0), Flip(1.0), Transpose(1.0)]),
    ],
)
@pytest.mark.parametrize("seed", range(5))
def test_image_and_mask_move_together(transform, seed):
    moved = transform(sample(seed), torch.Generator().manual_seed(seed))
    pixels, instances = prepare(moved, InputSpec(ResizeRule(None, None), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)))
    drawn = instances.masks.to_dense().any(dim=0) if len(instances) else torch.zeros(instances.image_size, dtype=torch.bool)
    assert torch.equal(drawn, pixels[0] > 0.5)
    assert torch.equal(instances.boxes, instances.masks.boxes())


@pytest.mark.parametrize("seed", range(8))
def test_scale_jitter_hits_the_scale_and_the_window(seed):
    transform = ScaleJitterCrop(SPEC.resize, 64, 0.5, 2.0)
    moved = transform(sample(), torch.Generator().manual_seed(seed))
    pixels, instances = prepare(moved, SPEC)
    assert max(pixels.shape[1:]) <= 64
    assert tuple(pixels.shape[1:]) == instances.image_size == moved.input_size
    scale = pixels.shape[1] / moved.image.shape[0]
    assert 0.5 * 1.6 * 0.9 < scale < 2.0 * 1.6 * 1.1  # the input's own scale is 96 / 60
    on = pixels[0] > 0.5
    drawn = instances.masks.to_dense().any(dim=0) if len(instances) else torch.zeros_like(on)
    assert (on == drawn).float().mean() > 0.9


def test_short_side_is_drawn_from_the_list():
    sizes = {ShortSide((64, 96), ResizeRule(80, 400))(sample(), torch.Generator().manual_seed(s)).input_size for s in range(20)}
    assert sizes == {(64, 96), (96, 144)}


def test_short_side_rounds_as_the_input_does():
    sizes = {}
    for rounding in ("half_up", "floor"):
        drawn = ShortSide((800,), ResizeRule(640, 1333, rounding=rounding))
        sizes[rounding] = drawn(sample(size=(480, 640)), torch.Generator()).input_size
    assert sizes == {"half_up": (800, 1067), "floor": (800, 1066)}


def test_scale_jitter_draws_all_scales_and_places():
    """What is even on a logarithmic axis has its middle at the geometric mean."""
    transform = ScaleJitterCrop(SPEC.resize, 64, 0.5, 2.0)
    scales, corners = [], set()
    rows, columns = torch.meshgrid(torch.arange(60), torch.arange(90), indexing="ij")
    for seed in range(300):
        numbered = sample()
        numbered.image[..., 1], numbered.image[..., 2] = rows, columns  # every pixel says where it was
        moved = transform(numbered, torch.Generator().manual_seed(seed))
        scales.append(moved.input_size[0] / moved.image.shape[0])
        top, left = moved.image[0, 0, 1:].tolist()
        bottom, right = moved.image[-1, -1, 1:].tolist()
        corners.add((top == 0, left == 0, bottom == 59, right == 89))
    logs = torch.tensor(scales).div(1.6).log2()
    assert logs.min() < -0.95
    assert logs.max() > 0.95
    assert abs(logs.mean()) < 0.1
    assert corners >= {(False, False, False, False), (True, False, False, False), (False, False, True, False)}
    assert any(left for _, left, *_ in corners)
    assert any(right for *_, right in corners)


@pytest.mark.parametrize("size", [(60, 90), (90, 70), (80, 80), (50, 300)])
@pytest.mark.parametrize("factor", [0.1, 0.45, 1.0, 1.3, 2.0])
def test_large_scale_jitter_is_a_window_of_the_image_fitted_into_it_and_scaled(size, factor):
    """Ghiasi et al.: scale 1 is the image as large as fits into the window."""
    transform = ScaleJitterCrop(ResizeRule(64, 64), 64, factor, factor, "linear")
    for seed in range(4):
        moved = transform(sample(size=size), torch.Generator().manual_seed(seed))
        scaled = [factor * side * 64 / max(size) for side in size]
        assert all(abs(got - min(whole, 64)) <= 1.5 for got, whole in zip(moved.input_size, scaled, strict=True))
        pixels, instances = prepare(moved, SPEC)
        assert max(pixels.shape[1:]) <= 64
        assert instances.image_size == tuple(pixels.shape[1:]) == moved.input_size


def test_scales_are_even_on_the_axis_asked_for():
    share = {}
    for axis in ("log", "linear"):
        transform = ScaleJitterCrop(ResizeRule(600, 600), 600, 0.1, 2.0, axis)
        sides = [transform(sample(size=(80, 80)), torch.Generator().manual_seed(seed)).input_size[0] for seed in range(500)]
        share[axis] = [sum(side < 600 * limit for side in sides) / 500 for limit in (0.1, 0.3, 0.6, 0.99)]
    assert share["linear"] == pytest.approx([0, 0.2 / 1.9, 0.5 / 1.9, 0.89 / 1.9], abs=0.05)
    whole = np.log(20)
    assert share["log"] == pytest.approx([0, np.log(3) / whole, np.log(6) / whole, np.log(9.9) / whole], abs=0.05)


def test_windows_without_objects_are_batches_like_others(tmp_path):
    """At large scales most windows miss the only object, at small ones it has no pixel left: both are shown."""
    data = make_coco(tmp_path, images=6, size=(200, 240))
    first = {entry["image_id"]: entry for entry in reversed(data["annotations"])}
    data["annotations"] = list(first.values())
    (tmp_path / "annotations" / "train.json").write_text(json.dumps(data))
    transform = Compose([ScaleJitterCrop(ResizeRule(64, 64), 64, 0.1, 2.0, "linear"), Flip()])
    images = TrainingImages(open_split(tmp_path, "train"), spec=SPEC, transform=transform, batch_size=2, seed=0)
    batches = training_batches(images, workers=0)
    shown = [next(batches) for _ in range(60)]
    objects = [len(targets) for batch in shown for targets in batch.targets]
    assert 0 < objects.count(0) < len(objects)
    assert min(min(size) for batch in shown for size in batch.images.sizes) < 10
    assert all(targets.masks.areas().gt(0).all() for batch in shown for targets in batch.targets)


def test_same_generator_same_augmentation():
    transform = Compose(
        [ScaleJitterCrop(SPEC.resize, 64, 0.5, 2.0), Flip(), ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3)]
    )
    before = torch.get_rng_state()
    one = transform(sample(), torch.Generator().manual_seed(7))
    torch.rand(3)
    two = transform(sample(), torch.Generator().manual_seed(7))
    assert torch.equal(one.image, two.image)
    assert one.input_size == two.input_size
    torch.set_rng_state(before)
    transform(sample(), torch.Generator().manual_seed(7))
    assert torch.equal(torch.get_rng_state(), before)  # the global generator is nobody's


def test_images_of_one_size_share_a_batch_and_no_others(tmp_path):
    """Padding would let the answers for an image depend on its neighbours."""
    data = make_coco(tmp_path, images=4, split="val", size=(60, 90))
    wide = tmp_path / "images" / data["images"][2]["file_name"]
    Image.new("RGB", (120, 60)).save(wide)
    data["images"][2]["width"] = 120
    data["annotations"] = []
    (tmp_path / "annotations" / "val.json").write_text(json.dumps(data))
    dataset = open_split(tmp_path, "val")
    batches = list(evaluation_batches(dataset, spec=SPEC, batch_size=3))
    ids = [image["id"] for image in data["images"]]
    assert [batch.ids for batch in batches] == [ids[:2], ids[2:3], ids[3:]]
    assert [len(set(batch.images.sizes)) for batch in batches] == [1, 1, 1]
    assert [batch.ids for batch in evaluation_batches(dataset, spec=SPEC, batch_size=1)] == [[i] for i in ids]


def test_rows_that_wait_for_their_batch_do_not_hold_the_file(tmp_path):
    make_coco(tmp_path, images=1, split="val", size=(600, 900))
    images = TrainingImages(open_split(tmp_path, "val"), spec=SPEC, transform=lambda sample, _: sample, batch_size=1, seed=0)
    row = images[Address(0, 0)]
    assert row.original_size == (600, 900)
    assert max(value.numel() for value in row if isinstance(value, torch.Tensor)) == row.pixels.numel() == 3 * 96 * 144


def test_color_jitter_leaves_shape_and_instances():
    changed = ColorJitter(brightness=0.5, contrast=0.5, saturation=0.5, p=1.0)(sample(), torch.Generator().manual_seed(0))
    assert changed.image.shape == (60, 90, 3)
    assert changed.image.dtype == torch.uint8
    assert not torch.equal(changed.image, sample().image)
    never = ColorJitter(brightness=0.5, contrast=0.5, saturation=0.5, p=0.0)(sample(), torch.Generator().manual_seed(0))
    assert torch.equal(never.image, sample().image)
    assert torch.equal(changed.instances.boxes, sample().instances.boxes)


@pytest.mark.parametrize("kind", ["brightness", "contrast", "saturation"])
def test_each_kind_of_color_change_does_what_it_is_called(kind):
    colorful = sample()
    colorful.image[..., 1], colorful.image[..., 2] = 40, 90
    strengths = {name: 0.5 * (name == kind) for name in ("brightness", "contrast", "saturation")}
    jitter = ColorJitter(**strengths, p=1.0)
    changed = jitter(colorful, torch.Generator().manual_seed(1)).image.float()
    before = colorful.image.float()
    assert not torch.equal(changed, before)
    factor = changed[changed > 0] / before[changed > 0]
    grey = [image @ torch.tensor([0.2989, 0.587, 0.114]) for image in (before, changed)]
    if kind == "brightness":  # all by the same factor, but for rounding and the ends of the scale
        assert factor[changed[changed > 0] < 250].std() < 0.05
    elif kind == "saturation":
        assert (grey[1] - grey[0]).abs().max() < 2
    else:  # the mean stays
        assert abs(float(grey[1].mean() - grey[0].mean())) < 8


def test_flip_needs_the_schema_of_keypoints():
    with_points = sample()
    instances = Instances(
        (60, 90), boxes=with_points.instances.boxes, labels=torch.zeros(1, dtype=torch.int64), keypoints=torch.zeros(1, 17, 3)
    )
    with_points = InputSample(with_points.image, instances, 1, "a.png")
    with pytest.raises(ValueError, match="schema"):
        Flip(1.0)(with_points, torch.Generator())
    assert len(Flip(1.0, schema=COCO_PERSON)(with_points, torch.Generator()).instances) == 1


def test_objects_that_vanish_in_the_input_frame_are_dropped():
    dense = torch.zeros(2, 100, 100, dtype=torch.bool)
    dense[0, 51, 50] = True
    dense[1, 10:60, 10:60] = True
    masks = Masks.from_dense(dense)
    tiny = InputSample(
        torch.zeros(100, 100, 3, dtype=torch.uint8),
        Instances((100, 100), boxes=masks.boxes(), labels=torch.tensor([0, 1]), masks=masks),
        1,
        "a.png",
        input_size=(10, 10),
    )
    _, instances = prepare(tiny, SPEC)
    assert instances.labels.tolist() == [1]


def test_targets_look_at_masks_of_the_file():
    """Whatever the scale, window and mirror they are shown in."""
    transform = Compose([ScaleJitterCrop(ResizeRule(24, 24), 24, 0.3, 2.0), Flip(), Transpose()])
    kept = 0
    for seed in range(20):
        moved = transform(sample(seed), torch.Generator().manual_seed(seed))
        pixels, instances = prepare(moved, SPEC)
        if not len(instances):
            continue
        assert instances.image_size == instances.masks.image_size == tuple(pixels.shape[1:])
        assert instances.masks.bitmap_size == moved.instances.image_size == tuple(moved.image.shape[:2])
        (height, width), (h, w) = moved.instances.image_size, instances.image_size
        boxes = instances.boxes * torch.tensor([width / w, height / h, width / w, height / h])
        assert torch.allclose(boxes, moved.instances.boxes)
        expected = moved.instances.masks.coverage(boxes, torch.tensor([0]), side=14, samples=4)
        assert torch.equal(instances.masks.coverage(instances.boxes, torch.tensor([0]), side=14, samples=4), expected)
        kept += 1
    assert kept > 10


def test_epoch_shows_every_image_once_grouped_by_shape(tmp_path):
    make_coco(tmp_path, images=11, split="train", size=(50, 80))
    dataset = open_split(tmp_path, "train")
    dataset.sizes[:4] = (80, 50)

    def batches_of(seed, epoch):
        return TrainingImages(dataset, spec=SPEC, transform=Flip(), batch_size=3, seed=seed).batches(epoch)

    batches = batches_of(seed=0, epoch=0)
    assert sorted(i for batch in batches for i in batch) == list(range(11))
    mixed = [batch for batch in batches if len({dataset.image_size(i)[0] > dataset.image_size(i)[1] for i in batch}) > 1]
    assert len(mixed) <= 1
    assert batches == batches_of(seed=0, epoch=0)
    assert batches != batches_of(seed=0, epoch=1)
    assert batches != batches_of(seed=1, epoch=0)


def test_batches_do_not_depend_on_workers_or_on_where_one_begins(coco_folder):
    images = TrainingImages(open_split(coco_folder, "train"), spec=SPEC, transform=Flip(), batch_size=2, seed=0)

    def first(workers, start, count):
        batches = training_batches(images, workers=workers, start=start)
        return [next(batches) for _ in range(count)]

    straight, forked, later = first(0, 0, 5), first(2, 0, 5), first(0, 3, 2)
    for a, b in zip(straight, forked, strict=True):
        assert a.ids == b.ids
        assert torch.equal(a.images.pixels, b.images.pixels)
        assert a.images.keys == b.images.keys
    assert [b.ids for b in later] == [b.ids for b in straight[3:]]
    assert torch.equal(later[0].images.pixels, straight[3].images.pixels)


def test_keys_differ_by_seed_epoch_and_image():
    assert len({key_of(s, e, i) for s in range(3) for e in range(3) for i in range(3)}) == 27
    assert key_of(1, 2, 3) == key_of(1, 2, 3)


def test_evaluation_sees_every_image_in_order(coco_folder):
    batches = list(evaluation_batches(open_split(coco_folder, "val"), spec=SPEC, batch_size=3))
    assert [b.ids for b in batches] == [[5100, 5200, 5300], [5400]]
    assert batches[0].images.original_sizes == [(96, 128)] * 3
