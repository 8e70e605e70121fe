"""MultiPathNet: a detector on proposals that looks at each from four distances and at three resolutions.

Source: Zagoruyko, Lerer, Lin, Pinheiro, Gross, Chintala, Dollár, A MultiPath Network for Object Detection (BMVC 2016, arXiv
1604.02135), and the authors' code. SharpMask's proposals with this detector were second in COCO 2015.

Idea: Fast R-CNN with three changes. Skip connections: cells pooled from three stages of the backbone, each brought to the same
length, so that small objects keep their detail. Foveal regions: the proposal and windows 1.5, 2 and 4 times as large around it,
each with layers of its own, give context. Integral loss: a classifier for each of six overlaps from which a proposal counts as
holding the object, whose mean is a better guess of how good a box is.

Differs from the paper, with the code: one overlap is drawn at a time, here for each image instead of each batch, so that a
batch can be computed in parts; boxes have a tower of their own. Dropout, weights and pixels as in fast_rcnn.py.

Legend: R proposals of the batch · U overlaps · D hidden units of a tower · K classes, with the background as the last of K + 1
columns · C channels.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.layers.backbones import VGG_HIDDEN, ImageNetPart
from maskwright.layers.dropout import keyed_dropout
from maskwright.layers.initialization import init_normal
from maskwright.layers.precision import Float32Linear
from maskwright.layers.roi import RoiPool, Rois
from maskwright.structures import ImageBatch, Instances
from maskwright.systems.proposals.fast_rcnn import FastRCNN
from maskwright.systems.rcnn.mask_rcnn import BoxSelection, RoiSampler, SampledRois, box_losses
from maskwright.systems.rcnn.rpn import Features
from maskwright.systems.system import Loss, loss_by_size

FOVEAL = (1.0, 1.5, 2.0, 4.0)  # MultiPath, sec. 3.2: sides of the regions, of the proposal's
OVERLAPS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75)  # MultiPath, sec. 3.3
NORM_SCALE = 1000.0  # the code, after each pooled map was brought to length 1


class MultiPathNet(FastRCNN):
    """Fast R-CNN whose head is a `MultiPathHead`, trained at one overlap an image.

    Args:
        samplers: of RoIs, one for each overlap.
        parts: of `FastRCNN`.
    """

    def __init__(self, *, samplers: Sequence[RoiSampler], **parts: Any) -> None:
        super().__init__(roi_sampler=samplers[0], **parts)
        self.samplers = samplers

    @loss_by_size
    def loss(self, images: ImageBatch, targets: list[Instances]) -> dict[str, Loss]:
        """Class at one overlap for each image, and box (MultiPath, eq. 3, one term of its sum)."""
        generators = images.generators()
        features = self.features(images.pixels)
        drawn = [int(torch.randint(len(self.samplers), (), generator=generator)) for generator in generators]
        parts = [
            self.samplers[u]([proposals.boxes], [target], [generator])
            for u, proposals, target, generator in zip(drawn, self._proposals(images), targets, generators, strict=True)
        ]
        which = torch.tensor(drawn, device=images.pixels.device)
        losses: dict[str, Loss] = self.box_head.loss(features, together(parts), generators, which)
        return losses


def together(parts: Sequence[SampledRois]) -> SampledRois:
    """What was drawn for each image, as one batch."""
    objects = Rois.of([part.positives.boxes for part in parts])
    others = Rois.of([part.rois.boxes[len(part.target_boxes) :] for part in parts])
    labels = [part.labels[: len(part.target_boxes)] for part in parts]
    return SampledRois(
        rois=Rois(torch.cat([objects.boxes, others.boxes]), torch.cat([objects.image_index, others.image_index])),
        labels=torch.cat([*labels, *(part.labels[len(part.target_boxes) :] for part in parts)]),
        target_boxes=torch.cat([part.target_boxes for part in parts]),
        target_rows=[rows for part in parts for rows in part.target_rows],
    )


def region(boxes: Tensor, scale: float) -> Tensor:
    """Boxes (R, 4) made larger around their centres; they may stick out of the image."""
    centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) * (scale / 2)
    return torch.cat([centre - half, centre + half], dim=1)


class SkipPool(nn.Module):
    """Cells pooled from several maps, each brought to length 1, put together and mixed (MultiPath, sec. 3.1).

    Args:
        channels: of the maps to pool from, by stride.
        mixed: channels after the 1×1 convolution.
        side: cells per side.
    """

    def __init__(self, channels: Mapping[int, int], *, mixed: int, side: int = 7) -> None:
        super().__init__()
        self.pools = nn.ModuleList(RoiPool(side, stride=stride) for stride in sorted(channels))
        self.mix = nn.Conv2d(sum(channels.values()), mixed, 1)

    def forward(self, features: Features, rois: Rois) -> Tensor:
        """R RoIs → (R, mixed, side, side)."""
        cells = [pool(features, rois) for pool in self.pools]
        lengths = [x.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None] for x in cells]
        return F.relu(self.mix(NORM_SCALE * torch.cat([x / length for x, length in zip(cells, lengths, strict=True)], dim=1)))


class Tower(ImageNetPart):
    """Two hidden layers with dropout on the cells of one region."""

    sources = MappingProxyType(VGG_HIDDEN)

    def __init__(
        self, pool: SkipPool, *, mixed: int, hidden: int, dropout: float, pretrained: str | None, side: int = 7
    ) -> None:
        super().__init__()
        self.pretrained = pretrained
        self.pool = pool
        self.fc1 = nn.Linear(mixed * side**2, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.dropout = dropout

    def forward(self, features: Features, rois: Rois, generators: Sequence[torch.Generator] | None) -> Tensor:
        """(R, D); generators, one for each RoI, switch the dropout on."""
        x: Tensor = self.pool(features, rois).flatten(1)
        for layer in (self.fc1, self.fc2):
            x = keyed_dropout(F.relu(layer(x)), generators, p=self.dropout)
        return x


class MultiPathHead(BoxSelection):
    """A tower for each region, a classifier for each overlap over all of them, and a tower for boxes (the code, model_het).

    Args:
        channels: of the features, by stride; the finest stride is seen by the proposal alone, the next one by regions up to
            twice as large, the coarsest by all (the code).
        mixed: channels of pooled cells.
        hidden: D.
        num_classes: K.
        dropout: in the towers.
        pretrained: of the towers, see `ImageNetPart`.
    """

    CLASS_ROWS: ClassVar = {
        **{f"classes.{u}.{name}": 1 for u in range(len(OVERLAPS)) for name in ("weight", "bias")},
        "deltas.weight": 4,
        "deltas.bias": 4,
    }

    def __init__(
        self,
        channels: Mapping[int, int],
        *,
        mixed: int,
        hidden: int,
        num_classes: int,
        dropout: float,
        score_threshold: float,
        pretrained: str | None = None,
    ) -> None:
        super().__init__(score_threshold=score_threshold, nms_iou=0.3, min_side_px=0.0)
        finest, middle, coarsest = sorted(channels)
        seen = {1.0: (finest, middle, coarsest), 1.5: (middle, coarsest), 2.0: (middle, coarsest), 4.0: (coarsest,)}

        def tower(strides: Sequence[int]) -> Tower:
            pool = SkipPool({stride: channels[stride] for stride in strides}, mixed=mixed)
            return Tower(pool, mixed=mixed, hidden=hidden, dropout=dropout, pretrained=pretrained)

        self.towers = nn.ModuleList(tower(seen[scale]) for scale in FOVEAL)
        self.box_tower = tower(sorted(channels))
        self.classes = nn.ModuleList(Float32Linear(len(FOVEAL) * hidden, num_classes + 1) for _ in OVERLAPS)
        self.deltas = Float32Linear(hidden, 4 * num_classes)
        for layer in self.classes:
            init_normal(layer, std=0.01)  # type: ignore[arg-type]
        init_normal(self.deltas, std=0.001)

    def hidden(self, features: Features, rois: Rois, generators: Sequence[torch.Generator] | None) -> tuple[Tensor, Tensor]:
        """What classes and what boxes are told from, (R, 4·D) and (R, D)."""
        each = None if generators is None else [generators[i] for i in rois.image_index.tolist()]
        foveal = [
            tower(features, Rois(region(rois.boxes, scale), rois.image_index), each)
            for tower, scale in zip(self.towers, FOVEAL, strict=True)
        ]
        wider = Rois(region(rois.boxes, 1.5), rois.image_index)
        return torch.cat(foveal, dim=1), self.box_tower(features, wider, each)

    def loss(
        self, features: Features, sampled: SampledRois, generators: list[torch.Generator], drawn: Tensor
    ) -> dict[str, Loss]:
        """Cross entropy of the overlap drawn for each image, int64 (B,), and smooth L1 of the positives."""
        foveal, wider = self.hidden(features, sampled.rois, generators)
        logits = torch.stack([classify(foveal) for classify in self.classes])  # (U, R, K + 1)
        chosen = logits[drawn[sampled.rois.image_index], torch.arange(len(foveal), device=foveal.device)]
        return box_losses(sampled, chosen, self.deltas(wider).unflatten(1, (-1, 4)), coder=self.coder, beta=1.0)

    def answer(self, features: Features, proposals: list[Instances], *, keep: int) -> list[tuple[Instances, Tensor]]:
        """The best `keep` detections of each image, and the proposal each came from; the mean over overlaps decides."""
        foveal, wider = self.hidden(features, Rois.of([p.boxes for p in proposals]), None)
        probs = torch.stack([classify(foveal).softmax(dim=1) for classify in self.classes]).mean(dim=0)
        return self.select(proposals, probs, self.deltas(wider).unflatten(1, (-1, 4)), keep=keep)
