"""Checkpoints named as detectron2 names them become runs that answer the same; its pickles run no code."""

import io
import os
import pickle
import re
import struct
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import load_file
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.resnet import Bottleneck
from torchvision.ops import roi_align

from maskwright.layers.roi import Rois
from maskwright.runs import open_model
from maskwright.runs.importing import import_weights
from maskwright.systems import SYSTEMS
from maskwright.weights.detectron2 import convert
from maskwright.weights.pickles import read_pickle
from tests.parity.test_torchvision import randomize

CLASSES = 4
BODY = [  # torchvision's names → detectron2's, by the published rules
    (r"conv1\.(.*)", r"stem.conv1.\1"),
    (r"bn1\.(.*)", r"stem.conv1.norm.\1"),
    (r"layer(\d)\.(\d+)\.conv(\d)\.(.*)", r"res{0}.\2.conv\3.\4"),
    (r"layer(\d)\.(\d+)\.bn(\d)\.(.*)", r"res{0}.\2.conv\3.norm.\4"),
    (r"layer(\d)\.(\d+)\.downsample\.0\.(.*)", r"res{0}.\2.shortcut.\3"),
    (r"layer(\d)\.(\d+)\.downsample\.1\.(.*)", r"res{0}.\2.shortcut.norm.\3"),
]
REST = [
    (r"backbone\.fpn\.inner_blocks\.(\d)\.0\.(.*)", r"backbone.fpn_lateral{0}.\2", 2),
    (r"backbone\.fpn\.layer_blocks\.(\d)\.0\.(.*)", r"backbone.fpn_output{0}.\2", 2),
    (r"()rpn\.head\.conv\.0\.0\.(.*)", r"proposal_generator.rpn_head.conv.\2", 0),
    (r"()rpn\.head\.cls_logits\.(.*)", r"proposal_generator.rpn_head.objectness_logits.\2", 0),
    (r"()rpn\.head\.bbox_pred\.(.*)", r"proposal_generator.rpn_head.anchor_deltas.\2", 0),
    (r"()roi_heads\.box_head\.fc6\.(.*)", r"roi_heads.box_head.fc1.\2", 0),
    (r"()roi_heads\.box_head\.fc7\.(.*)", r"roi_heads.box_head.fc2.\2", 0),
    (r"(roi_heads)\.box_predictor\.(.*)", r"roi_heads.box_predictor.\2", 0),
    (r"roi_heads\.mask_head\.(\d)\.0\.(.*)", r"roi_heads.mask_head.mask_fcn{0}.\2", 1),
    (r"()roi_heads\.mask_predictor\.conv5_mask\.(.*)", r"roi_heads.mask_head.deconv.\2", 0),
    (r"()roi_heads\.mask_predictor\.mask_fcn_logits\.(.*)", r"roi_heads.mask_head.predictor.\2", 0),
]


def body_name(name):
    for pattern, ours in BODY:
        if match := re.fullmatch(pattern, name):
            stage = int(match[1]) + 1 if "{0}" in ours else 0
            return match.expand(ours).format(stage)
    raise AssertionError(name)


def as_detectron2(state):
    """torchvision's state in detectron2's names, the background's row last or left out."""
    answer = {}
    for name, value in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        if name.startswith("backbone.body."):
            answer["backbone.bottom_up." + body_name(name.removeprefix("backbone.body."))] = value
            continue
        for pattern, ours, shift in REST:
            if match := re.fullmatch(pattern, name):
                number = int(match[1]) + shift if match[1].isdigit() else ""
                answer[match.expand(ours).format(number)] = value
                break
        else:
            raise AssertionError(name)
    for name, value in answer.items():
        if "cls_score" in name:
            answer[name] = torch.cat([value[1:], value[:1]])
        elif "bbox_pred" in name:
            answer[name] = value[4:]
        elif "mask_head.predictor" in name:
            answer[name] = value[1:]
    return answer


def write(path, state, protocol=4):
    arrays = {name: value.numpy() for name, value in state.items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "somebody"}, protocol=protocol))
    return path


def move_strides(body):
    for block in body.modules():
        if isinstance(block, Bottleneck):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride


@pytest.fixture(scope="module")
def theirs():
    model = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=CLASSES + 1)
    randomize(model)
    move_strides(model.backbone.body)
    return model.eval()


def test_every_stage_answers_as_torchvisions_with_strides_moved(theirs, tmp_path):
    state = as_detectron2(theirs.state_dict())
    assert len(state) == 307
    file = write(tmp_path / "zoo.pkl", state, protocol=2)  # as the files of its zoo are, which takes ten times as long
    card = import_weights(file, system="mask-rcnn-r50-fpn", out=tmp_path / "run")
    assert card.system == "mask-rcnn-r50-fpn"
    assert card.arguments["weights_origin"] == "detectron2"
    system, _ = open_model(tmp_path / "run")
    system.eval()
    assert (system.input.channel_order, system.input.value_range) == ("bgr", 255)
    assert system.input.mean == (103.53, 116.28, 123.675)
    assert system.input.std == (1, 1, 1)
    pixels = torch.randn(1, 3, 128, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, expected = system.fpn(system.backbone(pixels)), theirs.backbone(pixels)
        for stride, name in ((4, "0"), (8, "1"), (16, "2"), (32, "3"), (64, "pool")):
            assert torch.allclose(ours[stride], expected[name], atol=1e-4), stride
        found = system.rpn(ours)
        logits, deltas = theirs.rpn.head(list(expected.values()))
        for mine, other in zip(found.logits, logits, strict=True):
            assert torch.allclose(mine.flatten(), other.permute(0, 2, 3, 1).flatten(), atol=1e-4)
        for mine, other in zip(found.deltas, deltas, strict=True):
            assert torch.allclose(mine.flatten(), other.permute(0, 2, 3, 1).flatten(), atol=1e-4)
        rois = Rois(torch.tensor([[4.0, 8, 90, 100], [30, 20, 60, 120]]), torch.zeros(2, dtype=torch.int64))
        pooled = system.box_head.pool(ours, rois)
        classes, boxes = theirs.roi_heads.box_predictor(theirs.roi_heads.box_head(pooled))
        mine, moved = system.box_head(ours, rois)
        assert torch.allclose(mine, torch.cat([classes[:, 1:], classes[:, :1]], dim=1), atol=1e-4)
        assert torch.allclose(moved.flatten(1), boxes[:, 4:], atol=1e-4)
        head = system.instance_heads["mask"]
        masks = theirs.roi_heads.mask_predictor(theirs.roi_heads.mask_head(head.pool(ours, rois)))
        labels = torch.tensor([2, 0])
        assert torch.allclose(head(ours, rois, labels), masks[torch.arange(2), labels + 1], atol=1e-4)


def test_a_checkpoint_of_its_training_is_read_like_a_file_of_its_zoo(theirs, tmp_path):
    state = as_detectron2(theirs.state_dict())
    torch.save({"model": state, "iteration": 7, "optimizer": {"state": {}}}, tmp_path / "model_final.pth")
    cards = [
        import_weights(file, system="mask-rcnn-r50-fpn", out=file.with_suffix(""))
        for file in (tmp_path / "model_final.pth", write(tmp_path / "zoo.pkl", state))
    ]
    assert cards[0] == cards[1]
    one, two = (load_file(tmp_path / name / "best" / "weights.safetensors") for name in ("model_final", "zoo"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_resnext_answers_as_torchvisions(tmp_path):
    system = SYSTEMS["mask-rcnn-x101-fpn"](num_classes=2)
    body = resnet_fpn_backbone(backbone_name="resnext101_32x8d", weights=None, norm_layer=torch.nn.BatchNorm2d)
    randomize(body)
    state = {f"backbone.{name}": value for name, value in body.eval().state_dict().items()}
    heads = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
    state |= {name: value for name, value in heads.state_dict().items() if not name.startswith("backbone.")}
    converted = convert(as_detectron2(state))
    assert len(as_detectron2(state)) == 562
    assert (converted.system, converted.assumed["weights_origin"]) == ("mask-rcnn-x101-fpn", "detectron2-x101")
    system = SYSTEMS[converted.system](**converted.arguments, **converted.assumed)
    system.load_state_dict(converted.tensors)
    assert system.input.std == (57.375, 57.12, 58.395)
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        ours, expected = system.eval().fpn(system.backbone(pixels)), body(pixels)
    for stride, name in ((4, "0"), (8, "1"), (16, "2"), (32, "3")):
        assert (ours[stride] - expected[name]).norm() <= 1e-4 * expected[name].norm()


def test_people_bring_their_keypoints(theirs, tmp_path):
    state = {name: value for name, value in as_detectron2(theirs.state_dict()).items() if "mask_head" not in name}
    assert len(state) == 295
    state["roi_heads.box_predictor.cls_score.weight"] = state["roi_heads.box_predictor.cls_score.weight"][-2:]
    state["roi_heads.box_predictor.cls_score.bias"] = state["roi_heads.box_predictor.cls_score.bias"][-2:]
    state["roi_heads.box_predictor.bbox_pred.weight"] = state["roi_heads.box_predictor.bbox_pred.weight"][:4]
    state["roi_heads.box_predictor.bbox_pred.bias"] = state["roi_heads.box_predictor.bbox_pred.bias"][:4]
    convolutions, last = KeypointRCNNHeads(256, (512,) * 8), KeypointRCNNPredictor(512, 17)
    randomize(convolutions)
    randomize(last)
    for number in range(8):
        for kind in ("weight", "bias"):
            state[f"roi_heads.keypoint_head.conv_fcn{number + 1}.{kind}"] = getattr(convolutions[2 * number], kind).detach()
    for kind in ("weight", "bias"):
        state[f"roi_heads.keypoint_head.score_lowres.{kind}"] = getattr(last.kps_score_lowres, kind).detach()
    assert len(state) == 313
    card = import_weights(write(tmp_path / "zoo.pkl", state), system="keypoint-rcnn-r50-fpn", out=tmp_path / "run")
    assert card.categories.names == ("person",)
    assert card.categories.keypoints.names[0] == "nose"
    system, _ = open_model(tmp_path / "run")
    head, rois = system.instance_heads["keypoint"], Rois(torch.tensor([[4.0, 8, 90, 100]]), torch.zeros(1, dtype=torch.int64))
    maps = {s: torch.randn(1, 256, 128 // s, 128 // s, generator=torch.Generator().manual_seed(s)) for s in (4, 8, 16, 32)}
    with torch.no_grad():
        expected = last(convolutions(head.pool(maps, rois)))
        assert torch.allclose(head(maps, rois), expected, atol=1e-4 * expected.abs().max())
    with pytest.raises(ValueError, match="import it with --system keypoint-rcnn-r50-fpn"):
        import_weights(tmp_path / "zoo.pkl", system="faster-rcnn-r50-fpn", out=tmp_path / "other")


def flat_state(on_top, depth="resnet50", classes=CLASSES):
    """A body of torchvision's without FPN, and heads of the published shapes; its state and the network."""
    body = getattr(torchvision.models, depth)(weights=None, num_classes=1)
    del body.fc
    randomize(body)
    move_strides(body)
    generator = torch.Generator().manual_seed(1)
    names = {"c4": {"backbone.res5.": "roi_heads.res5."}, "dc5": {}}[on_top]
    state = {}
    for name, value in body.eval().state_dict().items():
        if not name.endswith("num_batches_tracked"):
            theirs = f"backbone.{body_name(name)}"
            for old, new in names.items():
                theirs = theirs.replace(old, new)
            state[theirs] = value
    width = {"c4": 1024, "dc5": 2048}[on_top]
    vector = {"c4": 2048, "dc5": 1024}[on_top]
    shapes = {
        "proposal_generator.rpn_head.conv": (width, width, 3, 3),
        "proposal_generator.rpn_head.objectness_logits": (15, width, 1, 1),
        "proposal_generator.rpn_head.anchor_deltas": (60, width, 1, 1),
        "roi_heads.box_predictor.cls_score": (classes + 1, vector),
        "roi_heads.box_predictor.bbox_pred": (4 * classes, vector),
        "roi_heads.mask_head.deconv": (2048 if on_top == "c4" else 256, 256, 2, 2),
        "roi_heads.mask_head.predictor": (classes, 256, 1, 1),
    }
    if on_top == "dc5":
        shapes |= {"roi_heads.box_head.fc1": (1024, 2048 * 49), "roi_heads.box_head.fc2": (1024, 1024)}
        shapes |= {f"roi_heads.mask_head.mask_fcn{i}": (256, 2048 if i == 1 else 256, 3, 3) for i in range(1, 5)}
    for name, shape in shapes.items():
        state[f"{name}.weight"] = 0.01 * torch.randn(shape, generator=generator)
        state[f"{name}.bias"] = torch.randn(256 if "deconv" in name else shape[0], generator=generator)
    return state, body


def dilate(body):
    """The fifth stage with stride 16: as detectron2 does it, all of its 3×3 convolutions see every second cell."""
    for block in body.layer4:
        block.conv1.stride, block.conv2.stride, block.conv2.dilation, block.conv2.padding = (1, 1), (1, 1), (2, 2), (2, 2)
    body.layer4[0].downsample[0].stride = (1, 1)


def stages(body, pixels, last):
    x = body.maxpool(torch.relu(body.bn1(body.conv1(pixels))))
    for number in range(1, last + 1):
        x = getattr(body, f"layer{number}")(x)
    return x


def test_c4_answers_as_torchvisions_stages(tmp_path):
    state, body = flat_state("c4")
    assert len(state) == 279
    card = import_weights(write(tmp_path / "zoo.pkl", state), system="mask-rcnn-r50-c4", out=tmp_path / "run")
    assert (card.system, card.arguments["weights_origin"]) == ("mask-rcnn-r50-c4", "detectron2")
    system = open_model(tmp_path / "run")[0].eval()
    pixels = torch.randn(1, 3, 128, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        seen, expected = system.fpn(system.backbone(pixels)), stages(body, pixels, 3)
        assert torch.allclose(seen[16], expected, atol=1e-4)
        rois = Rois(torch.tensor([[4.0, 8, 90, 100], [30, 20, 60, 120]]), torch.zeros(2, dtype=torch.int64))
        staged = body.layer4(roi_align(expected, [rois.boxes], 14, spatial_scale=1 / 16, aligned=True))
        scores = F.linear(staged.mean((2, 3)), *(state[f"roi_heads.box_predictor.cls_score.{k}"] for k in ("weight", "bias")))
        assert torch.allclose(system.box_head(seen, rois)[0], scores, atol=1e-3)
        hidden = F.conv_transpose2d(staged, *(state[f"roi_heads.mask_head.deconv.{k}"] for k in ("weight", "bias")), stride=2)
        masks = F.conv2d(hidden.relu(), *(state[f"roi_heads.mask_head.predictor.{k}"] for k in ("weight", "bias")))
        answer = system.instance_heads["mask"](seen, rois, torch.tensor([2, 0]))
        assert torch.allclose(answer, masks[torch.arange(2), torch.tensor([2, 0])], atol=1e-3)
        found = system.rpn(seen)
        convolved = {k: state[f"proposal_generator.rpn_head.conv.{k}"] for k in ("weight", "bias")}
        hidden = F.conv2d(expected, **convolved, padding=1).relu()
        logits = F.conv2d(hidden, *(state[f"proposal_generator.rpn_head.objectness_logits.{k}"] for k in ("weight", "bias")))
        assert torch.allclose(found.logits[0], logits.permute(0, 2, 3, 1).reshape(1, -1), atol=1e-3)
    first = found.anchors[0][:15]  # for each of five sizes three shapes, as detectron2 counts its channels
    widths, heights = first[:, 2] - first[:, 0], first[:, 3] - first[:, 1]
    assert (widths * heights).sqrt().round().tolist() == [32] * 3 + [64] * 3 + [128] * 3 + [256] * 3 + [512] * 3
    assert torch.allclose((heights / widths).reshape(5, 3), torch.tensor([0.5, 1.0, 2.0]))


@pytest.mark.slow
def test_dc5_answers_as_torchvisions_stages(tmp_path):
    state, body = flat_state("dc5", classes=1)
    assert len(state) == 291
    converted = convert(state)
    assert (converted.system, converted.assumed["weights_origin"]) == ("mask-rcnn-r50-dc5", "detectron2")
    system = SYSTEMS[converted.system](**converted.arguments, **converted.assumed).eval()
    system.load_state_dict(converted.tensors)
    dilate(body)
    pixels = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, expected = system.backbone(pixels)[16], stages(body, pixels, 4)
    assert torch.allclose(ours, expected, atol=1e-3)


def test_rows_of_coco():
    state, _ = flat_state("c4", classes=80)
    converted = convert(state)
    assert (len(converted.ids), converted.ids[0], converted.ids[-1]) == (80, 1, 90)
    assert set(range(1, 91)) - set(converted.ids) == {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    assert dict(zip(converted.ids, converted.names, strict=True))[13] == "stop sign"


def test_depth_and_head_are_told_by_the_names():
    state, _ = flat_state("c4", "resnet101")
    assert convert(state).system == "mask-rcnn-r101-c4"
    boxes = {name: value for name, value in state.items() if "mask_head" not in name}
    assert convert(boxes).system == "faster-rcnn-r101-c4"


def test_what_does_not_fit_is_named(theirs, tmp_path):
    state = as_detectron2(theirs.state_dict())
    lacking = {name: value for name, value in state.items() if name != "backbone.fpn_output3.bias"}
    with pytest.raises(ValueError, match=r"missing fpn\.output\.8\.bias"):
        import_weights(write(tmp_path / "a.pkl", lacking), system="mask-rcnn-r50-fpn", out=tmp_path / "a")
    further = {**state, "roi_heads.extra": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"left over: roi_heads\.extra"):
        import_weights(write(tmp_path / "b.pkl", further), system="mask-rcnn-r50-fpn", out=tmp_path / "b")
    flat = {name: value for name, value in state.items() if "fpn_" not in name}
    with pytest.raises(ValueError, match="it has neither an FPN nor the last stage of C4 or DC5"):
        import_weights(write(tmp_path / "c.pkl", flat), system="mask-rcnn-r50-fpn", out=tmp_path / "c")
    for name in ("backbone.bottom_up.res2.0.conv2.weight", "roi_heads.box_predictor.cls_score.weight"):
        with pytest.raises(ValueError, match=f"{name} is \\(\\), expected"):
            convert({**state, name: torch.zeros(())})
    with pytest.raises(ValueError, match=r"res2\.0\.conv2\.weight is missing"):
        convert({key: value for key, value in state.items() if key != "backbone.bottom_up.res2.0.conv2.weight"})
    assert not list(tmp_path.glob("?"))
    usual = {
        **state,
        "pixel_mean": torch.tensor([103.530, 116.280, 123.675]).reshape(3, 1, 1),
        "pixel_std": torch.ones(3, 1, 1),
        "proposal_generator.anchor_generator.cell_anchors.0": torch.zeros(3, 4),
    }
    assert convert(usual).tensors.keys() == convert(state).tensors.keys()
    assert convert(state).assumed == {"weights_origin": "detectron2"}
    assert (convert(usual).arguments["weights_origin"], convert(usual).assumed) == ("detectron2", {})


def test_whose_resnet_it_was_is_told_by_the_pixels_or_by_the_user(theirs, tmp_path):
    state = as_detectron2(theirs.state_dict())
    of_torchvision = {
        **state,
        "pixel_mean": torch.tensor([123.675, 116.280, 103.530]),
        "pixel_std": torch.tensor([58.395, 57.120, 57.375]),
    }
    assert (convert(of_torchvision).arguments["weights_origin"], convert(of_torchvision).assumed) == ("timm", {})
    said, arguments = [], {"weights_origin": "detectron2"}
    told = write(tmp_path / "told.pkl", of_torchvision)
    card = import_weights(told, system="mask-rcnn-r50-fpn", out=tmp_path / "told", say=said.append)
    assert card.arguments["weights_origin"] == "timm"
    assert not any("assumed" in line for line in said)
    with pytest.raises(ValueError, match="cannot be set: the file tells whose weights they are"):
        import_weights(told, system="mask-rcnn-r50-fpn", out=tmp_path / "not", arguments=arguments)
    with pytest.raises(ValueError, match=r"mean and std 1, 2, 3, 4, 5, 6, which no ResNet here has"):
        convert({**state, "pixel_mean": torch.tensor([1.0, 2, 3]), "pixel_std": torch.tensor([4.0, 5, 6])})
    file = write(tmp_path / "mine.pkl", state)
    said = []
    card = import_weights(file, system="mask-rcnn-r50-fpn", out=tmp_path / "a", say=said.append)
    assert card.arguments["weights_origin"] == "detectron2"
    assert any("weights_origin=detectron2 is assumed, as the file does not tell" in line for line in said)
    arguments = {"weights_origin": "timm"}
    card = import_weights(file, system="mask-rcnn-r50-fpn", out=tmp_path / "b", arguments=arguments, say=said.append)
    assert (card.input.channel_order, card.input.value_range) == ("rgb", 1)
    system = SYSTEMS[card.system](**card.arguments)
    assert system.backbone.network.layer2[0].conv2.folded().stride == (2, 2)
    assert card.arguments["weights_origin"] == "timm"


# Pickles


def test_arrays_come_back_as_they_were(tmp_path):
    arrays = {
        "f": np.arange(6, dtype=np.float32).reshape(2, 3),
        "transposed": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big-endian": np.arange(3, dtype=">i4"),
        "empty": np.zeros((0, 4), dtype=np.float16),
        "unsigned": np.array([7], dtype=np.uint16),
        "bytes": np.array([1, 255], dtype=np.uint8),
        "number": np.float64(2.5),
        "plain": [1, "two", (3.0, None)],
    }
    for protocol in range(2, 6):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(arrays, protocol=protocol))
        found = read_pickle(tmp_path / "a.pkl")
        for name in list(arrays)[:6]:
            assert np.array_equal(found[name].numpy(), arrays[name]), (protocol, name)
        assert found["f"].dtype == torch.float32
        assert found["number"] == 2.5
        assert found["plain"] == arrays["plain"]


def test_what_python_2_wrote_is_read(tmp_path):
    def save_bytes(pickler, data):
        pickler.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)

    class Python2(pickle._Pickler):
        dispatch: ClassVar = {**pickle._Pickler.dispatch, bytes: save_bytes}

    file = io.BytesIO()
    Python2(file, protocol=2).dump({"model": {"a": np.array([1.5, -2.0], dtype=np.float32)}})
    (tmp_path / "old.pkl").write_bytes(file.getvalue().replace(b"numpy._core", b"numpy.core"))
    assert read_pickle(tmp_path / "old.pkl")["model"]["a"].tolist() == [1.5, -2.0]


class Gadget:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_nothing_is_run(tmp_path):
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps({"model": {"a": Gadget(f"touch {tmp_path / 'ran'}")}}))
    with pytest.raises(ValueError, match=r"evil\.pkl: holds (posix|nt)\.system; only arrays of numbers and plain containers"):
        import_weights(path, system="mask-rcnn-r50-fpn", out=tmp_path / "run")
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            pickle.dumps({"a": np.array([object()], dtype=object)}),
            "holds an array of 'O8', expected numbers|holds builtins.object",
        ),
        (pickle.dumps({"a": np.array(["text"])}), "holds an array of 'U4', expected numbers"),
        (pickle.dumps(np.zeros(3))[:-9], "cut off or not a pickle|holds"),
        (b"", "empty, cut off or not a pickle"),
        (b"\x80\x02" + 5000 * b"(", "cut off or not a pickle"),
        (pickle.dumps({"a": print}), "holds builtins.print"),
        (b"\x80\x02}" + b")" + b"\x85" * 1_000_000 + b"Ns.", "holds 1000000 tuples"),
        (b"\x80\x02Nr" + (50_000_000).to_bytes(4, "little") + b".", "holds a place number beyond its own length"),
        (pickle.dumps(frozenset([1]), protocol=4), "holds FROZENSET"),
        (pickle.dumps({"a": np.zeros(3)}).replace(b"\x4b\x03", b"\x4b\x7f"), "cannot reshape|damaged"),
    ],
)
def test_damaged_and_other_pickles_are_refused(tmp_path, content, message):
    (tmp_path / "bad.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_pickle(tmp_path / "bad.pkl")


def test_what_is_there_twice_is_made_once(tmp_path):
    nested, array = [], np.zeros(1000, dtype=np.float32)
    for _ in range(60):
        nested = [nested, nested]
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"deep": nested, "many": [array] * 300}))
    found = read_pickle(tmp_path / "a.pkl")
    assert len({id(tensor) for tensor in found["many"]}) == 1


def test_a_file_cannot_change_its_reader(tmp_path):
    """BUILD with slots sets attributes of whatever lies on the stack."""
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02c_codecs\nencode\nN}X\x04\x00\x00\x00evilNs\x86b.")
    with pytest.raises(ValueError, match="not a pickle"):
        read_pickle(tmp_path / "a.pkl")
