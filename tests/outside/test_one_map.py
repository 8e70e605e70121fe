"""A system from outside the package is listed, trained, opened and scored like ours, and never without being named."""

import inspect

import pytest

import maskwright as mw
from maskwright import overview
from maskwright.runs.checkpoints import build_system
from maskwright.systems import find_builder

NAME = "tests.outside.one_map:tiny"


def test_arguments_of_a_foreign_size_are_listed_and_checked(console):
    for table in overview.system_tables(NAME):
        console.print(table)
    shown = console.file.getvalue()
    assert "The same for tests." in shown
    assert "Of the one map, px." in shown
    assert "Shorter side of the input, px; null keeps the image's size." in shown
    assert inspect.signature(find_builder(NAME)).parameters["channels"].default == 32
    assert build_system(NAME, {"num_classes": 2, "channels": 16}).head.classes.in_channels == 16
    with pytest.raises(ValueError, match=rf"the arguments of {NAME} do not fit:\n  channels: Input should be greater than 0"):
        build_system(NAME, {"num_classes": 2, "channels": 0})
    with pytest.raises(ValueError, match=f"{NAME} has no argument chanels: there are num_classes, backbone, short_px"):
        build_system(NAME, {"num_classes": 2, "chanels": 16})


def test_a_foreign_system_trains_and_opens_where_it_is_named(coco_folder, tmp_path, console):
    changes = [
        "arguments.channels=16",
        "epochs=1",
        "batch_size=2",
        "workers=0",
        "precision=float32",
        "augment.crop_px=64",
        "fit_sizes=false",
    ]
    mw.train(NAME, data=coco_folder, out=tmp_path / "run", changes=changes, device="cpu", console=console)
    with pytest.raises(ValueError, match="not part of maskwright: a file alone never imports code"):
        mw.load(tmp_path / "run")
    model = mw.load(tmp_path / "run", system=NAME)
    assert model.system.head.classes.in_channels == 16
    answer = mw.report(tmp_path / "run", system=NAME, console=console)
    assert list(answer.metrics) == ["bbox"]
