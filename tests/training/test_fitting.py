"""Sizes that suit a data set, held against data whose objects have one known size."""

import json

import numpy as np
import pytest
from PIL import Image

from maskwright.formats.catalog import open_split
from maskwright.formats.dataset import Categories
from maskwright.recipes import find_recipe, parse_recipe, read_recipe
from maskwright.runs import ModelCard, open_model, save_model
from maskwright.runs.checkpoints import build_system
from maskwright.runs.starting import arguments_of
from maskwright.systems.rcnn.sizes import MASK_SMALL
from maskwright.training import train
from maskwright.training.fitting import (
    SHORT_SIDES,
    Objects,
    anchors_for,
    best_scale,
    bounds_for,
    detections_for,
    fitted,
    jitter_for,
    overlap_of_anchors,
    shown_well,
    sides,
)
from tests.conftest import make_coco, tiny_recipe


def squares(side, images=4, image=(400, 600), count=1):
    """Objects of one side in images of one size."""
    boxes = np.full((images * count, 2), float(side))
    return Objects(boxes, np.tile(np.array([image]), (images * count, 1)), np.full(images, count))


def coco(folder, size, boxes, images=3):
    """A data set whose images all show these boxes, xyxy px."""
    (folder / "images").mkdir(parents=True)
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "thing"}]}
    for i in range(1, images + 1):
        Image.new("RGB", (size[1], size[0])).save(folder / "images" / f"{i}.png")
        content["images"].append({"id": i, "file_name": f"{i}.png", "height": size[0], "width": size[1]})
        for x0, y0, x1, y1 in boxes:
            outline = [x0, y0, x1, y0, x1, y1, x0, y1]
            entry = {"id": len(content["annotations"]) + 1, "image_id": i, "category_id": 1, "segmentation": [outline]}
            content["annotations"].append({**entry, "iscrowd": 0, "area": (x1 - x0) * (y1 - y0)})
    (folder / "annotations").mkdir()
    for split in ("train", "val"):
        (folder / "annotations" / f"{split}.json").write_text(json.dumps(content))
    return folder


def test_an_object_is_shown_well_between_16_px_and_nine_tenths_of_the_window():
    sizes = np.array([[16.0, 16.0], [15.9, 16.0], [230.0, 20.0], [231.0, 20.0]])
    assert shown_well(sizes, 256) == 0.5
    assert sides(np.array([[4.0, 9.0]])).tolist() == [6.0]


@pytest.mark.parametrize(
    ("side", "short"),
    [
        (380, 256),  # as high as the image: nothing is shown whole, so the fastest
        (300, 256),
        (24, 288),  # 16 px from a short side of 267 on
        (20, 320),
        (10, 640),
        (2, 256),  # too small at any scale
    ],
)
def test_the_short_side_is_the_smallest_that_shows_nearly_all(side, short):
    assert best_scale(squares(side), SHORT_SIDES, (256,)) == (short, 256)


def test_a_larger_window_must_show_a_tenth_more():
    large = Objects(np.concatenate([np.full((9, 2), 380.0), np.full((1, 2), 100.0)]), np.full((10, 2), 400), np.ones(10, int))
    assert best_scale(large, (256, 288), (256, 320))[1] == 320  # at 256 px of short side they have 243 px
    few = Objects(np.concatenate([np.full((1, 2), 380.0), np.full((19, 2), 100.0)]), np.full((20, 2), 400), np.ones(20, int))
    assert best_scale(few, (256, 288), (256, 320))[1] == 256


def test_jitter_keeps_large_objects_in_the_window_and_small_ones_visible():
    assert jitter_for(np.full((5, 2), 230.4), 256) == (0.5, 1.3)  # they fill it: no larger than need be
    assert jitter_for(np.full((5, 2), 20.0), 256) == (0.7, 1.6)
    assert jitter_for(np.full((5, 2), 160.0), 256) == (0.5, 1.44)


def test_overlap_of_anchors_is_that_of_the_best_around_one_point():
    sizes = np.array([[32.0, 32.0], [64.0, 32.0], [16.0, 16.0]])
    inside = (45.2548 * 22.6274) / (64 * 32)  # the anchor of ratio one half lies inside the second
    assert overlap_of_anchors(sizes, (32,)).tolist() == pytest.approx([1.0, inside, 0.25], rel=1e-4)


def test_anchors_double_and_meet_the_objects():
    assert anchors_for(np.full((5, 2), 20.0), 1) == (20,)
    ladder = anchors_for(np.array([[24.0, 24.0], [48, 48], [96, 96], [192, 192], [384, 384]]), 5)
    assert ladder == (24, 48, 96, 192, 384)


def test_bounds_leave_the_largest_objects_to_the_last_level():
    assert bounds_for(np.full((5, 2), 256.0), 3) == (32, 64, 128)
    assert bounds_for(np.full((5, 2), 10.0), 3) == (24, 48, 96)
    assert bounds_for(np.full((5, 2), 4000.0), 3) == (64, 128, 256)


def test_a_quarter_more_detections_than_any_image_has():
    assert [detections_for(np.array([n])) for n in (0, 3, 80, 81, 375, 5000)] == [100, 100, 100, 200, 500, 1000]


def test_what_is_named_stays_and_nothing_is_chosen_twice(tmp_path):
    dataset = open_split(coco(tmp_path / "data", (300, 400), [(10, 10, 60, 60), (100, 100, 280, 280)]), "train")
    said = []
    recipe = fitted(find_recipe("mask-rcnn-small"), dataset, said.append)
    assert recipe.fitted == tuple(said)
    assert recipe.arguments["long_px"] == 2 * recipe.arguments["short_px"]
    assert recipe.stages[0].augment.crop_px in (256, 320)
    assert fitted(recipe, dataset, said.append) is recipe
    assert parse_recipe(recipe.model_dump(mode="json")) == recipe
    by_hand = find_recipe("mask-rcnn-small").with_changes(
        ["arguments.short_px=512", "arguments.max_detections=7", "augment.crop_px=null", "augment.jitter=[1,1]"]
    )
    chosen = fitted(by_hand, dataset, said.append)
    assert (chosen.arguments["short_px"], chosen.arguments["max_detections"]) == (512, 7)
    assert (chosen.stages[0].augment.crop_px, chosen.stages[0].augment.jitter) == (None, (1.0, 1.0))
    assert chosen.arguments["anchors"]
    off = fitted(find_recipe("mask-rcnn-small").with_changes(["fit_sizes=false"]), dataset, said.append)
    assert not off.arguments
    assert (off.stages[0].augment.crop_px, off.stages[0].augment.jitter) == (256, (0.5, 1.6))


def test_all_systems_of_a_comparison_see_the_same(tmp_path):
    dataset = open_split(coco(tmp_path / "data", (300, 400), [(10, 10, 60, 60), (100, 100, 280, 280)]), "train")
    names = ("mask-rcnn-lite", "embedmask-lite", "mnc-lite", "fcis-small", "fcos-lite", "fast-rcnn-lite", "mask-rcnn-c4-small")
    found = [fitted(find_recipe(name), dataset, print) for name in names]
    assert len({(r.arguments["short_px"], r.stages[0].augment.crop_px, r.stages[0].augment.jitter) for r in found}) == 1


def test_data_without_objects_has_the_usual_sizes(tmp_path):
    dataset = open_split(coco(tmp_path / "data", (300, 400), []), "train")
    recipe = fitted(find_recipe("mask-rcnn-small"), dataset, print)
    assert recipe.fitted == ("no objects to choose sizes by: they are the usual ones",)
    with pytest.raises(ValueError, match="no objects to choose the scales of the pyramid from"):
        fitted(find_recipe("sharpmask-small"), dataset, print)


def test_weights_to_start_from_keep_the_anchors_they_were_trained_with(tmp_path):
    dataset = open_split(coco(tmp_path / "data", (300, 400), [(10, 10, 40, 40)]), "train")
    recipe = find_recipe("mask-rcnn-small")
    usual = fitted(recipe, dataset, print)
    kept = {"4": [11], "8": [22], "16": [44], "32": [88], "64": [176]}
    started = fitted(recipe, dataset, print, {"anchors": kept, "short_px": 100})  # at which nothing can be seen
    assert started.arguments["anchors"] == kept != usual.arguments["anchors"]
    assert started.arguments["short_px"] == usual.arguments["short_px"]
    near = usual.arguments["short_px"] + 7
    assert fitted(recipe, dataset, print, {"short_px": near}).arguments["short_px"] == near


def test_weights_of_an_earlier_version_keep_the_anchors_it_had(tmp_path):
    """Which it did not save: they were no argument."""
    arguments = {"num_classes": 1, "short_px": 512}
    system = build_system("mask-rcnn-small", arguments)
    save_model(tmp_path, ModelCard("mask-rcnn-small", arguments, Categories(("a",), (1,)), system.input), system.state_dict())
    assert arguments_of(tmp_path)["anchors"] == MASK_SMALL.anchors
    assert arguments_of(tmp_path)["short_px"] == 512


def test_a_run_saves_what_it_chose_and_goes_on_with_it(tmp_path, console):
    data = tmp_path / "data"
    make_coco(data, split="train", seed=1)
    make_coco(data, split="val", seed=2)
    recipe = tiny_recipe(data, "fit_sizes=true", "arguments={num_proposals: 50}", "epochs=1")
    train(recipe, tmp_path / "run", device="cpu", console=console)
    saved = read_recipe(tmp_path / "run" / "recipe.yaml")
    assert saved.fitted
    _, card = open_model(tmp_path / "run")
    for name in ("short_px", "long_px", "max_detections"):
        assert card.arguments[name] == saved.arguments[name]
    assert card.input.resize.short_px == saved.arguments["short_px"]


def test_recipes_of_version_0_1_say_it_by_another_name():
    data = find_recipe("deepmask-small").model_dump(mode="json")
    del data["fit_sizes"], data["fitted"]
    assert parse_recipe({**data, "octaves_from_data": True}).fit_sizes
    assert not parse_recipe({**data, "octaves_from_data": False}).fit_sizes
