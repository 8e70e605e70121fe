"""From what a reader finds in files to a `Dataset`: the checks, choices and messages all formats share.

A reader lists images, then objects; what is wrong with one of them is noted, and stops the reading at the end or leaves it out:

    builder = DatasetBuilder(path, image_folder, Categories(names, ids), classes=classes, invalid=invalid)
    with builder.noting("image 1"):
        builder.add_image(1, "a.png", (480, 640))
    with builder.noting("annotation 7"):
        place = builder.admit(7, image_id=1, category_id=3)
        if place is not None:
            builder.add(place, ObjectRecord(mask=mask_of_polygons([[10, 10, 50, 10, 50, 40]], place.size)))
    dataset = builder.build()
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from maskwright.formats.dataset import Categories, Columns, Dataset
from maskwright.formats.packing import Form, PackedMask, PackedMasks
from maskwright.structures import KeypointSchema, rle

MAX_PROBLEMS_SHOWN = 10

Invalid = Literal["stop", "skip"]
"""Whether a bad entry stops the reading, or is left out and listed in `Dataset.problems`."""


class Box(NamedTuple):
    """Where an object is, px, as it was annotated."""

    left: float
    top: float
    width: float
    height: float

    def touches(self, size: tuple[int, int]) -> bool:
        """Whether it has an extent, and some part in an image of (height, width)."""
        inside = self.left < size[1] and self.top < size[0] and self.left + self.width > 0 and self.top + self.height > 0
        return self.width > 0 and self.height > 0 and inside


@dataclass(frozen=True, slots=True)
class ObjectMask:
    """A mask that was checked against its image; see `mask_of_polygons`, `mask_of_rle` and `mask_of_runs`.

    Args:
        packed: as it is kept.
        box: what it spans inside the image.
        area: its pixels, where they were counted along the way.
    """

    packed: PackedMask
    box: Box
    area: float | None


@dataclass(frozen=True, slots=True)
class ObjectRecord:
    """An object as a file describes it.

    Args:
        box: by default that of the mask.
        area: px²; by default the pixels of the mask, or what the box covers.
        is_crowd: whether it is a group or region that is neither found nor missed.
        keypoints: (J, 3), pixel corners; by default none is labelled.
    """

    mask: ObjectMask | None = None
    box: Box | None = None
    area: float | None = None
    is_crowd: bool = False
    keypoints: npt.NDArray[np.float32] | None = None


class Place(NamedTuple):
    """Where an object that was admitted belongs: its id, the number and (height, width) of its image, and its label."""

    id: int
    image: int
    size: tuple[int, int]
    label: int


class DatasetBuilder:
    """Collects the images and objects of one split.

    Args:
        path: the annotations, for messages.
        image_folder: what file names are relative to.
        categories: all classes the files know, with the keypoints of those that are chosen.
        classes: names to keep, in this order; by default all.
        invalid: what becomes of bad entries.

    Raises:
        ValueError: classes that are doubled, or not there.
    """

    def __init__(
        self,
        path: Path,
        image_folder: Path,
        categories: Categories,
        *,
        classes: Sequence[str] | None = None,
        invalid: Invalid = "stop",
    ) -> None:
        self.path = path
        self.image_folder = image_folder
        self.categories = choose_classes(path, categories, classes)
        self.problems: list[str] = []
        self.invalid = invalid
        self._known = set(categories.ids)
        self._label_of = {category_id: label for label, category_id in enumerate(self.categories.ids)}
        self._images: dict[int, tuple[int, str, tuple[int, int]]] = {}
        self._seen: set[int] = set()
        self._rows = _Rows(self.categories.keypoints)

    @contextmanager
    def noting(self, what: str) -> Iterator[None]:
        """Note what is wrong with an entry, called `what` in messages, and go on."""
        try:
            yield
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            said = f"the key {error} is missing" if isinstance(error, KeyError) else str(error)
            self.problems.append(f"{what}: {said}")

    def add_image(self, image_id: int, file_name: str, size: tuple[int, int]) -> None:
        """An image, by its path relative to the image folder.

        Raises:
            ValueError: a path that leaves the folder, or an id that stands twice.
        """
        parts = PurePosixPath(file_name.replace("\\", "/"))
        if not parts.name or parts.is_absolute() or ".." in parts.parts or ":" in parts.parts[0]:
            raise ValueError(f"file name {file_name!r} leaves the image folder: give it relative to that folder")
        if image_id in self._images:
            raise ValueError("the id stands twice: make image ids unique")
        self._images[image_id] = (len(self._images), str(parts), rle.check_size(size))

    @property
    def num_images(self) -> int:
        """Images so far."""
        return len(self._images)

    def admit(self, object_id: int, *, image_id: int, category_id: int) -> Place | None:
        """Where an object belongs, which `add` wants to know; None for a class that was not chosen.

        Raises:
            ValueError: an id that stands twice, or an image or class that is not listed.
        """
        if object_id in self._seen:
            raise ValueError("the id stands twice: make annotation ids unique")
        self._seen.add(object_id)
        if image_id not in self._images:
            raise ValueError(f"image_id {image_id} is not among 'images': remove it or add the image")
        if category_id not in self._known:
            raise ValueError(f"category_id {category_id} is not among 'categories': remove it or add the category")
        if category_id not in self._label_of:
            return None
        number, _, size = self._images[image_id]
        return Place(object_id, number, size, self._label_of[category_id])

    def add(self, place: Place, record: ObjectRecord) -> None:
        """An object.

        Raises:
            ValueError: it has neither box nor mask, lies outside its image, or has an impossible area.
        """
        mask, area = record.mask, record.area
        if record.box is not None:
            box = record.box
            if not box.touches(place.size):
                shown = f"({box.left:g}, {box.top:g}) of {box.width:g} x {box.height:g} px"
                raise ValueError(f"the box at {shown} is empty or outside the image of {_px(place.size)}: remove it")
        elif mask is not None:
            box = mask.box
        else:
            raise ValueError("has neither a box nor a mask")
        if area is None:
            area = box.width * box.height if mask is None else _area(mask, place.size)
        if not np.isfinite(area) or area < 0:
            raise ValueError(f"area is {area}, expected a number of px² that is not negative")
        self._rows.append(place, record, box, area)

    def add_counted(self, file_name: str, size: tuple[int, int], objects: Iterable[tuple[int, ObjectRecord]]) -> None:
        """An image with its (class id, object) pairs, of a format that numbers neither: both are counted from 1."""
        image_id = len(self._images) + 1
        with self.noting(f"image {image_id}"):
            self.add_image(image_id, file_name, size)
        for category_id, record in objects:
            object_id = len(self._seen) + 1
            with self.noting(f"annotation {object_id}"):
                place = self.admit(object_id, image_id=image_id, category_id=category_id)
                if place is not None:
                    self.add(place, record)

    def build(self) -> Dataset:
        """The data set.

        Raises:
            ValueError: no images; or bad entries, where these shall stop the reading.
        """
        if not self._images and not self.problems:
            raise ValueError(f"{self.path}: there are no images: list one at least")
        if self.problems and self.invalid == "stop":
            raise ValueError(_problem_message(self.path, self.problems))
        return Dataset(
            path=self.path,
            image_folder=self.image_folder,
            categories=self.categories,
            image_ids=np.array(list(self._images), dtype=np.int64),
            sizes=np.array([size for _, _, size in self._images.values()], dtype=np.int32).reshape(-1, 2),
            file_names=[name for _, name, _ in self._images.values()],
            columns=self._rows.pack(len(self._images)),
            problems=self.problems,
        )


class _Rows:
    """Objects in columns that grow."""

    def __init__(self, schema: KeypointSchema | None) -> None:
        self.num_joints = len(schema.names) if schema else 0
        self.images, self.ids, self.labels = array("q"), array("q"), array("i")
        self.boxes, self.areas, self.crowds, self.keypoints = array("d"), array("d"), array("B"), array("f")
        self.forms, self.lengths, self.masks = array("B"), array("q"), bytearray()

    def append(self, place: Place, record: ObjectRecord, box: Box, area: float) -> None:
        """One more."""
        self.images.append(place.image)
        self.ids.append(place.id)
        self.labels.append(place.label)
        self.boxes.extend(box)
        self.areas.append(area)
        self.crowds.append(record.is_crowd)
        if self.num_joints:
            points = np.zeros((self.num_joints, 3)) if record.keypoints is None else record.keypoints
            self.keypoints.extend(points.reshape(-1).tolist())
        data = b"" if record.mask is None else record.mask.packed.data
        self.forms.append(Form.NOTHING if record.mask is None else record.mask.packed.form)
        self.lengths.append(len(data))
        self.masks += data

    def pack(self, num_images: int) -> Columns:
        """All of them, grouped by image, within an image as they came."""
        image = np.array(self.images, dtype=np.int64)
        boxes = np.array(self.boxes, dtype=np.float64).reshape(-1, 4)
        columns = Columns(
            image_starts=np.cumsum([0, *np.bincount(image, minlength=num_images)]),
            ids=np.array(self.ids, dtype=np.int64),
            corners=boxes[:, :2].copy(),
            extents=boxes[:, 2:].copy(),
            labels=np.array(self.labels, dtype=np.int32),
            areas=np.array(self.areas, dtype=np.float64),
            is_crowd=np.array(self.crowds, dtype=bool),
            keypoints=np.array(self.keypoints, dtype=np.float32).reshape(len(image), self.num_joints, 3),
            masks=PackedMasks(
                forms=np.array(self.forms, dtype=np.uint8),
                starts=np.cumsum([0, *self.lengths]),
                data=np.frombuffer(self.masks, dtype=np.uint8).copy(),
            ),
        )
        if (np.diff(image) >= 0).all():
            return columns
        return columns.take(np.argsort(image, kind="stable"), columns.image_starts)


def choose_classes(path: Path, categories: Categories, classes: Sequence[str] | None) -> Categories:
    """The classes in use, in the order they were asked for; by default all.

    Raises:
        ValueError: names or ids that stand twice, or classes that are not there.
    """
    names = categories.names
    for what, values in (("id", [str(i) for i in categories.ids]), ("name", names)):
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            raise ValueError(f"{path}: category {what} {', '.join(twice)} stands twice: make them unique")
    if classes is None:
        return categories
    if not classes or len(set(classes)) != len(classes):
        raise ValueError(f"got classes {', '.join(classes) or 'none'}: name each class once, and at least one")
    unknown = [name for name in classes if name not in names]
    if unknown:
        raise ValueError(f"{path}: no class is named {', '.join(unknown)}; there are {', '.join(names)}")
    return Categories(tuple(classes), tuple(categories.ids[names.index(name)] for name in classes), categories.keypoints)


def _problem_message(path: Path, problems: Sequence[str]) -> str:
    shown = "\n  ".join(problems[:MAX_PROBLEMS_SHOWN])
    more = f"\n  and {len(problems) - MAX_PROBLEMS_SHOWN} more" if len(problems) > MAX_PROBLEMS_SHOWN else ""
    return f"{path}: {len(problems)} bad entries; correct them, or leave them out with --skip-invalid:\n  {shown}{more}"


# Masks


def mask_of_polygons(polygons: Sequence[Any], size: tuple[int, int]) -> ObjectMask:
    """Of the parts [x1, y1, x2, y2, …] of an object, px, in an image of (height, width).

    Raises:
        ValueError: a part that is no polygon, or an object that lies outside the image.
    """
    rings = [rle.check_polygon(part) for part in polygons]
    vertices = np.concatenate(rings)
    (left, top), (right, bottom) = vertices.min(axis=0).tolist(), vertices.max(axis=0).tolist()
    height, width = size
    if right <= 0 or bottom <= 0 or left >= width or top >= height:
        raise ValueError(f"the polygon lies outside the image of {_px(size)}: remove it or correct the image size")
    if max(-left, -top, right - width, bottom - height) > max(size):
        raise ValueError(f"the polygon reaches to ({right:g}, {bottom:g}), far outside the image of {_px(size)}")
    left, top = max(left, 0.0), max(top, 0.0)
    return ObjectMask(PackedMask.of_rings(rings), Box(left, top, min(right, width) - left, min(bottom, height) - top), None)


def mask_of_rle(encoded: dict[str, Any], size: tuple[int, int]) -> ObjectMask:
    """Of run lengths {"size": [height, width], "counts": …}, down the columns, off first, listed or compressed.

    Raises:
        ValueError: run lengths that are damaged, of another image, or empty.
    """
    counts, given = rle.counts_from_coco(encoded, size), encoded["counts"]
    packed = PackedMask.of_text(given) if isinstance(given, (str, bytes)) else PackedMask.of_counts(counts)
    return _mask_of(rle.counts_to_runs(counts), packed, size)


def mask_of_runs(runs: rle.Runs, size: tuple[int, int]) -> ObjectMask:
    """Of runs of pixels, as a map of objects gives them.

    Raises:
        ValueError: there are none.
    """
    return _mask_of(runs, PackedMask.of_runs(runs, size), size)


def _px(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} px"


def _mask_of(runs: rle.Runs, packed: PackedMask, size: tuple[int, int]) -> ObjectMask:
    x0, y0, x1, y1 = rle.window_of_runs(runs, size)
    if x1 == 0:
        raise ValueError("the mask is empty: remove the annotation")
    return ObjectMask(packed, Box(x0, y0, x1 - x0, y1 - y0), float((runs[1] - runs[0]).sum()))


def _area(mask: ObjectMask, size: tuple[int, int]) -> float:
    """Pixels of a mask."""
    if mask.area is not None:
        return mask.area
    starts, ends = mask.packed.runs(size)
    return float((ends - starts).sum())


# Values


def integer(value: Any, name: str) -> int:
    """A whole number that is not negative, as ids and sizes are; 3.0 will do."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ValueError(f"{name} is {value!r}, expected a whole number from 0 on")
    return value


def number(value: Any, name: str) -> float:
    """A finite number."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not np.isfinite(value):
        raise ValueError(f"{name} holds {value!r}, expected finite numbers")
    return float(value)


def text(value: Any, name: str) -> str:
    """A text that can be shown on one line."""
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError(f"{name} is {value!r}, expected a text")
    return value
