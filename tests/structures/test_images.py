import json

import numpy as np
import pytest
import torch
from PIL import Image

from maskwright.structures import ImageBatch, InputSpec, Instances, Intensity, ResizeRule

D2 = ResizeRule(800, 1333)


@pytest.mark.parametrize(
    ("size", "rounding", "expected"),  # spec § 3.2
    [
        ((427, 640), "floor", (800, 1199)),
        ((427, 640), "half_up", (800, 1199)),
        ((427, 641), "floor", (800, 1200)),
        ((427, 641), "half_up", (800, 1201)),
        ((480, 640), "floor", (800, 1066)),
        ((480, 640), "half_up", (800, 1067)),
        ((375, 1242), "floor", (402, 1333)),
        ((375, 1242), "half_up", (402, 1333)),
        ((1, 2000), "half_up", (1, 1333)),
    ],
)
def test_resized_sizes(size, rounding, expected):
    assert ResizeRule(800, 1333, rounding=rounding).size(size) == expected


def test_rule_without_sides_keeps_the_size():
    assert ResizeRule(None, None).size((123, 457)) == (123, 457)
    assert ResizeRule(None, 100).size((50, 200)) == (25, 100)


def test_pixels_equal_pillow_and_are_normalized():
    rng = np.random.default_rng(0)
    array = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
    spec = InputSpec(resize=ResizeRule(30, 100))
    ours = spec.to_pixels(torch.from_numpy(array))
    theirs = np.asarray(Image.fromarray(array).resize((40, 30), Image.Resampling.BILINEAR), dtype=np.float32) / 255
    theirs = (theirs - np.array(spec.mean)) / np.array(spec.std)
    assert ours.shape == (3, 30, 40)
    assert np.abs(ours.permute(1, 2, 0).numpy() - theirs).max() < 1 / 255 / 0.22  # Pillow rounds to bytes


def test_bgr_255_swaps_channels():
    image = torch.tensor([[[10, 20, 30]]], dtype=torch.uint8)
    spec = InputSpec(ResizeRule(None, None), channel_order="bgr", value_range=255, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert spec.to_pixels(image)[:, 0, 0].tolist() == [30, 20, 10]


def test_spec_survives_json():
    spec = InputSpec(resize=ResizeRule(512, None, "floor", antialias=False), intensity=Intensity("window", 10, 400))
    assert InputSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize("arguments", [("window",), ("window", 5.0, 5.0), ("full", 0.0, 1.0), ("percentile", 99.0, 1.0)])
def test_intensity_needs_a_range_that_makes_sense(arguments):
    with pytest.raises(ValueError, match="need low < high"):
        Intensity(*arguments)


def test_batch_pads_right_and_bottom_to_the_divisor():
    batch = ImageBatch.collate(
        [torch.ones(3, 30, 40), torch.ones(3, 33, 20)], original_sizes=[(60, 80), (33, 20)], size_divisor=32
    )
    assert batch.pixels.shape == (2, 3, 64, 64)
    assert batch.pixels[0].sum() == 3 * 30 * 40
    assert batch.pixels[1, 0, 32, 19] == 1
    found = [
        Instances(size, boxes=torch.tensor([[0.0, 0, 90, 15]]), labels=torch.zeros(1, dtype=torch.int64))
        for size in batch.sizes
    ]
    first, second = batch.to_original_frame(found)
    assert first.boxes.tolist() == [[0, 0, 80, 30]]
    assert first.image_size == (60, 80)
    assert second.boxes.tolist() == [[0, 0, 20, 15]]


def test_random_draws_need_keys():
    batch = ImageBatch.collate([torch.ones(3, 4, 4)], original_sizes=[(4, 4)], size_divisor=4)
    with pytest.raises(ValueError, match="no keys"):
        batch.generators()
