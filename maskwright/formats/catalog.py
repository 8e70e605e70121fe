"""Finding data sets on disk: which annotation file, which image folder, which split."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from maskwright.formats.cityscapes import MAPS, read_cityscapes
from maskwright.formats.coco import parse_coco
from maskwright.formats.dataset import Dataset
from maskwright.formats.files import read_json
from maskwright.formats.voc import read_sbd, read_voc

_SPLIT_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation")}
_VOC_FOLDERS = (".", "VOC2012", "VOCdevkit/VOC2012")


@dataclass(frozen=True)
class Source:
    """One annotation file, or a folder of them, with the folder its images lie in, and what reads it as COCO annotations."""

    annotations: Path
    images: Path
    read: Callable[[Path], Any] = read_json


def find_split(data: Path, split: Literal["train", "val"], *, keypoints: bool = False) -> Source | None:
    """The files of a split in a folder, in one of the layouts people have; None where there is none.

    Layouts: `images/ + annotations/train.json`, COCO 2017 and 2014 (`annotations/instances_train2017.json` + `train2017/`),
    Roboflow (`train/_annotations.coco.json`, images beside it), VOC 2012 (`ImageSets/Segmentation/train.txt`), SBD
    (`train.txt` beside `inst/`, `cls/` and `img/`), and Cityscapes (`gtFine/train/` and `leftImg8bit/train/`).

    Args:
        keypoints: whether COCO's `person_keypoints_train2017.json` is taken first, where there is one.
    """
    names = ("person_keypoints", "instances") if keypoints else ("instances", "person_keypoints")
    for name in _SPLIT_NAMES[split]:
        plain = data / "annotations" / f"{name}.json"
        if plain.is_file():
            return Source(plain, data / "images")
        for what, year in itertools.product(names, ("2017", "2014")):
            coco = data / "annotations" / f"{what}_{name}{year}.json"
            if coco.is_file():
                folder = data / f"{name}{year}"
                return Source(coco, folder if folder.is_dir() else data / "images" / f"{name}{year}")
        roboflow = data / name / "_annotations.coco.json"
        if roboflow.is_file():
            return Source(roboflow, data / name)
    for place in _VOC_FOLDERS:
        voc = data / place / "ImageSets" / "Segmentation" / f"{split}.txt"
        if voc.is_file():
            return Source(voc, data / place / "JPEGImages", read_voc)
    sbd = data / f"{split}.txt"
    if sbd.is_file() and (data / "inst").is_dir():
        return Source(sbd, data / "img", read_sbd)
    maps = data / MAPS / split
    return Source(maps, data / "leftImg8bit" / split, read_cityscapes) if maps.is_dir() else None


def open_split(
    data: Path,
    split: Literal["train", "val"],
    *,
    images: Path | None = None,
    classes: Sequence[str] | None = None,
    invalid: Literal["stop", "skip"] = "stop",
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
        source: Source | None = Source(data, images or data.parent)
    elif data.is_dir():
        if images is not None:
            raise ValueError(f"{data}: a folder brings its own images: leave --images away, or give one annotation file")
        source = find_split(data, split, keypoints=keypoints)
    else:
        raise ValueError(f"{data}: there is no such file or folder")
    if source is None:
        raise ValueError(
            f"{data}: found no {split} annotations; expected annotations/{split}.json with images/, "
            f"annotations/instances_{split}2017.json (or person_keypoints_{split}2017.json) with {split}2017/, "
            f"{split}/_annotations.coco.json, VOC's ImageSets/Segmentation/{split}.txt, SBD's {split}.txt with inst/, or "
            f"Cityscapes' gtFine/{split}/ with leftImg8bit/{split}/; or give one annotation file with --images DIR"
        )
    if needs_images and not source.images.is_dir():
        raise ValueError(f"{source.images}: there is no such image folder (for {source.annotations})")
    data_read = source.read(source.annotations)
    return parse_coco(data_read, source.annotations, source.images, classes=classes, invalid=invalid)


def open_datasets(
    data: Path,
    *,
    images: Path | None = None,
    val_fraction: float | None = None,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    invalid: Literal["stop", "skip"] = "stop",
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
    found = []
    for i in range(len(dataset)):
        columns = dataset.columns(i)
        is_taught = ~columns.is_crowd
        if what == "keypoints":
            is_taught &= (columns.keypoints[:, :, 2] > 0).any(axis=1)
        if is_taught.any():
            found.append(i)
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
