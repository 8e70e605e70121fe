"""What lies in a folder or file: the only module that knows all formats.

Ours are listed here. Another package adds its own, a `Format`, under the entry point group `maskwright.formats`; it is asked
after ours, so that a folder that was understood before stays understood.
"""

from collections.abc import Iterator, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Literal

import numpy as np

from maskwright.formats.builder import Invalid
from maskwright.formats.cityscapes import CITYSCAPES
from maskwright.formats.coco import COCO
from maskwright.formats.dataset import Dataset
from maskwright.formats.format import Format, Source, Split
from maskwright.formats.voc import SBD, VOC

FORMATS: tuple[Format, ...] = (COCO, VOC, SBD, CITYSCAPES)
"""Ours, in the order in which a folder is tried."""
ENTRY_POINTS = "maskwright.formats"
"""The group under which other packages register theirs."""


def all_formats() -> Iterator[Format]:
    """Ours, then those of other packages, which are imported only if it comes to that."""
    yield from FORMATS
    yield from foreign_formats()


def foreign_formats() -> tuple[Format, ...]:
    """The formats that other packages brought, by name.

    Raises:
        ValueError: one that cannot be used; the message names its package.
    """
    found: list[Format] = []
    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name):
        form = _load(point)
        if form.name in {other.name for other in (*FORMATS, *found)}:
            raise ValueError(f"{_words(point)} is called {form.name}, as another format is: update or uninstall that package")
        found.append(form)
    return tuple(found)


def _load(point: EntryPoint) -> Format:
    """What an entry point stands for."""
    try:
        found = point.load()
    except Exception as error:  # whatever a foreign module raises
        raise ValueError(f"{_words(point)} cannot be imported ({error!r}): update or uninstall that package") from None
    if not isinstance(found, Format):
        raise ValueError(
            f"{_words(point)} is {found!r}, expected a maskwright.formats.Format: update or uninstall that package"
        )
    return found


def _words(point: EntryPoint) -> str:
    package = point.dist.name if point.dist is not None else point.module
    return f"the format {point.name} of the package {package} ({point.value})"


def find_split(data: Path, split: Split, *, keypoints: bool = False) -> tuple[Format, Source] | None:
    """The files of a split in a folder, and whose they are; None where no format has such a layout.

    Args:
        keypoints: whether annotations of keypoints are taken first, where there is a choice.
    """
    for form in all_formats():
        source = form.find(data, split, keypoints=keypoints)
        if source is not None:
            return form, source
    return None


def format_of_file(path: Path) -> Format:
    """What a single annotation file is; COCO where nobody else claims it."""
    return next((form for form in all_formats() if form.owns_file and form.owns_file(path)), COCO)


def _layouts(split: Split) -> str:
    """What folders may look like, in words."""
    words = [form.layout.replace("{split}", split) for form in all_formats()]
    return f"{', '.join(words[:-1])}, or {words[-1]}"


def open_split(
    data: Path,
    split: Split,
    *,
    images: Path | None = None,
    classes: Sequence[str] | None = None,
    invalid: Invalid = "stop",
    needs_images: bool = True,
    keypoints: bool = False,
) -> Dataset:
    """One split of a folder, or a single annotation file with its image folder; see `find_split`.

    Raises:
        ValueError: nothing that looks like a data set; the message lists the layouts understood.
    """
    if data.is_file():
        if images is None and needs_images:
            raise ValueError(f"{data}: an annotation file needs the folder of its images: add --images DIR")
        form, source = format_of_file(data), Source(data, images or data.parent)
    elif data.is_dir():
        if images is not None:
            raise ValueError(f"{data}: a folder brings its own images: leave --images away, or give one annotation file")
        found = find_split(data, split, keypoints=keypoints)
        if found is None:
            raise ValueError(
                f"{data}: found no {split} annotations; expected {_layouts(split)}; "
                "or give one annotation file with --images DIR"
            )
        form, source = found
    else:
        raise ValueError(f"{data}: there is no such file or folder")
    if needs_images and not source.images.is_dir():
        raise ValueError(f"{source.images}: there is no such image folder (for {source.annotations})")
    return form.read(source.annotations, source.images, classes=classes, invalid=invalid)


def open_datasets(
    data: Path,
    *,
    images: Path | None = None,
    val_fraction: float | None = None,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    invalid: Invalid = "stop",
    keypoints: bool = False,
) -> tuple[Dataset, Dataset]:
    """Training and validation sets: the folder's own splits, or one file divided by a seeded draw.

    Raises:
        ValueError: a split is missing, there twice, or both hold the same image.
    """
    if val_fraction is None and data.is_file():
        raise ValueError(f"{data}: one annotation file has no validation split: add --val-fraction 0.2")
    if val_fraction is not None and data.is_dir() and find_split(data, "val", keypoints=keypoints) is not None:
        raise ValueError(f"{data}: has a validation split of its own: leave --val-fraction away, or give one annotation file")
    train = open_split(data, "train", images=images, classes=classes, invalid=invalid, keypoints=keypoints)
    if val_fraction is not None:
        return split_dataset(train, val_fraction, seed)
    val = open_split(data, "val", classes=classes, invalid=invalid, keypoints=keypoints)
    shared = {train.image_path(i) for i in range(len(train))} & {val.image_path(i) for i in range(len(val))}
    if shared:
        raise ValueError(
            f"{val.path}: {len(shared)} images are in the training split too, for example {min(shared)}: part them"
        )
    if (train.categories.names, train.categories.ids) != (val.categories.names, val.categories.ids):
        raise ValueError(
            f"{val.path}: its categories differ from those of {train.path}: "
            f"{dict(zip(val.categories.ids, val.categories.names, strict=True))} and "
            f"{dict(zip(train.categories.ids, train.categories.names, strict=True))}; make them equal, or name --classes"
        )
    return train, val


def images_to_learn_from(dataset: Dataset, what: Literal["all", "objects", "keypoints"]) -> list[int]:
    """The images with something to learn from: any, an object that is no crowd, or one with a visible keypoint.

    Raises:
        ValueError: there is none.
    """
    if what == "all":
        return list(range(len(dataset)))
    found: list[int] = np.flatnonzero(dataset.num_objects(with_keypoints=what == "keypoints")).tolist()
    if not found:
        raise ValueError(f"{dataset.path}: no training image has {what}: annotate some, or learn from all, --set train_on=all")
    return found


def split_dataset(dataset: Dataset, val_fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Divide a data set by a seeded draw over its image ids, whatever their order in the file."""
    if not 0 < val_fraction < 1 or len(dataset) < 2:
        raise ValueError(
            f"got val_fraction {val_fraction} of {len(dataset)} images, expected a share between 0 and 1 of two or more"
        )
    order = np.argsort(dataset.image_ids)
    drawn = order[np.random.default_rng(seed).permutation(len(order))]
    count = min(max(1, round(val_fraction * len(drawn))), len(drawn) - 1)
    return dataset.subset(sorted(drawn[count:].tolist())), dataset.subset(sorted(drawn[:count].tolist()))
