"""Faster and Mask R-CNN in torchvision's second versions: the parts of torchvision_rcnn.py, deeper heads and more norms.

Source: torchvision's `fasterrcnn_resnet50_fpn_v2` and `maskrcnn_resnet50_fpn_v2` (BSD 3-Clause), after Li et al., Benchmarking
Detection Transfer Learning with Vision Transformers (arXiv 2111.11429).

Differs from torchvision_rcnn.py: a norm after every convolution of the pyramid and of the heads; two convolutions in the RPN;
four convolutions and one hidden layer in the box head. From torchvision: imported norms stay as they are in training too.

Legend: R RoIs of one image · C channels · K classes.
"""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.layers.fpn import FeaturePyramid, SubsampledLevels
from maskwright.layers.initialization import init_normal
from maskwright.layers.norms import BranchNorm, normed_conv
from maskwright.layers.roi import RoiOperator, Rois
from maskwright.systems.rcnn.mask_rcnn import BoxBranch, FasterRCNN, MaskHead
from maskwright.systems.rcnn.rpn import Features, RegionProposalNetwork
from maskwright.systems.rcnn.torchvision import BOXES, MASKS, RPN, legacy_pool, torchvision_parts
from maskwright.systems.system import Count, Share


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


def _second_rcnn(*, has_masks: bool, summary: str) -> Callable[..., FasterRCNN]:
    """Builder of boxes, or of boxes and masks."""

    def build(
        *,
        num_classes: int,
        branch_norm: BranchNorm = "group",
        max_detections: Count = 100,
        num_proposals: Count = 1000,
        score_threshold: Share = 0.05,
        short_px: Count = 800,
        long_px: Count = 1333,
    ) -> FasterRCNN:
        parts = torchvision_parts(
            num_classes=num_classes,
            norm_eps=1e-5,
            num_proposals=num_proposals,
            score_threshold=score_threshold,
            short_px=short_px,
            long_px=long_px,
        )
        parts["fpn"] = FeaturePyramid(parts["backbone"].channels, channels=256, coarser=SubsampledLevels(1), norm=branch_norm)
        parts["rpn"] = DeeperRPN(256, **RPN)
        parts["box_head"] = ConvBoxHead(
            256,
            hidden=1024,
            pool=legacy_pool(7),
            norm=branch_norm,
            num_classes=num_classes,
            score_threshold=score_threshold,
            **BOXES,
        )
        mask = NormedMaskHead(256, norm=branch_norm, num_classes=num_classes, pool=legacy_pool(14), **MASKS)
        return FasterRCNN(**parts, instance_heads={"mask": mask} if has_masks else {}, max_detections=max_detections)

    build.__doc__ = summary
    return build


faster_rcnn_r50_fpn_torchvision_v2 = _second_rcnn(
    has_masks=False, summary="Faster R-CNN, R50-FPN, with the parts of torchvision's second version: for weights from there."
)
mask_rcnn_r50_fpn_torchvision_v2 = _second_rcnn(
    has_masks=True, summary="Mask R-CNN, R50-FPN, with the parts of torchvision's second version: for weights from there."
)
