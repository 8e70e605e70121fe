"""MNC trained one stage after the other: rows a and b of its table 1, which show what joint training is worth.

Source: MNC (arXiv 1512.04412), sec. 7, table 1. The stages follow each other as steps of a recipe; no gradient leaves a stage
through the boxes and masks it is given.
"""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from maskwright.layers.roi import RoiWarp
from maskwright.structures import InputSpec, ResizeRule
from maskwright.systems.cascades.mnc import MNC, small_parts
from maskwright.systems.cascades.voting import MaskVoting
from maskwright.systems.system import Count, Share


class StepwiseMNC(MNC):
    """A cascade whose stages learn nothing from each other but what they are given."""

    def pass_boxes(self, boxes: list[Tensor]) -> list[Tensor]:
        """Boxes as numbers."""
        return [b.detach() for b in boxes]

    def pass_masks(self, probs: Tensor) -> Tensor:
        """Masks as numbers."""
        return probs.detach()


def _stepwise(*, is_shared: bool, summary: str) -> Callable[..., StepwiseMNC]:
    def build(
        *,
        num_classes: int,
        inference_stages: Literal[3, 5] = 5,
        max_detections: Count = 300,
        num_proposals: Count = 300,
        score_threshold: Share = 0.0,
        short_px: Count = 512,
        long_px: Count = 1024,
    ) -> StepwiseMNC:
        return StepwiseMNC(
            input=InputSpec(resize=ResizeRule(short_px, long_px)),
            voting=MaskVoting(score_threshold=score_threshold),
            training_stages=3,
            inference_stages=inference_stages,
            max_detections=max_detections,
            **small_parts(num_classes=num_classes, backbones=1 if is_shared else 3, num_proposals=num_proposals, warp=RoiWarp),
        )

    build.__doc__ = summary
    return build


mnc_stepwise_small = _stepwise(is_shared=True, summary="MNC's small size, its stages trained one after the other.")
mnc_unshared_small = _stepwise(is_shared=False, summary="The same with a backbone for each stage: 10.1 M parameters.")
