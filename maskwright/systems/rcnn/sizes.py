"""Every size of Faster, Mask and Keypoint R-CNN, and how one becomes a network.

Sources: Mask R-CNN (arXiv 1703.06870v3), FPN (CVPR 2017), and detectron2 where the papers are silent. Small sizes, which learn
from scratch on a CPU, share a ResNet-18 cut after its third stage, and hold at most 5 M parameters.

Legend: K classes.
"""

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import nn

from maskwright.layers.assignment import BalancedSampler
from maskwright.layers.backbones import ORIGINS, Backbone, LastStage
from maskwright.layers.fpn import FeaturePyramid, SubsampledLevels
from maskwright.layers.grids import PyramidAnchors
from maskwright.layers.roi import RoiOperator
from maskwright.systems.rcnn.c4 import STAGED_SIDE, StagedBoxHead, StagedRois
from maskwright.systems.rcnn.keypoints import ENLARGED, KeypointHead
from maskwright.systems.rcnn.mask_rcnn import BoxBranch, BoxHead, FasterRCNN, MaskBranch, RoiSampler
from maskwright.systems.rcnn.rivals import (
    CONV_MASK_HEADS,
    MLP_DEPTHS,
    ROI_OPERATORS,
    STAGED_MASK_HEADS,
    Mask,
    MlpMaskHead,
    Operator,
    StagedMask,
)
from maskwright.systems.rcnn.rpn import RegionProposalNetwork
from maskwright.systems.size import LITE_BACKBONE, Amount, Count, OriginSize, Share, Strides, Whole, size_class


@size_class
class TwoStageSize(OriginSize):
    """What all sizes decide, with a pyramid or without."""

    norm: Literal["frozen", "group"]
    """Of the backbone: frozen batch norm, which wants pretrained weights, or group norm."""
    strides: Strides
    """Maps of the backbone that are used, px from cell to cell."""
    anchors: Annotated[dict[Count, Annotated[tuple[Count, ...], Field(min_length=1)]], Field(min_length=1)]
    """Square roots of the areas of anchors, px, by stride."""
    rpn_per_image: Count = 256
    """Anchors of an image that the RPN learns from, half of them on objects at most."""
    per_image: Count
    """RoIs of an image that heads learn from."""
    positive_fraction: Share = 0.25
    """Share of them that hold an object, at most."""
    roi: Operator = "align"
    """How features of a RoI are had."""
    sampling_ratio: Whole = 0
    """Samples of a cell a side, of RoIAlign; 0 takes as many as there are features."""
    mask_hidden: Count = 256
    """Channels of a mask head's hidden layers."""
    box_beta: Amount = 0.0
    """Error from which the smooth L1 loss of boxes is linear; 0 is L1."""
    rpn_nms_iou: Share = 0.7
    """Overlap above which a proposal suppresses a worse one of its level."""
    nms_iou: Share = 0.5
    """Overlap above which a detection suppresses a worse one of its class."""
    certainty_power: Amount = 0.0
    """Scores are multiplied by the mean probability of a mask's own cells to this power; 0 leaves them as they are."""
    rpn_candidates: tuple[Whole, Whole]
    """Anchors of a level that proposals are chosen from, in training and at inference; there never fewer than proposals."""
    num_training_proposals: Count
    """Proposals of an image that RoIs are drawn from."""
    num_proposals: Count
    """Proposals of an image at inference."""
    score_threshold: Share = 0.05
    """Scores up to it are not answered."""

    @property
    def num_coarser(self) -> int:
        """Levels with anchors that are coarser than the backbone's maps.

        Raises:
            ValueError: anchors where there is no level, or not as many at each.
        """
        levels = [max(self.strides) * 2 ** (i + 1) for i in range(len(self.anchors))]
        coarser = [stride for stride in sorted(self.anchors) if stride > max(self.strides)]
        if not set(self.anchors) <= {*self.strides, *coarser} or coarser != levels[: len(coarser)]:
            raise ValueError(
                f"got anchors at strides {', '.join(map(str, self.anchors))}, expected some of "
                f"{', '.join(map(str, self.strides))} and, on a pyramid, {levels[0]}, {2 * levels[0]} and so on"
            )
        if len({len(sides) for sides in self.anchors.values()}) != 1:
            raise ValueError(f"got anchors {self.anchors}, expected as many at every stride")
        return len(coarser)

    def rpn_options(self) -> dict[str, Any]:
        """Of the RPN, beside its anchors."""
        sampler = BalancedSampler(self.rpn_per_image, positive_fraction=0.5)  # Faster R-CNN, sec. 3.1.3
        return {"sampler": sampler, "nms_iou": self.rpn_nms_iou}

    def pool(self, side: int, strides: tuple[int, ...]) -> RoiOperator:
        """To side × side cells, from maps of these strides."""
        return ROI_OPERATORS[self.roi](side, strides, self.sampling_ratio)


@size_class
class RcnnSize(TwoStageSize):
    """Of systems whose heads look at a pyramid, or at one map."""

    dilated: bool = False
    """Whether the coarsest map comes from one stage later, which keeps the resolution by dilation."""
    fpn_channels: Count | None
    """Channels of every level of the pyramid; null leaves it out, for a single map."""
    box_hidden: Count
    """Units of the box head's two hidden layers."""
    box_side: Count = 7
    """Cells a side that the box head sees of a RoI."""
    mask: Mask | None
    """The mask head; null for boxes alone."""
    mask_side: Annotated[int, Field(gt=0, multiple_of=2)] = 28
    """Cells of a mask a side, twice as many as the mask head sees of a RoI."""
    mlp_hidden: Count = 1024
    """Units of the mask head's hidden layers where it is an MLP."""
    num_keypoints: Count | None = None
    """Keypoints of the keypoint head; null for none."""
    keypoint_side: Annotated[int, Field(gt=0, multiple_of=ENLARGED)] = 56
    """Cells of a heatmap a side, four times as many as the keypoint head sees of a RoI."""
    keypoint_hidden: Count = 512
    """Channels of the keypoint head's convolutions."""
    keypoint_depth: Count = 8
    """Convolutions of the keypoint head."""


@size_class
class C4Size(TwoStageSize):
    """Of systems on C4: a stage of the network looks at each RoI."""

    roi_side: Literal[7, 14] = 14
    """Cells of a RoI a side: the stage halves 14, and keeps 7."""
    mask: StagedMask | None
    """The mask head; null for boxes alone."""


def rcnn(size: RcnnSize, num_classes: int) -> FasterRCNN:
    """Faster, Mask or Keypoint R-CNN, whichever heads there are, on a pyramid or on one map."""
    origin = ORIGINS[size.weights_origin]
    backbone = origin.backbone(size.backbone, strides=size.strides, norm=size.norm, dilated=size.dilated)
    fpn: nn.Module = nn.Identity()
    channels = backbone.channels[size.strides[-1]]
    if size.fpn_channels is not None:
        channels = size.fpn_channels
        fpn = FeaturePyramid(backbone.channels, channels=channels, coarser=SubsampledLevels(size.num_coarser))
    elif len(size.strides) > 1 or size.num_coarser:
        raise ValueError(f"got strides {size.strides} without a pyramid, expected one map, and anchors on it: set fpn_channels")
    rpn = RegionProposalNetwork(channels, anchors=PyramidAnchors(size.anchors), **size.rpn_options())
    pool = size.pool(size.box_side, size.strides)
    box_head = BoxHead(channels, hidden=size.box_hidden, pool=pool, **_box_options(size, num_classes))
    heads: dict[str, nn.Module] = {}
    if size.mask is not None:
        heads["mask"] = _mask_head(size, channels, num_classes)
    if size.num_keypoints is not None:
        pool = size.pool(size.keypoint_side // ENLARGED, size.strides)
        count, depth, hidden = size.num_keypoints, size.keypoint_depth, size.keypoint_hidden
        heads["keypoint"] = KeypointHead(channels, num_keypoints=count, pool=pool, depth=depth, hidden=hidden)
    return _around(size, num_classes, backbone, fpn, rpn, box_head, heads)


def c4(size: C4Size, num_classes: int) -> FasterRCNN:
    """Faster or Mask R-CNN on one map, with a stage of the network as head."""
    if len(size.strides) > 1 or size.num_coarser:
        raise ValueError(f"got strides {size.strides}, expected the one map of a system without a pyramid, and anchors on it")
    origin = ORIGINS[size.weights_origin]
    backbone = origin.backbone(size.backbone, strides=size.strides, norm=size.norm)
    channels = backbone.channels[size.strides[-1]]
    stage = LastStage(
        size.backbone,
        norm=size.norm,
        norm_eps=origin.norm_eps,
        stride_in_1x1=origin.stride_in_1x1,
        stride=size.roi_side // STAGED_SIDE,
        stage=f"layer{size.strides[0].bit_length() - 1}",  # the one after the map
    )
    staged, width = StagedRois(size.pool(size.roi_side, size.strides), stage), 2 * channels
    heads: dict[str, nn.Module] = {}
    if size.mask is not None:
        kind = STAGED_MASK_HEADS[size.mask]
        options: dict[str, Any] = {"num_classes": num_classes, "certainty_power": size.certainty_power}
        heads["mask"] = kind(staged, width=width, hidden=size.mask_hidden, **options)
    rpn = RegionProposalNetwork(channels, anchors=PyramidAnchors(size.anchors), **size.rpn_options())
    box_head = StagedBoxHead(staged, width=width, **_box_options(size, num_classes))
    return _around(size, num_classes, backbone, nn.Identity(), rpn, box_head, heads)


def _around(
    size: TwoStageSize,
    num_classes: int,
    backbone: Backbone,
    fpn: nn.Module,
    rpn: RegionProposalNetwork,
    box_head: BoxBranch,
    heads: dict[str, nn.Module],
) -> FasterRCNN:
    """What is the same in all, around their parts."""
    return FasterRCNN(
        input=size.input(),
        backbone=backbone,
        fpn=fpn,
        rpn=rpn,
        roi_sampler=RoiSampler(num_classes=num_classes, per_image=size.per_image, positive_fraction=size.positive_fraction),
        box_head=box_head,
        instance_heads=heads,
        num_proposals=(size.num_training_proposals, size.num_proposals),
        num_candidates=size.rpn_candidates,
        max_detections=size.max_detections,
    )


def _box_options(size: TwoStageSize, num_classes: int) -> dict[str, Any]:
    return {
        "num_classes": num_classes,
        "box_beta": size.box_beta,
        "score_threshold": size.score_threshold,
        "nms_iou": size.nms_iou,
    }


def _mask_head(size: RcnnSize, channels: int, num_classes: int) -> MaskBranch:
    assert size.mask is not None
    pool = size.pool(size.mask_side // 2, size.strides)
    options: dict[str, Any] = {"num_classes": num_classes, "pool": pool, "certainty_power": size.certainty_power}
    if size.mask in MLP_DEPTHS:
        depth = MLP_DEPTHS[size.mask]
        return MlpMaskHead(channels, hidden=size.mlp_hidden, depth=depth, **options)
    return CONV_MASK_HEADS[size.mask](channels, hidden=size.mask_hidden, **options)


# Published sizes, on a pyramid

MASK_R50_FPN = RcnnSize(
    summary="Mask R-CNN with ResNet-50 and FPN: 44.3 M parameters at 80 classes (Mask R-CNN, table 2a).",
    backbone="resnet50",
    norm="frozen",
    short_px=800,  # Mask R-CNN, sec. 3.1
    long_px=1333,
    size_divisor=32,
    strides=(4, 8, 16, 32),
    fpn_channels=256,
    anchors={4: (32,), 8: (64,), 16: (128,), 32: (256,), 64: (512,)},  # FPN, sec. 4.1
    rpn_candidates=(2000, 0),
    num_training_proposals=1000,
    num_proposals=1000,
    per_image=512,
    box_hidden=1024,  # FPN, sec. 5.2
    mask="sigmoid",
    max_detections=100,
)
MASK_R101_FPN = replace(
    MASK_R50_FPN,
    summary="Mask R-CNN with ResNet-101 and FPN: 63.3 M parameters at 80 classes (Mask R-CNN, table 1).",
    backbone="resnet101",
)
MASK_X101_FPN = replace(
    MASK_R50_FPN,
    summary="Mask R-CNN with ResNeXt-101-32×8d and FPN, the released size: 107.4 M parameters at 80 classes.",
    backbone="resnext101_32x8d",
)
MASK_X101_64X4D_FPN = replace(
    MASK_R50_FPN,
    summary="Mask R-CNN with ResNeXt-101-64×4d and FPN: 102.1 M parameters at 80 classes (Mask R-CNN, table 2a).",
    backbone="resnext101_64x4d",
)
FASTER_R50_FPN = replace(
    MASK_R50_FPN, summary="Faster R-CNN with ResNet-50 and FPN: 41.7 M parameters at 80 classes.", mask=None
)
FASTER_R101_FPN = replace(
    MASK_R101_FPN, summary="Faster R-CNN with ResNet-101 and FPN: 60.6 M parameters at 80 classes.", mask=None
)
FASTER_X101_FPN = replace(
    MASK_X101_FPN, summary="Faster R-CNN with ResNeXt-101-32×8d and FPN: 104.8 M parameters at 80 classes.", mask=None
)
KEYPOINT_R50_FPN = replace(
    FASTER_R50_FPN,
    summary="Keypoint R-CNN with ResNet-50 and FPN: 59.1 M parameters for persons (Mask R-CNN, table 4).",
    num_keypoints=17,
    box_beta=0.5,  # this and the proposals: detectron2
    num_training_proposals=1500,
)
KEYPOINT_R101_FPN = replace(
    KEYPOINT_R50_FPN,
    summary="Keypoint R-CNN with ResNet-101 and FPN: 78.1 M parameters for persons.",
    backbone="resnet101",
)
KEYPOINT_X101_FPN = replace(
    KEYPOINT_R50_FPN,
    summary="Keypoint R-CNN with ResNeXt-101-32×8d and FPN: 122.2 M parameters for persons.",
    backbone="resnext101_32x8d",
)
MASK_KEYPOINT_R50_FPN = replace(
    KEYPOINT_R50_FPN,
    summary="Masks and keypoints with ResNet-50 and FPN: 61.8 M parameters for persons (Mask R-CNN, table 4).",
    mask="sigmoid",
)

# Published sizes, on one map

MASK_R50_C4 = C4Size(
    summary="Mask R-CNN with ResNet-50-C4: 35.9 M parameters at 80 classes (table 2a). The paper's: `per_image=64 roi_side=7`.",
    backbone="resnet50",
    norm="frozen",
    short_px=800,
    long_px=1333,
    size_divisor=1,
    strides=(16,),
    anchors={16: (32, 64, 128, 256, 512)},  # Mask R-CNN, sec. 3.1: five scales
    rpn_candidates=(12000, 6000),
    num_training_proposals=2000,
    num_proposals=1000,
    per_image=512,
    mask="sigmoid",
    max_detections=100,
)
MASK_R101_C4 = replace(
    MASK_R50_C4,
    summary="Mask R-CNN with ResNet-101-C4: 54.8 M parameters at 80 classes (table 2a).",
    backbone="resnet101",
)
FASTER_R50_C4 = replace(MASK_R50_C4, summary="Faster R-CNN with ResNet-50-C4: 33.8 M parameters.", mask=None)
FASTER_R101_C4 = replace(MASK_R101_C4, summary="Faster R-CNN with ResNet-101-C4: 52.7 M parameters.", mask=None)

_DC5 = "a dilated fifth stage of stride 16 (detectron2's DC5)"
MASK_R50_DC5 = RcnnSize(
    summary=f"Mask R-CNN on ResNet-50 with {_DC5}: 172.4 M parameters.",
    backbone="resnet50",
    norm="frozen",
    short_px=800,
    long_px=1333,
    size_divisor=1,
    strides=(16,),
    dilated=True,
    fpn_channels=None,
    anchors=MASK_R50_C4.anchors,
    rpn_candidates=(12000, 6000),
    num_training_proposals=2000,
    num_proposals=1000,
    per_image=512,
    box_hidden=1024,
    mask="sigmoid",
    max_detections=100,
)
MASK_R101_DC5 = replace(
    MASK_R50_DC5, summary=f"Mask R-CNN on ResNet-101 with {_DC5}: 191.3 M parameters.", backbone="resnet101"
)
FASTER_R50_DC5 = replace(MASK_R50_DC5, summary=f"Faster R-CNN on ResNet-50 with {_DC5}: 165.6 M parameters.", mask=None)
FASTER_R101_DC5 = replace(MASK_R101_DC5, summary=f"Faster R-CNN on ResNet-101 with {_DC5}: 184.5 M parameters.", mask=None)

# What the paper compared them with: RoIAlign takes 2 × 2 samples a cell there, as it does in the small sizes

RIVALS_R50_FPN = replace(
    MASK_R50_FPN,
    summary="Mask R-CNN with ResNet-50 and FPN and parts it was compared with (table 2e): 44.3 M parameters at 80 classes.",
    sampling_ratio=2,
)
RIVALS_R50_C4 = replace(
    MASK_R50_C4,
    summary="Mask R-CNN with ResNet-50-C4, 64 RoIs of 7×7 cells, and such parts (tables 2b, 2c): 35.9 M parameters.",
    sampling_ratio=2,
    roi_side=7,
    per_image=64,
    num_proposals=300,
)
RIVALS_R50_C5 = replace(
    MASK_R50_DC5,
    summary="Mask R-CNN on the last map of ResNet-50 alone, of stride 32 (table 2d): 172.4 M parameters at 80 classes.",
    sampling_ratio=2,
    size_divisor=32,
    strides=(32,),
    dilated=False,
    anchors={32: (32, 64, 128, 256, 512)},
)
KEYPOINT_RIVALS_R50_FPN = replace(
    KEYPOINT_R50_FPN,
    summary="Keypoint R-CNN with ResNet-50 and FPN and other RoI operators (table 6): 59.1 M parameters for persons.",
    sampling_ratio=2,
)

# Small sizes

MASK_SMALL = RcnnSize(
    summary="Mask R-CNN for a CPU and for tests: 4.9 M parameters.",
    backbone="resnet18",
    norm="group",
    short_px=512,
    long_px=1024,
    strides=(4, 8, 16),
    fpn_channels=128,
    anchors={4: (24,), 8: (48,), 16: (96,), 32: (192,), 64: (384,)},
    rpn_candidates=(1000, 0),
    num_training_proposals=500,
    num_proposals=500,
    per_image=128,
    sampling_ratio=2,
    box_hidden=128,
    mask="sigmoid",
    mask_hidden=128,
    mlp_hidden=25,
    keypoint_hidden=128,
    keypoint_depth=4,
    nms_iou=0.6,  # this and the certainty cost nothing, and the sample's weights gain by them (CHANGELOG)
    certainty_power=2.0,
    max_detections=300,
)
FASTER_SMALL = replace(MASK_SMALL, summary="Faster R-CNN for a CPU and for tests: 4.3 M parameters.", mask=None)
KEYPOINT_SMALL = replace(
    FASTER_SMALL,
    summary="Keypoint R-CNN for a CPU and for tests: 4.9 M parameters.",
    num_keypoints=17,
    max_detections=100,
)
MASK_KEYPOINT_SMALL = replace(KEYPOINT_SMALL, summary="Masks and keypoints for a CPU: 5.5 M parameters.", mask="sigmoid")
MASK_C4_SMALL = C4Size(
    summary="Mask R-CNN for a CPU without a pyramid: ResNet-18 to its second stage, the third for each RoI; 3.1 M parameters.",
    backbone="resnet18",
    norm="group",
    short_px=512,
    long_px=1024,
    strides=(8,),
    anchors={8: (24, 48, 96, 192, 384)},
    rpn_candidates=(2000, 1000),
    num_training_proposals=500,
    num_proposals=500,
    per_image=64,
    sampling_ratio=2,
    mask="sigmoid",
    mask_hidden=128,
    nms_iou=0.6,
    certainty_power=2.0,
    max_detections=300,
)
RIVALS_C5_SMALL = replace(
    MASK_SMALL,
    summary="Mask R-CNN for a CPU on the last map of the backbone alone, of stride 16 (table 2d): 4.7 M parameters.",
    strides=(16,),
    fpn_channels=None,
    anchors={16: (24, 48, 96, 192, 384)},
    rpn_candidates=(2000, 1000),
    box_hidden=64,
    mask_hidden=96,
)

# Lite sizes: the same on features of ImageNet

MASK_LITE = replace(
    MASK_SMALL,
    summary="Mask R-CNN on EfficientNet-Lite0 with ImageNet weights, for a CPU and a hundred images: 5.2 M parameters.",
    backbone=LITE_BACKBONE,
    norm="frozen",
    strides=(4, 8, 16, 32),
)
FASTER_LITE = replace(MASK_LITE, summary="Faster R-CNN on EfficientNet-Lite0 with ImageNet weights.", mask=None)
KEYPOINT_LITE = replace(
    FASTER_LITE,
    summary="Keypoint R-CNN on EfficientNet-Lite0 with ImageNet weights.",
    num_keypoints=17,
    max_detections=100,
)
MASK_KEYPOINT_LITE = replace(
    KEYPOINT_LITE, summary="Masks and keypoints on EfficientNet-Lite0 with ImageNet weights.", mask="sigmoid"
)
