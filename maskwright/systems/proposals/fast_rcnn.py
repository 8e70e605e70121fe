"""Fast R-CNN: classes and better boxes for proposals that somebody else made, whose masks it passes on.

Source: Girshick, Fast R-CNN (ICCV 2015, arXiv 1504.08083) and its code; DeepMask (arXiv 1506.06204), sec. 5.3, and SharpMask
(arXiv 1603.08695), sec. 5, which put it on their proposals.

Idea: features of the whole image once; from each proposal's box a fixed grid of them; two hidden layers; a class and, for each
class, a correction of the box. A detection keeps the mask of the proposal it came from.

Differs from the paper: RGB pixels as timm's and torchvision's weights want them; box targets divided by fixed numbers, as its
author's later code does; RoIs drawn without replacement.

Legend: R proposals of the batch · K classes, with the background as the last of K + 1 columns · C channels.
"""

from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.layers.backbones import VGG_HIDDEN, ImageNetPart
from maskwright.layers.dropout import keyed_dropout
from maskwright.layers.roi import Rois
from maskwright.structures import ImageBatch, InputSpec, Instances
from maskwright.structures import boxes as box_functions
from maskwright.systems.rcnn.mask_rcnn import BoxHead, BoxSelection, RoiSampler, SampledRois, box_losses
from maskwright.systems.rcnn.rpn import Features
from maskwright.systems.system import Loss, Task, loss_by_size, predict_by_size


class FastRCNN(nn.Module):
    """A detector on proposals.

    Args:
        input: how an image becomes pixels.
        features: {stride: features} from pixels.
        roi_sampler: draws the proposals it learns from.
        box_head: class and box of a proposal.
        has_masks: whether proposals bring masks, which detections then have.
        num_proposals: of an image that are looked at, the best ones.
        max_detections: per image.
    """

    def __init__(
        self,
        *,
        input: InputSpec,
        features: nn.Module,
        roi_sampler: RoiSampler,
        box_head: BoxSelection,
        has_masks: bool,
        num_proposals: int,
        max_detections: int,
    ) -> None:
        super().__init__()
        self.input = input
        self.task = Task.INSTANCES if has_masks else Task.BOXES
        self.features = features
        self.roi_sampler = roi_sampler
        self.box_head: Any = box_head
        self.num_proposals = num_proposals
        self.max_detections = max_detections

    @loss_by_size
    def loss(self, images: ImageBatch, targets: list[Instances]) -> dict[str, Loss]:
        """Class and box, weights 1:1 (Fast R-CNN, eq. 1)."""
        generators = images.generators()
        features = self.features(images.pixels)
        proposals = self._proposals(images)
        sampled = self.roi_sampler([p.boxes for p in proposals], targets, generators)
        losses: dict[str, Loss] = self.box_head.loss(features, sampled, generators)
        return losses

    @predict_by_size
    def predict(self, images: ImageBatch) -> list[Instances]:
        """Score every proposal, move its box, suppress within a class; masks are those of the proposals."""
        features = self.features(images.pixels)
        proposals = self._proposals(images)
        answers = self.box_head.answer(features, proposals, keep=self.max_detections)
        detections = images.to_original_frame([found for found, _ in answers])
        if self.task == Task.BOXES:
            return detections
        given = given_proposals(images)
        return [
            replace(found, masks=masks_of_proposals(whole)[rows])
            for found, (_, rows), whole in zip(detections, answers, given, strict=True)
        ]

    def _proposals(self, images: ImageBatch) -> list[Instances]:
        """The best proposals of each image as boxes of the input frame."""
        return [
            Instances(size, boxes=box_functions.scale(p.boxes, from_size=p.image_size, to_size=size), labels=p.labels)[
                : self.num_proposals
            ]
            for p, size in zip(given_proposals(images), images.sizes, strict=True)
        ]

    def class_rows(self) -> dict[str, int]:
        """Parameters whose rows belong to classes, and how many rows each class has."""
        return {f"box_head.{row}": rows for row, rows in self.box_head.CLASS_ROWS.items()}


def given_proposals(images: ImageBatch) -> list[Instances]:
    """The proposals of a batch.

    Raises:
        ValueError: there are none.
    """
    if images.proposals is None:
        raise ValueError(
            "a detector on proposals got images without: train it with --set proposals=RUN, the run of a proposal system such "
            "as sharpmask-small, which it then brings along"
        )
    return images.proposals


def masks_of_proposals(proposals: Instances) -> Any:
    """The masks of proposals.

    Raises:
        ValueError: they are boxes only.
    """
    if proposals.masks is None:
        raise ValueError("the proposals have no masks to pass on: set arguments.has_masks=false for a detector of boxes")
    return proposals.masks


class ProposalBoxHead(BoxHead, ImageNetPart):
    """A box head that tells which proposal a detection came from.

    Args:
        dropout: probability after each hidden layer (VGG-16: 0.5); draws belong to the images.
        pretrained: see `ImageNetPart`.
        parts: of `BoxHead`.
    """

    sources = MappingProxyType(VGG_HIDDEN)

    def __init__(self, channels: int, *, dropout: float = 0.0, pretrained: str | None = None, **parts: Any) -> None:
        super().__init__(channels, **parts)
        self.dropout = dropout
        self.pretrained = pretrained

    def hidden(self, features: Features, rois: Rois, generators: list[torch.Generator] | None) -> Tensor:
        """What classes and boxes are told from, (R, D); generators switch the dropout on."""
        x: Tensor = self.pool(features, rois).flatten(1)
        each = None if generators is None else [generators[i] for i in rois.image_index.tolist()]
        for layer in (self.fc1, self.fc2):
            x = keyed_dropout(F.relu(layer(x)), each, p=self.dropout)
        return x

    def loss(  # type: ignore[override]
        self, features: Features, sampled: SampledRois, generators: list[torch.Generator]
    ) -> dict[str, Loss]:
        """Cross entropy over all RoIs; smooth L1 over the positives, divided by the number of all."""
        hidden = self.hidden(features, sampled.rois, generators)
        deltas = self.deltas(hidden).unflatten(1, (-1, 4))
        return box_losses(sampled, self.classes(hidden), deltas, coder=self.coder, beta=self.box_beta)

    def answer(self, features: Features, proposals: list[Instances], *, keep: int) -> list[tuple[Instances, Tensor]]:
        """The best `keep` detections of each image, and the proposal each came from."""
        hidden = self.hidden(features, Rois.of([p.boxes for p in proposals]), None)
        probs, deltas = self.classes(hidden).softmax(dim=1), self.deltas(hidden).unflatten(1, (-1, 4))
        return self.select(proposals, probs, deltas, keep=keep)
