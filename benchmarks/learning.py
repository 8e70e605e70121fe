"""Does our Mask R-CNN learn as well as torchvision's, and do trained torchvision models answer the same once imported?

    python -m benchmarks.learning --data nuclei --out runs/learning [--part learning | mask-rcnn | fcos]

Runs that are finished are not repeated; one that was stopped goes on.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from benchmarks import peers
from benchmarks.measure import report
from benchmarks.peers import TorchvisionFCOS, TorchvisionMaskRCNN
from maskwright.api import evaluate
from maskwright.formats.catalog import open_split
from maskwright.inference import load
from maskwright.recipes import DataOptions, Recipe, find_recipe
from maskwright.runs.checkpoints import find_weights, read_tensors
from maskwright.runs.importing import import_weights
from maskwright.training import train

SYSTEMS = {"maskwright": "mask-rcnn-small", "torchvision": "benchmarks.peers:torchvision_small"}
COMMAND = "python -m benchmarks.learning --data nuclei --out runs/learning"


TURNS = ("augment.vertical_flip=0.5", "augment.transpose=0.5")  # for images that have no up and down


def recipe(system: str, data: Path, *, steps: int, seed: int, changes: Sequence[str] = TURNS, **arguments: Any) -> Recipe:
    """The small recipe for a number of steps, with changes; arguments of the system by name."""
    images = len(open_split(data, "train"))
    small = find_recipe("mask-rcnn-small")
    stage = small.stages[0].model_copy(update={"epochs": steps / -(-images // small.stages[0].batch_size)})
    base = small.model_copy(update={"system": system, "stages": (stage,), "data": DataOptions(path=str(data))})
    return base.with_changes(
        [
            *changes,
            "evaluate_every=1000",
            f"seed={seed}",
        ]
    ).model_copy(update={"arguments": arguments})


def trained(folder: Path, plan: Recipe) -> dict[str, dict[str, float]]:
    """The last line of a run's metrics, after training whatever is left of it."""
    lines = folder / "metrics.jsonl"
    if not lines.is_file():
        train(plan, folder, resume=(folder / "last" / "training.safetensors").is_file(), console=Console(markup=False))
    line: dict[str, dict[str, float]] = json.loads(lines.read_text().splitlines()[-1])
    return line


def learning(data: Path, out: Path, *, steps: int, seeds: int) -> None:
    """Train both on every seed and compare their mask AP."""
    scores: dict[str, list[float]] = {name: [] for name in SYSTEMS}
    boxes: dict[str, list[float]] = {name: [] for name in SYSTEMS}
    for seed in range(seeds):
        for name, system in SYSTEMS.items():
            line = trained(out / f"{name}-{seed}", recipe(system, data, steps=steps, seed=seed, short_px=512, long_px=1024))
            scores[name].append(100 * line["segm"]["ap"])
            boxes[name].append(100 * line["bbox"]["ap"])
    rows = [["", *(f"seed {s}: mask AP" for s in range(seeds)), "mean mask AP", "mean box AP"]]
    for name, values in scores.items():
        rows.append(
            [name, *(f"{v:.2f}" for v in values), f"{statistics.mean(values):.2f}", f"{statistics.mean(boxes[name]):.2f}"]
        )
    lead = statistics.mean(scores["maskwright"]) - statistics.mean(scores["torchvision"])
    notes = (
        f"{steps} steps of 4 images each, default precision on both sides; maskwright minus torchvision: {lead:+.2f} points."
    )
    report("learning", f"{COMMAND} --part learning", rows, notes)


LIMITS = ("class or match differs", "box over 0.05 px off", "score over 1e-4 off", "mask IoU under 0.99")
Answer = tuple[Tensor, Tensor, Tensor, Tensor | None]  # boxes, labels from 0, scores, dense masks


def answer(theirs: TorchvisionMaskRCNN | TorchvisionFCOS, image: Tensor) -> Answer:
    """What torchvision finds in an RGB image (h, w, 3), its masks cut at one half."""
    with torch.inference_mode():
        found = theirs.model([image.permute(2, 0, 1) / 255])[0]
    masks = found["masks"][:, 0] > 0.5 if "masks" in found else None
    return found["boxes"], found["labels"] - 1, found["scores"], masks


def agreement(reference: list[Answer], answers: list[Answer]) -> list[str]:
    """How many detections of torchvision are answered otherwise, each matched with the one nearest in corners and score."""
    outside: list[Tensor] = []  # (N, limits) of each image
    errors: list[Tensor] = []
    for (boxes, labels, scores, masks), (o_boxes, o_labels, o_scores, o_masks) in zip(reference, answers, strict=True):
        places = [torch.cat([b, 100 * s[:, None]], dim=1) for b, s in ((boxes, scores), (o_boxes, o_scores))]
        match = torch.cdist(places[0], places[1], p=torch.inf).argmin(dim=1)  # boxes without area overlap nothing
        repeated = (match[:, None] == match).sum(dim=1) > 1
        box, score = (boxes - o_boxes[match]).abs().amax(dim=1), (scores - o_scores[match]).abs()
        limits = [(labels != o_labels[match]) | repeated, box > 0.05, score > 1e-4]
        if masks is not None and o_masks is not None:
            common, either = ((op(masks, o_masks[match])).sum(dim=(1, 2)) for op in (torch.logical_and, torch.logical_or))
            limits.append(common < 0.99 * either)
        outside.append(torch.stack(limits, dim=1))
        errors.append(torch.stack([box, score], dim=1))
    wrong, error = torch.cat(outside), torch.cat(errors).median(dim=0).values
    total = sum(len(a[0]) for a in answers)
    counts = [str(int(n)) for n in wrong.sum(dim=0)] + ["no masks"] * (len(LIMITS) - wrong.shape[1])
    return [f"{len(wrong)} / {total}", *counts, str(int((~wrong.any(dim=1)).sum())), *(f"{e:.1g}" for e in error)]


def parity(data: Path, out: Path, *, part: str, steps: int) -> None:
    """Train one of torchvision's own R50 models, import it, and match the answers of both on real images."""
    function, peer, target, changes = PARTS[part]
    folder = out / peer
    plan = recipe(f"benchmarks.peers:{peer}", data, steps=steps, seed=0, short_px=256, long_px=512)
    trained(folder, plan.with_changes(changes))
    theirs = getattr(peers, peer)(num_classes=1, short_px=256, long_px=512)
    tensors, _ = read_tensors(find_weights(folder))
    theirs.load_state_dict(tensors)
    theirs.eval()
    file, imported = folder / "torchvision.pth", out / f"imported-{target}"
    torch.save(theirs.model.state_dict(), file)
    if not (imported / "best").exists():
        sizes = {"short_px": 256, "long_px": 512}
        import_weights(file, system=target, out=imported, classes=["nucleus"], arguments=sizes, say=print)
    model = load(imported, device="cpu", precision="float32")
    dataset = open_split(data, "val")
    images = [dataset.read(i).image for i in range(20)]
    reference = [answer(theirs, image) for image in images]
    ours = [model.predict(image.numpy(), threshold=0.0) for image in images]
    theirs.to(memory_format=torch.channels_last)
    again = [answer(theirs, image) for image in images]
    found = [(r.boxes, r.labels, r.scores, None if r.masks is None else r.masks.to_dense()) for r in ours]
    kind = "segm" if ours[0].masks is not None else "bbox"
    ap = evaluate(model, data=data, console=Console(markup=False)).metrics[kind].ap
    header = ["compared with torchvision", "detections", *LIMITS, "within all", "median box error, px", "median score error"]
    rows = [header, ["maskwright", *agreement(reference, found)], ["torchvision, channels last", *agreement(reference, again)]]
    notes = (
        f"20 images; `{function}` trained from scratch for {steps} steps of 4 images ({kind} AP {100 * ap:.1f}), its state "
        "dict through `maskwright import`; float32, nuclei val. The second row is torchvision against itself, its tensors laid "
        "out otherwise."
    )
    report(f"{part}-parity", f"{COMMAND} --part {part}", rows, notes)


PARTS = {  # torchvision's function, ours behind the contract, the system to import it as, changes of the recipe
    "mask-rcnn": ("maskrcnn_resnet50_fpn", "torchvision_r50", "mask-rcnn-r50-fpn", []),
    "fcos": (  # in bf16 its points would be bf16 as well
        "fcos_resnet50_fpn",
        "torchvision_fcos",
        "fcos-r50",
        ["augment.crop_px=128", "precision=float32"],
    ),
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", choices=["learning", *PARTS])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--parity-steps", type=int, default=200)
    parser.add_argument("--fcos-steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    if options.part in (None, "learning"):
        learning(options.data, options.out, steps=options.steps, seeds=options.seeds)
    if options.part in (None, "mask-rcnn"):
        parity(options.data, options.out, part="mask-rcnn", steps=options.parity_steps)
    if options.part in (None, "fcos"):
        parity(options.data, options.out, part="fcos", steps=options.fcos_steps)
