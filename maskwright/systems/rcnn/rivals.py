"""What Mask R-CNN was compared with: other RoI operators, mask heads and outputs (Mask R-CNN, sec. 4.2, table 2).

Source: He, Gkioxari, Dollár, Girshick, Mask R-CNN (arXiv 1703.06870v3). Of the softmax only the result is published; here it is
that of a fully convolutional network (arXiv 1411.4038), with the background as one more class.

    maskwright compare "mask-rcnn-rivals-small arguments.roi=pool" "mask-rcnn-rivals-small arguments.roi=align" --data nuclei

Differs: the paper's tables come from an RPN trained alone, these learn with it.

Legend: R RoIs of the batch · C channels · K classes · M mask side.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.layers.backbones import ORIGINS, Backbone
from maskwright.layers.grids import PyramidAnchors
from maskwright.layers.initialization import init_normal
from maskwright.layers.precision import Float32Conv2d, Float32Linear
from maskwright.layers.roi import (
    ByLevel,
    MeanRoiWarp,
    RoiAlign,
    RoiAlignMax,
    RoiOperator,
    RoiPool,
    Rois,
    RoundedRoiWarp,
)
from maskwright.structures import InputSpec, Instances, ResizeRule
from maskwright.systems.rcnn.c4 import ANCHORS_C4, NUMBERS, StagedMaskHead, paper_c4, small_c4
from maskwright.systems.rcnn.keypoints import KeypointHead
from maskwright.systems.rcnn.mask_rcnn import (
    SMALL_STRIDES,
    STRIDES,
    BoxHead,
    DeconvMaskBranch,
    FasterRCNN,
    MaskBranch,
    MaskHead,
    RoiSampler,
    SampledRois,
    pyramid_parts,
    small_parts,
)
from maskwright.systems.rcnn.rpn import Features, RegionProposalNetwork
from maskwright.systems.system import Count, Loss, Share


class Agnostic(DeconvMaskBranch):
    """Before a mask head: one mask for each RoI, whatever its class (sec. 4.2, class-agnostic masks)."""

    CLASS_ROWS: ClassVar[dict[str, int]] = {}

    def __init__(self, seen: Any, *, num_classes: int, **options: Any) -> None:
        super().__init__(seen, num_classes=1, **options)  # type: ignore[call-arg]

    def forward(self, features: Features, rois: Rois, labels: Tensor) -> Tensor:
        """Mask logits of each RoI, (R, M, M)."""
        return super().forward(features, rois, torch.zeros_like(labels))


class Softmax(DeconvMaskBranch):
    """Before a mask head: classes compete for each pixel, and with the background (table 2b, multinomial)."""

    def __init__(self, seen: Any, *, num_classes: int, **options: Any) -> None:
        super().__init__(seen, num_classes=num_classes, **options)  # type: ignore[call-arg]
        self.predictor = Float32Conv2d(self.deconv.out_channels, num_classes + 1, 1)
        init_normal(self.predictor, std=0.001)

    def loss(self, features: Features, sampled: SampledRois, targets: list[Instances]) -> dict[str, Loss]:
        """Softmax cross entropy per pixel: the object's class inside its mask, the background around it."""
        rois = sampled.positives
        logits = self.predictor(self.hidden(features, rois))  # (R⁺, K + 1, M, M)
        inside = self.wanted(sampled, targets, side=logits.shape[-1]) >= 0.5
        wanted = torch.where(inside, sampled.labels[: len(rois), None, None], logits.shape[1] - 1)
        return {"mask": Loss(F.cross_entropy(logits, wanted, reduction="sum"), logits.new_tensor(wanted.numel()))}

    def forward(self, features: Features, rois: Rois, labels: Tensor) -> Tensor:
        """Log odds of each RoI's class against all others, (R, M, M)."""
        shares: Tensor = self.predictor(self.hidden(features, rois)).log_softmax(dim=1)
        own = shares[torch.arange(len(labels), device=labels.device), labels]
        return own - torch.log1p(-own.exp().clamp(max=1 - 1e-6))


class AgnosticMaskHead(Agnostic, MaskHead):
    """Of convolutions."""


class SoftmaxMaskHead(Softmax, MaskHead):
    """Of convolutions."""


class AgnosticStagedMaskHead(Agnostic, StagedMaskHead):
    """On C4."""


class SoftmaxStagedMaskHead(Softmax, StagedMaskHead):
    """On C4."""


class MlpMaskHead(MaskBranch):
    """A mask for each class from hidden layers (table 2e): pixels lose their place and find it again.

    Args:
        channels: of the features.
        num_classes: K.
        pool: to half the side of the masks.
        hidden: units of each layer.
        depth: layers.
        options: see `MaskBranch`.
    """

    def __init__(
        self, channels: int, *, num_classes: int, pool: RoiOperator, hidden: int = 1024, depth: int = 2, **options: Any
    ) -> None:
        super().__init__(**options)
        self.pool = pool
        self.side = 2 * pool.side
        widths = [channels * pool.side**2, *[hidden] * depth]
        layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
        self.layers = nn.ModuleList(layers)
        self.predictor = Float32Linear(hidden, num_classes * self.side**2)
        for layer in layers:
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)
        init_normal(self.predictor, std=0.001)

    @property
    def CLASS_ROWS(self) -> dict[str, int]:  # noqa: N802 (as in the other heads)
        """Rows of each class."""
        return {"predictor.weight": self.side**2, "predictor.bias": self.side**2}

    def forward(self, features: Features, rois: Rois, labels: Tensor) -> Tensor:
        """Mask logits of each RoI for the class it is given, (R, M, M)."""
        hidden = self.pool(features, rois).flatten(1)  # (R, C·M/2·M/2)
        for layer in self.layers:
            hidden = F.relu(layer(hidden), inplace=True)
        logits: Tensor = self.predictor(hidden).unflatten(1, (-1, self.side, self.side))
        return logits[torch.arange(len(labels), device=labels.device), labels]


# Sizes

Operator = Literal["align", "align-max", "align-legacy", "pool", "warp", "warp-mean"]
ROI_OPERATORS: dict[Operator, Callable[..., RoiOperator]] = {
    "align": lambda side, strides: RoiAlign(side, strides=strides, sampling_ratio=2),
    "align-max": lambda side, strides: RoiAlignMax(side, strides=strides, sampling_ratio=2),
    "align-legacy": lambda side, strides: RoiAlign(side, strides=strides, sampling_ratio=2, aligned=False),
    "pool": lambda side, strides: ByLevel({stride: RoiPool(side, stride=stride) for stride in strides}),
    "warp": lambda side, strides: ByLevel({stride: RoundedRoiWarp(side, stride=stride) for stride in strides}),
    "warp-mean": lambda side, strides: ByLevel({stride: MeanRoiWarp(side, stride=stride) for stride in strides}),
}
Mask = Literal["sigmoid", "softmax", "agnostic", "mlp", "mlp-3"]
MASK_HEADS: dict[Mask, Callable[..., MaskBranch]] = {
    "sigmoid": MaskHead,
    "softmax": SoftmaxMaskHead,
    "agnostic": AgnosticMaskHead,
    "mlp": MlpMaskHead,
    "mlp-3": partial(MlpMaskHead, depth=3),
}
SMALL_MASK_HEADS: dict[Mask, Callable[..., MaskBranch]] = {
    **MASK_HEADS,
    "mlp": partial(MlpMaskHead, hidden=25),
    "mlp-3": partial(MlpMaskHead, hidden=25, depth=3),
}
StagedMask = Literal["sigmoid", "softmax", "agnostic"]
STAGED_MASK_HEADS: dict[StagedMask, type[StagedMaskHead]] = {
    "sigmoid": StagedMaskHead,
    "softmax": SoftmaxStagedMaskHead,
    "agnostic": AgnosticStagedMaskHead,
}


def mask_rcnn_rivals_r50_fpn(
    *,
    num_classes: int,
    roi: Operator = "align",
    mask: Mask = "sigmoid",
    norm: Literal["frozen", "group"] = "frozen",
    max_detections: Count = 100,
    num_proposals: Count = 1000,
    score_threshold: Share = 0.05,
    short_px: Count = 800,
    long_px: Count = 1333,
) -> FasterRCNN:
    """Mask R-CNN with ResNet-50 and FPN and parts it was compared with (table 2e): 44.3 M parameters at 80 classes."""
    pool, sizes = partial(ROI_OPERATORS[roi], strides=STRIDES), ResizeRule(short_px, long_px)
    options = {"norm": norm, "score_threshold": score_threshold, "resize": sizes, "pool": pool}
    parts = pyramid_parts("resnet50", num_classes=num_classes, weights_origin="timm", **options)  # type: ignore[arg-type]
    return FasterRCNN(
        **parts,
        instance_heads={"mask": MASK_HEADS[mask](256, num_classes=num_classes, pool=pool(14))},
        num_proposals=num_proposals,
        num_training_proposals=1000,
        num_candidates=(2000, 0),
        max_detections=max_detections,
    )


def mask_rcnn_rivals_r50_c4(
    *,
    num_classes: int,
    roi: Operator = "align",
    mask: StagedMask = "sigmoid",
    norm: Literal["frozen", "group"] = "frozen",
    max_detections: Count = 100,
    num_proposals: Count = 300,
    score_threshold: Share = 0.05,
    short_px: Count = 800,
    long_px: Count = 1333,
) -> FasterRCNN:
    """Mask R-CNN with ResNet-50-C4, 64 RoIs of 7×7 cells, and such parts (tables 2b, 2c): 35.9 M parameters at 80 classes."""
    return paper_c4(
        "resnet50",
        num_classes=num_classes,
        norm=norm,
        weights_origin="timm",
        pool=ROI_OPERATORS[roi](7, strides=(16,)),
        mask_head=STAGED_MASK_HEADS[mask],
        resize=ResizeRule(short_px, long_px),
        per_image=64,
        score_threshold=score_threshold,
        num_proposals=num_proposals,
        max_detections=max_detections,
    )


def mask_rcnn_rivals_r50_c5(
    *,
    num_classes: int,
    roi: Operator = "align",
    norm: Literal["frozen", "group"] = "frozen",
    max_detections: Count = 100,
    num_proposals: Count = 1000,
    score_threshold: Share = 0.05,
    short_px: Count = 800,
    long_px: Count = 1333,
) -> FasterRCNN:
    """Mask R-CNN on the last map of ResNet-50 alone, of stride 32 (table 2d): 172.4 M parameters at 80 classes."""
    return _one_map(
        ORIGINS["timm"].backbone("resnet50", strides=(32,), norm=norm),
        roi,
        input=ORIGINS["timm"].input(ResizeRule(short_px, long_px)),
        sizes=ANCHORS_C4,
        hidden=(1024, 256),
        num_classes=num_classes,
        per_image=512,
        score_threshold=score_threshold,
        num_proposals=num_proposals,
        max_detections=max_detections,
        **NUMBERS,
    )


def keypoint_rcnn_rivals_r50_fpn(
    *,
    num_classes: int,
    num_keypoints: Count = 17,
    roi: Operator = "align",
    norm: Literal["frozen", "group"] = "frozen",
    max_detections: Count = 100,
    num_proposals: Count = 1000,
    score_threshold: Share = 0.05,
    short_px: Count = 800,
    long_px: Count = 1333,
) -> FasterRCNN:
    """Keypoint R-CNN with ResNet-50 and FPN and other RoI operators (table 6): 59.1 M parameters for persons."""
    pool, sizes = partial(ROI_OPERATORS[roi], strides=STRIDES), ResizeRule(short_px, long_px)
    options = {"norm": norm, "score_threshold": score_threshold, "resize": sizes, "pool": pool, "box_beta": 0.5}
    parts = pyramid_parts("resnet50", num_classes=num_classes, weights_origin="timm", **options)  # type: ignore[arg-type]
    return FasterRCNN(
        **parts,
        instance_heads={"keypoint": KeypointHead(256, num_keypoints=num_keypoints, pool=pool(14))},
        num_proposals=num_proposals,
        num_training_proposals=1500,
        num_candidates=(2000, 0),
        max_detections=max_detections,
    )


def _one_map(
    body: Backbone,
    roi: Operator,
    *,
    input: InputSpec,
    sizes: tuple[int, ...],
    hidden: tuple[int, int],
    num_classes: int,
    per_image: int,
    score_threshold: float,
    **numbers: Any,
) -> FasterRCNN:
    """The heads of a pyramid on one map; units of the box head and channels of the mask head."""
    ((stride, channels),) = body.channels.items()
    pool = partial(ROI_OPERATORS[roi], strides=(stride,))
    return FasterRCNN(
        input=input,
        backbone=body,
        fpn=nn.Identity(),
        rpn=RegionProposalNetwork(channels, anchors=PyramidAnchors({stride: sizes})),
        roi_sampler=RoiSampler(num_classes=num_classes, per_image=per_image),
        box_head=BoxHead(channels, hidden=hidden[0], num_classes=num_classes, pool=pool(7), score_threshold=score_threshold),
        instance_heads={"mask": MaskHead(channels, hidden=hidden[1], num_classes=num_classes, pool=pool(14))},
        **numbers,
    )


def mask_rcnn_rivals_small(
    *,
    num_classes: int,
    roi: Operator = "align",
    mask: Mask = "sigmoid",
    max_detections: Count = 300,
    num_proposals: Count = 500,
    score_threshold: Share = 0.05,
    short_px: Count = 512,
    long_px: Count = 1024,
) -> FasterRCNN:
    """Mask R-CNN for a CPU with the parts it was compared with: 4.9 M parameters; MLPs with 25 hidden units (table 2e)."""
    pool = partial(ROI_OPERATORS[roi], strides=SMALL_STRIDES)
    sizes = {"score_threshold": score_threshold, "short_px": short_px, "long_px": long_px}
    return FasterRCNN(
        **small_parts(num_classes=num_classes, pool=pool, **sizes),  # type: ignore[arg-type]
        instance_heads={"mask": SMALL_MASK_HEADS[mask](128, num_classes=num_classes, pool=pool(14))},
        num_proposals=num_proposals,
        num_training_proposals=500,
        num_candidates=(1000, 0),
        max_detections=max_detections,
    )


def mask_rcnn_rivals_c4_small(
    *,
    num_classes: int,
    roi: Operator = "align",
    mask: StagedMask = "sigmoid",
    max_detections: Count = 300,
    num_proposals: Count = 500,
    score_threshold: Share = 0.05,
    short_px: Count = 512,
    long_px: Count = 1024,
) -> FasterRCNN:
    """Mask R-CNN for a CPU without a pyramid, with parts it was compared with (tables 2b, 2c): 3.1 M parameters."""
    return small_c4(
        num_classes=num_classes,
        pool=ROI_OPERATORS[roi](14, strides=(8,)),
        mask_head=STAGED_MASK_HEADS[mask],
        short_px=short_px,
        long_px=long_px,
        score_threshold=score_threshold,
        num_proposals=num_proposals,
        max_detections=max_detections,
    )


def mask_rcnn_rivals_c5_small(
    *,
    num_classes: int,
    roi: Operator = "align",
    max_detections: Count = 300,
    num_proposals: Count = 500,
    score_threshold: Share = 0.05,
    short_px: Count = 512,
    long_px: Count = 1024,
) -> FasterRCNN:
    """Mask R-CNN for a CPU on the last map of the body alone, of stride 16 (table 2d): 4.7 M parameters."""
    return _one_map(
        Backbone("resnet18", strides=(16,), norm="group"),
        roi,
        input=InputSpec(resize=ResizeRule(short_px, long_px)),
        sizes=(24, 48, 96, 192, 384),
        hidden=(64, 96),
        num_classes=num_classes,
        per_image=128,
        score_threshold=score_threshold,
        num_proposals=num_proposals,
        num_training_proposals=500,
        num_candidates=(2000, 1000),
        max_detections=max_detections,
    )


def keypoint_rcnn_rivals_small(
    *,
    num_classes: int,
    num_keypoints: Count = 17,
    roi: Operator = "align",
    max_detections: Count = 100,
    num_proposals: Count = 500,
    score_threshold: Share = 0.05,
    short_px: Count = 512,
    long_px: Count = 1024,
) -> FasterRCNN:
    """Keypoint R-CNN for a CPU with other RoI operators (table 6): 4.9 M parameters."""
    pool = partial(ROI_OPERATORS[roi], strides=SMALL_STRIDES)
    sizes = {"score_threshold": score_threshold, "short_px": short_px, "long_px": long_px}
    return FasterRCNN(
        **small_parts(num_classes=num_classes, pool=pool, **sizes),  # type: ignore[arg-type]
        instance_heads={"keypoint": KeypointHead(128, num_keypoints=num_keypoints, pool=pool(14), depth=4, hidden=128)},
        num_proposals=num_proposals,
        num_training_proposals=500,
        num_candidates=(1000, 0),
        max_detections=max_detections,
    )
