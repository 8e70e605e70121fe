"""FCOS as torchvision builds it: the network of fcos.py, other parts.

Source: torchvision's `fcos_resnet50_fpn` (BSD 3-Clause). Weights trained with these parts lose accuracy with others; imported
checkpoints are therefore built from them.

Differs from fcos.py: image sizes are rounded down and resized without antialiasing; points at the corners of cells, a whole
number of pixels apart; no learnt factor of a level; a distance on the bound of two levels belongs to neither; GIoU neither
smoothed nor weighted, divided by the number of positives; candidates by their score over 0.2, not by class probability; boxes
without area and points in the padding are answered. Its column of the background, which no object trains, is left out.
"""

import torch
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss

from maskwright.layers.backbones import Backbone
from maskwright.layers.fpn import ConvolvedLevels, FeaturePyramid
from maskwright.layers.grids import cell_corners
from maskwright.systems.one_stage.fcos import FCOS, CenterAssigner, FCOSHead, Ranking
from maskwright.systems.size import Amount, Count, TorchvisionInputSize, size_class
from maskwright.systems.system import Loss


class StrictAssigner(CenterAssigner):
    """A distance on the bound of two levels belongs to neither."""

    def _in_range(self, distance: Tensor, level: Tensor) -> Tensor:
        low, high = self._ends(distance, level)
        return (low < distance) & (distance < high)


class Unscaled(nn.Module):
    """No factor for a level."""

    def forward(self, x: Tensor, stride: int) -> Tensor:
        """The map of one level as it is."""
        return x


def mean_giou(ltrb: Tensor, wanted: Tensor, weights: Tensor) -> Loss:
    """GIoU loss of boxes around the same points, each counted once.

    Args:
        ltrb, wanted: (n, 4), in one unit.
        weights: not looked at.
    """
    outwards = ltrb.new_tensor([-1.0, -1.0, 1.0, 1.0])
    loss = generalized_box_iou_loss(ltrb * outwards, wanted * outwards, reduction="sum")
    return Loss(loss, loss.new_tensor(len(ltrb)))


def everything(points: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """All finite boxes, wherever their points lie, with or without area."""
    return torch.isfinite(boxes).all(dim=1)


# Sizes


@size_class
class TorchvisionFcosSize(TorchvisionInputSize):
    """Of FCOS with these parts."""

    norm_eps: Amount = 1e-5
    """Added to the variance of a frozen norm."""
    num_candidates: Count = 1000
    """Candidates of each level, before suppression."""


def fcos_torchvision(size: TorchvisionFcosSize, num_classes: int) -> FCOS:
    """FCOS, R50-FPN."""
    backbone = Backbone(size.backbone, strides=(8, 16, 32), norm="frozen", norm_eps=size.norm_eps)
    return FCOS(
        input=size.input(),
        backbone=backbone,
        fpn=FeaturePyramid(backbone.channels, channels=256, coarser=ConvolvedLevels(256, count=2)),
        assigner=StrictAssigner(bounds=(64, 128, 256, 512)),
        head=FCOSHead(
            256,
            num_classes=num_classes,
            num_convs=4,
            scales=Unscaled(),
            ranking=Ranking(class_floor=size.score_threshold**2, score_floor=size.score_threshold),
            points=cell_corners,
            box_loss=mean_giou,
            num_candidates=size.num_candidates,
            answered=everything,
        ),
        max_detections=size.max_detections,
    )


FCOS_R50 = TorchvisionFcosSize(
    summary="FCOS, R50-FPN, with torchvision's parts: for weights from there; `score_threshold` is one on scores.",
    backbone="resnet50",
    short_px=800,
    long_px=1333,
    max_detections=100,
    score_threshold=0.2,
)
