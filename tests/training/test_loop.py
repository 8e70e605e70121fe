import inspect
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from maskwright.api import resume
from maskwright.data.loader import TrainingImages, training_batches
from maskwright.data.transforms import Compose
from maskwright.formats.catalog import open_split
from maskwright.systems import SYSTEMS
from maskwright.training import loop, train
from maskwright.training.run import STATE
from tests.conftest import make_coco, tiny_recipe
from tests.training.runs import Killed, weights


def test_run_folder_explains_itself(tiny_run):
    names = {p.name for p in tiny_run.iterdir()} - {"report.html", "report-data.html"}  # which other tests write
    assert names == {"recipe.yaml", "split.json", "metrics.jsonl", "best", "last"}
    (line,) = [json.loads(text) for text in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    assert line["epoch"] == 1
    assert set(line["train_loss"]) == set(line["val_loss"]) == {"rpn_objectness", "rpn_box", "class", "box", "mask"}
    assert line["segm"]["max_detections"] == [1, 10, 20]
    assert json.loads((tiny_run / "split.json").read_text())["val"] == [5100, 5200, 5300, 5400]
    assert sorted(p.name for p in (tiny_run / "last").iterdir()) == [
        "model.json",
        "training.safetensors",
        "weights.safetensors",
    ]


def test_same_seed_same_weights(coco_folder, tmp_path, console):
    for name in ("a", "b"):
        train(tiny_recipe(coco_folder, f"workers={int(name == 'b')}"), tmp_path / name, device="cpu", console=console)
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(a[k], b[k]) for k in a)
    train(tiny_recipe(coco_folder, "seed=1"), tmp_path / "c", device="cpu", console=console)
    assert not torch.equal(a["rpn.conv.weight"], weights(tmp_path / "c")["rpn.conv.weight"])


def test_resume_equals_never_having_stopped(coco_folder, tmp_path, console, monkeypatch):
    recipe = tiny_recipe(coco_folder, "epochs=3", "checkpoint_steps=1", "evaluate_every=9")
    train(recipe, tmp_path / "whole", device="cpu", console=console)

    steps = {"count": 0}
    usual = loop.take_step

    def killed(*arguments):
        steps["count"] += 1
        if steps["count"] == 4:  # in the middle of the second epoch
            raise Killed
        return usual(*arguments)

    monkeypatch.setattr(loop, "take_step", killed)
    with pytest.raises(Killed):
        train(recipe, tmp_path / "cut", device="cpu", console=console)
    monkeypatch.setattr(loop, "take_step", usual)
    train(recipe, tmp_path / "cut", resume=True, device="cpu", console=console)
    whole, cut = load_file(tmp_path / "whole" / "last" / STATE), load_file(tmp_path / "cut" / "last" / STATE)
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[k], cut[k]) for k in whole)


def test_the_best_model_is_that_of_the_highest_score(coco_folder, tmp_path, console, monkeypatch):
    scores, kept, usual = iter([0.1, 0.4, 0.2]), [], loop.validate

    def evaluate(run, stage):
        losses, (*others, decisive) = usual(run, stage)
        kept.append({name: value.clone() for name, value in run.scored.state_dict().items()})
        return losses, [*others, replace(decisive, ap=next(scores))]

    monkeypatch.setattr(loop, "validate", evaluate)
    train(tiny_recipe(coco_folder, "epochs=3"), tmp_path / "run", device="cpu", console=console)
    said = [line for line in console.file.getvalue().replace("\n", " ").split("epoch ")[1:] if "validation loss" in line]
    assert ["(best)" in line for line in said] == [True, True, False]
    best = weights(tmp_path / "run", "best")
    assert all(torch.equal(best[k], kept[1][k]) for k in best)
    assert any(not torch.equal(best[k], kept[2][k]) for k in best)


def test_run_killed_in_its_first_step_can_be_resumed(coco_folder, tmp_path, console, monkeypatch):
    usual = loop.take_step

    def killed(*arguments):
        raise Killed

    monkeypatch.setattr(loop, "take_step", killed)
    with pytest.raises(Killed):
        train(tiny_recipe(coco_folder), tmp_path / "run", device="cpu", console=console)
    monkeypatch.setattr(loop, "take_step", usual)
    train(tiny_recipe(coco_folder), tmp_path / "run", resume=True, device="cpu", console=console)
    make_coco(coco_folder, split="train", images=5)
    with pytest.raises(ValueError, match=r"split\.json: the images of the data set have changed"):
        train(tiny_recipe(coco_folder), tmp_path / "run", resume=True, device="cpu", console=console)
    make_coco(coco_folder, split="train")
    for split in ("train", "val"):
        file = coco_folder / "annotations" / f"{split}.json"
        file.write_text(file.read_text().replace('"box"', '"crate"'))
    with pytest.raises(
        ValueError,
        match=r"its classes are crate \(id 7\), disc \(id 3\), but were box \(id 7\), disc \(id 3\) when the run began",
    ):
        train(tiny_recipe(coco_folder), tmp_path / "run", resume=True, device="cpu", console=console)


def test_validation_images_without_objects_give_a_model_but_no_score(coco_folder, tmp_path, console):
    file = coco_folder / "annotations" / "val.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "annotations": []}))
    train(tiny_recipe(coco_folder), tmp_path / "run", device="cpu", console=console)
    said = console.file.getvalue()
    assert "no objects in the validation images" in said
    assert "mask AP - AP50 - (best)" in said
    assert (tmp_path / "run" / "best" / "weights.safetensors").is_file()


def test_builder_defaults_are_saved_with_the_run(tiny_run):
    arguments = json.loads((tiny_run / "best" / "model.json").read_text())["arguments"]
    given = {"num_classes": 2, "max_detections": 20, "num_proposals": 50, "short_px": 64, "long_px": 96}
    assert given.items() <= arguments.items()
    assert (arguments["score_threshold"], arguments["backbone"], arguments["box_hidden"]) == (0.05, "resnet18", 128)
    assert arguments["anchors"] == {"4": [24], "8": [48], "16": [96], "32": [192], "64": [384]}
    assert set(arguments) == set(inspect.signature(SYSTEMS["mask-rcnn-small"]).parameters)


def test_a_run_folder_never_imports_code(tiny_run, tmp_path):
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    (run / "recipe.yaml").write_text((tiny_run / "recipe.yaml").read_text().replace("mask-rcnn-small", "os:system"))
    with pytest.raises(ValueError, match="a folder alone never imports code"):
        resume(run)
    with pytest.raises(ValueError, match="no checkpoint to resume from"):
        resume(tmp_path)


def test_box_only_annotations_train_a_box_system(coco_folder, tmp_path, console):
    for split in ("train", "val"):
        file = coco_folder / "annotations" / f"{split}.json"
        data = json.loads(file.read_text())
        for annotation in data["annotations"]:
            del annotation["segmentation"]
        file.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="some annotations have no segmentation"):
        train(tiny_recipe(coco_folder), tmp_path / "run", device="cpu", console=console)
    metrics = train(tiny_recipe(coco_folder, system="faster-rcnn-small"), tmp_path / "run", device="cpu", console=console)
    assert metrics.kind == "bbox"


def test_the_rate_is_scaled_and_said(coco_folder, tmp_path, console):
    changes = ["batch_size=2", "optimizer.lr=0.01", "optimizer.lr_images=8", "schedule.kind=step", "schedule.warmup_steps=0"]
    train(tiny_recipe(coco_folder, *changes), tmp_path / "run", device="cpu", console=console)
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text())["lr"] == pytest.approx(0.0025)
    said = " ".join(console.file.getvalue().split())
    assert "training: 2 steps of 2 images, 1 epochs, adamw, learning rate 0.0025 (0.01 for 8 images, in proportion)" in said


def test_training_stops_on_no_images(coco_folder):
    nothing = open_split(coco_folder, "train").subset([])
    spec = SYSTEMS["mask-rcnn-small"](num_classes=1).input
    images = TrainingImages(nothing, spec=spec, transform=Compose([]), batch_size=2, seed=0)
    with pytest.raises(ValueError, match="no images to train on"):
        training_batches(images, workers=0)
