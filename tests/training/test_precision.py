"""bfloat16 where it is asked for; elsewhere tests compute in float32, whatever the processor has units for."""

import json
import math

import torch
from safetensors.torch import load_file

from maskwright.inference import load
from maskwright.training import train
from tests.conftest import make_coco, tiny_recipe


def test_a_run_in_bfloat16_trains_scores_and_answers(tmp_path, console):
    make_coco(tmp_path / "data", images=2, size=(64, 64))
    make_coco(tmp_path / "data", images=1, size=(64, 64), split="val")
    recipe = tiny_recipe(tmp_path / "data", "precision=bfloat16", "arguments.max_detections=5", "arguments.long_px=64")
    train(recipe, tmp_path / "run", device="cpu", console=console)
    (line,) = [json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(value) for losses in (line["train_loss"], line["val_loss"]) for value in losses.values())
    assert "segm" in line
    kept = load_file(tmp_path / "run" / "best" / "weights.safetensors")
    assert {value.dtype for value in kept.values() if value.is_floating_point()} == {torch.float32}
    answers = {
        precision: load(tmp_path / "run", device="cpu", precision=precision).predict(
            tmp_path / "data" / "images" / "val_0.png", threshold=0
        )
        for precision in ("float32", "bfloat16", "auto")
    }
    assert answers["bfloat16"].scores.dtype == torch.float32
    assert not torch.equal(answers["bfloat16"].scores, answers["float32"].scores)
    assert torch.equal(answers["auto"].scores, answers["float32"].scores)  # tests/conftest.py
