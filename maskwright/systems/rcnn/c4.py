"""Mask R-CNN without a pyramid: on the fourth stage of a ResNet (C4), or on its fifth with dilation (DC5).

Source: He, Gkioxari, Dollár, Girshick, Mask R-CNN (arXiv 1703.06870v3), fig. 4 left; Ren et al., Faster R-CNN (TPAMI 2017);
detectron2, which also has DC5.

Idea: one map of stride 16 for all sizes of objects, anchors of five sizes at each of its cells. With C4 the last stage of the
ResNet is the head: it looks at each RoI; its mean tells class and box, a deconvolution on top of it draws the mask.

Differs: RoIs of 14×14 cells, which the stage halves, as in detectron2; the paper's 7×7, which it keeps (fig. 4), are
`roi_side=7`. In training the last stage looks at positive RoIs twice, for the box and for the mask (elsewhere: once).

Legend: R RoIs of the batch · C channels · K classes, with the background as the last of K + 1 columns · M mask side.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.layers.initialization import init_normal
from maskwright.layers.precision import ClassConv1x1
from maskwright.layers.roi import RoiOperator, Rois
from maskwright.systems.rcnn.mask_rcnn import BoxBranch, DeconvMaskBranch
from maskwright.systems.rcnn.rpn import Features

STAGED_SIDE = 7
"""Of what the last stage answers for a RoI."""


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
        options: see `MaskBranch`.
    """

    def __init__(self, staged: StagedRois, *, width: int, hidden: int, num_classes: int, **options: Any) -> None:
        super().__init__(**options)
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
