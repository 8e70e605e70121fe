"""EmbedMask's claims as small experiments on real data, beside Mask R-CNN at equal budget.

    python -m benchmarks.embedmask --nuclei nuclei --people people-keypoints --out runs/embedmask [--part nuclei | people]

Runs that are finished are not repeated; one that was stopped goes on. Measured at the end: AP of every run; time per image, all
models in turn; for large objects the quality of their edges; what drawing masks inside windows leaves out; and two ways to cut
V3's masks.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import Tensor

from benchmarks.learning import TURNS, recipe, trained
from benchmarks.measure import report, seconds
from maskwright.api import evaluate
from maskwright.formats.catalog import open_split
from maskwright.formats.dataset import Dataset
from maskwright.inference import load
from maskwright.inference.predictor import Model
from maskwright.metrics import DetectionMetrics
from maskwright.metrics.overlaps import edge, edge_width
from maskwright.systems.one_stage.embedmask import EmbedMask

COMMAND = "python -m benchmarks.embedmask --nuclei nuclei --people people-keypoints --out runs/embedmask"
ENTRIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Mask R-CNN": ("mask-rcnn-small", {}),
    "EmbedMask V3": ("embedmask-small", {}),
    "EmbedMask V4, fused": ("embedmask-fused-small", {}),
    "EmbedMask V1, arXiv": ("embedmask-arxiv-small", {}),
    "V3, fixed margin": ("embedmask-small", {"margin": "fixed"}),
    "V3, shared embeddings": ("embedmask-small", {"embeddings": "shared"}),
}


class Plan(NamedTuple):
    """Some entries on some data."""

    data: Path
    out: Path
    names: list[str]
    steps: int
    seeds: int
    short_px: int
    large_px: int
    changes: Sequence[str]

    def folder(self, name: str, seed: int) -> Path:
        """Where a run is."""
        return self.out / f"{self.data.name}-{name.lower().replace(', ', '-').replace(' ', '-')}-{seed}"

    def run(self, name: str, seed: int) -> dict[str, Any]:
        """The last metrics of an entry, trained if it was not."""
        system, arguments = ENTRIES[name]
        sizes = {"short_px": self.short_px, "long_px": 2 * self.short_px}
        line: dict[str, Any] = trained(
            self.folder(name, seed),
            recipe(system, self.data, steps=self.steps, seed=seed, changes=self.changes, **sizes, **arguments),
        )
        return line

    def scores(self, name: str, seed: int, **arguments: str) -> Mapping[str, DetectionMetrics]:
        """Metrics of a trained entry, of boxes and masks, as the code is now."""
        quiet = Console(quiet=True)
        return evaluate(self.folder(name, seed), data=self.data, arguments=arguments, console=quiet).metrics

    def model(self, name: str, seed: int) -> Model:
        """A trained entry."""
        return load(self.folder(name, seed), device="cpu")


def compared(plan: Plan) -> list[list[str]]:
    """AP and times of every entry."""
    lines = {name: [plan.run(name, seed) for seed in range(plan.seeds)] for name in plan.names}
    dataset = open_split(plan.data, "val")
    images = [dataset.read(i).image.numpy() for i in range(0, len(dataset), max(1, len(dataset) // 8))]
    times = seconds({name: partial(_predict_all, plan.model(name, 0), images) for name in plan.names}, repeats=3)
    seeds = [f"mask AP, seed {s}" for s in range(plan.seeds)]
    rows = [["", *seeds, "mask AP", "AP50", "AP75", "box AP", "training, s", "ms an image"]]
    for name, runs in lines.items():
        found = [plan.scores(name, seed) for seed in range(plan.seeds)]
        masks, boxes = [scores["segm"] for scores in found], [scores["bbox"] for scores in found]
        columns = [[m.ap for m in masks], [m.ap50 for m in masks], [m.ap75 for m in masks], [m.ap for m in boxes]]
        cells = [f"{100 * value:.2f}" for value in [*columns[0], *map(statistics.mean, columns)]]
        trained_s = statistics.mean(line["time_s"] for line in runs)
        rows.append([name, *cells, f"{trained_s:.0f}", f"{1000 * times[name] / len(images):.0f}"])
    return rows


def _predict_all(model: Model, images: Sequence[Any]) -> None:
    for image in images:
        model.predict(image, threshold=0.0)


# Edges of large objects


def boundary(mask: Tensor, width: int) -> Tensor:
    """Pixels of a mask (H, W) no further than `width` from its outside (Boundary IoU, Cheng et al., CVPR 2021)."""
    return torch.from_numpy(edge(mask.numpy(), width))


def overlap(masks: Tensor, others: Tensor) -> Tensor:
    """IoU of each pair, bool (N, H, W) and (M, H, W) → (N, M)."""
    a, b = masks.flatten(1).float(), others.flatten(1).float()
    shared = a @ b.T
    return shared / (a.sum(dim=1)[:, None] + b.sum(dim=1)[None] - shared).clamp(min=1)


def edges(model: Model, dataset: Dataset, large_px: int) -> Tensor:
    """Mask IoU and boundary IoU of the best answer to each object of more than `large_px`² pixels, (objects, 2)."""
    rows = []
    for i in range(len(dataset)):
        truth = dataset.instances(i)
        truth = truth[~truth.crowd]
        assert truth.masks is not None
        truth = truth[truth.masks.areas() > large_px**2]
        if len(truth) == 0:
            continue
        result = model.predict(dataset.read(i).image.numpy(), threshold=0.0)
        assert truth.masks is not None
        assert result.masks is not None
        wanted, found = truth.masks.to_dense(), result.masks.to_dense()
        if len(found) == 0:
            rows.append(torch.zeros(len(truth), 2))
            continue
        best, index = overlap(wanted, found).max(dim=1)
        width = edge_width(truth.image_size)
        pairs = [overlap(boundary(wanted[k], width)[None], boundary(found[j], width)[None])[0, 0] for k, j in enumerate(index)]
        rows.append(torch.stack([best, torch.stack(pairs)], dim=1))
    return torch.cat(rows)


def detail(plan: Plan) -> list[list[str]]:
    """Edges of large objects that every entry finds."""
    dataset = open_split(plan.data, "val")
    rows = [[f"objects over {plan.large_px}² px", "found (mask IoU of 0.5), %", "mask IoU", "boundary IoU"]]
    sums: dict[str, list[Tensor]] = {name: [] for name in plan.names}
    shares: dict[str, list[Tensor]] = {name: [] for name in plan.names}
    counts = []
    for seed in range(plan.seeds):
        answers = {name: edges(plan.model(name, seed), dataset, plan.large_px) for name in plan.names}
        hit = torch.stack([a[:, 0] >= 0.5 for a in answers.values()]).all(dim=0)
        counts.append(f"{int(hit.sum())} of {len(hit)}")
        for name, answer in answers.items():
            sums[name].append(answer[hit].mean(dim=0))
            shares[name].append((answer[:, 0] >= 0.5).float().mean())
    for name in plan.names:
        iou, edge = torch.stack(sums[name]).mean(dim=0).tolist()
        rows.append([name, f"{100 * float(torch.stack(shares[name]).mean()):.0f}", f"{100 * iou:.1f}", f"{100 * edge:.1f}"])
    rows.append([f"IoUs over those that all find: {', '.join(counts)}", "", "", ""])
    return rows


# What windows leave out


def whole_map(boxes: Tensor, stride: int, size: tuple[int, int]) -> Tensor:
    """Every cell for every detection."""
    return boxes.new_tensor([0, 0, size[1], size[0]]).long().expand(len(boxes), 4)


def windows(plan: Plan) -> list[list[str]]:
    """Masks drawn inside windows against masks drawn from the whole map."""
    dataset = open_split(plan.data, "val")
    rows = [["", "masks", "mean IoU with the whole map", "IoU under 0.99, %", "pixels beyond the window, %"]]
    for name in plan.names:
        model = plan.model(name, 0)
        system = model.system
        if not isinstance(system, EmbedMask):
            continue
        inside, everywhere = [], []
        for answers in (inside, everywhere):
            for i in range(0, len(dataset), 8):
                result = model.predict(dataset.read(i).image.numpy(), threshold=0.3)
                answers.append(result.masks)
            coupling: Any = system.coupling
            coupling.windows = whole_map
        ious, lost, total = [], 0, 0
        for a, b in zip(inside, everywhere, strict=True):
            assert a is not None
            assert b is not None
            small, large = a.to_dense(), b.to_dense()
            shared, either = (small & large).sum(dim=(1, 2)), (small | large).sum(dim=(1, 2))
            ious.append(torch.where(either > 0, shared / either.clamp(min=1), 1.0))  # nothing is nothing
            lost, total = lost + int((large & ~small).sum()), total + int(large.sum())
        iou = torch.cat(ious)
        below = 100 * float((iou < 0.99).float().mean())
        rows.append([name, str(len(iou)), f"{float(iou.mean()):.4f}", f"{below:.1f}", f"{100 * lost / max(1, total):.2f}"])
    return rows


# Where V3's masks are cut


def cuts(plan: Plan) -> list[list[str]]:
    """Mask AP of V3 and its rivals when ln φ is interpolated and cut, and when φ is."""
    rows = [["", "mask AP, cut in ln φ", "AP75", "mask AP, cut in φ", "AP75"]]
    for name in plan.names:
        if ENTRIES[name][0] != "embedmask-small":
            continue
        cells = []
        for cut in ("log", "probability"):
            metrics = [plan.scores(name, seed, cut=cut)["segm"] for seed in range(plan.seeds)]
            cells += [f"{100 * statistics.mean(values):.2f}" for values in ([m.ap for m in metrics], [m.ap75 for m in metrics])]
        rows.append([name, *cells])
    return rows


def main(options: argparse.Namespace) -> None:
    """Train what is left, and write the tables."""
    plans = {
        "nuclei": Plan(options.nuclei, options.out, list(ENTRIES), options.steps, options.seeds, 512, 48, TURNS),
        "people": Plan(options.people, options.out, list(ENTRIES)[:3], options.people_steps, options.seeds, 320, 96, ()),
    }
    for kind, plan in plans.items():
        if options.part not in (None, kind):
            continue
        notes = (
            f"{plan.data.name}: {plan.steps} steps of 4 images from scratch, windows of 256 px, short side {plan.short_px} px, "
            "the same data, augmentation, optimizer and schedule for all; ms an image with all masks, all models in turn. "
            "Training times are those of runs beside other work: compare with care."
        )
        report(f"embedmask-{kind}", f"{COMMAND} --part {kind}", compared(plan), notes)
        kept = "Detections over 0.3 on every eighth validation image; seed 0."
        report(f"embedmask-{kind}-windows", f"{COMMAND} --part {kind}", windows(plan), kept)
        both = "The same weights, `--set cut=log` and `--set cut=probability`; mean of the seeds."
        report(f"embedmask-{kind}-cuts", f"{COMMAND} --part {kind}", cuts(plan), both)
        best = "Boundary width 2 % of the diagonal; best answer of any score."
        report(f"embedmask-{kind}-edges", f"{COMMAND} --part {kind}", detail(plan), best)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nuclei", type=Path, required=True)
    parser.add_argument("--people", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", choices=["nuclei", "people"])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--people-steps", type=int, default=2400)
    parser.add_argument("--seeds", type=int, default=2)
    main(parser.parse_args())
