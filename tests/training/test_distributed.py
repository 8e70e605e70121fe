"""Several processes, or several micro-batches, compute the gradient of one big batch."""

import json
import os
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from maskwright.data.loader import Address, Share
from maskwright.training import loop, train
from maskwright.training.distributed import Processes, own_device
from tests.conftest import make_coco, tiny_recipe
from tests.processes import FORKS

WORKER = """
import sys
from pathlib import Path
from rich.console import Console
from maskwright.recipes import read_recipe
from maskwright.training import train
recipe, out, *init = map(Path, sys.argv[1:])
train(read_recipe(recipe), out, init=(init or [None])[0], device="cpu", resume=out.exists(), console=Console())
"""


def torchrun(*arguments, processes=2):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *map(str, arguments)], check=False, capture_output=True, text=True, env=environment, timeout=300
    )


def forked(worker, *arguments, processes=2):
    """The same without starting Python three times: processes that find in their environment what torchrun puts there."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    logs = [worker.with_name(f"process-{rank}.log") for rank in range(processes)]
    workers = [
        FORKS.Process(target=_work, args=(worker, arguments, rank, processes, port, log)) for rank, log in enumerate(logs)
    ]
    for process in workers:
        process.start()
    for process in workers:
        process.join(300)
    said = "".join(log.read_text() for log in logs)
    return subprocess.CompletedProcess(arguments, max(abs(process.exitcode) for process in workers), said, said)


def _work(worker: Path, arguments: tuple[Path, ...], rank: int, processes: int, port: int, log: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    opened = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(opened, 1)
    os.dup2(opened, 2)
    torch.set_num_threads(1)
    sys.argv = [str(worker), *map(str, arguments)]
    exec(compile(worker.read_text(), worker, "exec"), {"__name__": "__main__"})


def recipe_of(folder, images, *changes, val=3, system="mask-rcnn-small"):
    make_coco(folder, split="train", images=images, size=(64, 64))
    make_coco(folder, split="val", images=val, size=(64, 64))
    plain = ["optimizer.kind=sgd", "optimizer.lr=0.01", "optimizer.weight_decay=0", "optimizer.clip_norm=null"]
    fixed = ["schedule.warmup_steps=0", "ema_decay=0", "batch_size=4"]
    return tiny_recipe(folder, *plain, *fixed, *changes, system=system)


def gradients(run):
    """The first step's: SGD's momentum begins as the gradient."""
    state = load_file(run / "last" / "training.safetensors")
    return {name: value for name, value in state.items() if name.endswith("momentum_buffer")}


# Of three images, one of four parts holds none; of one validation image, one of two processes sees nothing.
@pytest.mark.parametrize(("images", "micro_batches", "val", "frozen"), [(4, 1, 3, "[]"), (3, 2, 1, "[fpn]")])
def test_processes_and_micro_batches_give_the_gradient_of_one_batch(
    images, micro_batches, val, frozen, tmp_path, console, tiny_run
):
    all_found = "arguments={short_px: 64, long_px: 96, max_detections: 100, num_proposals: 200, score_threshold: 0.0}"
    recipe = recipe_of(tmp_path / "data", images, "augment.jitter=[1, 1]", all_found, f"frozen={frozen}", val=val)
    train(recipe, tmp_path / "one", init=tiny_run, device="cpu", console=console)
    train(recipe.with_changes(["micro_batches=2"]), tmp_path / "micro", init=tiny_run, device="cpu", console=console)
    (tmp_path / "worker.py").write_text(WORKER)
    (tmp_path / "two.yaml").write_text(recipe.with_changes([f"micro_batches={micro_batches}"]).to_yaml())
    launch = torchrun if micro_batches == 1 else forked
    done = launch(tmp_path / "worker.py", tmp_path / "two.yaml", tmp_path / "two", tiny_run)
    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stdout
    assert done.stdout.count("epoch 1:") == done.stdout.count("the best model is in") == 1  # one speaks for both
    expected = gradients(tmp_path / "one")
    assert len(expected) > 50
    for name in ("micro", "two"):
        found = gradients(tmp_path / name)
        assert found.keys() == expected.keys()
        apart = {key: float((found[key] - value).norm()) for key, value in expected.items()}
        whole = float(torch.stack([value.norm() for value in expected.values()]).norm())
        assert float(torch.tensor(list(apart.values())).norm()) <= 1e-5 * whole, name
        # A ReLU whose input rounds to the other side of zero changes the small gradients of the mask head by up to 1e-4.
        assert all(apart[key] <= 1e-3 * max(float(value.norm()), 1e-6) for key, value in expected.items()), (name, apart)
    (one,), (two,) = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()] for name in ("one", "two")
    )
    assert one["val_loss"] == pytest.approx(two["val_loss"], rel=1e-4)
    for kind in ("bbox", "segm"):
        assert one[kind]["ar"][-1] > 0
        assert (one[kind]["ap"], one[kind]["ar"]) == (
            pytest.approx(two[kind]["ap"], abs=1e-4),
            pytest.approx(two[kind]["ar"], abs=1e-4),
        )


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("deepmask-small", "mnc-unshared-small")]


@pytest.mark.parametrize("system", ["embedmask-arxiv-small", *SLOW])
def test_normalizers_of_other_systems_are_those_of_all_processes(system, tmp_path, console):
    """What is positive is counted over both processes; patches, or the terms of a stage, teach one of several heads."""
    changes = [] if system == "deepmask-small" else ["augment.jitter=[1, 1]"]
    recipe = recipe_of(tmp_path / "data", 3, "evaluate_every=9", *changes, system=system)
    train(recipe, tmp_path / "one", device="cpu", console=console)
    (tmp_path / "worker.py").write_text(WORKER)
    (tmp_path / "two.yaml").write_text(recipe.to_yaml())
    done = forked(tmp_path / "worker.py", tmp_path / "two.yaml", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    expected, found = (gradients(tmp_path / name) for name in ("one", "two"))
    assert found.keys() == expected.keys()
    apart = torch.stack([(found[key] - value).norm() for key, value in expected.items()]).norm()
    allowed = 1e-4 if system == "mnc-unshared-small" else 1e-5  # it is in its third stage, on weights that two have moved
    assert apart <= allowed * torch.stack([value.norm() for value in expected.values()]).norm()


def test_a_run_goes_on_with_another_number_of_processes(tmp_path, console, monkeypatch):
    recipe = recipe_of(tmp_path / "data", 8, "augment.jitter=[1, 1]", "epochs=2", "checkpoint_steps=1", "evaluate_every=9")
    train(recipe, tmp_path / "whole", device="cpu", console=console)
    usual, steps = loop.take_step, []

    def cut(*arguments):
        if len(steps) == 2:
            raise KeyboardInterrupt
        steps.append(1)
        return usual(*arguments)

    monkeypatch.setattr(loop, "take_step", cut)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "cut", device="cpu", console=console)
    (tmp_path / "worker.py").write_text(WORKER)
    done = forked(tmp_path / "worker.py", tmp_path / "cut" / "recipe.yaml", tmp_path / "cut")
    assert done.returncode == 0, done.stderr
    whole, cut_run = (load_file(tmp_path / name / "last" / "weights.safetensors") for name in ("whole", "cut"))
    assert max(float((whole[k] - cut_run[k]).abs().max()) for k in whole) < 1e-5


IMPATIENT = """
from dataclasses import replace
from maskwright.training import loop
usual, scores = loop.validate, [0.3, 0.4, 0.4, 0.2, 0.9]
def validate(run, stage):
    losses, (*others, decisive) = usual(run, stage)
    return losses, [*others, replace(decisive, ap=scores.pop(0))]
loop.validate = validate
"""


def test_processes_run_out_of_patience_together(tmp_path):
    recipe = recipe_of(tmp_path / "data", 4, "epochs=9", "patience=2", system="faster-rcnn-small")
    (tmp_path / "worker.py").write_text(IMPATIENT + WORKER)
    (tmp_path / "two.yaml").write_text(recipe.to_yaml())
    for _ in range(2):  # the second time it goes on with what is done
        done = forked(tmp_path / "worker.py", tmp_path / "two.yaml", tmp_path / "two")
        assert done.returncode == 0, done.stderr
        said = " ".join(done.stdout.split())
        assert said.count("stopped after step 4 of 9, out of patience: 2 evaluations without a score over 40.0") == 1
        lines = (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]


def test_a_batch_must_divide_among_the_processes(tmp_path, console, monkeypatch):
    monkeypatch.setattr(loop, "joined", lambda device: nullcontext(Processes(0, 2)))
    with pytest.raises(ValueError, match="a batch of 3 cannot be computed in 1 parts on each of 2 processes"):
        train(recipe_of(tmp_path / "data", 4, "batch_size=3"), tmp_path / "run", device="cpu", console=console)
    assert not (tmp_path / "run").exists()


def test_shares_cover_a_batch_once():
    for images, micro, processes in [(8, 2, 2), (5, 1, 2), (3, 2, 2), (1, 1, 4)]:
        seen = []
        for rank in range(processes):
            parts = list(Share(micro, rank, processes).of(7, range(10, 10 + images)))
            assert len(parts) == micro
            seen += [a for part in parts for a in part]
        assert sorted(a.index for a in seen if a.weight) == list(range(10, 10 + images))
        assert {a for a in seen if not a.weight} <= {Address(7, 10, 0.0)}
        assert {a.epoch for a in seen} == {7}


def test_each_process_takes_a_gpu_of_its_own(monkeypatch):
    assert own_device("cpu") == "cpu"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert own_device("cpu") == "cpu"
    with pytest.raises(ValueError, match=r"device 'cuda:1': each of several processes takes a GPU of its own"):
        own_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="more processes than GPUs, 1: lower --nproc-per-node"):
        own_device("auto")


def test_one_process_needs_no_group():
    alone = Processes()
    assert alone.gather(3) == [3]
    assert alone.tell(4) == 4
    assert alone.sum({"a": torch.ones(())}) == {"a": 1}
