"""AP of keypoints equals pycocotools'."""

import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskwright.formats.coco import read_coco, to_coco
from maskwright.metrics import evaluate_detections
from maskwright.structures import COCO_PERSON

JOINTS = len(COCO_PERSON.names)


def random_case(root, seed):
    """People with few, all or no labelled points, crowds, and answers near and far, more than 20 of them in an image."""
    rng = np.random.default_rng(seed)
    truth = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "person", "keypoints": list(COCO_PERSON.names)}]}
    results = []
    for image_id in (7, 3, 9, 5):
        truth["images"].append({"id": image_id, "file_name": f"{image_id}.jpg", "height": 240, "width": 320})
        for _ in range(int(rng.integers(0, 5))):
            x, y, w, h = rng.uniform(0, 150), rng.uniform(0, 80), rng.uniform(10, 150), rng.uniform(20, 150)
            points = np.stack([rng.integers(x, x + w, JOINTS), rng.integers(y, y + h, JOINTS)], axis=1)
            share = rng.choice([0.0, 0.4, 1.0])
            seen = np.where(rng.random(JOINTS) < share, rng.integers(1, 3, JOINTS), 0)
            labelled = np.concatenate([points * (seen[:, None] > 0), seen[:, None]], axis=1)
            crowd = int(rng.random() < 0.15)
            if crowd:
                labelled[:] = 0
            outline = {"size": [240, 320], "counts": [0, 76800]} if crowd else [[x, y, x + w, y, x + w, y + h]]
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": 1,
                    "iscrowd": crowd,
                    "bbox": [x, y, w, h],
                    "area": w * h * 0.6,
                    "keypoints": labelled.ravel().tolist(),
                    "num_keypoints": int((labelled[:, 2] > 0).sum()),
                    "segmentation": outline,
                }
            )
            for _ in range(int(rng.integers(0, 12))):
                noisy = points + rng.normal(0, rng.choice([0.5, 3.0, 12.0, 60.0]), points.shape)
                answer = np.concatenate([noisy, np.ones((JOINTS, 1))], axis=1).ravel().tolist()
                box = [x + rng.normal(), y + rng.normal(), w * rng.uniform(0.5, 1.5), h]
                score = float(np.round(rng.random(), 1))  # ties on purpose
                results.append({"image_id": image_id, "category_id": 1, "keypoints": answer, "bbox": box, "score": score})
    path = root / f"{seed}.json"
    path.write_text(json.dumps(truth))
    return path, results


def oracle(path, results):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        evaluator = COCOeval(truth, truth.loadRes([dict(entry) for entry in results]), "keypoints")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats.tolist()


@pytest.mark.parametrize("has_boxes", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_numbers_equal_pycocotools(tmp_path, seed, has_boxes):
    path, results = random_case(tmp_path, seed)
    if not has_boxes:
        results = [{name: value for name, value in entry.items() if name != "bbox"} for entry in results]
    ours = evaluate_detections(read_coco(path, tmp_path), results, kinds=["keypoints"])["keypoints"]
    assert 0 < ours.ap < 1
    assert ours.stats() == pytest.approx(oracle(path, results), abs=1e-9)


def test_truth_as_predictions_is_perfect(tmp_path):
    path, _ = random_case(tmp_path, 1)
    dataset = read_coco(path, tmp_path)
    people = [entry for entry in to_coco(dataset)["annotations"] if entry["num_keypoints"]]
    found = evaluate_detections(dataset, [{**entry, "score": 0.5} for entry in people], kinds=["keypoints", "bbox"])
    assert len(people) > 2
    assert found["keypoints"].ap == pytest.approx(1)
    assert found["keypoints"].max_detections == (1, 10, 20)
    assert found["bbox"].max_detections == (1, 10, 100)


def test_what_cannot_be_scored_is_refused(tmp_path):
    path, results = random_case(tmp_path, 0)
    dataset = read_coco(path, tmp_path)
    short = {**results[0], "keypoints": results[0]["keypoints"][:-3]}
    with pytest.raises(ValueError, match="some results have not 17 keypoints of three numbers each"):
        evaluate_detections(dataset, [*results, short], kinds=["keypoints"])
    with pytest.raises(ValueError, match=r"1 of .* results have no 'keypoints': score them by boxes"):
        evaluate_detections(dataset, [*results, {k: v for k, v in short.items() if k != "keypoints"}], kinds=["keypoints"])
    data = json.loads(path.read_text())
    del data["categories"][0]["keypoints"]
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="no category has keypoints to score"):
        evaluate_detections(read_coco(path, tmp_path), results, kinds=["keypoints"])
