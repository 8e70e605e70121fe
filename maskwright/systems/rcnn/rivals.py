"""What Mask R-CNN was compared with: other RoI operators, mask heads and outputs (Mask R-CNN, sec. 4.2, table 2).

Source: He, Gkioxari, Dollár, Girshick, Mask R-CNN (arXiv 1703.06870v3). Of the softmax only the result is published; here it is
that of a fully convolutional network (arXiv 1411.4038), with the background as one more class.

    maskwright compare "mask-rcnn-small arguments.roi=pool" "mask-rcnn-small arguments.roi=align" --data nuclei

Differs: the paper's tables come from an RPN trained alone, these learn with it.

Legend: R RoIs of the batch · C channels · K classes · M mask side.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.layers.initialization import init_normal
from maskwright.layers.precision import Float32Conv2d, Float32Linear
from maskwright.layers.roi import ByLevel, MeanRoiWarp, RoiAlign, RoiAlignMax, RoiOperator, RoiPool, Rois, RoundedRoiWarp
from maskwright.structures import Instances
from maskwright.systems.rcnn.c4 import StagedMaskHead
from maskwright.systems.rcnn.mask_rcnn import DeconvMaskBranch, MaskBranch, MaskHead, SampledRois
from maskwright.systems.rcnn.rpn import Features
from maskwright.systems.system import Loss


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


# Names of the parts

Operator = Literal["align", "align-max", "align-legacy", "pool", "warp", "warp-mean"]
ROI_OPERATORS: dict[Operator, Callable[[int, Sequence[int], int], RoiOperator]] = {
    "align": lambda side, strides, samples: RoiAlign(side, strides=strides, sampling_ratio=samples),
    "align-max": lambda side, strides, samples: RoiAlignMax(side, strides=strides, sampling_ratio=samples),
    "align-legacy": lambda side, strides, samples: RoiAlign(side, strides=strides, sampling_ratio=samples, aligned=False),
    "pool": lambda side, strides, _: ByLevel({stride: RoiPool(side, stride=stride) for stride in strides}),
    "warp": lambda side, strides, _: ByLevel({stride: RoundedRoiWarp(side, stride=stride) for stride in strides}),
    "warp-mean": lambda side, strides, _: ByLevel({stride: MeanRoiWarp(side, stride=stride) for stride in strides}),
}
"""From cells a side, strides of the levels, and samples of a cell a side, which RoIAlign alone has (0: as many as features)."""

Mask = Literal["sigmoid", "softmax", "agnostic", "mlp", "mlp-3"]
StagedMask = Literal["sigmoid", "softmax", "agnostic"]
CONV_MASK_HEADS: dict[Mask, type[MaskHead]] = {
    "sigmoid": MaskHead,
    "softmax": SoftmaxMaskHead,
    "agnostic": AgnosticMaskHead,
}
MLP_DEPTHS: dict[Mask, int] = {"mlp": 2, "mlp-3": 3}
STAGED_MASK_HEADS: dict[StagedMask, type[StagedMaskHead]] = {
    "sigmoid": StagedMaskHead,
    "softmax": SoftmaxStagedMaskHead,
    "agnostic": AgnosticStagedMaskHead,
}
