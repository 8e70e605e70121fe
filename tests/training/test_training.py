import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from maskwright.api import resume
from maskwright.data.loader import TrainingImages, training_batches
from maskwright.data.transforms import Compose
from maskwright.formats import files
from maskwright.formats.catalog import images_to_learn_from, open_split
from maskwright.formats.dataset import Categories
from maskwright.recipes import DataOptions, find_recipe
from maskwright.recipes.recipe import OptimizerOptions, ScheduleOptions
from maskwright.runs import ModelCard, save_model
from maskwright.runs.checkpoints import find_backbone, find_weights
from maskwright.systems import SYSTEMS
from maskwright.training import loop, train
from maskwright.training.optimization import build_optimizer, learning_rate_factor, moving_average, set_trainable
from maskwright.training.sources import open_data
from tests.conftest import add_corners, make_coco, tiny_recipe


def weights(run, folder="last"):
    return load_file(run / folder / "weights.safetensors")


def test_run_folder_explains_itself(tiny_run):
    names = {p.name for p in tiny_run.iterdir()} - {"report.html", "report-data.html"}  # which other tests write
    assert names == {"recipe.yaml", "split.json", "metrics.jsonl", "best", "last"}
    (line,) = [json.loads(text) for text in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    assert line["epoch"] == 1
    assert set(line["train_loss"]) == set(line["val_loss"]) == {"rpn_objectness", "rpn_box", "class", "box", "mask"}
    assert line["segm"]["max_detections"] == [1, 10, 20]
    assert json.loads((tiny_run / "split.json").read_text())["val"] == [5100, 5200, 5300, 5400]
    assert sorted(p.name for p in (tiny_run / "last").iterdir()) == [
        "model.json",
        "training.safetensors",
        "weights.safetensors",
    ]


def test_same_seed_same_weights(coco_folder, tmp_path, console):
    for name in ("a", "b"):
        train(tiny_recipe(coco_folder, f"workers={int(name == 'b')}"), tmp_path / name, device="cpu", console=console)
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(a[k], b[k]) for k in a)
    train(tiny_recipe(coco_folder, "seed=1"), tmp_path / "c", device="cpu", console=console)
    assert not torch.equal(a["rpn.conv.weight"], weights(tmp_path / "c")["rpn.conv.weight"])


class _Killed(BaseException):
    pass


def test_resume_equals_never_having_stopped(coco_folder, tmp_path, console, monkeypatch):
    recipe = tiny_recipe(coco_folder, "epochs=3", "checkpoint_steps=1", "evaluate_every=9")
    train(recipe, tmp_path / "whole", device="cpu", console=console)

    steps = {"count": 0}
    usual = loop._step

    def killed(*arguments):
        steps["count"] += 1
        if steps["count"] == 4:  # in the middle of the second epoch
            raise _Killed
        return usual(*arguments)

    monkeypatch.setattr(loop, "_step", killed)
    with pytest.raises(_Killed):
        train(recipe, tmp_path / "cut", device="cpu", console=console)
    monkeypatch.setattr(loop, "_step", usual)
    train(recipe, tmp_path / "cut", resume=True, device="cpu", console=console)
    whole, cut = load_file(tmp_path / "whole" / "last" / loop.STATE), load_file(tmp_path / "cut" / "last" / loop.STATE)
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[k], cut[k]) for k in whole)


def test_the_averaged_model_is_what_is_kept(coco_folder, tmp_path, console):
    train(tiny_recipe(coco_folder, "ema_decay=0.9"), tmp_path / "run", device="cpu", console=console)
    state, kept = load_file(tmp_path / "run" / "last" / loop.STATE), weights(tmp_path / "run")
    assert all(torch.equal(kept[k], state[f"average.module.{k}"]) for k in kept)
    assert any(not torch.equal(kept[k], state[f"model.{k}"]) for k in kept)


def test_the_averaged_model_is_what_is_scored(coco_folder, tmp_path, console, monkeypatch):
    scored, usual = [], loop.detect

    def detect(predict, *arguments, **options):
        scored.append({name: value.clone() for name, value in predict.__self__.state_dict().items()})
        return usual(predict, *arguments, **options)

    monkeypatch.setattr(loop, "detect", detect)
    train(tiny_recipe(coco_folder, "ema_decay=0.9"), tmp_path / "run", device="cpu", console=console)
    kept = weights(tmp_path / "run")
    assert all(torch.equal(kept[k], scored[0][k]) for k in kept)


def test_the_best_model_is_that_of_the_highest_score(coco_folder, tmp_path, console, monkeypatch):
    scores, kept, usual = iter([0.1, 0.4, 0.2]), [], loop._evaluate

    def evaluate(run, stage):
        losses, (*others, decisive) = usual(run, stage)
        kept.append({name: value.clone() for name, value in run.scored.state_dict().items()})
        return losses, [*others, replace(decisive, ap=next(scores))]

    monkeypatch.setattr(loop, "_evaluate", evaluate)
    train(tiny_recipe(coco_folder, "epochs=3"), tmp_path / "run", device="cpu", console=console)
    said = [line for line in console.file.getvalue().replace("\n", " ").split("epoch ")[1:] if "validation loss" in line]
    assert ["(best)" in line for line in said] == [True, True, False]
    best = weights(tmp_path / "run", "best")
    assert all(torch.equal(best[k], kept[1][k]) for k in best)
    assert any(not torch.equal(best[k], kept[2][k]) for k in best)


def test_gradients_are_cut_to_the_norm_of_the_recipe(coco_folder, tmp_path, console):
    changes = ["optimizer.kind=sgd", "optimizer.weight_decay=0", "optimizer.clip_norm=1e-6", "batch_size=8"]
    train(tiny_recipe(coco_folder, *changes), tmp_path / "run", device="cpu", console=console)  # one step
    state = load_file(tmp_path / "run" / "last" / loop.STATE)
    momenta = [value.flatten() for name, value in state.items() if name.endswith(".momentum_buffer")]
    assert float(torch.cat(momenta).norm()) == pytest.approx(1e-6, rel=0.01)


def test_momenta_come_back_in_the_layout_of_their_weights():
    conv = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(conv.parameters())
    conv(torch.randn(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    before = optimizer.state_dict()["state"]
    saved = {f"{i}.{key}": value.contiguous() for i, values in before.items() for key, value in values.items()}
    again = torch.optim.AdamW(conv.parameters())
    loop._restore_optimizer(again, saved)
    for i, values in again.state_dict()["state"].items():
        assert all(torch.equal(value, before[i][key]) for key, value in values.items())
    assert again.state[conv.weight]["exp_avg"].stride() == conv.weight.stride() != saved["0.exp_avg"].stride()


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


def test_run_killed_in_its_first_step_can_be_resumed(coco_folder, tmp_path, console, monkeypatch):
    usual = loop._step

    def killed(*arguments):
        raise _Killed

    monkeypatch.setattr(loop, "_step", killed)
    with pytest.raises(_Killed):
        train(tiny_recipe(coco_folder), tmp_path / "run", device="cpu", console=console)
    monkeypatch.setattr(loop, "_step", usual)
    train(tiny_recipe(coco_folder), tmp_path / "run", resume=True, device="cpu", console=console)
    make_coco(coco_folder, split="train", images=5)
    with pytest.raises(ValueError, match=r"split\.json: the images of the data set have changed"):
        train(tiny_recipe(coco_folder), tmp_path / "run", resume=True, device="cpu", console=console)
    make_coco(coco_folder, split="train")
    for split in ("train", "val"):
        file = coco_folder / "annotations" / f"{split}.json"
        file.write_text(file.read_text().replace('"box"', '"crate"'))
    with pytest.raises(
        ValueError,
        match=r"its classes are crate \(id 7\), disc \(id 3\), but were box \(id 7\), disc \(id 3\) when the run began",
    ):
        train(tiny_recipe(coco_folder), tmp_path / "run", resume=True, device="cpu", console=console)


def test_validation_images_without_objects_give_a_model_but_no_score(coco_folder, tmp_path, console):
    file = coco_folder / "annotations" / "val.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "annotations": []}))
    train(tiny_recipe(coco_folder), tmp_path / "run", device="cpu", console=console)
    said = console.file.getvalue()
    assert "no objects in the validation images" in said
    assert "mask AP - AP50 - (best)" in said
    assert (tmp_path / "run" / "best" / "weights.safetensors").is_file()


def test_builder_defaults_are_saved_with_the_run(tiny_run):
    arguments = json.loads((tiny_run / "best" / "model.json").read_text())["arguments"]
    assert arguments == {
        "num_classes": 2,
        "max_detections": 20,
        "num_proposals": 50,
        "short_px": 64,
        "long_px": 96,
        "score_threshold": 0.05,
    }


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
    state, metadata = loop.read_tensors(tmp_path / "run" / "last" / loop.STATE)
    assert metadata["training"]["step"] >= 2
    assert all(torch.isfinite(v.float()).all() for v in state.values())
    assert weights(tmp_path / "run")


def test_init_takes_another_number_of_classes(tiny_run, coco_folder, tmp_path, console):
    recipe = tiny_recipe(coco_folder)
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"classes": ("disc",)})})
    train(recipe, tmp_path / "run", init=tiny_run, device="cpu", console=console)
    assert "1 of 1 classes known by name" in console.file.getvalue()
    card = json.loads((tmp_path / "run" / "best" / "model.json").read_text())
    assert card["categories"] == {"names": ["disc"], "ids": [3], "keypoints": None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["frozen=[backbones]"], "frozen parts backbones begin no parameter"),
        (["arguments.shrt_px=3"], "has no argument shrt_px"),
        (["losses=[mask, msk]"], "the loss has no term msk: there are rpn_objectness"),
    ],
)
def test_mistakes_are_found_before_the_first_step(coco_folder, tmp_path, console, changes, message):
    with pytest.raises(ValueError, match=message):
        train(tiny_recipe(coco_folder, *changes), tmp_path / "run", device="cpu", console=console)
    assert not (tmp_path / "run").exists()


def test_folders_and_data_are_checked_before_anything_is_written(coco_folder, tmp_path, console):
    out = tmp_path / "run"
    with pytest.raises(ValueError, match="has frozen norms or parts, which only make sense with pretrained weights"):
        train(
            tiny_recipe(coco_folder, "arguments={}", system="mask-rcnn-small").model_copy(
                update={"system": "mask-rcnn-r50-fpn"}
            ),
            out,
            device="cpu",
            console=console,
        )
    (coco_folder / "images" / "val_2.png").unlink()
    with pytest.raises(ValueError, match=r"val\.json: 1 images are missing: .*val_2\.png"):
        train(tiny_recipe(coco_folder), out, device="cpu", console=console)
    assert not out.exists()
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    with pytest.raises(ValueError, match="the folder is not empty"):
        train(tiny_recipe(coco_folder), out, device="cpu", console=console)
    with pytest.raises(ValueError, match="no checkpoint to resume from"):
        train(tiny_recipe(make_and_path(tmp_path)), out, resume=True, device="cpu", console=console)
    assert (out / "mine.txt").read_text() == "precious"


def make_and_path(tmp_path):
    for split in ("train", "val"):
        make_coco(tmp_path / "other", split=split)
    return tmp_path / "other"


def test_damaged_and_wrong_images_are_found_before_the_first_step(coco_folder, tmp_path, console):
    image = coco_folder / "images" / "train_1.png"
    whole = image.read_bytes()
    Image.new("RGB", (10, 10)).save(image)
    with pytest.raises(ValueError, match=r"train_1\.png: the upright image is 10 x 10"):
        train(tiny_recipe(coco_folder), tmp_path / "run", device="cpu", console=console)
    assert not (tmp_path / "run").exists()
    image.write_bytes(whole[: len(whole) // 2])  # the header alone is right
    with pytest.raises(ValueError, match=r"^[^\n]*train_1\.png: the image is damaged or cut off[^\n]*$"):
        train(tiny_recipe(coco_folder, "workers=1"), tmp_path / "run", device="cpu", console=console)


def test_keypoints_of_both_splits_are_the_same(corners_folder, tmp_path, console):
    file = corners_folder / "annotations" / "val.json"
    data = json.loads(file.read_text())
    for category in data["categories"]:
        category["keypoints"] = category["keypoints"][::-1]
    file.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"val\.json: its keypoints \(.*\) are not those of .*train\.json"):
        train(tiny_recipe(corners_folder, system="keypoint-rcnn-small"), tmp_path / "run", device="cpu", console=console)
    for category in data["categories"]:
        del category["keypoints"], category["skeleton"]
    file.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"val\.json: its keypoints \(none\) are not those"):
        train(tiny_recipe(corners_folder, system="keypoint-rcnn-small"), tmp_path / "run", device="cpu", console=console)
    assert not (tmp_path / "run").exists()


def test_a_run_folder_never_imports_code(tiny_run, tmp_path):
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    (run / "recipe.yaml").write_text((tiny_run / "recipe.yaml").read_text().replace("mask-rcnn-small", "os:system"))
    with pytest.raises(ValueError, match="a folder alone never imports code"):
        resume(run)
    with pytest.raises(ValueError, match="no checkpoint to resume from"):
        resume(tmp_path)


def test_box_only_annotations_train_a_box_system(coco_folder, tmp_path, console):
    for split in ("train", "val"):
        file = coco_folder / "annotations" / f"{split}.json"
        data = json.loads(file.read_text())
        for annotation in data["annotations"]:
            del annotation["segmentation"]
        file.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="some annotations have no segmentation"):
        train(tiny_recipe(coco_folder), tmp_path / "run", device="cpu", console=console)
    metrics = train(tiny_recipe(coco_folder, system="faster-rcnn-small"), tmp_path / "run", device="cpu", console=console)
    assert metrics.kind == "bbox"


def test_group_norm_trains_a_paper_size_from_scratch_without_frozen_parts():
    system = SYSTEMS["faster-rcnn-r50-fpn"](num_classes=1, norm="group")
    stage = find_recipe("faster-rcnn-r50-fpn").with_changes(["frozen=[]"]).stages[0]
    set_trainable(system, stage)
    assert all(p.requires_grad for p in system.parameters())


# Optimization


def test_step_schedule():
    schedule = ScheduleOptions(kind="step", warmup_steps=10, warmup_factor=0.001, drops=(0.5, 0.75))
    factors = [learning_rate_factor(schedule, step, 100) for step in range(100)]
    assert factors[:2] == pytest.approx([0.001, 0.001 + 0.999 / 10])
    assert factors[9] == pytest.approx(1 - 0.999 / 10)
    assert factors[10] == factors[49] == 1
    assert factors[50] == factors[74] == pytest.approx(0.1)
    assert factors[75] == pytest.approx(0.01)


def test_constant_warm_up():
    schedule = ScheduleOptions(kind="step", warmup_steps=10, warmup_factor=1 / 3, warmup_kind="constant")
    assert {learning_rate_factor(schedule, step, 1000) for step in range(10)} == {1 / 3}
    assert learning_rate_factor(schedule, 10, 1000) == 1


def test_frozen_norms_outside_the_backbone_want_weights_too(coco_folder, tmp_path, console):
    weights = tmp_path / "resnet50.safetensors"
    save_file(timm.create_model("resnet50").state_dict(), weights)
    for others in (f"backbone_weights={weights}", "arguments.norm=group"):
        recipe = find_recipe("embedmask-r50-fused").with_changes(["arguments.branch_norm=frozen", others])
        recipe = recipe.model_copy(update={"data": DataOptions(path=str(coco_folder))})
        with pytest.raises(ValueError, match=r"frozen norms outside the backbone.*--init.*branch_norm=group"):
            train(recipe, tmp_path / "run", device="cpu", console=console)
    assert not (tmp_path / "run").exists()


def test_what_is_found_in_images_of_nothing_is_a_loss(coco_folder, tmp_path, console):
    file = coco_folder / "annotations" / "val.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"annotations": []}))
    train(tiny_recipe(coco_folder, system="fcos-small"), tmp_path / "run", device="cpu", console=console)
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert line["val_loss"]["class"] > 0
    assert line["val_loss"]["box"] == 0


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


def test_the_rate_is_scaled_and_said(coco_folder, tmp_path, console):
    changes = ["batch_size=2", "optimizer.lr=0.01", "optimizer.lr_images=8", "schedule.kind=step", "schedule.warmup_steps=0"]
    train(tiny_recipe(coco_folder, *changes), tmp_path / "run", device="cpu", console=console)
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text())["lr"] == pytest.approx(0.0025)
    said = " ".join(console.file.getvalue().split())
    assert "training: 2 steps of 2 images, 1 epochs, adamw, learning rate 0.0025 (0.01 for 8 images, in proportion)" in said


def test_images_without_objects_or_keypoints_may_be_left_out(coco_folder, tmp_path, console):
    file = coco_folder / "annotations" / "train.json"
    add_corners(coco_folder)
    data = json.loads(file.read_text())
    first, second, third, *_ = [image["id"] for image in data["images"]]
    for entry in data["annotations"]:
        entry["iscrowd"] = int(entry["image_id"] == second)
        if entry["image_id"] == third:
            entry["keypoints"] = [0] * len(entry["keypoints"])
    data["annotations"] = [entry for entry in data["annotations"] if entry["image_id"] != first]
    file.write_text(json.dumps(data))
    dataset = open_split(coco_folder, "train")
    assert images_to_learn_from(dataset, "all") == [0, 1, 2, 3]
    assert images_to_learn_from(dataset, "objects") == [2, 3]
    assert images_to_learn_from(dataset, "keypoints") == [3]
    with pytest.raises(ValueError, match="no training image has keypoints: .* --set train_on=all"):
        images_to_learn_from(dataset.subset([0, 1, 2]), "keypoints")
    bare = make_coco(tmp_path / "bare", split="train")
    make_coco(tmp_path / "bare", split="val")
    assert bare["categories"]
    with pytest.raises(ValueError, match="none of its categories has keypoints, which keypoint-rcnn-small needs"):
        open_data(tiny_recipe(tmp_path / "bare", "train_on=keypoints", system="keypoint-rcnn-small"))
    train(tiny_recipe(coco_folder, "train_on=objects"), tmp_path / "run", device="cpu", console=console)
    assert json.loads((tmp_path / "run" / "split.json").read_text())["train"] == [third, data["images"][3]["id"]]


def test_the_backbone_of_a_run_of_another_family(coco_folder, tiny_run, tmp_path, console):
    for number, source in enumerate((tiny_run, tiny_run / "last" / "weights.safetensors")):
        recipe = tiny_recipe(coco_folder, f"backbone_weights={source}", "optimizer.lr=1e-9", system="mnc-small")
        train(recipe, tmp_path / f"{number}", device="cpu", console=console)
        ours = load_file(tmp_path / f"{number}" / "last" / "weights.safetensors")
        theirs = load_file(find_weights(source))
        shared = {name: name.split(".network.")[1] for name in ours if ".network." in name}
        assert len(shared) == 45
        assert all(torch.allclose(ours[name], theirs[f"backbone.network.{key}"], atol=1e-6) for name, key in shared.items())
    with pytest.raises(ValueError, match="nowhere: there is no such run or weights file"):
        train(tiny_recipe(coco_folder, "backbone_weights=nowhere"), tmp_path / "no", device="cpu", console=console)


def test_backbones_for_other_pixels_or_norms_are_refused(tmp_path):
    system = SYSTEMS["mask-rcnn-r50-c4"](num_classes=1, weights_origin="detectron2")
    categories = Categories(("a",), (1,))
    card = ModelCard("mask-rcnn-r50-c4", {"num_classes": 1, "weights_origin": "detectron2"}, categories, system.input)
    save_model(tmp_path / "run" / "best", card, {"a": torch.zeros(1)})
    assert find_backbone(str(tmp_path / "run"), card).endswith("weights.safetensors")
    other = replace(card, arguments={"num_classes": 1, "weights_origin": "timm"})
    with pytest.raises(ValueError, match="its ResNet is that of detectron2, .* add --set arguments.weights_origin=detectron2"):
        find_backbone(str(tmp_path / "run"), other)
    other = replace(card, arguments={**card.arguments, "norm_eps": 0.0})
    with pytest.raises(ValueError, match="its norms want eps 1e-05"):
        find_backbone(str(tmp_path / "run"), other)


def test_biases_of_norms_have_the_smaller_decay():
    system = SYSTEMS["fcos-small"](num_classes=1)
    options = OptimizerOptions(kind="sgd", lr=0.1, weight_decay=0.3, bias_weight_decay=0.0, norm_weight_decay=0.1)
    groups = {g["weight_decay"]: g["params"] for g in build_optimizer(system, options).param_groups}
    norms = [m for m in system.modules() if isinstance(m, torch.nn.GroupNorm)]
    assert {id(p) for p in groups[0.1]} == {id(m.weight) for m in norms}
    assert {id(m.bias) for m in norms} < {id(p) for p in groups[0.0]}


def test_cosine_schedule():
    schedule = ScheduleOptions(kind="cosine", warmup_steps=0)
    assert learning_rate_factor(schedule, 0, 100) == 1
    assert learning_rate_factor(schedule, 50, 100) == pytest.approx(0.5)
    assert learning_rate_factor(schedule, 100, 100) == pytest.approx(0, abs=1e-12)


def test_norms_and_biases_have_decay_of_their_own():
    system = SYSTEMS["mask-rcnn-small"](num_classes=1)
    options = OptimizerOptions(kind="adamw", lr=0.1, weight_decay=0.3, bias_weight_decay=0.2, norm_weight_decay=0.1)
    groups = {g["weight_decay"]: g["params"] for g in build_optimizer(system, options).param_groups}
    norms = sum(1 for m in system.modules() if isinstance(m, torch.nn.GroupNorm))
    assert len(groups[0.1]) == 2 * norms > 0
    assert all(p.ndim == 1 for p in groups[0.2])
    assert all(p.ndim > 1 for p in groups[0.3])
    assert sum(map(len, groups.values())) == len(list(system.parameters()))


def test_warm_up_never_fills_a_short_stage():
    schedule = ScheduleOptions(kind="step", warmup_steps=1000, drops=(0.5,))
    assert learning_rate_factor(schedule, 10, 100) == 1


def test_gradients_of_an_earlier_stage_are_forgotten():
    system = SYSTEMS["faster-rcnn-small"](num_classes=1)
    system.backbone.network.conv1.weight.grad = torch.ones_like(system.backbone.network.conv1.weight)
    set_trainable(system, find_recipe("faster-rcnn-small").with_changes(["frozen=[backbone.]"]).stages[0])
    assert system.backbone.network.conv1.weight.grad is None


def test_frozen_parts_stay_out_of_the_optimizer():
    system = SYSTEMS["mask-rcnn-small"](num_classes=1)
    stage = find_recipe("mask-rcnn-small").with_changes(["frozen=[backbone.]"]).stages[0]
    set_trainable(system, stage)
    held = {id(p) for g in build_optimizer(system, stage.optimizer).param_groups for p in g["params"]}
    assert not held & {id(p) for p in system.backbone.parameters()}
    assert held >= {id(p) for p in system.fpn.parameters()}


def test_moving_average_follows_quickly_then_slowly():
    system = SYSTEMS["mask-rcnn-small"](num_classes=1)
    average = moving_average(system, 0.9)
    bias = system.rpn.conv.bias
    expected = 0.0
    for step in range(40):
        with torch.no_grad():
            bias.fill_(float(step))
        average.update_parameters(system)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = expected * decay + step * (1 - decay) if step else 0.0
    assert float(average.module.rpn.conv.bias[0].detach()) == pytest.approx(expected, rel=1e-5)


def test_training_stops_on_no_images(coco_folder):
    nothing = open_split(coco_folder, "train").subset([])
    spec = SYSTEMS["mask-rcnn-small"](num_classes=1).input
    images = TrainingImages(nothing, spec=spec, transform=Compose([]), batch_size=2, seed=0)
    with pytest.raises(ValueError, match="no images to train on"):
        training_batches(images, workers=0)
