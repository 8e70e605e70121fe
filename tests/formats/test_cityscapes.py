"""The folders of Cityscapes against the data set's own scripts."""

import json

import numpy as np
import pytest
from cityscapesscripts.evaluation.instances2dict import instances2dict
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.helpers.labels import labels
from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
from PIL import Image

from maskwright.formats.catalog import open_datasets, open_split
from maskwright.formats.cityscapes import CLASSES, MAP, POLYGONS, VOID, draw_map, read_map

SIZE = (60, 100)
NAMES = {"train": ["aachen/aachen_000000_000019", "bochum/bochum_000000_000313"], "val": ["ulm/ulm_000000_000019"]}
OBJECTS = [
    ("road", [[0, 30], [99, 30], [99, 59], [0, 59]]),
    ("car", [[5, 20], [40, 20], [40, 45], [5, 45]]),
    ("car", [[30, 25], [60, 22], [62, 50], [33, 51]]),
    ("cargroup", [[70, 10], [95, 12], [90, 28]]),
    ("persongroup", [[2, 2], [9, 3], [8, 11]]),
    ("rider", [[50, 5], [55, 4], [58, 24], [49, 22]]),
    ("bicycle", [[49, 18], [60, 18], [60, 28], [49, 28]]),
    ("caravan", [[80, 40], [95, 40], [95, 55], [80, 55]]),
    ("license plate", [[10, 30], [14, 30], [14, 33], [10, 33]]),
    ("polegroup", [[66, 0], [67, 0], [67, 40], [66, 40]]),
]


def write_polygons(path, objects=OBJECTS):
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = [{"label": label, "polygon": polygon} for label, polygon in objects]
    entries.append({"label": "truck", "polygon": [[0, 0], [50, 0], [50, 50]], "deleted": 1})
    path.write_text(json.dumps({"imgHeight": SIZE[0], "imgWidth": SIZE[1], "objects": entries}))


def official_map(path):
    annotation = Annotation()
    annotation.fromJsonFile(str(path))
    return np.asarray(createInstanceImage(annotation, "ids"))


@pytest.fixture
def root(tmp_path):
    """Maps for most images, polygons alone for one."""
    for split, names in NAMES.items():
        for name in names:
            image = tmp_path / "leftImg8bit" / split / f"{name}_leftImg8bit.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", SIZE[::-1]).save(image)
            polygons = tmp_path / "gtFine" / split / f"{name}{POLYGONS}"
            write_polygons(polygons)
            if "bochum" not in name:
                values = official_map(polygons).astype(np.uint16)
                Image.fromarray(values).save(polygons.with_name(polygons.name.replace(POLYGONS, MAP)))
    return tmp_path


def test_labels_are_those_of_the_benchmark():
    scored = {label.name: label.id for label in labels if label.hasInstances and not label.ignoreInEval}
    assert scored == dict(CLASSES)
    assert set(VOID) == {label.id for label in labels if label.ignoreInEval and label.id >= 0}


def test_polygons_become_the_map_the_scripts_make(tmp_path):
    path = tmp_path / f"x{POLYGONS}"
    write_polygons(path)
    assert np.array_equal(draw_map(path), official_map(path))
    assert {26000, 26001, 26, 24, 25000, 33000, 29000, 18, 7, 0} == set(np.unique(draw_map(path)).tolist())


def test_every_class_and_group_is_drawn_as_the_scripts_do(tmp_path):
    path, generator = tmp_path / f"x{POLYGONS}", np.random.default_rng(0)
    names = [label.name for label in labels] + [f"{label.name}group" for label in labels if label.hasInstances]
    polygons = generator.integers(-10, 110, size=(3, len(names), 5, 2)).tolist()
    write_polygons(path, [pair for drawn in polygons for pair in zip(names, drawn, strict=True)])
    assert np.array_equal(draw_map(path), official_map(path))


def test_objects_are_those_of_the_scripts(root):
    dataset = open_split(root, "train")
    assert dataset.categories.names == tuple(CLASSES)
    assert dataset.categories.ids == tuple(CLASSES.values())
    for index, name in enumerate(NAMES["train"]):
        sample, path = dataset.read(index), root / "gtFine" / "train" / f"{name}{MAP}"
        assert sample.image.shape == (*SIZE, 3)
        values = official_map(path.with_name(path.name.replace(MAP, POLYGONS)))
        if not path.is_file():
            Image.fromarray(values.astype(np.uint16)).save(path)
        wanted = [
            (entry["labelID"], entry["instID"] < 1000, values == entry["instID"])
            for label in CLASSES
            for entry in next(iter(instances2dict([str(path)]).values()))[label]
        ]
        instances = sample.instances
        found = zip(
            [dataset.categories.ids[label] for label in instances.labels.tolist()],
            instances.is_crowd.tolist(),
            instances.masks.to_dense().numpy(),
            strict=True,
        )
        order = {(label, crowd, mask.tobytes()) for label, crowd, mask in found}
        assert order == {(label, crowd, mask.tobytes()) for label, crowd, mask in wanted}
        assert len(instances) == 6


def test_both_splits_have_the_same_classes(root):
    train, val = open_datasets(root)
    assert (len(train), len(val), train.num_instances) == (2, 1, 12)
    assert train.file_name(0) == "aachen/aachen_000000_000019_leftImg8bit.png"
    chosen, _ = open_datasets(root, classes=["car", "person"])
    assert (chosen.categories.ids, chosen.num_instances) == ((26, 24), 8)


def test_an_empty_folder(tmp_path):
    (tmp_path / "gtFine" / "train").mkdir(parents=True)
    (tmp_path / "leftImg8bit" / "train").mkdir(parents=True)
    with pytest.raises(ValueError, match="gtFine/train: holds no CITY"):
        open_split(tmp_path, "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "holds no polygons of Cityscapes"),
        ("[]", "holds no polygons of Cityscapes"),
        ('{"imgHeight": 5, "imgWidth": 5}', "KeyError"),
        ('{"imgHeight": 5, "imgWidth": 5, "objects": [{"label": "cow", "polygon": [[0, 0], [1, 1]]}]}', "cow is none"),
        ('{"imgHeight": 5, "imgWidth": 5, "objects": [{"label": "car", "polygon": [[0], [1, 1]]}]}', "get it anew"),
        ('{"imgHeight": -5, "imgWidth": 5, "objects": []}', "get it anew"),
        ('{"imgHeight": 0, "imgWidth": 5, "objects": []}', "positive sides"),
        ('{"imgHeight": 1000000000000, "imgWidth": 5, "objects": []}', "positive sides"),
        ('{"imgHeight": 1000000, "imgWidth": 2000, "objects": []}', "are too many"),
        ('{"imgHeight": Infinity, "imgWidth": 5, "objects": []}', "OverflowError"),
        ('{"imgHeight": 5, "imgWidth": 5, "objects": ["x"]}', "AttributeError"),
        ('{"imgHeight": 5, "imgWidth": 5, "objects": ' + 100000 * "[", "get it anew"),
        (
            '{"imgHeight": 5, "imgWidth": 5, "objects": [{"label": "car", "polygon": [[0, NaN], [1, 1]]}]}',
            "a corner lies at nan",
        ),
        (
            '{"imgHeight": 5, "imgWidth": 5, "objects": [{"label": "car", "polygon": [[0, 1e30], [1, 1]]}]}',
            "a corner lies at 1e+30".replace("+", "."),
        ),
    ],
)
def test_damaged_polygons(tmp_path, content, message):
    path = tmp_path / f"x{POLYGONS}"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        draw_map(path)
    assert str(path) in str(error.value)


def test_what_other_systems_leave_beside_files_is_no_annotation(root):
    for path in list((root / "gtFine" / "train").glob(f"*/*{MAP}")):
        path.with_name(f"._{path.name}").write_bytes(b"x")
    assert len(open_split(root, "train")) == 2


def test_damaged_maps(root):
    split = root / "gtFine" / "val"
    name = NAMES["val"][0]
    path = split / f"{name}{MAP}"
    Image.new("RGB", (5, 5)).save(path)
    with pytest.raises(ValueError, match="saved anew"):
        read_map(split, name)
    path.write_bytes(b"x")
    with pytest.raises(ValueError, match="cannot be read"):
        read_map(split, name)
    path.unlink()
    path.with_name(path.name.replace(MAP, POLYGONS)).unlink()
    with pytest.raises(ValueError, match="is missing"):
        read_map(split, name)
