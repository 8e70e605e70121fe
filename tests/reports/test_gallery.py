"""Pictures of a report: which images are shown, in what order, and what their colors say."""

from types import SimpleNamespace

import pytest

from maskwright.formats.catalog import open_split
from maskwright.reports.gallery import BEST, FALSE, FOUND, MISSED, WORST, _judged, gallery
from maskwright.structures import Instances, Intensity
from tests.conftest import make_coco

IMAGES = 7


@pytest.fixture
def dataset(tmp_path):
    make_coco(tmp_path, images=IMAGES, split="val")
    return open_split(tmp_path, "val")


def row(name, quality, threshold=0.5, kind="segm"):
    return SimpleNamespace(name=name, kind=kind, quality=quality, thresholds=[threshold], proposals=[], per_class={"disc": 1.0})


def answers_to(dataset, index, rows, score):
    """The truth itself, and what lies beside every object."""
    objects = dataset.instances(index)
    objects = objects[~objects.crowd][rows]
    return [
        {
            "image_id": int(dataset.image_ids[index]),
            "category_id": dataset.categories.ids[label],
            "score": score,
            "segmentation": code,
            "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
        }
        for code, label, box in zip(
            objects.masks.to_rles(), objects.labels.tolist(), objects.masks.boxes().tolist(), strict=True
        )
    ]


@pytest.mark.parametrize("kind", ["segm", "bbox"])
def test_colors_say_what_is_found_false_and_missed(dataset, kind):
    index = next(i for i in range(len(dataset)) if int((~dataset.instances(i).crowd).sum()) >= 2)
    one = dataset.subset([index])
    truth = dataset.instances(index)
    truth = truth[~truth.crowd]
    found, again = answers_to(dataset, index, [0], 0.9), answers_to(dataset, index, [0], 0.6)  # the second finds nothing new
    shown, colors = _judged(one, [*again, *found], row("a", {}, kind=kind))
    assert colors == [FOUND, FALSE, *[MISSED] * (len(truth) - 1)]
    assert isinstance(shown, Instances)
    assert shown.boxes[0].tolist() == shown.boxes[1].tolist()
    missed = {tuple(box) for box in shown.boxes[2:].tolist()}
    own = truth.masks.boxes() if kind == "segm" else truth.boxes
    assert missed == {tuple(box) for box in own[1:].tolist()}
    assert (shown.masks is not None) == (kind == "segm")


def test_the_best_and_worst_images_and_those_that_divide_entries(dataset):
    ids = [int(i) for i in dataset.image_ids]
    names = [dataset.file_name(i) for i in range(len(dataset))]
    first = dict(zip(ids, [0.9, 0.1, 0.5, 0.3, 0.7, 0.6, 0.2], strict=True))
    second = dict(zip(ids, [0.9, 0.9, 0.4, 0.3, 0.75, 0.6, 0.5], strict=True))
    table = SimpleNamespace(task="instances", rows=[row("a", first), row("b", second)])
    apart, best_a, best_b = gallery(dataset, [table], lambda _: [], Intensity())
    assert [strip.title for strip in apart.strips] == [names[1], names[6], names[2], names[4]]  # only where they differ
    assert [strip.title for strip in best_a.strips] == [names[i] for i in (0, 4, 1, 6, 3)]
    assert [strip.title for strip in best_b.strips][:BEST] == [names[0], names[1]]
    assert [strip.title for strip in best_b.strips][-WORST:] == [names[3], names[2], names[6]]
    assert [len(strip.tiles) for strip in apart.strips] == [3] * 4  # the truth and both
    assert best_a.strips[0].tiles[1].caption == "a: quality 90"


def test_only_answers_over_the_entrys_own_threshold_are_drawn(dataset, monkeypatch):
    seen = []

    def judged(one, results, of):
        seen.append((of.name, sorted(entry["score"] for entry in results)))
        return one.instances(0)[:0], []

    monkeypatch.setattr("maskwright.reports.gallery._judged", judged)
    quality = dict.fromkeys((int(i) for i in dataset.image_ids), 0.5)
    table = SimpleNamespace(task="instances", rows=[row("a", quality, 0.5), row("b", quality, 0.2)])
    given = [entry for score in (0.1, 0.3, 0.5, 0.8) for entry in answers_to(dataset, 0, [0], score)]
    gallery(dataset, [table], lambda _: given, Intensity())
    assert ("a", [0.5, 0.8]) in seen
    assert ("b", [0.3, 0.5, 0.8]) in seen
