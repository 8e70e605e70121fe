"""The page: everything on it, nothing that runs, whatever classes and files are called."""

import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from maskwright.comparison.answers import from_files
from maskwright.comparison.publishing import assemble, publish
from maskwright.formats.catalog import open_split
from maskwright.metrics import evaluate_detections
from maskwright.reports.plots import Point, Series, chart, dot_rows, frontier, ticks
from maskwright.structures import Masks
from tests.conftest import make_coco

HOSTILE = "<script>document.title='owned'</script>\"'><img src=x onerror=alert(1)>"
CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
ROWS = {"missed", "background", "localization", "class", "both", "duplicate"}
PLOTS = {"sizes", "classes", "recall", "precision-050", "precision-075", "errors"}


class Elements(HTMLParser):
    """What a page is made of."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.addresses, self.handlers, self.text = [], set(), [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.add(value)
            if name in ("src", "href", "xlink:href", "action"):
                self.addresses.append(value)
            if name.startswith("on"):
                self.handlers.append(name)

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def page(tmp_path_factory, console_of_module):
    """A comparison of two results files on images and classes with hostile names."""
    root = tmp_path_factory.mktemp("page")
    make_coco(root / "data", split="val", seed=3, images=6)
    path = root / "data" / "annotations" / "val.json"
    data = json.loads(path.read_text())
    data["categories"][0]["name"] = HOSTILE
    evil = "<b onmouseover=alert(1)>&.png"
    (root / "data" / "images" / data["images"][0]["file_name"]).rename(root / "data" / "images" / evil)
    data["images"][0]["file_name"] = evil
    path.write_text(json.dumps(data))
    rng = np.random.default_rng(0)
    dataset = open_split(root / "data", "val")
    answered = {}
    for name, shift in ((HOSTILE, 1), ("worse <i>", 6)):
        results = []
        for i, image_id in enumerate(dataset.image_ids.tolist()):
            there = dataset.instances(i)
            height, width = there.image_size
            moved = there.masks.crop((shift, 0, shift + width, height))
            results += [
                {
                    "image_id": image_id,
                    "category_id": dataset.categories.ids[label],
                    "score": float(rng.random()),
                    "segmentation": code,
                }
                for code, label in zip(moved.to_rles(), there.labels.tolist(), strict=True)
            ]
        file = root / f"{shift}.json"
        file.write_text(json.dumps(results))
        answered[name] = from_files([file], dataset)
    words = {"title": HOSTILE, "command": f"maskwright {HOSTILE}"}
    comparison = assemble(dataset, answered, **words, limits=(1, 10, 100), console=console_of_module)
    publish(comparison, dataset, answered, root / "report.html", console_of_module)
    return root / "report.html"


def test_every_part_is_there(page):
    elements = Elements(page.read_text())
    assert {f"instances-{plot}" for plot in PLOTS} | {"instances", "pictures", "made", "instances-error-table"} <= elements.ids
    assert elements.tags.count("svg") == len(PLOTS)
    assert elements.tags.count("img") == 6 * 3 + 2 * 5 * 2  # disagreements with the truth, then best and worst of each
    text = " ".join(elements.text)
    for word in ("AP50", "boundary AP", "is better than", "missed", "background", "bootstrap", "torch"):
        assert word in text
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page.read_text())  # nothing comes from the network


def test_hostile_names_are_text(page):
    text = page.read_text()
    elements = Elements(text)
    assert "script" not in elements.tags
    assert elements.tags.count("b") == len(ROWS)
    assert elements.handlers == []
    assert all(address.startswith("data:image/jpeg;base64,") for address in elements.addresses)
    assert "<script" not in text
    assert any(HOSTILE in part for part in elements.text)
    assert "default-src 'none'" in text


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
@pytest.mark.parametrize("width", [1280, 390])
def test_chromium_shows_it_without_a_word(page, tmp_path, width):
    flags = ["--headless=new", "--no-sandbox", "--hide-scrollbars", "--disable-gpu", "--enable-logging=stderr"]
    flags += [f"--window-size={width},3000", f"--user-data-dir={tmp_path}/profile", "--virtual-time-budget=2000"]
    command = [CHROMIUM, *flags, "--dump-dom", page.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in shown.stderr
    assert "owned" not in shown.stdout.split("</title>")[0].replace("document.title='owned'", "")
    assert Elements(shown.stdout).tags.count("svg") == len(PLOTS)
    picture = tmp_path / "page.png"
    subprocess.run([CHROMIUM, *flags, f"--screenshot={picture}", page.as_uri()], capture_output=True, timeout=120, check=True)
    with Image.open(picture) as image:
        assert image.width == width
        pixels = np.asarray(image.convert("L"))
    assert (pixels < 128).mean() > 0.005
    assert (pixels[:, -4:] > 200).all()  # nothing sticks out of the page on the right


def results_of(dataset, *, boxes, polygons=False):
    """The truth, a little moved, as results."""
    found = []
    for i, image_id in enumerate(dataset.image_ids.tolist()):
        for label in range(2):
            x, y = 10.0 + 20 * label, 12.0
            corners = [[x, y, x + 30, y, x + 30, y + 25, x, y + 25]]
            entry = {"image_id": image_id, "category_id": dataset.categories.ids[label], "score": 0.5 + 0.01 * i}
            size = dataset.image_size(i)
            entry["segmentation"] = corners if polygons else Masks.from_polygons([corners], size).to_rles()[0]
            found.append({**entry, "bbox": [x, y, 30.0, 25.0]} if boxes else entry)
    return found


@pytest.mark.parametrize("has_objects", [True, False])
def test_odd_results_make_a_page_too(tmp_path, console, has_objects):
    """With boxes and without, polygons, nothing found; and images without any objects."""
    make_coco(tmp_path / "data", split="val", seed=3, images=3)
    path = tmp_path / "data" / "annotations" / "val.json"
    if not has_objects:
        path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": []}))
    dataset = open_split(tmp_path / "data", "val")
    kinds = {"both": {"boxes": True}, "masks": {"boxes": False}, "outlines": {"boxes": False, "polygons": True}}
    answered = {}
    for name, options in kinds.items():
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(results_of(dataset, **options)))
        answered[name] = from_files([file], dataset)
    silent = replace(answered["masks"], results=[list])
    answered = {**answered, "silent": silent}
    comparison = assemble(dataset, answered, title="odd", command="", limits=(100,), console=console)
    publish(comparison, dataset, answered, tmp_path / "report.html", console)
    json.dumps(comparison.to_dict(), allow_nan=False)
    values = {row.name: row.averages["ap"].value for row in comparison.rows}
    if has_objects:
        assert values["both"] == values["masks"] == values["outlines"]
        assert values["silent"] == 0
        errors = {row.name: row.errors for row in comparison.rows}
        assert errors["masks"] == errors["outlines"]
        assert errors["silent"]["missed"] == 1
        assert "mask" in errors["both"]
    else:
        assert all(math.isnan(value) for value in values.values())
        assert comparison.tables[0].differences == []
    assert "Only" in comparison.notes[0]


def test_proposals_are_ranked_by_recall_whatever_their_class(tmp_path, console):
    make_coco(tmp_path / "data", split="val", seed=3, images=3)
    dataset = open_split(tmp_path / "data", "val")
    file = tmp_path / "both.json"
    file.write_text(json.dumps(results_of(dataset, boxes=True)))
    entry = from_files([file], dataset)
    answered = {"it": replace(entry, facts=replace(entry.facts, task="proposals"))}
    comparison = assemble(dataset, answered, title="p", command="", limits=(10, 100), console=console)
    (table,) = comparison.tables
    assert table.decides == "ar"
    agnostic = evaluate_detections(
        dataset, results_of(dataset, boxes=True), kinds=["segm"], max_detections=(10, 100), class_agnostic=True
    )["segm"]
    assert table.rows[0].averages["ar"].value == agnostic.ar[-1]
    assert table.rows[0].errors == table.rows[0].per_class == {}
    publish(comparison, dataset, answered, tmp_path / "report.html", console)


def test_ticks_are_round():
    assert ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(0.5, 0.95) == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9])
    assert ticks(0, 47) == pytest.approx([0, 10, 20, 30, 40])
    assert len(ticks(3, 3)) > 1


def test_points_land_where_the_axes_say():
    line = Series("a", "#000", [Point(0, 0), Point(10, 5)])
    plot = chart("x", "x", [line], x_label="", y_label="", x_range=(0, 10), y_range=(0, 5))
    assert plot.strokes[0].points == f"{plot.left},{plot.height - plot.bottom} {plot.right},{plot.top}"
    row = {"a": (1.0, 0.5, float("nan")), "b": (float("nan"),) * 3}
    rows = dot_rows("x", "x", {"r": row}, {"a": "#000", "b": "#111"}, x_label="")
    assert len(rows.marks) == 1
    assert rows.marks[0].low < rows.marks[0].x
    assert rows.marks[0].high is None


def test_frontier_leaves_out_what_is_slower_and_worse():
    points = [Point(3, 30), Point(1, 10), Point(2, 9), Point(4, 30), Point(5, 40), Point(1, 8)]
    assert [(p.x, p.y) for p in frontier(points)] == [(1, 10), (3, 30), (5, 40)]
