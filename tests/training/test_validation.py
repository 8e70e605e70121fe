import json

import torch

from maskwright.training import train, validation
from tests.conftest import tiny_recipe
from tests.training.runs import weights


def test_the_averaged_model_is_what_is_scored(coco_folder, tmp_path, console, monkeypatch):
    scored, usual = [], validation.detect

    def detect(predict, *arguments, **options):
        scored.append({name: value.clone() for name, value in predict.__self__.state_dict().items()})
        return usual(predict, *arguments, **options)

    monkeypatch.setattr(validation, "detect", detect)
    train(tiny_recipe(coco_folder, "ema_decay=0.9"), tmp_path / "run", device="cpu", console=console)
    kept = weights(tmp_path / "run")
    assert all(torch.equal(kept[k], scored[0][k]) for k in kept)


def test_what_is_found_in_images_of_nothing_is_a_loss(coco_folder, tmp_path, console):
    file = coco_folder / "annotations" / "val.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"annotations": []}))
    train(tiny_recipe(coco_folder, system="fcos-small"), tmp_path / "run", device="cpu", console=console)
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert line["val_loss"]["class"] > 0
    assert line["val_loss"]["box"] == 0
