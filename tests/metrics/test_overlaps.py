"""Edges of masks, and boundary AP beside faster-coco-eval's."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from faster_coco_eval import (
    COCO,  # another one than pycocotools'
    COCOeval_faster,
)

from maskwright.formats.coco import read_coco
from maskwright.metrics import evaluate_detections
from maskwright.metrics.overlaps import edge, edge_width
from tests.conftest import EXAMPLES
from tests.metrics.test_detection import random_case


def eroded(area, width):
    """A square minimum by torch, nothing beyond the border."""
    padded = F.pad(torch.from_numpy(area).float()[None, None], (width,) * 4)
    return (-F.max_pool2d(-padded, 2 * width + 1, stride=1))[0, 0].numpy() > 0


@pytest.mark.parametrize("width", [1, 2, 3, 7, 12])
def test_edge_is_what_a_square_erosion_takes_away(width):
    rng = np.random.default_rng(width)
    for height, breadth in ((40, 50), (2 * width, 30), (2 * width + 1, 2 * width + 1), (1, 1)):
        area = rng.random((height, breadth)) < 0.995
        assert (edge(area, width) == (area & ~eroded(area, width))).all()


def test_edge_width_is_two_percent_of_the_diagonal():
    assert edge_width((300, 400)) == 10
    assert edge_width((8, 8)) == 1


def oracle(path, results, kind):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        keys = ("image_id", "category_id", "score", "segmentation")
        run = COCOeval_faster(truth, truth.loadRes([{k: r[k] for k in keys} for r in results]), kind)
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run.stats[:12]


@pytest.mark.parametrize("seed", range(6))
def test_boundary_numbers_equal_faster_coco_eval(tmp_path, seed):
    path, results = random_case(tmp_path, seed, size=(240, 320), scale=2.6)
    dataset = read_coco(path, tmp_path)
    ours = evaluate_detections(dataset, results, kinds=["segm", "boundary"])
    assert ours["boundary"].stats() == pytest.approx(oracle(path, results, "boundary"), abs=1e-6)
    assert ours["segm"].stats() == pytest.approx(oracle(path, results, "segm"), abs=1e-6)
    assert 0 < ours["boundary"].ap < ours["segm"].ap


def test_boundary_numbers_of_a_real_case_equal_faster_coco_eval(tmp_path):
    path = EXAMPLES / "annotations" / "val.json"
    dataset = read_coco(path, EXAMPLES / "images")
    rng = np.random.default_rng(0)
    results = []
    for i, image_id in enumerate(dataset.image_ids.tolist()):
        masks = dataset.instances(i).masks
        left, up = rng.integers(-1, 2, 2).tolist()
        height, width = masks.image_size
        moved = masks.crop((left, up, left + width, up + height))
        results += [
            {"image_id": image_id, "category_id": 1, "score": float(rng.random()), "segmentation": code}
            for code in moved.to_rles()
        ]
    ours = evaluate_detections(dataset, results, kinds=["boundary"])["boundary"]
    assert len(results) > 400
    assert ours.stats() == pytest.approx(oracle(path, results, "boundary"), abs=1e-6)
    assert 0.2 < ours.ap < 1


def test_polygons_are_scored_as_the_masks_they_fill(tmp_path):
    path, _ = random_case(tmp_path, 3)
    square = [[10.0, 10.0, 60.0, 10.0, 60.0, 50.0, 10.0, 50.0]]
    data = json.loads(path.read_text())
    data["annotations"] = [
        {"id": 1, "image_id": 10, "category_id": data["categories"][0]["id"], "iscrowd": 0, "area": 2000.0,
         "bbox": [10, 10, 50, 40], "segmentation": square},
    ]  # fmt: skip
    path.write_text(json.dumps(data))
    found = [{"image_id": 10, "category_id": data["categories"][0]["id"], "score": 0.5, "segmentation": square}]
    metrics = evaluate_detections(read_coco(path, tmp_path), found, kinds=["segm", "boundary"])
    assert [metrics[kind].ap for kind in ("segm", "boundary")] == pytest.approx([1, 1])
