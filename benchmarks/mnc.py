"""MNC's ladder and its rivals, in small, on real data with several classes: the tables of docs/mnc.md.

    python -m benchmarks.mnc --data DIR --out runs/mnc --part ladder --seed 0      # likewise rivals, and other seeds
    python -m benchmarks.mnc --data DIR --out runs/mnc --part speed                # of the rivals, once they are trained

DIR holds facade/. A run takes 10 to 60 minutes of one core; stopped and called again, it goes on. As soon as it is scored, its
lines are added to benchmarks/mnc.jsonl, from which the tables are made: what has its lines is not trained again, so that seeds
can be trained side by side, on several machines, or another day.
"""

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console

from benchmarks.measure import report
from maskwright.api import evaluate
from maskwright.comparison.costs import costs
from maskwright.comparison.training import train_run
from maskwright.formats.catalog import open_split
from maskwright.inference import load
from maskwright.recipes import DataOptions, find_recipe
from maskwright.runs.device import machine_line

PAGE = Path(__file__).parent.parent / "docs" / "mnc.md"
KNOWN = Path(__file__).with_suffix(".jsonl")
COMMAND = "python -m benchmarks.mnc --data DIR --out runs/mnc --part {}"
EPOCHS = 5
NUCLEI = Path(__file__).parent.parent / "examples" / "nuclei" / "weights.safetensors"
"""Whose ResNet-18 all backbones begin with: from random weights so few steps tell nothing apart."""
CHANGES = (
    f"epochs={EPOCHS}",
    "batch_size=2",
    "optimizer.lr=0.001",
    "augment.crop_px=null",
    "fit_sizes=false",  # whole images: what an RPN on one level learnt in windows does not carry over to larger objects
    "augment.jitter=[1.0, 1.0]",
    "arguments.short_px=256",
    f"backbone_weights={NUCLEI}",
    "precision=bfloat16",
    "evaluate_every=1000",
)
LADDER: dict[str, tuple[str, list[str]]] = {
    "joint, five stages": ("mnc-small", []),
    "joint, three stages": ("mnc-small", ["arguments.training_stages=3"]),
    "shared, step by step": ("mnc-stepwise-small", []),
    "unshared": ("mnc-unshared-small", []),
    "joint, five stages, longer": ("mnc-small", [f"epochs={4 * EPOCHS}"]),  # as long as the steps of the stepwise one together
}
RIVALS: dict[str, tuple[str, list[str]]] = {
    "joint, five stages": ("mnc-small", []),
    "FCIS": ("fcis-small", []),
    "Mask R-CNN": ("mask-rcnn-small", []),
    "EmbedMask": ("embedmask-small", []),
}
SCORES = ("mAP^r at 0.5", "at 0.7", "0.1 to 0.9", "mask AP", "AP50")
Line = dict[str, Any]


def known() -> list[Line]:
    """What was measured so far: name, seed, stages at inference (None where there is no such number) and scores of each."""
    return [json.loads(text) for text in KNOWN.read_text(encoding="utf-8").splitlines()] if KNOWN.is_file() else []


def folder(name: str, seed: int, options: argparse.Namespace) -> Path:
    """Of a run."""
    return Path(options.out) / f"{name.replace(', ', '-').replace(' ', '-').lower()}-{seed}"


def measured(name: str, entry: tuple[str, list[str]], options: argparse.Namespace) -> None:
    """Train an entry with a seed and add its lines to what is known, if they are not there."""
    seed, data = options.seed, options.data / "facade"
    if any((line["name"], line["seed"]) == (name, seed) for line in known()):
        return
    system, changes = entry
    recipe = find_recipe(system).with_changes([*CHANGES, *changes, f"seed={seed}"])
    run = folder(name, seed, options)
    train_run(
        recipe.model_copy(update={"data": DataOptions(path=str(data))}), run, device="auto", console=Console(markup=False)
    )
    stages = (3, 5) if system.startswith("mnc") else (None,)
    lines = []
    for count in stages:
        answer = evaluate(run / "last", data=data, arguments={"inference_stages": count} if count else {})
        assert answer.regions is not None
        regions, masks = answer.regions, answer.metrics["segm"]
        values = [regions.map[0.5], regions.map[0.7], regions.volume, masks.ap, masks.ap50]
        scores = {score: round(100 * value, 2) for score, value in zip(SCORES, values, strict=True)}
        lines.append({"name": name, "seed": seed, "stages": count, **scores, "machine": machine_line()})
    with KNOWN.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))


def cells(name: str, stages: int | None) -> list[str]:
    """The mean over the seeds of each score, and in brackets each; a dash where nothing is known."""
    found = sorted(
        (line for line in known() if (line["name"], line["stages"]) == (name, stages)), key=lambda line: line["seed"]
    )
    values = [[line[score] for line in found] for score in SCORES]
    return [f"{mean(v):.1f} ({', '.join(f'{x:.1f}' for x in v)})" if v else "-" for v in values]


def epochs(system: str, changes: list[str]) -> str:
    """Of all steps of a recipe."""
    return f"{sum(stage.epochs for stage in find_recipe(system).with_changes([*CHANGES, *changes]).stages):g}"


NOTES = (
    f"Facade at 256 px, 10 classes, {EPOCHS} epochs of 260 images, 2 a step, {{}}backbones from the nuclei that ship with the "
    "repository; the mean, and in brackets each seed."
)


def ladder(options: argparse.Namespace) -> None:
    """Rows a to d of MNC's table 1, at inference with three stages and with five."""
    for name, entry in LADDER.items():
        measured(name, entry, options)
        rows = [["", "epochs", "stages at inference", *SCORES]]
        rows += [
            [name, epochs(*entry), str(stages), *cells(name, stages)] for name, entry in LADDER.items() for stages in (3, 5)
        ]
        notes = NOTES.format("for each step of training where there are several, ")
        report("ladder", COMMAND.format("ladder --seed 0"), rows, notes, page=PAGE)


def rivals(options: argparse.Namespace) -> None:
    """The joint cascade beside the other families, equal steps."""
    for name, entry in RIVALS.items():
        measured(name, entry, options)
        rows = [["", *SCORES]]
        rows += [[name, *cells(name, 5 if entry[0].startswith("mnc") else None)] for name, entry in RIVALS.items()]
        rows[1][0] = "MNC"
        report("rivals", COMMAND.format("rivals --seed 0"), rows, NOTES.format(""), page=PAGE)


def speed(options: argparse.Namespace) -> None:
    """An image through the trained rivals, in one process."""
    models = {name: load(folder(name, 0, options) / "last") for name in RIVALS}
    times = costs(models, open_split(options.data / "facade", "val"), Console(quiet=True))
    base = float(times["Mask R-CNN"]["image_ms"] or 0)
    rows = [["", "ms an image", "times Mask R-CNN", "peak MB"]]
    for name, found in times.items():
        ms = float(found["image_ms"] or 0)
        rows.append(
            ["MNC" if name == "joint, five stages" else name, f"{ms:.0f}", f"{ms / base:.2f}", f"{found['memory_mb']:.0f}"]
        )
    report("rivals-speed", COMMAND.format("speed"), rows, "Facade at 256 px, default precision.", page=PAGE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/mnc"))
    parser.add_argument("--part", choices=["ladder", "rivals", "speed"], required=True)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    {"ladder": ladder, "rivals": rivals, "speed": speed}[chosen.part](chosen)
