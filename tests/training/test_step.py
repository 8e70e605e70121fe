import json

import pytest
import torch
from safetensors.torch import load_file

from maskwright.systems import SYSTEMS
from maskwright.training import train
from maskwright.training.run import STATE
from tests.conftest import make_coco, tiny_recipe
from tests.training.runs import weights


def test_gradients_are_cut_to_the_norm_of_the_recipe(coco_folder, tmp_path, console):
    changes = ["optimizer.kind=sgd", "optimizer.weight_decay=0", "optimizer.clip_norm=1e-6", "batch_size=8"]
    train(tiny_recipe(coco_folder, *changes), tmp_path / "run", device="cpu", console=console)  # one step
    state = load_file(tmp_path / "run" / "last" / STATE)
    momenta = [value.flatten() for name, value in state.items() if name.endswith(".momentum_buffer")]
    assert float(torch.cat(momenta).norm()) == pytest.approx(1e-6, rel=0.01)


def test_micro_batches_give_the_same_step(tmp_path, console):
    make_coco(tmp_path / "data", split="train", size=(64, 64))
    make_coco(tmp_path / "data", split="val", images=1)
    for name, parts in (("one", 1), ("two", 2)):
        recipe = tiny_recipe(
            tmp_path / "data", "batch_size=4", f"micro_batches={parts}", "optimizer.kind=sgd", "optimizer.lr=0.01"
        )
        train(recipe.with_changes(["optimizer.clip_norm=null", "ema_decay=0"]), tmp_path / name, device="cpu", console=console)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    start = SYSTEMS["mask-rcnn-small"](num_classes=2).state_dict()
    assert set(start) == set(one)
    assert max(float((one[k] - two[k]).abs().max()) for k in one) < 1e-5


def test_loss_that_is_not_finite_stops_and_names_the_images(coco_folder, tmp_path, console):
    recipe = tiny_recipe(
        coco_folder,
        "epochs=4",
        "optimizer.kind=sgd",
        "optimizer.lr=1e30",
        "schedule.warmup_steps=0",
        "optimizer.clip_norm=null",
    )
    with pytest.raises(ValueError, match=r"not finite at step \d+ .*train_\d\.png, .*train_\d\.png.*lower optimizer\.lr"):
        train(recipe, tmp_path / "run", device="cpu", console=console)


def test_biases_may_learn_faster(coco_folder, tmp_path, console, monkeypatch):
    seen = []
    usual = torch.optim.AdamW.step

    def step(self, *args, **kwargs):
        seen.append({g["lr_factor"]: g["lr"] for g in self.param_groups})
        return usual(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    changes = ["optimizer.bias_lr_factor=2", "schedule.warmup_steps=0"]
    train(tiny_recipe(coco_folder, *changes, system="fcos-small"), tmp_path / "run", device="cpu", console=console)
    assert len(seen) == 2
    assert all(rates[2.0] == pytest.approx(2 * rates[1.0]) for rates in seen)
    assert seen[1][1.0] < seen[0][1.0]
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert line["lr"] == pytest.approx(seen[1][1.0])
