"""What a format says of itself, so that data sets are found and read without anybody knowing all formats but the catalog."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from maskwright.formats.builder import Invalid
from maskwright.formats.dataset import Dataset

Split = Literal["train", "val"]


@dataclass(frozen=True)
class Source:
    """Where the annotations of a split are, a file or a folder, and the folder its images lie in."""

    annotations: Path
    images: Path


class Finder(Protocol):
    """Looks for a split in a folder."""

    def __call__(self, data: Path, split: Split, *, keypoints: bool) -> Source | None:
        """Its files; None where the folder has another layout. `keypoints`: whether to prefer annotations of them."""


class Reader(Protocol):
    """Reads annotations, through a `DatasetBuilder`."""

    def __call__(
        self, path: Path, image_folder: Path, *, classes: Sequence[str] | None = None, invalid: Invalid = "stop"
    ) -> Dataset:
        """The data set; a `ValueError` names the file, the place in it and what to do."""


@dataclass(frozen=True)
class Format:
    """A format of annotations.

    Args:
        name: for people, as in "coco".
        layout: what its folders look like, for messages, with {split} for the split's name.
        find: looks for a split in a folder.
        read: reads what was found, or one file.
        owns_file: whether a single file is of this format; None where single files are not.
    """

    name: str
    layout: str
    find: Finder
    read: Reader
    owns_file: Callable[[Path], bool] | None = None
