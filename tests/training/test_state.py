import pytest
import torch
from safetensors.torch import load_file

from maskwright.formats import files
from maskwright.runs.checkpoints import read_tensors
from maskwright.training import train
from maskwright.training.run import STATE
from maskwright.training.state import restore_optimizer
from tests.conftest import tiny_recipe
from tests.training.runs import weights


def test_the_averaged_model_is_what_is_kept(coco_folder, tmp_path, console):
    train(tiny_recipe(coco_folder, "ema_decay=0.9"), tmp_path / "run", device="cpu", console=console)
    state, kept = load_file(tmp_path / "run" / "last" / STATE), weights(tmp_path / "run")
    assert all(torch.equal(kept[k], state[f"average.module.{k}"]) for k in kept)
    assert any(not torch.equal(kept[k], state[f"model.{k}"]) for k in kept)


def test_momenta_come_back_in_the_layout_of_their_weights():
    conv = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(conv.parameters())
    conv(torch.randn(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    before = optimizer.state_dict()["state"]
    saved = {f"{i}.{key}": value.contiguous() for i, values in before.items() for key, value in values.items()}
    again = torch.optim.AdamW(conv.parameters())
    restore_optimizer(again, saved)
    for i, values in again.state_dict()["state"].items():
        assert all(torch.equal(value, before[i][key]) for key, value in values.items())
    assert again.state[conv.weight]["exp_avg"].stride() == conv.weight.stride() != saved["0.exp_avg"].stride()


def test_write_error_at_a_checkpoint_keeps_the_previous_one(coco_folder, tmp_path, console, monkeypatch):
    usual = files.os.fsync
    calls = {"count": 0}

    def full(descriptor):
        calls["count"] += 1
        if calls["count"] > 40:
            raise OSError(28, "No space left on device")
        usual(descriptor)

    monkeypatch.setattr(files.os, "fsync", full)
    recipe = tiny_recipe(coco_folder, "epochs=9", "checkpoint_steps=1", "evaluate_every=99")
    with pytest.raises(OSError, match="No space"):
        train(recipe, tmp_path / "run", device="cpu", console=console)
    monkeypatch.setattr(files.os, "fsync", usual)
    assert not list((tmp_path / "run").rglob("*.tmp"))
    state, metadata = read_tensors(tmp_path / "run" / "last" / STATE)
    assert metadata["training"]["step"] >= 2
    assert all(torch.isfinite(v.float()).all() for v in state.values())
    assert weights(tmp_path / "run")
