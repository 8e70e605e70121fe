"""The torchvision parts answer what torchvision answers, with the same random weights."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision.models.detection import (
    fasterrcnn_resnet50_fpn,
    fasterrcnn_resnet50_fpn_v2,
    keypointrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn_v2,
)
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import expand_boxes, maskrcnn_loss, paste_masks_in_image, project_masks_on_boxes
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from maskwright.formats.coco_results import to_coco_results
from maskwright.layers.assignment import BalancedSampler
from maskwright.layers.grids import RoundedAnchors
from maskwright.layers.roi import Rois, level_of
from maskwright.runs import initialize, open_model
from maskwright.runs.checkpoints import build_system
from maskwright.runs.importing import import_weights
from maskwright.structures import ImageBatch, Instances, Masks, ResizeRule
from maskwright.systems.rcnn.mask_rcnn import FasterRCNN
from maskwright.systems.rcnn.torchvision import ANCHORS, IndexedKeypointRCNN, soft_mask_targets, whole_pixel_windows

SHORT_PX, LONG_PX, CLASSES = 160, 256, 4
PROPOSALS, DETECTIONS = 200, 30  # of an image; every one of them passes the heads on both sides
TOP_N = ("rpn_pre_nms_top_n_test", "rpn_post_nms_top_n_test")
LIMITS = {**dict.fromkeys(TOP_N, PROPOSALS), "box_detections_per_img": DETECTIONS}  # theirs
ARGUMENTS = {"short_px": SHORT_PX, "long_px": LONG_PX, "num_proposals": PROPOSALS, "max_detections": DETECTIONS}  # ours


def randomize(model: nn.Module) -> None:
    """Random weights, norms' statistics and biases included, at scales that keep activations alive."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        elif name.endswith(("running_mean", "bias")):
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
        elif tensor.ndim == 1:  # of a norm
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        elif tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * (1 / tensor[0].numel()) ** 0.5)


@pytest.fixture(scope="module", params=[maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2], ids=["v1", "v2"])
def theirs(request):
    options = {"weights": None, "weights_backbone": None, "num_classes": CLASSES + 1}
    model = request.param(**options, **LIMITS, min_size=SHORT_PX, max_size=LONG_PX, box_score_thresh=0.22)
    randomize(model)
    return model.eval()


@pytest.fixture(scope="module")
def run(theirs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("imported")
    torch.save(theirs.state_dict(), folder / "theirs.pth")
    arguments = {**ARGUMENTS, "score_threshold": 0.22}
    import_weights(folder / "theirs.pth", system="mask-rcnn-r50-fpn", out=folder / "run", arguments=arguments)
    return folder / "run"


@pytest.fixture(scope="module")
def ours(run):
    system, _ = open_model(run)
    return system.eval()


@pytest.fixture(scope="module")
def pictures():
    generator = torch.Generator().manual_seed(1)
    coarse = [torch.rand(1, 3, *size, generator=generator) for size in ((12, 20), (16, 13))]
    sizes = [(203, 311), (250, 199)]
    return [
        (255 * nn.functional.interpolate(c, s, mode="bicubic")[0].clamp(0, 1)).byte()
        for c, s in zip(coarse, sizes, strict=True)
    ]


def batch_of(system, pictures):
    images = [system.input.to_pixels(p.permute(1, 2, 0)) for p in pictures]
    sizes = [(p.shape[1], p.shape[2]) for p in pictures]
    return ImageBatch.collate(images, original_sizes=sizes, size_divisor=32, keys=list(range(len(images))))


def close(a, b, atol=1e-4):
    assert a.shape == b.shape
    assert float((a - b).detach().abs().max()) <= atol


SPARED = 2  # answers of an image that a last bit may turn over; 20 and more remain


def pairs(theirs, ours):
    """Rows of the answers to an image that both sides give, theirs and ours.

    The last score that is kept and the next, or an overlap and the one that suppresses, may be a last bit apart: which answer
    stays is then the processor's choice. More than a few such are no coincidence.
    """
    apart = torch.cdist(theirs["boxes"], ours.boxes, p=torch.inf) + 1e4 * (theirs["labels"][:, None] - 1 != ours.labels)
    near, rows = apart.min(dim=1)
    mine = torch.nonzero(near <= 0.05)[:, 0]
    assert len(rows[mine].unique()) == len(mine) >= 20
    assert max(len(apart), len(ours)) - len(mine) <= SPARED
    return {key: value[mine] for key, value in theirs.items()}, ours[rows[mine]]


def windows(boxes):
    """Where torchvision pastes a mask: the box grown by a cell of 28 on each side, cut to whole pixels."""
    return expand_boxes(boxes, 30 / 28).to(torch.int64)


@torch.no_grad()
def test_pixels_sizes_and_padding(theirs, ours, pictures):
    batch = batch_of(ours, pictures)
    images, _ = theirs.transform([p / 255 for p in pictures])
    assert images.image_sizes == batch.sizes
    close(images.tensors, batch.pixels)


def test_every_size_is_rounded_as_theirs():
    transform = GeneralizedRCNNTransform(800, 1333, [0.0] * 3, [1.0] * 3)
    rule = ResizeRule(800, 1333, rounding="floor", antialias=False)
    for height, width in [(427, 640), (427, 641), (480, 640), (375, 1242), *((h, h + 7) for h in range(20, 900, 29))]:
        scale = min(800 / min(height, width), 1333 / max(height, width))
        shape = nn.functional.interpolate(
            torch.zeros(1, 1, height, width), scale_factor=scale, recompute_scale_factor=True, mode="bilinear"
        ).shape
        assert rule.size((height, width)) == tuple(shape[2:])
    assert rule.size((480, 640)) == transform([torch.zeros(3, 480, 640)])[0].image_sizes[0] == (800, 1066)


@torch.no_grad()
def test_features_proposals_and_head_outputs(theirs, ours, pictures):
    batch = batch_of(ours, pictures)
    features = theirs.backbone(batch.pixels)
    mine = ours.fpn(ours.backbone(batch.pixels))
    for a, b in zip(features.values(), mine.values(), strict=True):
        assert float(a.std()) > 0.01
        close(a, b)
    logits, deltas = theirs.rpn.head(list(features.values()))
    candidates = ours.rpn(mine)
    for level in range(5):
        close(logits[level].permute(0, 2, 3, 1).flatten(1), candidates.logits[level])
        close(deltas[level].permute(0, 2, 3, 1).reshape(2, -1, 4), candidates.deltas[level])
    proposals, _ = theirs.rpn(ImageList(batch.pixels, batch.sizes), features)
    found = ours.rpn.propose(candidates, batch.sizes, per_level=PROPOSALS, keep=PROPOSALS)
    for a, b in zip(proposals, found, strict=True):
        assert min(len(a), len(b)) >= 50
        assert abs(len(a) - len(b)) <= SPARED
        nearest = torch.cdist(a, b.boxes, p=torch.inf).amin(dim=1)
        assert int((nearest > 0.05).sum()) <= SPARED  # scores that differ in the last bit may trade places
    class_logits, box_deltas = theirs.roi_heads.box_predictor(
        theirs.roi_heads.box_head(theirs.roi_heads.box_roi_pool(features, proposals, batch.sizes))
    )
    my_logits, my_deltas = ours.box_head(mine, Rois.of(proposals))
    close(torch.cat([class_logits[:, 1:], class_logits[:, :1]], dim=1), my_logits)
    close(box_deltas.reshape(-1, CLASSES + 1, 4)[:, 1:], my_deltas)
    boxes = [p[:20] for p in proposals]
    heads = theirs.roi_heads
    masks = heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(features, boxes, batch.sizes)))
    labels = torch.arange(40) % CLASSES
    close(masks[torch.arange(40), labels + 1], ours.instance_heads["mask"](mine, Rois.of(boxes), labels))


@torch.no_grad()
def test_answers_from_image_to_mask(theirs, ours, pictures):
    expected = theirs([p / 255 for p in pictures])
    answers = ours.predict(batch_of(ours, pictures))
    for wanted, answer, picture in zip(expected, answers, pictures, strict=True):
        a, b = pairs(wanted, answer)
        close(a["boxes"], b.boxes, atol=0.05)
        close(a["scores"], b.scores)
        assert torch.equal(a["labels"] - 1, b.labels)
        is_cut_alike = (windows(a["boxes"]) == windows(b.boxes)).all(dim=1)
        assert int((~is_cut_alike).sum()) <= SPARED  # an edge on a whole pixel, but for a last bit, moves the whole mask
        dense = b.masks.to_dense()[is_cut_alike]
        assert dense.shape[1:] == picture.shape[1:]
        probs = a["masks"][is_cut_alike, 0]
        truth = probs > 0.5
        is_even = (probs - 0.5).abs() <= 1e-4  # may fall either way
        assert is_even.float().mean() < 1e-3
        dense = torch.where(is_even, truth, dense)
        iou = (dense & truth).sum(dim=(1, 2)) / (dense | truth).sum(dim=(1, 2)).clamp(min=1)
        assert truth.any(dim=2).any(dim=1).float().mean() > 0.8
        assert float(iou[truth.any(dim=2).any(dim=1)].min()) >= 0.99


def targets_for(sizes):
    """Two rectangles and a disc on each image, input frame."""
    answers = []
    for height, width in sizes:
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        dense = torch.stack(
            [
                (y > 20) & (y < 90) & (x > 30) & (x < 75),
                (y > 60) & (y < 85) & (x > 50) & (x < 150),
                (y - height // 2) ** 2 + (x - width // 2) ** 2 < 33**2,
            ]
        )
        masks = Masks.from_dense(dense)
        answers.append(Instances((height, width), boxes=masks.boxes(), labels=torch.tensor([0, 3, 1]), masks=masks))
    return answers


def test_losses_on_the_same_anchors_and_rois(theirs, ours, pictures, monkeypatch):
    batch = batch_of(ours, pictures)
    targets = targets_for(batch.sizes)
    features = theirs.backbone(batch.pixels)
    as_theirs = [{"boxes": t.boxes, "labels": t.labels + 1, "masks": t.masks.to_dense().to(torch.uint8)} for t in targets]
    drawn = []
    mine = {k: v.detach() for k, v in zip((4, 8, 16, 32, 64), features.values(), strict=True)}

    class Same(type(ours.rpn.sampler)):  # remembers what it drew, for the other side to look at
        def __call__(self, kind, generator):
            answer = super().__call__(kind, generator)
            drawn.append((kind, *answer))
            return answer

    usual = ours.rpn.sampler
    ours.rpn.sampler = Same(256, 0.5)
    candidates = ours.rpn(mine)
    losses = ours.rpn.loss(candidates, targets, batch.generators())
    ours.rpn.sampler = usual
    rpn: RegionProposalNetwork = theirs.rpn
    anchors = rpn.anchor_generator(ImageList(batch.pixels, batch.sizes), list(features.values()))
    labels, matched = rpn.assign_targets_to_anchors(anchors, as_theirs)
    for (kind, _, _), label in zip(drawn, labels, strict=True):
        assert torch.equal(kind.float(), label)
    picked = [torch.zeros(len(k), dtype=torch.bool) for k, _, _ in drawn]
    for mask, (_, positives, negatives) in zip(picked, drawn, strict=True):
        mask[torch.cat([positives, negatives])] = True
    their_sampler, rpn.fg_bg_sampler = (
        rpn.fg_bg_sampler,
        lambda labels: (
            [m & (k == 1) for m, (k, _, _) in zip(picked, drawn, strict=True)],
            [m & (k == 0) for m, (k, _, _) in zip(picked, drawn, strict=True)],
        ),
    )
    objectness = torch.cat(candidates.logits, dim=1).flatten()[:, None]
    expected = rpn.compute_loss(
        objectness, torch.cat(candidates.deltas, dim=1).reshape(-1, 4), labels, rpn.box_coder.encode(matched, anchors)
    )
    rpn.fg_bg_sampler = their_sampler
    for term, value in zip(("rpn_objectness", "rpn_box"), expected, strict=True):
        close(losses[term].total / losses[term].count, value)

    proposals = ours.rpn.propose(candidates, batch.sizes, per_level=2000, keep=2000)
    monkeypatch.setattr(ours.roi_sampler, "sampler", BalancedSampler(64, positive_fraction=0.25))  # of 512: enough to compare
    sampled = ours.roi_sampler([p.boxes for p in proposals], targets, batch.generators())
    assert len(sampled.positives) >= 6
    losses = ours.box_head.loss(mine, sampled) | ours.instance_heads["mask"].loss(mine, sampled, targets)
    heads = theirs.roi_heads
    by_image = [sampled.rois.boxes[sampled.rois.image_index == i] for i in range(2)]
    labels = [torch.where(sampled.labels == CLASSES, 0, sampled.labels + 1)[sampled.rois.image_index == i] for i in range(2)]
    rows = [torch.zeros(len(b), dtype=torch.int64) for b in by_image]
    for row, target_rows in zip(rows, sampled.target_rows, strict=True):
        row[: len(target_rows)] = target_rows
    wanted = heads.box_coder.encode([t.boxes[r] for t, r in zip(targets, rows, strict=True)], by_image)
    logits, deltas = heads.box_predictor(heads.box_head(heads.box_roi_pool(features, by_image, batch.sizes)))
    from torchvision.models.detection.roi_heads import fastrcnn_loss

    for term, value in zip(("class", "box"), fastrcnn_loss(logits, deltas, labels, wanted), strict=True):
        close(losses[term].total / losses[term].count, value)
    positives = [b[label > 0] for b, label in zip(by_image, labels, strict=True)]
    mask_logits = heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(features, positives, batch.sizes)))
    expected_mask = maskrcnn_loss(
        mask_logits,
        positives,
        [t["masks"] for t in as_theirs],
        [t["labels"] for t in as_theirs],
        [r[label > 0] for r, label in zip(rows, labels, strict=True)],
    )
    close(losses["mask"].total / losses["mask"].count, expected_mask)


# Parts alone


def test_soft_mask_targets_look_at_pixels_of_the_resized_image():
    generator = torch.Generator().manual_seed(0)
    masks = Masks.from_dense(torch.rand(3, 61, 83, generator=generator) > 0.6).resize((20, 30))
    boxes, rows = torch.tensor([[0.0, 0, 30, 20], [3.2, 4.9, 20.1, 9.7], [4, 3, 14, 20]]), torch.arange(3)
    expected = project_masks_on_boxes(masks.to_dense(), boxes, rows, 28)
    close(expected, soft_mask_targets(masks, boxes, rows, side=28), atol=1e-5)


def test_soft_mask_targets_are_roi_align_of_the_whole_mask():
    generator = torch.Generator().manual_seed(0)
    dense = torch.rand(5, 61, 83, generator=generator) > 0.6
    dense[3] = False
    dense[4] = False
    dense[4, 59:, 80:] = True
    boxes = torch.tensor([[0.0, 0, 83, 61], [3.2, 4.9, 70.1, 9.7], [40, 30, 40.5, 30.2], [-5, -7, 30, 20], [60, 40, 95, 70]])
    rows = torch.tensor([0, 1, 2, 3, 4, 4, 0, 1, 2, 3])
    many = boxes.repeat(2, 1)
    expected = project_masks_on_boxes(dense, many, rows, 28)
    for autocast in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            close(expected, soft_mask_targets(Masks.from_dense(dense), many, rows, side=28), atol=1e-5)
    assert soft_mask_targets(Masks.empty((4, 4)), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), side=28).shape == (
        0,
        28,
        28,
    )


def test_soft_targets_of_the_spec():
    dense = torch.zeros(1, 20, 20)
    dense[0, 5:15, 4:14] = 1
    found = soft_mask_targets(Masks.from_dense(dense), torch.tensor([[0.0, 0, 20, 20]]), torch.tensor([0]), side=4)
    rows = [[0.03, 0.1, 0.07, 0], [0.3, 1, 0.7, 0], [0.27, 0.9, 0.63, 0], [0, 0, 0, 0]]  # spec § 10.3
    close(found[0], torch.tensor(rows), atol=0.006)


def test_whole_pixel_paste():
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(40, 2, generator=generator) * 60
    boxes = torch.cat([boxes, boxes + torch.rand(40, 2, generator=generator) * 50], dim=1)
    probs = torch.rand(40, 28, 28, generator=generator)
    theirs = paste_masks_in_image(probs[:, None], boxes, (70, 90))[:, 0] >= 0.5
    mine = whole_pixel_windows(probs, boxes).paste((70, 90)).to_dense()
    assert (theirs != mine).float().mean() < 1e-5
    area = whole_pixel_windows(torch.full((2, 28, 28), 0.9), torch.tensor([[2.0, 3, 12, 13], [2.6, 3.6, 12.6, 13.6]]))
    pasted = area.paste((20, 20))
    assert pasted.areas().tolist() == [144, 121]  # spec § 11.1
    assert pasted.boxes()[:, [0, 2]].tolist() == [[1, 13], [2, 13]]  # columns 1 to 12, and 2 to 12
    assert pasted.boxes()[0, [1, 3]].tolist() == [2, 14]


def test_round_trip_of_a_rectangle_and_an_ellipse():
    y, x = torch.meshgrid(torch.arange(120), torch.arange(160), indexing="ij")
    rectangle = (y >= 20) & (y < 60) & (x >= 30) & (x < 90)
    ellipse = ((x - 80) / 50) ** 2 + ((y - 60) / 35) ** 2 <= 1
    for truth, wanted in ((rectangle, 0.961), (ellipse, 0.974)):  # spec § 21.18
        masks = Masks.from_dense(truth[None])
        targets = soft_mask_targets(masks, masks.boxes(), torch.tensor([0]), side=28)
        found = whole_pixel_windows(targets, masks.boxes()).paste((120, 160)).to_dense()[0]
        assert ((found & truth).sum() / (found | truth).sum()).item() == pytest.approx(wanted, abs=0.0015)
        theirs = paste_masks_in_image(targets[:, None], masks.boxes(), (120, 160))[0, 0] > 0.5
        assert torch.equal(found, theirs)


def test_anchors_equal_their_generator():
    features = {s: torch.zeros(1, 1, -(-800 // s), -(-1344 // s)) for s in ANCHORS}
    generator = AnchorGenerator(tuple(ANCHORS.values()), ((0.5, 1.0, 2.0),) * 5)
    (theirs,) = generator(ImageList(torch.zeros(1, 3, 800, 1344), [(800, 1344)]), list(features.values()))
    assert torch.equal(theirs, torch.cat(RoundedAnchors(ANCHORS)(features)))


def test_level_tolerance_decides_the_last_bit():
    side = torch.tensor([[0.0, 0, 111.99998, 112]])
    assert level_of(side, (4, 8, 16, 32)).item() == 4
    assert level_of(side, (4, 8, 16, 32), tolerance=1e-6).item() == 8


# Import


def test_import_keeps_rows_ids_and_parts(run, theirs):
    card = json.loads((run / "best" / "model.json").read_text())
    is_second = len(theirs.roi_heads.box_head.state_dict()) > 4
    assert card["system"] == f"mask-rcnn-r50-fpn-torchvision{'-v2' if is_second else ''}"
    assert card["categories"] == {"names": ["1", "2", "3", "4"], "ids": [1, 2, 3, 4], "keypoints": None}
    assert card["input"]["resize"] == {"short_px": SHORT_PX, "long_px": LONG_PX, "rounding": "floor", "antialias": False}
    assert card["arguments"].get("norm_eps") == (None if is_second else 1e-5)
    assert card["arguments"].get("branch_norm") == ("frozen" if is_second else None)
    assert json.loads((run / "import.json").read_text())["file"] == "theirs.pth"


def test_import_of_faster_rcnn_with_coco_rows_and_older_names(tmp_path):
    model = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    state = {"module." + k.replace("conv.0.0.", "conv."): v.half() for k, v in model.state_dict().items()}
    torch.save({"model": state, "epoch": 3}, tmp_path / "a.pth")
    heard = []
    card = import_weights(
        tmp_path / "a.pth", system="faster-rcnn-r50-fpn", out=tmp_path / "run", norm_eps=0.0, say=heard.append
    )
    assert len(card.categories) == 90
    assert card.categories.names[0] == "person"
    assert card.categories.names[11] == "unused 12"
    assert (card.categories.names[89], card.categories.ids[89]) == ("toothbrush", 90)
    system, _ = open_model(tmp_path / "run")
    assert {m.eps for m in system.modules() if hasattr(m, "running_var")} == {0.0}
    assert torch.equal(system.box_head.classes.weight[-1], model.roi_heads.box_predictor.cls_score.weight[0].half().float())
    assert "norm eps 0 (as given)" in heard[0]
    assert heard[1] == "classes named person, bicycle, car, ...: give others with --classes"
    assert len(heard) == 2  # norms trained along cannot have been frozen with eps 0


@torch.no_grad()
def test_keypoints_from_image_to_joint(pictures, tmp_path):
    options = {"weights": None, "weights_backbone": None, "num_classes": 2, "min_size": SHORT_PX, "max_size": LONG_PX}
    theirs = keypointrcnn_resnet50_fpn(**options, **LIMITS, box_score_thresh=0.5)
    randomize(theirs)
    torch.save(theirs.eval().state_dict(), tmp_path / "theirs.pth")
    arguments = {**ARGUMENTS, "score_threshold": 0.5}
    card = import_weights(tmp_path / "theirs.pth", system="keypoint-rcnn-r50-fpn", out=tmp_path / "run", arguments=arguments)
    assert card.system == "keypoint-rcnn-r50-fpn-torchvision"
    assert card.categories.names == ("person",)
    assert card.categories.keypoints.names[-1] == "right_ankle"
    ours = open_model(tmp_path / "run")[0].eval()
    expected = theirs([p / 255 for p in pictures])
    for wanted, answer in zip(expected, ours.predict(batch_of(ours, pictures)), strict=True):
        a, b = pairs(wanted, answer)
        close(a["boxes"], b.boxes, atol=0.05)
        close(a["scores"], b.scores)
        written = torch.tensor([e["keypoints"] for e in to_coco_results(b, 1, card.categories)]).reshape(len(b), 17, 3)
        apart = (a["keypoints"][..., :2] - written[..., :2]).abs().amax(dim=-1)  # theirs are COCO's pixel numbers as they are
        assert (apart <= 0.01).float().mean() >= 0.99  # a width may round up to another grid; equal peaks


def test_keypoints_to_learn_from_are_torchvisions(pictures, monkeypatch):
    sizes = [(p.shape[1], p.shape[2]) for p in pictures]
    transform = GeneralizedRCNNTransform(SHORT_PX, LONG_PX, [0.0] * 3, [1.0] * 3)
    numbers = torch.tensor([[[0.0, 0, 2], [31, 17, 1], [62, 40, 2]]])  # COCO's
    boxes = torch.tensor([[0.0, 0, 64, 50]])
    images, targets = transform(
        [p / 255 for p in pictures], [{"boxes": boxes, "labels": torch.tensor([1]), "keypoints": numbers} for _ in pictures]
    )
    batch = ImageBatch(images.tensors, images.image_sizes, sizes)
    middle = numbers + torch.tensor([0.5, 0.5, 0])  # as our reader has them
    ours = [
        Instances(size, boxes, torch.tensor([0]), keypoints=middle).resize(to)
        for size, to in zip(sizes, batch.sizes, strict=True)
    ]
    monkeypatch.setattr(FasterRCNN, "loss", lambda self, images, targets: targets)
    learnt_from = IndexedKeypointRCNN.__new__(IndexedKeypointRCNN).loss(batch, ours)
    for a, b in zip(targets, learnt_from, strict=True):
        close(a["keypoints"], b.keypoints, atol=1e-3)


@pytest.mark.parametrize("theirs", [maskrcnn_resnet50_fpn], indirect=True)
def test_what_cannot_be_imported_is_named(run, theirs, tmp_path):
    def refused(state, message, system="mask-rcnn-r50-fpn", **options):
        torch.save(state, tmp_path / "bad.pth")
        with pytest.raises(ValueError, match=message):
            import_weights(tmp_path / "bad.pth", system=system, out=tmp_path / "run", **options)
        assert not (tmp_path / "run").exists()

    state = theirs.state_dict()
    refused({k: v for k, v in state.items() if "fc6" not in k}, r"bad\.pth: .*missing box_head\.fc1\.weight")
    refused(state | {"roi_heads.other_head.0.weight": torch.zeros(1)}, r"left over: roi_heads\.other_head\.0\.weight")
    refused(
        state | {"roi_heads.keypoint_head.0.weight": torch.zeros(1)}, "it has 0 keypoints whose names the file does not hold"
    )
    refused(
        state | {"rpn.head.conv.0.0.weight": torch.zeros(2, 2)}, r"rpn\.conv\.weight is \(2, 2\), expected \(256, 256, 3, 3\)"
    )
    refused(state, "import it with --system mask-rcnn-r50-fpn", system="faster-rcnn-r50-fpn")
    refused(state, "has rows for 4 classes beside the background, got 2 names", classes=["a", "b"])
    refused(state, "has rows for 4 classes beside the background, got 4 names, some of them twice", classes=list("abca"))
    refused(state, "cannot be imported into 'mask-rcnn-small' yet", system="mask-rcnn-small")
    refused({"a": torch.zeros(1)}, "not a checkpoint of torchvision, detectron2")
    refused({"model": theirs}, "holds torchvision.models.*MaskRCNN; only tensors")  # a pickled module could run code
    refused({"model_ema": state, "epoch": 3}, "holds no table of tensors under its keys model_ema, epoch")
    refused(state, "norm_eps cannot be set", arguments={"norm_eps": 0})
    refused(state, "short_px: Input should be a valid integer.*got 'abc'", arguments={"short_px": "abc"})
    with pytest.raises(ValueError, match="the folder is not empty"):
        import_weights(tmp_path / "bad.pth", system="mask-rcnn-r50-fpn", out=run)


def test_second_version_of_faster_rcnn(tmp_path):
    state = fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=3).state_dict()
    torch.save(state, tmp_path / "a.pth")
    heard = []
    card = import_weights(tmp_path / "a.pth", system="faster-rcnn-r50-fpn", out=tmp_path / "run", say=heard.append)
    assert card.system == "faster-rcnn-r50-fpn-torchvision-v2"
    assert len(heard) == 2  # nothing about eps, which these norms had from the beginning
    with pytest.raises(ValueError, match="leave --norm-eps out"):
        import_weights(tmp_path / "a.pth", system="faster-rcnn-r50-fpn", out=tmp_path / "b", norm_eps=0.0)
    torch.save({k: v for k, v in state.items() if k != "backbone.fpn.inner_blocks.0.1.bias"}, tmp_path / "b.pth")
    with pytest.raises(ValueError, match=r"missing fpn\.lateral\.4\.1\.bias"):
        import_weights(tmp_path / "b.pth", system="faster-rcnn-r50-fpn", out=tmp_path / "c")


def test_counts_of_the_second_versions():
    for name, theirs, count, entries in (  # spec § 18.4 and 20.1
        ("faster-rcnn-r50-fpn-torchvision-v2", fasterrcnn_resnet50_fpn_v2, 43_712_278, 404),
        ("mask-rcnn-r50-fpn-torchvision-v2", maskrcnn_resnet50_fpn_v2, 46_359_409, 432),
    ):
        with torch.device("meta"):
            ours, original = build_system(name, {"num_classes": 90, "branch_norm": "frozen"}), theirs(weights_backbone=None)
        assert len(original.state_dict()) == entries
        assert sum(p.numel() for p in original.parameters()) == count
        norms = sum(v.numel() for n, v in ours.state_dict().items() if n.replace("running_mean", "") != n)  # C of each
        background = 4 * 1025 + (257 if "mask" in name else 0)  # rows that we do without
        assert sum(p.numel() for p in ours.parameters()) + 2 * norms == count - background


@pytest.mark.parametrize("theirs", [maskrcnn_resnet50_fpn], indirect=True)
def test_published_files_are_known_by_their_hash(theirs, tmp_path, monkeypatch):
    import hashlib

    from maskwright.weights import torchvision

    torch.save(theirs.state_dict(), tmp_path / "x.pth")
    digest = hashlib.sha256((tmp_path / "x.pth").read_bytes()).hexdigest()
    assert {"258fb6c6", "bf2d0c1e", "fc266e95"} == torchvision.OFFICIAL
    monkeypatch.setattr(torchvision, "OFFICIAL", {digest[:8]})
    card = import_weights(tmp_path / "x.pth", system="mask-rcnn-r50-fpn", out=tmp_path / "run")
    assert card.arguments["norm_eps"] == 0.0
    network = build_system(card.system, card.arguments)
    with pytest.raises(ValueError, match=r"want eps 0, .* has 1e-05: add --set arguments\.norm_eps=0"):
        initialize(network, replace(card, arguments={**card.arguments, "norm_eps": 1e-5}), tmp_path / "run", print)
    with pytest.raises(ValueError, match="want eps 0, .* has 1e-05: train mask-rcnn-r50-fpn-torchvision instead"):
        initialize(network, replace(card, system="mask-rcnn-r50-fpn", arguments={"num_classes": 4}), tmp_path / "run", print)
    heard = []
    initialize(network, replace(card, system="mask-rcnn-r50-fpn"), tmp_path / "run", heard.append)
    assert "trained as mask-rcnn-r50-fpn-torchvision, whose parts" in heard[0]


def test_options_saved_by_training_scripts_are_no_obstacle(theirs, tmp_path):
    import argparse

    torch.save({"model": theirs.state_dict(), "args": argparse.Namespace(lr=0.02, data_path="/x")}, tmp_path / "x.pth")
    import_weights(tmp_path / "x.pth", system="mask-rcnn-r50-fpn", out=tmp_path / "run")
