"""FCOS with torchvision's parts answers what torchvision's FCOS answers, with the same random weights."""

import pytest
import torch
from torchvision.models.detection import fcos_resnet50_fpn
from torchvision.models.detection.image_list import ImageList

from maskwright.runs import open_model
from maskwright.runs.importing import import_weights
from maskwright.structures import Instances
from tests.parity.test_torchvision import LONG_PX, SHORT_PX, batch_of, close, pairs, pictures, randomize

__all__ = ["pictures"]
CLASSES, THRESHOLD = 4, 0.55


@pytest.fixture(scope="module")
def theirs():
    options = {"weights": None, "weights_backbone": None, "num_classes": CLASSES + 1}
    model = fcos_resnet50_fpn(**options, min_size=SHORT_PX, max_size=LONG_PX, score_thresh=THRESHOLD)
    randomize(model)
    with torch.no_grad():
        model.head.classification_head.cls_logits.bias[0] = -100.0  # the background, which nothing answers after training
        model.head.regression_head.bbox_reg.weight.mul_(3)
        model.head.regression_head.bbox_reg.bias.fill_(2.0)
    return model.eval()


@pytest.fixture(scope="module")
def run(theirs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fcos")
    torch.save(theirs.state_dict(), folder / "theirs.pth")
    arguments = {"short_px": SHORT_PX, "long_px": LONG_PX, "score_threshold": THRESHOLD}
    import_weights(folder / "theirs.pth", system="fcos-r50", out=folder / "run", arguments=arguments)
    return folder / "run"


@pytest.fixture(scope="module")
def ours(run):
    system, card = open_model(run)
    assert card.system == "fcos-r50-torchvision"
    return system.eval()


@torch.no_grad()
def test_features_and_head(theirs, ours, pictures):
    batch = batch_of(ours, pictures)
    features = theirs.backbone(batch.pixels)
    mine = ours.fpn(ours.backbone(batch.pixels))
    assert list(mine) == [8, 16, 32, 64, 128]
    for a, b in zip(features.values(), mine.values(), strict=True):
        assert float(a.std()) > 0.01
        close(a, b)
    head = theirs.head(list(features.values()))
    answers = ours.head(mine)
    close(head["cls_logits"][:, :, 1:], answers.logits)
    close(head["bbox_regression"], answers.ltrb)
    close(head["bbox_ctrness"][:, :, 0], answers.centerness)
    assert float((answers.ltrb > 0).float().mean()) > 0.5
    anchors = theirs.anchor_generator(ImageList(batch.pixels, batch.sizes), list(features.values()))
    close((anchors[0][:, :2] + anchors[0][:, 2:]) / 2, answers.locations.points)
    close(anchors[0][:, 2] - anchors[0][:, 0], answers.locations.strides)


def test_points_are_whole_pixels_apart_as_theirs(ours):
    maps = {s: torch.zeros(1, 1, -(-800 // s), -(-1344 // s)) for s in (8, 16, 32, 64, 128)}
    points = ours.head.points(maps)
    assert points[3][22].tolist() == [64.0, 61.0]  # 21 columns of 64 px on 1344, but 13 rows of 61 px on 800
    assert points[0][1].tolist() == [8.0, 0.0]


@torch.no_grad()
def test_answers(theirs, ours, pictures):
    expected = theirs([p / 255 for p in pictures])
    answers = ours.predict(batch_of(ours, pictures))
    for wanted, answer in zip(expected, answers, strict=True):
        a, b = pairs(wanted, answer)
        assert len(a["labels"].unique()) > 1
        close(a["boxes"], b.boxes, atol=0.05)
        close(a["scores"], b.scores)
        assert torch.equal(a["labels"] - 1, b.labels)


def test_assignment_and_losses(theirs, ours, pictures):
    batch = batch_of(ours, pictures)
    boxes = [
        torch.tensor([[10.0, 12, 60, 70], [5, 8, 140, 150], [30.5, 20, 42, 90], [33, 30, 39, 41], [0, 0, 128, 128]]),
        torch.tensor([[20.0, 20, 180, 150], [60, 60, 150, 110]]),
    ]
    labels = [torch.tensor([0, 1, 2, 3, 0]), torch.tensor([1, 3])]
    targets = [Instances(size, boxes=b, labels=k) for size, b, k in zip(batch.sizes, boxes, labels, strict=True)]
    features = theirs.backbone(batch.pixels)
    head = theirs.head(list(features.values()))
    anchors = theirs.anchor_generator(ImageList(batch.pixels, batch.sizes), list(features.values()))
    as_theirs = [{"boxes": b, "labels": k + 1} for b, k in zip(boxes, labels, strict=True)]
    counts = [f.shape[2] * f.shape[3] for f in features.values()]
    seen = {}
    compute = theirs.head.compute_loss

    def listen(targets, outputs, anchors, matched):
        seen["matched"] = matched
        return compute(targets, outputs, anchors, matched)

    theirs.head.compute_loss = listen
    expected = theirs.compute_loss(as_theirs, head, anchors, counts)
    theirs.head.compute_loss = compute
    mine = dict(zip((8, 16, 32, 64, 128), features.values(), strict=True))
    answers = ours.head(mine)
    matched = [ours.assigner(answers.locations, target) for target in targets]
    for a, b in zip(seen["matched"], matched, strict=True):
        assert torch.equal(a, b)
        assert len(b.unique()) > 2
    losses = ours.head.loss(answers, matched, targets)
    background = torch.nn.functional.softplus(head["cls_logits"][..., 0]).sum()
    assert background.item() < 1e-6  # the class left out has no loss of its own
    for term, name in (("class", "classification"), ("box", "bbox_regression"), ("centerness", "bbox_ctrness")):
        close(losses[term].total / losses[term].count, expected[name])


def test_published_size_has_their_parameters():
    from maskwright.systems import SYSTEMS

    with torch.device("meta"):
        system = SYSTEMS["fcos-r50-torchvision"](num_classes=91)
    assert sum(p.numel() for p in system.parameters()) == 32_269_600  # spec, sec. 16


def test_rows_ids_and_refusals(theirs, run, tmp_path):
    model = fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    torch.save(model.state_dict(), tmp_path / "coco.pth")
    heard = []
    card = import_weights(tmp_path / "coco.pth", system="fcos-r50", out=tmp_path / "run", say=heard.append)
    assert (card.categories.names[0], card.categories.ids[0], len(card.categories)) == ("person", 1, 90)
    assert card.arguments["norm_eps"] == 1e-5
    assert len(heard) == 2
    system, _ = open_model(tmp_path / "run")
    assert torch.equal(system.head.classes.weight, model.head.classification_head.cls_logits.weight[1:])

    def refused(state, message, system="fcos-r50"):
        torch.save(state, tmp_path / "bad.pth")
        with pytest.raises(ValueError, match=message):
            import_weights(tmp_path / "bad.pth", system=system, out=tmp_path / "bad")

    state = theirs.state_dict()
    refused(state, "import it with --system fcos-r50", system="mask-rcnn-r50-fpn")
    refused({k: v for k, v in state.items() if "bbox_ctrness" not in k}, r"missing head\.centerness\.weight")
    refused(state | {"head.extra.weight": torch.zeros(1)}, r"left over: head\.extra\.weight")
