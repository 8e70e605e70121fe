"""FCIS: masks and classes read from the same score maps, without a layer that works on RoIs.

Source: Li, Qi, Dai, Ji, Wei, Fully Convolutional Instance-aware Semantic Segmentation (CVPR 2017, arXiv 1611.07709), and its
code. First in the COCO 2016 segmentation challenge; MNC's successor by the same group.

Idea: for every class and every part of a box there are two score maps of the image: is this pixel inside an object of the class
whose this part it is, or outside of it but in its box? A RoI puts its map together from the parts. Where inside beats outside
is the mask; where either is high there is evidence for the class. One set of scores answers both; all computation is shared.

What is ours, as the paper leaves it open or we differ: proposals come from the same features as the score maps (the code: from
a stage before); maps of RoIs are read by single bilinear samples (the code: means over rounded cells); anchors are MNC's; each
class votes with its own masks (the code: with those of each RoI's best class); the hardest RoIs teach on every data set (the
code: on COCO).

Legend: B images · R RoIs of the batch · C channels · G = 7 parts per side of a RoI · M = 21 mask side · K classes, with the
background as the last of K + 1.
"""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.layers.assignment import IGNORED, POSITIVE, IouMatcher
from maskwright.layers.box_coding import BoxCoder
from maskwright.layers.initialization import init_normal
from maskwright.layers.precision import Float32Conv2d
from maskwright.layers.roi import PositionSensitiveAlign, Rois
from maskwright.structures import ImageBatch, InputSpec, Instances
from maskwright.structures import boxes as box_functions
from maskwright.systems.cascades.mnc import CascadeRPN, mask_targets
from maskwright.systems.cascades.voting import MaskVoting
from maskwright.systems.rcnn.rpn import Features
from maskwright.systems.system import Loss, Task, loss_by_size, masks_of, predict_by_size

PARTS, SIDE = 7, 21
CODER = BoxCoder(weights=(5.0, 5.0, 2.0, 2.0))  # the code: divided by 0.2, 0.2, 0.5, 0.5
MASK_WEIGHT = 10.0  # the code


class Answers(NamedTuple):
    """What the score maps say of each RoI."""

    inside: Tensor
    """Scores of pixels for lying in an object of a class, (R, K + 1, M, M)."""
    outside: Tensor
    """Scores for lying in its box but not in it, (R, K + 1, M, M)."""
    deltas: Tensor
    """Box regression, the same for all classes, (R, 4)."""

    @property
    def classes(self) -> Tensor:
        """Class logits, (R, K + 1): the mean over pixels of the better of both scores (FCIS, sec. 3.2)."""
        return torch.maximum(self.inside, self.outside).mean(dim=(2, 3))

    @property
    def mask_logits(self) -> Tensor:
        """Mask logits, (R, K + 1, M, M): a softmax of two is the sigmoid of their difference."""
        return self.inside - self.outside


class LabelledRois(NamedTuple):
    """All RoIs of a batch that may teach, image by image."""

    rois: Rois
    labels: Tensor
    """Class of each, K for background, int64 (R,)."""
    rows: Tensor
    """The object each holds, within its image, int64 (R,); meaningless for background."""


class FCIS(nn.Module):
    """Fully convolutional instance segmentation.

    Args:
        input: how an image becomes pixels.
        features: {stride: features} from pixels.
        rpn: proposals from features.
        maps: score maps of features.
        voting: how 2·N instances become detections.
        hard_rois: of an image that are learnt from, those with the greatest loss (OHEM, arXiv 1604.03540).
        max_detections: per image.
    """

    def __init__(
        self,
        *,
        input: InputSpec,
        features: nn.Module,
        rpn: CascadeRPN,
        maps: "ScoreMaps",
        voting: MaskVoting,
        hard_rois: int,
        max_detections: int,
    ) -> None:
        super().__init__()
        self.input = input
        self.task = Task.INSTANCES
        self.features = features
        self.rpn = rpn
        self.maps = maps
        self.voting = voting
        self.matcher = IouMatcher(positive=0.5, negative=0.5, rescue_above=None)
        self.hard_rois = hard_rois
        self.max_detections = max_detections

    @loss_by_size
    def loss(self, images: ImageBatch, targets: list[Instances]) -> dict[str, Loss]:
        """Class, mask and box, weights 1:10:1, over the hardest RoIs (FCIS, sec. 3.2, training)."""
        features = self.features(images.pixels)
        candidates = self.rpn(features)
        losses = self.rpn.loss(candidates, targets, images.generators())
        boxes = [b.detach() for b in self.rpn.boxes(candidates, images.sizes, among=self.rpn.candidates_in_training)]
        labelled = self._label(boxes, targets)
        maps = self.maps(features)
        with torch.no_grad():
            chosen = self._hardest(self._terms(self.maps.read(maps, labelled.rois), labelled, targets), labelled, len(images))
        taught = LabelledRois(
            Rois(labelled.rois.boxes[chosen], labelled.rois.image_index[chosen]), labelled.labels[chosen], labelled.rows[chosen]
        )
        classes, masks, boxes_loss = self._terms(self.maps.read(maps, taught.rois), taught, targets)
        count = classes.new_tensor(len(taught.rois))
        losses["class"] = Loss(classes.sum(), count)
        losses["mask"] = Loss(MASK_WEIGHT * masks.sum(), count)  # of all RoIs, as in the code
        losses["box"] = Loss(boxes_loss.sum(), count)
        return losses

    @predict_by_size
    def predict(self, images: ImageBatch) -> list[Instances]:
        """Proposals, and the boxes they are moved to, looked at alike; all vote (FCIS, sec. 3.2, inference)."""
        features = self.features(images.pixels)
        first = self.rpn.boxes(self.rpn(features), images.sizes, among=self.rpn.candidates_at_inference)
        maps = self.maps(features)
        answers = self.maps.read(maps, Rois.of(first))
        counts = [len(b) for b in first]
        moved = torch.split(CODER.decode(answers.deltas, torch.cat(first)), counts)
        second = [box_functions.clip(boxes, size) for boxes, size in zip(moved, images.sizes, strict=True)]
        both = [answers, self.maps.read(maps, Rois.of(second))]
        grids = [torch.split(a.mask_logits[:, :-1].sigmoid(), counts) for a in both]
        scores = [torch.split(a.classes.softmax(dim=1)[:, :-1], counts) for a in both]
        detections = []
        for i, (size, original) in enumerate(zip(images.sizes, images.original_sizes, strict=True)):
            boxes, masks, probs = (torch.cat([each[i] for each in parts]) for parts in ((first, second), grids, scores))
            placed = box_functions.clip(box_functions.scale(boxes, from_size=size, to_size=original), original)
            detections.append(self.voting(placed, masks, probs, original, keep=self.max_detections))
        return detections

    def class_rows(self) -> dict[str, int]:
        """Parameters whose rows belong to classes, and how many rows each class has."""
        return {f"maps.{row}": rows for row, rows in self.maps.CLASS_ROWS.items()}

    def _label(self, boxes: list[Tensor], targets: list[Instances]) -> LabelledRois:
        """Proposals and the objects' own boxes; those mostly inside crowds are left out."""
        kept, labels, rows = [], [], []
        for proposals, target in zip(boxes, targets, strict=True):
            candidates = torch.cat([proposals, target.boxes[~target.crowd]])
            found = self.matcher(candidates, target)
            own = torch.nonzero(found.kind != IGNORED)[:, 0]
            is_object, row = found.kind[own] == POSITIVE, found.target_index[own]
            label = torch.full_like(row, self.maps.num_classes)
            label[is_object] = target.labels[row[is_object]]
            kept.append(candidates[own])
            labels.append(label)
            rows.append(row)
        return LabelledRois(Rois.of(kept), torch.cat(labels), torch.cat(rows))

    def _terms(self, answers: Answers, labelled: LabelledRois, targets: list[Instances]) -> tuple[Tensor, Tensor, Tensor]:
        """Class loss, mask loss and box loss of each RoI, (R,); the latter two are 0 for the background."""
        rois, labels, rows = labelled
        classes = F.cross_entropy(answers.classes, labels, reduction="none")
        positive = torch.nonzero(labels < self.maps.num_classes)[:, 0]
        masks, boxes = torch.zeros_like(classes), torch.zeros_like(classes)
        wanted_masks, wanted_boxes = [], []
        for i, target in enumerate(targets):
            own = positive[rois.image_index[positive] == i]
            wanted_masks.append(mask_targets(masks_of(target), rois.boxes[own], rows[own], side=SIDE))
            wanted_boxes.append(CODER.encode(target.boxes[rows[own]], rois.boxes[own]))
        logits = answers.mask_logits[positive, labels[positive]]
        per_pixel = F.binary_cross_entropy_with_logits(logits, torch.cat(wanted_masks), reduction="none")
        error = F.smooth_l1_loss(answers.deltas[positive], torch.cat(wanted_boxes), reduction="none")
        masks = masks.index_put((positive,), per_pixel.mean(dim=(1, 2)))
        boxes = boxes.index_put((positive,), error.sum(dim=1))
        return classes, masks, boxes

    def _hardest(self, terms: Sequence[Tensor], labelled: LabelledRois, num_images: int) -> Tensor:
        """The RoIs of each image with the greatest loss, int64."""
        classes, masks, boxes = terms
        hardness = classes + MASK_WEIGHT * masks + boxes
        chosen = []
        for i in range(num_images):
            own = torch.nonzero(labelled.rois.image_index == i)[:, 0]
            chosen.append(own[hardness[own].topk(min(self.hard_rois, len(own))).indices])
        return torch.cat(chosen)


class ScoreMaps(nn.Module):
    """Inside and outside scores of every class for every part of a box, and box regression, by 1×1 convolutions.

    Channels lie class by class: both scores of all parts of a class next to each other.

    Args:
        channels: of the features.
        num_classes: K.
        stride: of the features.
    """

    CLASS_ROWS: ClassVar = {"scores.weight": 2 * PARTS**2, "scores.bias": 2 * PARTS**2}

    def __init__(self, channels: int, *, num_classes: int, stride: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.stride = stride
        self.scores = Float32Conv2d(channels, 2 * PARTS**2 * (num_classes + 1), 1)
        self.deltas = Float32Conv2d(channels, 4 * PARTS**2, 1)
        for layer in (self.scores, self.deltas):
            init_normal(layer, std=0.01)
        self.read_scores = PositionSensitiveAlign(SIDE, parts=PARTS, stride=stride)
        self.read_deltas = PositionSensitiveAlign(PARTS, parts=PARTS, stride=stride)

    def forward(self, features: Features) -> tuple[Tensor, Tensor]:
        """Scores (B, G·G·(K + 1)·2, H, W) and deltas (B, G·G·4, H, W), part by part."""
        scores = self.scores(features[self.stride])
        by_class = scores.unflatten(1, (self.num_classes + 1, 2, PARTS**2))
        return by_class.permute(0, 3, 1, 2, 4, 5).flatten(1, 3), self.deltas(features[self.stride])

    def read(self, maps: tuple[Tensor, Tensor], rois: Rois) -> Answers:
        """Put the maps of RoIs together from their parts."""
        scores = self.read_scores(maps[0], rois).unflatten(1, (self.num_classes + 1, 2))  # (R, K + 1, 2, M, M)
        deltas = self.read_deltas(maps[1], rois).mean(dim=(2, 3))
        return Answers(scores[:, :, 0], scores[:, :, 1], deltas)
