import json

import pytest

from maskwright.formats.catalog import images_to_learn_from, open_split
from maskwright.training import train
from maskwright.training.sources import open_data
from tests.conftest import add_corners, make_coco, tiny_recipe


def test_images_without_objects_or_keypoints_may_be_left_out(coco_folder, tmp_path, console):
    file = coco_folder / "annotations" / "train.json"
    add_corners(coco_folder)
    data = json.loads(file.read_text())
    first, second, third, *_ = [image["id"] for image in data["images"]]
    for entry in data["annotations"]:
        entry["iscrowd"] = int(entry["image_id"] == second)
        if entry["image_id"] == third:
            entry["keypoints"] = [0] * len(entry["keypoints"])
    data["annotations"] = [entry for entry in data["annotations"] if entry["image_id"] != first]
    file.write_text(json.dumps(data))
    dataset = open_split(coco_folder, "train")
    assert images_to_learn_from(dataset, "all") == [0, 1, 2, 3]
    assert images_to_learn_from(dataset, "objects") == [2, 3]
    assert images_to_learn_from(dataset, "keypoints") == [3]
    with pytest.raises(ValueError, match="no training image has keypoints: .* --set train_on=all"):
        images_to_learn_from(dataset.subset([0, 1, 2]), "keypoints")
    bare = make_coco(tmp_path / "bare", split="train")
    make_coco(tmp_path / "bare", split="val")
    assert bare["categories"]
    with pytest.raises(ValueError, match="none of its categories has keypoints, which keypoint-rcnn-small needs"):
        open_data(tiny_recipe(tmp_path / "bare", "train_on=keypoints", system="keypoint-rcnn-small"))
    train(tiny_recipe(coco_folder, "train_on=objects"), tmp_path / "run", device="cpu", console=console)
    assert json.loads((tmp_path / "run" / "split.json").read_text())["train"] == [third, data["images"][3]["id"]]
    fate = "2 of 4, left out (train_on: objects); --set train_on=all learns from them\n"
    assert f"training images without objects: {fate}" in console.file.getvalue()


@pytest.mark.parametrize(
    ("system", "change", "words"),
    [
        ("mask-rcnn-small", "train_on=all", "objects: 1 of 4, learnt from, as background"),
        ("keypoint-rcnn-small", "train_on=keypoints", "visible keypoints: 2 of 4, left out (train_on: keypoints); --set"),
        ("deepmask-small", "train_on=all", "objects: 1 of 4, learnt from, as background"),
        ("deepmask-small", "patches.rule=official", "objects: 1 of 4, not shown, as patches are cut from images with objects"),
        ("sharpmask-small", "patches.kinds={mask: 1}", "objects: 1 of 4, not shown"),
    ],
)
def test_a_run_says_what_becomes_of_images_without_objects(system, change, words, corners_folder):
    file, said = corners_folder / "annotations" / "train.json", []
    recipe = tiny_recipe(corners_folder, change, system=system)
    open_data(recipe, say=said.append)
    (line,) = said
    assert line.endswith(": none of 4")
    data = json.loads(file.read_text())
    first, second, *_ = [image["id"] for image in data["images"]]
    data["annotations"] = [entry for entry in data["annotations"] if entry["image_id"] != first]
    for entry in data["annotations"]:
        if entry["image_id"] == second:
            entry["keypoints"] = [0] * len(entry["keypoints"])
    file.write_text(json.dumps(data))
    open_data(recipe, say=said.append)
    assert words in said[1]
    assert said[1].startswith("training images without")


def test_a_run_of_patches_is_told_of_images_without_objects_too(coco_folder, tmp_path, console):
    file = coco_folder / "annotations" / "train.json"
    data = json.loads(file.read_text())
    data["annotations"] = [entry for entry in data["annotations"] if entry["image_id"] != data["images"][0]["id"]]
    file.write_text(json.dumps(data))
    train(tiny_recipe(coco_folder, system="deepmask-small"), tmp_path / "run", device="cpu", console=console)
    assert console.file.getvalue().count("training images without objects: 1 of 4, learnt from, as background\n") == 1
