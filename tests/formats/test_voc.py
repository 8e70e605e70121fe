"""PASCAL VOC and SBD give the same samples as COCO annotations of the same objects."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.segmentation import FCN_ResNet50_Weights

from maskwright.formats.catalog import open_datasets, open_split
from maskwright.formats.voc import CLASSES, VOID

SIZE = (40, 60)
OBJECTS = {  # windows x0, y0, x1, y1 and classes
    "2007_000001": [((5, 5, 20, 25), "cat"), ((30, 10, 50, 35), "person")],
    "2007_000002": [((0, 0, 60, 40), "aeroplane")],
}


def maps(name):
    """Numbers of objects and of classes; the later object hides the earlier; two rows of border belong to nobody."""
    instances, classes = np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.uint8)
    for number, ((x0, y0, x1, y1), label) in enumerate(OBJECTS[name], start=1):
        instances[y0:y1, x0:x1], classes[y0:y1, x0:x1] = number, CLASSES.index(label) + 1
    instances[:2], classes[:2] = VOID, VOID
    return instances, classes


def save_map(path, values):
    image = Image.fromarray(values)
    image.putpalette([value for i in range(256) for value in (i, 255 - i, i // 2)])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


@pytest.fixture
def voc(tmp_path):
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for split, name in (("train", "2007_000001"), ("val", "2007_000002")):
        instances, classes = maps(name)
        save_map(root / "SegmentationObject" / f"{name}.png", instances)
        save_map(root / "SegmentationClass" / f"{name}.png", classes)
        (root / "JPEGImages").mkdir(exist_ok=True)
        Image.new("RGB", SIZE[::-1]).save(root / "JPEGImages" / f"{name}.jpg")
        annotation = ElementTree.Element("annotation")
        for _, label in OBJECTS[name]:
            ElementTree.SubElement(ElementTree.SubElement(annotation, "object"), "name").text = label
        (root / "Annotations").mkdir(exist_ok=True)
        ElementTree.ElementTree(annotation).write(root / "Annotations" / f"{name}.xml")
        lists = root / "ImageSets" / "Segmentation"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{split}.txt").write_text(f"{name}\n")
    return tmp_path


@pytest.fixture
def sbd(tmp_path):
    from scipy.io import savemat

    root = tmp_path / "sbd"
    for folder in ("inst", "cls", "img"):
        (root / folder).mkdir(parents=True)
    for split, name in (("train", "2007_000001"), ("val", "2007_000002")):
        instances, classes = maps(name)
        instances[instances == VOID] = classes[classes == VOID] = 0  # SBD has no void
        savemat(root / "inst" / f"{name}.mat", {"GTinst": {"Segmentation": instances, "Categories": np.array([[8], [15]])}})
        savemat(root / "cls" / f"{name}.mat", {"GTcls": {"Segmentation": classes}})
        Image.new("RGB", SIZE[::-1]).save(root / "img" / f"{name}.jpg")
        (root / f"{split}.txt").write_text(f"{name}\n")
    return root


def test_classes_are_numbered_as_others_number_them():
    assert ["__background__", *CLASSES] == FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1.meta["categories"]


def test_both_layouts_give_the_same_objects(voc, sbd):
    for folder in (voc, voc / "VOCdevkit", voc / "VOCdevkit" / "VOC2012", sbd):
        train, val = open_datasets(folder)
        assert train.categories.names == CLASSES
        assert train.categories.ids == tuple(range(1, 21))
        sample = train.read(0)
        objects = sample.instances
        assert [CLASSES[label] for label in objects.labels.tolist()] == ["cat", "person"]
        assert objects.boxes.tolist() == [[5, 5, 20, 25], [30, 10, 50, 35]]
        assert objects.masks.areas().tolist() == [15 * 20, 20 * 25]
        assert not objects.is_crowd.any()
        assert sample.image.shape == (*SIZE, 3)
        assert val.instances(0).boxes.tolist() == [[0, 2, 60, 40]]  # void, and SBD's nothing, belong to nobody


def test_classes_can_be_chosen(voc):
    chosen = open_split(voc, "train", classes=["person"])
    assert chosen.instances(0).labels.tolist() == [0]


def test_hidden_objects_keep_the_numbers_of_the_others(voc):
    root = voc / "VOCdevkit" / "VOC2012"
    instances, classes = maps("2007_000001")
    instances[instances == 1], classes[classes == 8] = 0, 0
    save_map(root / "SegmentationObject" / "2007_000001.png", instances)
    save_map(root / "SegmentationClass" / "2007_000001.png", classes)
    assert [CLASSES[k] for k in open_split(voc, "train").instances(0).labels.tolist()] == ["person"]


def damage_colours(root):
    Image.new("RGB", SIZE[::-1]).save(root / "SegmentationObject" / "2007_000001.png")


def damage_classes(root):
    save_map(root / "SegmentationClass" / "2007_000001.png", np.zeros(SIZE, np.uint8))


def damage_size(root):
    save_map(root / "SegmentationClass" / "2007_000001.png", np.zeros((5, 5), np.uint8))


def damage_file(root):
    (root / "SegmentationObject" / "2007_000001.png").write_bytes(b"no image")


def damage_xml(root):
    (root / "Annotations" / "2007_000001.xml").write_text("<annotation><object><name>dog</name></object></annotation>")


def damage_markup(root):
    (root / "Annotations" / "2007_000001.xml").write_text("<annotation>")


def damage_list(root):
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("2007_000001\n2007_000001\n")


def missing(root):
    (root / "SegmentationObject" / "2007_000001.png").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_colours, r"000001\.png: has colours \(RGB\), expected a palette"),
        (damage_classes, r"000001\.png: object 1 lies on classes none, expected one of 1 to 20"),
        (damage_size, r"000001\.png: is \(40, 60\) px, the map of classes \(5, 5\)"),
        (damage_file, r"000001\.png: cannot be read"),
        (damage_xml, r"object 1 is a cat by its map, a dog by its XML"),
        (damage_markup, r"000001\.xml: is not XML"),
        (damage_list, r"train\.txt: lists 2007_000001 twice"),
        (missing, r"000001\.png: is missing, though its image is listed"),
    ],
)
def test_what_is_wrong_is_named(damage, message, voc):
    damage(voc / "VOCdevkit" / "VOC2012")
    with pytest.raises(ValueError, match=message):
        open_split(voc, "train")


def test_damaged_matlab_files_are_named(sbd):
    (sbd / "cls" / "2007_000001.mat").write_bytes(b"MATLAB 5.0" + bytes(200))
    with pytest.raises(ValueError, match=r"cls.2007_000001\.mat: holds no GTcls\.Segmentation"):
        open_split(sbd, "train")
    (sbd / "inst" / "2007_000001.mat").unlink()
    with pytest.raises(ValueError, match=r"inst.2007_000001\.mat: is missing"):
        open_split(sbd, "train")


def test_masks_are_the_pixels_of_their_number(voc):
    train, _ = open_datasets(voc)
    assert torch.equal(train.instances(0).masks.to_dense()[0], torch.from_numpy(maps("2007_000001")[0] == 1))
