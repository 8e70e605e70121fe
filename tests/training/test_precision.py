"""bfloat16 where it is asked for; elsewhere tests compute in float32, whatever the processor has units for."""

import json
import math

import torch
from safetensors.torch import load_file

from maskwright.inference import load
from maskwright.training import train
from tests.conftest import tiny_recipe


def test_a_run_in_bfloat16_trains_scores_and_answers(coco_folder, tmp_path, console):
    changes = ("evaluate_every=1", "arguments.max_detections=5")
    train(tiny_recipe(coco_folder, "precision=bfloat16", *changes), tmp_path / "run", device="cpu", console=console)
    (line,) = [json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(value) for losses in (line["train_loss"], line["val_loss"]) for value in losses.values())
    assert "segm" in line
    kept = load_file(tmp_path / "run" / "best" / "weights.safetensors")
    assert {value.dtype for value in kept.values() if value.is_floating_point()} == {torch.float32}
    answers = {
        precision: load(tmp_path / "run", device="cpu", precision=precision).predict(
            coco_folder / "images" / "val_0.png", threshold=0
        )
        for precision in ("float32", "bfloat16", "auto")
    }
    assert answers["bfloat16"].scores.dtype == torch.float32
    assert not torch.equal(answers["bfloat16"].scores, answers["float32"].scores)
    assert torch.equal(answers["auto"].scores, answers["float32"].scores)  # tests/conftest.py
