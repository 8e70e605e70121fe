"""Masks from 28×28 probabilities to run lengths: ours against torchvision's paste and pycocotools' encoder.

python -m benchmarks.masks
"""

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torchvision.models.detection.roi_heads import paste_masks_in_image

from benchmarks.measure import report, seconds
from maskwright.structures import MaskProbs

CASES = {"100 masks, 800×1066 px": (100, (800, 1066)), "300 masks, 3000×4000 px": (300, (3000, 4000))}


def case(count: int, size: tuple[int, int], *, areas: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth random probabilities, and boxes that add up to about so many image areas."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 1, 5, 5, generator=generator)
    probs = torch.nn.functional.interpolate(coarse, (28, 28), mode="bicubic")[:, 0].clamp(0, 1)
    extent = torch.tensor([size[1], size[0]], dtype=torch.float32)
    sides = (areas / count) ** 0.5 * extent * (0.5 + torch.rand(count, 2, generator=generator))
    corners = torch.rand(count, 2, generator=generator) * (extent - sides)
    return probs, torch.cat([corners, corners + sides], dim=1)


def main() -> None:
    """Compare both on every case."""
    rows = [["", "torchvision + pycocotools, ms", "maskwright, ms", "times faster", "of each other's pixels"]]
    for name, (count, size) in CASES.items():
        probs, boxes = case(count, size)

        def theirs(probs: torch.Tensor = probs, boxes: torch.Tensor = boxes, size: tuple[int, int] = size) -> list[object]:
            rles: list[object] = []
            for start in range(0, len(probs), 20):  # all at once would take gigabytes
                pasted = paste_masks_in_image(probs[start : start + 20, None], boxes[start : start + 20], size)
                rles += [coco_mask.encode(np.asfortranarray(m[0].numpy() > 0.5)) for m in pasted]
            return rles

        def mine(probs: torch.Tensor = probs, boxes: torch.Tensor = boxes, size: tuple[int, int] = size) -> list[object]:
            return list(MaskProbs(probs, boxes).paste(size).to_rles())

        iou = np.diag(coco_mask.iou(theirs(), mine(), [0] * count))
        times = seconds({"theirs": theirs, "mine": mine}, repeats=5)
        ratio = times["theirs"] / times["mine"]
        rows.append(
            [name, f"{1e3 * times['theirs']:.0f}", f"{1e3 * times['mine']:.1f}", f"{ratio:.1f}", f"mean IoU {iou.mean():.3f}"]
        )
    report(
        "masks",
        "python -m benchmarks.masks",
        rows,
        "Boxes add up to two image areas; the two paste rules differ by half a pixel.",
    )


if __name__ == "__main__":
    main()
