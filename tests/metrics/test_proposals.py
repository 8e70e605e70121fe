"""Average recall: hand-made cases, and pycocotools at useCats = 0."""

import copy
import io
import json
from contextlib import redirect_stdout

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskwright.comparison.answers import from_results as answered_by
from maskwright.comparison.publishing import assemble, publish
from maskwright.formats.catalog import open_split
from maskwright.formats.coco import to_coco
from maskwright.metrics.matching import match
from maskwright.metrics.overlaps import measure_overlaps
from maskwright.metrics.proposals import COUNTS, best_overlaps, evaluate_proposals
from maskwright.metrics.studies import study_proposals
from maskwright.structures import Masks
from maskwright.systems import Task
from tests.conftest import make_coco

LIMITS = (10, 100, 1000)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("proposals")
    make_coco(root, images=4, split="val", size=(160, 200), seed=3)
    data = json.loads((root / "annotations" / "val.json").read_text())
    data["annotations"][0]["iscrowd"] = 1
    (root / "annotations" / "val.json").write_text(json.dumps(data))
    return open_split(root, "val")


def proposals_of(dataset, count, seed=0):
    """Objects moved, and others where there is nothing, with scores at random."""
    rng = np.random.default_rng(seed)
    results = []
    for i, image_id in enumerate(dataset.image_ids.tolist()):
        objects = dataset.instances(i)
        height, width = objects.image_size
        for _ in range(count):
            row = int(rng.integers(len(objects)))
            dx, dy = rng.integers(-12, 13, 2) if rng.random() < 0.6 else rng.integers(-80, 80, 2)
            moved = objects.masks[row : row + 1].crop((dx, dy, dx + width, dy + height))
            if moved.areas()[0] == 0:
                continue
            x1, y1, x2, y2 = moved.boxes()[0].tolist()
            results.append(
                {
                    "image_id": image_id,
                    "category_id": dataset.categories.ids[int(rng.integers(len(dataset.categories)))],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": float(rng.random()),
                    "segmentation": moved.to_rles()[0],
                }
            )
    return results


def truth_as_proposals(dataset):
    return [{**entry, "score": 0.5} for entry in to_coco(dataset)["annotations"] if not entry["iscrowd"]]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_recall_is_that_of_pycocotools_without_classes(dataset, kind):
    results = proposals_of(dataset, 150)
    with redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = to_coco(dataset)
        truth.createIndex()
        theirs = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), iouType=kind)
        theirs.params.useCats, theirs.params.maxDets = 0, list(LIMITS)
        theirs.evaluate()
        theirs.accumulate()
    mine = evaluate_proposals(dataset, results, kinds=[kind], max_detections=LIMITS)[kind]
    recall = theirs.eval["recall"][:, 0]  # (T, A, M)
    for a, size in enumerate(("all", "small", "medium", "large")):
        expected = [recall[:, a, m].mean() for m in range(3)]
        assert mine.ar[size] == pytest.approx(expected, abs=1e-9)
    for m in range(3):
        assert mine.recall[m] == pytest.approx(recall[:, 0, m].tolist(), abs=1e-9)
        assert list(mine.recall[m]) == sorted(mine.recall[m], reverse=True)
    assert mine.ar["all"][0] < mine.ar["all"][1] < 1
    assert mine.ar["large"] == (-1, -1, -1)
    assert mine.mean_ar == pytest.approx(np.mean(mine.ar["all"]))


def test_the_truth_has_full_recall_whatever_its_classes(dataset):
    results = truth_as_proposals(dataset)
    rng = np.random.default_rng(0)
    shuffled = [{**e, "category_id": int(rng.choice(dataset.categories.ids))} for e in results]
    for answers in (results, shuffled):
        for m in evaluate_proposals(dataset, answers, kinds=["bbox", "segm"], max_detections=LIMITS).values():
            assert m.ar["all"][-1] == 1
    twice = evaluate_proposals(dataset, results * 2, kinds=["segm"], max_detections=LIMITS)["segm"]
    assert twice.ar["all"][-1] == 1  # duplicates count once
    half = evaluate_proposals(dataset, results[::2] * 2, kinds=["segm"], max_detections=LIMITS)["segm"]
    assert half.ar["all"][-1] < 0.6


@pytest.fixture(scope="module")
def crowded(tmp_path_factory):
    """An image of twenty objects, and their masks as proposals."""
    root = tmp_path_factory.mktemp("crowded")
    make_coco(root, images=1, split="val", size=(100, 220))
    path = root / "annotations" / "val.json"
    data = json.loads(path.read_text())
    dense = torch.zeros(20, 100, 220, dtype=torch.bool)
    for i in range(20):
        dense[i, 10 + 40 * (i // 10) : 20 + 40 * (i // 10), 5 + 20 * (i % 10) : 15 + 20 * (i % 10)] = True
    data["annotations"] = [
        {
            "id": i + 1,
            "image_id": data["images"][0]["id"],
            "category_id": data["categories"][0]["id"],
            "bbox": [5 + 20 * (i % 10), 10 + 40 * (i // 10), 10, 10],
            "area": 100,
            "iscrowd": 0,
            "segmentation": code,
        }
        for i, code in enumerate(Masks.from_dense(dense).to_rles())
    ]
    path.write_text(json.dumps(data))
    return open_split(root, "val")


def test_ten_perfect_proposals_of_twenty_objects_recall_half(crowded):
    m = evaluate_proposals(crowded, truth_as_proposals(crowded), kinds=["segm"], max_detections=LIMITS)["segm"]
    assert m.ar["all"] == (0.5, 1, 1)
    assert m.ar["small"] == (0.5, 1, 1)
    assert m.curve == pytest.approx([min(n, 20) / 20 for n in COUNTS])


def test_area_is_over_the_logarithm_from_one_to_a_thousand(crowded):
    m = evaluate_proposals(crowded, truth_as_proposals(crowded), kinds=["bbox"], max_detections=LIMITS)["bbox"]
    # ∫ n/20 d(log n) from 1 to 20 is 19/20 / ln 10; from there on recall is 1.
    exact = (19 / 20 / np.log(10) + np.log10(1000) - np.log10(20)) / 3
    assert m.auc["all"] == pytest.approx(exact, abs=2e-3)
    assert m.auc["all"] != pytest.approx(m.mean_ar, abs=0.05)


def test_nothing_to_find_and_nothing_found(crowded, tmp_path):
    nothing = evaluate_proposals(crowded, [], kinds=["bbox"], max_detections=LIMITS)["bbox"]
    assert nothing.ar["all"] == (0, 0, 0)
    assert nothing.auc["all"] == 0
    make_coco(tmp_path, images=1, split="val")
    path = tmp_path / "annotations" / "val.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": []}))
    empty = evaluate_proposals(open_split(tmp_path, "val"), [], kinds=["bbox"], max_detections=LIMITS)["bbox"]
    assert empty.ar["all"] == (-1, -1, -1)
    assert empty.auc["all"] == -1


def test_resamples_of_equal_weights_are_the_value_itself(dataset):
    results = proposals_of(dataset, 120)
    once = np.ones((1, len(dataset)), dtype=np.float32)
    found = study_proposals(dataset, results, kinds=["bbox", "segm"], max_detections=LIMITS, weights=once)
    assert set(found.values) == {"ar10", "ar100", "ar", "auc", "ar_small", "ar_medium", "ar_large", "box_ar"}
    for name, value in found.values.items():
        tolerance = 2e-3 if name == "auc" else 1e-9  # its resamples are read at fewer numbers
        assert found.resampled[name][0] == pytest.approx(value, abs=tolerance, nan_ok=True), name
    double = np.array([[2, 0, 0, 0]], dtype=np.float32)
    first = study_proposals(dataset, results, kinds=["segm"], max_detections=LIMITS, weights=double)
    alone = dataset.subset([0])
    kept = [e for e in results if e["image_id"] == int(alone.image_ids[0])]
    expected = evaluate_proposals(alone, kept, kinds=["segm"], max_detections=LIMITS)["segm"]
    assert first.resampled["ar"][0] == pytest.approx(expected.ar["all"][-1])


def test_the_nearest_proposal_of_each_object_is_known(crowded):
    results = truth_as_proposals(crowded)
    chosen = [results[3], {**results[7], "score": 0.9}]
    overlaps = measure_overlaps(crowded, chosen, ["segm"])
    best, which = best_overlaps(overlaps, "segm")
    assert np.flatnonzero(best == 1).tolist() == [3, 7]
    assert overlaps.source[which[[3, 7]]].tolist() == [0, 1]
    assert (which[best == 0] == -1).all()
    assert match(overlaps, "segm", max_detections=10, class_agnostic=True).object[0, 0].tolist() == [7, 3]


def test_a_page_about_proposals(dataset, tmp_path, console):
    results = proposals_of(dataset, 40)
    found = answered_by(tmp_path / "mine.json", results, dataset)
    proposals = {
        name: type(found)(
            facts=type(found.facts)(task=Task.PROPOSALS, source=name), results=[lambda r=r: r], kinds=["bbox", "segm"],
            intensity=found.intensity,
        )
        for name, r in (("many", results), ("few", results[::5]))
    }  # fmt: skip
    comparison = assemble(dataset, proposals, title="p", command="c", limits=LIMITS, console=console)
    (table,) = comparison.tables
    assert [row.name for row in table.rows] == ["many", "few"]
    assert table.decides == "ar"
    publish(comparison, dataset, proposals, tmp_path / "page.html", console)
    page = (tmp_path / "page.html").read_text()
    for part in (
        "proposals-number",
        "proposals-recall-10",
        "proposals-recall-1000",
        "proposals-sizes",
        "AR@10",
        "AUC",
        "AR small",
    ):
        assert part in page, part
    assert "precision-050" not in page
    assert page.count("<img") >= 2 * 4 * 2  # each image of each entry, beside the truth
    json.dumps(comparison.to_dict())
