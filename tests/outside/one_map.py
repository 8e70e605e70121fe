"""FCOS on one map without centerness: a system from outside, with sizes of its own.

    maskwright train tests.outside.one_map:small --data my/coco --out runs/a --set arguments.channels=32

Legend: P locations · K classes.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from maskwright.layers.backbones import Backbone, Reduced
from maskwright.structures import InputSpec, ResizeRule
from maskwright.systems import Size, Sized
from maskwright.systems.one_stage.fcos import FCOS, CenterAssigner, FCOSHead, LevelScales, Ranking
from maskwright.systems.size import Count, size_class


class ByClass(Ranking):
    """Candidates are ranked by class probability alone."""

    def __call__(self, probs: Tensor, centerness: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Probabilities (P, K) → location, label and score of each candidate."""
        return super().__call__(probs, torch.ones_like(centerness))


@size_class
class OneMapSize(Size):
    """Of this system."""

    stride: Count = 8
    """Of the one map, px."""
    channels: Count = 64
    """Of the head."""
    num_convs: Count = 2
    """Of each tower."""


def one_map(size: OneMapSize, num_classes: int) -> FCOS:
    """The network."""
    backbone = Backbone(size.backbone, strides=(size.stride,), norm="group")
    return FCOS(
        input=InputSpec(resize=ResizeRule(size.short_px, size.long_px)),
        backbone=backbone,
        fpn=nn.Sequential(Reduced(size.stride, backbone.channels[size.stride], size.channels)),
        assigner=CenterAssigner(bounds=()),
        head=FCOSHead(
            size.channels,
            num_classes=num_classes,
            num_convs=size.num_convs,
            scales=LevelScales((size.stride,)),
            ranking=ByClass(class_floor=size.score_threshold, power=1.0),
        ),
        max_detections=size.max_detections,
    )


SMALL = OneMapSize(
    summary="FCOS on one map, for a CPU.",
    backbone="resnet18",
    short_px=256,
    long_px=512,
    max_detections=100,
    score_threshold=0.05,
)
small = Sized(one_map, SMALL)
tiny = Sized(one_map, replace(SMALL, summary="The same for tests.", channels=32, num_convs=1, short_px=64, long_px=96))
