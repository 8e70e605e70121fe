import json

import pytest
from PIL import Image

from maskwright.data.transforms import Flip
from maskwright.recipes import find_recipe
from maskwright.structures import COCO_PERSON
from maskwright.training import train
from maskwright.training.distributed import Processes
from maskwright.training.opening import _flips_in_words, open_run
from maskwright.training.step import begin_stage
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


def renamed(folder, names):
    """The same keypoints under other names."""
    for file in (folder / "annotations").glob("*.json"):
        data = json.loads(file.read_text())
        for category in data["categories"]:
            category["keypoints"] = names
        file.write_text(json.dumps(data))


def opened(recipe, out, console, resume=False):
    """The run, before its first step, and what is said of flips."""
    console.file.truncate(0)
    run = open_run(recipe, out, None, resume=resume, device="cpu", processes=Processes(), console=console)
    return run, [line for line in console.file.getvalue().replace("\0", "").splitlines() if "left-right flips" in line]


WORDS = "keypoints that trade places in left-right flips: "


def test_a_run_says_which_keypoints_trade_places(corners_folder, tmp_path, console):
    recipe = tiny_recipe(corners_folder, system="keypoint-rcnn-small")
    run, said = opened(recipe, tmp_path / "a", console)
    assert said == [f"{WORDS}left_top/right_top, left_bottom/right_bottom"]
    flip = next(step for step in begin_stage(run, run.recipe.stages[0]).source.transform.steps if isinstance(step, Flip))
    assert flip.schema.flip_order == (1, 0, 3, 2)
    for changes in (["augment.horizontal_flip=0"], []):
        system = "keypoint-rcnn-small" if changes else "mask-rcnn-small"
        assert opened(tiny_recipe(corners_folder, *changes, system=system), tmp_path / system, console)[1] == []
    renamed(corners_folder, [f"{side}{k}" for k in (1, 2) for side in "lr"])
    assert opened(recipe, tmp_path / "b", console)[1] == [f"{WORDS}l1/r1, l2/r2"]
    console.width = 300
    renamed(corners_folder, ["nw", "ne", "se", "sw"])
    assert opened(recipe, tmp_path / "c", console)[1] == [
        f"{WORDS}none, as no two names differ in left and right alone: each stays what it is. "
        'Name those that do with --set "flip_pairs=[[nw, ne]]", or set augment.horizontal_flip=0'
    ]
    run, said = opened(recipe.with_changes(["flip_pairs=[[nw, ne], [sw, se]]"]), tmp_path / "d", console)
    assert said == [f"{WORDS}nw/ne, sw/se"]
    for dataset in (run.train, run.val):
        assert dataset.categories.keypoints.flip_order == (1, 0, 3, 2)
    assert run.card.categories == run.train.categories
    assert opened(recipe.with_changes(["flip_pairs=[]"]), tmp_path / "e", console)[1] == [f"{WORDS}none"]


def test_many_pairs_are_said_in_short(console):
    assert _flips_in_words(COCO_PERSON, find_recipe("keypoint-rcnn-small")) == (
        f"{WORDS}left_eye/right_eye, left_ear/right_ear, left_shoulder/right_shoulder and 5 more pairs"
    )


@pytest.mark.parametrize(
    ("system", "pairs", "message"),
    [
        (
            "keypoint-rcnn-small",
            "[[left_top, right_to]]",
            "flip_pairs name 'right_to', which is no keypoint: did you mean right_t",
        ),
        ("keypoint-rcnn-small", "[[left_top, right_top], [left_top, right_bottom]]", "flip_pairs name 'left_top' twice"),
        ("mask-rcnn-small", "[[left_top, right_top]]", "flip_pairs are of keypoints, which mask-rcnn-small does not learn"),
    ],
)
def test_pairs_that_cannot_be_are_named(system, pairs, message, corners_folder, tmp_path, console):
    with pytest.raises(ValueError, match=message):
        opened(tiny_recipe(corners_folder, f"flip_pairs={pairs}", system=system), tmp_path / "run", console)
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_with_the_pairs_it_began_with(corners_folder, tmp_path, console, monkeypatch):
    """Version 0.1 did not know l and r that are the first letter of a word."""
    renamed(corners_folder, ["ltop", "rtop", "rfoot", "lfoot"])
    recipe = tiny_recipe(corners_folder, system="keypoint-rcnn-small")
    with monkeypatch.context() as before:
        before.setattr("maskwright.structures.keypoints._mirrored", lambda names, side: [])
        train(recipe, tmp_path / "run", device="cpu", console=console)
    run, _ = opened(recipe, tmp_path / "run", console, resume=True)
    assert run.train.categories.keypoints.flip_pairs == ()
    assert opened(recipe, tmp_path / "new", console)[0].train.categories.keypoints.flip_pairs == ((0, 1), (3, 2))


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
