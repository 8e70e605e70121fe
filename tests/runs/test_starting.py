"""What a network starts from; weights of torchvision are random ones, in a file as it publishes them."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torchvision.models import detection

from maskwright.formats.dataset import Categories
from maskwright.runs import ModelCard, initialize, save_model
from maskwright.runs.checkpoints import WEIGHTS, all_arguments, build_system
from maskwright.structures import COCO_PERSON
from maskwright.weights.published import PUBLISHED
from tests.published import publish, torch_hub
from tests.runs.models import small


@pytest.fixture
def saved(tmp_path):
    system, card = small(["cat", "dog"], [5, 9])
    save_model(tmp_path / "best", card, system.state_dict())
    return tmp_path


def test_rows_of_known_classes_come_along_by_name(saved):
    old = load_file(saved / "best" / WEIGHTS)
    system, card = small(["bird", "dog", "cat"], seed=1)
    fresh = {k: v.clone() for k, v in system.state_dict().items()}
    heard = []
    initialize(system, card, saved, heard.append)
    new = system.state_dict()
    weight = "box_head.classes.weight"
    assert torch.equal(new[weight][0], fresh[weight][0])
    assert torch.equal(new[weight][1:3], old[weight][[1, 0]])
    assert torch.equal(new[weight][3], old[weight][2])  # background
    deltas = "box_head.deltas.bias"
    assert torch.equal(new[deltas][4:8], old[deltas][4:8])
    assert torch.equal(new[deltas][8:12], old[deltas][0:4])
    masks = "instance_heads.mask.predictor.weight"
    assert torch.equal(new[masks][2], old[masks][0])
    assert torch.equal(new["rpn.conv.weight"], old["rpn.conv.weight"])
    assert heard == [f"started from {saved / 'best' / WEIGHTS}: 2 of 3 classes known by name", "rows that start afresh: bird"]


def test_other_networks_are_refused_as_a_start(saved):
    system = build_system("faster-rcnn-r50-fpn", {"num_classes": 2})
    card = ModelCard("faster-rcnn-r50-fpn", {"num_classes": 2}, Categories(("cat", "dog"), (1, 2)), system.input)
    with pytest.raises(ValueError, match="these weights belong to another network"):
        initialize(system, card, saved, print)


@pytest.mark.parametrize(
    ("less", "more", "fresh"),
    [
        ("deepmask-small", "sharpmask-small", "refinement"),
        ("faster-rcnn-small", "mask-rcnn-small", "instance_heads.mask"),
        ("mask-rcnn-small", "mask-keypoint-rcnn-small", "instance_heads.keypoint"),
    ],
)
def test_parts_that_another_network_lacks_start_afresh(less, more, fresh, tmp_path):
    categories = Categories(("cat", "dog"), (1, 2))
    torch.manual_seed(1)
    known = build_system(less, {"num_classes": 2})
    save_model(tmp_path / "best", ModelCard(less, {"num_classes": 2}, categories, known.input), known.state_dict())
    system = build_system(more, {"num_classes": 2})
    before = {name: tensor.clone() for name, tensor in system.state_dict().items()}
    heard = []
    initialize(system, ModelCard(more, {"num_classes": 2}, categories, system.input), tmp_path, heard.append)
    assert heard[-1] == f"parts that start afresh: {fresh}"
    wanted = {**before, **known.state_dict()}
    assert wanted.keys() > known.state_dict().keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in system.state_dict().items())
    other = build_system("embedmask-small", {"num_classes": 2})
    with pytest.raises(ValueError, match="these weights belong to another network"):  # what the file has would be lost
        initialize(other, ModelCard("embedmask-small", {"num_classes": 2}, categories, other.input), tmp_path, print)


# Published weights

THEIRS = {
    "faster-rcnn-r50-fpn-torchvision": detection.fasterrcnn_resnet50_fpn,
    "faster-rcnn-r50-fpn-torchvision-v2": detection.fasterrcnn_resnet50_fpn_v2,
    "fcos-r50-torchvision": detection.fcos_resnet50_fpn,
    "keypoint-rcnn-r50-fpn-torchvision": detection.keypointrcnn_resnet50_fpn,
    "mask-rcnn-r50-fpn-torchvision": detection.maskrcnn_resnet50_fpn,
    "mask-rcnn-r50-fpn-torchvision-v2": detection.maskrcnn_resnet50_fpn_v2,
}
MASK = "mask-rcnn-r50-fpn-torchvision"


def fresh(name, categories, **arguments):
    """A network of ours and its card."""
    arguments = all_arguments(name, {"num_classes": len(categories), **arguments})
    torch.manual_seed(1)
    system = build_system(name, arguments)
    return system, ModelCard(name, arguments, categories, system.input)


def published(name, folder, monkeypatch):
    """torchvision's network with random weights, in its cache as if it had been downloaded, and the file."""
    torch.manual_seed(0)
    theirs = THEIRS[name](weights=None, weights_backbone=None).state_dict()
    return theirs, publish(name, theirs, torch_hub(folder, monkeypatch), monkeypatch)


def rows(tensor, chosen):
    """Of some classes, one after the other, of a table with the rows of 91."""
    return tensor.reshape(91, -1, *tensor.shape[1:])[chosen].flatten(0, 1)


@pytest.mark.parametrize("name", [name for name in THEIRS if "keypoint" not in name])
def test_the_word_brings_rows_by_name_and_all_else(name, tmp_path, monkeypatch):
    theirs, file = published(name, tmp_path, monkeypatch)
    system, card = fresh(name, Categories(("dog", "nucleus", "person"), (4, 5, 6)), **PUBLISHED[name].arguments)
    before = {key: tensor.clone() for key, tensor in system.state_dict().items()}
    heard = []
    initialize(system, card, "coco", heard.append)
    assert heard == [f"started from {file}: 2 of 3 classes known by name", "rows that start afresh: nucleus"]
    ours = system.state_dict()
    dog_and_person = [18, 1]  # COCO's ids, and torchvision's rows
    tables = {"head.classes": "head.classification_head.cls_logits"}
    if "rcnn" in name:
        tables = {
            "box_head.classes": "roi_heads.box_predictor.cls_score",
            "box_head.deltas": "roi_heads.box_predictor.bbox_pred",
        }
    if "mask" in name:
        tables["instance_heads.mask.predictor"] = "roi_heads.mask_predictor.mask_fcn_logits"
    for table, original in tables.items():
        for kind in ("weight", "bias"):
            values = ours[f"{table}.{kind}"]
            count = 4 if "deltas" in table else 1
            assert torch.equal(
                torch.cat([values[:count], values[2 * count : 3 * count]]), rows(theirs[f"{original}.{kind}"], dog_and_person)
            )
            assert torch.equal(values[count : 2 * count], before[f"{table}.{kind}"][count : 2 * count])
    if "rcnn" in name:
        assert torch.equal(ours["box_head.classes.weight"][3], theirs["roi_heads.box_predictor.cls_score.weight"][0])
    others = [key for key in ours if not key.startswith(tuple(tables))]
    body = [key for key in others if key.startswith("backbone.network.")]
    assert all(torch.equal(ours[key], theirs[key.replace("network", "body")]) for key in body)
    learnt = [key for key in others if ours[key].ndim > 1]  # biases and norms begin alike everywhere
    assert not any(torch.equal(ours[key], before[key]) for key in learnt)
    count = sum(value.ndim > 1 for key, value in theirs.items())
    assert len(learnt) == count - sum(f"{original}.weight" in theirs for original in tables.values())


def test_the_word_brings_keypoints_of_people(tmp_path, monkeypatch):
    name = "keypoint-rcnn-r50-fpn-torchvision"
    theirs, _ = published(name, tmp_path, monkeypatch)
    layer = theirs["roi_heads.keypoint_predictor.kps_score_lowres.weight"]
    heard = []
    system, card = fresh(name, Categories(("person",), (1,), COCO_PERSON), norm_eps=0.0)
    initialize(system, card, "coco", heard.append)
    assert torch.equal(system.state_dict()["instance_heads.keypoint.deconv.weight"], layer)
    assert "1 of 1 classes known by name" in heard[-1]


def test_arguments_that_published_weights_do_not_fit_are_named(tmp_path, monkeypatch):
    categories = Categories(("dog",), (1,))
    published(MASK, tmp_path / "1", monkeypatch)
    system, card = fresh(MASK, categories)
    with pytest.raises(ValueError, match=r"norms want eps 0, .* has 1e-05: add --set arguments\.norm_eps=0"):
        initialize(system, card, "coco", print)
    second = f"{MASK}-v2"
    published(second, tmp_path / "2", monkeypatch)
    system, card = fresh(second, categories)
    with pytest.raises(ValueError, match=r"its norms are frozen .* {'branch_norm': 'frozen'}, with --set"):
        initialize(system, card, "coco", print)


class Gadget:
    def __reduce__(self):
        return (os.system, ("touch gotcha",))


def test_published_files_run_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    publish(MASK, {"a": Gadget()}, torch_hub(tmp_path, monkeypatch), monkeypatch)
    system, card = fresh(MASK, Categories(("dog",), (1,)), norm_eps=0.0)
    with pytest.raises(ValueError, match=r"\.pth: .*only tensors and plain containers are read"):
        initialize(system, card, "coco", print)
    assert not (tmp_path / "gotcha").exists()


def test_the_word_wins_over_a_path_of_its_name(saved, monkeypatch):
    monkeypatch.chdir(saved.rename(saved.parent / "coco").parent)
    system, card = small(["cat", "dog"], seed=1)
    for path in ("./coco", Path("coco")):
        heard = []
        initialize(system, card, path, heard.append)
        assert heard == [f"started from {Path('coco') / 'best' / WEIGHTS}: 2 of 2 classes known by name"]
    with pytest.raises(ValueError, match=rf"published that fit mask-rcnn-small: there are for .*{MASK}.* is \./coco\)"):
        initialize(system, card, "coco", print)
