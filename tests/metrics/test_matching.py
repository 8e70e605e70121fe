"""What bootstrap weights and limits mean, and the study that uses them."""

import json

import numpy as np
import pytest

from maskwright.formats.coco import read_coco
from maskwright.metrics.matching import SIZES, curves, match
from maskwright.metrics.overlaps import measure_overlaps
from maskwright.metrics.statistics import image_weights
from maskwright.metrics.studies import study
from tests.metrics.test_detection import oracle_stats, random_case


def repeated(path, results, counts):
    """A data set in which each image stands as often as drawn."""
    data = json.loads(path.read_text())
    images, annotations, found = [], [], []
    for place, (image, count) in enumerate(zip(sorted(data["images"], key=lambda i: i["id"]), counts, strict=True)):
        for copy in range(int(count)):
            new = 1000 + 100 * place + copy
            images.append({**image, "id": new, "file_name": f"{new}.png"})
            for annotation in data["annotations"]:
                if annotation["image_id"] == image["id"]:
                    annotations.append({**annotation, "id": len(annotations) + 1, "image_id": new})
            found += [{**entry, "image_id": new} for entry in results if entry["image_id"] == image["id"]]
    other = path.with_name(f"repeated-{path.name}")
    other.write_text(json.dumps({**data, "images": images, "annotations": annotations}))
    return other, found


@pytest.mark.parametrize("seed", range(4))
def test_weights_of_images_are_images_repeated(tmp_path, seed):
    """Scores differ but between copies of an image."""
    path, results = random_case(tmp_path, seed, images=8)
    rng = np.random.default_rng(seed)
    results = [{**entry, "score": float(score)} for entry, score in zip(results, rng.random(len(results)), strict=True)]
    counts = rng.multinomial(8, np.full(8, 1 / 8))
    overlaps = measure_overlaps(read_coco(path, tmp_path), results, ["segm"])
    matches = match(overlaps, "segm", max_detections=100)
    weights = np.stack([counts, np.ones(8)]).astype(np.float32)
    stats, _ = oracle_stats(*repeated(path, results, counts), "segm", (100,))
    plain, _ = oracle_stats(path, results, "segm", (100,))
    for row, expected in enumerate((stats, plain)):
        by_size = [mean(curves(matches, size, weights=weights).ap[row]) for size in SIZES]
        assert by_size == pytest.approx([expected[0], *expected[3:6]], abs=1e-9)
        whole = curves(matches, weights=weights)
        assert mean(whole.ap[row, 0]) == pytest.approx(expected[1], abs=1e-9)
        assert mean(whole.recall[row]) == pytest.approx(expected[6], abs=1e-6)


def mean(values):
    return float(values[~np.isnan(values)].mean()) if not np.isnan(values).all() else -1.0


def test_weights_add_up_to_the_images():
    weights = image_weights(30, resamples=100, seed=3)
    assert (weights.sum(axis=1) == 30).all()
    assert (weights == image_weights(30, resamples=100, seed=3)).all()
    assert weights.mean() == pytest.approx(1)
    assert weights.var() == pytest.approx(1, abs=0.15)


def test_study_says_what_the_metrics_say(tmp_path):
    path, results = random_case(tmp_path, 5, images=10, size=(240, 320), scale=2.6)
    dataset = read_coco(path, tmp_path)
    found = study(
        dataset,
        results,
        kinds=["bbox", "segm", "boundary"],
        max_detections=(1, 10, 100),
        weights=image_weights(10, resamples=50),
    )
    metrics = found.metrics["segm"]
    assert found.kind == "segm"
    assert found.values["ap"] == metrics.ap
    assert found.values["boundary_ap"] == found.metrics["boundary"].ap < metrics.ap
    assert found.values["box_ap"] == found.metrics["bbox"].ap
    assert found.recall.mean() == pytest.approx(metrics.ar[-1])
    assert found.precision["0.50"].mean() == pytest.approx(metrics.ap50)
    assert found.precision["0.75"].mean() == pytest.approx(metrics.ap75)
    assert set(found.resampled) == set(found.values)
    assert all(draws.shape == (50,) for draws in found.resampled.values())
    assert found.resampled["ap"].std() > 0
    assert abs(np.nanmean(found.resampled["ap"]) - metrics.ap) < 0.1


def test_quality_and_threshold_of_hand_made_answers(tmp_path):
    """Two objects in the first image, one found whole at 0.9, one with an IoU of 0.6 at 0.8; rubbish with low scores."""
    box = {"iscrowd": 0, "category_id": 1}
    truth = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 100, "width": 100} for i in (1, 2, 3)],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [
            {**box, "id": 1, "image_id": 1, "bbox": [0, 0, 10, 10], "area": 100},
            {**box, "id": 2, "image_id": 1, "bbox": [50, 50, 10, 10], "area": 100},
            {**box, "id": 3, "image_id": 2, "bbox": [0, 0, 10, 10], "area": 100},
        ],
    }
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth))
    results = [
        {"image_id": 1, "category_id": 1, "score": 0.9, "bbox": [0, 0, 10, 10]},
        {"image_id": 1, "category_id": 1, "score": 0.8, "bbox": [50, 50, 10, 6]},
        {"image_id": 2, "category_id": 1, "score": 0.1, "bbox": [70, 70, 10, 10]},
        {"image_id": 3, "category_id": 1, "score": 0.05, "bbox": [70, 70, 10, 10]},
    ]
    found = study(
        read_coco(path, tmp_path), results, kinds=["bbox"], max_detections=(100,), weights=image_weights(3, resamples=5)
    )
    assert found.threshold == 0.8
    assert found.quality == pytest.approx({1: (1 + 0.6) / 2, 2: 0.0, 3: 1.0})
