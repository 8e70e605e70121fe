"""MNC trained one stage after the other: rows a and b of its table 1, which show what joint training is worth.

Source: MNC (arXiv 1512.04412), sec. 7, table 1. The stages follow each other as steps of a recipe; no gradient leaves a stage
through the boxes and masks it is given.
"""

from torch import Tensor

from maskwright.systems.cascades.mnc import MNC


class StepwiseMNC(MNC):
    """A cascade whose stages learn nothing from each other but what they are given."""

    def pass_boxes(self, boxes: list[Tensor]) -> list[Tensor]:
        """Boxes as numbers."""
        return [b.detach() for b in boxes]

    def pass_masks(self, probs: Tensor) -> Tensor:
        """Masks as numbers."""
        return probs.detach()
