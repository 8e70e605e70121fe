"""Checkpoints of EmbedMask's authors, made on the spot with the names and shapes of the spec, sec. 17."""

import math

import pytest
import torch
import torch.nn.functional as F
from torchvision.models import resnet50

from maskwright.runs import ModelCard, initialize, open_model
from maskwright.runs.checkpoints import all_arguments, build_system
from maskwright.runs.importing import import_weights
from maskwright.structures import ImageBatch

CLASSES = 3


@pytest.fixture(scope="module")
def resnet():
    with torch.device("meta"):
        names = {name: value.shape for name, value in resnet50().state_dict().items()}
    return {name: shape for name, shape in names.items() if not name.startswith("fc.") and "tracked" not in name}


def filled(shapes):
    """Tensors of these shapes, at scales that keep activations alive."""
    g = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        if name.endswith("running_var"):
            state[name] = 0.5 + torch.rand(shape, generator=g)
        elif len(shape) == 4:
            state[name] = torch.randn(shape, generator=g) / math.sqrt(math.prod(shape[1:]))
        elif name.endswith(("bias", "running_mean")):
            state[name] = 0.1 * torch.randn(shape, generator=g)
        else:
            state[name] = 0.5 + torch.rand(shape, generator=g)
    return state


def conv(name, out, into, side=3):
    return {f"{name}.weight": (out, into, side, side), f"{name}.bias": (out,)}


def tower(name, convs=4):
    shapes = {}
    for i in range(convs):
        shapes |= conv(f"{name}.{3 * i}", 256, 256)
        shapes |= {f"{name}.{3 * i + 1}.weight": (256,), f"{name}.{3 * i + 1}.bias": (256,)}
    return shapes


def early(resnet, version):
    """V1, V2 or V3 as maskrcnn-benchmark saves it."""
    shapes = {}
    for name, shape in resnet.items():
        stem = name.startswith(("conv1", "bn1"))
        shapes[f"backbone.body.{'stem.' if stem else ''}{name}"] = tuple(shape)
    for level, channels in (("2", 512), ("3", 1024), ("4", 2048)):
        shapes |= conv(f"backbone.fpn.fpn_inner{level}", 256, channels, 1) | conv(f"backbone.fpn.fpn_layer{level}", 256, 256)
    shapes |= conv("backbone.fpn.top_blocks.p6", 256, 256) | conv("backbone.fpn.top_blocks.p7", 256, 256)
    head = "rpn.head."
    for name in ("cls_tower", "bbox_tower", "mask_tower"):
        shapes |= tower(head + name)
    shapes |= conv(head + "cls_logits", CLASSES, 256) | conv(head + "bbox_pred", 4, 256) | conv(head + "centerness", 1, 256)
    shapes |= {f"{head}scales.{i}.scale": (1,) for i in range(5)}
    if version == 1:
        shapes |= conv(head + "proposal_embed_pred", 32, 256) | conv(head + "pixel_embed_pred", 32, 256)
        shapes |= conv(head + "proposal_margin_pred", 1, 4, 1)
    else:
        free, margin = {2: (6, 1), 3: (14, 16)}[version]
        for kind in ("proposal", "pixel"):
            shapes |= conv(f"{head}{kind}_spatial_embed_pred", 2, 256) | conv(f"{head}{kind}_other_embed_pred", free, 256)
        shapes |= conv(head + "proposal_margin_pred", margin, 256) | {head + "position_scale.scale": (1,)}
    if version == 3:
        shapes |= {f"{head}margin_scales.{i}.scale": (1,) for i in range(5)}
    return filled(shapes)


def fused(resnet):
    """V4 as detectron2 saves it."""
    shapes = {}
    for name, shape in resnet.items():
        parts = name.split(".")
        if len(parts) == 2:
            ours = "stem.conv1.weight" if parts[0] == "conv1" else f"stem.conv1.norm.{parts[1]}"
        else:
            block = f"res{int(parts[0][5]) + 1}.{parts[1]}."
            if parts[2] == "downsample":
                ours = block + ("shortcut.weight" if parts[3] == "0" else f"shortcut.norm.{parts[4]}")
            else:
                layer = f"conv{parts[2][-1]}"
                ours = block + (f"{layer}.weight" if parts[2].startswith("conv") else f"{layer}.norm.{parts[3]}")
        shapes[f"backbone.bottom_up.{ours}"] = tuple(shape)
    for level, channels in (("3", 512), ("4", 1024), ("5", 2048)):
        shapes |= conv(f"backbone.fpn_lateral{level}", 256, channels, 1) | conv(f"backbone.fpn_output{level}", 256, 256)
    shapes |= conv("backbone.top_block.p6", 256, 256) | conv("backbone.top_block.p7", 256, 256)
    head = "proposal_generator.fcos_head."
    shapes |= tower(head + "cls_tower") | tower(head + "bbox_tower")
    shapes |= conv(head + "cls_logits", CLASSES, 256) | conv(head + "bbox_pred", 4, 256) | conv(head + "ctrness", 1, 256)
    for name in (head + "scales", "proposal_head.margin_scales"):
        shapes |= {f"{name}.{i}.scale": (1,) for i in range(5)}

    def normed(name, into):
        norm = {f"{name}.1.{key}": (128,) for key in ("weight", "bias", "running_mean", "running_var")}
        return {f"{name}.0.weight": (128, into, 3, 3), f"{name}.1.num_batches_tracked": (), **norm}

    for i in range(3):
        shapes |= normed(f"mask_branch.refine.{i}", 256)
    for i in range(4):
        shapes |= normed(f"mask_branch.tower.{i}", 128)
    shapes |= conv("mask_branch.tower.4", 128, 128)
    shapes |= normed("mask_branch.seg_head.0", 256) | normed("mask_branch.seg_head.1", 128)
    shapes |= conv("mask_branch.logits", CLASSES, 128, 1)
    shapes |= conv("proposal_head.margin_conv", 128, 256, 1) | conv("proposal_head.embed_conv", 128, 256, 1)
    for name in ("proposal_head.{}_margin_head", "proposal_head.embed_head.{}_embed_head", "pixel_head.{}_embed_head"):
        shapes |= conv(name.format("spatial"), 2, 128) | conv(name.format("free"), 14, 128)
    shapes |= {"mask_pred.sizes_of_interest": (5,), "mask_pred._iter": (1,), "pixel_mean": (3, 1, 1), "pixel_std": (3, 1, 1)}
    return filled(shapes)


def imported(state, system, folder, **options):
    torch.save({"model": {f"module.{name}": value for name, value in state.items()}, "iteration": 90000}, folder / "x.pth")
    return import_weights(folder / "x.pth", system=system, out=folder / "run", **options)


def gn_tower(state, name, x):
    for i in range(4):
        x = F.conv2d(x, state[f"{name}.{3 * i}.weight"], state[f"{name}.{3 * i}.bias"], padding=1)
        x = F.relu(F.group_norm(x, 32, state[f"{name}.{3 * i + 1}.weight"], state[f"{name}.{3 * i + 1}.bias"]))
    return x


def predicted(state, name, x):
    return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=state[f"{name}.weight"].shape[-1] // 2)


@torch.no_grad()
def test_v3_answers_what_its_spec_says(resnet, tmp_path):
    state = early(resnet, 3)
    card = imported(state, "embedmask-r50", tmp_path)
    assert card.arguments["weights_origin"] == "caffe"
    assert (card.input.channel_order, card.input.value_range, card.input.std) == ("bgr", 255, (1.0, 1.0, 1.0))
    system, _ = open_model(tmp_path / "run")
    g = torch.Generator().manual_seed(1)
    features = {s: torch.randn(1, 256, -(-96 // s), -(-160 // s), generator=g) for s in (8, 16, 32, 64, 128)}
    answers = system.fcos(features)
    pixels, proposals = system._embed(features, answers)
    head, start = "rpn.head.", 0
    factor = state[head + "position_scale.scale"]
    for level, (stride, x) in enumerate(features.items()):
        h, w = x.shape[2:]
        box = gn_tower(state, head + "bbox_tower", x)
        ltrb = F.relu(state[f"{head}scales.{level}.scale"] * predicted(state, head + "bbox_pred", box))
        spot = torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")).flip(0) * stride + stride // 2
        spatial = predicted(state, head + "proposal_spatial_embed_pred", box) + factor * spot / 100
        q = torch.cat([spatial, predicted(state, head + "proposal_other_embed_pred", box)], dim=1)
        margin = predicted(state, head + "proposal_margin_pred", box / 32)
        margin[:, :2] *= state[f"{head}margin_scales.{level}.scale"]
        part = slice(start, start + h * w)
        for found, expected in (
            (answers.ltrb, ltrb),
            (proposals.embeddings, q),
            (proposals.precisions, margin.exp()),
            (answers.logits, predicted(state, head + "cls_logits", gn_tower(state, head + "cls_tower", x))),
            (answers.centerness[..., None], predicted(state, head + "centerness", box)),
        ):
            assert torch.allclose(found[:, part], expected.flatten(2).transpose(1, 2), atol=1e-3, rtol=1e-4)
        start += h * w
    fine = gn_tower(state, head + "mask_tower", features[8])
    spot = torch.stack(torch.meshgrid(torch.arange(12), torch.arange(20), indexing="ij")).flip(0) * 8 + 4
    spatial = predicted(state, head + "pixel_spatial_embed_pred", fine) + factor * spot / 100
    expected = torch.cat([spatial, predicted(state, head + "pixel_other_embed_pred", fine)], dim=1)
    assert torch.allclose(pixels, expected, atol=1e-3)


@torch.no_grad()
def test_v1_answers_what_its_spec_says(resnet, tmp_path):
    state = early(resnet, 1)
    card = imported(state, "embedmask-r50-arxiv", tmp_path, classes=["a", "b", "c"])
    assert card.categories.names == ("a", "b", "c")
    system, _ = open_model(tmp_path / "run")
    g = torch.Generator().manual_seed(1)
    features = {s: torch.randn(1, 256, -(-96 // s), -(-160 // s), generator=g) for s in (8, 16, 32, 64, 128)}
    answers = system.fcos(features)
    pixels, proposals = system._embed(features, answers)
    head = "rpn.head."
    box = gn_tower(state, head + "bbox_tower", features[16])
    at = slice(240, 240 + 60)
    q = predicted(state, head + "proposal_embed_pred", box).flatten(2).transpose(1, 2)
    assert torch.allclose(proposals.embeddings[:, at], q, atol=1e-3)
    ltrb = F.relu(state[head + "scales.1.scale"] * predicted(state, head + "bbox_pred", box)) * 16
    s = predicted(state, head + "proposal_margin_pred", ltrb / 800).exp().flatten(2).transpose(1, 2)
    assert torch.allclose(proposals.precisions[:, at], s, atol=1e-3)
    fine = gn_tower(state, head + "mask_tower", features[8])
    assert torch.allclose(pixels, predicted(state, head + "pixel_embed_pred", fine), atol=1e-3)
    assert torch.equal(system.backbone.network.layer1[0].conv2.weight, state["backbone.body.layer1.0.conv2.weight"])
    assert torch.equal(system.fpn.coarser.convs[1].weight, state["backbone.fpn.top_blocks.p7.weight"])


@torch.no_grad()
def test_v4_answers_what_its_spec_says(resnet, tmp_path):
    state = fused(resnet)
    card = imported(state, "embedmask-r50-fused", tmp_path)
    assert (card.arguments["weights_origin"], card.arguments["branch_norm"]) == ("detectron2", "frozen")
    assert card.input.mean == (103.53, 116.28, 123.675)
    system, _ = open_model(tmp_path / "run")
    g = torch.Generator().manual_seed(1)
    features = {s: torch.randn(1, 256, -(-96 // s), -(-160 // s), generator=g) for s in (8, 16, 32, 64, 128)}
    answers = system.fcos(features)
    pixels, proposals = system._embed(features, answers)

    def normed(name, x):
        x = F.conv2d(x, state[f"{name}.0.weight"], padding=1)
        norm = [state[f"{name}.1.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
        return F.relu(F.batch_norm(x, *norm))

    def up(x, factor):  # AdelaiDet's aligned_bilinear, sample by sample
        h, w = x.shape[2:]
        y = ((torch.arange(h * factor) - factor // 2) / factor).clamp(0, h - 1)
        x_ = ((torch.arange(w * factor) - factor // 2) / factor).clamp(0, w - 1)
        low_y, low_x = y.floor().long(), x_.floor().long()
        high_y, high_x = (low_y + 1).clamp(max=h - 1), (low_x + 1).clamp(max=w - 1)
        rows = torch.lerp(x[:, :, low_y], x[:, :, high_y], (y - low_y)[:, None])
        return torch.lerp(rows[..., low_x], rows[..., high_x], x_ - low_x)

    branch = normed("mask_branch.refine.0", features[8])
    branch = branch + up(normed("mask_branch.refine.1", features[16]), 2) + up(normed("mask_branch.refine.2", features[32]), 4)
    for i in range(4):
        branch = normed(f"mask_branch.tower.{i}", branch)
    branch = predicted(state, "mask_branch.tower.4", branch)
    spot = torch.stack(torch.meshgrid(torch.arange(12), torch.arange(20), indexing="ij")).flip(0) * 8 + 4
    spatial = predicted(state, "pixel_head.spatial_embed_head", branch) + spot / 100
    expected = torch.cat([spatial, predicted(state, "pixel_head.free_embed_head", branch)], dim=1)
    assert torch.allclose(pixels, expected, atol=2e-3)

    box = gn_tower(state, "proposal_generator.fcos_head.bbox_tower", features[16])
    at = slice(240, 240 + 60)
    low = predicted(state, "proposal_head.embed_conv", box)
    spot = torch.stack(torch.meshgrid(torch.arange(6), torch.arange(10), indexing="ij")).flip(0) * 16 + 8
    spatial = predicted(state, "proposal_head.embed_head.spatial_embed_head", low) + spot / 100
    q = torch.cat([spatial, predicted(state, "proposal_head.embed_head.free_embed_head", low)], dim=1)
    assert torch.allclose(proposals.embeddings[:, at], q.flatten(2).transpose(1, 2), atol=1e-3)
    low = predicted(state, "proposal_head.margin_conv", box / 32)
    scaled = predicted(state, "proposal_head.spatial_margin_head", low) * state["proposal_head.margin_scales.1.scale"]
    s = torch.cat([scaled, predicted(state, "proposal_head.free_margin_head", low)], dim=1).exp()
    assert torch.allclose(proposals.precisions[:, at], s.flatten(2).transpose(1, 2), atol=1e-3)
    semantic = system.extra_heads["semantic"]
    hidden = normed("mask_branch.seg_head.1", normed("mask_branch.seg_head.0", features[8]))
    logits = predicted(state, "mask_branch.logits", hidden)
    assert torch.allclose(semantic.classes(semantic.hidden(features[8])), logits, atol=1e-3)
    trained = {"num_classes": CLASSES, "weights_origin": "detectron2"}
    network = build_system("embedmask-r50-fused", trained)
    fresh = ModelCard("embedmask-r50-fused", all_arguments("embedmask-r50-fused", trained), card.categories, network.input)
    with pytest.raises(ValueError, match=r"its norms are frozen \(.*\), .*'branch_norm': 'frozen'.*--set arguments"):
        initialize(network, fresh, tmp_path / "run", print)
    norm = system.backbone.network.layer2[0].downsample[1]
    assert torch.equal(norm.running_var, state["backbone.bottom_up.res3.0.shortcut.norm.running_var"])


@torch.no_grad()
def test_v2_predicts_from_image_to_mask(resnet, tmp_path):
    card = imported(early(resnet, 2), "embedmask-r50-scalar", tmp_path, arguments={"score_threshold": 0.0, "max_detections": 5})
    assert card.system == "embedmask-r50-scalar"
    system, _ = open_model(tmp_path / "run")
    image = torch.randn(3, 64, 96)
    (found,) = system.predict(ImageBatch.collate([image], original_sizes=[(100, 150)], size_divisor=32))
    assert len(found) == 5
    assert found.masks.image_size == (100, 150)


def test_classes_are_cocos_where_there_are_eighty(resnet, tmp_path, monkeypatch):
    monkeypatch.setattr("tests.weights.test_embedmask.CLASSES", 80)
    heard = []
    card = imported(early(resnet, 3), "embedmask-r50", tmp_path, say=heard.append)
    assert (card.categories.names[0], card.categories.ids[0]) == ("person", 1)
    assert (card.categories.names[11], card.categories.ids[11]) == ("stop sign", 13)
    assert (card.categories.names[79], card.categories.ids[79]) == ("toothbrush", 90)
    assert heard[0].startswith("embedmask-r50: 80 classes, ")
    network = build_system("embedmask-r50", {"num_classes": 80})
    timm = ModelCard("embedmask-r50", all_arguments("embedmask-r50", {"num_classes": 80}), card.categories, network.input)
    with pytest.raises(ValueError, match=r"its ResNet is that of caffe, .* timm: add --set arguments\.weights_origin=caffe"):
        initialize(network, timm, tmp_path / "run", print)


def test_what_does_not_fit_is_named(resnet, tmp_path):
    def refused(state, message, system="embedmask-r50", **options):
        torch.save(state, tmp_path / "bad.pth")
        with pytest.raises(ValueError, match=message):
            import_weights(tmp_path / "bad.pth", system=system, out=tmp_path / "bad", **options)
        assert not (tmp_path / "bad").exists()

    state = early(resnet, 3)
    refused(state, "import it with --system embedmask-r50$", system="embedmask-r50-arxiv")
    refused(early(resnet, 2), "import it with --system embedmask-r50-scalar")
    deep = state | {"backbone.body.layer3.6.conv1.weight": torch.zeros(1)}
    refused(deep, "import it with --system embedmask-r101$")
    refused(state | {"rpn.head.iou_pred.weight": torch.zeros(1)}, r"left over: rpn\.head\.iou_pred\.weight")
    refused({k: v for k, v in state.items() if "centerness" not in k}, r"missing fcos\.centerness\.weight")
    partial = {k: v for k, v in state.items() if "pixel_other_embed" not in k}
    refused(partial, r"pixel_head\.embedding\.weight has only the first of its two parts")
    refused(state, "leave --norm-eps out", norm_eps=0.0)
    refused(state, "weights_origin cannot be set", arguments={"weights_origin": "timm"})
    refused(state | {"rpn.head.cls_logits.bias": torch.zeros(5)}, r"fcos\.classes\.bias is \(5,\), expected \(3,\)")
