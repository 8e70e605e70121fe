"""A run that is killed loses nothing: not a bit, and never the way back."""

import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import time

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from maskwright.runs.checkpoints import read_tensors, save_tensors
from maskwright.training import loop, state, train
from maskwright.training.run import METRICS, STATE
from tests.conftest import make_coco, tiny_recipe
from tests.processes import FORKS


def go(recipe, out, kill_at=None):
    """Start the run or go on with it, in a process that may be killed; at a step, or from outside."""
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of workers, as it is outside of tests
    usual = loop.take_step

    def step(run, *arguments):
        if run.step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        (out.parent / "stepping").touch()
        return usual(run, *arguments)

    loop.take_step = step
    train(recipe, out, resume=(out / "recipe.yaml").is_file(), device="cpu", console=Console(file=io.StringIO()))


def run_process(recipe, out, *, kill_at=None, kill_after_s=None, stepping=False):
    """Exit code of a process that trains; a time to kill it counts from its start, or from its first step."""
    (out.parent / "stepping").unlink(missing_ok=True)
    process = FORKS.Process(target=go, args=(recipe, out, kill_at))
    process.start()
    while stepping and process.is_alive() and not (out.parent / "stepping").exists():
        time.sleep(0.01)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        process.kill()
    process.join(300)
    return process.exitcode


def recipe_of(folder, *changes):
    """Twenty steps of two images in two parts."""
    make_coco(folder, split="train", images=7, size=(64, 64))
    make_coco(folder, split="val", images=1, size=(64, 64))
    every = ("epochs=5", "batch_size=2", "micro_batches=2", "ema_decay=0.9", "evaluate_every=3")
    return tiny_recipe(folder, *every, *changes, system="faster-rcnn-small")


def same(a, b):
    """Everything training goes on from, bit for bit."""
    first, second = (load_file(run / "last" / STATE) for run in (a, b))
    lines = [[json.loads(t) | {"time_s": 0} for t in (r / METRICS).read_text().splitlines()] for r in (a, b)]
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first) and lines[0] == lines[1]


def test_twenty_steps_equal_seven_a_kill_and_thirteen(tmp_path):
    recipe = recipe_of(tmp_path / "data", "checkpoint_steps=7")
    assert run_process(recipe, tmp_path / "whole") == 0
    assert run_process(recipe.with_changes(["workers=1"]), tmp_path / "cut", kill_at=7) == -signal.SIGKILL
    file = tmp_path / "cut" / "last" / STATE
    tensors, metadata = read_tensors(file)
    assert metadata["training"]["step"] == 7
    assert metadata["training"]["step"] % 4  # in the middle of an epoch
    metadata["training"]["time_s"] = 1000.0
    save_tensors(file, tensors, metadata)
    assert run_process(recipe, tmp_path / "cut") == 0
    assert same(tmp_path / "whole", tmp_path / "cut")
    lines = [json.loads(t) for t in (tmp_path / "cut" / METRICS).read_text().splitlines()]
    assert all(line["time_s"] > 1000 for line in lines)  # goes on as well
    images = load_file(tmp_path / "whole" / "best" / "weights.safetensors")
    assert all(torch.equal(v, images[k]) for k, v in load_file(tmp_path / "cut" / "best" / "weights.safetensors").items())


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_always_goes_on(kills, tmp_path):
    recipe = recipe_of(tmp_path / "data", "checkpoint_steps=1")
    began = time.monotonic()
    assert run_process(recipe, tmp_path / "whole") == 0
    longest = (time.monotonic() - began) / 4  # machines differ, and so do their other duties
    moments = random.Random(0)
    reached = []  # steps of the checkpoints that kills have left
    finished = 0
    while len(reached) < kills:
        begin = len(reached) % 3 == 2  # every third one before or about the first step
        code = run_process(recipe, tmp_path / "cut", kill_after_s=moments.uniform(0.0, longest), stepping=not begin)
        if code == 0:
            assert same(tmp_path / "whole", tmp_path / "cut")
            shutil.rmtree(tmp_path / "cut")
            finished += 1
            continue
        assert code == -signal.SIGKILL
        file = tmp_path / "cut" / "last" / STATE
        reached.append(read_tensors(file)[1]["training"]["step"] if file.exists() else -1)
    print(f"checkpoints left by {kills} kills at steps {reached}; {finished} runs ended in between")
    assert any(0 < step < 20 for step in reached)
    assert run_process(recipe, tmp_path / "cut") == 0
    assert same(tmp_path / "whole", tmp_path / "cut")
    assert not list((tmp_path / "cut").rglob("*.tmp"))


def test_killed_while_a_checkpoint_is_written(tmp_path, coco_folder, console, monkeypatch):
    """The moment after half a file is on the disk."""
    recipe = tiny_recipe(coco_folder, "epochs=2", "checkpoint_steps=1", "evaluate_every=9")
    train(recipe, tmp_path / "whole", device="cpu", console=console)
    usual = state.save_tensors
    calls = []

    class Killed(BaseException):
        pass

    def half(path, tensors, metadata):
        calls.append(path)
        if len(calls) == 3:
            (path.parent / ".1-half.tmp").write_bytes(b"half")
            raise Killed
        usual(path, tensors, metadata)

    monkeypatch.setattr(state, "save_tensors", half)
    with pytest.raises(Killed):
        train(recipe, tmp_path / "cut", device="cpu", console=console)
    monkeypatch.setattr(state, "save_tensors", usual)
    with (tmp_path / "cut" / METRICS).open("a") as file:
        file.write('{"stage": 0, "step": 99}\n{"stage": 0, "st')
    train(recipe, tmp_path / "cut", resume=True, device="cpu", console=console)
    assert same(tmp_path / "whole", tmp_path / "cut")
    assert not list((tmp_path / "cut").rglob("*.tmp"))


def test_killed_before_the_first_checkpoint_the_same_command_starts_anew(tmp_path, coco_folder, console, monkeypatch):
    class Killed(BaseException):
        pass

    def never(*_):
        raise Killed

    monkeypatch.setattr(state, "save_tensors", never)
    with pytest.raises(Killed):
        train(tiny_recipe(coco_folder), tmp_path / "run", device="cpu", console=console)
    monkeypatch.undo()
    assert (tmp_path / "run" / "split.json").is_file()
    with pytest.raises(ValueError, match="no checkpoint to resume from"):
        train(tiny_recipe(coco_folder), tmp_path / "run", resume=True, device="cpu", console=console)
    train(tiny_recipe(coco_folder), tmp_path / "run", device="cpu", console=console)
