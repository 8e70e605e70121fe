import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools import mask as mask_oracle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskwright.formats.coco import read_coco, to_coco
from maskwright.metrics import evaluate_detections
from tests.conftest import EXAMPLES


def oracle_stats(path, results, kind, limits, class_agnostic=False):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        keys = ("image_id", "category_id", "score", "bbox" if kind == "bbox" else "segmentation")
        run = COCOeval(truth, truth.loadRes([{k: r[k] for k in keys} for r in results]), kind)
        run.params.maxDets = list(limits)
        run.params.useCats = int(not class_agnostic)
        run.evaluate()
        run.accumulate()
    precision, recall = run.eval["precision"], run.eval["recall"]

    def mean(values):
        return float(values[values > -1].mean()) if (values > -1).any() else -1.0

    stats = [mean(precision[:, :, :, 0, -1]), mean(precision[0, :, :, 0, -1]), mean(precision[5, :, :, 0, -1])]
    stats += [mean(precision[:, :, :, a, -1]) for a in (1, 2, 3)]
    stats += [mean(recall[:, :, 0, m]) for m in range(len(limits))]
    stats += [mean(recall[:, :, a, -1]) for a in (1, 2, 3)]
    classes = {} if class_agnostic else {c: mean(precision[:, :, k, 0, -1]) for k, c in enumerate(run.params.catIds)}
    return stats, classes


def random_case(root, seed, *, images=6, classes=4, size=(90, 120), scale=1.0):
    """Ground truth with crowds, several classes and areas, and noisy detections of it."""
    rng = np.random.default_rng(seed)
    truth = {
        "images": [],
        "annotations": [],
        "categories": [{"id": int(c), "name": f"c{c}"} for c in rng.permutation(50)[:classes] + 1],
    }
    ids = [c["id"] for c in truth["categories"]]
    results = []
    yy, xx = np.mgrid[: size[0], : size[1]]

    def blob(cx, cy, rx, ry):
        return ((xx - cx) / rx) ** 2 + ((yy - cy) / ry) ** 2 <= 1

    def coded(mask):
        code = mask_oracle.encode(np.asfortranarray(mask.astype(np.uint8)))
        return (
            {"size": list(size), "counts": code["counts"].decode()},
            mask_oracle.toBbox(code).tolist(),
            float(mask_oracle.area(code)),
        )

    for i in range(images):
        truth["images"].append({"id": 10 + i, "file_name": f"{i}.png", "height": size[0], "width": size[1]})
        for _ in range(int(rng.integers(0, 9))):
            shape = scale * np.array([rng.uniform(5, 115), rng.uniform(5, 85), rng.uniform(2, 45), rng.uniform(2, 45)])
            category = int(rng.choice(ids))
            mask = blob(*shape)
            if not mask.any():
                continue
            rle, box, area = coded(mask)
            crowd = int(rng.random() < 0.15)
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": 10 + i,
                    "category_id": category,
                    "iscrowd": crowd,
                    "bbox": box,
                    "area": area,
                    "segmentation": rle,
                }
            )
            for _ in range(int(rng.integers(0, 4))):
                noisy = blob(*(shape + rng.normal(0, 3, 4) * [1, 1, 0.3, 0.3]))
                if noisy.any():
                    rle, box, _ = coded(noisy)
                    label = category if rng.random() < 0.8 else int(rng.choice(ids))
                    score = float(np.round(rng.random(), 1))  # ties on purpose
                    results.append({"image_id": 10 + i, "category_id": label, "bbox": box, "score": score, "segmentation": rle})
    path = root / f"{seed}.json"
    path.write_text(json.dumps(truth))
    return path, results


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize(("limits", "class_agnostic"), [((1, 10, 100), False), ((1, 3, 5), False), ((1, 10, 300), True)])
def test_numbers_equal_pycocotools(tmp_path, seed, kind, limits, class_agnostic):
    path, results = random_case(tmp_path, seed)
    ours = evaluate_detections(
        read_coco(path, tmp_path), results, kinds=[kind], max_detections=limits, class_agnostic=class_agnostic
    )[kind]
    stats, classes = oracle_stats(path, results, kind, limits, class_agnostic)
    assert ours.stats() == pytest.approx(stats, abs=1e-9)
    names = {f"c{c}": ap for c, ap in classes.items()}
    assert ours.per_class == pytest.approx(names, abs=1e-9)
    assert ours.max_detections == limits


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_real_case_equals_pycocotools(kind):
    path = EXAMPLES / "annotations" / "val.json"
    rng = np.random.default_rng(0)
    dataset = read_coco(path, EXAMPLES / "images")
    truth = to_coco(dataset)["annotations"]
    sizes = {int(image_id): list(dataset.image_size(i)) for i, image_id in enumerate(dataset.image_ids)}
    results = [
        {
            "image_id": a["image_id"],
            "category_id": 1,
            "bbox": (np.array(a["bbox"]) + rng.normal(0, 1, 4)).tolist(),
            "segmentation": b["segmentation"],
            "score": float(rng.random()),
        }
        for a, b in zip(truth, truth[1:] + truth[:1], strict=True)
        if b["segmentation"]["size"] == sizes[a["image_id"]]
    ]
    ours = evaluate_detections(dataset, results, kinds=[kind])[kind]
    stats, _ = oracle_stats(path, results, kind, (1, 10, 100))
    assert len(results) > 400
    assert 0 <= ours.ap < 1
    assert ours.stats() == pytest.approx(stats, abs=1e-9)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_truth_as_predictions_is_perfect(kind):
    dataset = read_coco(EXAMPLES / "annotations" / "val.json", EXAMPLES / "images")
    results = [{**a, "score": 1.0} for a in to_coco(dataset)["annotations"]]
    metrics = evaluate_detections(dataset, results, kinds=[kind], max_detections=(1, 10, 300))[kind]
    assert metrics.ap == pytest.approx(1)
    assert metrics.ar[-1] == pytest.approx(1)


def test_no_detections_and_no_objects(tmp_path):
    path, _ = random_case(tmp_path, 0)
    nothing = evaluate_detections(read_coco(path, tmp_path), [], kinds=["segm"])["segm"]
    assert nothing.ap == 0
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "annotations": []}))
    empty = evaluate_detections(read_coco(path, tmp_path), [], kinds=["bbox"])["bbox"]
    assert empty.ap == -1


def test_class_subset_scores_only_what_it_names(tmp_path):
    path, results = random_case(tmp_path, 1)
    name = json.loads(path.read_text())["categories"][2]["name"]
    whole = evaluate_detections(read_coco(path, tmp_path), results, kinds=["segm"])["segm"]
    dataset = read_coco(path, tmp_path, classes=[name])
    some = evaluate_detections(dataset, [r for r in results if r["category_id"] == dataset.categories.ids[0]], kinds=["segm"])[
        "segm"
    ]
    assert some.ap == pytest.approx(whole.per_class[name], abs=1e-12)


def test_results_without_masks_are_refused(tmp_path):
    path, results = random_case(tmp_path, 0)
    del results[0]["segmentation"]
    with pytest.raises(ValueError, match="1 of .* results have no 'segmentation': score them by boxes"):
        evaluate_detections(read_coco(path, tmp_path), results, kinds=["segm"])["segm"]
