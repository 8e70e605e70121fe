"""How long training is: minutes become epochs once."""

import pytest
import torch

import maskwright as mw
from maskwright.recipes import find_recipe, read_recipe
from maskwright.training import loop, timing, train
from maskwright.training.distributed import Processes
from maskwright.training.timing import Budget, epochs_in, lasting, seconds_per_epoch
from tests.conftest import tiny_recipe
from tests.training.runs import Killed, weights
from tests.training.test_distributed import forked, recipe_of


def test_budgets_are_positive_and_one():
    with pytest.raises(ValueError, match="give one of them"):
        Budget(epochs=1, minutes=1)
    for minutes in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="expected a positive number"):
            Budget(minutes=minutes)
    recipe = find_recipe("sharpmask-small")
    assert Budget(minutes=3).applied(recipe, ["seed=1"]) == recipe.with_changes(["seed=1"])
    assert [stage.epochs for stage in Budget(epochs=3).applied(recipe, ["stages.1.epochs=4"]).stages] == [3, 4]
    for change in ("epochs=2", "stages.1.epochs = 2"):
        with pytest.raises(ValueError, match=r"got '.*epochs ?= ?2' and --minutes, which both say how long to train"):
            Budget(minutes=3).applied(recipe, [change])


def test_an_epoch_takes_its_steps_times_their_median(coco_folder, monkeypatch):
    clock, durations = [0.0], iter([100.0, 50.0, *[0.25, 0.5, 0.25, 0.5, 0.25, 9.0, 0.25, 0.5]])

    def step(run, learner):
        assert {group["lr"] for group in learner.optimizer.param_groups} == {0.0}
        clock[0] += next(durations)

    monkeypatch.setattr(timing, "take_step", step)
    monkeypatch.setattr(timing.time, "monotonic", lambda: clock[0])
    recipe = tiny_recipe(coco_folder, "batch_size=1")  # of four images
    assert seconds_per_epoch(recipe, init=None, device="cpu", processes=Processes()) == [4 * 0.375]


def test_minutes_are_shared_out_as_the_stages_would_have_taken(monkeypatch):
    monkeypatch.setattr(timing, "seconds_per_epoch", lambda recipe, **_: [4.0, 1.0])
    recipe = find_recipe("sharpmask-small")  # 30 epochs, then 10
    epochs = epochs_in(recipe, 2.6, device="cpu", processes=Processes())
    assert epochs == pytest.approx([36, 12])
    assert [stage.epochs for stage in lasting(recipe, epochs).stages] == epochs


def test_a_run_of_minutes_is_the_run_of_their_epochs(coco_folder, tmp_path, console, monkeypatch):
    """Resumed, it does not measure again."""
    recipe, usual, steps = tiny_recipe(coco_folder, "checkpoint_steps=1"), loop.take_step, []
    train(recipe.with_changes(["epochs=2"]), tmp_path / "whole", device="cpu", console=console)
    monkeypatch.setattr(timing, "seconds_per_epoch", lambda recipe, **_: [3.0])

    def killed(*arguments):
        if len(steps) == 3:
            raise Killed
        steps.append(1)
        return usual(*arguments)

    monkeypatch.setattr(loop, "take_step", killed)
    with pytest.raises(Killed):
        train(recipe, tmp_path / "cut", minutes=0.1, device="cpu", console=console)
    monkeypatch.undo()
    assert "0.1 minutes of steps are 2 epochs here; validation and checkpoints take theirs beside" in console.file.getvalue()
    assert read_recipe(tmp_path / "cut" / "recipe.yaml").stages[0].epochs == 2
    monkeypatch.setattr(timing, "seconds_per_epoch", lambda recipe, **_: pytest.fail("measured again"))
    mw.resume(tmp_path / "cut", device="cpu", console=console)
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[k], cut[k]) for k in whole)


def test_measuring_changes_nothing_and_starts_from_the_weights_given(coco_folder, tmp_path, console, tiny_run):
    recipe = tiny_recipe(coco_folder, "frozen=[backbone.]")  # which is refused without weights to start from
    train(recipe, tmp_path / "minutes", init=tiny_run, minutes=1e-6, device="cpu", console=console)
    known = read_recipe(tmp_path / "minutes" / "recipe.yaml")
    assert 0 < known.stages[0].epochs < 0.01
    train(known, tmp_path / "epochs", init=tiny_run, device="cpu", console=console)
    a, b = weights(tmp_path / "minutes"), weights(tmp_path / "epochs")
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_folder_that_is_taken_is_said_before_anything_is_measured(coco_folder, tiny_run, monkeypatch):
    monkeypatch.setattr(timing, "seconds_per_epoch", lambda recipe, **_: pytest.fail("measured"))
    with pytest.raises(ValueError, match="the folder is not empty"):
        mw.train("mask-rcnn-small", data=coco_folder, out=tiny_run, minutes=1, device="cpu")
    with pytest.raises(ValueError, match="epochs and minutes both say how long to train"):
        mw.train("mask-rcnn-small", data=coco_folder, out=tiny_run, minutes=1, epochs=1)


WORKER = """
import os, statistics, sys
from pathlib import Path
from rich.console import Console
from maskwright.recipes import read_recipe
from maskwright.training import train
recipe, out = map(Path, sys.argv[1:])
statistics.median = lambda times: (0.2, 5.0)[int(os.environ["RANK"])]  # one finds everything slower
train(read_recipe(recipe), out, minutes=0.01, device="cpu", console=Console())
"""


def test_processes_agree_on_how_many_steps_fit(tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    recipe = recipe_of(tmp_path / "data", 4, system="faster-rcnn-small")
    (tmp_path / "two.yaml").write_text(recipe.to_yaml())
    done = forked(tmp_path / "worker.py", tmp_path / "two.yaml", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("0.01 minutes of steps are 3 epochs here") == 1
    assert read_recipe(tmp_path / "two" / "recipe.yaml").stages[0].epochs == 3
