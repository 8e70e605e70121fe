"""Region proposal network: the stage that Mask R-CNN, MNC and FCIS begin with.

Source: Ren, He, Girshick, Sun, Faster R-CNN (TPAMI 2017), sec. 3.1; on a pyramid, Lin et al., FPN (CVPR 2017), sec. 4.1.

Idea: reference boxes of a few sizes and shapes, the anchors, at every cell of a feature map; a small network slid over the map
tells which of them hold an object, whatever it is, and how to move each onto its object. The best ones are proposals.

Legend: B images · A anchors per cell · P cells of a level · N proposals of one image.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.layers.assignment import BalancedSampler, IouMatcher
from maskwright.layers.box_coding import BoxCoder
from maskwright.layers.grids import PyramidAnchors
from maskwright.layers.initialization import init_normal
from maskwright.layers.nms import nms_by_group
from maskwright.layers.precision import Float32Conv2d
from maskwright.structures import Instances
from maskwright.structures import boxes as box_functions
from maskwright.systems.system import Loss

Features = Mapping[int, Tensor]
"""{stride: (B, C, H / stride, W / stride)}"""


class Candidates(NamedTuple):
    """Answers of the RPN to every anchor, level by level."""

    logits: list[Tensor]
    """Objectness, (B, P·A) for each level."""
    deltas: list[Tensor]
    """Box regression, (B, P·A, 4) for each level."""
    anchors: list[Tensor]
    """xyxy px, (P·A, 4) for each level."""


class SampledAnchors(NamedTuple):
    """Anchors of an image drawn for training, int64."""

    positives: Tensor
    """Those that hold an object."""
    negatives: Tensor
    """Those that hold none."""
    target_rows: Tensor
    """The object of each positive."""


Answered = Callable[[Tensor, tuple[int, int]], Tensor]
"""Which anchors, xyxy px (P·A, 4), answer for an image of (height, width) within a batch, bool (P·A,)."""


def centred_on_image(anchors: Tensor, size: tuple[int, int]) -> Tensor:
    """Those whose centre lies on the image and not in its padding."""
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    return (centres < centres.new_tensor([size[1], size[0]])).all(dim=1)


MATCH_RPN = IouMatcher(positive=0.7, negative=0.3, rescue_above=0.0)
SAMPLE_RPN = BalancedSampler(256, positive_fraction=0.5)


class RegionProposalNetwork(nn.Module):
    """Objectness and box of every anchor, by one small network slid over all levels.

    Args:
        channels: of the features.
        hidden: channels between, by default as many.
        anchors: reference boxes of every level.
        matcher: which anchors hold an object (Faster R-CNN, sec. 3.1.2).
        sampler: which of them the losses look at (Faster R-CNN, sec. 3.1.3).
        box_beta: error from which the smooth L1 loss of boxes is linear; 0 is L1.
        nms_iou: overlap above which a proposal suppresses a worse one of its level.
        min_side_px: proposals must exceed this on both sides.
        answered: which anchors of an image become proposals, like `centred_on_image`.
    """

    def __init__(
        self,
        channels: int,
        *,
        hidden: int | None = None,
        anchors: PyramidAnchors,
        matcher: IouMatcher = MATCH_RPN,
        sampler: BalancedSampler = SAMPLE_RPN,
        box_beta: float = 0.0,
        nms_iou: float = 0.7,
        min_side_px: float = 0.0,
        answered: Answered = centred_on_image,
    ) -> None:
        super().__init__()
        hidden = hidden or channels
        self.conv: nn.Module = nn.Conv2d(channels, hidden, 3, padding=1)
        self.objectness = Float32Conv2d(hidden, anchors.per_cell, 1)
        self.deltas = Float32Conv2d(hidden, 4 * anchors.per_cell, 1)
        for layer in (self.conv, self.objectness, self.deltas):
            init_normal(layer, std=0.01)
        self.anchors = anchors
        self.coder = BoxCoder()
        self.matcher = matcher
        self.sampler = sampler
        self.box_beta = box_beta
        self.nms_iou = nms_iou
        self.min_side_px = min_side_px
        self.answered = answered

    def forward(self, features: Features) -> Candidates:
        """Objectness and deltas of every anchor of every level."""
        logits, deltas = [], []
        for stride in self.anchors.shapes:
            hidden = F.relu(self.conv(features[stride]), inplace=True)
            batch = len(hidden)
            logits.append(self.objectness(hidden).permute(0, 2, 3, 1).reshape(batch, -1))  # (B, P·A)
            deltas.append(self.deltas(hidden).permute(0, 2, 3, 1).reshape(batch, -1, 4))  # (B, P·A, 4)
        return Candidates(logits, deltas, self.anchors(features))

    def loss(self, candidates: Candidates, targets: list[Instances], generators: list[torch.Generator]) -> dict[str, Loss]:
        """Sigmoid cross entropy over sampled anchors and (smooth) L1 over the positives, both divided as the sampler says."""
        anchors = torch.cat(candidates.anchors)
        drawn = [self.draw(anchors, target, generator) for target, generator in zip(targets, generators, strict=True)]
        return self.loss_of(candidates, targets, drawn)

    def draw(self, anchors: Tensor, target: Instances, generator: torch.Generator) -> SampledAnchors:
        """The anchors (P·A, 4) that an image teaches."""
        assignment = self.matcher(anchors, target)
        positives, negatives = self.sampler(assignment.kind, generator)
        return SampledAnchors(positives, negatives, assignment.target_index[positives])

    def loss_of(self, candidates: Candidates, targets: list[Instances], drawn: Sequence[SampledAnchors]) -> dict[str, Loss]:
        """The loss over anchors that were drawn."""
        anchors = torch.cat(candidates.anchors)
        logits, deltas = torch.cat(candidates.logits, dim=1), torch.cat(candidates.deltas, dim=1)
        objectness, regression = logits.sum() * 0, deltas.sum() * 0  # in the graph even where nothing is sampled
        count = 0
        for i, (target, (positives, negatives, rows)) in enumerate(zip(targets, drawn, strict=True)):
            sampled = torch.cat([positives, negatives])
            is_object = torch.zeros(len(sampled), device=logits.device)
            is_object[: len(positives)] = 1
            objectness = objectness + F.binary_cross_entropy_with_logits(logits[i, sampled], is_object, reduction="sum")
            wanted = self.coder.encode(target.boxes[rows], anchors[positives])
            error = F.smooth_l1_loss(deltas[i, positives], wanted, beta=self.box_beta, reduction="sum")
            regression = regression + error
            count += self.sampler.normalizer(len(sampled))
        divisor = logits.new_tensor(count)
        return {"rpn_objectness": Loss(objectness, divisor), "rpn_box": Loss(regression, divisor)}

    def propose(self, candidates: Candidates, sizes: list[tuple[int, int]], *, per_level: int, keep: int) -> list[Instances]:
        """The best `keep` boxes of each image, best first, input frame; suppression happens within a level.

        The best `per_level` anchors of each level take part.
        """
        return [proposals for proposals, _ in self.choose(candidates, sizes, per_level=per_level, keep=keep)]

    @torch.no_grad()  # Faster R-CNN, sec. 3.2, approximate joint training: no gradient through the coordinates of proposals
    def choose(
        self, candidates: Candidates, sizes: list[tuple[int, int]], *, per_level: int, keep: int
    ) -> list[tuple[Instances, Tensor]]:
        """What `propose` answers, with the anchor of each proposal, int64 (N,), counted over all levels."""
        boxes, logits, levels, anchors_of = [], [], [], []
        first = 0
        for level, (level_logits, deltas, anchors) in enumerate(zip(*candidates, strict=True)):
            answered = torch.stack([self.answered(anchors, size) for size in sizes])
            top, index = level_logits.where(answered, -torch.inf).topk(min(per_level, level_logits.shape[1]), dim=1)  # (B, n)
            chosen = torch.gather(deltas, 1, index[:, :, None].expand(-1, -1, 4))
            boxes.append(self.coder.decode(chosen, anchors[index]))  # (B, n, 4)
            logits.append(top)
            levels.append(torch.full_like(index, level))
            anchors_of.append(index + first)
            first += len(anchors)
        all_boxes, all_logits, all_levels = torch.cat(boxes, 1), torch.cat(logits, 1), torch.cat(levels, 1)
        all_anchors = torch.cat(anchors_of, 1)
        answers = []
        for i, size in enumerate(sizes):
            clipped = box_functions.clip(all_boxes[i], size)
            valid = box_functions.is_valid(clipped, min_px=self.min_side_px) & torch.isfinite(all_logits[i])
            image_boxes, image_logits, image_levels = clipped[valid], all_logits[i, valid], all_levels[i, valid]
            kept = nms_by_group(image_boxes, image_logits, image_levels, self.nms_iou, keep=keep)
            labels = torch.zeros_like(kept)
            proposals = Instances(size, boxes=image_boxes[kept], labels=labels, scores=image_logits[kept].sigmoid())
            answers.append((proposals, all_anchors[i, valid][kept]))
        return answers


class PairwiseObjectness(Float32Conv2d):
    """Objectness as first published: a score for and one against, softmax over both, which is the sigmoid of their difference.

    Args:
        channels: of the features.
        anchors: per cell, A; the first A channels speak against an object.
    """

    def __init__(self, channels: int, anchors: int) -> None:
        super().__init__(channels, 2 * anchors, 1)
        init_normal(self, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → logits (B, A, H, W)."""
        against, for_it = super().forward(x).chunk(2, dim=1)
        return for_it - against
