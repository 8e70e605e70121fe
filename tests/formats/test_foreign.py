"""A format of another package, found by its entry point: nobody needs to fork."""

import csv
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import maskwright
from maskwright.formats.catalog import FORMATS, open_datasets, open_split
from maskwright.formats.coco import to_coco
from maskwright.structures import Masks
from tests.conftest import make_coco

PACKAGE = Path(__file__).parent / "foreign" / "rectangles.py"


def install(monkeypatch, folder, *entry_points, package="maskwright-rectangles"):
    """What pip would leave in a folder of packages: the module, and the metadata of its distribution."""
    info = folder / f"{package.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("\n".join(["[maskwright.formats]", *entry_points, ""]))
    shutil.copy(PACKAGE, folder / "maskwright_rectangles.py")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "maskwright_rectangles", raising=False)


@pytest.fixture
def installed(monkeypatch, tmp_path):
    install(monkeypatch, tmp_path / "site", "rectangles = maskwright_rectangles:RECTANGLES")
    yield
    sys.modules.pop("maskwright_rectangles", None)


@pytest.fixture
def folders(tmp_path):
    """The same pictures and objects in that format, and as COCO annotations."""
    theirs, coco = tmp_path / "theirs", tmp_path / "coco"
    theirs.mkdir()
    for split in ("train", "val"):
        data = make_coco(coco, images=2, split=split, seed=len(split))
        names = {image["id"]: image["file_name"] for image in data["images"]}
        kinds = {entry["id"]: entry["name"] for entry in data["categories"]}
        with (theirs / f"{split}.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["picture", "height", "width", "kind", "left", "top", "right", "bottom", "runs"])
            for entry in data["annotations"]:
                x, y, w, h = entry["bbox"]
                is_rectangle = isinstance(entry["segmentation"], list)
                runs = "" if is_rectangle else counts_of(entry["segmentation"])
                sides = [x, y, x + w, y + h] if is_rectangle else [""] * 4
                table.writerow([names[entry["image_id"]], 96, 128, kinds[entry["category_id"]], *sides, runs])
    shutil.copytree(coco / "images", theirs / "pictures")
    return theirs, coco


def counts_of(encoded):
    pixels = Masks.from_rles([encoded], (96, 128)).to_dense()[0].numpy().T.reshape(-1)
    edges = np.flatnonzero(np.diff(pixels, prepend=False, append=False))
    return json.dumps(np.diff([0, *edges.tolist(), 96 * 128]).tolist())


@pytest.mark.usefixtures("installed")
def test_what_it_reads_is_what_coco_annotations_of_the_same_objects_give(folders):
    for theirs, ours in zip(*map(open_datasets, folders), strict=True):
        assert theirs.categories == ours.categories
        assert len(theirs) == len(ours) == 2
        for i in range(2):
            sample, expected = theirs.read(i), ours.read(i)
            assert (sample.image == expected.image).all()
            assert (sample.instances.boxes == expected.instances.boxes).all()
            assert sample.instances.labels.tolist() == expected.instances.labels.tolist()
            assert (sample.instances.masks.to_dense() == expected.instances.masks.to_dense()).all()


@pytest.mark.usefixtures("installed")
def test_it_is_evaluated_against_and_a_single_file_is_enough(folders, tmp_path):
    theirs, _ = folders
    results = [{**entry, "score": 0.9} for entry in to_coco(open_split(theirs, "val"))["annotations"]]
    (tmp_path / "results.json").write_text(json.dumps(results[1:]))
    for data in (theirs, theirs / "val.csv"):
        found = maskwright.score(tmp_path / "results.json", data=data).metrics["segm"]
        assert 0.7 < found.ap < 0.8  # of two boxes and two discs, one box is not found
    chosen, _ = open_datasets(theirs, classes=["disc"])
    assert (chosen.categories.ids, chosen.num_instances) == ((3,), 2)
    train, val = open_datasets(theirs / "train.csv", images=theirs / "pictures", val_fraction=0.5)
    assert len(train) == len(val) == 1


@pytest.mark.usefixtures("installed")
def test_its_mistakes_are_named_and_can_be_left_out(folders):
    table = folders[0] / "val.csv"
    lines = table.read_text().splitlines()
    lines[1] = "val_0.png,96,128,box,300,300,310,310,"
    lines[2] = 'val_0.png,96,128,disc,,,,,"[1, 2]"'
    lines[3] = "val_1.png,96,128,star,1,1,5,5,"
    table.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"val\.csv: 3 bad entries") as error:
        open_datasets(folders[0])
    for said in (
        "line 2: the polygon lies outside the image of 96 x 128 px",
        "line 3: RLE counts add up to 3, expected 96 x 128",
        "line 4: tuple.index(x): x not in tuple",
    ):
        assert said in str(error.value)
    _, val = open_datasets(folders[0], invalid="skip")
    assert (len(val), val.num_instances, len(val.problems)) == (2, 1, 3)
    table.write_text("a,b\n")
    with pytest.raises(ValueError, match=r"val\.csv: its columns are \['a', 'b'\], expected"):
        open_split(folders[0], "val")


@pytest.mark.usefixtures("installed")
def test_it_is_named_where_nothing_was_found_and_ours_come_first(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"or rectangles' train\.csv with pictures/; or give one annotation file"):
        open_split(tmp_path / "empty", "train")
    shutil.copytree(folders[0], folders[1], dirs_exist_ok=True)
    assert open_split(folders[1], "train").path.name == "train.json"


@pytest.mark.parametrize(
    ("entry", "text", "message"),
    [
        ("x = nowhere:X", "", r"the format x of the package broken \(nowhere:X\) cannot be imported \(ModuleNotFoundError"),
        ("x = broken_format:X", "1 / 0", "cannot be imported .ZeroDivisionError.*: update or uninstall that package"),
        ("x = broken_format:X", "Y = 1", "cannot be imported .AttributeError"),
        ("x = broken_format:X", "X = 5", "broken_format:X. is 5, expected a maskwright.formats.Format"),
        (
            "x = broken_format:X",
            "from maskwright.formats.coco import COCO as X",
            "of the package broken .* is called coco, as another format is",
        ),
    ],
)
def test_a_broken_package_is_named(folders, monkeypatch, tmp_path, entry, text, message):
    install(monkeypatch, tmp_path / "site", entry, package="broken")
    (tmp_path / "site" / "broken_format.py").write_text(text)
    monkeypatch.delitem(sys.modules, "broken_format", raising=False)
    with pytest.raises(ValueError, match=message):
        open_datasets(folders[0])
    assert len(open_datasets(folders[1])[0]) == 2  # what needs no foreign format does not ask for one
    sys.modules.pop("broken_format", None)


def test_without_that_package_its_folder_is_unknown(folders):
    with pytest.raises(ValueError, match=r"leftImg8bit/train/; or give one annotation file with --images DIR$"):
        open_datasets(folders[0])
    assert [form.name for form in FORMATS] == ["coco", "voc", "sbd", "cityscapes"]
