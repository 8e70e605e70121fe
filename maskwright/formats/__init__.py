"""From files to a data set and back."""

from maskwright.formats.builder import (
    Box,
    DatasetBuilder,
    ObjectRecord,
    mask_of_polygons,
    mask_of_rle,
    mask_of_runs,
)
from maskwright.formats.catalog import open_datasets, split_dataset
from maskwright.formats.coco import read_coco
from maskwright.formats.coco_results import to_coco_results
from maskwright.formats.dataset import Categories, Dataset, Sample
from maskwright.formats.files import atomic_write
from maskwright.formats.format import Format, Source
from maskwright.formats.images import read_image

__all__ = [
    "Box",
    "Categories",
    "Dataset",
    "DatasetBuilder",
    "Format",
    "ObjectRecord",
    "Sample",
    "Source",
    "atomic_write",
    "mask_of_polygons",
    "mask_of_rle",
    "mask_of_runs",
    "open_datasets",
    "read_coco",
    "read_image",
    "split_dataset",
    "to_coco_results",
]
