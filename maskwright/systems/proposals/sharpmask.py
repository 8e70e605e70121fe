"""SharpMask: DeepMask's masks, refined step by step with the finer features they came from.

Source: Pinheiro, Lin, Collobert, Dollár, Learning to Refine Object Segments (ECCV 2016, arXiv 1603.08695); the authors' code.

Idea: a window's vector is unfolded into a coarse encoding of its mask. For each halving of the backbone a refinement module
merges the encoding with the features of that resolution and doubles its size, until it has one cell for each pixel. What a
module takes from the features does not depend on the window, so it is computed once for the whole image ("horizontal") and
shared by all windows; only what it does with the mask is done window by window ("vertical").

Differs from the paper, with the authors' code: one more convolution on the mask in each module; nearest instead of bilinear
enlargement (a part, `upsampling`); thinner features at the finest level. Two stages of training: DeepMask, then the refinement
alone on frozen DeepMask.

Legend: N windows · D size of a window's vector · w cells of a window at the coarsest stride · i = 1 … module, coarse to fine ·
k channels of the mask encoding · (H, W) a map of the whole image.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.layers.padding import conv3x3, symmetric_pad
from maskwright.structures import ImageBatch, Instances
from maskwright.systems.proposals.deepmask import DeepMask, Features, Level, as_patches
from maskwright.systems.system import Loss

Upsampling = Literal["nearest", "bilinear"]
Schedule = Literal["a", "b"]


class SharpMask(DeepMask):
    """DeepMask with refined masks.

    Args:
        refinement: from a window's vector and the features around it to its mask.
        is_sharp: whether `predict` refines; otherwise it draws DeepMask's coarse masks with the same weights.
        parts: of `DeepMask`.
    """

    def __init__(self, *, refinement: "Refinement", is_sharp: bool = True, **parts: object) -> None:
        super().__init__(**parts)  # type: ignore[arg-type]
        self.refinement = refinement
        self.is_sharp = is_sharp

    def loss(self, images: ImageBatch, targets: list[Instances]) -> dict[str, Loss]:
        """DeepMask's losses in the first stage, that of refined masks in the second (SharpMask, sec. 3.3)."""
        patches = as_patches(images)
        if patches.kind != "refined":
            return super().loss(images, targets)
        features = self._inside(self.backbone(patches.pixels))
        vectors = self.head(features[self.stride], None).vectors.flatten(1)
        logits = self.refinement(vectors, self.refinement.horizontal(features))
        return {"refined_mask": self._mask_loss(logits, targets)}

    def _maps(self, features: Features) -> list[Tensor]:
        """The horizontal half of the refinement, once for the whole image."""
        return self.refinement.horizontal(features) if self.is_sharp else []

    def _draw_windows(self, level: Level, rows: Tensor, columns: Tensor) -> Tensor:
        """The vertical half, for the chosen windows alone (SharpMask, sec. 3.2, inference)."""
        if not self.is_sharp:
            return super()._draw_windows(level, rows, columns)
        patches = [
            window_patches(maps, rows * 2**i, columns * 2**i, self.refinement.cells * 2**i) for i, maps in enumerate(level.maps)
        ]
        logits: Tensor = self.refinement(level.vectors[:, rows, columns].T, patches)
        return logits


def window_patches(maps: Tensor, rows: Tensor, columns: Tensor, side: int) -> Tensor:
    """Square parts of a map (1, C, H, W) from corners on, zero where they stick out at the end, (N, C, side, side)."""
    low, right = int(rows.max()) + side - maps.shape[2], int(columns.max()) + side - maps.shape[3]
    padded = F.pad(maps[0], (0, max(0, right), 0, max(0, low)))
    return padded.unfold(1, side, 1).unfold(2, side, 1)[:, rows, columns].transpose(0, 1)


# Refinement (SharpMask, sec. 3.1 and 3.2; sizes of the code)


class Refinement(nn.Module):
    """All modules: from a vector to logits with one cell for each pixel of the window.

    Args:
        channels: of the features, {stride: C}; each stride is half of the one before.
        size: of the vector, D.
        cells: of a window at the coarsest stride, w.
        width: k of the first module.
        schedule: "b" halves k whenever the resolution doubles, which makes every module cost the same; "a" keeps it
            (SharpMask, sec. 5.2).
        form: "split" as above, or "concatenated": features and mask meet in one convolution, module by module and window by
            window, the form the paper begins with. Same weights, same answers, more work.
        upsampling: of each module's answer.
    """

    def __init__(
        self,
        channels: dict[int, int],
        *,
        size: int,
        cells: int,
        width: int = 32,
        schedule: Schedule = "b",
        form: Literal["split", "concatenated"] = "split",
        upsampling: Upsampling = "nearest",
    ) -> None:
        super().__init__()
        self.cells = cells
        self.width = width
        self.encode = nn.Linear(size, width * cells * cells)
        kind = RefinementModule if form == "split" else ConcatenatedModule
        thinner = 2 if schedule == "b" else 1
        self.strides = sorted(channels, reverse=True)
        widths = [width // thinner**i for i in range(len(channels) + 1)]
        self.stages = nn.ModuleList(
            kind(channels[stride], before, after, upsampling=upsampling)
            for stride, before, after in zip(self.strides, widths[:-1], widths[1:], strict=True)
        )
        self.logits = conv3x3(widths[-1], 1)

    def horizontal(self, features: Features) -> list[Tensor]:
        """What each module takes from the features, of windows or of whole images, coarse to fine."""
        return [stage.horizontal(features[stride]) for stage, stride in zip(self.stages, self.strides, strict=True)]  # type: ignore[operator]

    def forward(self, vectors: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Vectors (N, D) and for each module the part of its map inside each window → float32 (N, M, M)."""
        mask = self.encode(vectors).reshape(-1, self.width, self.cells, self.cells)
        for stage, inside in zip(self.stages, maps, strict=True):
            mask = stage(mask, inside)
        logits: Tensor = self.logits(mask)
        return logits[:, 0].float()


class RefinementModule(nn.Module):
    """One step: M' = up(ReLU(V(M) + H(F))) (SharpMask, sec. 3.2).

    V and H end in the two halves of the convolution that the paper applies to mask and features put together.

    Args:
        channels: of the features F.
        before, after: k of the mask before and after.
        upsampling: by two, after the ReLU.
    """

    def __init__(self, channels: int, before: int, after: int, *, upsampling: Upsampling) -> None:
        super().__init__()
        middle = min(64, channels // 2)
        self.thin1, self.thin2 = conv3x3(channels, middle), conv3x3(middle, before)  # F → S (SharpMask, sec. 5.2)
        self.mask = conv3x3(before, before)
        self.merge_features, self.merge_mask = conv3x3(before, after), conv3x3(before, after)
        self.up = nn.Upsample(scale_factor=2, mode=upsampling)

    def skip(self, features: Tensor) -> Tensor:
        """The features made as thin as the mask, S."""
        return F.relu(self.thin2(F.relu(self.thin1(features))))

    def horizontal(self, features: Tensor) -> Tensor:
        """What is added to the mask."""
        return self.merge_features(self.skip(features))  # type: ignore[no-any-return]

    def forward(self, mask: Tensor, inside: Tensor) -> Tensor:
        """Mask (N, k, m, m) and the horizontal maps inside the windows (N, k', m, m) → (N, k', 2m, 2m)."""
        vertical = self.merge_mask(F.relu(self.mask(mask)))
        enlarged: Tensor = self.up(F.relu(vertical + inside))
        return enlarged


class ConcatenatedModule(RefinementModule):
    """The same step before it was split: one convolution over mask and features together (SharpMask, eq. 1)."""

    def horizontal(self, features: Tensor) -> Tensor:
        """The features alone; they are merged window by window."""
        return self.skip(features)

    def forward(self, mask: Tensor, inside: Tensor) -> Tensor:
        """Mask (N, k, m, m) and features inside the windows (N, k, m, m) → (N, k', 2m, 2m)."""
        together = torch.cat([F.relu(self.mask(mask)), inside], dim=1)
        weight = torch.cat([self.merge_mask.weight, self.merge_features.weight], dim=1)
        assert self.merge_mask.bias is not None
        assert self.merge_features.bias is not None
        bias = self.merge_mask.bias + self.merge_features.bias
        enlarged: Tensor = self.up(F.relu(F.conv2d(symmetric_pad(together, 1, 1), weight, bias)))
        return enlarged
