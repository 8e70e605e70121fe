import json

import pytest

from maskwright.comparison.entries import parse_entries
from maskwright.comparison.plan import PLAN, recipes
from maskwright.recipes import DataOptions
from maskwright.training.timing import Budget


def test_changes_of_an_entry_come_after_those_of_all(coco_folder, tmp_path):
    entries = parse_entries(["mask-rcnn-small optimizer.lr=0.3", "faster-rcnn-small"])
    plan = recipes(entries, DataOptions(path=str(coco_folder)), ["optimizer.lr=0.2"], Budget(epochs=10), tmp_path, "cpu")
    rates = [recipe.stages[0].optimizer.lr for recipe in plan.values()]
    assert rates == [0.3, 0.2]
    assert {recipe.stages[0].epochs for recipe in plan.values()} == {10}
    assert {recipe.evaluate_every for recipe in plan.values()} == {2}
    with pytest.raises(ValueError, match="did you mean optimizer"):
        recipes(entries, DataOptions(path=str(coco_folder)), ["optimiser.lr=0.2"], Budget(), tmp_path, "cpu")


def test_a_comparison_chooses_nothing_by_the_images_it_scores(coco_folder, tmp_path):
    data = DataOptions(path=str(coco_folder))
    with pytest.raises(ValueError, match="'mask-rcnn-small' would stop by the images that all are scored on: leave patience"):
        recipes(parse_entries(["mask-rcnn-small"]), data, ["patience=2"], Budget(), tmp_path, "cpu")


def test_minutes_become_steps_once(coco_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("maskwright.training.timing.seconds_per_epoch", lambda recipe, **_: [4.0])
    entries, data = parse_entries(["mask-rcnn-small"]), DataOptions(path=str(coco_folder))
    plan = recipes(entries, data, [], Budget(minutes=2), tmp_path, "cpu")
    assert plan["mask-rcnn-small"].stages[0].epochs == pytest.approx(30)
    assert json.loads((tmp_path / PLAN).read_text())["mask-rcnn-small"]["epochs"] == [30]
    monkeypatch.setattr("maskwright.training.timing.seconds_per_epoch", lambda recipe, **_: [1.0])
    assert recipes(entries, data, [], Budget(minutes=2), tmp_path, "cpu") == plan
    with pytest.raises(ValueError, match="was planned otherwise here"):
        recipes(entries, data, [], Budget(minutes=3), tmp_path, "cpu")
