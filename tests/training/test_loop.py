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


@pytest.fixture
def scored(monkeypatch):
    """Makes evaluations give the scores of a list, one after the other; those that are left are in it."""
    usual, known = loop.validate, []

    def give(*scores):
        left = list(scores)

        def evaluate(run, stage):
            known[:] = known or [usual(run, stage)]
            losses, (*others, decisive) = known[0]
            return losses, [*others, replace(decisive, ap=left.pop(0))] if stage.is_scored else []

        monkeypatch.setattr(loop, "validate", evaluate)
        return left

    return give


def same(a, b):
    """Everything training goes on from, bit for bit."""
    first, second = (load_file(run / "last" / STATE) for run in (a, b))
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_patience_ends_a_stage_whose_score_stays(coco_folder, tmp_path, console, scored):
    left = scored(0.1, 0.4, 0.2, 0.4, 0.3, 0.9)  # as good is not better
    train(tiny_recipe(coco_folder, "epochs=9", "patience=3"), tmp_path / "run", device="cpu", console=console)
    assert left == [0.9]
    assert "stopped after step 10 of 18, out of patience: 3 evaluations without a score over 40.0" in console.file.getvalue()
    lines = [json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["segm"]["ap"] for line in lines] == [0.1, 0.4, 0.2, 0.4, 0.3]


@pytest.mark.parametrize("scores", [(0.1, 0.05, 0.2, 0.15, 0.3, 0.25, 0.2), (-1,) * 7])  # -1: there is nothing to find
def test_patience_begins_anew_with_each_better_score(scores, coco_folder, tmp_path, console, scored):
    left = scored(*scores)
    train(tiny_recipe(coco_folder, "epochs=7", "patience=2"), tmp_path / "run", device="cpu", console=console)
    assert left == []
    assert "stopped" not in console.file.getvalue()  # with its last step at the latest it is just done


def test_a_stopped_run_is_done_however_often_it_is_killed(coco_folder, tmp_path, console, monkeypatch, scored):
    recipe, scores = tiny_recipe(coco_folder, "epochs=9", "checkpoint_steps=1", "patience=2"), (0.2, 0.3, 0.3, 0.1, 0.9)
    scored(*scores)
    train(recipe, tmp_path / "whole", device="cpu", console=console)
    usual, out = loop.take_step, tmp_path / "cut"
    left = scored(*scores)
    for kill_at in (3, 5, 7):
        steps = []

        def killed(run, *arguments, kill_at=kill_at, steps=steps):
            if run.step == kill_at:
                raise Killed
            steps.append(run.step)
            return usual(run, *arguments)

        monkeypatch.setattr(loop, "take_step", killed)
        with pytest.raises(Killed):
            train(recipe, out, resume=out.exists(), device="cpu", console=console)
    monkeypatch.setattr(loop, "take_step", usual)
    train(recipe, out, resume=True, device="cpu", console=console)
    assert left == [0.9]
    assert same(tmp_path / "whole", out)
    monkeypatch.setattr(loop, "take_step", lambda *_: pytest.fail("took a step"))
    metrics = (out / "metrics.jsonl").read_text()
    console.file.truncate(0)
    train(recipe, out, resume=True, device="cpu", console=console)
    assert "stopped after step 8 of 18, out of patience: 2 evaluations without" in console.file.getvalue()
    assert same(tmp_path / "whole", out)
    assert (out / "metrics.jsonl").read_text() == metrics


def test_patience_is_of_a_stage(coco_folder, tmp_path, console, scored):
    """A stage starts lower than the one before ended; one that is not scored takes all its steps."""
    recipe = tiny_recipe(coco_folder, "epochs=4", "patience=1")
    (stage,) = recipe.stages
    unscored = stage.model_copy(update={"is_scored": False})
    recipe = recipe.model_copy(update={"stages": (stage, unscored, stage)})
    left = scored(0.5, 0.5, 0.2, 0.3, 0.1, 0.9)
    train(recipe, tmp_path / "run", device="cpu", console=console)
    assert left == [0.9]
    lines = [json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = {stage: [line["step"] for line in lines if line["stage"] == stage] for stage in range(3)}
    assert steps == {0: [2, 4], 1: [2, 4, 6, 8], 2: [2, 4, 6]}
    assert "1 evaluation without a score over 50.0" in console.file.getvalue()
    assert "1 evaluation without a score over 30.0" in console.file.getvalue()


def test_patience_needs_scores(coco_folder, tmp_path, console):
    with pytest.raises(ValueError, match="patience counts evaluations without a better score, but no stage is scored"):
        tiny_recipe(coco_folder, "patience=1", "is_scored=false")
    with pytest.raises(ValueError, match="patience: Input should be greater than 0"):
        tiny_recipe(coco_folder, "patience=0")
    file = coco_folder / "annotations" / "val.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "annotations": []}))
    with pytest.raises(ValueError, match=r"val\.json: has no objects, so that no score could end a stage: leave patience"):
        train(tiny_recipe(coco_folder, "patience=1"), tmp_path / "run", device="cpu", console=console)
    assert not (tmp_path / "run").exists()


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
    boxes = tiny_recipe(coco_folder, system="faster-rcnn-small")
    with pytest.raises(
        ValueError, match=r"train\.json: some annotations have no segmentation, which augment\.copy_paste needs"
    ):
        train(boxes.with_changes(["augment.copy_paste=0.5"]), tmp_path / "run", device="cpu", console=console)
    assert not (tmp_path / "run").exists()
    metrics = train(boxes, tmp_path / "run", device="cpu", console=console)
    assert metrics.kind == "bbox"


@pytest.mark.parametrize("system", ["embedmask-small", "faster-rcnn-small", "mask-keypoint-rcnn-small"])
def test_pasted_objects_are_learnt_from_at_large_and_tiny_scales(system, corners_folder, tmp_path, console, monkeypatch):
    usual, seen = loop.take_step, []

    def watched(run, learner):
        seen.append(learner.source.copy_paste)
        return usual(run, learner)

    monkeypatch.setattr(loop, "take_step", watched)
    jitter = ["augment.jitter=[0.1, 2.0]", "augment.jitter_axis=linear"]
    recipe = tiny_recipe(corners_folder, "augment.copy_paste=0.9", *jitter, "epochs=2", system=system)
    train(recipe, tmp_path / "run", device="cpu", console=console)
    assert seen == [0.9] * 4


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
