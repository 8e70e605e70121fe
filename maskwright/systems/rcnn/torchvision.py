"""Faster, Mask and Keypoint R-CNN as torchvision builds them: the networks of mask_rcnn.py, other parts.

Source: torchvision's `fasterrcnn_resnet50_fpn`, `maskrcnn_resnet50_fpn` and `keypointrcnn_resnet50_fpn` (BSD 3-Clause), and the
second versions (`_v2`) of the first two, after Li et al., Benchmarking Detection Transfer Learning with Vision Transformers
(arXiv 2111.11429). Weights trained with these parts lose accuracy with others; imported checkpoints are therefore built from
them.

Differs from mask_rcnn.py: image sizes are rounded down and resized without antialiasing; anchors are rounded, and laid a
whole number of pixels apart; an object that overlaps no anchor makes all anchors without overlap positive; smooth L1 with
β = 1/9, means over the anchors sampled; 2000 training proposals; RoIAlign with 2 × 2 samples a cell, half a cell off;
tiny proposals and detections dropped; soft mask targets; masks pasted into boxes of whole pixels, one cell larger; keypoints
lie where COCO's pixel numbers are, not half a pixel further on. The second versions have a norm after every convolution of the
pyramid and of the heads, two convolutions in the RPN, and four convolutions and one hidden layer in the box head; from
torchvision, imported norms stay as they are in training too.

Legend: R RoIs of one image · C channels · M mask side · h, w a mask's window · S samples of a cell, per side.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.layers.assignment import IouMatcher, SampledMeanSampler
from maskwright.layers.backbones import Backbone
from maskwright.layers.fpn import FeaturePyramid, SubsampledLevels
from maskwright.layers.grids import RoundedAnchors
from maskwright.layers.initialization import init_normal
from maskwright.layers.norms import BranchNorm, normed_conv
from maskwright.layers.roi import RoiAlign, RoiOperator, Rois
from maskwright.structures import ImageBatch, Instances, MaskProbs, Masks
from maskwright.structures import boxes as box_functions
from maskwright.systems.rcnn.keypoints import KeypointHead, points_of
from maskwright.systems.rcnn.mask_rcnn import BoxBranch, BoxHead, FasterRCNN, MaskHead, RoiSampler
from maskwright.systems.rcnn.rpn import Features, RegionProposalNetwork
from maskwright.systems.size import Amount, Count, Share, TorchvisionInputSize, Whole, size_class
from maskwright.systems.system import Loss

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
    masks = masks.resampled()  # torchvision looks at the bitmap of the resized image
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


# The second versions


class DeeperRPN(RegionProposalNetwork):
    """A region proposal network with two convolutions.

    Args:
        channels: of the features.
        options: see `RegionProposalNetwork`.
    """

    def __init__(self, channels: int, **options: Any) -> None:
        super().__init__(channels, **options)
        first, second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        for layer in (first, second):
            init_normal(layer, std=0.01)
        self.conv = nn.Sequential(first, nn.ReLU(inplace=True), second)


class ConvBoxHead(BoxBranch):
    """Four convolutions and a hidden layer on 7×7 pooled features.

    Args:
        channels: of the features.
        hidden: units of the hidden layer.
        pool: RoIAlign to the head's grid.
        norm: after each convolution.
        options: see `BoxBranch`.
    """

    def __init__(self, channels: int, *, hidden: int, pool: RoiOperator, norm: BranchNorm, **options: Any) -> None:
        super().__init__(hidden, **options)
        self.pool = pool
        self.convs = nn.ModuleList(normed_conv(channels, channels, norm=norm) for _ in range(4))
        self.fc = nn.Linear(channels * pool.side**2, hidden)

    def vectors(self, features: Features, rois: Rois) -> Tensor:
        """What the last layers see, (R, hidden)."""
        seen: Tensor = self.pool(features, rois)  # (R, C, 7, 7)
        for conv in self.convs:
            seen = F.relu(conv(seen), inplace=True)
        return F.relu(self.fc(seen.flatten(1)), inplace=True)


class NormedMaskHead(MaskHead):
    """The usual mask head, with a norm after each of its four convolutions.

    Args:
        channels: of the features and of the hidden layers.
        norm: the norm.
        options: see `MaskHead`.
    """

    def __init__(self, channels: int, *, norm: BranchNorm, **options: Any) -> None:
        super().__init__(channels, **options)
        self.convs = nn.ModuleList(normed_conv(channels, channels, norm=norm) for _ in range(4))


# Sizes

ANCHORS = {4: (32,), 8: (64,), 16: (128,), 32: (256,), 64: (512,)}
STRIDES = (4, 8, 16, 32)


def everywhere(anchors: Tensor, size: tuple[int, int]) -> Tensor:
    """All anchors of an image, those in its padding too."""
    return torch.ones(len(anchors), dtype=torch.bool, device=anchors.device)


RPN: dict[str, Any] = {
    "anchors": RoundedAnchors(ANCHORS),
    "matcher": IouMatcher(positive=0.7, negative=0.3, rescue_above=-1.0),
    "sampler": SampledMeanSampler(256, positive_fraction=0.5),
    "box_beta": BETA,
    "min_side_px": 1e-3,
    "answered": everywhere,
}
BOXES: dict[str, Any] = {"hidden": 1024, "box_beta": BETA, "min_side_px": 1e-2}
MASKS: dict[str, Any] = {"targets": soft_mask_targets, "lay": whole_pixel_windows}


@size_class
class TorchvisionSize(TorchvisionInputSize):
    """Of both versions."""

    has_mask_head: bool
    """Whether there are masks."""
    rpn_candidates: tuple[Whole, Whole] = (2000, 0)
    """Anchors of a level that proposals are chosen from, in training and at inference; there never fewer than proposals."""
    num_training_proposals: Count = 2000
    """Proposals of an image that RoIs are drawn from."""
    num_proposals: Count = 1000
    """Proposals of an image at inference."""
    per_image: Count = 512
    """RoIs of an image that heads learn from."""
    backbone: str = "resnet50"
    """timm's name of the feature network."""
    short_px: Count | None = 800
    """Shorter side of the input, px; null keeps the image's size."""
    long_px: Count | None = 1333
    """Longer side of the input at most, px; null sets no bound."""
    max_detections: Count = 100
    """Objects answered for an image at most."""
    score_threshold: Share = 0.05
    """Scores up to it are not answered."""


@size_class
class FirstSize(TorchvisionSize):
    """Of the first versions."""

    num_keypoints: Count | None = None
    """Of the keypoint head; null for none."""
    norm_eps: Amount = 1e-5
    """Added to the variance of a frozen norm."""


@size_class
class SecondSize(TorchvisionSize):
    """Of the second versions."""

    branch_norm: BranchNorm = "group"
    """Of pyramid and heads: one that trains, or the fixed one of imported weights."""


def first_rcnn(size: FirstSize, num_classes: int) -> FasterRCNN:
    """A network of the first version."""
    backbone = Backbone(size.backbone, strides=STRIDES, norm="frozen", norm_eps=size.norm_eps)
    fpn = FeaturePyramid(backbone.channels, channels=256, coarser=SubsampledLevels(1))
    rpn = RegionProposalNetwork(256, **RPN)
    threshold = size.score_threshold
    box_head = BoxHead(256, num_classes=num_classes, pool=legacy_pool(7), score_threshold=threshold, **BOXES)
    heads: dict[str, nn.Module] = {}
    if size.has_mask_head:
        heads["mask"] = MaskHead(256, num_classes=num_classes, pool=legacy_pool(14), **MASKS)
    if size.num_keypoints is not None:
        heads["keypoint"] = KeypointHead(256, num_keypoints=size.num_keypoints, pool=legacy_pool(14))
    parts: dict[str, Any] = {"backbone": backbone, "fpn": fpn, "rpn": rpn, "box_head": box_head, "instance_heads": heads}
    return (IndexedKeypointRCNN if "keypoint" in heads else FasterRCNN)(**parts, **_numbers(size, num_classes))


def second_rcnn(size: SecondSize, num_classes: int) -> FasterRCNN:
    """A network of the second version."""
    norm, threshold = size.branch_norm, size.score_threshold
    backbone = Backbone(size.backbone, strides=STRIDES, norm="frozen")
    fpn = FeaturePyramid(backbone.channels, channels=256, coarser=SubsampledLevels(1), norm=norm)
    rpn = DeeperRPN(256, **RPN)
    box_head = ConvBoxHead(256, norm=norm, num_classes=num_classes, pool=legacy_pool(7), score_threshold=threshold, **BOXES)
    heads: dict[str, nn.Module] = {}
    if size.has_mask_head:
        heads["mask"] = NormedMaskHead(256, norm=norm, num_classes=num_classes, pool=legacy_pool(14), **MASKS)
    parts: dict[str, Any] = {"backbone": backbone, "fpn": fpn, "rpn": rpn, "box_head": box_head, "instance_heads": heads}
    return FasterRCNN(**parts, **_numbers(size, num_classes))


def legacy_pool(side: int) -> RoiAlign:
    """RoIAlign as torchvision builds it."""
    return RoiAlign(side, strides=STRIDES, sampling_ratio=2, aligned=False, level_tolerance=1e-6)


def _numbers(size: TorchvisionSize, num_classes: int) -> dict[str, Any]:
    """What both versions have beside their parts."""
    return {
        "input": size.input(),
        "roi_sampler": RoiSampler(num_classes=num_classes, per_image=size.per_image),
        "num_proposals": (size.num_training_proposals, size.num_proposals),
        "num_candidates": size.rpn_candidates,
        "max_detections": size.max_detections,
    }


FASTER = FirstSize(summary="Faster R-CNN, R50-FPN, with torchvision's parts: for weights from there.", has_mask_head=False)
MASK = FirstSize(summary="Mask R-CNN, R50-FPN, with torchvision's parts: for weights from there.", has_mask_head=True)
KEYPOINT = FirstSize(
    summary="Keypoint R-CNN, R50-FPN, with torchvision's parts: for weights from there.", has_mask_head=False, num_keypoints=17
)
FASTER_V2 = SecondSize(
    summary="Faster R-CNN, R50-FPN, with the parts of torchvision's second version: for weights from there.",
    has_mask_head=False,
)
MASK_V2 = SecondSize(
    summary="Mask R-CNN, R50-FPN, with the parts of torchvision's second version: for weights from there.", has_mask_head=True
)
