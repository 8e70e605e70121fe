"""The command line as people use it: in a process of its own."""

import json
import re
import subprocess
import sys

import pytest
import torch
from torchvision.models.detection import maskrcnn_resnet50_fpn

from maskwright import cli
from tests.conftest import EXAMPLES
from tests.processes import maskwright as run


def refused(*arguments: object) -> str:
    """Standard error of a command that must end with 2 and without a traceback."""
    done = run(*arguments)
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr
    return done.stderr


def test_help_names_the_verbs():
    command = [sys.executable, "-m", "maskwright", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    verbs = ("demo", "systems", "recipes", "train", "compare", "report", "evaluate", "predict", "import")
    assert all(verb in done.stdout and verb in run("--help").stdout for verb in verbs)


def test_import_makes_a_run_that_predicts(tmp_path):
    torch.manual_seed(0)
    torch.save(maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3).state_dict(), tmp_path / "w.pth")
    given = ("--system", "mask-rcnn-r50-fpn", "--out", tmp_path / "run", "--set", "short_px=64", "--set", "score_threshold=0.0")
    done = run("import", tmp_path / "w.pth", *given, "--classes", "cat,dog")
    assert done.returncode == 0, done.stderr
    assert "2 classes, norm eps 1e-05 (the default)" in done.stdout
    image = next((EXAMPLES / "images").iterdir())
    done = run("predict", tmp_path / "run", image, "--out", tmp_path / "pred", "--threshold", "0")
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "pred" / "predictions.json").read_text())
    assert written["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert len(written["annotations"]) == 100
    other = ("--system", "mask-rcnn-smal", "--out", "x")
    assert "cannot be imported into 'mask-rcnn-smal' yet" in refused("import", tmp_path / "w.pth", *other)
    assert "got --set 'short_px'" in refused("import", tmp_path / "w.pth", *given[:2], "--out", "x", "--set", "short_px")


def test_systems_lists_all_with_their_parameters():
    done = run("systems")
    assert done.returncode == 0
    assert "mask-rcnn-r50-fpn" in done.stdout
    assert "44.34" in done.stdout
    done = run("systems", "embedmask-r50")
    assert "2,399,248" in done.stdout
    assert re.search(r"cut +log +log \| probability", done.stdout)


def test_recipes_are_listed_with_what_to_expect():
    done = run("recipes")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    place = lines.index("mask-rcnn-r50-fpn-cityscapes  (64.5 × 8)")
    assert "AP 31.5 on val" in lines[place + 1]
    assert "mnc-unshared-small  (30 × 4 + 30 × 4 + 30 × 4)" in lines
    done = run("recipes", "mask-rcnn-r50-fpn-cityscapes")
    assert "short_px: 1024" in done.stdout
    assert "maskwright train mask-rcnn-r50-fpn-cityscapes --data cityscapes" in done.stdout
    assert "Cityscapes takes 1.6 h" in done.stdout
    words = "steps of 8 images, 64.5 epochs, sgd, learning rate 0.01, with another batch in proportion to it"
    assert words in " ".join(done.stdout.split())
    assert "did you mean mask-rcnn-r50-fpn-cityscapes" in " ".join(refused("recipes", "mask-rcnn-r50-fpn-cityscap").split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "Did you mean 'train'"),
        (["train", "mask-rcnn-small", "--epoch", "3"], "--epochs"),
        (["train", "mask-rcnn-smal", "--data", "x", "--out", "y"], "did you mean mask-rcnn-small"),
        (["train", "mask-rcnn-small"], "train needs SYSTEM, --data and --out"),
        (["train", "mask-rcnn-small", "--data", "/nowhere", "--out", "y"], "/nowhere: there is no such file or folder"),
        (["train", "mask-rcnn-small", "--data", "x", "--out", "y", "--set", "optimizer.lrr=1"], "did you mean lr"),
        (["train", "mask-rcnn-small", "--data", "x", "--out", "y", "--epochs", "1", "--minutes", "1"], "give one of them"),
        (["train", "mask-rcnn-small", "--data", "x", "--out", "y", "--set", "epochs=1", "--minutes", "1"], "give one of them"),
        (["train", "mask-rcnn-small", "--data", "x", "--out", "y", "--minutes", "0"], "expected a positive number"),
        (["train", "--resume", "/nowhere", "--minutes", "1"], "leave the other options away"),
        (["train", "--resume", "/nowhere"], "/nowhere: there is no checkpoint to resume from"),
        (["train", "mask-rcnn-small", "--resume", "/nowhere"], "leave the other options away"),
        (
            ["train", "mask-rcnn-small", "--data", str(EXAMPLES), "--out", "y", "--init", "coco"],
            "no weights on COCO are published that fit mask-rcnn-small",
        ),
        (
            ["train", "mask-rcnn-small", "--data", str(EXAMPLES), "--out", "y", "--init", "./coco"],
            "coco: there is no such run or weights file",
        ),
        (["evaluate", "--data", "x"], "either RUN or --predictions"),
        (["evaluate", "/nowhere", "--data", "x"], "/nowhere: there is no such run"),
        (["evaluate", "/nowhere", "--data", "x", "--max-detections", "many"], "expected positive numbers"),
        (["evaluate", "/nowhere", "--data", "x", "--report", str(EXAMPLES)], "is not a file: choose another --report"),
        (["evaluate", "--predictions", "p.json", "--data", "x", "--set", "short_px=5"], "leave --set and --device away"),
        (["evaluate", "--predictions", "p.json", "--data", "x", "--device", "cpu"], "leave --set and --device away"),
        (
            ["train", "mask-rcnn-small", "--data", "x", "--out", "y", "--val-fraction", "1.5"],
            "val_fraction: Input should be less",
        ),
        (["compare", "mask-rcnn-small", "--data", "x", "--by", "luck"], "--by"),
        (["predict", "/nowhere", "a.png", "--out", "y"], "a.png: there is no such image"),
        (["report", "/nowhere"], "/nowhere: is not the folder of a run"),
        (["compare", "mask-rcnn-smal", "--data", "x"], "did you mean mask-rcnn-small"),
        (["compare", "mask-rcnn-small", "--data", "/nowhere"], "/nowhere: there is no such file or folder"),
        (["compare", "/nowhere/a.json", "--data", "x"], "/nowhere/a.json: there is no such run folder or results file"),
        (["compare", "mask-rcnn-small", "--data", str(EXAMPLES), "--set", "epochs=1", "--minutes", "1"], "give one of them"),
        (["compare", "mask-rcnn-small", "--data", str(EXAMPLES), "--set", "optimiser.lr=1"], "did you mean optimizer"),
    ],
)
def test_mistakes_end_with_two_and_a_message(arguments, message):
    assert message in refused(*arguments)


def test_predict_evaluate_and_score(tiny_run, tmp_path):
    data = tiny_run.parent / "data"
    done = run(
        "predict",
        tiny_run,
        data / "images" / "val_0.png",
        "--out",
        tmp_path / "pred",
        "--format",
        "coco,geojson,png",
        "--threshold",
        "0",
    )
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path / "pred").iterdir()} == {"predictions.json", "val_0.png", "val_0.geojson"}
    done = run("evaluate", tiny_run, "--data", data, "--out", tmp_path / "results.json", "--max-detections", "1,10,20")
    assert done.returncode == 0, done.stderr
    assert "masks" in done.stdout
    assert "disc" in done.stdout
    results = json.loads((tmp_path / "results.json").read_text())
    assert {entry["category_id"] for entry in results} <= {3, 7}
    scored = run(
        "evaluate",
        "--predictions",
        tmp_path / "results.json",
        "--data",
        data / "annotations" / "val.json",
        "--max-detections",
        "1,10,20",
    )
    assert scored.returncode == 0, scored.stderr
    tables = [
        [line.split() for line in text.splitlines() if line.strip().startswith(("boxes", "masks", "edges"))]
        for text in (done.stdout, scored.stdout)
    ]
    assert len(tables[0]) == 3
    assert tables[0] == tables[1]
    assert "report written to" in done.stdout
    assert (tmp_path / "results.report.html").is_file()
    entries = [tiny_run, f"the same: {tmp_path / 'results.json'}"]
    compared = run("compare", *entries, "--data", data, "--max-detections", "1,10,20", "--out", tmp_path / "compared")
    assert compared.returncode == 0, compared.stderr
    assert "cannot be told apart: mask AP +0.0 points [+0.0, +0.0], p = 1.000" in compared.stdout
    assert {p.name for p in (tmp_path / "compared").iterdir()} == {
        "costs.json", "detections", "plan.json", "report.html", "results.json",
    }  # fmt: skip


def test_arguments_can_be_others_than_the_saved_ones(tiny_run, tmp_path):
    data = tiny_run.parent / "data"
    image = data / "images" / "val_0.png"
    for number in (3, 5):
        options = ["--threshold", "0", "--format", "coco", "--set", f"max_detections={number}", "--set", "score_threshold=0.0"]
        done = run("predict", tiny_run, image, "--out", tmp_path / str(number), *options)
        assert done.returncode == 0, done.stderr
        found = json.loads((tmp_path / str(number) / "predictions.json").read_text())
        assert len(found["annotations"]) == number
    stderr = refused("evaluate", tiny_run, "--data", data, "--set", "short_pixels=64")
    assert "mask-rcnn-small has no argument short_pixels" in stderr
    done = run("evaluate", tiny_run, "--data", data, "--set", "short_px=32", "--set", "long_px=48")
    assert done.returncode == 0, done.stderr


def test_bad_image_is_named_and_the_others_are_done(tiny_run, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"<html>")
    stderr = refused(
        "predict", tiny_run, tiny_run.parent / "data" / "images" / "val_0.png", tmp_path / "bad.jpg", "--out", tmp_path / "pred"
    )
    assert "bad.jpg: not an image of a known format" in stderr
    assert (tmp_path / "pred" / "val_0.png").is_file()


def test_folders_that_cannot_be_written_are_named(tiny_run, tmp_path):
    image = next((EXAMPLES / "images").iterdir())
    (tmp_path / "file").write_text("")
    assert "Not a directory" in refused("predict", tiny_run, image, "--out", tmp_path / "file" / "x")
    assert "is not a file" in refused("evaluate", tiny_run, "--data", "x", "--out", tmp_path)
    assert "file: is a file" in refused(
        "predict", tiny_run, tiny_run.parent / "data" / "images" / "val_0.png", "--out", tmp_path / "file"
    )


@pytest.mark.slow
def test_demo_runs(tmp_path):
    done = run("demo", "--out", tmp_path / "demo")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "demo" / "overview.png").is_file()
    assert len(list((tmp_path / "demo" / "predictions").glob("*.png"))) == 16
    assert "the folder is not empty" in refused("demo", "--out", tmp_path / "demo")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("a mistake of ours")])
def test_a_full_gpu_is_said_and_other_mistakes_are_not_hidden(error, monkeypatch, capsys):
    def fail():
        raise error

    monkeypatch.setattr(cli, "app", fail)
    is_full = isinstance(error, torch.OutOfMemoryError)
    with pytest.raises(SystemExit if is_full else RuntimeError) as raised:
        cli.main()
    if is_full:
        assert raised.value.code == 2
        assert "lower batch_size or arguments.short_px" in capsys.readouterr().err
