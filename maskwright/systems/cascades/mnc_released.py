"""MNC with the parts its authors' weights were trained with, where the code departs from the paper and from ours.

Source: the released code (daijifeng001/MNC). Corners of RoIs are rounded to whole features; classes teach only masks that show
their object; a RoI that is most likely background is moved by the background's regressor, which never learnt; pixels are those
of Caffe's networks.
"""

from dataclasses import replace
from typing import Literal

from maskwright.layers.backbones import ORIGINS
from maskwright.layers.roi import RoundedRoiWarp
from maskwright.systems.cascades.mnc import MNC, PIXELS_600, vgg16_parts
from maskwright.systems.cascades.voting import MaskVoting
from maskwright.systems.system import Count, Share


def mnc_vgg16_released(
    *,
    num_classes: int,
    weights_origin: Literal["caffe"] = "caffe",
    mask_side: int = 21,
    inference_stages: Literal[3, 5] = 5,
    max_detections: Count = 100,
    num_proposals: Count = 300,
    score_threshold: Share = 0.0,
) -> MNC:
    """MNC on VGG-16 as released: 283.0 M parameters at 20 classes."""
    return MNC(
        input=replace(ORIGINS[weights_origin].input(PIXELS_600), size_divisor=1),
        voting=MaskVoting(score_threshold=score_threshold),
        training_stages=5,
        inference_stages=inference_stages,
        max_detections=max_detections,
        **vgg16_parts(
            num_classes=num_classes,
            mask_side=mask_side,
            mask_weight=2.0,
            num_proposals=num_proposals,
            warp=RoundedRoiWarp(14, stride=16),
            moves_by_background=True,
            is_selective=True,
        ),
    )
