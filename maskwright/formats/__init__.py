"""From files to a data set and back."""

from maskwright.formats.catalog import open_datasets, split_dataset
from maskwright.formats.coco import read_coco
from maskwright.formats.coco_results import to_coco_results
from maskwright.formats.dataset import Dataset, Sample
from maskwright.formats.files import atomic_write
from maskwright.formats.images import read_image

__all__ = [
    "Dataset",
    "Sample",
    "atomic_write",
    "open_datasets",
    "read_coco",
    "read_image",
    "split_dataset",
    "to_coco_results",
]
