import json
from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from maskwright.formats.dataset import Categories
from maskwright.recipes import DataOptions, find_recipe
from maskwright.runs import ModelCard, save_model
from maskwright.runs.checkpoints import find_backbone, find_weights
from maskwright.systems import SYSTEMS
from maskwright.training import train
from tests.conftest import tiny_recipe


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
