"""Mask R-CNN without a pyramid: on the fourth stage of a ResNet (C4), or on its fifth with dilation (DC5).

Source: He, Gkioxari, Dollár, Girshick, Mask R-CNN (arXiv 1703.06870v3), fig. 4 left; Ren et al., Faster R-CNN (TPAMI 2017);
detectron2, which also has DC5.

Idea: one map of stride 16 for all sizes of objects, anchors of five sizes at each of its cells. With C4 the last stage of the
ResNet is the head: it looks at each RoI; its mean tells class and box, a deconvolution on top of it draws the mask.

Differs: RoIs of 14×14 cells, which the stage halves, as in detectron2; the paper's 7×7, which it keeps (fig. 4), are
`roi_side=7`. In training the last stage looks at positive RoIs twice, for the box and for the mask (elsewhere: once).

Legend: R RoIs of the batch · C channels · K classes, with the background as the last of K + 1 columns · M mask side.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.layers.backbones import ORIGINS, Backbone, LastStage, Origin
from maskwright.layers.grids import PyramidAnchors
from maskwright.layers.initialization import init_normal
from maskwright.layers.precision import ClassConv1x1
from maskwright.layers.roi import RoiAlign, RoiOperator, Rois
from maskwright.structures import InputSpec, ResizeRule
from maskwright.systems.rcnn.mask_rcnn import BoxBranch, BoxHead, DeconvMaskBranch, FasterRCNN, MaskHead, RoiSampler
from maskwright.systems.rcnn.rpn import Features, RegionProposalNetwork
from maskwright.systems.system import Count, Share

ANCHORS_C4 = (32, 64, 128, 256, 512)  # Mask R-CNN, sec. 3.1: five scales
STAGED_SIDE = 7
"""Of what the last stage of a published size answers for a RoI."""


class StagedRois(nn.Module):
    """Features of RoIs, and the last stage of the network on top of them.

    Args:
        pool: to S×S cells.
        stage: (R, C, S, S) → (R, 2·C, S', S').
    """

    def __init__(self, pool: RoiOperator, stage: nn.Module) -> None:
        super().__init__()
        self.pool = pool
        self.stage = stage

    def forward(self, features: Features, rois: Rois) -> Tensor:
        """{stride: (B, C, H, W)} and R RoIs → (R, 2·C, S', S')."""
        answer: Tensor = self.stage(self.pool(features, rois))
        return answer


class StagedBoxHead(BoxBranch):
    """Class and box from the mean of the last stage's answer.

    Args:
        staged: of RoIs.
        width: channels of its answer.
        options: see `BoxBranch`.
    """

    def __init__(self, staged: StagedRois, *, width: int, **options: Any) -> None:
        super().__init__(width, **options)
        self.staged = staged

    def vectors(self, features: Features, rois: Rois) -> Tensor:
        """What the last layers see, (R, 2·C)."""
        seen: Tensor = self.staged(features, rois)
        return seen.mean(dim=(2, 3))


class StagedMaskHead(DeconvMaskBranch):
    """A mask for each class from a deconvolution on the last stage's answer.

    Args:
        staged: of RoIs; it belongs to the box head and is only looked at from here.
        width: channels of its answer.
        hidden: channels of the deconvolution.
        num_classes: K.
    """

    def __init__(self, staged: StagedRois, *, width: int, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.shared = (staged,)  # in a tuple, so that its parameters are not registered twice
        self.deconv = nn.ConvTranspose2d(width, hidden, 2, stride=2)
        self.predictor = ClassConv1x1(hidden, num_classes)
        nn.init.kaiming_normal_(self.deconv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.deconv.bias)  # type: ignore[arg-type]
        init_normal(self.predictor, std=0.001)

    def hidden(self, features: Features, rois: Rois) -> Tensor:
        """Of the last stage's answer, (R, C, M, M)."""
        (staged,) = self.shared
        return F.relu(self.deconv(staged(features, rois)), inplace=True)


# Sizes


def _c4(
    body: Backbone,
    staged: StagedRois,
    *,
    input: InputSpec,
    anchors: PyramidAnchors,
    width: int,
    mask: DeconvMaskBranch | None,
    num_classes: int,
    per_image: int,
    score_threshold: float,
    **numbers: Any,
) -> FasterRCNN:
    """All parts around a backbone and a stage."""
    (channels,) = body.channels.values()
    return FasterRCNN(
        input=input,
        backbone=body,
        fpn=nn.Identity(),
        rpn=RegionProposalNetwork(channels, anchors=anchors),
        roi_sampler=RoiSampler(num_classes=num_classes, per_image=per_image),
        box_head=StagedBoxHead(staged, width=width, num_classes=num_classes, score_threshold=score_threshold),
        instance_heads={} if mask is None else {"mask": mask},
        **numbers,
    )


NUMBERS: dict[str, Any] = {"num_training_proposals": 2000, "num_candidates": (12000, 6000)}


def paper_c4(
    network: str,
    *,
    num_classes: int,
    norm: Literal["frozen", "group"],
    weights_origin: Origin,
    pool: RoiOperator,
    mask_head: type[StagedMaskHead] | None,
    resize: ResizeRule,
    **numbers: Any,
) -> FasterRCNN:
    """A published size; `pool` of stride 16 to 7×7 or 14×14."""
    origin = ORIGINS[weights_origin]
    stage = LastStage(
        network,
        norm=norm,
        norm_eps=origin.norm_eps,
        stride_in_1x1=origin.stride_in_1x1,
        stride=pool.side // STAGED_SIDE,
    )
    staged = StagedRois(pool, stage)
    return _c4(
        origin.backbone(network, strides=(16,), norm=norm),
        staged,
        input=replace(origin.input(resize), size_divisor=1),
        anchors=PyramidAnchors({16: ANCHORS_C4}),
        width=2048,
        mask=None if mask_head is None else mask_head(staged, width=2048, hidden=256, num_classes=num_classes),
        num_classes=num_classes,
        **NUMBERS,
        **numbers,
    )


def _paper_c4(network: str, *, has_masks: bool, summary: str) -> Callable[..., FasterRCNN]:
    """Builder of a published size."""

    def build(
        *,
        num_classes: int,
        norm: Literal["frozen", "group"] = "frozen",
        weights_origin: Origin = "timm",
        roi_side: Literal[7, 14] = 14,
        per_image: Count = 512,
        max_detections: Count = 100,
        num_proposals: Count = 1000,
        score_threshold: Share = 0.05,
        short_px: Count = 800,
        long_px: Count = 1333,
    ) -> FasterRCNN:
        return paper_c4(
            network,
            num_classes=num_classes,
            norm=norm,
            weights_origin=weights_origin,
            pool=RoiAlign(roi_side, strides=(16,)),
            mask_head=StagedMaskHead if has_masks else None,
            resize=ResizeRule(short_px, long_px),
            per_image=per_image,
            score_threshold=score_threshold,
            num_proposals=num_proposals,
            max_detections=max_detections,
        )

    build.__doc__ = summary
    return build


faster_rcnn_r50_c4 = _paper_c4("resnet50", has_masks=False, summary="Faster R-CNN with ResNet-50-C4: 33.8 M parameters.")
faster_rcnn_r101_c4 = _paper_c4("resnet101", has_masks=False, summary="Faster R-CNN with ResNet-101-C4: 52.7 M parameters.")
mask_rcnn_r50_c4 = _paper_c4(
    "resnet50",
    has_masks=True,
    summary="Mask R-CNN with ResNet-50-C4: 35.9 M parameters at 80 classes (table 2a). The paper's: `per_image=64 roi_side=7`.",
)
mask_rcnn_r101_c4 = _paper_c4(
    "resnet101", has_masks=True, summary="Mask R-CNN with ResNet-101-C4: 54.8 M parameters at 80 classes (table 2a)."
)


def _dc5(network: str, *, has_masks: bool, summary: str) -> Callable[..., FasterRCNN]:
    """Builder of detectron2's sizes on a dilated fifth stage."""

    def build(
        *,
        num_classes: int,
        norm: Literal["frozen", "group"] = "frozen",
        weights_origin: Origin = "timm",
        max_detections: Count = 100,
        num_proposals: Count = 1000,
        score_threshold: Share = 0.05,
        short_px: Count = 800,
        long_px: Count = 1333,
    ) -> FasterRCNN:
        origin = ORIGINS[weights_origin]
        pool, mask_pool = (RoiAlign(side, strides=(16,)) for side in (7, 14))
        mask = {"mask": MaskHead(2048, hidden=256, num_classes=num_classes, pool=mask_pool)} if has_masks else {}
        return FasterRCNN(
            input=replace(origin.input(ResizeRule(short_px, long_px)), size_divisor=1),
            backbone=origin.backbone(network, strides=(16,), norm=norm, dilated=True),
            fpn=nn.Identity(),
            rpn=RegionProposalNetwork(2048, anchors=PyramidAnchors({16: ANCHORS_C4})),
            roi_sampler=RoiSampler(num_classes=num_classes, per_image=512),
            box_head=BoxHead(2048, hidden=1024, num_classes=num_classes, pool=pool, score_threshold=score_threshold),
            instance_heads=mask,
            num_proposals=num_proposals,
            max_detections=max_detections,
            **NUMBERS,
        )

    build.__doc__ = summary
    return build


_DC5 = "a dilated fifth stage of stride 16 (detectron2's DC5)"
faster_rcnn_r50_dc5 = _dc5("resnet50", has_masks=False, summary=f"Faster R-CNN on ResNet-50 with {_DC5}: 165.6 M parameters.")
faster_rcnn_r101_dc5 = _dc5(
    "resnet101", has_masks=False, summary=f"Faster R-CNN on ResNet-101 with {_DC5}: 184.5 M parameters."
)
mask_rcnn_r50_dc5 = _dc5("resnet50", has_masks=True, summary=f"Mask R-CNN on ResNet-50 with {_DC5}: 172.4 M parameters.")
mask_rcnn_r101_dc5 = _dc5("resnet101", has_masks=True, summary=f"Mask R-CNN on ResNet-101 with {_DC5}: 191.3 M parameters.")


def small_c4(
    *, num_classes: int, pool: RoiOperator, mask_head: type[StagedMaskHead], short_px: int, long_px: int, **numbers: Any
) -> FasterRCNN:
    """For a CPU: ResNet-18 to its second stage, the third for each RoI; `pool` of stride 8 to 14×14, masks of 14×14."""
    body = Backbone("resnet18", strides=(8,), norm="group")
    staged = StagedRois(pool, LastStage("resnet18", norm="group", stage="layer3"))
    return _c4(
        body,
        staged,
        input=InputSpec(resize=ResizeRule(short_px, long_px)),
        anchors=PyramidAnchors({8: (24, 48, 96, 192, 384)}),
        width=256,
        mask=mask_head(staged, width=256, hidden=128, num_classes=num_classes),
        num_classes=num_classes,
        per_image=64,
        num_training_proposals=500,
        num_candidates=(2000, 1000),
        **numbers,
    )


def mask_rcnn_c4_small(
    *,
    num_classes: int,
    max_detections: Count = 300,
    num_proposals: Count = 500,
    score_threshold: Share = 0.05,
    short_px: Count = 512,
    long_px: Count = 1024,
) -> FasterRCNN:
    """Mask R-CNN for a CPU without a pyramid: ResNet-18 to its second stage, the third for each RoI; 3.1 M parameters."""
    return small_c4(
        num_classes=num_classes,
        pool=RoiAlign(14, strides=(8,), sampling_ratio=2),
        mask_head=StagedMaskHead,
        short_px=short_px,
        long_px=long_px,
        score_threshold=score_threshold,
        num_proposals=num_proposals,
        max_detections=max_detections,
    )
