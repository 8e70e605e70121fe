"""DeepMask: class-agnostic masks of whatever lies in the middle of a window, and a score of there being something.

Source: Pinheiro, Collobert, Dollár, Learning to Segment Object Candidates (NIPS 2015, arXiv 1506.06204); its faster successor,
sec. 4 of Pinheiro, Lin, Collobert, Dollár, Learning to Refine Object Segments (ECCV 2016, arXiv 1603.08695); the authors' code.

Idea: slide a window over an image at many scales. From the features inside, one head draws the mask of the object in the
middle, another says whether an object is centred there and fits. Windows are the proposals: no boxes come before the masks.
Everything is a convolution, so all windows of an image share their features; training looks at single windows, cut out around
objects with some context.

Differs from the papers and their code: masks are drawn for the best windows only, not for all; half-pixel geometry in cutting,
resizing and drawing, where the code shifts by up to a pixel; scores and masks of the same window belong together, where the
code pairs neighbours; fewer windows than asked for give fewer proposals. Symmetric padding, frozen affine norms and context of
16 px are those of the code. Heads "a" and "b" are reconstructions: their sizes were not published.

Legend: B patches or images · W side of a window, px · S stride of the features · N windows · D size of a window's vector ·
M side of a mask · (h, w) windows of a scaled image, one for each cell.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import nms

from maskwright.layers.backbones import Backbone
from maskwright.layers.dropout import keyed_dropout
from maskwright.layers.precision import Float32Conv2d
from maskwright.structures import ImageBatch, InputSpec, Instances, Masks, MaskTiles, PatchBatch, PatchGeometry
from maskwright.structures import boxes as box_functions
from maskwright.systems.system import Loss, Task, masks_of

Features = dict[int, Tensor]
"""{stride: (B, C, H / stride, W / stride)}"""

MASK_WEIGHT = 32.0  # DeepMask, eq. 1, λ = 1/32 of the score: the mask of a patch counts as much as 32 scores
_WINDOWS_AT_ONCE = 64


class Level(NamedTuple):
    """All windows of one image at one scale."""

    size: tuple[int, int]
    """(height, width) of the scaled image, px."""
    vectors: Tensor
    """What masks are drawn from, (D, h, w)."""
    logits: Tensor
    """Whether a window holds an object, float32 (h, w)."""
    maps: list[Tensor]
    """What a refinement knows of the image, (C, H, W) each; DeepMask has none."""


class Pyramid(NamedTuple):
    """The scales at which windows are looked for."""

    octaves: tuple[float, ...]
    """Their base-2 logarithms."""
    max_side_px: int | None
    """Those at which an image's longer side exceeds it are left out, but for the smallest."""


class DeepMask(nn.Module):
    """Masks and scores of windows.

    Args:
        input: how an image becomes pixels, at scale 1.
        geometry: of windows and patches.
        backbone: {stride: features} from pixels; the coarsest is what heads look at.
        head: vector and score of every window.
        mask_head: (N, D) → mask logits (N, M, M).
        pyramid: its scales.
        max_detections: proposals of an image, N.
        mask_threshold: probability from which a pixel belongs to the object.
        score_threshold: windows that score less are left out.
        nms_iou: overlap of boxes above which a proposal suppresses a worse one; None keeps all, as the authors do.
    """

    task = Task.PROPOSALS

    def __init__(
        self,
        *,
        input: InputSpec,
        geometry: PatchGeometry,
        backbone: Backbone,
        head: nn.Module,
        mask_head: "MaskHead",
        pyramid: Pyramid,
        max_detections: int,
        mask_threshold: float = 0.2,  # DeepMask, sec. 5.1, for COCO
        score_threshold: float = 0.0,
        nms_iou: float | None = None,
    ) -> None:
        super().__init__()
        self.input = input
        self.geometry = geometry
        self.backbone = backbone
        self.stride = max(backbone.strides)
        self.head = head
        self.mask_head = mask_head
        self.octaves = tuple(sorted(pyramid.octaves))
        self.max_side_px = pyramid.max_side_px
        self.max_detections = max_detections
        self.mask_threshold = mask_threshold
        self.score_threshold = score_threshold
        self.nms_iou = nms_iou

    # Learning from patches (DeepMask, sec. 3.2; labels and losses of the code)

    def loss(self, images: ImageBatch, targets: list[Instances]) -> dict[str, Loss]:
        """Logistic loss per pixel of masks, or of scores, whichever the patches teach.

        A step learns one of the two: masks from windows that hold an object only, as learning to draw nothing harms them.
        """
        patches = as_patches(images)
        features = self._inside(self.backbone(patches.pixels))
        vectors, logits = self.head(features[self.stride], patches.generators())  # (B, D, 1, 1), (B, 1, 1)
        if patches.kind == "score":
            is_object = torch.tensor([float(len(target) > 0) for target in targets], device=logits.device)
            score = F.binary_cross_entropy_with_logits(logits.flatten(), is_object, reduction="sum")
            return {"score": Loss(score, is_object.new_tensor(len(targets)))}
        return {"mask": self._mask_loss(self.mask_head(vectors.flatten(1)), targets)}

    def _inside(self, features: Features) -> Features:
        """Features of the windows alone: the context of patches is cut off."""
        margin = self.geometry.context_px
        return {stride: F.pad(maps, (-margin // stride,) * 4) for stride, maps in features.items()}

    def _mask_loss(self, logits: Tensor, targets: list[Instances]) -> Loss:
        """Mean over pixels and patches, weighted against the score."""
        wanted = window_labels(targets, self.geometry, side=logits.shape[-1]).to(logits.dtype)
        per_patch = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(dim=(1, 2))
        return Loss(MASK_WEIGHT * per_patch.sum(), logits.new_tensor(len(logits)))

    # All windows of an image (DeepMask, sec. 4.2; the code's full-image inference)

    def predict(self, images: ImageBatch) -> list[Instances]:
        """The best windows over all scales of each image, then their masks; boxes are those of the masks."""
        answers = []
        for pixels, (height, width), original in zip(images.pixels, images.sizes, images.original_sizes, strict=True):
            levels = [self.look(pixels[:, :height, :width], octave) for octave in self._octaves_of((height, width))]
            logits = torch.cat([level.logits.flatten() for level in levels])
            best, place = logits.topk(min(self.max_detections, len(logits)))
            keep = best.sigmoid() >= self.score_threshold
            grids, windows = self._draw(levels, place[keep], original)
            masks = MaskTiles(grids, windows).paste(original, math.log(self.mask_threshold / (1 - self.mask_threshold)))
            answers.append(self._proposals(masks.to(logits.device), best[keep].sigmoid()))
        return answers

    def _octaves_of(self, size: tuple[int, int]) -> tuple[float, ...]:
        most = math.inf if self.max_side_px is None else self.max_side_px
        return tuple(o for o in self.octaves if 2**o * max(size) <= most) or self.octaves[:1]

    def look(self, pixels: Tensor, octave: float) -> Level:
        """All windows of an image (3, H, W) at one scale: one for each S px, centred from the first to the last pixel."""
        height, width = (max(1, math.floor(2**octave * side + 0.5)) for side in pixels.shape[1:])
        scaled = pixels[None]
        if (height, width) != pixels.shape[1:]:
            scaled = F.interpolate(scaled, size=(height, width), mode="bilinear", antialias=True)
        margin = self.geometry.window_px // 2
        fill = self.input.middle_gray().to(pixels)[None, :, None, None]
        padded = fill.repeat(1, 1, height + 2 * margin, width + 2 * margin)
        padded[:, :, margin:-margin, margin:-margin] = scaled
        features = self.backbone(padded.to(memory_format=torch.channels_last))
        vectors, logits = self.head(features[self.stride], None)
        return Level((height, width), vectors[0], logits[0], self._maps(features))

    def _maps(self, features: Features) -> list[Tensor]:
        """What drawing needs of the whole image beside the vectors."""
        return []

    def _draw(self, levels: Sequence[Level], place: Tensor, original: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Mask logits (N, M, M) of windows, and the windows in the original image, xyxy px (N, 4).

        Args:
            place: of each window among all cells of all levels, int64 (N,).
            original: (height, width) of the original image.
        """
        grids, windows, ranks = [], [], []
        first = 0
        for level in levels:
            count = level.logits.numel()
            rank = torch.nonzero((place >= first) & (place < first + count))[:, 0]
            cells = place[rank] - first
            rows, columns = cells // level.logits.shape[1], cells % level.logits.shape[1]
            for start in range(0, len(rank), _WINDOWS_AT_ONCE):
                some = slice(start, start + _WINDOWS_AT_ONCE)
                grids += [self._draw_windows(level, rows[some], columns[some]).float()]
            windows.append(self._windows_of(rows, columns, level.size, original))
            ranks.append(rank)
            first += count
        order = torch.argsort(torch.cat(ranks))
        return (torch.cat(grids) if grids else windows[0].new_zeros(0, 1, 1))[order], torch.cat(windows)[order]

    def _windows_of(self, rows: Tensor, columns: Tensor, size: tuple[int, int], original: tuple[int, int]) -> Tensor:
        """Windows of cells of an image scaled to `size`, in the original image, xyxy px (n, 4)."""
        centres = torch.stack([columns, rows], dim=1) * float(self.stride)
        half = self.geometry.window_px / 2
        corners = torch.cat([centres - half, centres + half], dim=1)
        return box_functions.scale(corners, from_size=size, to_size=original)

    def _draw_windows(self, level: Level, rows: Tensor, columns: Tensor) -> Tensor:
        """Mask logits of some windows of a level, (n, M, M)."""
        logits: Tensor = self.mask_head(level.vectors[:, rows, columns].T)
        return logits

    def _proposals(self, masks: Masks, scores: Tensor) -> Instances:
        """Proposals from masks, best first; those without a pixel are none."""
        labels = torch.zeros_like(scores, dtype=torch.int64)
        found = Instances(masks.image_size, boxes=masks.boxes(), labels=labels, scores=scores, masks=masks)
        found = found[masks.areas() > 0]
        if self.nms_iou is not None:
            assert found.scores is not None
            found = found[nms(found.boxes, found.scores, self.nms_iou)]
        return found

    def class_rows(self) -> dict[str, int]:
        """No parameter belongs to a class."""
        return {}


def as_patches(images: ImageBatch) -> PatchBatch:
    """The batch, if it is one of patches.

    Raises:
        ValueError: whole images.
    """
    if not isinstance(images, PatchBatch):
        raise ValueError("got whole images to learn from, expected a PatchBatch: give the stage of the recipe its `patches`")
    return images


def window_labels(targets: Sequence[Instances], geometry: PatchGeometry, *, side: int) -> Tensor:
    """The masks of patches on a grid over their windows: on where the object covers half a cell, bool (B, M, M)."""
    labels = []
    for target in targets:
        masks = masks_of(target)
        window = torch.tensor([geometry.window], dtype=torch.float32, device=masks.device)
        first = torch.zeros(1, dtype=torch.int64, device=masks.device)
        labels.append(masks.coverage(window, first, side=side, samples=3) >= 0.5)
    return torch.cat(labels)


# Heads: from the features of a window to its vector and its score


class Windows(NamedTuple):
    """What a head says of every window."""

    vectors: Tensor
    """(B, D, h, w)."""
    logits: Tensor
    """float32 (B, h, w)."""


class ScoreLayers(nn.Module):
    """Two layers with dropout before each (the code's score branch, DeepMask, sec. 3.1)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.hidden = nn.Conv2d(channels, hidden, 1)
        self.logit = Float32Conv2d(hidden, 1, 1)

    def forward(self, x: Tensor, generators: list[torch.Generator] | None) -> Tensor:
        """(B, C, h, w) → (B, h, w)."""
        hidden = F.relu(self.hidden(keyed_dropout(x, generators)))
        logits: Tensor = self.logit(keyed_dropout(hidden, generators))
        return logits[:, 0]


class SharedHead(nn.Module):
    """One vector for mask and score (SharpMask, sec. 4.2, head C).

    Args:
        channels: of the features.
        cells: of a window, w.
        size: of the vector, D.
        reduced: channels after the 1×1 convolution that makes the features thin, F in the paper's W-P-D-F; None leaves it out.
        hidden: units of the score's hidden layer.
    """

    def __init__(self, channels: int, *, cells: int, size: int = 512, reduced: int | None = 128, hidden: int = 1024) -> None:
        super().__init__()
        thin = [] if reduced is None else [nn.Conv2d(channels, reduced, 1), nn.ReLU(inplace=True)]
        self.reduce = nn.Sequential(*thin)
        self.encode = WindowConv(reduced or channels, size, cells)
        self.score = ScoreLayers(size, hidden)

    def forward(self, features: Tensor, generators: list[torch.Generator] | None) -> Windows:
        """Features (B, C, H, W) → windows (h, w) = (H - w + 1, W - w + 1); generators switch the dropout on."""
        vectors = self.encode(self.reduce(features))
        return Windows(vectors, self.score(vectors, generators))


class SeparateHead(SharedHead):
    """A vector for the mask and another for the score (SharpMask, fig. 3b, head A; sizes are our reconstruction)."""

    def __init__(self, channels: int, *, cells: int, size: int = 512, reduced: int | None = 128, hidden: int = 1024) -> None:
        super().__init__(channels, cells=cells, size=size, reduced=reduced, hidden=hidden)
        self.encode_score = WindowConv(reduced or channels, size, cells)

    def forward(self, features: Tensor, generators: list[torch.Generator] | None) -> Windows:
        """As `SharedHead`."""
        thin = self.reduce(features)
        return Windows(self.encode(thin), self.score(self.encode_score(thin), generators))


class SplitHead(SharedHead):
    """One vector twice as long, of which each has half (SharpMask, fig. 3c, head B; sizes are our reconstruction)."""

    def __init__(self, channels: int, *, cells: int, size: int = 512, reduced: int | None = 128, hidden: int = 1024) -> None:
        super().__init__(channels, cells=cells, size=size, reduced=reduced, hidden=hidden)
        self.encode = WindowConv(reduced or channels, 2 * size, cells)

    def forward(self, features: Tensor, generators: list[torch.Generator] | None) -> Windows:
        """As `SharedHead`."""
        vectors, scored = self.encode(self.reduce(features)).chunk(2, dim=1)
        return Windows(vectors, self.score(scored, generators))


class OriginalHead(nn.Module):
    """DeepMask's own: a low-rank layer for masks, and pooled features through two hidden layers for scores (sec. 3.1).

    The score looks at windows twice as far apart as the mask in the paper's network, which runs it on shifted copies of the
    features; pooling without stride and a dilated layer are the same.
    """

    def __init__(self, channels: int = 512, *, cells: int = 14, size: int = 512, hidden: int = 1024) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(channels, 512, 1), nn.ReLU(inplace=True))
        self.encode = WindowConv(512, size, cells)
        self.score_encode = nn.Conv2d(channels, 512, cells // 2, dilation=2)
        self.score = ScoreLayers(512, hidden)

    def forward(self, features: Tensor, generators: list[torch.Generator] | None) -> Windows:
        """As `SharedHead`."""
        pooled = F.max_pool2d(features, 2, stride=1)
        scored = F.relu(self.score_encode(pooled))
        return Windows(self.encode(self.reduce(features)), self.score(scored, generators))


class WindowConv(nn.Conv2d):
    """A linear layer over all features of a window, for every window: a convolution as large as it (DeepMask, sec. 3.1)."""

    def __init__(self, channels: int, size: int, cells: int) -> None:
        super().__init__(channels, size, cells)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) → (B, D, h, w)."""
        if features.shape[2:] == self.weight.shape[2:]:  # single windows: the same as one product of matrices
            return F.linear(features.flatten(1), self.weight.flatten(1), self.bias)[:, :, None, None]
        return super().forward(features)


class MaskHead(nn.Module):
    """A coarse mask from a window's vector, enlarged as in training (DeepMask, sec. 3.1; the code's resampling).

    Args:
        size: of the vector, D.
        coarse: side of the grid that is predicted.
        side: of the grid it is enlarged to, M; its corners lie on those of the coarse one.
    """

    def __init__(self, size: int = 512, *, coarse: int = 56, side: int = 112) -> None:
        super().__init__()
        self.coarse = coarse
        self.side = side
        self.logits = nn.Linear(size, coarse * coarse)

    def forward(self, vectors: Tensor) -> Tensor:
        """(N, D) → float32 (N, M, M)."""
        grid = self.logits(vectors).float().reshape(-1, 1, self.coarse, self.coarse)
        return F.interpolate(grid, size=(self.side, self.side), mode="bilinear", align_corners=True)[:, 0]
