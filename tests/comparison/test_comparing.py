"""The whole of a comparison at a tiny size: trained systems, a run, somebody's results; stopped and gone on with."""

import json
import shutil

import numpy as np
import pytest
import timm

import maskwright as mw
from maskwright.comparison import kept, training
from maskwright.formats.catalog import open_split
from maskwright.inference import load
from maskwright.inference.scoring import detections
from maskwright.recipes.recipe import read_recipe
from maskwright.runs.checkpoints import read_tensors
from maskwright.training import train
from tests.conftest import make_coco, tiny_recipe
from tests.published import keep_for_timm

CHANGES = [
    "batch_size=2",
    "workers=0",
    "precision=float32",
    "augment.crop_px=64",
    "fit_sizes=false",
    "arguments={short_px: 64, long_px: 96, max_detections: 20, num_proposals: 50}",
]


def somebodys(data, path, *, noise):
    """Truth moved about, as a results file."""
    rng = np.random.default_rng(0)
    truth = json.loads((data / "annotations" / "val.json").read_text())
    moved = [
        {
            "image_id": a["image_id"],
            "category_id": a["category_id"],
            "score": float(rng.random()),
            "bbox": (np.array(a["bbox"]) + rng.normal(0, noise, 4)).tolist(),
        }
        for a in truth["annotations"]
    ]
    path.write_text(json.dumps(moved))
    return path


@pytest.fixture(scope="module")
def compared(tmp_path_factory, console_of_module):
    """A comparison that was stopped after its first run, then gone on with."""
    root = tmp_path_factory.mktemp("compared")
    make_coco(root / "data", split="train", seed=1)
    make_coco(root / "data", split="val", seed=2, images=9)
    theirs = somebodys(root / "data", root / "theirs.json", noise=2.0)
    entries = ["mask-rcnn-small", "boxes: faster-rcnn-small optimizer.lr=0.001", f"theirs: {theirs}"]
    trained = []

    def stopped(recipe, folder, **keywords):
        if len(trained) == 1:
            raise KeyboardInterrupt
        return counted(recipe, folder, **keywords)

    def counted(recipe, folder, **keywords):
        trained.append(folder.name)
        return train(recipe, folder, **keywords)

    options = {
        "data": root / "data", "out": root / "out", "epochs": 1, "seeds": 2, "changes": CHANGES, "device": "cpu",
        "console": console_of_module,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train", stopped)
        with pytest.raises(KeyboardInterrupt):
            mw.compare(entries, **options)
        (root / "out" / "runs" / "mask-rcnn-small-0" / "trained.json").unlink()  # as if killed before this was written
        patch.setattr(training, "train", counted)
        answer = mw.compare(entries, **options)
        again = mw.compare([*entries, f"exact: {somebodys(root / 'data', root / 'exact.json', noise=0)}"], **options)
    return root, trained, answer, again


def test_nothing_is_trained_twice(compared):
    _, trained, _, _ = compared
    assert trained[:2] == ["mask-rcnn-small-0"] * 2  # the second time nothing is left to do but to look at it
    assert len(trained) == len(set(trained)) + 1 == 5


def test_entries_are_ranked_within_their_task(compared):
    _, _, answer, again = compared
    assert [table.task for table in answer.tables] == ["instances", "boxes"]
    instances, boxes = answer.tables
    assert [row.name for row in instances.rows] == ["mask-rcnn-small"]
    assert [row.name for row in boxes.rows] == ["theirs", "boxes"]
    assert [row.rank for row in boxes.rows] == [1, 2]
    assert [row.name for row in again.tables[1].rows] == ["exact", "theirs", "boxes"]
    best = again.tables[1].differences[0]
    assert (best.first, best.second, best.is_real) == ("exact", "boxes", True)


def test_numbers_are_those_of_evaluate(compared):
    root, _, answer, _ = compared
    row = next(row for row in answer.rows if row.name == "mask-rcnn-small")
    for seed in range(2):
        metrics = mw.evaluate(
            root / "out" / "runs" / f"mask-rcnn-small-{seed}" / "last",
            data=root / "data",
            max_detections=(1, 10, 20),
            device="cpu",
        ).metrics
        assert row.metrics[seed] == metrics
        assert row.by_seed["ap"][seed] == metrics["segm"].ap
        assert row.by_seed["boundary_ap"][seed] == metrics["boundary"].ap
    assert row.averages["ap"].value == pytest.approx(np.mean(row.by_seed["ap"]))
    theirs = next(row for row in answer.rows if row.name == "theirs")
    assert theirs.averages["ap"].value == mw.score(root / "theirs.json", data=root / "data").metrics["bbox"].ap


def test_costs_and_curves_are_there(compared):
    _, _, answer, _ = compared
    row = answer.tables[0].rows[0]
    assert row.facts.image_ms > 0
    assert row.facts.memory_mb > 0
    assert row.facts.parameters == pytest.approx(4.9e6, rel=0.05)
    assert row.facts.steps == 2
    assert row.facts.training_s > 0
    assert len(row.facts.histories) == 2
    assert row.facts.histories[0][-1]["step"] == 2
    assert len(row.quality) == 9


def test_results_json_holds_the_same(compared):
    root, _, _, again = compared
    kept = json.loads((root / "out" / "results.json").read_text())
    assert kept == json.loads(json.dumps(again.to_dict(), allow_nan=False))
    assert kept["tables"][0]["rows"][0]["averages"]["ap"]["value"] == again.tables[0].rows[0].averages["ap"].value
    page = (root / "out" / "report.html").read_text()
    assert "Comparison on data" in page
    assert "maskwright compare mask-rcnn-small" in page


def test_the_last_weights_are_scored(compared):
    root, _, _, _ = compared
    folder = root / "out" / "runs" / "mask-rcnn-small-0"
    dataset = open_split(root / "data", "val")
    found = detections(load(folder / "last", device="cpu"), dataset, limit=20, console=None)
    assert json.loads((root / "out" / "detections" / "mask-rcnn-small-0.json").read_text())["answer"] == found
    assert read_tensors(folder / "last" / "training.safetensors")[1]["training"]["step"] == 2


def test_another_recipe_in_the_same_folder_is_refused(compared):
    root, _, _, _ = compared
    folder = root / "out" / "runs" / "mask-rcnn-small-0"
    recipe = read_recipe(folder / "recipe.yaml")
    with pytest.raises(ValueError, match="was begun with another recipe \\(ema_decay differ\\)"):  # finished as it is
        training.check_run(recipe.with_changes(["ema_decay=0.5"]), folder, {})
    with pytest.raises(ValueError, match="was begun on other images"):
        training.check_run(recipe, folder, {"train": [1], "val": [2]})
    training.check_run(recipe, folder, json.loads((folder / "split.json").read_text()))


def test_runs_that_began_with_timms_weights_are_gone_on_with(tmp_path, coco_folder, monkeypatch, console):
    keep_for_timm(tmp_path / "hub", "resnet18.tv_in1k", timm.create_model("resnet18").state_dict(), monkeypatch)
    recipe, folder = tiny_recipe(coco_folder, "backbone_weights=timm", "arguments.norm=frozen"), tmp_path / "run"
    for _ in range(2):
        training.train_all({"a": recipe}, {"a": [folder]}, open_split(coco_folder, "val"), "cpu", console)
    assert console.file.getvalue().count("training: ") == 1
    other = recipe.with_changes(["backbone_weights=timm:a1_in1k"])
    with pytest.raises(ValueError, match="was begun with another recipe \\(backbone_weights differ\\)"):
        training.train_all({"a": other}, {"a": [folder]}, open_split(coco_folder, "val"), "cpu", console)


def test_a_foreign_folder_is_left_alone(tmp_path, coco_folder):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="is not the folder of a comparison"):
        mw.compare(["mask-rcnn-small"], data=coco_folder, out=tmp_path / "mine")
    with pytest.raises(ValueError, match="at least one"):
        mw.compare([], data=coco_folder, out=tmp_path / "new")


def test_bad_results_are_named_before_anything_is_trained(tmp_path, coco_folder):
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps([{"image_id": 1, "category_id": 7, "score": 0.5, "bbox": [0, 0, 1, 1]}]))
    with pytest.raises(ValueError, match="image_id 1 is not in the data set"):
        mw.compare(["mask-rcnn-small", str(bad)], data=coco_folder, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            "embedmask-small arguments.margin=foo",
            "embedmask-small arguments.margin=foo: the arguments of embedmask-small do not fit",
        ),
        ("embedmask-small arguments.margn=fixed", "embedmask-small has no argument margn"),
        ("fast-rcnn-small", "fast-rcnn-small: fast-rcnn-small needs proposals"),
        ("mask-rcnn-r50-fpn", "mask-rcnn-r50-fpn: mask-rcnn-r50-fpn has frozen norms or parts"),
        ("mask-rcnn-small frozen=[nowhere]", "mask-rcnn-small frozen=.*nowhere"),
        ("mask-rcnn-small 'x", "no closing quotation: quote it as for a shell"),
    ],
)
def test_a_system_that_cannot_be_trained_is_named_before_the_first_one_is(tmp_path, coco_folder, entry, message):
    with pytest.raises(ValueError, match=message):
        mw.compare(["faster-rcnn-small", entry], data=coco_folder, out=tmp_path / "out", changes=["epochs=1"], device="cpu")
    assert not (tmp_path / "out" / "runs").exists()


def test_a_damaged_cache_is_made_anew(tmp_path):
    file = tmp_path / "costs.json"
    for content in ("[]", '{"answer": 1}', '{"key": {"a": 1}}'):
        file.write_text(content)
        assert kept.kept(file, {"a": 1}, lambda: 7) == 7
        assert kept.kept(file, {"a": 1}, lambda: 8) == 7


def test_report_of_a_run(tiny_run, tmp_path, console):
    found = mw.report(tiny_run, device="cpu", console=console)
    page = (tiny_run / "report.html").read_text()
    assert "report written to" in console.file.getvalue()
    for part in ("instances-speed", "instances-sizes", "instances-classes", "instances-recall", "instances-training"):
        assert f'id="{part}"' in page
    assert found.metrics["segm"].ap >= 0
    assert "maskwright report" in page
    with pytest.raises(ValueError, match="is not the folder of a run"):
        mw.report(tmp_path)


def test_a_run_knows_which_images_of_a_divided_file_it_learnt_from(tiny_run, tmp_path, console):
    run, data = tmp_path / "run", tmp_path / "data"
    shutil.copytree(tiny_run, run)
    shutil.copytree(tiny_run.parent / "data", data)
    file, images = data / "annotations" / "train.json", str(data / "images")
    recipe = read_recipe(run / "recipe.yaml")
    options = recipe.data.model_copy(update={"path": str(file), "images": images, "val_fraction": 0.5})
    (run / "recipe.yaml").write_text(recipe.model_copy(update={"data": options}).to_yaml())
    (run / "split.json").write_text(json.dumps({"train": [100, 300], "val": [200, 400]}))
    mw.evaluate(run, data=file, images=images, device="cpu", console=console)
    assert "2 of these 4 images were learnt from" in " ".join(console.file.getvalue().split())
    moved = file.rename(tmp_path / "elsewhere.json")
    shutil.move(images, tmp_path / "pictures")
    with pytest.raises(ValueError, match="say where it is with --data"):
        mw.report(run, device="cpu", console=console)
    mw.report(run, data=moved, images=tmp_path / "pictures", device="cpu", console=console)


def test_systems_of_two_tasks_in_one_table(compared):
    root, _, answer, _ = compared
    assert len(answer.tables) == 2
    runs = [f"masks: {root / 'out' / 'runs' / 'mask-rcnn-small-0'}", f"boxes: {root / 'out' / 'runs' / 'boxes-0'}"]
    options = {"data": root / "data", "device": "cpu"}
    ranked = mw.compare(runs, out=root / "by-boxes", by="boxes", **options)
    (table,) = ranked.tables
    assert (table.task, {row.name for row in table.rows}) == ("boxes", {"masks", "boxes"})
    assert len(table.differences) == 1
    assert "--by boxes" in ranked.command
    own = {row.name: row for row in answer.rows}["mask-rcnn-small"]
    mine = {row.name: row for row in table.rows}["masks"]
    assert (mine.kind, own.kind) == ("bbox", "segm")
    assert set(mine.metrics[0]) == {"bbox"}
    best = mw.evaluate(root / "out" / "runs" / "mask-rcnn-small-0", data=root / "data", device="cpu").metrics["bbox"]
    assert mine.by_seed["ap"] == [pytest.approx(max(best.ap, 0), abs=1e-9)]
    (point,) = mine.facts.histories[0]
    line = json.loads((root / "out" / "runs" / "mask-rcnn-small-0" / "metrics.jsonl").read_text().splitlines()[-1])
    assert point["ap"] == pytest.approx(line["bbox"]["ap"])
    with pytest.raises(ValueError, match="'boxes' answers boxes, which cannot be ranked by masks"):
        mw.compare(runs, out=root / "by-masks", by="masks", **options)
    with pytest.raises(ValueError, match="'faster-rcnn-small' answers boxes, which cannot be ranked by masks"):
        mw.compare(["faster-rcnn-small"], out=root / "never", by="masks", **options)
    with pytest.raises(ValueError, match="'sharpmask-small' answers proposals, which cannot be ranked by masks"):
        mw.compare(["sharpmask-small"], out=root / "never", by="masks", **options)
    with pytest.raises(ValueError, match="got the ranking 'area', expected boxes, masks, keypoints"):
        mw.compare(runs, out=root / "never", by="area", **options)
    assert not (root / "never").exists()


def test_images_left_out_of_training_do_not_hinder_going_on(tmp_path, console):
    make_coco(tmp_path / "data", split="train", seed=1)
    make_coco(tmp_path / "data", split="val", seed=2, images=3)
    file = tmp_path / "data" / "annotations" / "train.json"
    data = json.loads(file.read_text())
    first = data["images"][0]["id"]
    file.write_text(json.dumps({**data, "annotations": [a for a in data["annotations"] if a["image_id"] != first]}))
    options = {
        "data": tmp_path / "data", "out": tmp_path / "out", "epochs": 1, "seeds": 1, "device": "cpu", "console": console,
        "changes": [*CHANGES, "train_on=objects"],
    }  # fmt: skip
    before = mw.compare(["mask-rcnn-small"], **options)
    again = mw.compare(["mask-rcnn-small"], **options)
    assert again.rows[0].by_seed["ap"] == before.rows[0].by_seed["ap"]


def test_a_run_that_cannot_be_ranked_is_refused_before_anything_is_trained(compared, tmp_path):
    root, *_ = compared
    boxes = str(root / "out" / "runs" / "boxes-0")
    with pytest.raises(ValueError, match="'boxes-0' answers boxes, which cannot be ranked by masks"):
        mw.compare(["mask-rcnn-small", boxes], data=root / "data", out=tmp_path / "never", by="masks", changes=CHANGES)
    assert not (tmp_path / "never" / "runs").exists()


def test_somebodys_keypoints_alone_are_ranked(corners_folder, tmp_path):
    truth = json.loads((corners_folder / "annotations" / "val.json").read_text())["annotations"]
    entries = [{key: a[key] for key in ("image_id", "category_id", "keypoints")} | {"score": 0.5} for a in truth]
    (tmp_path / "theirs.json").write_text(json.dumps(entries))
    answer = mw.compare(
        [str(tmp_path / "theirs.json")], data=corners_folder, out=tmp_path / "out", by="keypoints", device="cpu"
    )
    assert (answer.tables[0].task, answer.rows[0].by_seed["ap"]) == ("keypoints", [1.0])
