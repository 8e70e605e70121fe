"""EmbedMask: instance masks from the coupling of pixel and proposal embeddings, without RoI pooling, on FCOS.

Source: Ying, Lin, Liu, Gu, Zhang, Fu, EmbedMask (arXiv 1912.01954; IJCAI 2021) and the four versions of its authors' code,
which differ: V1 is the arXiv paper's, V2 and V3 its successors (V3: IJCAI), V4 a rewrite on AdelaiDet. V3 is the default
here, V1 and V2 are for their checkpoints and for comparison, V4 ("fused") is the most accurate by
its author's figures.

Idea: every pixel of a fine map has an embedding p, every location of the detector one of its own, q, and a margin. A pixel
belongs to a detection with the probability φ = exp(-Σ s (p - q)²), where s, the precision, is 1 / (2 σ²) of the paper's
margin σ: near in embedding is inside. Embedding and margin ride through suppression with their box, and the mask is drawn
from the map of the whole image: nothing is pooled, nothing is resampled before it is understood.

Differs from the code: logits of φ are computed from the energy -ln φ and stay finite at φ = 0 and 1; φ is computed inside the
box, grown a little, and nowhere else, where V4 computes it everywhere; V4's branches have group norm where they train (its
batch norm needs large batches) and frozen norms for its checkpoints; V1's smooth loss is averaged over the locations of an
object, as the paper writes it; the last row and column of V1's map are drawn at inference; V3's masks can also be cut in φ,
like V2's (`cut`).

Legend: B images · P locations of all levels · N objects or detections of one image · R rows: pairs of object and proposal that
learn a mask · D embedding size · S 1 or D, numbers of a margin · K classes · (h, w) a map at stride 8 · C channels.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from maskwright.layers.assignment import first_of_each
from maskwright.layers.initialization import init_normal
from maskwright.layers.losses import logits_of_energy, lovasz_hinge
from maskwright.layers.precision import Float32Conv2d
from maskwright.layers.towers import Tower, flatten_levels
from maskwright.structures import ImageBatch, InputSpec, Instances, MaskProbs, Masks
from maskwright.structures import boxes as box_functions
from maskwright.structures.mask_probs import certainty
from maskwright.systems.one_stage.fcos import Answers, CenterAssigner, FCOSHead, Features, Found, LevelScales, Locations
from maskwright.systems.system import Loss, Task, loss_by_size, masks_of, predict_by_size

LN2 = math.log(2)
ROWS_AT_A_TIME = 64  # whose masks are compared with the truth in one go
MASK_WEIGHT = 0.5  # of the mask loss beside FCOS's three (V1 to V3)
PRIOR_MARGIN = 2.0  # distance at which φ is one half before anything is learnt
PRIOR_LOG_PRECISION = math.log(LN2 / PRIOR_MARGIN**2)  # -1.752807


class Proposals(NamedTuple):
    """What every location says of the mask of its object."""

    embeddings: Tensor
    """q, (B, P, D)."""
    precisions: Tensor
    """s = 1 / (2 σ²), positive, (B, P, S)."""


class ExtraHead(Protocol):
    """What else the features learn, in training only."""

    CLASS_ROWS: ClassVar[Mapping[str, int]]
    """Parameters whose rows belong to classes, and how many rows each class has."""

    def loss(self, features: Features, targets: list[Instances]) -> dict[str, Loss]:
        """Loss over the batch."""


# The network, learning and inference of the whole


class EmbeddingParts(NamedTuple):
    """What embeddings come from."""

    positions: nn.Module
    """Coordinates of cells, added to them."""
    pixel_head: nn.Module
    """Those of pixels."""
    proposal_head: nn.Module
    """Those of locations, and their margins."""


class EmbedMask(nn.Module):
    """EmbedMask.

    Args:
        input: how an image becomes pixels.
        backbone, fpn: {stride: features} from pixels.
        assigner: which object each location learns.
        fcos: boxes.
        embedding: of pixels and locations.
        coupling: masks from embeddings, and how they are taught.
        extra_heads: further losses on the features, by name.
        max_detections: per image.
        certainty_power: scores are multiplied by the `certainty` of masks to this power.
    """

    def __init__(
        self,
        *,
        input: InputSpec,
        backbone: nn.Module,
        fpn: nn.Module,
        assigner: CenterAssigner,
        fcos: FCOSHead,
        embedding: EmbeddingParts,
        coupling: "Coupling",
        extra_heads: Mapping[str, nn.Module],
        max_detections: int,
        certainty_power: float = 0.0,
    ) -> None:
        super().__init__()
        self.input = input
        self.certainty_power = certainty_power
        self.task = Task.INSTANCES
        self.backbone = backbone
        self.fpn = fpn
        self.assigner = assigner
        self.fcos = fcos
        self.positions, self.pixel_head, self.proposal_head = embedding
        self.coupling = coupling
        self.extra_heads = nn.ModuleDict(extra_heads)
        self.max_detections = max_detections

    @loss_by_size
    def loss(self, images: ImageBatch, targets: list[Instances]) -> dict[str, Loss]:
        """FCOS's three terms and the mask's (EmbedMask, eq. of the total loss; weights from the code)."""
        features = self.fpn(self.backbone(images.pixels))
        answers = self.fcos(features)
        matched = [self.assigner(answers.locations, target) for target in targets]
        losses = self.fcos.loss(answers, matched, targets)
        pixels, proposals = self._embed(features, answers)
        losses |= self._mask_loss(images, answers, matched, targets, pixels, proposals)
        for head in self._extra_heads():
            losses |= head.loss(features, targets)
        return losses

    @predict_by_size
    def predict(self, images: ImageBatch) -> list[Instances]:
        """Boxes first; each that is kept draws its mask from the embeddings of the image."""
        features = self.fpn(self.backbone(images.pixels))
        answers = self.fcos(features)
        found = self.fcos.detect(answers, images.sizes, keep=self.max_detections)
        pixels, proposals = self._embed(features, answers)
        detections = images.to_original_frame([f.instances for f in found])
        return [self._drawn(d, pixels[i], proposals, i, found[i]) for i, d in enumerate(detections)]

    def _drawn(self, detections: Instances, pixels: Tensor, proposals: Proposals, image: int, found: Found) -> Instances:
        """Detections of an image with their masks, and scored by them, too."""
        assert detections.scores is not None
        masks, sure = self.coupling.draw(pixels, proposals, image, found, detections.image_size)
        scores = detections.scores * sure**self.certainty_power
        return replace(detections, masks=masks.to(scores.device), scores=scores).by_score()

    def class_rows(self) -> dict[str, int]:
        """Parameters whose rows belong to classes, and how many rows each class has."""
        heads: dict[str, Any] = {f"extra_heads.{name}": head for name, head in self.extra_heads.items()}
        heads["fcos"] = self.fcos
        return {f"{name}.{row}": rows for name, head in heads.items() for row, rows in head.CLASS_ROWS.items()}

    def _extra_heads(self) -> list["ExtraHead"]:
        return list(self.extra_heads.values())  # type: ignore[arg-type]

    def _embed(self, features: Features, answers: Answers) -> tuple[Tensor, Proposals]:
        """Embeddings of pixels, (B, D, h, w), and what the locations say of masks."""
        positions = self.positions(answers.locations)
        pixels = self.pixel_head(features, positions)
        return pixels, self.proposal_head(answers, pixels, positions)

    def _mask_loss(
        self,
        images: ImageBatch,
        answers: Answers,
        matched: list[Tensor],
        targets: list[Instances],
        pixels: Tensor,
        proposals: Proposals,
    ) -> dict[str, Loss]:
        """Lovász hinge of every object's mask, drawn by the proposals that the teacher chooses, whatever it adds of its own."""
        losses: dict[str, Loss] = {}
        size = (2 * pixels.shape[2], 2 * pixels.shape[3])  # stride 4, in all versions
        for i, (target, generator) in enumerate(zip(targets, images.generators(), strict=True)):
            lessons = self.coupling.teacher(answers, proposals, i, matched[i], target, generator)
            wanted = self.coupling.targets(masks_of(target), size)
            hinge = pixels.new_zeros(())
            for part in torch.split(torch.arange(len(lessons.rows), device=pixels.device), ROWS_AT_A_TIME):
                objects = lessons.rows[part]
                inside = self.coupling.region(target.boxes[objects], size)
                lesson = (lessons.embeddings[part], lessons.precisions[part], wanted[objects], inside)
                # Computed anew backwards: kept for hundreds of objects, these maps would outgrow all else.
                hinge = hinge + checkpoint(self._hinge, pixels[i], *lesson, use_reentrant=False, preserve_rng_state=False)
            terms = {"mask": Loss(lessons.weight * hinge, hinge.new_tensor(lessons.normalizer))}
            for name, loss in (terms | lessons.losses).items():
                before = losses.get(name, Loss(hinge.new_zeros(()), hinge.new_zeros(())))
                losses[name] = Loss(before.total + loss.total, before.count + loss.count)
        return losses

    def _hinge(self, pixels: Tensor, embeddings: Tensor, precisions: Tensor, wanted: Tensor, inside: Tensor) -> Tensor:
        """Sum of the losses of some rows (R, h', w'); pixels that are not inside have no say."""
        logits = logits_of_energy(self.coupling.energies(pixels, embeddings, precisions))
        return lovasz_hinge(torch.where(inside, logits, -1e4).flatten(1), (wanted & inside).flatten(1)).sum()


# Who learns what


class InMaskAssigner(CenterAssigner):
    """A location learns an object only if its point lies on the object's mask (V1 to V3, SAMPLE_IN_MASK)."""

    def _admits(self, points: Tensor, rows: Tensor, target: Instances) -> Tensor:
        return masks_of(target).at(points, rows)


class Lessons(NamedTuple):
    """The rows of an image that learn a mask."""

    rows: Tensor
    """The object of each, int64 (R,)."""
    embeddings: Tensor
    """Q, (R, D)."""
    precisions: Tensor
    """(R, S)."""
    weight: float
    """Of each row in the sum of mask losses, the weight of the whole term included."""
    normalizer: float
    """What the image adds to what that sum is divided by."""
    losses: dict[str, Loss]
    """Terms of the teacher's own."""


Teacher = Callable[[Answers, Proposals, int, Tensor, Instances, torch.Generator], Lessons]
"""From the answers and proposals of a batch, an image's number, its matched locations, objects and generator."""


def best_positive(
    answers: Answers, proposals: Proposals, image: int, matched: Tensor, target: Instances, generator: torch.Generator
) -> Lessons:
    """Each object is drawn by the location whose box is best; a mean over the objects of an image (V2, V3)."""
    index = torch.nonzero(matched >= 0)[:, 0]
    rows = matched[index]
    order = overlaps(answers, image, index, target.boxes[rows]).argsort(descending=True, stable=True)
    first = first_of_each(rows[order], len(target))
    taught = torch.nonzero(first >= 0)[:, 0]
    chosen = index[order][first[taught]]
    embeddings, precisions = proposals.embeddings[image, chosen], proposals.precisions[image, chosen]
    return Lessons(taught, embeddings, precisions, weight=MASK_WEIGHT / max(1, len(taught)), normalizer=1.0, losses={})


def overlaps(answers: Answers, image: int, index: Tensor, boxes: Tensor) -> Tensor:
    """IoU of the boxes that locations answer with the boxes of their objects, (R,); selection has no gradient."""
    return box_functions.paired_iou(answers.boxes(image, index).detach(), boxes)


# Embeddings (IJCAI: spatial-aware ones, with coordinates, and spatial-free ones)


class Positions(nn.Module):
    """Coordinates of the locations, to be added to the first two numbers of embeddings.

    Args:
        factor: of (x, y) / 100 px: a parameter (V2, V3), 1 (V4), or 0 for no coordinates (V1).
    """

    def __init__(self, factor: float | nn.Parameter) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, locations: Locations) -> Tensor:
        """(P, 2)."""
        return locations.points / 100 * self.factor


class PixelHead(nn.Module):
    """Embeddings of the cells of the finest level.

    Args:
        body: features (B, C, h, w) from {stride: features}, like `FinestTower`.
        channels: C.
        dim: D.
    """

    def __init__(self, body: nn.Module, channels: int, *, dim: int) -> None:
        super().__init__()
        self.body = body
        self.embedding = Float32Conv2d(channels, dim, 3, padding=1)
        init_normal(self.embedding, std=0.01)

    def forward(self, features: Features, positions: Tensor) -> Tensor:
        """(B, D, h, w), with the positions (P, 2) of the finest level."""
        embeddings: Tensor = self.embedding(self.body(features))
        h, w = embeddings.shape[2:]
        return torch.cat([embeddings[:, :2] + positions[: h * w].T.reshape(2, h, w), embeddings[:, 2:]], dim=1)


class FinestTower(nn.Module):
    """A tower on P3 alone (V1 to V3)."""

    def __init__(self, channels: int, *, num_convs: int) -> None:
        super().__init__()
        self.tower = Tower(channels, num_convs=num_convs)

    def forward(self, features: Features) -> Tensor:
        """(B, C, h, w)."""
        answer: Tensor = self.tower(features[min(features)])
        return answer


class ProposalHead(nn.Module):
    """Embedding and margin of every location, from the tower that finds its box.

    Args:
        reduce: from the tower's features to `channels` of them.
        channels: of what the embedding is predicted from.
        dim: D.
        margin: logarithms of precisions from the answers, like `EmbeddingMargin`.
    """

    def __init__(self, reduce: nn.Module, channels: int, *, dim: int, margin: nn.Module) -> None:
        super().__init__()
        self.reduce = reduce
        self.embedding = Float32Conv2d(channels, dim, 3, padding=1)
        self.margin = margin
        init_normal(self.embedding, std=0.01)

    def forward(self, answers: Answers, pixels: Tensor, positions: Tensor) -> Proposals:
        """From the answers, the embeddings of pixels (not looked at) and positions (P, 2)."""
        maps = {stride: self.embedding(self.reduce(x)) for stride, x in answers.box_features.items()}
        flat = flatten_levels(maps)
        embeddings = torch.cat([flat[..., :2] + positions, flat[..., 2:]], dim=-1)
        return Proposals(embeddings, self.margin(answers).exp())


class SharedEmbeddings(nn.Module):
    """A rival: a location is described by the embedding of the pixel under it; only its margin is its own."""

    def __init__(self, *, margin: nn.Module) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, answers: Answers, pixels: Tensor, positions: Tensor) -> Proposals:
        """From the answers and the embeddings of pixels (B, D, h, w); positions are in those already."""
        points, strides, _ = answers.locations
        size = pixels.new_tensor([pixels.shape[3], pixels.shape[2]]) * strides[0]
        grid = (2 * points / size - 1).expand(len(pixels), 1, -1, -1)
        found = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return Proposals(found[:, :, 0].transpose(1, 2), self.margin(answers).exp())


# Margins (EmbedMask, learnable margin)


class EmbeddingMargin(nn.Module):
    """A margin for every number of the embedding (V3; with `reduce`, V4).

    Args:
        reduce: from the box tower's features / 32 to `channels` of them.
        channels: of what margins are predicted from.
        dim: D.
        strides: of the levels, each of which scales the margins of the first two numbers, the coordinates.
    """

    def __init__(self, reduce: nn.Module, channels: int, *, dim: int, strides: tuple[int, ...]) -> None:
        super().__init__()
        self.reduce = reduce
        self.conv = Float32Conv2d(channels, dim, 3, padding=1)
        self.scales = LevelScales(strides)
        init_normal(self.conv, std=0.01, bias=PRIOR_LOG_PRECISION)

    def forward(self, answers: Answers) -> Tensor:
        """Logarithms of precisions, (B, P, D)."""
        maps = {}
        for stride, features in answers.box_features.items():
            raw = self.conv(self.reduce(features / 32))
            maps[stride] = torch.cat([self.scales(raw[:, :2], stride), raw[:, 2:]], dim=1)
        return flatten_levels(maps)


class FixedMargin(nn.Module):
    """A rival: the same margin for all, in training and inference (FIX_MARGIN)."""

    def forward(self, answers: Answers) -> Tensor:
        """The logarithm of a precision, (B, P, 1)."""
        return torch.full_like(answers.centerness, PRIOR_LOG_PRECISION)[:, :, None]


# Coupling: masks from embeddings


def embedding_energies(pixels: Tensor, embeddings: Tensor, precisions: Tensor) -> Tensor:
    """Σ s (p - q)² = -ln φ of every pair, by two matrix products.

    Args:
        pixels: (D, M).
        embeddings: (R, D).
        precisions: (R, S).

    Returns:
        float32 (R, M).
    """
    with torch.autocast(pixels.device.type, enabled=False):
        middle = pixels.detach().mean(dim=1, keepdim=True)  # differences of large numbers lose digits
        p, q = pixels - middle, embeddings - middle.T
        s = precisions.expand_as(q)
        return s @ p.square() - 2 * (s * q) @ p + (s * q.square()).sum(dim=1, keepdim=True)


class Cut(NamedTuple):
    """What is interpolated between cells, and where it is cut; 0 outside the window."""

    values: Callable[[Tensor], Tensor]
    """From energies."""
    threshold: float


def cut_probability(threshold: float) -> Cut:
    """φ itself (V1, V2, V4)."""
    return Cut(lambda energy: torch.exp(-energy), threshold)


def cut_log_probability(threshold: float) -> Cut:
    """ln φ, -10 outside (V3), here as 1 + ln φ / 10: edges lie closer to the cells that are on."""
    return Cut(lambda energy: 1 - energy / 10, 1 + math.log(threshold) / 10)


Windows = Callable[[Tensor, int, tuple[int, int]], Tensor]
"""Cells a detection may claim: from boxes xyxy px (N, 4), the stride and size (h, w) of a map to int64 (N, 4), half open."""


def grown_by_two_cells(boxes: Tensor, stride: int, size: tuple[int, int]) -> Tensor:
    """Boxes in whole cells, rounded towards zero, and two cells more on every side (V3)."""
    cells = (boxes / stride).long()
    return clip_cells(torch.cat([cells[:, :2] - 2, cells[:, 2:] + 2], dim=1), size)


def clip_cells(cells: Tensor, size: tuple[int, int]) -> Tensor:
    """Windows (N, 4) cut to a map of (h, w)."""
    return torch.minimum(cells.clamp(min=0), cells.new_tensor([size[1], size[0], size[1], size[0]]))


def everywhere(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """All cells of a map of (h, w) teach every row, bool (R, 1, 1)."""
    return boxes.new_ones((len(boxes), 1, 1), dtype=torch.bool)


class Coupling(Protocol):
    """How embeddings become masks, and what masks teach."""

    teacher: Teacher
    """Which proposals learn an object's mask."""

    def energies(self, pixels: Tensor, embeddings: Tensor, precisions: Tensor) -> Tensor:
        """-ln φ at the resolution of the loss, (R, h', w'), of pixels (D, h, w), embeddings (R, D), precisions (R, S)."""

    def targets(self, masks: Masks, size: tuple[int, int]) -> Tensor:
        """Masks of the input frame at the resolution of the loss, bool (N, h', w')."""

    def region(self, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """Which cells teach the rows of these boxes, bool, broadcast to (R, h', w')."""

    def draw(
        self, pixels: Tensor, proposals: Proposals, image: int, found: Found, image_size: tuple[int, int]
    ) -> tuple[Masks, Tensor]:
        """Masks of an image's detections in its original size, from its pixels (D, h, w), and their `certainty`, (N,)."""


class UpsampledEmbeddings:
    """Embeddings are upsampled to stride 4; φ is computed, taught and cut there (V1 to V3).

    Args:
        teacher: which proposals learn an object's mask.
        windows: the cells a detection may claim.
        cut: from energies to masks.
        region: the cells that teach.
    """

    STRIDE = 4

    def __init__(
        self, *, teacher: Teacher, windows: Windows, cut: Cut, region: Callable[[Tensor, tuple[int, int]], Tensor]
    ) -> None:
        self.teacher = teacher
        self.windows = windows
        self.cut = cut
        self.region = region

    def energies(self, pixels: Tensor, embeddings: Tensor, precisions: Tensor) -> Tensor:
        """-ln φ, (R, 2 h, 2 w)."""
        fine = self._fine(pixels)
        return embedding_energies(fine.flatten(1), embeddings, precisions).reshape(-1, *fine.shape[1:])

    def targets(self, masks: Masks, size: tuple[int, int]) -> Tensor:
        """On where one of the four pixels in the middle of a cell is, as bilinear resizing to a quarter and > 0 say."""
        middle = [masks.sample(size, step=4, first=(row, column)) for row in (1, 2) for column in (1, 2)]
        return torch.stack(middle).any(dim=0)

    def draw(
        self, pixels: Tensor, proposals: Proposals, image: int, found: Found, image_size: tuple[int, int]
    ) -> tuple[Masks, Tensor]:
        """Each mask inside the window of its box."""
        return draw_windows(
            self._fine(pixels),
            proposals.embeddings[image, found.location],
            proposals.precisions[image, found.location],
            self.windows(found.instances.boxes, self.STRIDE, (2 * pixels.shape[1], 2 * pixels.shape[2])),
            cut=self.cut,
            stride=self.STRIDE,
            first_px=0.0,
            sizes=(found.instances.image_size, image_size),
        )

    @staticmethod
    def _fine(pixels: Tensor) -> Tensor:
        return F.interpolate(pixels[None], scale_factor=2, mode="bilinear", align_corners=False)[0]


def draw_windows(
    pixels: Tensor,
    embeddings: Tensor,
    precisions: Tensor,
    windows: Tensor,
    *,
    cut: Cut,
    stride: int,
    first_px: float,
    sizes: tuple[tuple[int, int], tuple[int, int]],
) -> tuple[Masks, Tensor]:
    """Masks from embeddings, each computed inside its window only, and the `certainty` of each, (N,).

    Args:
        pixels: embeddings of the cells, (D, h, w).
        embeddings, precisions: of the detections, (N, D) and (N, S).
        windows: cells of each detection, int64 (N, 4), half open.
        cut: from energies to masks.
        stride: px of the input frame from cell to cell.
        first_px: where the first cell begins, input frame.
        sizes: of the image in the input frame and in its original one.
    """
    whole = (0, 0, pixels.shape[2], pixels.shape[1])
    grids, sure = [], []
    corners = windows.tolist()
    for (x0, y0, x1, y1), q, s in zip(corners, embeddings, precisions, strict=True):
        apart = pixels[:, y0:y1, x0:x1] - q[:, None, None]
        energy = (apart.square() * s[:, None, None]).sum(dim=0)
        values = cut.values(energy)
        sure.append(certainty(torch.exp(-energy)[None], values[None] > cut.threshold))
        ends = [int(end == limit) for end, limit in zip((x0, x1, y0, y1), (0, whole[2], 0, whole[3]), strict=True)]
        grids.append(F.pad(values[None, None], ends, mode="replicate")[0, 0] if any(ends) else values)
    at_end = windows == windows.new_tensor(whole)  # there the last cell goes on beyond the map
    cells = windows + at_end * windows.new_tensor([-1, -1, 1, 1])
    boxes = box_functions.scale(cells * float(stride) + first_px, from_size=sizes[0], to_size=sizes[1])
    flat = torch.cat([grid.flatten() for grid in grids]).cpu() if grids else pixels.new_zeros(0)  # one transfer for all
    parts = torch.split(flat, [grid.numel() for grid in grids])
    together = [part.reshape(grid.shape) for part, grid in zip(parts, grids, strict=True)]
    return MaskProbs(together, boxes).paste(sizes[1], cut.threshold), torch.cat([*sure, pixels.new_zeros(0)])
