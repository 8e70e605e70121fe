import os
import pickle

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from maskwright.layers.backbones import VGG_HIDDEN, Backbone, LastStage
from maskwright.structures import InputSpec, ResizeRule
from maskwright.weights import load_backbone, load_part
from maskwright.weights.backbone import in_words, is_word, spell_out
from maskwright.weights.files import read_state_dict
from tests.published import keep_for_timm


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(3)
    return timm.create_model("resnet50").state_dict()


def backbone():
    return Backbone("resnet50", strides=(4, 8, 16, 32), norm="frozen")


@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
def test_pth_and_safetensors_fill_the_network(tmp_path, state, wrap):
    path = tmp_path / "a.pth"
    torch.save(state if wrap is None else {wrap: state, "epoch": 3}, path)
    save_file(state, tmp_path / "a.safetensors")
    for file in (path, tmp_path / "a.safetensors"):
        ours = backbone()
        load_backbone(ours.network, "resnet50", str(file))
        assert all(torch.equal(v, state[k]) for k, v in ours.network.state_dict().items())


def test_torchvision_files_fit(tmp_path):
    torch.save(torchvision.models.resnet50(weights=None).state_dict(), tmp_path / "a.pth")
    load_backbone(backbone().network, "resnet50", str(tmp_path / "a.pth"))


@pytest.mark.parametrize("names", [["backbone"], ["backbones.0.0", "backbones.1.0"]])
def test_a_run_brings_its_first_backbone_to_another_family(tmp_path, names):
    theirs = [Backbone("resnet18", strides=(4, 8, 16), norm="group") for _ in names]
    tensors = {f"{name}.{key}": v.clone() for name, b in zip(names, theirs, strict=True) for key, v in b.state_dict().items()}
    save_file({**tensors, "rpn.conv.weight": torch.zeros(1)}, tmp_path / "weights.safetensors")
    ours = Backbone("resnet18", strides=(8,), norm="group", dilated=True)
    load_backbone(ours.network, "resnet18", str(tmp_path / "weights.safetensors"))
    wanted = theirs[0].network.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in ours.network.state_dict().items())


def test_the_last_stage_comes_out_of_a_run_too(tmp_path, state):
    save_file(
        {f"backbone.network.{key}": v for key, v in state.items() if not key.startswith("fc.")}, tmp_path / "a.safetensors"
    )
    stage = LastStage("resnet50", norm="frozen")
    load_part(stage, str(stage.pretrained), stage.sources, str(tmp_path / "a.safetensors"))
    assert torch.equal(stage.state_dict()["blocks.0.conv1.weight"], state["layer4.0.conv1.weight"])


class Hidden(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.other = torch.nn.Linear(8, 4), torch.nn.Linear(4, 4), torch.nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("names", "shape"), [(("pre_logits.fc1", "pre_logits.fc2"), (4, 2, 2, 2)), (("classifier.0", "classifier.3"), (4, 8))]
)
def test_hidden_layers_of_vgg_are_filled_from_either_toolkit(tmp_path, names, shape):
    fc1, fc2 = torch.arange(32.0).reshape(shape), torch.arange(16.0).reshape(4, 4, *(1,) * (len(shape) - 2))
    table = {f"{name}.weight": w for name, w in zip(names, (fc1, fc2), strict=True)}
    table |= {f"{name}.bias": torch.full((4,), float(i)) for i, name in enumerate(names)}
    save_file({**table, "features.0.weight": torch.zeros(1)}, tmp_path / "vgg.safetensors")
    part = Hidden()
    before = part.other.weight.clone()
    load_part(part, "vgg16", VGG_HIDDEN, str(tmp_path / "vgg.safetensors"))
    assert torch.equal(part.fc1.weight, torch.arange(32.0).reshape(4, 8))  # channels first, then rows, then columns
    assert torch.equal(part.fc2.weight, torch.arange(16.0).reshape(4, 4))
    assert part.fc2.bias.tolist() == [1] * 4
    assert torch.equal(part.other.weight, before)
    save_file({"features.0.weight": torch.zeros(1)}, tmp_path / "cut.safetensors")
    with pytest.raises(ValueError, match=r"cut\.safetensors: not weights of vgg16: pre_logits\.fc1\.weight is missing"):
        load_part(part, "vgg16", VGG_HIDDEN, str(tmp_path / "cut.safetensors"))


def test_last_stage_is_filled_from_the_same_file(tmp_path, state):
    save_file(state, tmp_path / "a.safetensors")
    stage = LastStage("resnet50", norm="frozen")
    load_part(stage, str(stage.pretrained), stage.sources, str(tmp_path / "a.safetensors"))
    own = stage.state_dict()
    assert len(own) == 50  # ten convolutions and their norms
    assert all(torch.equal(value, state[name.replace("blocks", "layer4")]) for name, value in own.items())
    assert stage(torch.zeros(1, 1024, 14, 14)).shape == (1, 2048, 7, 7)


class Gadget:
    def __reduce__(self):
        return (os.system, ("touch gotcha",))


def test_files_that_would_run_code_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pth").write_bytes(pickle.dumps(Gadget(), protocol=2))
    torch.save({"state_dict": Gadget()}, tmp_path / "b.pth")
    for name in ("a.pth", "b.pth"):
        with pytest.raises(ValueError, match=f"{name}: .*only tensors and plain containers are read"):
            load_backbone(backbone().network, "resnet50", str(tmp_path / name))
    assert not (tmp_path / "gotcha").exists()


def test_other_networks_and_files_are_named(tmp_path, state):
    save_file(timm.create_model("resnet18").state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(
        ValueError, match=r"a\.safetensors: not weights of resnet50: .* and \d+ more are missing or of another shape"
    ):
        load_backbone(backbone().network, "resnet50", str(tmp_path / "a.safetensors"))
    with pytest.raises(ValueError, match="there is no such weights file"):
        load_backbone(backbone().network, "resnet50", str(tmp_path / "nope.pth"))
    torch.save([1, 2], tmp_path / "b.pth")
    with pytest.raises(ValueError, match="holds no table of tensors"):
        load_backbone(backbone().network, "resnet50", str(tmp_path / "b.pth"))
    (tmp_path / "c.safetensors").write_bytes(b"12")
    with pytest.raises(ValueError, match="damaged, or not a safetensors file"):
        load_backbone(backbone().network, "resnet50", str(tmp_path / "c.safetensors"))


@pytest.mark.parametrize("legacy", [False, True])
def test_cut_files_are_named(legacy, tmp_path):
    file = tmp_path / "a.pth"
    torch.save({"a": torch.zeros(9)}, file, _use_new_zipfile_serialization=not legacy)
    whole = file.read_bytes()
    for length in [0, 1, 2, *range(10, len(whole) - 1, 30)]:
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"a\.pth: (empty, cut off or )?(not a torch checkpoint|holds)"):
            read_state_dict(file)


def test_what_wrappers_add_is_left_away(tmp_path):
    a = torch.zeros(1)
    for saved in [{"n_averaged": a, "module.a": a}, {"state_dict": {"model._orig_mod.a": a}}, {"model": {"a": a}, "epoch": 1}]:
        torch.save(saved, tmp_path / "a.pth")
        assert list(read_state_dict(tmp_path / "a.pth")) == ["a"]


def test_batch_norm_weights_do_not_slip_into_another_norm(tmp_path, state):
    save_file(state, tmp_path / "a.safetensors")
    other = Backbone("resnet50", strides=(4, 8, 16, 32), norm="group")
    with pytest.raises(ValueError, match="made for batch norm"):
        load_backbone(other.network, "resnet50", str(tmp_path / "a.safetensors"))


# Words


@pytest.mark.parametrize(
    ("network", "tag"),
    [  # of the paper sizes
        ("resnet50", "tv_in1k"),
        ("resnet101", "tv_in1k"),
        ("resnext101_32x8d", "tv_in1k"),
        ("resnext101_64x4d", "tv_in1k"),
        ("vgg11", "tv_in1k"),
        ("vgg16", "tv_in1k"),
        ("efficientnet_b0", "ra_in1k"),  # torchvision's are not timm's
        ("resnet50.a1_in1k", "a1_in1k"),
    ],
)
def test_the_word_alone_stands_for_torchvisions_weights_or_timms_favorite(network, tag):
    assert spell_out("timm", [network, network]) == f"timm:{tag}"
    assert is_word("timm")


def test_tags_are_taken_as_given_and_paths_as_they_are():
    assert spell_out("timm:a1_in1k", ["resnet50"]) == "timm:a1_in1k"
    assert is_word("timm:a1_in1k")
    for path in ("runs/a", "timm.pth", "./timm"):
        assert spell_out(path, ["resnet50"]) == path
        assert not is_word(path)


def test_weights_that_timm_does_not_have_are_named():
    with pytest.raises(ValueError, match=r"got backbone_weights=timm:tv, expected weights timm has of vgg16: tv_in1k$"):
        spell_out("timm:tv", ["vgg16"])
    with pytest.raises(ValueError, match=r"timm has no weights of botnet50ts_256: give a file .* backbone_weights=FILE"):
        spell_out("timm", ["botnet50ts_256"])
    with pytest.raises(ValueError, match="for resnet18, efficientnet_b0, expected a tag that all of them have"):
        spell_out("timm", ["resnet18", "efficientnet_b0"])


def test_other_pixels_than_the_systems_are_said():
    pixels = InputSpec(resize=ResizeRule(800, 1333))
    assert in_words("timm:tv_in1k", "resnet34", pixels) == "resnet34.tv_in1k of timm"
    said = in_words("timm:ra4_e3600_r224_in1k", "resnet34", pixels)
    assert said.endswith("of mean (0.5, 0.5, 0.5) and std (0.5, 0.5, 0.5), not (0.485, 0.456, 0.406) and (0.229, 0.224, 0.225)")


def test_tags_choose_among_what_timm_keeps(tmp_path, state, monkeypatch):
    other = timm.create_model("resnet50").state_dict()
    keep_for_timm(tmp_path, "resnet50.tv_in1k", state, monkeypatch)
    keep_for_timm(tmp_path, "resnet50.a1_in1k", other, monkeypatch)
    for source, wanted in (("timm", state), ("timm:a1_in1k", other)):
        ours = backbone()
        load_backbone(ours.network, "resnet50", source)
        assert all(torch.equal(v, wanted[k]) for k, v in ours.network.state_dict().items())
        stage = LastStage("resnet50", norm="frozen")
        load_part(stage, str(stage.pretrained), stage.sources, source)
        assert torch.equal(stage.state_dict()["blocks.0.conv1.weight"], wanted["layer4.0.conv1.weight"])


def test_without_a_network_timms_weights_and_their_place_are_named(tmp_path, state, monkeypatch):
    file = keep_for_timm(tmp_path, "vgg16.tv_in1k", {}, monkeypatch)
    places = rf"in {tmp_path}/models--timm--{{0}} nor download them from https://huggingface.co/timm/{{0}}"
    with pytest.raises(ValueError, match=places.format("resnet50.tv_in1k") + r" \(or as https://.*FILE \(An error happened"):
        load_backbone(backbone().network, "resnet50", "timm")
    file.write_bytes(b"12")
    with pytest.raises(ValueError, match=places.format("vgg16.tv_in1k") + ": give a file of them, --set backbone_weights=FILE"):
        load_backbone(backbone().network, "vgg16", "timm")
