import json

import pytest
from PIL import Image

from maskwright.training import train
from tests.conftest import make_coco, tiny_recipe


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["frozen=[backbones]"], "frozen parts backbones begin no parameter"),
        (["arguments.shrt_px=3"], "has no argument shrt_px"),
        (["losses=[mask, msk]"], "the loss has no term msk: there are rpn_objectness"),
    ],
)
def test_mistakes_are_found_before_the_first_step(coco_folder, tmp_path, console, changes, message):
    with pytest.raises(ValueError, match=message):
        train(tiny_recipe(coco_folder, *changes), tmp_path / "run", device="cpu", console=console)
    assert not (tmp_path / "run").exists()


def test_folders_and_data_are_checked_before_anything_is_written(coco_folder, tmp_path, console):
    out = tmp_path / "run"
    with pytest.raises(ValueError, match="has frozen norms or parts, which only make sense with pretrained weights"):
        train(
            tiny_recipe(coco_folder, "arguments={}", system="mask-rcnn-small").model_copy(
                update={"system": "mask-rcnn-r50-fpn"}
            ),
            out,
            device="cpu",
            console=console,
        )
    (coco_folder / "images" / "val_2.png").unlink()
    with pytest.raises(ValueError, match=r"val\.json: 1 images are missing: .*val_2\.png"):
        train(tiny_recipe(coco_folder), out, device="cpu", console=console)
    assert not out.exists()
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    with pytest.raises(ValueError, match="the folder is not empty"):
        train(tiny_recipe(coco_folder), out, device="cpu", console=console)
    with pytest.raises(ValueError, match="no checkpoint to resume from"):
        train(tiny_recipe(make_and_path(tmp_path)), out, resume=True, device="cpu", console=console)
    assert (out / "mine.txt").read_text() == "precious"


def make_and_path(tmp_path):
    for split in ("train", "val"):
        make_coco(tmp_path / "other", split=split)
    return tmp_path / "other"


def test_damaged_and_wrong_images_are_found_before_the_first_step(coco_folder, tmp_path, console):
    image = coco_folder / "images" / "train_1.png"
    whole = image.read_bytes()
    Image.new("RGB", (10, 10)).save(image)
    with pytest.raises(ValueError, match=r"train_1\.png: the upright image is 10 x 10"):
        train(tiny_recipe(coco_folder), tmp_path / "run", device="cpu", console=console)
    assert not (tmp_path / "run").exists()
    image.write_bytes(whole[: len(whole) // 2])  # the header alone is right
    with pytest.raises(ValueError, match=r"^[^\n]*train_1\.png: the image is damaged or cut off[^\n]*$"):
        train(tiny_recipe(coco_folder, "workers=1"), tmp_path / "run", device="cpu", console=console)


def test_keypoints_of_both_splits_are_the_same(corners_folder, tmp_path, console):
    file = corners_folder / "annotations" / "val.json"
    data = json.loads(file.read_text())
    for category in data["categories"]:
        category["keypoints"] = category["keypoints"][::-1]
    file.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"val\.json: its keypoints \(.*\) are not those of .*train\.json"):
        train(tiny_recipe(corners_folder, system="keypoint-rcnn-small"), tmp_path / "run", device="cpu", console=console)
    for category in data["categories"]:
        del category["keypoints"], category["skeleton"]
    file.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"val\.json: its keypoints \(none\) are not those"):
        train(tiny_recipe(corners_folder, system="keypoint-rcnn-small"), tmp_path / "run", device="cpu", console=console)
    assert not (tmp_path / "run").exists()
