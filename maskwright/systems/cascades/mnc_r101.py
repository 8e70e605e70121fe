"""MNC on ResNet-101, as it won COCO 2015: a reconstruction, as little of it was published.

Source: MNC (arXiv 1512.04412), sec. 7.2; that features are those of the fourth stage, Mask R-CNN (arXiv 1703.06870), table 1.
The fifth stage looks at each RoI, plain and masked, by a copy of its own.
"""

from typing import Literal

from torch import nn

from maskwright.layers.backbones import Backbone, LastStage
from maskwright.layers.grids import PyramidAnchors
from maskwright.layers.roi import RoiWarp
from maskwright.structures import InputSpec
from maskwright.systems.cascades.mnc import MNC, PIXELS_600, CascadeRPN, CascadeSampler, CategoryHead, MaskHead
from maskwright.systems.cascades.voting import MaskVoting
from maskwright.systems.system import Count, Share


def mnc_r101(
    *,
    num_classes: int,
    norm: Literal["frozen", "group"] = "frozen",
    mask_side: int = 28,
    training_stages: Literal[3, 5] = 5,
    inference_stages: Literal[3, 5] = 5,
    max_detections: Count = 100,
    num_proposals: Count = 300,
    score_threshold: Share = 0.0,
) -> MNC:
    """MNC on ResNet-101 to its fourth stage, the fifth for each RoI, twice: a reconstruction, as it was not published."""
    body = Backbone("resnet101", strides=(16,), norm=norm)
    channels = body.channels[16]
    paths = [nn.Sequential(LastStage("resnet101", norm=norm), nn.AdaptiveAvgPool2d(1), nn.Flatten()) for _ in range(2)]
    return MNC(
        input=InputSpec(resize=PIXELS_600),
        backbones=[body],
        rpn=CascadeRPN(
            channels,
            anchors=PyramidAnchors({16: (64, 128, 256, 512)}),
            candidates=(12000, 6000),
            keep=num_proposals,
            min_side_px=2,
            hidden=512,
        ),
        sampler=CascadeSampler(num_classes=num_classes),
        warp=RoiWarp(14, stride=16),
        mask_head=MaskHead(channels, side=mask_side, weight=2.0),
        category_head=CategoryHead(*paths, width=2048, num_classes=num_classes),
        voting=MaskVoting(score_threshold=score_threshold),
        training_stages=training_stages,
        inference_stages=inference_stages,
        max_detections=max_detections,
    )
