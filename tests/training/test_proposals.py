"""Training in two stages, on patches, and on the proposals of another run."""

import json

import pytest
import torch
from safetensors.torch import load_file

from maskwright.api import evaluate, report
from maskwright.comparison import compare
from maskwright.inference import load
from maskwright.runs.checkpoints import PROPOSER, read_model
from maskwright.systems import Task
from maskwright.systems.proposals.propose_then_detect import ProposeThenDetect
from maskwright.training import loop, train
from maskwright.training.run import STATE
from tests.conftest import make_coco, tiny_recipe, truth_as_proposals
from tests.training.runs import Killed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("proposals") / "data"
    make_coco(root, split="train", seed=1)
    make_coco(root, split="val", seed=2)
    return root


@pytest.fixture(scope="module")
def sharp_run(folder, tmp_path_factory, console_of_module):
    """A run of sharpmask-small, barely trained in both stages."""
    out = tmp_path_factory.mktemp("sharp") / "run"
    recipe = tiny_recipe(folder, "arguments.max_detections=60", system="sharpmask-small")
    train(recipe, out, device="cpu", console=console_of_module)
    text = console_of_module.file.getvalue()
    assert "objects: longer sides of" in text
    assert "pyramid: scales 2^(" in text
    return out


def test_stages_are_measured_each_by_its_own_and_the_first_is_not_scored(sharp_run):
    first, second = [json.loads(line) for line in (sharp_run / "metrics.jsonl").read_text().splitlines()]
    assert set(first["train_loss"]) <= {"mask", "score"}
    assert "segm" not in first
    assert set(second["train_loss"]) == set(second["val_loss"]) == {"refined_mask"}
    assert second["segm"]["max_detections"] == [10, 60]
    _, card = read_model(sharp_run / "best" / "weights.safetensors")
    assert card.categories.names == ("object",)
    assert len(card.arguments["octaves"]) >= 1


def test_the_second_stage_leaves_the_first_as_it_was(folder, sharp_run, tmp_path, console):
    deep = tiny_recipe(folder, "arguments.max_detections=60", system="deepmask-small")
    train(deep, tmp_path / "alone", device="cpu", console=console)
    before, after = (load_file(run / "last" / "weights.safetensors") for run in (tmp_path / "alone", sharp_run))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {name for name in after if name not in before} == {name for name in after if name.startswith("refinement.")}


@pytest.mark.parametrize("step", [2, 4])
def test_resume_equals_never_having_stopped_in_either_stage(step, folder, sharp_run, tmp_path, console, monkeypatch):
    recipe = tiny_recipe(folder, "arguments.max_detections=60", "checkpoint_steps=1", system="sharpmask-small")
    usual, steps = loop.take_step, {"count": 0}

    def killed(*arguments):
        steps["count"] += 1
        if steps["count"] == step:
            raise Killed
        return usual(*arguments)

    monkeypatch.setattr(loop, "take_step", killed)
    with pytest.raises(Killed):
        train(recipe, tmp_path / "cut", device="cpu", console=console)
    monkeypatch.setattr(loop, "take_step", usual)
    train(recipe, tmp_path / "cut", resume=True, device="cpu", console=console)
    whole, cut = (load_file(run / "last" / STATE) for run in (sharp_run, tmp_path / "cut"))
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[k], cut[k]) for k in whole)


def test_proposals_are_scored_without_classes_and_reported(sharp_run, folder, tmp_path, console):
    answer = evaluate(sharp_run, data=folder, report=tmp_path / "page.html", device="cpu", console=console)
    assert set(answer.proposals) == {"bbox", "segm"}
    assert answer.proposals["segm"].limits == (10, 60)
    assert answer.metrics["segm"].ar == pytest.approx(answer.proposals["segm"].ar["all"])
    assert "AR@10" in (tmp_path / "page.html").read_text()
    assert load(sharp_run, device="cpu").system.is_sharp
    assert not load(sharp_run, device="cpu", is_sharp=False).system.is_sharp


def test_runs_of_proposals_are_compared(sharp_run, folder, tmp_path, console):
    entries = [f"coarse: {sharp_run} is_sharp=false", f"sharp: {sharp_run}"]
    answer = compare(entries, data=folder, out=tmp_path / "compare", device="cpu", console=console)
    (table,) = answer.tables
    assert (table.task, table.decides) == ("proposals", "ar")
    assert answer.protocol.max_detections == (10, 60)
    assert {row.name for row in table.rows} == {"coarse", "sharp"}
    assert all(set(row.proposals[0]) == {"bbox", "segm"} for row in table.rows)


def test_a_detector_brings_its_proposer_along(sharp_run, folder, tmp_path, console):
    recipe = tiny_recipe(folder, f"proposals={sharp_run}", system="fast-rcnn-small")
    train(recipe, tmp_path / "run", device="cpu", console=console)
    kept = sorted(path.name for path in (sharp_run / "proposals").iterdir())
    assert [name.split("-")[0] for name in kept] == ["train", "val"]
    times = {path: path.stat().st_mtime_ns for path in (sharp_run / "proposals").iterdir()}
    train(recipe, tmp_path / "again", device="cpu", console=console)  # without proposing again
    assert times == {path: path.stat().st_mtime_ns for path in (sharp_run / "proposals").iterdir()}
    model = load(tmp_path / "run", device="cpu")
    assert isinstance(model.system, ProposeThenDetect)
    assert model.system.task == Task.INSTANCES
    assert model.card.proposer.system == "sharpmask-small"
    assert model.names == ("box", "disc")
    own, theirs = (load_file(run / "best" / "weights.safetensors") for run in (tmp_path / "run", sharp_run))
    assert all(torch.equal(own[f"{PROPOSER}{name}"], value) for name, value in theirs.items())
    result = model.predict(folder / "images" / "val_0.png", threshold=0.0)
    assert len(result.masks) == len(result.boxes)
    page = report(tmp_path / "run", device="cpu", console=console)
    assert set(page.metrics) == {"bbox", "segm", "boundary"}
    more = tiny_recipe(folder, f"proposals={sharp_run}", system="fast-rcnn-small")
    train(more, tmp_path / "more", init=tmp_path / "run", device="cpu", console=console)


def test_a_detector_on_files_takes_a_proposer_later(sharp_run, folder, tmp_path, console):
    train(tiny_recipe(folder, system="multipath-small"), tmp_path / "run", device="cpu", console=console)
    assert load(tmp_path / "run", device="cpu").card.proposer is None
    with pytest.raises(ValueError, match="got images without: train it with --set proposals=RUN"):
        load(tmp_path / "run", device="cpu").predict(folder / "images" / "val_0.png")
    with_one = load(tmp_path / "run", device="cpu", proposals=sharp_run)
    assert with_one.system.proposer.max_detections == with_one.system.detector.num_proposals == 50
    assert with_one.predict(folder / "images" / "val_0.png", threshold=0.0).masks is not None
    with pytest.raises(ValueError, match="answers instances: name one of a proposal system"):
        load(tmp_path / "run", device="cpu", proposals=tmp_path / "run")


def test_what_is_wrong_with_proposals_is_named(folder, tiny_run, tmp_path, console):
    def message(system, *changes):
        with pytest.raises(ValueError, match=r".") as error:
            train(tiny_recipe(folder, *changes, system=system), tmp_path / "run", device="cpu", console=console)
        assert not (tmp_path / "run").exists()
        return str(error.value)

    assert "fast-rcnn-small needs proposals: add --set proposals=RUN" in message("fast-rcnn-small", "proposals=null")
    assert "makes its own proposals: leave 'proposals' away" in message("mask-rcnn-small", f"proposals={tiny_run}")
    assert "is a run of mask-rcnn-small, which answers instances" in message("fast-rcnn-small", f"proposals={tiny_run}")
    assert "there is no such run, nor a folder with train.json" in message("fast-rcnn-small", "proposals=/nowhere")
    files = truth_as_proposals(folder)
    boxes = tmp_path / "boxes"
    boxes.mkdir()
    for split in ("train", "val"):
        entries = json.loads((files / f"{split}.json").read_text())
        (boxes / f"{split}.json").write_text(json.dumps([{k: v for k, v in e.items() if k != "segmentation"} for e in entries]))
    assert "set arguments.has_masks=false" in message("fast-rcnn-small", f"proposals={boxes}")
    plain = tiny_recipe(folder, f"proposals={boxes}", "arguments.has_masks=false", system="fast-rcnn-small")
    assert train(plain, tmp_path / "plain", device="cpu", console=console).kind == "bbox"
    (boxes / "val.json").write_text('[{"image_id": 1, "category_id": 7, "bbox": [0, 0, 5, 5], "score": 1}]')
    assert "val.json: 1 of 1 results cannot be scored" in message("fast-rcnn-small", f"proposals={boxes}")
    assert "its system looks at whole images" in message(
        "mask-rcnn-small", "augment.crop_px=null", "patches={kinds: {mask: 1}, batches_per_epoch: 2}"
    )
