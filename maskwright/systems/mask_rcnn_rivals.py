"""What Mask R-CNN was compared with: other RoI operators, mask heads and outputs (Mask R-CNN, sec. 4.2, table 2).

Source: He, Gkioxari, Dollár, Girshick, Mask R-CNN (arXiv 1703.06870v3). Of the softmax only the result is published; here it is
that of a fully convolutional network (arXiv 1411.4038), with the background as one more class.

    maskwright compare "mask-rcnn-rivals-small arguments.roi=pool" "mask-rcnn-rivals-small arguments.roi=align" --data nuclei

Legend: R RoIs of the batch · C channels · K classes · M mask side.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.layers.backbones import Backbone
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
from maskwright.systems.keypoint_rcnn import KeypointHead
from maskwright.systems.mask_rcnn import (
    SMALL_STRIDES,
    BoxHead,
    DeconvMaskBranch,
    FasterRCNN,
    MaskBranch,
    MaskHead,
    RoiSampler,
    SampledRois,
    small_parts,
)
from maskwright.systems.mask_rcnn_c4 import StagedMaskHead, small_c4
from maskwright.systems.rpn import Features, RegionProposalNetwork
from maskwright.systems.system import Count, Loss, Share


class Agnostic(DeconvMaskBranch):
    """One mask for each RoI, whatever its class (sec. 4.2, class-agnostic masks): of the head named next to it."""

    CLASS_ROWS: ClassVar[dict[str, int]] = {}

    def __init__(self, seen: Any, *, num_classes: int, **options: Any) -> None:
        super().__init__(seen, num_classes=1, **options)  # type: ignore[call-arg]

    def forward(self, features: Features, rois: Rois, labels: Tensor) -> Tensor:
        """Mask logits of each RoI, (R, M, M)."""
        return super().forward(features, rois, torch.zeros_like(labels))


class Softmax(DeconvMaskBranch):
    """Classes compete for each pixel, and with the background (table 2b, multinomial): of the head named next to it."""

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
    """On a pyramid."""


class SoftmaxMaskHead(Softmax, MaskHead):
    """On a pyramid."""


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


# Small sizes

Operator = Literal["align", "align-max", "align-legacy", "pool", "warp", "warp-mean"]
ROI_OPERATORS: dict[Operator, Callable[..., RoiOperator]] = {
    "align": lambda side, strides: RoiAlign(side, strides=strides, sampling_ratio=2),
    "align-max": lambda side, strides: RoiAlignMax(side, strides=strides, sampling_ratio=2),
    "align-legacy": lambda side, strides: RoiAlign(side, strides=strides, sampling_ratio=2, aligned=False),
    "pool": lambda side, strides: ByLevel({stride: RoiPool(side, stride=stride) for stride in strides}),
    "warp": lambda side, strides: ByLevel({stride: RoundedRoiWarp(side, stride=stride) for stride in strides}),
    "warp-mean": lambda side, strides: ByLevel({stride: MeanRoiWarp(side, stride=stride) for stride in strides}),
}
MASK_HEADS: dict[str, Callable[..., MaskBranch]] = {
    "sigmoid": MaskHead,
    "softmax": SoftmaxMaskHead,
    "agnostic": AgnosticMaskHead,
    "mlp": partial(MlpMaskHead, hidden=25),
    "mlp-3": partial(MlpMaskHead, hidden=25, depth=3),
}
STAGED_MASK_HEADS: dict[str, type[StagedMaskHead]] = {
    "sigmoid": StagedMaskHead,
    "softmax": SoftmaxStagedMaskHead,
    "agnostic": AgnosticStagedMaskHead,
}
ONE_STRIDE = 16  # the small body has no coarser map; the paper's is of stride 32


def mask_rcnn_rivals_small(
    *,
    num_classes: int,
    roi: Operator = "align",
    mask: Literal["sigmoid", "softmax", "agnostic", "mlp", "mlp-3"] = "sigmoid",
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
        instance_heads={"mask": MASK_HEADS[mask](128, num_classes=num_classes, pool=pool(14))},
        num_proposals=num_proposals,
        num_training_proposals=500,
        num_candidates=(1000, 0),
        max_detections=max_detections,
    )


def mask_rcnn_rivals_c4_small(
    *,
    num_classes: int,
    roi: Operator = "align",
    mask: Literal["sigmoid", "softmax", "agnostic"] = "sigmoid",
    max_detections: Count = 300,
    num_proposals: Count = 500,
    score_threshold: Share = 0.05,
    short_px: Count = 512,
    long_px: Count = 1024,
) -> FasterRCNN:
    """The same without a pyramid, where the paper compared RoI operators and outputs (tables 2b, 2c): 3.1 M parameters."""
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
    """The heads of a pyramid on the last map alone, where a quantized RoI loses most (table 2d): 4.7 M parameters."""
    body, pool = Backbone("resnet18", strides=(ONE_STRIDE,), norm="group"), partial(ROI_OPERATORS[roi], strides=(ONE_STRIDE,))
    (channels,) = body.channels.values()
    return FasterRCNN(
        input=InputSpec(resize=ResizeRule(short_px, long_px)),
        backbone=body,
        fpn=nn.Identity(),
        rpn=RegionProposalNetwork(channels, anchors=PyramidAnchors({ONE_STRIDE: (24, 48, 96, 192, 384)})),
        roi_sampler=RoiSampler(num_classes=num_classes, per_image=128),
        box_head=BoxHead(channels, hidden=64, num_classes=num_classes, pool=pool(7), score_threshold=score_threshold),
        instance_heads={"mask": MaskHead(channels, hidden=96, num_classes=num_classes, pool=pool(14))},
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
