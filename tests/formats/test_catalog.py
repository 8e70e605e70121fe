import json
import shutil

import pytest

from maskwright.formats.catalog import open_datasets, open_split, split_dataset
from maskwright.recipes import DataOptions, find_recipe
from maskwright.training.sources import open_data
from tests.conftest import make_coco


def test_plain_layout(coco_folder):
    train, val = open_datasets(coco_folder)
    assert len(train) == len(val) == 4
    assert train.image_path(0).is_file()


def test_coco_2017_layout(coco_folder, tmp_path):
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        shutil.copy(coco_folder / "annotations" / f"{split}.json", root / "annotations" / f"instances_{split}2017.json")
        shutil.copytree(coco_folder / "images", root / f"{split}2017")
    train, val = open_datasets(root)
    assert train.image_path(0).parent.name == "train2017"
    assert val.image_path(0).is_file()


def test_cocos_keypoints_for_those_who_learn_them(corners_folder, tmp_path):
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        path = tmp_path / "coco" / "annotations" / f"person_keypoints_{split}2017.json"
        shutil.copy(corners_folder / "annotations" / f"{split}.json", path)
        shutil.copytree(corners_folder / "images", tmp_path / "coco" / f"{split}2017")
    alone = open_split(tmp_path / "coco", "val")
    assert alone.path.name == "person_keypoints_val2017.json"
    for split in ("train", "val"):
        path = tmp_path / "coco" / "annotations" / f"person_keypoints_{split}2017.json"
        path.with_name(f"instances_{split}2017.json").write_text(path.read_text())
    assert open_split(tmp_path / "coco", "val").path.name == "instances_val2017.json"
    assert open_split(tmp_path / "coco", "val", keypoints=True).path.name == "person_keypoints_val2017.json"
    for name, wanted in (("keypoint-rcnn-small", "person_keypoints"), ("mask-rcnn-small", "instances")):
        recipe = find_recipe(name).model_copy(update={"data": DataOptions(path=str(tmp_path / "coco"))})
        assert open_data(recipe)[0].path.name == f"{wanted}_train2017.json"


def test_roboflow_layout(coco_folder, tmp_path):
    root = tmp_path / "robo"
    for split, folder in (("train", "train"), ("val", "valid")):
        shutil.copytree(coco_folder / "images", root / folder)
        shutil.copy(coco_folder / "annotations" / f"{split}.json", root / folder / "_annotations.coco.json")
    train, val = open_datasets(root)
    assert train.image_path(0).is_file()
    assert val.image_path(0).parent.name == "valid"


def test_one_file_is_split_by_a_seed(coco_folder):
    file, images = coco_folder / "annotations" / "train.json", coco_folder / "images"
    train, val = open_datasets(file, images=images, val_fraction=0.25, seed=3)
    again, _ = open_datasets(file, images=images, val_fraction=0.25, seed=3)
    assert (len(train), len(val)) == (3, 1)
    assert set(train.image_ids) | set(val.image_ids) == {100, 200, 300, 400}
    assert train.image_ids.tolist() == again.image_ids.tolist()
    splits = {tuple(open_datasets(file, images=images, val_fraction=0.25, seed=s)[1].image_ids) for s in range(12)}
    assert len(splits) > 1


def test_split_does_not_depend_on_the_order_of_the_file(coco_folder):
    file, images = coco_folder / "annotations" / "train.json", coco_folder / "images"
    data = json.loads(file.read_text())
    _, val = open_datasets(file, images=images, val_fraction=0.5)
    data["images"].reverse()
    file.write_text(json.dumps(data))
    _, again = open_datasets(file, images=images, val_fraction=0.5)
    assert set(val.image_ids) == set(again.image_ids)


def test_what_is_missing_is_said(coco_folder, tmp_path):
    with pytest.raises(ValueError, match="there is no such file or folder"):
        open_datasets(tmp_path / "nope")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="found no train annotations; expected annotations/train.json"):
        open_datasets(tmp_path / "empty")
    with pytest.raises(ValueError, match="add --images DIR"):
        open_datasets(coco_folder / "annotations" / "train.json", val_fraction=0.5)
    with pytest.raises(ValueError, match="has a validation split of its own: leave --val-fraction away"):
        open_datasets(coco_folder, val_fraction=0.5)
    with pytest.raises(ValueError, match="add --val-fraction"):
        open_datasets(coco_folder / "annotations" / "train.json", images=coco_folder / "images")
    with pytest.raises(ValueError, match="expected a share between 0 and 1"):
        split_dataset(open_split(coco_folder, "train").subset([0]), 0.5, 0)
    shutil.rmtree(coco_folder / "images")
    with pytest.raises(ValueError, match="there is no such image folder"):
        open_datasets(coco_folder)


def test_splits_must_have_the_same_classes(coco_folder):
    file = coco_folder / "annotations" / "val.json"
    data = json.loads(file.read_text())
    data["categories"][0]["name"] = "crate"
    file.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="its categories differ"):
        open_datasets(coco_folder)
    train, val = open_datasets(coco_folder, classes=["disc"])
    assert train.categories == val.categories


def test_splits_may_not_share_images(coco_folder):
    shutil.copy(coco_folder / "annotations" / "train.json", coco_folder / "annotations" / "val.json")
    with pytest.raises(ValueError, match=r"4 images are in the training split too, for example .*train_0\.png"):
        open_datasets(coco_folder)


def test_folder_with_images_option_is_refused(coco_folder):
    with pytest.raises(ValueError, match="leave --images away"):
        open_split(coco_folder, "train", images=coco_folder)


def test_images_in_sub_folders(tmp_path):
    data = make_coco(tmp_path, images=1)
    (tmp_path / "images" / "deep").mkdir()
    shutil.move(tmp_path / "images" / "train_0.png", tmp_path / "images" / "deep" / "a b.png")
    data["images"][0]["file_name"] = "deep\\a b.png"
    (tmp_path / "annotations" / "train.json").write_text(json.dumps(data))
    assert open_split(tmp_path, "train").read(0).image.shape == (96, 128, 3)
