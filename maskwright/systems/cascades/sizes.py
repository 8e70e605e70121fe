"""Every size of MNC and FCIS, and how one becomes a network.

Sources: MNC (arXiv 1512.04412) and the released code (daijifeng001/MNC); FCIS (arXiv 1611.07709) and its code. Of the
ResNet-101 that won COCO 2015 little was published: `MNC_R101` is a reconstruction (MNC, sec. 7.2; that features are those of
the fourth stage, Mask R-CNN, table 1), whose fifth stage looks at each RoI, plain and masked, by a copy of its own.

Legend: K classes.
"""

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import nn

from maskwright.layers.backbones import ORIGINS, Backbone, LastStage, Reduced
from maskwright.layers.grids import CaffeAnchors, PyramidAnchors
from maskwright.layers.roi import RoiWarp, RoundedRoiWarp
from maskwright.systems.cascades.fcis import FCIS, ScoreMaps
from maskwright.systems.cascades.mnc import MATCH_INSIDE, MNC, CascadeRPN, CascadeSampler, CategoryHead, HiddenLayers, MaskHead
from maskwright.systems.cascades.stepwise import StepwiseMNC
from maskwright.systems.cascades.voting import MaskVoting
from maskwright.systems.rcnn.rpn import MATCH_RPN
from maskwright.systems.size import LITE_BACKBONE, Amount, Count, OriginSize, Share, Size, size_class


@size_class
class CascadeSize(Size):
    """What sizes of both decide."""

    norm: Literal["frozen", "group", "none"]
    """Of the backbone: frozen batch norm, which wants pretrained weights, group norm, or none, as VGG has it."""
    stride: Count
    """Px from one cell of the features to the next."""
    anchors: Annotated[tuple[Count, ...], Field(min_length=1)]
    """Square roots of the areas of anchors, px."""
    are_anchors_inside: bool
    """Whether anchors that stick out of the image teach nothing; in small windows no large one lies inside."""
    rpn_hidden: Count
    """Channels of the RPN between its layers."""
    min_side_px: Amount
    """Sides of a proposal at least."""
    rpn_candidates: tuple[Count, Count]
    """Boxes that suppress each other, in training and at inference."""
    num_proposals: Count = 300
    """Boxes of an image that later stages look at."""
    voting_iou: Share = 0.3
    """Overlap above which an instance suppresses a worse one of its class."""
    score_threshold: Share = 0.0
    """Scores up to it are not answered."""

    def rpn(self, channels: int) -> CascadeRPN:
        """Boxes from features."""
        return CascadeRPN(
            channels,
            anchors=self.anchor_grid(),
            candidates=self.rpn_candidates,
            keep=self.num_proposals,
            min_side_px=self.min_side_px,
            hidden=self.rpn_hidden,
            matcher=MATCH_INSIDE if self.are_anchors_inside else MATCH_RPN,
        )

    def anchor_grid(self) -> PyramidAnchors:
        """Of all cells."""
        return PyramidAnchors({self.stride: self.anchors})


@size_class
class MncSize(CascadeSize, OriginSize):
    """Of MNC."""

    are_anchors_rounded: bool = False
    """Whether anchors are Caffe's, of whole pixels."""
    dilated: bool = False
    """Whether features come from one stage later, which keeps the resolution by dilation."""
    ceil_mode: bool = False
    """Whether pooling keeps what is left at the right and the bottom, as Caffe's does."""
    reduced: Count | None = None
    """Channels of features for RoIs, by a 1×1 convolution; null keeps the backbone's."""
    is_stepwise: bool = False
    """Whether stages learn one after the other, and nothing from each other (table 1)."""
    num_backbones: Literal[1, 3] = 1
    """One for all stages, or one for each."""
    per_image: Count = 64
    """Boxes of an image that later stages learn from."""
    rounds_corners: bool = False
    """Whether corners of RoIs are rounded to whole features (the code)."""
    mask_side: Count = 21
    """Side of a mask that is regressed."""
    mask_hidden: Count = 256
    """Units of the mask head's hidden layer."""
    mask_weight: Amount = 2.0
    """Weight of the masks' loss (the paper: 1, the code: 2)."""
    category_hidden: Count | None
    """Units of both hidden layers of a pathway; null has the network's last stage look at each RoI."""
    is_hidden_pretrained: bool = False
    """Whether these layers begin with those of the backbone's network."""
    moves_by_background: bool = False
    """Whether a RoI that is most likely background is moved by the background's regressor, which never learnt (the code)."""
    is_selective: bool = False
    """Whether classes teach only masks that show their object (the code)."""
    training_stages: Literal[3, 5] = 5
    """Stages of the cascade in training."""
    inference_stages: Literal[3, 5] = 5
    """Stages of the cascade at inference."""
    partners: Literal["all", "suppressed", "none"] = "all"
    """Which boxes vote on a mask: all much like its own (the code), those it suppressed (the paper), or its own alone."""

    def anchor_grid(self) -> PyramidAnchors:
        """Of all cells."""
        return (CaffeAnchors if self.are_anchors_rounded else PyramidAnchors)({self.stride: self.anchors})


def mnc(size: MncSize, num_classes: int) -> MNC:
    """MNC."""
    if size.category_hidden is None and size.reduced is not None:
        raise ValueError(
            "got reduced beside category_hidden=null, expected the backbone's channels for its last stage: reduced=null"
        )
    origin = ORIGINS[size.weights_origin]
    norms: dict[str, Any] = {"norm": size.norm, "norm_eps": origin.norm_eps, "stride_in_1x1": origin.stride_in_1x1}
    backbones: list[nn.Module] = []
    for _ in range(size.num_backbones):
        backbone = Backbone(size.backbone, strides=(size.stride,), dilated=size.dilated, ceil_mode=size.ceil_mode, **norms)
        channels = backbone.channels[size.stride]
        backbones.append(
            backbone if size.reduced is None else nn.Sequential(backbone, Reduced(size.stride, channels, size.reduced))
        )
    channels = size.reduced or channels
    paths: list[nn.Module]
    if size.category_hidden is None:
        width = 2 * channels
        paths = [nn.Sequential(LastStage(size.backbone, **norms), nn.AdaptiveAvgPool2d(1), nn.Flatten()) for _ in range(2)]
    else:
        width = size.category_hidden
        pretrained = size.backbone if size.is_hidden_pretrained else None
        paths = [HiddenLayers(channels, hidden=width, pretrained=pretrained) for _ in range(2)]
    return (StepwiseMNC if size.is_stepwise else MNC)(
        input=size.input(),
        backbones=backbones,
        rpn=size.rpn(channels),
        sampler=CascadeSampler(num_classes=num_classes, per_image=size.per_image),
        warp=(RoundedRoiWarp if size.rounds_corners else RoiWarp)(14, stride=size.stride),
        mask_head=MaskHead(channels, hidden=size.mask_hidden, side=size.mask_side, weight=size.mask_weight),
        category_head=CategoryHead(
            *paths,
            width=width,
            num_classes=num_classes,
            moves_by_background=size.moves_by_background,
            is_selective=size.is_selective,
        ),
        voting=MaskVoting(partners=size.partners, score_threshold=size.score_threshold, nms_iou=size.voting_iou),
        stages=(size.training_stages, size.inference_stages),
        max_detections=size.max_detections,
    )


MNC_VGG16 = MncSize(
    summary="MNC on VGG-16: 283.0 M parameters at 20 classes. The paper's: `mask_side=28 mask_weight=1 partners=suppressed`.",
    backbone="vgg16",
    norm="none",
    short_px=600,
    long_px=1000,
    size_divisor=1,
    stride=16,
    ceil_mode=True,
    anchors=(128, 256, 512),  # Faster R-CNN, sec. 3.1.1
    are_anchors_rounded=True,
    are_anchors_inside=True,
    rpn_hidden=512,
    min_side_px=16,
    rpn_candidates=(12000, 6000),
    category_hidden=4096,
    is_hidden_pretrained=True,
    max_detections=100,
)
MNC_VGG16_RELEASED = replace(
    MNC_VGG16,
    summary="MNC on VGG-16 as released: 283.0 M parameters at 20 classes.",
    weights_origin="caffe",
    rounds_corners=True,
    moves_by_background=True,
    is_selective=True,
)
MNC_R101 = MncSize(
    summary="MNC on ResNet-101 to its fourth stage, the fifth for each RoI, twice: a reconstruction, as it was not published.",
    backbone="resnet101",
    norm="frozen",
    short_px=600,
    long_px=1000,
    size_divisor=32,
    stride=16,
    anchors=(64, 128, 256, 512),
    are_anchors_inside=True,
    rpn_hidden=512,
    min_side_px=2,
    rpn_candidates=(12000, 6000),
    mask_side=28,
    category_hidden=None,
    max_detections=100,
)
MNC_SMALL = MncSize(
    summary="MNC for a CPU and for tests.",
    backbone="resnet18",  # with stride 8, by dilation
    norm="group",
    short_px=512,
    long_px=1024,
    stride=8,
    dilated=True,
    reduced=48,
    anchors=(16, 32, 64, 128, 256),
    are_anchors_inside=False,
    rpn_hidden=128,
    min_side_px=4,
    rpn_candidates=(2000, 2000),
    per_image=128,
    mask_hidden=96,
    category_hidden=128,
    max_detections=300,
)
MNC_STEPWISE_SMALL = replace(
    MNC_SMALL,
    summary="MNC's small size, its stages trained one after the other.",
    is_stepwise=True,
    training_stages=3,
)
MNC_UNSHARED_SMALL = replace(
    MNC_STEPWISE_SMALL, summary="The same with a backbone for each stage: 10.1 M parameters.", num_backbones=3
)
MNC_LITE = replace(
    MNC_SMALL,
    summary="MNC on EfficientNet-Lite0 with ImageNet weights, for a CPU and a hundred images.",
    backbone=LITE_BACKBONE,
    norm="frozen",
)


# FCIS


@size_class
class FcisSize(CascadeSize):
    """Of FCIS."""

    channels: Count
    """Channels of the dilated last stage after a 1×1 convolution."""
    hard_rois: Count = 128
    """RoIs of an image that are learnt from, those with the greatest loss."""


def fcis(size: FcisSize, num_classes: int) -> FCIS:
    """FCIS."""
    backbone = Backbone(size.backbone, strides=(size.stride,), norm=size.norm, dilated=True)
    return FCIS(
        input=size.input(),
        features=nn.Sequential(backbone, Reduced(size.stride, backbone.channels[size.stride], size.channels)),
        rpn=size.rpn(size.channels),
        maps=ScoreMaps(size.channels, num_classes=num_classes, stride=size.stride),
        voting=MaskVoting(score_threshold=size.score_threshold, nms_iou=size.voting_iou),
        hard_rois=size.hard_rois,
        max_detections=size.max_detections,
    )


FCIS_R101 = FcisSize(
    summary="FCIS on ResNet-101 with a dilated last stage.",
    backbone="resnet101",
    norm="frozen",
    short_px=600,
    long_px=1000,
    size_divisor=32,
    stride=16,
    channels=1024,
    anchors=(64, 128, 256, 512),
    are_anchors_inside=True,
    rpn_hidden=512,
    min_side_px=2,
    rpn_candidates=(12000, 6000),
    max_detections=100,
)
FCIS_SMALL = FcisSize(
    summary="FCIS for a CPU and for tests: ResNet-18 with stride 8, by dilation.",
    backbone="resnet18",
    norm="group",
    short_px=512,
    long_px=1024,
    stride=8,
    channels=128,
    anchors=(16, 32, 64, 128, 256),
    are_anchors_inside=False,
    rpn_hidden=128,
    min_side_px=4,
    rpn_candidates=(2000, 2000),
    max_detections=300,
)
FCIS_LITE = replace(
    FCIS_SMALL,
    summary="FCIS on EfficientNet-Lite0 with ImageNet weights, for a CPU and a hundred images.",
    backbone=LITE_BACKBONE,
    norm="frozen",
)
