"""One wrong answer of each kind, and what it costs."""

import json

import numpy as np
import pytest

from maskwright.formats.coco import read_coco
from maskwright.metrics.errors import CAUSES, error_costs
from maskwright.metrics.matching import match
from maskwright.metrics.overlaps import measure_overlaps
from maskwright.structures import Masks
from tests.metrics.test_detection import random_case

SIZE = (200, 200)


def polygon(x, y, w, h):
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def entry(x, y, w, h, category=1, **more):
    code = Masks.from_polygons([polygon(x, y, w, h)], SIZE).to_rles()[0]
    return {"image_id": 1, "category_id": category, "bbox": [x, y, w, h], "segmentation": code, **more}


def costs(tmp_path, objects, answers, kind="segm"):
    truth = {
        "images": [{"id": 1, "file_name": "1.png", "height": 200, "width": 200}],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": [{**o, "id": i + 1, "iscrowd": 0, "area": o["bbox"][2] * o["bbox"][3]} for i, o in enumerate(objects)],
    }
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth))
    overlaps = measure_overlaps(read_coco(path, tmp_path), answers, ["bbox", "segm"])
    return {cause: round(100 * cost, 1) for cause, cost in error_costs(match(overlaps, kind, max_detections=100)).items()}


FIRST, SECOND, OTHER = entry(0, 0, 20, 20), entry(100, 100, 20, 20), entry(100, 0, 20, 20, category=2)
NOTHING = dict.fromkeys(CAUSES, 0.0)
HALF = 100 * 51 / 101  # AP where one of two objects is found: 51 of 101 recall points are reached


def test_perfect_answers_cost_nothing(tmp_path):
    objects = [FIRST, SECOND, OTHER]
    assert costs(tmp_path, objects, [{**o, "score": 0.9} for o in objects]) == NOTHING


def test_a_missed_object(tmp_path):
    assert costs(tmp_path, [FIRST, SECOND], [{**FIRST, "score": 0.9}]) == {**NOTHING, "missed": round(100 - HALF, 1)}


def test_an_answer_where_nothing_is(tmp_path):
    """Precision is a half from the first answer on."""
    answers = [{**FIRST, "score": 0.5}, entry(0, 150, 20, 20, score=0.9)]
    assert costs(tmp_path, [FIRST], answers) == {**NOTHING, "background": 50.0}


def test_a_misplaced_answer(tmp_path):
    """IoU 1/3 at every threshold: mended, all is right; without it, half."""
    answers = [{**FIRST, "score": 0.9}, entry(110, 100, 20, 20, score=0.8)]
    assert costs(tmp_path, [FIRST, SECOND], answers) == {**NOTHING, "localization": round(100 - HALF, 1)}


def test_a_bad_mask_in_a_good_box(tmp_path):
    thin = entry(100, 100, 4, 20, score=0.8)
    thin["bbox"] = [100, 100, 20, 20]
    assert costs(tmp_path, [FIRST, SECOND], [{**FIRST, "score": 0.9}, thin]) == {**NOTHING, "mask": round(100 - HALF, 1)}
    by_box = costs(tmp_path, [FIRST, SECOND], [{**FIRST, "score": 0.9}, thin], kind="bbox")
    assert set(by_box) == set(CAUSES) - {"mask"}
    assert not any(by_box.values())


def test_a_wrong_class(tmp_path):
    """The object of class b is found as a: b's AP is 0 instead of 1, a's 1 all the same as the false one comes last."""
    answers = [{**FIRST, "score": 0.9}, {**OTHER, "category_id": 1, "score": 0.3}]
    assert costs(tmp_path, [FIRST, OTHER], answers) == {**NOTHING, "class": 50.0}


def test_both_wrong_and_a_second_answer(tmp_path):
    answers = [{**FIRST, "score": 0.5}, entry(110, 0, 20, 20, score=0.9), {**OTHER, "score": 0.5}]
    assert costs(tmp_path, [FIRST, OTHER], answers) == {**NOTHING, "both": 25.0}
    twice = [{**FIRST, "score": 0.9}, {**FIRST, "score": 0.8}, {**SECOND, "score": 0.7}]
    expected = 100 * (51 + 50 * 2 / 3) / 101
    assert costs(tmp_path, [FIRST, SECOND], twice) == {**NOTHING, "duplicate": round(100 - expected, 1)}


@pytest.mark.parametrize("seed", range(3))
def test_costs_are_never_negative_but_for_rounding(tmp_path, seed):
    path, results = random_case(tmp_path, seed, images=10)
    overlaps = measure_overlaps(read_coco(path, tmp_path), results, ["bbox", "segm"])
    found = error_costs(match(overlaps, "segm", max_detections=100))
    assert min(found.values()) >= -1e-9
    assert np.sum(list(found.values())) > 0
