"""What Mask R-CNN was compared with: other RoI operators, mask heads and outputs (Mask R-CNN, sec. 4.2, table 2).

Source: He, Gkioxari, Dollár, Girshick, Mask R-CNN (arXiv 1703.06870v3). Of the softmax only the result is published; here it is
that of a fully convolutional network (arXiv 1411.4038), with the background as one more class.

    maskwright compare "mask-rcnn-rivals-small arguments.roi=pool" "mask-rcnn-rivals-small arguments.roi=align" --data nuclei

Legend: R RoIs of the batch · C channels · K classes · M mask side.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
from maskwright.structures import Instances
from maskwright.systems.mask_rcnn import SMALL_STRIDES, FasterRCNN, MaskBranch, MaskHead, SampledRois, small_parts
from maskwright.systems.rpn import Features
from maskwright.systems.system import Loss


class AgnosticMaskHead(MaskHead):
    """One mask for each RoI, whatever its class (sec. 4.2, class-specific vs. class-agnostic masks)."""

    CLASS_ROWS: ClassVar[dict[str, int]] = {}

    def __init__(self, channels: int, *, num_classes: int, pool: RoiOperator, **options: Any) -> None:
        super().__init__(channels, num_classes=1, pool=pool, **options)

    def forward(self, features: Features, rois: Rois, labels: Tensor) -> Tensor:
        """Mask logits of each RoI, (R, M, M)."""
        return super().forward(features, rois, torch.zeros_like(labels))


class SoftmaxMaskHead(MaskHead):
    """Classes compete for each pixel, and with the background (table 2b, multinomial)."""

    def __init__(self, channels: int, *, num_classes: int, pool: RoiOperator, **options: Any) -> None:
        super().__init__(channels, num_classes=num_classes, pool=pool, **options)
        self.predictor = Float32Conv2d(channels, num_classes + 1, 1)
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


class MlpMaskHead(MaskBranch):
    """A mask for each class from two hidden layers (table 2e): pixels lose their place and find it again.

    Args:
        channels: of the features.
        num_classes: K.
        pool: to half the side of the masks.
        hidden: units of both layers.
        options: see `MaskBranch`.
    """

    def __init__(self, channels: int, *, num_classes: int, pool: RoiOperator, hidden: int = 1024, **options: Any) -> None:
        super().__init__(**options)
        self.pool = pool
        self.side = 2 * pool.side
        self.fc1 = nn.Linear(channels * pool.side**2, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.predictor = Float32Linear(hidden, num_classes * self.side**2)
        for layer in (self.fc1, self.fc2):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)
        init_normal(self.predictor, std=0.001)

    @property
    def CLASS_ROWS(self) -> dict[str, int]:  # noqa: N802 (as in the other heads)
        """Rows of each class."""
        return {"predictor.weight": self.side**2, "predictor.bias": self.side**2}

    def forward(self, features: Features, rois: Rois, labels: Tensor) -> Tensor:
        """Mask logits of each RoI for the class it is given, (R, M, M)."""
        hidden = F.relu(self.fc1(self.pool(features, rois).flatten(1)), inplace=True)
        hidden = F.relu(self.fc2(hidden), inplace=True)
        logits: Tensor = self.predictor(hidden).unflatten(1, (-1, self.side, self.side))
        return logits[torch.arange(len(labels), device=labels.device), labels]


# A small size

ROI_OPERATORS: dict[str, Callable[[int], RoiOperator]] = {
    "align": lambda side: RoiAlign(side, strides=SMALL_STRIDES, sampling_ratio=2),
    "align-max": lambda side: RoiAlignMax(side, strides=SMALL_STRIDES, sampling_ratio=2),
    "align-legacy": lambda side: RoiAlign(side, strides=SMALL_STRIDES, sampling_ratio=2, aligned=False),
    "pool": lambda side: ByLevel({stride: RoiPool(side, stride=stride) for stride in SMALL_STRIDES}),
    "warp": lambda side: ByLevel({stride: RoundedRoiWarp(side, stride=stride) for stride in SMALL_STRIDES}),
    "warp-mean": lambda side: ByLevel({stride: MeanRoiWarp(side, stride=stride) for stride in SMALL_STRIDES}),
}
MASK_HEADS: dict[str, Callable[..., MaskBranch]] = {
    "sigmoid": MaskHead,
    "softmax": SoftmaxMaskHead,
    "agnostic": AgnosticMaskHead,
    "mlp": lambda channels, **options: MlpMaskHead(channels, hidden=32, **options),
}


def mask_rcnn_rivals_small(
    *,
    num_classes: int,
    roi: Literal["align", "align-max", "align-legacy", "pool", "warp", "warp-mean"] = "align",
    mask: Literal["sigmoid", "softmax", "agnostic", "mlp"] = "sigmoid",
    max_detections: int = 300,
    num_proposals: int = 500,
    score_threshold: float = 0.05,
    short_px: int = 512,
    long_px: int = 1024,
) -> FasterRCNN:
    """Mask R-CNN for a CPU with the parts it was compared with: 4.9 M parameters at one class; the MLP with 32 hidden units."""
    pool = ROI_OPERATORS[roi]
    sizes = {"score_threshold": score_threshold, "short_px": short_px, "long_px": long_px}
    return FasterRCNN(
        **small_parts(num_classes=num_classes, pool=pool, **sizes),  # type: ignore[arg-type]
        instance_heads={"mask": MASK_HEADS[mask](128, num_classes=num_classes, pool=pool(14))},
        num_proposals=num_proposals,
        num_training_proposals=500,
        num_candidates=(1000, 0),
        max_detections=max_detections,
    )
