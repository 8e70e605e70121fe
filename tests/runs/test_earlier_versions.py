"""Runs that earlier versions wrote open, are scored and go on.

`version_0_1/` is a run of two epochs that stopped after the first: all its files as they were, but the tensors, of which their
names and shapes are kept and which are filled anew. Its system has another name today.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

from maskwright import api
from maskwright.formats.files import read_json
from maskwright.layers.roi import ByLevel, RoiPool
from maskwright.recipes import read_recipe
from maskwright.runs import open_model
from maskwright.runs.checkpoints import save_tensors
from maskwright.systems import RETIRED, SYSTEMS, find_builder
from tests.conftest import make_coco

STORED = Path(__file__).parent / "version_0_1"


def value_of(name, shape, generator):
    """What a checkpoint may hold after two steps."""
    if name == "average.n_averaged":
        return torch.tensor(2)
    if name.endswith(".step"):
        return torch.full(shape, 2.0)
    if ".exp_avg" in name:
        return torch.full(shape, 1e-4 if name.endswith("_sq") else 0.0)
    return 0.05 * torch.randn(shape, generator=generator)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The stored run, in a folder with the data it names."""
    make_coco(tmp_path / "data", split="train", seed=1)
    make_coco(tmp_path / "data", split="val", seed=2)
    shutil.copytree(STORED, tmp_path / "run")
    (tmp_path / "run" / "tensors.json").unlink()
    for file, content in read_json(STORED / "tensors.json").items():
        generator = torch.Generator().manual_seed(0)
        tensors = {name: value_of(name, shape, generator) for name, shape in content["tensors"].items()}
        save_tensors(tmp_path / "run" / file, tensors, content["header"])
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def test_a_run_of_version_0_1_opens_and_predicts_what_it_did(run, console):
    system, card = open_model(run)
    assert card.system == "mask-rcnn-small"
    assert isinstance(system.box_head.pool, ByLevel)
    assert isinstance(system.instance_heads["mask"].pool.operators[0], RoiPool)
    assert card.arguments["roi"] == "pool"
    assert system.input.resize.short_px == 64
    assert system.input.size_divisor is card.input.size_divisor is None  # it padded images then, which moved its norms
    found = api.evaluate(run, data=Path("data"), console=console)
    assert found.metrics["segm"].ap >= 0


def test_a_run_of_version_0_1_goes_on(run, console):
    api.resume(run, device="cpu", console=console)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert lines[0] == json.loads((STORED / "metrics.jsonl").read_text())
    assert read_json(run / "last" / "model.json")["system"] == "mask-rcnn-small"
    assert read_recipe(run / "recipe.yaml").system == "mask-rcnn-small"


@pytest.mark.parametrize("name", RETIRED)
def test_names_that_are_retired_say_what_to_use(name):
    assert RETIRED[name][0] in SYSTEMS
    with pytest.raises(ValueError, match=f"{name} is {RETIRED[name][0]} since version 0.2: use that name"):
        find_builder(name)
