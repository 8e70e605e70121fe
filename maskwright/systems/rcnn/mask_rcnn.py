"""Mask R-CNN, and the Faster R-CNN inside it, on a feature pyramid.

Source: He, Gkioxari, Dollár, Girshick, Mask R-CNN (arXiv 1703.06870v3); Ren et al., Faster R-CNN (TPAMI 2017); Lin et al.,
FPN (CVPR 2017). Where the papers are silent we follow detectron2, which its authors' group released later.

Idea: a region proposal network names boxes that may hold an object; a box head classifies each and moves it; a small
convolutional head draws a mask of each object in its box, one for every class, without competition between classes. The
alignment of pixels is kept by RoIAlign, which never rounds a coordinate.

Differs from the papers: end-to-end training instead of alternating; L1 instead of smooth L1 for boxes (detectron2); modern
pixel conventions (see structures/boxes.py); an object that overlaps no anchor gets none, where others hand it all of them;
candidates mostly inside a crowd region are ignored; mask targets are the share of each cell that the object covers, cut at
one half; RGB pixels, and the stage stride in the 3×3 convolution, as timm's and torchvision's weights want them.

Legend: B images · H, W padded input · A anchors per cell · P cells of a level · N candidates or objects of one image ·
R RoIs of the batch · C channels · K classes, with the background as the last of K + 1 columns · M mask side.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.layers.assignment import BalancedSampler, IouMatcher
from maskwright.layers.box_coding import BoxCoder
from maskwright.layers.initialization import init_normal
from maskwright.layers.nms import nms_by_group
from maskwright.layers.precision import ClassConv1x1, Float32Linear
from maskwright.layers.roi import RoiOperator, Rois
from maskwright.structures import ImageBatch, InputSpec, Instances, MaskProbs, Masks
from maskwright.structures import boxes as box_functions
from maskwright.structures.mask_probs import certainty
from maskwright.systems.rcnn.rpn import Features, RegionProposalNetwork
from maskwright.systems.system import Loss, Task, loss_by_size, masks_of, predict_by_size


class SampledRois(NamedTuple):
    """RoIs drawn for training; the positives of all images come first."""

    rois: Rois
    """R boxes, positives first."""
    labels: Tensor
    """Class of each, K for background, int64 (R,)."""
    target_boxes: Tensor
    """The object each positive RoI is matched to, xyxy px (R⁺, 4)."""
    target_rows: list[Tensor]
    """For each image, which object each of its positive RoIs is matched to, int64."""

    @property
    def positives(self) -> Rois:
        """The R⁺ RoIs that hold an object."""
        count = len(self.target_boxes)
        return Rois(self.rois.boxes[:count], self.rois.image_index[:count])


class InstanceHead(Protocol):
    """What is found out about each object beside its class and box: its mask, its keypoints."""

    def loss(self, features: Features, sampled: SampledRois, targets: list[Instances]) -> dict[str, Loss]:
        """Loss over the positive RoIs."""

    def complete(self, detections: list[Instances], features: Features, rois: Rois) -> list[Instances]:
        """Detections, original frame, with the head's column added; `rois` are their boxes in the input frame."""


# The network, learning and inference of the whole

TASKS = {
    (False, False): Task.BOXES,
    (True, False): Task.INSTANCES,
    (False, True): Task.KEYPOINTS,
    (True, True): Task.MASKS_AND_KEYPOINTS,
}
"""By whether there are masks, and keypoints."""


class FasterRCNN(nn.Module):
    """Faster R-CNN; with a mask head among its instance heads, Mask R-CNN.

    Args:
        input: how an image becomes pixels.
        backbone, fpn: {stride: features} from pixels.
        rpn: proposals from features.
        roi_sampler: draws the proposals the heads learn from.
        box_head: class and box of a proposal.
        instance_heads: what else is learnt of each object; empty for Faster R-CNN.
        num_proposals: per image, in training before sampling, and at inference; there never fewer than `max_detections`.
        num_candidates: anchors of a level that proposals are chosen from, in training and at inference; at inference never
            fewer than `num_proposals`.
        max_detections: per image.
    """

    def __init__(
        self,
        *,
        input: InputSpec,
        backbone: nn.Module,
        fpn: nn.Module,
        rpn: RegionProposalNetwork,
        roi_sampler: "RoiSampler",
        box_head: "BoxBranch",
        instance_heads: Mapping[str, nn.Module],
        num_proposals: tuple[int, int],
        num_candidates: tuple[int, int],
        max_detections: int,
    ) -> None:
        super().__init__()
        self.input = input
        self.task = TASKS["mask" in instance_heads, "keypoint" in instance_heads]
        self.backbone = backbone
        self.fpn = fpn
        self.rpn = rpn
        self.roi_sampler = roi_sampler
        self.box_head = box_head
        self.instance_heads = nn.ModuleDict(instance_heads)
        self.num_training_proposals, self.num_proposals = num_proposals
        self.num_training_candidates, self.num_candidates = num_candidates
        self.max_detections = max_detections

    @loss_by_size
    def loss(self, images: ImageBatch, targets: list[Instances]) -> dict[str, Loss]:
        """Sum over RPN, box head and instance heads, every weight 1 (Mask R-CNN, sec. 3)."""
        generators = images.generators()
        features = self.fpn(self.backbone(images.pixels))
        candidates = self.rpn(features)
        losses = self.rpn.loss(candidates, targets, generators)
        per_level, keep = self.num_training_candidates, self.num_training_proposals
        proposals = self.rpn.propose(candidates, images.sizes, per_level=per_level, keep=keep)
        sampled = self.roi_sampler([p.boxes for p in proposals], targets, generators)
        losses |= self.box_head.loss(features, sampled)
        for head in self._heads():
            losses |= head.loss(features, sampled, targets)
        return losses

    @predict_by_size
    def predict(self, images: ImageBatch) -> list[Instances]:
        """Boxes first, then masks on the boxes that are kept (Mask R-CNN, sec. 3.1, inference)."""
        features = self.fpn(self.backbone(images.pixels))
        keep = max(self.num_proposals, self.max_detections)
        proposals = self.rpn.propose(self.rpn(features), images.sizes, per_level=max(keep, self.num_candidates), keep=keep)
        found = self.box_head.detect(features, proposals, keep=self.max_detections)
        detections = images.to_original_frame(found)
        for head in self._heads():
            detections = head.complete(detections, features, Rois.of([f.boxes for f in found]))
        return [d.by_score() for d in detections]

    def class_rows(self) -> dict[str, int]:
        """Parameters whose rows belong to classes, and how many rows each class has."""
        heads: dict[str, Any] = {f"instance_heads.{name}": head for name, head in self.instance_heads.items()}
        heads["box_head"] = self.box_head
        return {f"{name}.{row}": rows for name, head in heads.items() for row, rows in head.CLASS_ROWS.items()}

    def _heads(self) -> list[InstanceHead]:
        return list(self.instance_heads.values())  # type: ignore[arg-type]


# RoIs to learn from (Mask R-CNN, sec. 3.1, training; Fast R-CNN, sec. 2.3)


class RoiSampler:
    """Draws proposals, and the objects themselves.

    Args:
        num_classes: K, also the label of the background.
        per_image: RoIs drawn for each image.
        positive_fraction: share of them that hold an object, at most.
        iou: with an object from which a RoI holds it.
        negative_from: see `IouMatcher`.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        per_image: int,
        positive_fraction: float = 0.25,  # Fast R-CNN, sec. 2.3
        iou: float = 0.5,
        negative_from: float = 0.0,
    ) -> None:
        self.num_classes = num_classes
        self.matcher = IouMatcher(positive=iou, negative=iou, rescue_above=None, negative_from=negative_from)
        self.sampler = BalancedSampler(per_image, positive_fraction=positive_fraction)

    def __call__(self, proposals: list[Tensor], targets: list[Instances], generators: list[torch.Generator]) -> SampledRois:
        """Draw from proposals, xyxy px (N, 4) for each image, with the objects' own boxes added."""
        positive_boxes, negative_boxes, labels, target_boxes, target_rows = [], [], [], [], []
        for boxes, target, generator in zip(proposals, targets, generators, strict=True):
            candidates = torch.cat([boxes, target.boxes[~target.crowd]])
            assignment = self.matcher(candidates, target)
            positives, negatives = self.sampler(assignment.kind, generator)
            rows = assignment.target_index[positives]
            positive_boxes.append(candidates[positives])
            negative_boxes.append(candidates[negatives])
            labels.append(target.labels[rows])
            target_boxes.append(target.boxes[rows])
            target_rows.append(rows)
        objects, others = Rois.of(positive_boxes), Rois.of(negative_boxes)
        background = torch.full_like(others.image_index, self.num_classes)
        return SampledRois(
            rois=Rois(torch.cat([objects.boxes, others.boxes]), torch.cat([objects.image_index, others.image_index])),
            labels=torch.cat([*labels, background]),
            target_boxes=torch.cat(target_boxes),
            target_rows=target_rows,
        )


# Box head (FPN, sec. 5.2)


class BoxSelection(nn.Module):
    """How class probabilities and deltas of proposals become detections.

    Args:
        score_threshold: detections at or below it are dropped before suppression.
        nms_iou: overlap above which a detection suppresses a worse one of its class.
        min_side_px: detections must exceed this on both sides.
    """

    def __init__(self, *, score_threshold: float, nms_iou: float, min_side_px: float) -> None:
        super().__init__()
        self.coder = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))  # Fast R-CNN's code, BBOX_REG_WEIGHTS
        self.score_threshold = score_threshold
        self.nms_iou = nms_iou
        self.min_side_px = min_side_px

    def select(self, proposals: list[Instances], probs: Tensor, deltas: Tensor, *, keep: int) -> list[tuple[Instances, Tensor]]:
        """The best `keep` detections of each image, and the proposal each came from, int64 (N,).

        Args:
            probs: of every class and, last, the background, for the proposals of all images, (R, K + 1).
            deltas: (R, K, 4).
        """
        counts = [len(p) for p in proposals]
        of_image = zip(proposals, torch.split(probs[:, :-1], counts), torch.split(deltas, counts), strict=True)
        answers = []
        for proposal, scores, image_deltas in of_image:
            row, label = torch.nonzero(scores > self.score_threshold).unbind(1)
            boxes = self.coder.decode(image_deltas[row, label], proposal.boxes[row])
            boxes = box_functions.clip(boxes, proposal.image_size)
            valid = box_functions.is_valid(boxes, min_px=self.min_side_px)
            row, boxes, label, score = row[valid], boxes[valid], label[valid], scores[row, label][valid]
            kept = nms_by_group(boxes, score, label, self.nms_iou, keep=keep)
            found = Instances(proposal.image_size, boxes=boxes[kept], labels=label[kept], scores=score[kept])
            answers.append((found, row[kept]))
        return answers


class BoxBranch(BoxSelection, ABC):
    """What all box heads have in common: class and class-specific box from a vector for each RoI.

    Args:
        width: of the vector.
        num_classes: K.
        box_beta: error from which the smooth L1 loss of boxes is linear; 0 is L1.
        score_threshold, nms_iou, min_side_px: see `BoxSelection`.
    """

    CLASS_ROWS: ClassVar = {"classes.weight": 1, "classes.bias": 1, "deltas.weight": 4, "deltas.bias": 4}

    def __init__(
        self,
        width: int,
        *,
        num_classes: int,
        box_beta: float = 0.0,
        score_threshold: float = 0.05,
        nms_iou: float = 0.5,
        min_side_px: float = 0.0,
    ) -> None:
        super().__init__(score_threshold=score_threshold, nms_iou=nms_iou, min_side_px=min_side_px)
        self.classes = Float32Linear(width, num_classes + 1)
        self.deltas = Float32Linear(width, 4 * num_classes)
        init_normal(self.classes, std=0.01)
        init_normal(self.deltas, std=0.001)
        self.box_beta = box_beta

    @abstractmethod
    def vectors(self, features: Features, rois: Rois) -> Tensor:
        """The vector of each RoI, (R, width)."""

    def forward(self, features: Features, rois: Rois) -> tuple[Tensor, Tensor]:
        """Class logits (R, K + 1), background last, and deltas (R, K, 4)."""
        vectors = self.vectors(features, rois)
        return self.classes(vectors), self.deltas(vectors).unflatten(1, (-1, 4))

    def loss(self, features: Features, sampled: SampledRois) -> dict[str, Loss]:
        """Cross entropy over all RoIs; (smooth) L1 over the positives, divided by the number of all (Fast R-CNN's code)."""
        return box_losses(sampled, *self(features, sampled.rois), coder=self.coder, beta=self.box_beta)

    def detect(self, features: Features, proposals: list[Instances], *, keep: int) -> list[Instances]:
        """The best `keep` detections of each image, input frame, best first."""
        logits, deltas = self(features, Rois.of([p.boxes for p in proposals]))
        return [found for found, _ in self.select(proposals, logits.softmax(dim=1), deltas, keep=keep)]


class BoxHead(BoxBranch):
    """Two hidden layers on 7×7 pooled features.

    Args:
        channels: of the features.
        hidden: units of the two hidden layers.
        pool: RoIAlign to the head's grid.
        options: see `BoxBranch`.
    """

    def __init__(self, channels: int, *, hidden: int, pool: RoiOperator, **options: Any) -> None:
        super().__init__(hidden, **options)
        self.pool = pool
        self.fc1 = nn.Linear(channels * pool.side**2, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        for layer in (self.fc1, self.fc2):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)

    def vectors(self, features: Features, rois: Rois) -> Tensor:
        """What the last layers see, (R, hidden)."""
        pooled = self.pool(features, rois).flatten(1)  # (R, C·7·7)
        return F.relu(self.fc2(F.relu(self.fc1(pooled), inplace=True)), inplace=True)


def box_losses(sampled: SampledRois, logits: Tensor, deltas: Tensor, *, coder: BoxCoder, beta: float) -> dict[str, Loss]:
    """Of class logits (R, K + 1) and deltas (R, K, 4) of the RoIs drawn."""
    count = logits.new_tensor(len(sampled.rois))
    positives = sampled.positives
    wanted = coder.encode(sampled.target_boxes, positives.boxes.detach())
    rows = torch.arange(len(positives), device=deltas.device)
    answered = deltas[rows, sampled.labels[: len(positives)]]
    return {
        "class": Loss(F.cross_entropy(logits, sampled.labels, reduction="sum"), count),
        "box": Loss(F.smooth_l1_loss(answered, wanted, beta=beta, reduction="sum"), count),
    }


# Mask head (Mask R-CNN, sec. 3, mask representation; fig. 4 right)


def mask_targets(masks: Masks, boxes: Tensor, rows: Tensor, *, side: int) -> Tensor:
    """The part of an object's mask inside a RoI, stretched to M×M (Mask R-CNN, sec. 3.1, training).

    A cell is on when the object covers at least half of it.

    Args:
        masks: objects of an image, input frame.
        boxes: RoIs of the image, xyxy px (R⁺, 4).
        rows: the object of each RoI, int64 (R⁺,).
        side: cells per side of the grid, M.

    Returns:
        0 or 1, float32 (R⁺, M, M).
    """
    return (masks.coverage(boxes, rows, side=side, samples=4) >= 0.5).to(torch.float32)


class MaskBranch(nn.Module, ABC):
    """What all mask heads have in common: what they learn, and how their answers become masks.

    Args:
        targets: what a RoI's mask should be, like `mask_targets`.
        lay: lays grids (N, M, M) over boxes (N, 4), like `MaskProbs` itself.
        certainty_power: see `certainty`; scores are multiplied by it to this power.
    """

    def __init__(
        self,
        *,
        targets: Callable[..., Tensor] = mask_targets,
        lay: Callable[[Tensor, Tensor], MaskProbs] = MaskProbs,
        certainty_power: float = 0.0,
    ) -> None:
        super().__init__()
        self.targets = targets
        self.lay = lay
        self.certainty_power = certainty_power

    @abstractmethod
    def forward(self, features: Features, rois: Rois, labels: Tensor) -> Tensor:
        """Mask logits of each RoI for the class it is given, (R, M, M)."""

    def loss(self, features: Features, sampled: SampledRois, targets: list[Instances]) -> dict[str, Loss]:
        """Sigmoid cross entropy per pixel on the mask of the object's class alone: classes do not compete."""
        rois = sampled.positives
        logits = self(features, rois, sampled.labels[: len(rois)])
        wanted = self.wanted(sampled, targets, side=logits.shape[-1])
        loss = F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
        return {"mask": Loss(loss, logits.new_tensor(logits.numel()))}

    def wanted(self, sampled: SampledRois, targets: list[Instances], *, side: int) -> Tensor:
        """The masks of the positive RoIs, (R⁺, M, M)."""
        rois = sampled.positives
        parts = []
        for i, (target, rows) in enumerate(zip(targets, sampled.target_rows, strict=True)):
            parts.append(self.targets(masks_of(target), rois.boxes[rois.image_index == i], rows, side=side))
        return torch.cat(parts)

    def complete(self, detections: list[Instances], features: Features, rois: Rois) -> list[Instances]:
        """Detections with their masks, drawn at the resolution of the original image, and scored by them, too."""
        labels = torch.cat([d.labels for d in detections])
        probs = self(features, rois, labels).sigmoid()
        parts = probs.split([len(d) for d in detections])
        answers = []
        for found, part in zip(detections, parts, strict=True):
            assert found.scores is not None
            scores = found.scores * certainty(part, part >= 0.5) ** self.certainty_power
            masks = self.lay(part, found.boxes).paste(found.image_size).to(found.boxes.device)
            answers.append(replace(found, masks=masks, scores=scores))
        return answers


class DeconvMaskBranch(MaskBranch):
    """Masks from 1×1 convolutions on what a deconvolution has enlarged; these are `deconv` and `predictor`."""

    CLASS_ROWS: ClassVar[dict[str, int]] = {"predictor.weight": 1, "predictor.bias": 1}
    deconv: nn.ConvTranspose2d
    predictor: nn.Module

    @abstractmethod
    def hidden(self, features: Features, rois: Rois) -> Tensor:
        """What the last layer sees, (R, C, M, M)."""

    def forward(self, features: Features, rois: Rois, labels: Tensor) -> Tensor:
        """Mask logits of each RoI for the class it is given, (R, M, M)."""
        logits: Tensor = self.predictor(self.hidden(features, rois), labels)
        return logits


class MaskHead(DeconvMaskBranch):
    """A mask for each class from four 3×3 convolutions and a deconvolution on 14×14 pooled features.

    Args:
        channels: of the features.
        num_classes: K.
        pool: RoIAlign to half the side of the masks.
        hidden: channels of the hidden layers, by default as many.
        options: see `MaskBranch`.
    """

    def __init__(
        self, channels: int, *, num_classes: int, pool: RoiOperator, hidden: int | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self.pool = pool
        hidden = hidden or channels
        self.convs = nn.ModuleList(nn.Conv2d(c, hidden, 3, padding=1) for c in (channels, hidden, hidden, hidden))
        self.deconv = nn.ConvTranspose2d(hidden, hidden, 2, stride=2)
        self.predictor = ClassConv1x1(hidden, num_classes)
        for layer in (*self.convs, self.deconv):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        init_normal(self.predictor, std=0.001)

    def hidden(self, features: Features, rois: Rois) -> Tensor:
        """Of the pooled features, (R, C, M, M)."""
        hidden: Tensor = self.pool(features, rois)  # (R, C, M / 2, M / 2)
        for conv in self.convs:
            hidden = F.relu(conv(hidden), inplace=True)
        return F.relu(self.deconv(hidden), inplace=True)
