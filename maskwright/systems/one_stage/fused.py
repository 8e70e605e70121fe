"""EmbedMask as its author rebuilt it on AdelaiDet (V4), the most accurate by his figures: embedmask.py, other parts.

Source: yinghdb/AdelaiDet, May 2021. The map of pixels is fused from P3, P4 and P5 in a narrow branch (that of CondInst), every
positive location learns the mask of its object, locations are sampled around the middle of the mask instead of the box, and a
semantic loss, for training only, teaches the branch's input what classes look like. φ is computed at stride 8; its
probabilities, not the embeddings, are upsampled.

Differs from the code: group norm in the branches where they train, frozen norms for the author's checkpoints; at most 250
locations of an image learn masks, there 500 of all images on a GPU; φ is computed inside the box grown by a quarter of its
sides, there everywhere; logits of φ go down to -20.7, there to -13.8; detections are drawn at the original size at once, not by
way of the input's. `score_threshold` is one on class probability times centerness.

Legend: as in embedmask.py.
"""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from maskwright.layers.assignment import drawn
from maskwright.layers.initialization import init_normal
from maskwright.layers.norms import BranchNorm, normed_conv
from maskwright.layers.precision import Float32Conv2d
from maskwright.structures import Instances, Masks
from maskwright.systems.one_stage.embedmask import (
    Lessons,
    Proposals,
    Teacher,
    Windows,
    clip_cells,
    cut_probability,
    draw_windows,
    embedding_energies,
    everywhere,
)
from maskwright.systems.one_stage.fcos import Answers, CenterAssigner, Features, Found
from maskwright.systems.system import Loss, masks_of

FIRST_PX = 2.5  # where cell 0 begins: twofold, then fourfold aligned upsampling put cell j on pixel 8 j + 6, centre 8 j + 6.5


def aligned_bilinear(maps: Tensor, factor: int) -> Tensor:
    """Maps (B, C, h, w) upsampled as AdelaiDet does it: cell j lands on sample factor · j + factor / 2, (B, C, f·h, f·w)."""
    h, w = maps.shape[2:]
    padded = F.pad(maps, (0, 1, 0, 1), mode="replicate")
    fine = F.interpolate(padded, size=(factor * h + 1, factor * w + 1), mode="bilinear", align_corners=True)
    return F.pad(fine, (factor // 2, 0, factor // 2, 0), mode="replicate")[:, :, : factor * h, : factor * w]


def _conv_norm_relu(in_channels: int, channels: int, norm: BranchNorm) -> nn.Sequential:
    return nn.Sequential(*normed_conv(in_channels, channels, norm=norm), nn.ReLU(inplace=True))


class FusedBranch(nn.Module):
    """P3, P4 and P5, narrowed, upsampled and added, then four convolutions (CondInst's mask branch).

    Args:
        in_channels: of the pyramid.
        channels: of the branch.
        norm: of the branch.
    """

    def __init__(self, in_channels: int, channels: int, *, norm: BranchNorm) -> None:
        super().__init__()
        self.refine = nn.ModuleList(_conv_norm_relu(in_channels, channels, norm) for _ in range(3))
        last = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.kaiming_uniform_(last.weight, a=1)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.tower = nn.Sequential(*(_conv_norm_relu(channels, channels, norm) for _ in range(4)), last)

    def forward(self, features: Features) -> Tensor:
        """(B, channels, h, w) at stride 8."""
        finest, *others = sorted(features)[:3]
        fused = self.refine[0](features[finest])
        for stride, refine in zip(others, self.refine[1:], strict=True):
            finer = aligned_bilinear(refine(features[stride]), stride // finest)
            fused = fused + finer[:, :, : fused.shape[2], : fused.shape[3]]
        answer: Tensor = self.tower(fused)
        return answer


class SemanticHead(nn.Module):
    """The class of every cell of P3, where the smallest mask that covers it decides; for training only.

    Args:
        in_channels: of the pyramid.
        channels: hidden.
        num_classes: K.
        norm: of the branch.
    """

    CLASS_ROWS: ClassVar = {"classes.weight": 1, "classes.bias": 1}

    def __init__(self, in_channels: int, channels: int, *, num_classes: int, norm: BranchNorm) -> None:
        super().__init__()
        self.hidden = nn.Sequential(_conv_norm_relu(in_channels, channels, norm), _conv_norm_relu(channels, channels, norm))
        self.classes = Float32Conv2d(channels, num_classes, 1)
        init_normal(self.classes, std=0.01, bias=-math.log(0.99 / 0.01))

    def loss(self, features: Features, targets: list[Instances]) -> dict[str, Loss]:
        """Focal loss by the number of cells that have a class; cells of nothing but a crowd are left out."""
        stride = min(features)
        logits = self.classes(self.hidden(features[stride]))  # (B, K, h, w)
        wanted, counted = torch.zeros_like(logits), torch.ones_like(logits[:, 0], dtype=torch.bool)
        for i, target in enumerate(targets):
            sampled = masks_of(target).sample((logits.shape[2], logits.shape[3]), step=stride, first=(stride // 2,) * 2)
            order = torch.nonzero(~target.crowd)[:, 0]
            order = order[masks_of(target).areas()[order].argsort(stable=True)]
            covered = sampled[order].any(dim=0)  # (h, w)
            y, x = torch.nonzero(covered, as_tuple=True)
            if len(y):
                smallest = sampled[order].to(torch.uint8).argmax(dim=0)  # the first that is on
                wanted[i, target.labels[order][smallest[y, x]], y, x] = 1.0
            counted[i] = covered | ~sampled[target.crowd].any(dim=0)
        focal = sigmoid_focal_loss(logits, wanted, alpha=0.25, gamma=2).sum(dim=1)
        return {"semantic": Loss((focal * counted).sum(), wanted.sum())}


class MiddleAssigner(CenterAssigner):
    """Locations are sampled around the middle of an object's mask."""

    def _middles(self, target: Instances) -> Tensor:
        return masks_of(target).centroids()


def all_positives(
    answers: Answers, proposals: Proposals, image: int, matched: Tensor, target: Instances, generator: torch.Generator
) -> Lessons:
    """Every location of an object draws its mask, up to 250 of an image; a mean over all of a batch."""
    index = torch.nonzero(matched >= 0)[:, 0]
    chosen = drawn(index, 250, generator)
    embeddings, precisions = proposals.embeddings[image, chosen], proposals.precisions[image, chosen]
    return Lessons(matched[chosen], embeddings, precisions, weight=1.0, normalizer=float(len(chosen)), losses={})


class UpsampledProbabilities:
    """φ at stride 8; upsampled to stride 4 for the loss, and to the image for masks."""

    STRIDE = 8

    def __init__(self) -> None:
        self.teacher: Teacher = all_positives
        self.windows: Windows = grown_by_a_quarter
        self.cut = cut_probability(0.5)
        self.region = everywhere

    def energies(self, pixels: Tensor, embeddings: Tensor, precisions: Tensor) -> Tensor:
        """-ln φ, (R, 2 h, 2 w)."""
        energies = embedding_energies(pixels.flatten(1), embeddings, precisions)
        probs = torch.exp(-energies).reshape(-1, *pixels.shape[1:])
        return -torch.log(aligned_bilinear(probs[:, None], 2)[:, 0].clamp(min=1e-9))

    def targets(self, masks: Masks, size: tuple[int, int]) -> Tensor:
        """The masks at every fourth pixel, from (2, 2) on."""
        return masks.sample(size, step=4, first=(2, 2))

    def draw(
        self, pixels: Tensor, proposals: Proposals, image: int, found: Found, image_size: tuple[int, int]
    ) -> tuple[Masks, Tensor]:
        """Each mask inside its box, grown by a quarter of its sides."""
        return draw_windows(
            pixels,
            proposals.embeddings[image, found.location],
            proposals.precisions[image, found.location],
            self.windows(found.instances.boxes, self.STRIDE, (pixels.shape[1], pixels.shape[2])),
            cut=self.cut,
            stride=self.STRIDE,
            first_px=FIRST_PX,
            sizes=(found.instances.image_size, image_size),
        )


def grown_by_a_quarter(boxes: Tensor, stride: int, size: tuple[int, int]) -> Tensor:
    """All cells that have a say inside boxes grown by a quarter of their sides at each end, cells where V4 draws them."""
    grow, centre = (boxes[:, 2:] - boxes[:, :2]) / 4, FIRST_PX + stride / 2
    low, high = boxes[:, :2] - grow - centre, boxes[:, 2:] + grow - centre
    return clip_cells(torch.cat([torch.floor(low / stride), torch.ceil(high / stride) + 1], dim=1).long(), size)
