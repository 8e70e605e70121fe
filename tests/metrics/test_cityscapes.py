"""AP of the Cityscapes benchmark against its own scripts."""

import copy

import numpy as np
import pytest
import torch
from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as official  # noqa: N813
from cityscapesscripts.evaluation.instances2dict import instances2dict
from PIL import Image

import maskwright as mw
from maskwright.formats.catalog import open_split
from maskwright.formats.cityscapes import CLASSES, MAP, check_cityscapes, write_cityscapes
from maskwright.formats.dataset import Categories
from maskwright.metrics.cityscapes import MIN_AREA_PX, THRESHOLDS, evaluate_cityscapes
from maskwright.reports.tables import evaluation_tables
from maskwright.structures import Instances, Masks
from maskwright.training import train
from tests.conftest import tiny_recipe

SIZE = (80, 120)


def random_map(generator):
    """Overlapping rectangles: objects, some tiny, groups, void and others."""
    values = np.full(SIZE, generator.choice([0, 7, 11, 23]), dtype=np.int32)
    for number in range(14):
        side = generator.integers(3, 45, size=2)
        y, x = generator.integers(0, SIZE[0] - 3), generator.integers(0, SIZE[1] - 3)
        label = int(generator.choice([24, 26, 31, 33]))
        kind = generator.choice(["object", "group", "void", "other"], p=[0.6, 0.15, 0.15, 0.1])
        value = {"object": label * 1000 + number, "group": label, "void": int(generator.choice([3, 16, 29])), "other": 29001}
        values[y : y + side[0], x : x + side[1]] = value[kind]
    return values


def random_answers(values, generator):
    """Objects moved a little, twice, beside others; (dense mask, label, score), scores in few steps so that some are equal."""
    found = []
    for value in np.unique(values[values > 20]).tolist():
        label = value // 1000 if value >= 1000 else value
        if label not in CLASSES.values():
            continue
        for _ in range(generator.integers(0, 3)):
            mask = np.roll(values == value, generator.integers(-3, 4, size=2), axis=(0, 1))
            found.append((mask & (generator.random(SIZE) < 0.95), label, generator.integers(1, 20) / 20))
    for _ in range(6):
        mask = np.zeros(SIZE, dtype=bool)
        y, x = generator.integers(0, SIZE[0]), generator.integers(0, SIZE[1])
        mask[y : y + 25, x : x + 25] = True
        found.append((mask, int(generator.choice([24, 25, 26])), generator.integers(1, 20) / 20))
    found.append((np.zeros(SIZE, dtype=bool), 26, 0.9))  # an empty one
    return found


def official_scores(root, answers, tmp_path, monkeypatch):
    """What the benchmark prints: AP and AP50 of all and of each class."""
    monkeypatch.setattr(np, "in1d", np.isin, raising=False)  # gone from numpy 2.4
    predictions, truths = [], []
    for name, found in answers.items():
        path = tmp_path / "answers" / f"{name.split('/')[1]}_leftImg8bit"
        masks = Masks.from_dense(torch.from_numpy(np.stack([mask for mask, _, _ in found])))
        labels = torch.tensor([list(CLASSES.values()).index(label) for _, label, _ in found])
        scores = torch.tensor([score for _, _, score in found])
        instances = Instances(image_size=SIZE, boxes=masks.boxes(), labels=labels, masks=masks, scores=scores)
        categories = Categories(tuple(CLASSES), tuple(CLASSES.values()))
        (written,) = write_cityscapes(instances, categories, path)
        predictions.append(str(written))
        truths.append(str(root / "gtFine" / "val" / f"{name}{MAP}"))
    args = copy.copy(official.args)
    args.predictionPath, args.quiet = str(tmp_path / "answers"), True
    official.setInstanceLabels(args)
    matches = official.matchGtWithPreds(predictions, truths, instances2dict(truths), args)
    return official.computeAverages(official.evaluateMatches(matches, args), args)


def write_root(tmp_path, maps, split="val"):
    for name, values in maps.items():
        path = tmp_path / "gtFine" / split / f"{name}{MAP}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.astype(np.uint16)).save(path)
        image = tmp_path / "leftImg8bit" / split / f"{name}_leftImg8bit.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((values % 251).astype(np.uint8)).convert("RGB").save(image)
    return open_split(tmp_path, split)


def results_of(dataset, answers):
    results = []
    for image_id, (_, found) in enumerate(sorted(answers.items()), start=1):
        codes = Masks.from_dense(torch.from_numpy(np.stack([mask for mask, _, _ in found]))).to_rles()
        for code, (_, label, score) in zip(codes, found, strict=True):
            results.append({"image_id": image_id, "category_id": label, "segmentation": code, "score": score})
    return results


@pytest.mark.filterwarnings("ignore")  # of the scripts, which are of 2016
@pytest.mark.parametrize("seed", range(6))
def test_scores_are_those_of_the_benchmark(tmp_path, monkeypatch, seed):
    generator = np.random.default_rng(seed)
    maps = {f"ulm/ulm_000000_{i:06d}": random_map(generator) for i in range(4)}
    dataset = write_root(tmp_path, maps)
    answers = {name: random_answers(values, generator) for name, values in maps.items()}
    found = evaluate_cityscapes(dataset, results_of(dataset, answers))
    wanted = official_scores(tmp_path, answers, tmp_path, monkeypatch)
    assert found.ap == pytest.approx(wanted["allAp"], abs=1e-9)
    assert found.ap50 == pytest.approx(wanted["allAp50%"], abs=1e-9)
    assert 0.05 < found.ap < found.ap50 < 0.95
    for name, (ap, ap50) in found.per_class.items():
        expected = wanted["classes"][name]
        pair = (expected["ap"], expected["ap50%"])
        assert (ap, ap50) == pytest.approx([-1 if np.isnan(v) else v for v in pair], abs=1e-9), name


def answer(mask, score, label=26):
    (code,) = Masks.from_dense(torch.from_numpy(mask[None])).to_rles()
    return {"image_id": 1, "category_id": label, "segmentation": code, "score": score}


def window(x0, y0, x1, y1):
    mask = np.zeros(SIZE, dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


@pytest.mark.parametrize(
    ("value", "ap"),
    [(26, 1.0), (3, 1.0), (29, 1.0), (11, 0.25), (24, 0.25)],
    ids=["group of its class", "void", "caravans", "building", "group of another class"],
)
def test_what_false_detections_cost(tmp_path, value, ap):
    values = np.full(SIZE, 7)
    values[0:20, 0:20], values[40:60, 40:60] = 26000, value
    dataset = write_root(tmp_path, {"ulm/ulm_000000_000000": values})
    results = [answer(window(0, 0, 20, 20), 0.5), answer(window(40, 40, 60, 60), 0.9)]
    # false: precision 0 at recall 0 and a half at recall 1, each as wide as half of what lies between
    assert evaluate_cityscapes(dataset, results).per_class["car"] == pytest.approx((ap, ap))


def test_of_two_detections_the_more_confident_counts(tmp_path):
    values = np.full(SIZE, 7)
    values[0:20, 0:20] = 26000
    dataset = write_root(tmp_path, {"ulm/ulm_000000_000000": values})
    results = [answer(window(0, 0, 20, 20), 0.5), answer(window(0, 0, 20, 18), 0.9)]  # IoU 0.9 and 1
    assert evaluate_cityscapes(dataset, results).per_class["car"] == pytest.approx((0.8 + 0.2 * 0.25, 1.0))


def test_small_objects_are_neither_found_nor_missed(tmp_path):
    values = np.full(SIZE, 7)
    values[0:20, 0:20] = 26000
    values[40:49, 40:51] = 26001
    assert (values == 26001).sum() == MIN_AREA_PX - 1
    dataset = write_root(tmp_path, {"ulm/ulm_000000_000000": values})
    found = answer(window(0, 0, 20, 20), 0.5)
    assert evaluate_cityscapes(dataset, [found]).ap == pytest.approx(1.0)
    assert evaluate_cityscapes(dataset, [found, answer(values == 26001, 0.9)]).ap == pytest.approx(1.0)


def test_nothing_found_and_nothing_there(tmp_path):
    values = np.full(SIZE, 7)
    dataset = write_root(tmp_path, {"ulm/ulm_000000_000000": values})
    assert evaluate_cityscapes(dataset, [answer(window(0, 0, 9, 9), 0.5)]).ap == -1
    values[0:20, 0:20] = 26000
    dataset = write_root(tmp_path, {"ulm/ulm_000000_000000": values})
    metrics = evaluate_cityscapes(dataset, [])
    assert (metrics.ap, metrics.per_class["car"], metrics.per_class["bus"]) == (0.0, (0.0, 0.0), (-1.0, -1.0))


def test_thresholds_are_the_benchmarks():
    assert np.array_equal(THRESHOLDS, official.args.overlaps)
    assert official.args.minRegionSizes[0] == MIN_AREA_PX


@pytest.mark.filterwarnings("ignore")
def test_a_run_is_scored_and_its_files_are_those_the_benchmark_takes(tmp_path, monkeypatch, console):
    generator = np.random.default_rng(0)
    for split, city in (("train", "bonn"), ("val", "ulm")):
        maps = {f"{city}/{city}_000000_{i:06d}": random_map(generator) for i in range(2)}
        write_root(tmp_path / "data", maps, split)
    recipe = tiny_recipe(tmp_path / "data", system="mask-rcnn-small")
    train(recipe, tmp_path / "run", device="cpu", console=console)
    found = mw.evaluate(tmp_path / "run", data=tmp_path / "data", console=console, arguments={"score_threshold": 0.0})
    assert set(found.cityscapes.per_class) == set(CLASSES)
    (table,) = [table for table in evaluation_tables(found) if table.title == "Cityscapes, in percent"]
    assert len(table.rows) == 1 + len(CLASSES)
    model = mw.load(tmp_path / "run", score_threshold=0.0)
    images = tmp_path / "data" / "leftImg8bit" / "val"
    answer = mw.predict(model, [images], out=tmp_path / "answers", formats=["cityscapes"], threshold=0.0)
    assert sorted(path.name for path in answer.written) == [f"ulm_000000_00000{i}_leftImg8bit.txt" for i in range(2)]
    truths = [str(tmp_path / "data" / "gtFine" / "val" / f"{name}{MAP}") for name in sorted(maps)]
    monkeypatch.setattr(np, "in1d", np.isin, raising=False)
    args = copy.copy(official.args)
    args.predictionPath, args.quiet = str(tmp_path / "answers"), True
    official.setInstanceLabels(args)
    files = sorted(map(str, answer.written))
    matches = official.matchGtWithPreds(files, truths, instances2dict(truths), args)
    wanted = official.computeAverages(official.evaluateMatches(matches, args), args)
    assert found.cityscapes.ap == pytest.approx(wanted["allAp"], abs=1e-4)  # scores are written with six places
    assert mw.evaluate(tmp_path / "run", data=tmp_path / "data", class_agnostic=True, console=console).cityscapes is None
    boxes = tiny_recipe(tmp_path / "data", system="faster-rcnn-small")
    train(boxes, tmp_path / "boxes", device="cpu", console=console)
    with pytest.raises(ValueError, match="the model finds no masks"):
        mw.predict(tmp_path / "boxes", [images], out=tmp_path / "never", formats=["cityscapes"])


def test_models_that_cannot_take_part():
    check_cityscapes(Categories(("car", "cow"), (1, 2)), has_masks=True)
    with pytest.raises(ValueError, match="no masks"):
        check_cityscapes(Categories(("car",), (1,)), has_masks=False)
    with pytest.raises(ValueError, match="only classes cow"):
        check_cityscapes(Categories(("cow",), (1,)), has_masks=True)
