import json
from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torchvision.models.detection import maskrcnn_resnet50_fpn

import maskwright as mw
from maskwright.formats.dataset import Categories
from maskwright.recipes import DataOptions, find_recipe, read_recipe
from maskwright.runs import ModelCard, save_model
from maskwright.runs.checkpoints import find_backbone, find_weights
from maskwright.systems import SYSTEMS
from maskwright.training import train
from maskwright.training.network import suited
from maskwright.weights.published import PUBLISHED
from tests.conftest import tiny_recipe
from tests.published import keep_for_timm, publish, torch_hub


def test_init_takes_another_number_of_classes(tiny_run, coco_folder, tmp_path, console):
    recipe = tiny_recipe(coco_folder)
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"classes": ("disc",)})})
    train(recipe, tmp_path / "run", init=tiny_run, device="cpu", console=console)
    assert "1 of 1 classes known by name" in console.file.getvalue()
    card = json.loads((tmp_path / "run" / "best" / "model.json").read_text())
    assert card["categories"] == {"names": ["disc"], "ids": [3], "keypoints": None}


def test_frozen_norms_outside_the_backbone_want_weights_too(coco_folder, tmp_path, console):
    weights = tmp_path / "resnet50.safetensors"
    save_file(timm.create_model("resnet50").state_dict(), weights)
    for others in (f"backbone_weights={weights}", "arguments.norm=group"):
        recipe = find_recipe("embedmask-r50-fused").with_changes(["arguments.branch_norm=frozen", others])
        recipe = recipe.model_copy(update={"data": DataOptions(path=str(coco_folder))})
        with pytest.raises(ValueError, match=r"frozen norms outside the backbone.*--init.*branch_norm=group"):
            train(recipe, tmp_path / "run", device="cpu", console=console)
    assert not (tmp_path / "run").exists()


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


def test_one_word_starts_from_weights_on_coco(coco_folder, tmp_path, monkeypatch, console):
    name = "mask-rcnn-r50-fpn-torchvision"
    theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    publish(name, theirs, torch_hub(tmp_path, monkeypatch), monkeypatch)
    arguments = "arguments={short_px: 64, max_detections: 5}"
    changes = ["batch_size=2", "workers=0", "precision=float32", "optimizer.lr=1e-9", arguments]
    mw.train(
        name, data=coco_folder, out=tmp_path / "run", init="coco", epochs=0.5, changes=changes, device="cpu", console=console
    )
    said = " ".join(console.file.getvalue().split())
    assert "arguments.norm_eps=0.0, as the weights on COCO want" in said
    assert "0 of 2 classes known by name rows that start afresh: box, disc" in said
    recipe = read_recipe(tmp_path / "run" / "recipe.yaml")  # from which a run that goes on builds its network
    assert recipe.arguments == {"short_px": 64, "max_detections": 5, "norm_eps": 0.0}
    ours = load_file(tmp_path / "run" / "last" / "weights.safetensors")
    assert torch.equal(ours["backbone.network.conv1.weight"], theirs["backbone.body.conv1.weight"])
    assert torch.allclose(ours["fpn.output.4.weight"], theirs["backbone.fpn.layer_blocks.0.0.weight"], atol=1e-6)
    assert json.loads((tmp_path / "run" / "last" / "model.json").read_text())["arguments"]["norm_eps"] == 0.0


@pytest.mark.parametrize(
    ("system", "remedy"), [("mask-rcnn-r50-fpn-torchvision", r"RUN\|FILE\|coco,"), ("fcos-r50", r"RUN\|FILE,")]
)
def test_the_word_is_named_where_weights_are_missing(system, remedy, coco_folder, tmp_path, console):
    recipe = find_recipe(system).model_copy(update={"data": DataOptions(path=str(coco_folder))})
    with pytest.raises(ValueError, match=f"has frozen norms or parts, .*: add --init {remedy}"):
        train(recipe, tmp_path / "run", device="cpu", console=console)


def test_arguments_given_stay_where_published_weights_want_others(console):
    name = "mask-rcnn-r50-fpn-torchvision"
    recipe = find_recipe(name).with_changes(["arguments.norm_eps=1e-5", "arguments.short_px=640"])
    assert suited(recipe, "coco", console) == recipe
    assert suited(recipe, "runs/coco", console) == recipe
    second = suited(find_recipe(f"{name}-v2"), "coco", console)
    assert second.arguments == PUBLISHED[f"{name}-v2"].arguments == {"branch_norm": "frozen"}
    assert suited(find_recipe("fcos-r50-torchvision"), "coco", console).arguments == {}


def test_a_run_records_which_of_timms_weights_it_began_with(coco_folder, tmp_path, monkeypatch, console):
    torch.manual_seed(1)
    states = {tag: timm.create_model("resnet18").state_dict() for tag in ("tv_in1k", "a1_in1k")}
    for tag, state in states.items():
        keep_for_timm(tmp_path / "hub", f"resnet18.{tag}", state, monkeypatch)
    for source, tag in (("timm", "tv_in1k"), ("timm:a1_in1k", "a1_in1k")):
        recipe = tiny_recipe(coco_folder, f"backbone_weights={source}", "arguments.norm=frozen", "frozen=[backbone.]")
        train(recipe, tmp_path / tag, device="cpu", console=console)
        assert f"backbone: resnet18.{tag} of timm\n" in console.file.getvalue()
        assert read_recipe(tmp_path / tag / "recipe.yaml").backbone_weights == f"timm:{tag}"
        ours = load_file(tmp_path / tag / "last" / "weights.safetensors")
        assert torch.equal(ours["backbone.network.conv1.weight"], states[tag]["conv1.weight"])
    with pytest.raises(ValueError, match=r"got backbone_weights=timm:tv_in1, expected weights timm has of resnet18: a1_in1k, "):
        train(tiny_recipe(coco_folder, "backbone_weights=timm:tv_in1"), tmp_path / "no", device="cpu", console=console)
    recipe = tiny_recipe(coco_folder, "backbone_weights=timm:tv_in1k", "arguments.weights_origin=caffe")
    with pytest.raises(ValueError, match="timm's weights do not fit a ResNet of caffe: leave arguments"):
        train(recipe, tmp_path / "no", device="cpu", console=console)
    assert not (tmp_path / "no").exists()
