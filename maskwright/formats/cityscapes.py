"""Cityscapes: the folders of the download.

Cordts et al., CVPR 2016. `leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png` are the images; beside each there are, in
`gtFine/SPLIT/CITY/`, a map of its objects, `NAME_gtFine_instanceIds.png`, and the polygons it was drawn from,
`NAME_gtFine_polygons.json`. The map is used where there is one, else it is drawn from the polygons as the data set's own
scripts draw it. A value from 1000 on is an object of class value // 1000; a smaller one is a class: what is no object, or a
group of them that was not told apart, which becomes a crowd.
"""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, UnidentifiedImageError

from maskwright.formats.builder import DatasetBuilder, Invalid, ObjectRecord, mask_of_runs
from maskwright.formats.dataset import Categories, Dataset
from maskwright.formats.files import write_text
from maskwright.formats.format import Format, Source, Split
from maskwright.formats.images import MAX_PIXELS
from maskwright.structures import Instances, rle

CLASSES: Mapping[str, int] = MappingProxyType(
    {"person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33}
)
"""Names of the classes whose objects are told apart and scored, and their labels in the maps."""
_UNSCORED_OBJECTS = {"caravan": 29, "trailer": 30}
_OTHERS = {
    "unlabeled": 0, "ego vehicle": 1, "rectification border": 2, "out of roi": 3, "static": 4, "dynamic": 5, "ground": 6,
    "road": 7, "sidewalk": 8, "parking": 9, "rail track": 10, "building": 11, "wall": 12, "fence": 13, "guard rail": 14,
    "bridge": 15, "tunnel": 16, "pole": 17, "polegroup": 18, "traffic light": 19, "traffic sign": 20, "vegetation": 21,
    "terrain": 22, "sky": 23, "license plate": -1,
}  # fmt: skip
_LABELS = {**_OTHERS, **CLASSES, **_UNSCORED_OBJECTS}
VOID: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30)
"""Values of pixels on which detections are not counted as false."""
FIRST_OBJECT = 1000

MAPS = "gtFine"
"""Folder of the splits' maps."""
IMAGE, MAP, POLYGONS = "_leftImg8bit.png", "_gtFine_instanceIds.png", "_gtFine_polygons.json"

Map = npt.NDArray[np.int32]


def find_cityscapes(data: Path, split: Split, *, keypoints: bool) -> Source | None:
    """The maps and images of a split, or None."""
    maps = data / MAPS / split
    return Source(maps, data / "leftImg8bit" / split) if maps.is_dir() else None


def read_cityscapes(
    path: Path, image_folder: Path, *, classes: Sequence[str] | None = None, invalid: Invalid = "stop"
) -> Dataset:
    """Read a split of Cityscapes, with the labels of the maps as category ids.

    Args:
        path: the folder of its maps, ROOT/gtFine/val.
        image_folder: that of its images.
        classes: names to keep, in this order; by default all.
        invalid: what becomes of bad entries; a file that is missing or damaged always stops the reading.

    Raises:
        ValueError: a file is missing or damaged.
    """
    names = sorted({str(file.relative_to(path))[: -len(end)] for end in (MAP, POLYGONS) for file in path.glob(f"*/[!.]*{end}")})
    if not names:
        raise ValueError(f"{path}: holds no CITY/*{MAP} and no CITY/*{POLYGONS}: expected the annotations of Cityscapes")
    categories = Categories(tuple(CLASSES), tuple(CLASSES.values()))
    builder = DatasetBuilder(path, image_folder, categories, classes=classes, invalid=invalid)
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda name: _objects(read_map(path, name)), names))
    for name, (size, objects) in zip(names, found, strict=True):
        builder.add_counted(f"{Path(name).as_posix()}{IMAGE}", size, objects)
    return builder.build()


def map_name(file_name: str) -> str:
    """Of an image, relative to its folder: what `read_map` calls it."""
    return file_name[: -len(IMAGE)]


def read_map(split: Path, name: str) -> Map:
    """The map of an image, (H, W).

    Args:
        split: the folder of its maps, ROOT/gtFine/val.
        name: CITY/NAME.

    Raises:
        ValueError: the map, or the polygons where there is no map, cannot be read.
    """
    path = split / f"{name}{MAP}"
    if not path.is_file():
        return draw_map(split / f"{name}{POLYGONS}")
    try:
        with Image.open(path) as image:
            if not image.mode.startswith("I"):
                raise ValueError(f"{path}: holds {image.mode} pixels, expected 16 bits of object numbers: it was saved anew")
            return np.asarray(image, dtype=np.int32)
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: cannot be read ({error}): get it anew") from None


def draw_map(path: Path) -> Map:
    """The map that polygons make, (H, W): later ones hide earlier ones, objects of a class are numbered as they come.

    Raises:
        ValueError: the file is missing, damaged or names an unknown class.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        height, width = rle.check_size([int(data["imgHeight"]), int(data["imgWidth"])])
        if height * width > MAX_PIXELS:
            raise ValueError(f"{height} x {width} px are too many")
        image = Image.new("I", (width, height), _LABELS["unlabeled"])
        drawer = ImageDraw.Draw(image)
        counts = dict.fromkeys((*CLASSES, *_UNSCORED_OBJECTS), 0)
        for entry in data["objects"]:
            if not entry.get("deleted"):
                value = _value(str(entry["label"]), counts)
                if value >= 0:
                    drawer.polygon([(_coordinate(x), _coordinate(y)) for x, y in entry["polygon"]], fill=value)
    except FileNotFoundError:
        raise ValueError(f"{path}: is missing: add it, or the map beside it") from None
    except (OSError, AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: holds no polygons of Cityscapes ({error!r}): correct it or get it anew") from None
    return np.asarray(image, dtype=np.int32)


def _coordinate(value: Any) -> float:
    """Of a corner, px."""
    if not isinstance(value, (int, float)) or not abs(value) <= MAX_PIXELS:
        raise ValueError(f"a corner lies at {value}")
    return float(value)


def _value(label: str, counts: dict[str, int]) -> int:
    """What the pixels of a polygon become."""
    name = label if label in _LABELS else label.removesuffix("group")
    if name not in _LABELS:
        raise ValueError(f"{label} is none of its classes")
    if name not in counts or name != label:
        return _LABELS[name]
    counts[name] += 1
    return _LABELS[name] * FIRST_OBJECT + counts[name] - 1


def _objects(values: Map) -> tuple[tuple[int, int], list[tuple[int, ObjectRecord]]]:
    """Size of a map, and its objects and groups with their labels, in the order of their numbers."""
    size = (values.shape[0], values.shape[1])
    flat = values.T.reshape(-1)  # down the columns, as run lengths go
    starts = np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1])
    ends, value_of = np.append(starts[1:], len(flat)), flat[starts]
    objects = []
    for value in np.unique(value_of).tolist():
        label = value if value < FIRST_OBJECT else value // FIRST_OBJECT
        if label in CLASSES.values():
            own = value_of == value
            objects.append((label, ObjectRecord(mask_of_runs((starts[own], ends[own]), size), is_crowd=value < FIRST_OBJECT)))
    return size, objects


# Writing


def check_cityscapes(categories: Categories, *, has_masks: bool) -> None:
    """Make sure that a model can take part in the benchmark."""
    if not has_masks or not set(categories.names) & set(CLASSES):
        what = f"only classes {', '.join(categories.names)}" if has_masks else "no masks"
        raise ValueError(f"format cityscapes: the model finds {what}: the benchmark scores masks of {', '.join(CLASSES)}")


def write_cityscapes(instances: Instances, categories: Categories, path: Path) -> list[Path]:
    """Detections of an image as the benchmark's server takes them.

    These are PATH.txt, whose lines are a mask's file, the label of its class and its score, and the masks in PATH_masks/.
    """
    assert instances.masks is not None
    assert instances.scores is not None
    folder, lines = path.parent / f"{path.name}_masks", []
    names = [categories.names[label] for label in instances.labels.tolist()]
    found = zip(names, instances.scores.tolist(), instances.masks.crops(), strict=True)
    for number, (name, score, (crop, (x0, y0, x1, y1))) in enumerate(found):
        if name in CLASSES:
            mask = np.zeros(instances.image_size, dtype=np.uint8)
            mask[y0:y1, x0:x1] = 255 * crop
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(folder / f"{number}.png")
            lines.append(f"{folder.name}/{number}.png {CLASSES[name]} {score:.6f}\n")
    listed = path.with_name(f"{path.name}.txt")
    write_text(listed, "".join(lines))
    return [listed]


CITYSCAPES = Format(
    name="cityscapes",
    layout="Cityscapes' gtFine/{split}/ with leftImg8bit/{split}/",
    find=find_cityscapes,
    read=read_cityscapes,
)
