"""PASCAL VOC and SBD: folders with a map of objects for each image, read as COCO annotations.

VOC (Everingham et al., IJCV 2015): `SegmentationObject/NAME.png`, whose colour n is the n-th object,
`SegmentationClass/NAME.png`, `Annotations/NAME.xml`, lists in `ImageSets/Segmentation`. SBD (Hariharan et al., ICCV 2011):
`inst/NAME.mat`, `cls/NAME.mat`, `img/NAME.jpg`, lists `train.txt` and `val.txt`, either SBD's own or those of SDS, by which
mAP^r is measured.

An object is the set of pixels with its number; its box is tight; borders marked 255 belong to nobody.
"""

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from torchvision.models.segmentation import FCN_ResNet50_Weights

from maskwright.structures import Masks

CLASSES: tuple[str, ...] = tuple(FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1.meta["categories"][1:])
VOID = 255

Map = npt.NDArray[np.uint8]
Objects = Iterator[tuple[npt.NDArray[np.bool_], int]]
"""Each object's pixels (H, W) and its class, 1 to 20."""


def read_voc(split: Path) -> dict[str, Any]:
    """A split of VOC as COCO annotations.

    Args:
        split: the list, ROOT/ImageSets/Segmentation/train.txt.

    Raises:
        ValueError: a file is missing, damaged, or disagrees with another.
    """
    root = split.parent.parent.parent

    def objects(name: str) -> tuple[tuple[int, int], Objects]:
        path = root / "SegmentationObject" / f"{name}.png"
        instances, classes = _png(path), _png(root / "SegmentationClass" / f"{name}.png")
        named = _named(root / "Annotations" / f"{name}.xml")
        return (instances.shape[0], instances.shape[1]), _of_maps(path, instances, classes, named)

    return _annotations(split, objects)


def read_sbd(split: Path) -> dict[str, Any]:
    """A split of SBD as COCO annotations.

    Args:
        split: the list, ROOT/train.txt.

    Raises:
        ValueError: a file is missing or damaged, or scipy is not installed.
    """

    def objects(name: str) -> tuple[tuple[int, int], Objects]:
        path = split.parent / "inst" / f"{name}.mat"
        instances, classes = _mat(path, "GTinst"), _mat(split.parent / "cls" / f"{name}.mat", "GTcls")
        return (instances.shape[0], instances.shape[1]), _of_maps(path, instances, classes, {})

    return _annotations(split, objects)


def _annotations(split: Path, objects: Callable[[str], tuple[tuple[int, int], Objects]]) -> dict[str, Any]:
    try:
        text = split.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{split}: is not text ({error}): expected the name of an image on each line") from None
    names = [line.split()[0] for line in text.splitlines() if line.strip()]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise ValueError(f"{split}: lists {', '.join(twice[:5])} twice: remove the repetition")
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, name in enumerate(names, start=1):
        size, found = objects(name)
        images.append({"id": number, "file_name": f"{name}.jpg", "height": size[0], "width": size[1]})
        for bitmap, label in found:
            window = (0, 0, size[1], size[0])
            (code,) = Masks.from_crops([(bitmap, window)], size).to_rles()
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": label, "segmentation": code})
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


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
