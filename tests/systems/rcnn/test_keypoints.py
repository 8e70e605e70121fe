"""Keypoint R-CNN beside torchvision's and numbers of the field; from data to a page."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.roi_heads import keypointrcnn_loss

import maskwright as mw
from maskwright.formats.catalog import open_split
from maskwright.formats.coco import to_coco
from maskwright.layers.roi import RoiAlign, Rois
from maskwright.metrics.detection import percent
from maskwright.reports.tables import metric_tables
from maskwright.runs import initialize
from maskwright.runs.checkpoints import read_model
from maskwright.structures import ImageBatch, Instances, KeypointSchema
from maskwright.systems import SYSTEMS, Task
from maskwright.systems.rcnn.keypoints import KeypointHead
from maskwright.systems.rcnn.mask_rcnn import SampledRois
from maskwright.training import train
from tests.conftest import make_coco, tiny_recipe


def head(channels=256, **options):
    torch.manual_seed(0)
    return KeypointHead(channels, num_keypoints=17, pool=RoiAlign(14, strides=(4,), sampling_ratio=2), **options)


def sampled(boxes, count):
    """RoIs of one image of which the first `count` hold the object of the same number."""
    index = torch.zeros(len(boxes), dtype=torch.int64)
    return SampledRois(Rois(boxes, index), index, boxes[:count], [torch.arange(count)])


def test_parameters_are_the_published_ones():
    with torch.device("meta"):
        systems = {name: SYSTEMS[name](num_classes=1) for name in ("keypoint-rcnn-r50-fpn", "mask-keypoint-rcnn-r50-fpn")}
    alone, both = systems.values()
    assert sum(p.numel() for p in alone.parameters()) == 59_133_158
    assert sum(p.numel() for p in alone.instance_heads["keypoint"].parameters()) == 17_698_816 + 139_281
    assert sum(p.numel() for p in both.parameters()) == 59_133_158 + 2_360_320 + 262_400 + 257
    assert (alone.task, both.task) == (Task.KEYPOINTS, Task.MASKS_AND_KEYPOINTS)


def test_heatmaps_equal_torchvisions():
    ours = head()
    layers, predictor = KeypointRCNNHeads(256, (512,) * 8), KeypointRCNNPredictor(512, 17)
    for mine, theirs in zip(ours.convs, list(layers)[::2], strict=True):
        theirs.load_state_dict(mine.state_dict())
    predictor.kps_score_lowres.load_state_dict(ours.deconv.state_dict())
    features = {4: torch.randn(1, 256, 30, 40)}
    rois = Rois(torch.tensor([[3.0, 5, 90, 110], [20, 20, 60, 100]]), torch.zeros(2, dtype=torch.int64))
    with torch.no_grad():
        found = ours(features, rois)
        expected = predictor(layers(ours.pool(features, rois)))
    assert found.shape == (2, 17, 56, 56)
    assert torch.allclose(found, expected, atol=1e-5)


def test_loss_equals_torchvisions(monkeypatch):
    torch.manual_seed(1)
    boxes = torch.tensor([[10.0, 20, 66, 132], [30, 30, 90, 90], [0, 0, 50, 50]])
    points = torch.cat([torch.rand(3, 17, 2) * 100, torch.randint(0, 3, (3, 17, 1)).float()], dim=2)
    points[2, :, 2] = 0  # shows nothing
    logits = torch.randn(3, 17, 56, 56)
    ours = head(depth=1, hidden=8)
    rows = {tuple(box): i for i, box in enumerate(boxes.tolist())}
    monkeypatch.setattr(ours, "forward", lambda features, rois: logits[[rows[tuple(b)] for b in rois.boxes.tolist()]])
    target = Instances((200, 200), boxes=boxes, labels=torch.zeros(3, dtype=torch.int64), keypoints=points)
    term = ours.loss({}, sampled(boxes, 3), [target])["keypoint"]
    expected = keypointrcnn_loss(logits, [boxes], [points], [torch.arange(3)])
    assert term.total / term.count == pytest.approx(float(expected), rel=1e-5)
    logits.zero_()
    term = ours.loss({}, sampled(boxes, 3), [target])["keypoint"]
    assert term.total / term.count == pytest.approx(math.log(3136), rel=1e-5)


def test_only_positives_with_labelled_points_teach():
    ours = head(16, depth=1, hidden=8)
    features = {4: torch.randn(1, 16, 30, 40, requires_grad=True)}
    boxes = torch.tensor([[8.0, 8, 60, 60], [80, 40, 150, 110], [0, 60, 40, 118]])
    points = torch.zeros(2, 17, 3)
    points[0, 3] = torch.tensor([30.0, 30, 1])
    target = Instances((120, 160), boxes=boxes[:2], labels=torch.zeros(2, dtype=torch.int64), keypoints=points)
    term = ours.loss(features, sampled(boxes, 2), [target])["keypoint"]
    assert term.count == 1
    term.total.backward()
    seen = features[4].grad.abs().sum(dim=(0, 1))
    assert seen[2:15, 2:15].sum() > 0
    assert seen[:, 17:].sum() == 0
    assert seen[17:].sum() == 0
    bare = Instances((120, 160), boxes=boxes[:2], labels=target.labels, keypoints=torch.zeros(2, 17, 3))
    term = ours.loss(features, sampled(boxes, 2), [bare])["keypoint"]
    assert (term.total, term.count) == (0, 0)


def test_keypoints_follow_their_box_into_the_original_image(monkeypatch):
    ours = head(16, depth=1, hidden=8)
    heat = torch.zeros(1, 17, 56, 56)
    heat[..., 28, 14] = 30.0
    monkeypatch.setattr(ours, "forward", lambda features, rois: heat)
    rois = Rois(torch.tensor([[10.0, 20, 66, 132]]), torch.zeros(1, dtype=torch.int64))
    found = Instances((400, 300), boxes=rois.boxes * 2, labels=torch.zeros(1, dtype=torch.int64), scores=torch.ones(1))
    (answer,) = ours.complete([found], {}, rois)
    x, y, sure = answer.keypoints.unbind(-1)
    assert torch.allclose(x, torch.tensor(2 * 24.5))
    assert torch.allclose(y, torch.tensor(2 * 76.5))
    assert ((sure > 0) & (sure <= 1)).all()


def test_targets_without_keypoints_are_refused():
    boxes = torch.tensor([[8.0, 8, 60, 60]])
    target = Instances((120, 160), boxes=boxes, labels=torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match="the targets have no keypoints: train a system without them"):
        head(16, depth=1, hidden=8).loss({}, sampled(boxes, 1), [target])


@pytest.mark.parametrize("name", ["keypoint-rcnn-small", "mask-keypoint-rcnn-small"])
def test_from_data_to_pictures(name, corners_folder, tmp_path, console):
    recipe = tiny_recipe(corners_folder, system=name)
    metrics = train(recipe, tmp_path / "run", device="cpu", console=console)
    assert metrics.kind == "keypoints"
    assert "keypoint AP" in console.file.getvalue()
    card = read_model(tmp_path / "run" / "last" / "weights.safetensors")[1]
    assert card.arguments["num_keypoints"] == 4
    assert card.categories.keypoints == open_split(corners_folder, "train").categories.keypoints
    assert card.categories.keypoints.flip_pairs == ((0, 1), (3, 2))
    found = mw.evaluate(tmp_path / "run", data=corners_folder, report=tmp_path / "page.html", console=console)
    title = next(iter(metric_tables(found.metrics))).title
    assert title == "COCO, in percent, at most 20 detections an image"
    found = mw.evaluate(tmp_path / "run", data=corners_folder, max_detections=[1, 10, 50], console=console)
    table = next(iter(metric_tables(found.metrics)))
    assert table.title == "COCO, in percent, at most 50 detections an image, 20 of keypoints"
    assert list(table.columns[-1].cells)[-1] == percent(found.metrics["keypoints"].ar[-1])
    kinds = ["bbox", "keypoints"] if name == "keypoint-rcnn-small" else ["bbox", "segm", "boundary", "keypoints"]
    assert list(found.metrics) == kinds
    assert "keypoint AP" in (tmp_path / "page.html").read_text()
    model = mw.load(tmp_path / "run", score_threshold=0.0)
    result = model.predict(next((corners_folder / "images").iterdir()), threshold=0.0)
    assert result.keypoints.shape == (len(result), 4, 3)
    assert (result.masks is None) == (name == "keypoint-rcnn-small")
    assert result.plot().size[0] >= 640
    entry = result.to_coco()[0]
    assert entry["keypoints"][:2] == pytest.approx((result.keypoints[0, 0, :2] - 0.5).tolist())


def test_nothing_found():
    system = SYSTEMS["mask-keypoint-rcnn-small"](num_classes=1, score_threshold=1.0, short_px=64, long_px=96).eval()
    batch = ImageBatch.collate([torch.zeros(3, 64, 96)], original_sizes=[(64, 96)], size_divisor=32, keys=[0])
    with torch.no_grad():
        (found,) = system.predict(batch)
    assert (tuple(found.boxes.shape), tuple(found.keypoints.shape), len(found.masks)) == ((0, 4), (0, 17, 3), 0)


def test_other_keypoints_start_afresh(corners_folder, tmp_path, console):
    train(tiny_recipe(corners_folder, system="keypoint-rcnn-small"), tmp_path / "run", device="cpu", console=console)
    before = read_model(tmp_path / "run" / "last" / "weights.safetensors")
    names = ["nw", "ne", "se", "sw"]
    for count in (4, 3):  # of other names; and fewer
        system = SYSTEMS["keypoint-rcnn-small"](num_classes=2, num_keypoints=count)
        categories = replace(before[1].categories, keypoints=KeypointSchema.from_names(names[:count], []))
        card = replace(before[1], categories=categories)
        fresh = {name: tensor.clone() for name, tensor in system.state_dict().items()}
        heard = []
        initialize(system, card, tmp_path / "run" / "last", heard.append)
        assert heard[-1] == "parts that start afresh: instance_heads.keypoint.deconv"
        for name, tensor in system.state_dict().items():
            kept = "keypoint.deconv" in name
            assert torch.equal(tensor, fresh[name] if kept else before[0][name]), name
    system = SYSTEMS["keypoint-rcnn-small"](num_classes=2, num_keypoints=4)
    initialize(system, before[1], tmp_path / "run" / "last", print)
    assert torch.equal(system.instance_heads["keypoint"].deconv.weight, before[0]["instance_heads.keypoint.deconv.weight"])


def test_data_without_keypoints_is_scored_by_boxes_and_said(corners_folder, coco_folder, tmp_path, console):
    train(tiny_recipe(corners_folder, system="keypoint-rcnn-small"), tmp_path / "run", device="cpu", console=console)
    make_coco(tmp_path / "bare", split="val")
    found = mw.evaluate(tmp_path / "run", data=tmp_path / "bare", console=console)
    assert list(found.metrics) == ["bbox"]
    assert "has no keypoints: those of the model are not scored" in " ".join(console.file.getvalue().split())


def test_compared_with_a_system_of_boxes_by_its_keypoints(corners_folder, tmp_path, console):
    people = tiny_recipe(corners_folder, system="keypoint-rcnn-small")
    train(people, tmp_path / "run", device="cpu", console=console)
    results = mw.evaluate(tmp_path / "run", data=corners_folder, console=console, arguments={"score_threshold": 0.0}).results
    (tmp_path / "theirs.json").write_text(json.dumps(results))
    scored = mw.score(tmp_path / "theirs.json", data=corners_folder)
    assert list(scored.metrics) == ["bbox", "keypoints"]
    bare = [{name: entry[name] for name in ("image_id", "category_id", "score", "keypoints")} for entry in results]
    (tmp_path / "bare.json").write_text(json.dumps(bare))  # as COCO's server wants them
    found = mw.score(tmp_path / "bare.json", data=corners_folder, report=tmp_path / "bare.html", console=console).metrics
    assert list(found) == ["keypoints"]
    assert found["keypoints"].ap == pytest.approx(scored.metrics["keypoints"].ap)
    truth = to_coco(open_split(corners_folder, "val"))["annotations"]
    near = [{**e, "score": 1.0, "keypoints": [v + 1 for v in e["keypoints"]]} for e in truth if not e["iscrowd"]]
    answers = []
    for names in (("image_id", "category_id", "score", "keypoints", "bbox"), ("image_id", "category_id", "score", "keypoints")):
        (tmp_path / "near.json").write_text(json.dumps([{name: entry[name] for name in names} for entry in near]))
        answers.append(mw.score(tmp_path / "near.json", data=corners_folder).metrics["keypoints"].ap)
    assert answers[0] == pytest.approx(answers[1])
    assert 0.3 < answers[0] < 1  # a pixel away
    (tmp_path / "bare.json").write_text(json.dumps([{**bare[0], "keypoints": [1, 2, 3]}]))
    with pytest.raises(ValueError, match="entry 0: keypoints are not 12 numbers"):
        mw.score(tmp_path / "bare.json", data=corners_folder)
    answer = mw.compare([str(tmp_path / "run"), str(tmp_path / "theirs.json")], data=corners_folder, out=tmp_path / "compare")
    (table,) = answer.tables
    assert table.task == "keypoints"
    assert {row.kind for row in table.rows} == {"keypoints"}


def test_data_without_keypoints_is_refused(coco_folder, tmp_path, console):
    with pytest.raises(ValueError, match="none of its categories has keypoints, which keypoint-rcnn-small needs"):
        train(tiny_recipe(coco_folder, system="keypoint-rcnn-small"), tmp_path / "run", device="cpu", console=console)
    assert not (tmp_path / "run").exists()


def test_other_keypoints_than_the_models_are_not_scored(corners_folder, tmp_path, console):
    train(tiny_recipe(corners_folder, system="keypoint-rcnn-small"), tmp_path / "run", device="cpu", console=console)
    path = corners_folder / "annotations" / "val.json"
    path.write_text(path.read_text().replace("left_top", "top"))
    with pytest.raises(ValueError, match=r"its keypoints \(top, right_top.*\) are not the model's"):
        mw.evaluate(tmp_path / "run", data=corners_folder, console=console)
