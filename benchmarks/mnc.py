"""MNC's ladder and its rivals, in small, on real data with several classes: the tables of docs/mnc.md.

    python -m benchmarks.mnc --data DIR --out runs/mnc --part ladder      # likewise rivals

DIR holds facade/. Stopped and called again, it goes on.
"""

import argparse
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.measure import report
from maskwright.api import evaluate
from maskwright.comparison import compare
from maskwright.comparison.plan import parse_entries
from maskwright.evaluation import DetectionMetrics
from maskwright.evaluation.comparison import Comparison
from maskwright.evaluation.region_ap import RegionMetrics

PAGE = Path(__file__).parent.parent / "docs" / "mnc.md"
COMMAND = "python -m benchmarks.mnc --data DIR --out runs/mnc --part {}"
SEEDS = 2
EPOCHS = 6
LADDER = {
    "unshared": "mnc-unshared-small",
    "shared, step by step": "mnc-stepwise-small",
    "joint, three stages": "mnc-small arguments.training_stages=3",
    "joint, five stages": "mnc-small",
}
RIVALS = {"MNC": "mnc-small", "FCIS": "fcis-small", "Mask R-CNN": "mask-rcnn-small", "EmbedMask": "embedmask-small"}
HEADER = ["", "mAP^r at 0.5", "at 0.7", "0.1 to 0.9", "mask AP", "AP50"]


def trained(entries: dict[str, str], options: argparse.Namespace) -> Comparison:
    """All entries with every seed; those with the same name are the same runs in every part."""
    named = [f"{name}: {entry}" for name, entry in entries.items()]
    return compare(named, data=options.data / "facade", out=options.out, epochs=EPOCHS, seeds=SEEDS)


def runs_of(name: str, options: argparse.Namespace) -> list[Path]:
    """The run folders of an entry."""
    (entry,) = parse_entries([f"{name}: mnc-small"])
    return [options.out / "runs" / f"{entry.slug}-{seed}" for seed in range(SEEDS)]


def scores(runs: list[Path], data: Path, **arguments: Any) -> list[str]:
    """Of the last weights of each seed: the mean, and in brackets each."""
    regions: list[RegionMetrics] = []
    masks: list[DetectionMetrics] = []
    for run in runs:
        answer = evaluate(run / "last", data=data, arguments=arguments)
        assert answer.regions is not None
        regions.append(answer.regions)
        masks.append(answer.metrics["segm"])
    columns = [[r.map[0.5] for r in regions], [r.map[0.7] for r in regions], [r.volume for r in regions]]
    columns += [[m.ap for m in masks], [m.ap50 for m in masks]]
    return [f"{100 * mean(values):.1f} ({', '.join(f'{100 * v:.1f}' for v in values)})" for values in columns]


def ladder(options: argparse.Namespace) -> None:
    """Rows a to d of MNC's table 1, at inference with three stages and with five."""
    trained(LADDER, options)
    rows = [["", "stages at inference", *HEADER[1:]]]
    for name in LADDER:
        runs, data = runs_of(name, options), options.data / "facade"
        rows += [[name, str(stages), *scores(runs, data, inference_stages=stages)] for stages in (3, 5)]
    notes = f"Facade, 10 classes, {EPOCHS} epochs of 260 images for every step of training, {SEEDS} seeds."
    report("ladder", COMMAND.format("ladder"), rows, notes, page=PAGE)


def rivals(options: argparse.Namespace) -> None:
    """The joint cascade beside the other families, equal steps."""
    answer = trained(RIVALS, options)
    rows = [[*HEADER, "ms an image"]]
    for row in answer.rows:
        cells = scores(runs_of(row.name, options), options.data / "facade")
        rows.append([row.name, *cells, f"{row.facts.image_ms or 0:.0f}"])
    notes = f"Facade, 10 classes, {EPOCHS} epochs of 260 images, {SEEDS} seeds."
    report("rivals", COMMAND.format("rivals"), rows, notes, page=PAGE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/mnc"))
    parser.add_argument("--part", choices=["ladder", "rivals"], required=True)
    chosen = parser.parse_args()
    {"ladder": ladder, "rivals": rivals}[chosen.part](chosen)
