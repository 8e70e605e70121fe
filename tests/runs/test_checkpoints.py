import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from maskwright.formats.dataset import Categories
from maskwright.runs import ModelCard, choose_device, choose_precision, open_model, save_model
from maskwright.runs.checkpoints import WEIGHTS, build_system, find_weights, read_tensors
from tests.runs.models import small


@pytest.fixture
def saved(tmp_path):
    system, card = small(["cat", "dog"], [5, 9])
    save_model(tmp_path / "best", card, system.state_dict())
    return tmp_path


def test_a_file_alone_is_enough(saved):
    system, card = open_model(saved / "best" / WEIGHTS)
    assert card.categories == Categories(("cat", "dog"), (5, 9))
    assert open_model(saved)[1] == open_model(saved / "best")[1] == card
    assert json.loads((saved / "best" / "model.json").read_text())["system"] == "mask-rcnn-small"
    assert system.input == card.input


def test_best_is_preferred_to_last(saved):
    system, card = small(["cat", "dog"], seed=1)
    save_model(saved / "last", card, system.state_dict())
    assert find_weights(saved).parent.name == "best"


def test_arguments_can_be_given_instead(saved):
    assert open_model(saved, {"max_detections": 7, "num_proposals": 50})[0].max_detections == 7
    assert open_model(saved, {"short_px": 77})[0].input.resize.short_px == 77
    assert open_model(saved)[0].input.resize.short_px == 512
    with pytest.raises(ValueError, match="mask-rcnn-small has no argument max_detection: there are"):
        open_model(saved, {"max_detection": 7})
    with pytest.raises(ValueError, match=r"embedmask-small do not fit:\n  margin: .* 'learned' or 'fixed' \(got 'fixd'\)"):
        build_system("embedmask-small", {"num_classes": 1, "margin": "fixd"})


def test_half_precision_files_load_as_float32(saved):
    path = saved / "best" / WEIGHTS
    tensors, metadata = read_tensors(path)
    save_file({k: v.half() for k, v in tensors.items()}, path, {k: json.dumps(v) for k, v in metadata.items()})
    system, _ = open_model(path)
    assert {p.dtype for p in system.parameters()} == {torch.float32}


def test_what_cannot_be_opened_is_named(saved, tmp_path):
    path = saved / "best" / WEIGHTS
    with pytest.raises(ValueError, match="there is no such run"):
        open_model(tmp_path / "nope")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no weights in this folder"):
        open_model(tmp_path / "empty")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"weights\.safetensors: damaged"):
        open_model(path)
    path.write_bytes(b"\x80\x04\x95" + b"pickle" * 20)
    with pytest.raises(ValueError, match="not a safetensors file"):
        open_model(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="its header names no system"):
        open_model(path)


def rewrite(path, change):
    tensors, metadata = read_tensors(path)
    change(tensors, metadata)
    save_file(tensors, path, {k: json.dumps(v) for k, v in metadata.items()})


def test_cards_that_lie_about_their_classes_and_plain_files_are_refused(saved):
    path = saved / "best" / WEIGHTS
    rewrite(path, lambda _, metadata: metadata["maskwright"]["categories"].update(names=["cat"]))
    with pytest.raises(ValueError, match="not a model of maskwright"):
        open_model(path)
    save_file({"a": torch.zeros(1)}, path, {"format": "pt"})
    with pytest.raises(ValueError, match="its header names no system"):
        open_model(path)


def test_weights_that_do_not_fit_are_named(saved):
    path = saved / "best" / WEIGHTS
    rewrite(path, lambda tensors, _: (tensors.pop("rpn.conv.weight"), tensors.update({"extra": torch.zeros(2)})))
    with pytest.raises(ValueError, match=r"missing rpn\.conv\.weight; unexpected extra"):
        open_model(path)


def test_a_file_never_imports_code_or_a_later_format(saved):
    path = saved / "best" / WEIGHTS
    rewrite(path, lambda _, metadata: metadata["maskwright"].update(system="os:system"))
    with pytest.raises(ValueError, match="a file alone never imports code"):
        open_model(path)
    rewrite(path, lambda _, metadata: metadata["maskwright"].update(format=99))
    with pytest.raises(ValueError, match="format 99, expected 2"):
        open_model(path)
    rewrite(path, lambda _, metadata: metadata["maskwright"].pop("format"))
    with pytest.raises(ValueError, match="not a model of maskwright"):
        open_model(path)


def test_device_and_precision():
    assert choose_device("cpu") == "cpu"
    with pytest.raises(ValueError, match="device 'nowhere' cannot be used here"):
        choose_device("nowhere")
    assert choose_precision("float32", "cpu").name == "float32"
    assert choose_precision("bfloat16", "cpu").name == "bfloat16"
    with choose_precision("bfloat16", "cpu").autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="got precision 'bf16', expected auto, float32 or bfloat16"):
        choose_precision("bf16", "cpu")


@pytest.mark.parametrize(
    ("system", "argument", "message"),
    [
        ("mask-rcnn-small", {"max_detections": -3}, "max_detections: Input should be greater than 0"),
        ("embedmask-small", {"num_candidates": 0}, "num_candidates: Input should be greater than 0"),
        ("mnc-small", {"score_threshold": 7.0}, "score_threshold: Input should be less than or equal to 1"),
        ("fast-rcnn-r50-fpn", {"norm": "foo"}, "norm: Input should be 'frozen' or 'group'"),
        ("mask-rcnn-r50-dc5", {"norm": "none"}, "norm: Input should be 'frozen' or 'group'"),
    ],
)
def test_values_out_of_bounds_are_named(system, argument, message):
    with pytest.raises(ValueError, match=message):
        build_system(system, {"num_classes": 1, **argument})


def test_card_survives_json():
    _, card = small(["a"])
    assert ModelCard.from_dict(json.loads(json.dumps(card.to_dict())), "x") == card
    assert replace(card, system="y") != card
