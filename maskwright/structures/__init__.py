"""What flows through the workbench: images, boxes, masks and keypoints of one image or one batch."""

from maskwright.structures.images import ImageBatch, InputSpec, Intensity, ResizeRule
from maskwright.structures.instances import Instances
from maskwright.structures.keypoints import COCO_PERSON, KeypointSchema
from maskwright.structures.mask_probs import MaskProbs, MaskTiles
from maskwright.structures.masks import Masks
from maskwright.structures.patches import PatchBatch, PatchGeometry, PatchKind

__all__ = [
    "COCO_PERSON",
    "ImageBatch",
    "InputSpec",
    "Instances",
    "Intensity",
    "KeypointSchema",
    "MaskProbs",
    "MaskTiles",
    "Masks",
    "PatchBatch",
    "PatchGeometry",
    "PatchKind",
    "ResizeRule",
]
