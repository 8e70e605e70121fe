"""mAP^r against hand-computed cases and a plain implementation of both protocols."""

import json

import numpy as np
import pytest
import torch
from pycocotools import mask as pycoco

from maskwright.formats.coco import parse_coco, to_coco
from maskwright.metrics.region_ap import PROTOCOLS, average_precision, evaluate_regions
from maskwright.structures import Masks

SIZE = (60, 80)


def code(x0, y0, x1, y1):
    dense = torch.zeros(1, *SIZE, dtype=torch.bool)
    dense[0, y0:y1, x0:x1] = True
    return Masks.from_dense(dense).to_rles()[0]


def dataset(objects, tmp_path, classes=("a", "b")):
    """objects: (image, class, window, crowd)."""
    annotations = [
        {"id": i, "image_id": image, "category_id": label, "segmentation": code(*window), "iscrowd": crowd}
        for i, (image, label, window, crowd) in enumerate(objects, start=1)
    ]
    images = [{"id": i, "file_name": f"{i}.png", "height": SIZE[0], "width": SIZE[1]} for i in (1, 2, 3)]
    categories = [{"id": i, "name": name} for i, name in enumerate(classes, start=1)]
    return parse_coco({"images": images, "annotations": annotations, "categories": categories}, tmp_path / "x.json", tmp_path)


def answer(image, label, window, score):
    return {"image_id": image, "category_id": label, "segmentation": code(*window), "score": score}


def test_the_toy_case():
    right = np.array([True, False, True])
    assert average_precision(right, 2, "11 points") == pytest.approx(0.8485, abs=5e-5)
    assert average_precision(right, 2, "area") == pytest.approx(0.8333, abs=5e-5)
    assert (
        average_precision(np.zeros(0, dtype=bool), 2, "area") == average_precision(np.zeros(3, dtype=bool), 2, "11 points") == 0
    )


def test_the_truth_is_perfect_and_a_second_answer_is_false(tmp_path):
    truth = dataset([(1, 1, (5, 5, 25, 25), 0), (2, 2, (5, 5, 25, 25), 0), (2, 1, (40, 5, 60, 25), 0)], tmp_path)
    answers = [{**entry, "score": 0.9} for entry in to_coco(truth)["annotations"]]
    for protocol in PROTOCOLS:
        found = evaluate_regions(truth, answers, protocol=protocol)
        assert found.map == {0.5: 1.0, 0.7: 1.0}
        assert found.volume == 1.0
        again = [*answers, {**answers[0], "score": 0.95}]  # the better of the two is right, the other is not
        assert evaluate_regions(truth, again, protocol=protocol).per_class["a"][0.5] < 1
        assert evaluate_regions(truth, again, protocol=protocol).per_class["b"][0.5] == 1


def test_protocols_differ_where_they_are_said_to(tmp_path):
    truth = dataset([(1, 1, (0, 0, 20, 20), 0), (1, 1, (8, 0, 28, 20), 0)], tmp_path, classes=("a",))
    both = [answer(1, 1, (0, 0, 20, 20), 0.9), answer(1, 1, (3, 0, 23, 20), 0.8)]  # the second is nearer to the first object
    assert evaluate_regions(truth, both, protocol="mnc").per_class["a"][0.5] == pytest.approx(6 / 11)
    assert evaluate_regions(truth, both, protocol="sds").per_class["a"][0.5] == pytest.approx(1.0)
    half = [answer(1, 1, (0, 0, 20, 10), 0.9)]  # an overlap of exactly one half
    assert evaluate_regions(truth, half, protocol="mnc").per_class["a"][0.5] > 0
    assert evaluate_regions(truth, half, protocol="sds").per_class["a"][0.5] == 0


def test_crowds_are_neither_found_nor_missed_and_absent_classes_do_not_count(tmp_path):
    truth = dataset([(1, 1, (0, 0, 20, 20), 0), (1, 1, (30, 30, 60, 60), 1)], tmp_path)
    answers = [answer(1, 1, (31, 31, 50, 50), 0.9), answer(1, 1, (0, 0, 20, 20), 0.8)]
    found = evaluate_regions(truth, answers)
    assert found.map[0.5] == 1
    assert found.per_class["b"] == {0.5: -1.0, 0.7: -1.0}
    assert evaluate_regions(dataset([], tmp_path), []).map == {0.5: -1.0, 0.7: -1.0}


def test_an_object_inside_a_crowd_is_found(tmp_path):
    truth = dataset([(1, 1, (10, 10, 30, 30), 0), (1, 1, (0, 0, 60, 60), 1)], tmp_path)
    assert evaluate_regions(truth, [answer(1, 1, (10, 10, 30, 29), 0.9)]).map[0.5] == 1


def test_wrong_requests_are_named(tmp_path):
    truth = dataset([(1, 1, (0, 0, 20, 20), 0)], tmp_path)
    with pytest.raises(ValueError, match="no protocol is named 'voc': there are mnc, sds"):
        evaluate_regions(truth, [], protocol="voc")
    with pytest.raises(ValueError, match="segmentation"):
        evaluate_regions(truth, [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1.0}])


def plain(truth, answers, label, level, protocol):
    """AP of a class, as the published evaluators compute it: one detection after the other, IoU by pycocotools."""
    rule = PROTOCOLS[protocol]
    objects = [e for e in to_coco(truth)["annotations"] if e["category_id"] == label]
    used = set()
    right = []
    for entry in sorted((e for e in answers if e["category_id"] == label), key=lambda e: -e["score"]):
        there = [o for o in objects if o["image_id"] == entry["image_id"]]
        if rule.takes_second:
            there = [o for o in there if o["id"] not in used]
        overlaps = [float(pycoco.iou([entry["segmentation"]], [o["segmentation"]], [0])[0, 0]) for o in there]
        best = int(np.argmax(overlaps)) if overlaps else -1
        reaches = best >= 0 and (overlaps[best] > level if rule.is_strict else overlaps[best] >= level)
        right.append(reaches and there[best]["id"] not in used)
        if right[-1]:
            used.add(there[best]["id"])
    hits = np.cumsum(right)
    recall, precision = hits / len(objects), hits / np.arange(1, len(right) + 1)
    if rule.average == "11 points":
        return (
            sum(max([p for r, p in zip(recall, precision, strict=True) if r >= k / 10 - 1e-9], default=0.0) for k in range(11))
            / 11
        )
    area, last = 0.0, 0.0
    for i, r in enumerate(recall):
        area += (r - last) * max(precision[i:])
        last = r
    return area


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_both_protocols_equal_a_plain_implementation(protocol, tmp_path):
    g = np.random.default_rng(0)

    def window():
        x, y, w, h = g.integers(0, 40), g.integers(0, 30), g.integers(8, 30), g.integers(8, 30)
        return int(x), int(y), int(x + w), int(y + h)

    objects = [(int(g.integers(1, 4)), int(g.integers(1, 3)), window(), 0) for _ in range(25)]
    truth = dataset(objects, tmp_path)
    answers = []
    for image, label, (x0, y0, x1, y1), _ in objects:
        for _ in range(2):
            dx, dy = g.integers(-4, 5, size=2).tolist()
            box = (max(0, x0 + dx), max(0, y0 + dy), x1 + dx, y1 + dy)
            answers.append(answer(image, label if g.random() < 0.8 else 3 - label, box, round(float(g.random()), 6)))
    found = evaluate_regions(truth, answers, protocol=protocol, thresholds=(0.3, 0.5, 0.7))
    for level in (0.3, 0.5, 0.7):
        wanted = [plain(truth, answers, label, level, protocol) for label in (1, 2)]
        assert [found.per_class[name][level] for name in ("a", "b")] == pytest.approx(wanted, abs=1e-12)
        assert found.map[level] == pytest.approx(np.mean(wanted))
    assert 0 < found.map[0.7] < found.map[0.3] < 1
    volume = [np.mean([plain(truth, answers, label, level, protocol) for label in (1, 2)]) for level in np.arange(1, 10) / 10]
    assert found.volume == pytest.approx(np.mean(volume))
    assert json.dumps(found.map)
