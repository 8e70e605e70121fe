"""Faster, Mask and Keypoint R-CNN as torchvision builds them: the networks of mask_rcnn.py, other parts.

Source: torchvision's `fasterrcnn_resnet50_fpn`, `maskrcnn_resnet50_fpn` and `keypointrcnn_resnet50_fpn` (BSD 3-Clause), their
first versions. Weights trained with these parts lose accuracy with others; imported checkpoints are therefore built from them.

Differs from mask_rcnn.py: image sizes are rounded down and resized without antialiasing; anchors are rounded, and laid a
whole number of pixels apart; an object that overlaps no anchor makes all anchors without overlap positive; smooth L1 with
β = 1/9, means over the anchors sampled; 2000 training proposals; RoIAlign with 2 × 2 samples a cell, half a cell off;
tiny proposals and detections dropped; soft mask targets; masks pasted into boxes of whole pixels, one cell larger; keypoints
lie where COCO's pixel numbers are, not half a pixel further on.

Legend: R RoIs of one image · M mask side · h, w a mask's window · S samples of a cell, per side.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.layers.assignment import IouMatcher, SampledMeanSampler
from maskwright.layers.backbones import Backbone
from maskwright.layers.fpn import FeaturePyramid, SubsampledLevels
from maskwright.layers.grids import RoundedAnchors
from maskwright.layers.roi import RoiAlign
from maskwright.structures import ImageBatch, InputSpec, Instances, MaskProbs, Masks, ResizeRule
from maskwright.structures import boxes as box_functions
from maskwright.systems.rcnn.keypoints import KeypointHead, points_of
from maskwright.systems.rcnn.mask_rcnn import ANCHORS_FPN, BoxHead, FasterRCNN, MaskHead, RoiSampler
from maskwright.systems.rcnn.rpn import RegionProposalNetwork
from maskwright.systems.system import Count, Loss, Share

BETA = 1 / 9
ROUNDING = 2e-6  # more than the interpolation of a mask is off in float32
_TARGET_PX = 8 * 2**20  # mask pixels looked at in one go


def soft_mask_targets(masks: Masks, boxes: Tensor, rows: Tensor, *, side: int) -> Tensor:
    """RoIAlign of each object's mask, half a pixel off, with one sample for each pixel; not cut at one half.

    RoIAlign takes a regular grid of bilinear samples, so that it is a product of one matrix for the rows of the mask and one
    for its columns; only the pixels of the mask's window take part.

    Args:
        masks: objects of an image, input frame.
        boxes: RoIs of the image, xyxy px (R, 4).
        rows: the object of each RoI, int64 (R,).
        side: cells per side of the grid, M.

    Returns:
        float32 in [0, 1], (R, M, M).
    """
    height, width = masks.image_size
    windows = masks.windows[rows]
    spans = (windows[:, 2:] - windows[:, :2]).long()  # (R, 2): w, h
    order = torch.argsort(spans.prod(dim=1))  # RoIs of one size together, so that little is padded
    targets = boxes.new_zeros((len(boxes), side, side))
    most = int(spans.amax(dim=0).prod()) if len(spans) else 0
    for chosen in torch.split(order, max(1, _TARGET_PX // max(1, most))):
        if len(chosen) == 0:
            continue
        w, h = (int(v) for v in spans[chosen].amax(dim=0))
        if w == 0 or h == 0:
            continue
        x0, y0 = windows[chosen, 0].long(), windows[chosen, 1].long()
        across = _bin_weights(boxes[chosen, 0], boxes[chosen, 2], x0, w, size=width, bins=side)  # (n, M, w)
        down = _bin_weights(boxes[chosen, 1], boxes[chosen, 3], y0, h, size=height, bins=side)  # (n, M, h)
        pixels = masks.padded_crops(rows[chosen], (h, w)).to(boxes.dtype)  # (n, h, w)
        with torch.autocast(boxes.device.type, enabled=False):
            targets[chosen] = down @ pixels @ across.transpose(1, 2)
    return targets


def _bin_weights(low: Tensor, high: Tensor, first: Tensor, length: int, *, size: int, bins: int) -> Tensor:
    """How much each pixel of an axis counts in each cell of RoIAlign (legacy, one sample per pixel), (R, M, length).

    Args:
        low, high: of the RoIs on this axis, px, (R,).
        first: pixel the weights begin at, (R,).
        length: pixels to weigh.
        size: of the image on this axis; samples more than a pixel outside count nothing.
        bins: cells, M.
    """
    extent = (high - low).clamp(min=1)  # legacy RoIAlign: no RoI is smaller than a pixel
    samples = torch.ceil(extent / bins)  # of a cell, (R,)
    most = int(samples.max())
    s = torch.arange(most, device=low.device, dtype=low.dtype)
    m = torch.arange(bins, device=low.device, dtype=low.dtype)
    step = extent / bins
    position = low[:, None, None] + m[None, :, None] * step[:, None, None]
    position = position + (s[None, None, :] + 0.5) * (step / samples)[:, None, None]  # (R, M, S)
    counts = (s[None, :] < samples[:, None])[:, None, :] & (position >= -1) & (position <= size)
    position = position.clamp(0, size - 1)
    pixel = position.floor().long()
    fraction = position - pixel
    share = counts.to(low.dtype) / samples[:, None, None]
    weights = low.new_zeros((len(low), bins, length + 1))  # the last column takes what falls outside the window
    for index, part in ((pixel, (1 - fraction) * share), ((pixel + 1).clamp(max=size - 1), fraction * share)):
        local = index - first[:, None, None]
        local = torch.where((local >= 0) & (local < length), local, length)
        weights.scatter_add_(2, local, part)
    return weights[:, :, :length]


def whole_pixel_windows(probs: Tensor, boxes: Tensor) -> MaskProbs:
    """Grids laid over boxes as Detectron laid them: padded by a cell of zeros, the enlarged box cut to whole pixels.

    What is exactly one half falls below it, as a mask there is what exceeds one half.

    Args:
        probs: (N, M, M).
        boxes: xyxy px (N, 4).
    """
    side = probs.shape[-1]
    width, height = box_functions.sizes(boxes)
    centre = (boxes[:, :2] + boxes[:, 2:]) * 0.5
    half = torch.stack([width, height], dim=1) * 0.5 * ((side + 2) / side)
    corners = torch.cat([centre - half, centre + half], dim=1).to(torch.int64)  # towards zero
    inclusive = torch.cat([corners[:, :2], torch.maximum(corners[:, 2:], corners[:, :2]) + 1], dim=1)
    below = (probs - ROUNDING).clamp(min=0)
    return MaskProbs(F.pad(below, (1, 1, 1, 1)), inclusive.to(boxes.dtype))


class IndexedKeypointRCNN(FasterRCNN):
    """Keypoint R-CNN whose keypoints are COCO's pixel numbers taken for coordinates: on a pixel's upper left corner."""

    def loss(self, images: ImageBatch, targets: list[Instances]) -> dict[str, Loss]:
        """As in Mask R-CNN, of the keypoints half a pixel of the original image up and to the left."""
        return super().loss(images, to_corners(images, targets))

    def predict(self, images: ImageBatch) -> list[Instances]:
        """As in Mask R-CNN, the keypoints put back into the middle of their pixels."""
        return [shifted(d, 0.5, 0.5) for d in super().predict(images)]


def to_corners(images: ImageBatch, targets: list[Instances]) -> list[Instances]:
    """Targets, input frame, with keypoints half a pixel of the original image up and to the left."""
    frames = zip(targets, images.sizes, images.original_sizes, strict=True)
    return [shifted(t, -0.5 * width / wide, -0.5 * height / high) for t, (height, width), (high, wide) in frames]


def shifted(instances: Instances, x: float, y: float) -> Instances:
    """Keypoints of an image moved by px, kept inside it."""
    points = points_of(instances)
    height, width = instances.image_size
    moved = (points[..., :2] + points.new_tensor([x, y])).clamp(min=0)
    return instances.with_keypoints(
        torch.cat([torch.minimum(moved, moved.new_tensor([width, height])), points[..., 2:]], dim=-1)
    )


# Sizes


STRIDES = (4, 8, 16, 32)


RPN: dict[str, Any] = {
    "anchors": RoundedAnchors(ANCHORS_FPN),
    "matcher": IouMatcher(positive=0.7, negative=0.3, rescue_above=-1.0),
    "sampler": SampledMeanSampler(256, positive_fraction=0.5),
    "box_beta": BETA,
    "min_side_px": 1e-3,
}
BOXES = {"box_beta": BETA, "min_side_px": 1e-2}
MASKS: dict[str, Any] = {"targets": soft_mask_targets, "lay": whole_pixel_windows}


def legacy_pool(side: int) -> RoiAlign:
    """RoIAlign as torchvision builds it."""
    return RoiAlign(side, strides=STRIDES, sampling_ratio=2, aligned=False, level_tolerance=1e-6)


def torchvision_parts(
    *, num_classes: int, norm_eps: float, num_proposals: int, score_threshold: float, short_px: int, long_px: int
) -> dict[str, Any]:
    """All of the networks but their instance heads."""
    body = Backbone("resnet50", strides=STRIDES, norm="frozen", norm_eps=norm_eps)
    return {
        "input": InputSpec(resize=ResizeRule(short_px, long_px, rounding="floor", antialias=False)),
        "backbone": body,
        "fpn": FeaturePyramid(body.channels, channels=256, coarser=SubsampledLevels(1)),
        "rpn": RegionProposalNetwork(256, **RPN),
        "roi_sampler": RoiSampler(num_classes=num_classes, per_image=512),
        "box_head": BoxHead(
            256, hidden=1024, num_classes=num_classes, pool=legacy_pool(7), score_threshold=score_threshold, **BOXES
        ),
        "num_proposals": num_proposals,
        "num_training_proposals": 2000,
        "num_candidates": (2000, 0),
    }


def _torchvision_rcnn(*, has_masks: bool, summary: str) -> Callable[..., FasterRCNN]:
    """Builder of boxes, or of boxes and masks."""

    def build(
        *,
        num_classes: int,
        norm_eps: float = 1e-5,
        max_detections: Count = 100,
        num_proposals: Count = 1000,
        score_threshold: Share = 0.05,
        short_px: Count = 800,
        long_px: Count = 1333,
    ) -> FasterRCNN:
        parts = torchvision_parts(
            num_classes=num_classes,
            norm_eps=norm_eps,
            num_proposals=num_proposals,
            score_threshold=score_threshold,
            short_px=short_px,
            long_px=long_px,
        )
        mask = MaskHead(256, num_classes=num_classes, pool=legacy_pool(14), **MASKS)
        return FasterRCNN(**parts, instance_heads={"mask": mask} if has_masks else {}, max_detections=max_detections)

    build.__doc__ = summary
    return build


faster_rcnn_r50_fpn_torchvision = _torchvision_rcnn(
    has_masks=False, summary="Faster R-CNN, R50-FPN, with torchvision's parts: for weights from there."
)
mask_rcnn_r50_fpn_torchvision = _torchvision_rcnn(
    has_masks=True, summary="Mask R-CNN, R50-FPN, with torchvision's parts: for weights from there."
)


def keypoint_rcnn_r50_fpn_torchvision(
    *,
    num_classes: int,
    num_keypoints: Count = 17,
    norm_eps: float = 1e-5,
    max_detections: Count = 100,
    num_proposals: Count = 1000,
    score_threshold: Share = 0.05,
    short_px: Count = 800,
    long_px: Count = 1333,
) -> FasterRCNN:
    """Keypoint R-CNN, R50-FPN, with torchvision's parts: for weights from there."""
    parts = torchvision_parts(
        num_classes=num_classes,
        norm_eps=norm_eps,
        num_proposals=num_proposals,
        score_threshold=score_threshold,
        short_px=short_px,
        long_px=long_px,
    )
    head = KeypointHead(256, num_keypoints=num_keypoints, pool=legacy_pool(14))
    return IndexedKeypointRCNN(**parts, instance_heads={"keypoint": head}, max_detections=max_detections)
