"""All families there are, in small, on three real data sets: the tables of docs/comparison.md.

    python -m benchmarks.comparison --data DIR --out compare [--only nuclei]

DIR holds nuclei/, facade/ and people-keypoints/. Stopped and called again, it goes on.
"""

import argparse
from pathlib import Path

from benchmarks.measure import report
from maskwright.comparison import compare
from maskwright.reports.ranking import Table, in_words

COMMAND = "python -m benchmarks.comparison --data DIR --out compare"
PAGE = Path(__file__).parent.parent / "docs" / "comparison.md"
MASKS = ["mask-rcnn-small", "embedmask-small", "embedmask-fused-small"]
PLANS: dict[str, tuple[list[str], float, list[str]]] = {
    "nuclei": (
        [*MASKS, "faster-rcnn-small", "fcos-small"],
        2,
        ["augment.vertical_flip=0.5", "augment.transpose=0.5"],  # images have no up and down
    ),
    "facade": (MASKS[:2], 6, []),
    "people-keypoints": (
        MASKS,
        2400 / 130,  # epochs: as many steps as in benchmarks.embedmask, whose runs these are
        ["arguments.short_px=320", "arguments.long_px=640", "evaluate_every=1000", "checkpoint_steps=null"],
    ),
}
SEEDS = 2
COLUMNS = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "ar": "AR", "boundary_ap": "boundary AP", "box_ap": "box AP"}
COSTS = ("ms an image", "peak MB", "training, min")


def rows_of(table: Table) -> list[list[str]]:
    """A task's table in percent, intervals beside what decides."""
    names = [name for name in COLUMNS if any(name in row.averages for row in table.rows)]
    rows = [[table.task, *(COLUMNS[name] for name in names), *COSTS]]
    for row in table.rows:
        cells = []
        for name in names:
            found = row.averages[name]
            interval = f" [{100 * found.low:.1f}, {100 * found.high:.1f}]" if name in (table.decides, "boundary_ap") else ""
            cells.append(f"{100 * found.value:.1f}{interval}")
        facts = row.facts
        costs = [f"{facts.image_ms or 0:.0f}", f"{facts.memory_mb or 0:.0f}", f"{(facts.training_s or 0) / 60:.1f}"]
        rows.append([f"`{row.name}`", *cells, *costs])
    return rows


def main(options: argparse.Namespace) -> None:
    """Compare on every data set, and write the tables."""
    for name, (entries, epochs, changes) in PLANS.items():
        if options.only not in (None, name):
            continue
        answer = compare(entries, data=options.data / name, out=options.out / name, epochs=epochs, seeds=SEEDS, changes=changes)
        for table in answer.tables:
            steps = {row.facts.steps for row in table.rows}
            notes = [
                f"{', '.join(map(str, steps))} steps a run, {SEEDS} seeds, {answer.protocol.images} validation images.",
                "",
            ]
            notes += [f"- {sentence}" for sentence in in_words(table)]
            report(f"{name}-{table.task}", answer.command, rows_of(table), "\n".join(notes), page=PAGE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=list(PLANS))
    main(parser.parse_args())
