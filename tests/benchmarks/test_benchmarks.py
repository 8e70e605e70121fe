"""The benchmarks run; their figures are for people."""

import importlib
from pathlib import Path

import pytest
import torch

from benchmarks import learning, masks, measure
from benchmarks.peers import torchvision_small
from maskwright.data.loader import evaluation_batches
from maskwright.formats.catalog import open_split
from maskwright.systems import SYSTEMS
from tests.conftest import EXAMPLES


@pytest.mark.parametrize("path", sorted(Path(measure.__file__).parent.glob("*.py")), ids=lambda path: path.stem)
def test_every_benchmark_finds_what_it_needs(path):
    importlib.import_module(f"benchmarks.{path.stem}")


def test_a_table_replaces_its_section_only(tmp_path, monkeypatch):
    page = tmp_path / "README.md"
    page.write_text("# A\n<!-- one -->\nold\n<!-- end of one -->\n<!-- two -->\nkept\n<!-- end of two -->\n")
    monkeypatch.setattr(measure, "README", page)
    monkeypatch.setattr(masks, "CASES", {"two": (2, (40, 50))})
    measure.report("one", "python -m a", [["x"], ["1"]])
    assert "old" not in page.read_text()
    assert "<!-- two -->\nkept\n<!-- end of two -->" in page.read_text()
    assert "| x |\n|---|\n| 1 |" in page.read_text()
    monkeypatch.setattr(masks, "report", lambda name, command, rows, notes: measure.report("two", command, rows, notes))
    masks.main()
    assert "| two |" in page.read_text()


def test_torchvisions_small_model_has_our_architecture_and_keeps_the_contract():
    torch.manual_seed(0)
    theirs = torchvision_small(num_classes=1, short_px=128, long_px=256)
    ours = SYSTEMS["mask-rcnn-small"](num_classes=1)
    background = 128 + 1 + 4 * (128 + 1) + (128 + 1)  # a class row, a box and a mask that ours does without
    background -= 128 + 1  # which also has the class row
    count = sum(p.numel() for p in theirs.parameters()) - sum(p.numel() for p in ours.parameters())
    assert count == background
    batch = next(evaluation_batches(open_split(EXAMPLES, "train"), spec=theirs.input, batch_size=1))
    losses = theirs.loss(batch.images, batch.targets)
    assert len(losses) == 5
    assert all(torch.isfinite(loss.total) for loss in losses.values())
    theirs.max_detections = 7
    with torch.inference_mode():
        (found,) = theirs.predict(batch.images)
    assert len(found) <= 7
    assert found.masks.image_size == batch.images.original_sizes[0]


def test_learning_gives_both_sides_the_same_recipe():
    plans = [
        learning.recipe(system, EXAMPLES, steps=16, seed=2, short_px=64).model_dump() for system in learning.SYSTEMS.values()
    ]
    assert plans[0].pop("system") != plans[1].pop("system")
    assert plans[0] == plans[1]
    assert plans[0]["stages"][0]["epochs"] == 2
