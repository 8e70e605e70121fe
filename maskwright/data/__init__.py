"""From files to batches and back."""

from maskwright.data.catalog import open_datasets, split_dataset
from maskwright.data.coco import CocoDataset, Sample, read_coco
from maskwright.data.coco_results import to_coco_results
from maskwright.data.files import atomic_write
from maskwright.data.images import read_image

__all__ = [
    "CocoDataset",
    "Sample",
    "atomic_write",
    "open_datasets",
    "read_coco",
    "read_image",
    "split_dataset",
    "to_coco_results",
]
