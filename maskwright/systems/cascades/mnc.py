"""MNC: boxes, then masks, then classes, each from the one before and all in one network; then masks and classes once more.

Source: Dai, He, Sun, Instance-aware Semantic Segmentation via Multi-task Network Cascades (CVPR 2016, arXiv 1512.04412), and
the authors' code. First in the COCO 2015 segmentation challenge.

Idea: three tasks that depend on each other. Stage 1 proposes boxes; stage 2 regresses a mask in each box; stage 3 classifies
what is in box and mask, and moves the box. Stages 4 and 5 are 2 and 3 again, with the same weights, on the moved boxes.
Everything is learnt together: RoI warping passes gradients to the coordinates of a box, so that a mask or a class that is wrong
moves the box it was looked for in.

Differs from the code, which differs from the paper: normalized deltas are scaled back before the boxes of stage 4 are decoded,
which the code forgot; a RoI is moved by the best class that is no background (the code: in training only); exact gradients;
corners are not rounded, as in the paper; boxes are half-open; what is mostly in a crowd is ignored; RoIs are rounded for mask
targets in the input frame; proposals have at least 16 px there, not in the original image, and are told to after the best were
taken; anchors of sampled proposals get no labels of their own; images are shrunk with antialiasing.

Legend: B images · R RoIs of the batch · C channels · S = 14 cells per side of a warped RoI · M mask side · K classes, with the
background as the last of K + 1 columns.
"""

import math
from collections.abc import Sequence
from types import MappingProxyType
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.layers.assignment import IGNORED, NEGATIVE, POSITIVE, Assignment, IouMatcher, SampledMeanSampler, drawn
from maskwright.layers.backbones import VGG_HIDDEN, ImageNetPart
from maskwright.layers.box_coding import BoxCoder
from maskwright.layers.gradients import clamp_gradient
from maskwright.layers.grids import PyramidAnchors
from maskwright.layers.initialization import init_normal
from maskwright.layers.precision import Float32Linear
from maskwright.layers.roi import Rois, RoiWarp
from maskwright.structures import ImageBatch, InputSpec, Instances, Masks, MaskTiles
from maskwright.structures import boxes as box_functions
from maskwright.systems.cascades.voting import MASK_THRESHOLD, MaskVoting
from maskwright.systems.rcnn.mask_rcnn import SampledRois, box_losses
from maskwright.systems.rcnn.rpn import Candidates, Features, PairwiseObjectness, RegionProposalNetwork
from maskwright.systems.system import Loss, Task, loss_by_size, masks_of, predict_by_size

GRADIENT_BOUND = 1 / 512  # the code: of what later stages tell the deltas of a box, when an image is learnt from alone
CODER = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))


class Answers(NamedTuple):
    """What two stages say of each RoI."""

    masks: Tensor
    """Mask logits, (R, M, M)."""
    classes: Tensor
    """Class logits of the box, (R, K + 1), for learning only."""
    mask_classes: Tensor
    """Class logits of box and mask, (R, K + 1), which score an instance."""
    deltas: Tensor
    """Box regression of each class, (R, K + 1, 4)."""


# The cascade


class MNC(nn.Module):
    """Multi-task network cascade.

    Args:
        input: how an image becomes pixels.
        backbones: one for all stages, or one for each of the three.
        rpn: stage 1, boxes.
        sampler: draws and labels the boxes that later stages learn from.
        warp: features of a box.
        mask_head: stage 2, masks.
        category_head: stage 3, classes and better boxes.
        voting: how 2·N instances become detections.
        stages: 3 or 5, in training and at inference.
        max_detections: per image.
    """

    def __init__(
        self,
        *,
        input: InputSpec,
        backbones: Sequence[nn.Module],
        rpn: "CascadeRPN",
        sampler: "CascadeSampler",
        warp: RoiWarp,
        mask_head: "MaskHead",
        category_head: "CategoryHead",
        voting: MaskVoting,
        stages: tuple[Literal[3, 5], Literal[3, 5]],
        max_detections: int,
    ) -> None:
        super().__init__()
        self.input = input
        self.task = Task.INSTANCES
        self.backbones = nn.ModuleList(backbones)
        self.rpn = rpn
        self.sampler = sampler
        self.warp = warp
        self.mask_head = mask_head
        self.category_head = category_head
        self.voting = voting
        self.stages_in_training, self.stages_at_inference = stages
        self.max_detections = max_detections

    @loss_by_size
    def loss(self, images: ImageBatch, targets: list[Instances]) -> dict[str, Loss]:
        """L1 + L2 + L3, and L4 + L5 on the boxes that stage 3 moved (MNC, eq. 4; sec. 5)."""
        generators = images.generators()
        features = self._features(images.pixels)
        candidates = self.rpn(features[0])
        losses = self.rpn.loss(candidates, targets, generators)
        bound = GRADIENT_BOUND / (images.num_in_step or len(images))
        proposals = self.rpn.boxes(candidates, images.sizes, among=self.rpn.candidates_in_training, bound=bound)
        sampled = self.sampler.draw(self.pass_boxes(proposals), targets, generators)
        answers, stages = self._learn(features, sampled, targets)
        losses |= stages
        if self.stages_in_training == 5:
            moved = self.bridge(sampled.rois, answers, images.sizes, classes=self.sampler.num_classes, bound=bound)
            _, stages = self._learn(features, self.sampler.label(self.pass_boxes(moved), targets), targets)
            losses |= {f"{name}_again": loss for name, loss in stages.items()}
        return losses

    @predict_by_size
    def predict(self, images: ImageBatch) -> list[Instances]:
        """Two stages on the proposals, two on the boxes they move; all instances vote (MNC, sec. 5, inference)."""
        features = self._features(images.pixels)
        boxes = self.rpn.boxes(self.rpn(features[0]), images.sizes, among=self.rpn.candidates_at_inference)
        found = [self._look(features, Rois.of(boxes))]
        lists = [boxes]
        if self.stages_at_inference == 5:
            moved = self.bridge(Rois.of(boxes), found[0], images.sizes, classes=self.category_head.moves_by)
            found.append(self._look(features, Rois.of(moved)))
            lists.append(moved)
        counts = [len(b) for b in boxes]
        grids = [torch.split(answers.masks.sigmoid()[:, None], counts) for answers in found]
        scores = [torch.split(answers.mask_classes.softmax(dim=1)[:, :-1], counts) for answers in found]
        detections = []
        for i, (size, original) in enumerate(zip(images.sizes, images.original_sizes, strict=True)):
            boxes_i, grids_i, scores_i = (torch.cat([each[i] for each in parts]) for parts in (lists, grids, scores))
            placed = box_functions.clip(box_functions.scale(boxes_i, from_size=size, to_size=original), original)
            detections.append(self.voting(placed, grids_i, scores_i, original, keep=self.max_detections))
        return detections

    def bridge(
        self, rois: Rois, answers: Answers, sizes: list[tuple[int, int]], *, classes: int, bound: float = math.inf
    ) -> list[Tensor]:
        """Each RoI moved by the regressor of its best class among the first so many, for each image (MNC, sec. 5).

        Gradients, none over `bound`, reach the deltas and the RoI, but for boxes that had to be cut to the image.
        """
        best = answers.mask_classes.detach()[:, :classes].argmax(dim=1)
        chosen = answers.deltas[torch.arange(len(rois), device=best.device), best]
        deltas = clamp_gradient(chosen, bound)
        decoded = CODER.decode(deltas, rois.boxes)
        return [cut(decoded[rois.image_index == i], size) for i, size in enumerate(sizes)]

    def class_rows(self) -> dict[str, int]:
        """Parameters whose rows belong to classes, and how many rows each class has."""
        return {f"category_head.{row}": rows for row, rows in self.category_head.CLASS_ROWS.items()}

    def _features(self, pixels: Tensor) -> list[Features]:
        """Features for each of the three stages."""
        found = [backbone(pixels) for backbone in self.backbones]
        return found if len(found) == 3 else found * 3

    def pass_boxes(self, boxes: list[Tensor]) -> list[Tensor]:
        """Boxes as the next stage is given them in training: with the gradients that lead back to them."""
        return boxes

    def pass_masks(self, probs: Tensor) -> Tensor:
        """Mask probabilities, likewise."""
        return probs

    def _look(self, features: list[Features], rois: Rois) -> Answers:
        """Stages 2 and 3 on RoIs."""
        warped = self.warp(features[1], rois)
        masks = self.mask_head(warped)
        return self._categories(features, rois, warped, masks, masks.sigmoid())

    def _categories(self, features: list[Features], rois: Rois, warped: Tensor, masks: Tensor, probs: Tensor) -> Answers:
        if features[2] is not features[1]:
            warped = self.warp(features[2], rois)
        return Answers(masks, *self.category_head(warped, self.pass_masks(probs)))

    def _learn(
        self, features: list[Features], sampled: SampledRois, targets: list[Instances]
    ) -> tuple[Answers, dict[str, Loss]]:
        """Stages 2 and 3 on labelled RoIs, and their losses (MNC, sec. 3.2 and 3.3; the code's weights)."""
        rois, count = sampled.rois, len(sampled.positives)
        warped = self.warp(features[1], rois)
        masks = self.mask_head(warped)
        wanted = self._mask_targets(sampled, targets, side=masks.shape[-1])
        mask_loss = F.binary_cross_entropy_with_logits(masks[:count], wanted, reduction="sum")
        shown = show_masks(masks.sigmoid(), sampled, targets, num_classes=self.sampler.num_classes)
        answers = self._categories(features, rois, warped, masks, self.category_head.passed(shown))
        losses = box_losses(sampled, answers.classes, answers.deltas, coder=CODER, beta=1.0)
        class_loss = F.cross_entropy(answers.mask_classes, shown.labels, reduction="sum")
        losses["mask"] = Loss(self.mask_head.weight * mask_loss, masks.new_tensor(wanted.numel()))
        losses["mask_class"] = Loss(class_loss, masks.new_tensor(len(rois)))
        return answers, losses

    @staticmethod
    def _mask_targets(sampled: SampledRois, targets: list[Instances], *, side: int) -> Tensor:
        positives = sampled.positives
        wanted = [
            mask_targets(masks_of(target), positives.boxes[positives.image_index == i].detach(), rows, side=side)
            for i, (target, rows) in enumerate(zip(targets, sampled.target_rows, strict=True))
        ]
        return torch.cat(wanted)


def cut(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (N, 4) clipped to an image; those that stuck out pass no gradients (the code)."""
    clipped = box_functions.clip(boxes, size)
    inside = (boxes == clipped).all(dim=1, keepdim=True)
    return torch.where(inside, boxes, clipped.detach())


# Stage 1: boxes (MNC, sec. 3.1)


class InsideMatcher(IouMatcher):
    """Matches anchors that lie in the image; the others are ignored, as if they were not there."""

    def __call__(self, candidates: Tensor, targets: Instances) -> Assignment:
        """Assign candidates, xyxy px (N, 4), to targets of the same frame."""
        inside = torch.nonzero((box_functions.clip(candidates, targets.image_size) == candidates).all(dim=1))[:, 0]
        found = super().__call__(candidates[inside], targets)
        kind = torch.full((len(candidates),), IGNORED, dtype=torch.int8, device=candidates.device)
        index = torch.zeros(len(candidates), dtype=torch.int64, device=candidates.device)
        kind[inside], index[inside] = found.kind, found.target_index
        return Assignment(kind, index)


MATCH_INSIDE = InsideMatcher(positive=0.7, negative=0.3, rescue_above=0.0)


class CascadeRPN(RegionProposalNetwork):
    """A region proposal network whose boxes pass gradients on.

    Args:
        channels: of the features.
        anchors: reference boxes.
        candidates: best boxes that suppress each other, in training and at inference.
        keep: boxes of an image.
        hidden: channels between, by default as many.
        min_side_px: of a proposal.
        matcher: which anchors hold an object; by default those that lie in the image.
    """

    def __init__(
        self,
        channels: int,
        *,
        anchors: PyramidAnchors,
        candidates: tuple[int, int],
        keep: int,
        min_side_px: float,
        hidden: int | None = None,
        matcher: IouMatcher = MATCH_INSIDE,
    ) -> None:
        super().__init__(
            channels,
            hidden=hidden,
            anchors=anchors,
            matcher=matcher,
            sampler=SampledMeanSampler(256, positive_fraction=0.5),
            box_beta=1 / 9,
            min_side_px=min_side_px,
        )
        self.objectness = PairwiseObjectness(hidden or channels, anchors.per_cell)
        self.candidates_in_training, self.candidates_at_inference = candidates
        self.keep = keep

    def boxes(
        self, candidates: Candidates, sizes: list[tuple[int, int]], *, among: int, bound: float = math.inf
    ) -> list[Tensor]:
        """The best boxes of each image, xyxy px (N, 4), among so many candidates.

        Who they are is decided without gradients, where they are is not; the deltas get none over `bound`.
        """
        anchors, deltas = torch.cat(candidates.anchors), torch.cat(candidates.deltas, dim=1)
        answers = []
        chosen = self.choose(candidates, sizes, per_level=among, keep=self.keep)
        for i, ((_, rows), size) in enumerate(zip(chosen, sizes, strict=True)):
            boxes = cut(self.coder.decode(clamp_gradient(deltas[i, rows], bound), anchors[rows]), size)
            is_inside = (box_functions.clip(anchors[rows], size) == anchors[rows]).all(dim=1, keepdim=True)
            answers.append(torch.where(is_inside, boxes, boxes.detach()))  # an anchor outside learns nothing (the code)
        return answers


# Boxes to learn from (the code, proposal_target_layer)


class CascadeSampler:
    """Draws boxes by their overlap with objects, and labels them.

    Args:
        num_classes: K, also the label of the background.
        per_image: boxes drawn for each image.
        positive_fraction: share of boxes that hold an object, at most.
        near_fraction: share of the others that touch one, by an IoU of 0.1 or more; where there are fewer, fewer are drawn.
    """

    NEAR_IOU = 0.1

    def __init__(
        self, *, num_classes: int, per_image: int = 64, positive_fraction: float = 0.3, near_fraction: float = 0.85
    ) -> None:
        self.num_classes = num_classes
        self.per_image = per_image
        self.positive_fraction = positive_fraction
        self.near_fraction = near_fraction
        self.matcher = IouMatcher(positive=0.5, negative=0.5, rescue_above=None)

    def draw(self, boxes: list[Tensor], targets: list[Instances], generators: list[torch.Generator]) -> SampledRois:
        """A sample of the boxes (N, 4) of each image and of its objects' own boxes; gradients reach the boxes."""
        choices = []
        for candidates, target, generator in zip(self._with_objects(boxes, targets), targets, generators, strict=True):
            assignment = self.matcher(candidates.detach(), target)
            positives, others = ((assignment.kind == kind).nonzero()[:, 0] for kind in (POSITIVE, NEGATIVE))
            positives = drawn(positives, round(self.positive_fraction * self.per_image), generator)
            objects = target.boxes[~target.crowd]
            overlap = box_functions.iou(candidates.detach()[others], objects)
            is_near = (overlap >= self.NEAR_IOU).any(dim=1)
            rest = self.per_image - len(positives)
            near = drawn(others[is_near], round(self.near_fraction * rest), generator)
            far = drawn(others[~is_near], round((1 - self.near_fraction) * rest), generator)
            choices.append((candidates, assignment, positives, torch.cat([near, far])))
        return self._sampled(choices, targets)

    def label(self, boxes: list[Tensor], targets: list[Instances]) -> SampledRois:
        """All boxes of each image and its objects' own."""
        choices = []
        for candidates, target in zip(self._with_objects(boxes, targets), targets, strict=True):
            assignment = self.matcher(candidates.detach(), target)
            positives, others = ((assignment.kind == kind).nonzero()[:, 0] for kind in (POSITIVE, NEGATIVE))
            choices.append((candidates, assignment, positives, others))
        return self._sampled(choices, targets)

    @staticmethod
    def _with_objects(boxes: list[Tensor], targets: list[Instances]) -> list[Tensor]:
        return [torch.cat([b, target.boxes[~target.crowd]]) for b, target in zip(boxes, targets, strict=True)]

    def _sampled(self, choices: list[tuple[Tensor, Assignment, Tensor, Tensor]], targets: list[Instances]) -> SampledRois:
        objects = Rois.of([candidates[positives] for candidates, _, positives, _ in choices])
        others = Rois.of([candidates[negatives] for candidates, _, _, negatives in choices])
        rows = [assignment.target_index[positives] for _, assignment, positives, _ in choices]
        labels = [target.labels[row] for target, row in zip(targets, rows, strict=True)]
        return SampledRois(
            rois=Rois(torch.cat([objects.boxes, others.boxes]), torch.cat([objects.image_index, others.image_index])),
            labels=torch.cat([*labels, torch.full_like(others.image_index, self.num_classes)]),
            target_boxes=torch.cat([target.boxes[row] for target, row in zip(targets, rows, strict=True)]),
            target_rows=rows,
        )


# Stage 2: masks (MNC, sec. 3.2)


def mask_targets(masks: Masks, boxes: Tensor, rows: Tensor, *, side: int) -> Tensor:
    """The part of an object's mask inside a box, resized to M×M (the code, intersect_mask).

    Args:
        masks: objects of an image, input frame.
        boxes: xyxy px (R, 4); rounded to whole pixels.
        rows: the object of each box, int64 (R,).
        side: M.

    Returns:
        0 or 1, float32 (R, M, M); on where the mask interpolated between pixel centres reaches 0.4.
    """
    masks = masks.resampled()  # whose pixels are interpolated
    wanted = boxes.new_zeros((len(boxes), side, side))
    for i, ((x0, y0, x1, y1), row) in enumerate(zip(boxes.round().int().tolist(), rows.tolist(), strict=True)):
        window = (x0, y0, max(x1, x0 + 1), max(y1, y0 + 1))
        crop = masks[row : row + 1].crop(window).to_dense().to(torch.float32)
        wanted[i] = F.interpolate(crop[None], size=(side, side), mode="bilinear")[0, 0] >= MASK_THRESHOLD
    return wanted


class MaskHead(nn.Module):
    """One mask for each RoI, whatever it shows: two fully connected layers.

    Args:
        channels: of warped features.
        hidden: units of the hidden layer.
        side: M.
        cells: S.
        weight: of the loss (the paper: 1, the code: 2).
    """

    def __init__(self, channels: int, *, hidden: int = 256, side: int, weight: float, cells: int = 14) -> None:
        super().__init__()
        self.weight = weight
        self.fc1 = nn.Linear(channels * cells**2, hidden)
        self.fc2 = Float32Linear(hidden, side**2)
        for layer in (self.fc1, self.fc2):
            init_normal(layer, std=0.001)
        self.side = side

    def forward(self, warped: Tensor) -> Tensor:
        """(R, C, S, S) → mask logits (R, M, M)."""
        logits: Tensor = self.fc2(F.relu(self.fc1(warped.flatten(1)), inplace=True))
        return logits.reshape(-1, self.side, self.side)


def resize_masks(masks: Tensor, cells: int) -> Tensor:
    """Masks (R, M, M) as stage 3 looks through them, (R, S, S): read at j·M/S from the left and top, bilinear (the code)."""
    side = masks.shape[-1]
    position = (torch.arange(cells, device=masks.device) * side / cells).clamp(max=side - 1)
    weights = (1 - (position[:, None] - torch.arange(side, device=masks.device)).abs()).clamp(min=0)  # (S, M)
    with torch.autocast(masks.device.type, enabled=False):
        return weights @ masks.to(torch.float32) @ weights.T


# Stage 3: classes (MNC, sec. 3.3)


class ShownMasks(NamedTuple):
    """Masks as stage 3 is shown them in training."""

    probs: Tensor
    """(R, M, M)."""
    labels: Tensor
    """The class that box and mask show, K where either shows none, int64 (R,)."""


def show_masks(probs: Tensor, sampled: SampledRois, targets: list[Instances], *, num_classes: int) -> ShownMasks:
    """Masks with the class each shows: that of its box, if the mask too has an IoU of 0.5 with the object's (MNC, sec. 6)."""
    labels = torch.full_like(sampled.labels, num_classes)
    positives = sampled.positives
    for i, (target, rows) in enumerate(zip(targets, sampled.target_rows, strict=True)):
        own = torch.nonzero(positives.image_index == i)[:, 0]
        tiles = MaskTiles(probs[own].detach(), positives.boxes[own].detach().round())
        found = tiles.paste(target.image_size, MASK_THRESHOLD)
        overlap = masks_of(target)[rows].paired_iou(found).to(labels.device)
        labels[own] = torch.where(overlap >= 0.5, target.labels[rows], labels[own])
    return ShownMasks(probs, labels)


class HiddenLayers(ImageNetPart):
    """A pathway of stage 3: the greatest of 2×2, then two hidden layers.

    Args:
        channels: of warped features.
        hidden: units of both layers.
        pretrained: see `ImageNetPart`.
    """

    sources = MappingProxyType(VGG_HIDDEN)

    def __init__(self, channels: int, *, hidden: int, pretrained: str | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels * 49, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.pretrained = pretrained

    def forward(self, x: Tensor) -> Tensor:
        """(R, C, 14, 14) → (R, D)."""
        x = F.relu(self.fc1(F.max_pool2d(x, 2).flatten(1)), inplace=True)
        return F.relu(self.fc2(x), inplace=True)


class CategoryHead(nn.Module):
    """Classes and better boxes from two pathways: the box, and what the mask leaves of it.

    Args:
        box_path, mask_path: (R, C, S, S) to (R, D) each.
        width: D.
        num_classes: K.
        moves_by_background: whether a RoI that is most likely background is moved too, by a regressor that never learnt (the
            code, at inference).
        is_selective: whether the class loss teaches only masks that show their object (the code).
    """

    CLASS_ROWS: ClassVar = {
        **{f"{name}.{kind}": 1 for name in ("classes", "mask_classes") for kind in ("weight", "bias")},
        "deltas.weight": 4,
        "deltas.bias": 4,
    }

    def __init__(
        self,
        box_path: nn.Module,
        mask_path: nn.Module,
        *,
        width: int,
        num_classes: int,
        moves_by_background: bool = False,
        is_selective: bool = False,
    ) -> None:
        super().__init__()
        self.box_path = box_path
        self.mask_path = mask_path
        self.classes = Float32Linear(2 * width, num_classes + 1)
        self.mask_classes = Float32Linear(2 * width, num_classes + 1)
        self.deltas = Float32Linear(2 * width, 4 * (num_classes + 1))
        init_normal(self.classes, std=0.01)
        init_normal(self.mask_classes, std=0.01)
        init_normal(self.deltas, std=0.001)
        self.moves_by = num_classes + moves_by_background
        self.is_selective = is_selective

    def forward(self, warped: Tensor, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features (R, C, S, S) and masks (R, M, M) → class logits of box and of mask (R, K + 1), deltas (R, K + 1, 4)."""
        seen = warped * resize_masks(masks, warped.shape[-1])[:, None]
        both = torch.cat([self.mask_path(seen), self.box_path(warped)], dim=1)  # (R, 2·D)
        return self.classes(both), self.mask_classes(both), self.deltas(both).unflatten(1, (-1, 4))

    def passed(self, shown: ShownMasks) -> Tensor:
        """The masks, which pass gradients to stage 2."""
        if not self.is_selective:
            return shown.probs
        shows = shown.labels < self.classes.out_features - 1
        return torch.where(shows[:, None, None], shown.probs, shown.probs.detach())
