"""PASCAL VOC and SBD: folders with a map of objects for each image.

VOC (Everingham et al., IJCV 2015): `SegmentationObject/NAME.png`, whose colour n is the n-th object,
`SegmentationClass/NAME.png`, `Annotations/NAME.xml`, lists in `ImageSets/Segmentation`. SBD (Hariharan et al., ICCV 2011):
`inst/NAME.mat`, `cls/NAME.mat`, `img/NAME.jpg`, lists `train.txt` and `val.txt`, either SBD's own or those of SDS, by which
mAP^r is measured.

An object is the set of pixels with its number; its box is tight; borders marked 255 belong to nobody.
"""

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from maskwright.formats.builder import DatasetBuilder, Invalid, ObjectRecord, mask_of_runs
from maskwright.formats.dataset import Categories, Dataset
from maskwright.formats.format import Format, Source, Split
from maskwright.structures import rle

CLASSES: tuple[str, ...] = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse",
    "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""In the order of their numbers in the maps, 1 to 20."""
VOID = 255
_FOLDERS = (".", "VOC2012", "VOCdevkit/VOC2012")

_CATEGORIES = Categories(CLASSES, tuple(range(1, len(CLASSES) + 1)))

Map = npt.NDArray[np.uint8]
Objects = Iterator[tuple[npt.NDArray[np.bool_], int]]
"""Each object's pixels (H, W) and its class, 1 to 20."""


def find_voc(data: Path, split: Split, *, keypoints: bool) -> Source | None:
    """A split of VOC in its folder, or in one of those above it; None where there is none."""
    for place in _FOLDERS:
        listed = data / place / "ImageSets" / "Segmentation" / f"{split}.txt"
        if listed.is_file():
            return Source(listed, data / place / "JPEGImages")
    return None


def find_sbd(data: Path, split: Split, *, keypoints: bool) -> Source | None:
    """A split of SBD, or None."""
    listed = data / f"{split}.txt"
    return Source(listed, data / "img") if listed.is_file() and (data / "inst").is_dir() else None


def read_voc(path: Path, image_folder: Path, *, classes: Sequence[str] | None = None, invalid: Invalid = "stop") -> Dataset:
    """Read a split of VOC.

    Args:
        path: the list, ROOT/ImageSets/Segmentation/train.txt.
        image_folder: where its images are.
        classes: names to keep, in this order; by default all.
        invalid: what becomes of bad entries of the list; a file that is missing or damaged always stops the reading.

    Raises:
        ValueError: a file is missing, damaged, or disagrees with another.
    """
    root = path.parent.parent.parent

    def objects(name: str) -> tuple[tuple[int, int], Objects]:
        map_path = root / "SegmentationObject" / f"{name}.png"
        instances, labels = _png(map_path), _png(root / "SegmentationClass" / f"{name}.png")
        named = _named(root / "Annotations" / f"{name}.xml")
        return (instances.shape[0], instances.shape[1]), _of_maps(map_path, instances, labels, named)

    return _read(path, objects, DatasetBuilder(path, image_folder, _CATEGORIES, classes=classes, invalid=invalid))


def read_sbd(path: Path, image_folder: Path, *, classes: Sequence[str] | None = None, invalid: Invalid = "stop") -> Dataset:
    """Read a split of SBD.

    Args:
        path: the list, ROOT/train.txt.
        image_folder: where its images are.
        classes: names to keep, in this order; by default all.
        invalid: as for `read_voc`.

    Raises:
        ValueError: a file is missing or damaged, or scipy is not installed.
    """

    def objects(name: str) -> tuple[tuple[int, int], Objects]:
        map_path = path.parent / "inst" / f"{name}.mat"
        instances, labels = _mat(map_path, "GTinst"), _mat(path.parent / "cls" / f"{name}.mat", "GTcls")
        return (instances.shape[0], instances.shape[1]), _of_maps(map_path, instances, labels, {})

    return _read(path, objects, DatasetBuilder(path, image_folder, _CATEGORIES, classes=classes, invalid=invalid))


def _read(path: Path, objects: Callable[[str], tuple[tuple[int, int], Objects]], builder: DatasetBuilder) -> Dataset:
    """The images of a list, each with its objects."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not text ({error}): expected the name of an image on each line") from None
    names = [line.split()[0] for line in text.splitlines() if line.strip()]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise ValueError(f"{path}: lists {', '.join(twice[:5])} twice: remove the repetition")
    for name in names:
        size, found = objects(name)
        whole = (0, 0, size[1], size[0])
        runs = ((label, rle.crop_to_runs(bitmap, whole, size)) for bitmap, label in found)
        builder.add_counted(f"{name}.jpg", size, ((label, ObjectRecord(mask_of_runs(run, size))) for label, run in runs))
    return builder.build()


def _of_maps(path: Path, instances: Map, classes: Map, named: dict[int, str]) -> Objects:
    """Objects of two maps, in the order of their numbers."""
    if instances.shape != classes.shape:
        shapes = f"is {instances.shape} px, the map of classes {classes.shape}"
        raise ValueError(f"{path}: {shapes}: one of them is another image's")
    for number in np.unique(instances).tolist():
        if number in (0, VOID):
            continue
        bitmap = instances == number
        labels = np.unique(classes[bitmap])
        labels = labels[(labels != 0) & (labels != VOID)]
        if len(labels) != 1 or labels[0] > len(CLASSES):
            what = ", ".join(map(str, labels.tolist())) or "none"
            raise ValueError(
                f"{path}: object {number} lies on classes {what}, expected one of 1 to {len(CLASSES)}: mend the maps"
            )
        label = int(labels[0])
        if number in named and named[number] != CLASSES[label - 1]:
            raise ValueError(
                f"{path}: object {number} is a {CLASSES[label - 1]} by its map, a {named[number]} by its XML: mend one of them"
            )
        yield bitmap, label


def _png(path: Path) -> Map:
    """A map of numbers from a PNG with a palette."""
    try:
        with Image.open(path) as image:
            if image.mode not in ("P", "L"):
                raise ValueError(f"{path}: has colours ({image.mode}), expected a palette of object numbers: it was saved anew")
            return np.array(image, dtype=np.uint8)
    except FileNotFoundError:
        raise ValueError(f"{path}: is missing, though its image is listed: add it or take the image from the list") from None
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: cannot be read ({error}): get it anew") from None


def _named(path: Path) -> dict[int, str]:
    """Class names of numbered objects, where there is such a file."""
    if not path.is_file():
        return {}
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise ValueError(f"{path}: is not XML ({error}): get it anew") from None
    return {number: entry.findtext("name", "") for number, entry in enumerate(root.iter("object"), start=1)}


def _mat(path: Path, field: str) -> Map:
    """The map of a Matlab file."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise ValueError(f"{path}: SBD's Matlab files need scipy: uv pip install 'maskwright[sbd]'") from None
    if not path.is_file():
        raise ValueError(f"{path}: is missing, though its image is listed: add it or take the image from the list")
    try:
        values = np.asarray(loadmat(path)[field]["Segmentation"][0, 0])
        if values.ndim != 2 or not np.array_equal(values, values.astype(np.uint8)):
            raise ValueError(f"{values.shape} numbers, not a map of 0 to 255")
        found: Map = values.astype(np.uint8)
    except Exception as error:  # scipy raises whatever the bytes lead it to
        raise ValueError(f"{path}: holds no {field}.Segmentation ({error}): get it anew") from None
    return found


VOC = Format(name="voc", layout="VOC's ImageSets/Segmentation/{split}.txt", find=find_voc, read=read_voc)
SBD = Format(name="sbd", layout="SBD's {split}.txt with inst/", find=find_sbd, read=read_sbd)
