"""Every size of FCOS and EmbedMask, and how one becomes a network.

Sources: FCOS (arXiv 1904.01355) and its release; EmbedMask (arXiv 1912.01954; IJCAI) and its code, in four versions. Small
sizes, which learn from scratch on a CPU, share a ResNet-18 cut after its third stage, and hold at most 5 M parameters.

Legend: K classes.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from maskwright.layers.backbones import ORIGINS
from maskwright.layers.fpn import ConvolvedLevels, FeaturePyramid
from maskwright.layers.norms import BranchNorm
from maskwright.systems.one_stage.early import AveragedPositives, BoxMargin, ScalarMargin, around_box, grown_by_a_cell
from maskwright.systems.one_stage.embedmask import (
    Coupling,
    EmbeddingMargin,
    EmbeddingParts,
    EmbedMask,
    FinestTower,
    FixedMargin,
    InMaskAssigner,
    PixelHead,
    Positions,
    ProposalHead,
    SharedEmbeddings,
    Teacher,
    UpsampledEmbeddings,
    best_positive,
    cut_log_probability,
    cut_probability,
    everywhere,
    grown_by_two_cells,
)
from maskwright.systems.one_stage.fcos import FCOS, CenterAssigner, FCOSHead, LevelScales, Ranking
from maskwright.systems.one_stage.fused import FusedBranch, MiddleAssigner, SemanticHead, UpsampledProbabilities
from maskwright.systems.size import LITE_BACKBONE, Amount, Count, OriginSize, Share, Strides, size_class

# FCOS


@size_class
class FcosSize(OriginSize):
    """Of FCOS, and of what is built on it; the numbers are those published."""

    norm: Literal["frozen", "group"] = "frozen"
    """Of the backbone: frozen batch norm, which wants pretrained weights, or group norm."""
    short_px: Count | None = 800
    """Shorter side of the input, px; null keeps the image's size."""
    long_px: Count | None = 1333
    """Longer side of the input at most, px; null sets no bound."""
    backbone_strides: Strides = (8, 16, 32)
    """Maps of the backbone that are used, px from cell to cell."""
    strides: Strides = (8, 16, 32, 64, 128)  # P3 to P7 (FCOS, sec. 3.2)
    """Of the pyramid; what is coarser than the backbone's comes from convolutions."""
    bounds: tuple[Count, ...] = (64, 128, 256, 512)  # FCOS, sec. 3.2
    """The largest distance to a side that each level but the last answers for, px."""
    channels: Count = 256
    """Channels of pyramid and towers."""
    num_convs: Count = 4
    """Convolutions of each tower."""
    num_candidates: Count = 1000
    """Candidates of each level, before suppression."""
    nms_iou: Share = 0.6
    """Overlap above which a detection suppresses a worse one of its class."""
    score_threshold: Share = 0.05
    """Class probabilities up to it are not answered."""
    score_power: Annotated[float, Field(gt=0)] = 0.5
    """Of class probability times centerness, which scores a detection."""
    max_detections: Count = 100
    """Objects answered for an image at most."""

    def features(self) -> dict[str, Any]:
        """Input, backbone and pyramid.

        Raises:
            ValueError: levels that a pyramid cannot have, or not one bound between each two.
        """
        finest, given = self.strides[0], len(self.backbone_strides)
        wanted = tuple(finest * 2**i for i in range(len(self.strides)))
        if self.strides != wanted or self.strides[:given] != self.backbone_strides:
            got = f"got strides {self.strides} on maps of {self.backbone_strides}"
            raise ValueError(f"{got}, expected those of the maps first, and each twice the one before")
        if len(self.bounds) != len(self.strides) - 1:
            raise ValueError(f"got bounds {self.bounds} for {len(self.strides)} levels, expected one between each two")
        if list(self.bounds) != sorted(set(self.bounds)):
            raise ValueError(f"got bounds {self.bounds}, expected each greater than the one before")
        origin = ORIGINS[self.weights_origin]
        backbone = origin.backbone(self.backbone, strides=self.backbone_strides, norm=self.norm)
        coarser = ConvolvedLevels(self.channels, count=len(self.strides) - len(self.backbone_strides))
        fpn = FeaturePyramid(backbone.channels, channels=self.channels, coarser=coarser)
        return {"input": self.input(), "backbone": backbone, "fpn": fpn}

    def ranking(self) -> Ranking:
        """Of candidates."""
        return Ranking(class_floor=self.score_threshold, power=self.score_power)

    def head(self, num_classes: int, ranking: Ranking) -> FCOSHead:
        """Boxes, by the parts of the release."""
        return FCOSHead(
            self.channels,
            num_classes=num_classes,
            num_convs=self.num_convs,
            scales=LevelScales(self.strides),
            ranking=ranking,
            num_candidates=self.num_candidates,
            nms_iou=self.nms_iou,
        )


def fcos(size: FcosSize, num_classes: int) -> FCOS:
    """FCOS."""
    return FCOS(
        **size.features(),
        assigner=CenterAssigner(bounds=size.bounds),
        head=size.head(num_classes, size.ranking()),
        max_detections=size.max_detections,
    )


FCOS_R50 = FcosSize(
    summary="FCOS with ResNet-50: 32.2 M parameters at 80 classes; `score_threshold` is one on class probabilities.",
    backbone="resnet50",
)
FCOS_SMALL = FcosSize(
    summary="FCOS for a CPU and for tests, trained from scratch: 4.4 M parameters; `score_threshold` is on classes.",
    backbone="resnet18",  # cut after its third stage
    norm="group",
    short_px=512,
    long_px=1024,
    backbone_strides=(8, 16),
    strides=(8, 16, 32, 64),
    bounds=(64, 128, 256),
    channels=128,
    num_convs=3,
    max_detections=300,
)

# EmbedMask, V3: the IJCAI paper


@size_class
class MaskedSize(FcosSize):
    """Of EmbedMask in all its versions."""

    certainty_power: Amount = 0.0
    """Scores are multiplied by the mean probability of a mask's own cells to this power; 0 leaves them as they are."""


Cutting = Literal["log", "probability"]
CUTS = {"log": cut_log_probability(0.53), "probability": cut_probability(0.53)}


@size_class
class EmbedMaskSize(MaskedSize):
    """Of V3, and of its rivals."""

    dim: Count
    """Numbers of an embedding."""
    coordinates: Amount
    """What coordinates / 100 px are multiplied by at first."""
    margin: Literal["learned", "fixed"] = "learned"
    """Whether each location has a margin of its own, or all the same."""
    embeddings: Literal["separate", "shared"] = "separate"
    """Whether locations have embeddings of their own, or those of the pixels under them."""
    cut: Cutting = "log"
    """What is interpolated between cells: the logarithm of probabilities, or they themselves."""

    def proposal_head(self) -> nn.Module:
        """V3's head, or its rivals."""
        margin: nn.Module = FixedMargin()
        if self.margin == "learned":
            margin = EmbeddingMargin(nn.Identity(), self.channels, dim=self.dim, strides=self.strides)
        if self.embeddings == "shared":
            return SharedEmbeddings(margin=margin)
        return ProposalHead(nn.Identity(), self.channels, dim=self.dim, margin=margin)


def embedmask(size: EmbedMaskSize, num_classes: int) -> EmbedMask:
    """EmbedMask, V3."""
    return EmbedMask(
        **size.features(),
        assigner=InMaskAssigner(bounds=size.bounds),
        fcos=size.head(num_classes, size.ranking()),
        embedding=EmbeddingParts(
            positions=Positions(nn.Parameter(torch.tensor([size.coordinates]))),
            pixel_head=PixelHead(FinestTower(size.channels, num_convs=size.num_convs), size.channels, dim=size.dim),
            proposal_head=size.proposal_head(),
        ),
        coupling=UpsampledEmbeddings(teacher=best_positive, windows=grown_by_two_cells, cut=CUTS[size.cut], region=everywhere),
        extra_heads={},
        max_detections=size.max_detections,
        certainty_power=size.certainty_power,
    )


EMBEDMASK_R50 = EmbedMaskSize(
    summary="EmbedMask (V3, IJCAI) with ResNet-50: 34.7 M parameters at 80 classes.",
    backbone="resnet50",
    dim=16,
    coordinates=1.0,
    score_power=1.0,
)
EMBEDMASK_R101 = replace(
    EMBEDMASK_R50,
    summary="EmbedMask (V3, IJCAI) with ResNet-101: 53.7 M parameters at 80 classes.",
    backbone="resnet101",
)
EMBEDMASK_SMALL = EmbedMaskSize(
    summary="EmbedMask (V3) for a CPU and for tests, trained from scratch: 4.9 M parameters; `score_threshold` is on classes.",
    backbone="resnet18",
    norm="group",
    short_px=512,
    long_px=1024,
    backbone_strides=(8, 16),
    strides=(8, 16, 32, 64),
    bounds=(64, 128, 256),
    channels=128,
    num_convs=3,
    dim=16,
    coordinates=5.0,  # φ of one half 40 px away, not 200, for objects of tens of pixels
    max_detections=300,
)

# V1 and V2: the arXiv paper and its successor


@size_class
class ScalarSize(MaskedSize):
    """Of V2, and what V1 has of it."""

    dim: Count
    """Numbers of an embedding."""


@size_class
class ArxivSize(ScalarSize):
    """Of V1."""

    smooth: Literal["mean", "sum"] = "mean"
    """Whether the spread around an object's mean embedding is averaged over its locations (the paper), or summed (the code)."""


def _early(
    size: ScalarSize, num_classes: int, positions: Positions, margin: Callable[[], nn.Module], coupling: Coupling
) -> EmbedMask:
    """What V1 and V2 share."""
    return EmbedMask(
        **size.features(),
        assigner=InMaskAssigner(bounds=size.bounds),
        fcos=size.head(num_classes, size.ranking()),
        embedding=EmbeddingParts(
            positions=positions,
            pixel_head=PixelHead(FinestTower(size.channels, num_convs=size.num_convs), size.channels, dim=size.dim),
            proposal_head=ProposalHead(nn.Identity(), size.channels, dim=size.dim, margin=margin()),
        ),
        coupling=coupling,
        extra_heads={},
        max_detections=size.max_detections,
        certainty_power=size.certainty_power,
    )


def arxiv(size: ArxivSize, num_classes: int) -> EmbedMask:
    """EmbedMask, V1."""
    coupling = _coupling(AveragedPositives(smooth=size.smooth), 0.5)
    return _early(size, num_classes, Positions(0.0), BoxMargin, coupling)


def scalar(size: ScalarSize, num_classes: int) -> EmbedMask:
    """EmbedMask, V2."""
    positions = Positions(nn.Parameter(torch.ones(1)))
    margin = partial(ScalarMargin, size.channels)
    return _early(size, num_classes, positions, margin, _coupling(best_positive, 0.53))


def _coupling(teacher: Teacher, threshold: float) -> UpsampledEmbeddings:
    cut = cut_probability(threshold)
    return UpsampledEmbeddings(teacher=teacher, windows=grown_by_a_cell, cut=cut, region=around_box)


ARXIV_R50 = ArxivSize(
    summary="EmbedMask of the arXiv paper (V1), ResNet-50: 34.8 M parameters.",
    backbone="resnet50",
    dim=32,
    score_power=1.0,
)
ARXIV_R101 = replace(
    ARXIV_R50, summary="EmbedMask of the arXiv paper (V1), ResNet-101: 53.7 M parameters.", backbone="resnet101"
)
SCALAR_R50 = ScalarSize(
    summary="EmbedMask of May 2020 (V2), one margin per object, ResNet-50: 34.6 M parameters.",
    backbone="resnet50",
    dim=8,
    score_power=1.0,
)
SCALAR_R101 = replace(
    SCALAR_R50,
    summary="EmbedMask of May 2020 (V2), one margin per object, ResNet-101: 53.6 M parameters.",
    backbone="resnet101",
)
ARXIV_SMALL = ArxivSize(
    summary="EmbedMask of the arXiv paper (V1) for a CPU and for tests, trained from scratch: 4.9 M parameters.",
    backbone="resnet18",
    norm="group",
    short_px=512,
    long_px=1024,
    backbone_strides=(8, 16),
    strides=(8, 16, 32, 64),
    bounds=(64, 128, 256),
    channels=128,
    num_convs=3,
    dim=32,
    max_detections=300,
)

# V4: on AdelaiDet


@size_class
class FusedSize(MaskedSize):
    """Of V4."""

    dim: Count
    """Numbers of an embedding."""
    coordinates: Amount
    """What coordinates / 100 px are multiplied by."""
    branch_channels: Count
    """Of the mask branch, and of what embeddings and margins are predicted from."""
    branch_norm: BranchNorm = "group"
    """Of the mask branch: one that trains, or the fixed one of the author's weights."""
    score_threshold: Share = 0.05
    """Class probability times centerness up to it is not answered."""

    def ranking(self) -> Ranking:
        """Of candidates; whose product exceeds the threshold exceeds it alone, too."""
        floor = self.score_threshold
        return Ranking(class_floor=floor, score_floor=floor**self.score_power, power=self.score_power)


def fused(size: FusedSize, num_classes: int) -> EmbedMask:
    """EmbedMask, V4."""
    if len(size.strides) < 3:
        raise ValueError(f"got strides {size.strides}, expected three at least, which are fused")
    channels, narrow, norm = size.channels, size.branch_channels, size.branch_norm
    margin = EmbeddingMargin(nn.Conv2d(channels, narrow, 1), narrow, dim=size.dim, strides=size.strides)
    return EmbedMask(
        **size.features(),
        assigner=MiddleAssigner(bounds=size.bounds),
        fcos=size.head(num_classes, size.ranking()),
        embedding=EmbeddingParts(
            positions=Positions(size.coordinates),
            pixel_head=PixelHead(FusedBranch(channels, narrow, norm=norm), narrow, dim=size.dim),
            proposal_head=ProposalHead(nn.Conv2d(channels, narrow, 1), narrow, dim=size.dim, margin=margin),
        ),
        coupling=UpsampledProbabilities(),
        extra_heads={"semantic": SemanticHead(channels, narrow, num_classes=num_classes, norm=norm)},
        max_detections=size.max_detections,
        certainty_power=size.certainty_power,
    )


FUSED_R50 = FusedSize(
    summary="EmbedMask on AdelaiDet (V4), fused mask branch, ResNet-50: 34.4 M parameters.",
    backbone="resnet50",
    dim=16,
    coordinates=1.0,
    branch_channels=128,
)
FUSED_R101 = replace(
    FUSED_R50,
    summary="EmbedMask on AdelaiDet (V4), fused mask branch, ResNet-101: 53.4 M parameters.",
    backbone="resnet101",
)
FUSED_SMALL = FusedSize(
    summary="EmbedMask on AdelaiDet (V4) for a CPU and for tests, trained from scratch: 5.0 M parameters.",
    backbone="resnet18",
    norm="group",
    short_px=512,
    long_px=1024,
    backbone_strides=(8, 16),
    strides=(8, 16, 32, 64),
    bounds=(64, 128, 256),
    channels=128,
    num_convs=3,
    dim=16,
    coordinates=5.0,
    branch_channels=64,
    max_detections=300,
)

# Lite sizes: the same on features of ImageNet

FCOS_LITE = replace(
    FCOS_SMALL,
    summary="FCOS on EfficientNet-Lite0 with ImageNet weights, for a CPU and a hundred images.",
    backbone=LITE_BACKBONE,
    norm="frozen",
    backbone_strides=(8, 16, 32),
)
EMBEDMASK_LITE = replace(
    EMBEDMASK_SMALL,
    summary="EmbedMask (V3) on EfficientNet-Lite0 with ImageNet weights, for a CPU and a hundred images.",
    backbone=LITE_BACKBONE,
    norm="frozen",
    backbone_strides=(8, 16, 32),
)
FUSED_LITE = replace(
    FUSED_SMALL,
    summary="EmbedMask on AdelaiDet (V4) on EfficientNet-Lite0 with ImageNet weights, for a CPU and a hundred images.",
    backbone=LITE_BACKBONE,
    norm="frozen",
    backbone_strides=(8, 16, 32),
)
