"""What the parts of Mask R-CNN are worth, in small: the ablation tables of docs/mask-rcnn.md, each printed by one `compare`.

    python -m benchmarks.ablations --data DIR --out runs/ablations [--only roi]

From the root of the repository; DIR holds nuclei/ and facade/. Stopped and called again, it goes on.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from benchmarks.comparison import COSTS, rows_of
from benchmarks.measure import check_sections, report
from maskwright.comparison import compare
from maskwright.reports.ranking import in_words

PAGE = Path(__file__).parent.parent / "docs" / "mask-rcnn.md"
NUCLEI = "examples/nuclei/weights.safetensors"
SEEDS = 2
SYSTEM = "mask-rcnn-small"


@dataclass(frozen=True)
class Ablation:
    """A table.

    Args:
        data: folder of the data set.
        entries: what is compared.
        paper: mask AP the paper gives for each, or box AP where boxes decide, by the entry's name.
        source: where.
        by: what entries are ranked by.
    """

    data: str
    entries: tuple[str, ...]
    paper: dict[str, str]
    source: str
    by: str | None = None


BUDGETS = {
    "nuclei": (
        3,
        ["augment.crop_px=192", "augment.vertical_flip=0.5", "augment.transpose=0.5"],
        "from scratch, windows of 192 px",
    ),
    "facade": (
        2,
        [
            "batch_size=2",
            "optimizer.lr=0.001",
            "augment.crop_px=null",
            "fit_sizes=false",
            "augment.jitter=[1.0, 1.0]",
            "arguments.short_px=256",
            f"backbone_weights={NUCLEI}",
        ],
        "whole images at 256 px, ten classes, the backbone from the nuclei that ship with the repository",
    ),
}
"""Epochs, changes of the recipe, and what they come to, by data set."""

ABLATIONS = {
    "roi": Ablation(
        "nuclei",
        (
            f"RoIAlign: {SYSTEM} arguments.roi=align",
            f"RoIAlign, max: {SYSTEM} arguments.roi=align-max",
            f"RoIWarp: {SYSTEM} arguments.roi=warp-mean",
            f"RoIWarp, max: {SYSTEM} arguments.roi=warp",
            f"RoIPool: {SYSTEM} arguments.roi=pool",
        ),
        {"RoIAlign": "30.3", "RoIAlign, max": "30.2", "RoIWarp": "27.1", "RoIWarp, max": "27.2", "RoIPool": "26.9"},
        "table 2c, R50-C4",
    ),
    "mask-loss": Ablation(
        "facade",
        (
            f"sigmoid: {SYSTEM} arguments.mask=sigmoid",
            f"softmax: {SYSTEM} arguments.mask=softmax",
            f"class-agnostic: {SYSTEM} arguments.mask=agnostic",
        ),
        {"sigmoid": "30.3", "softmax": "24.8", "class-agnostic": "29.7"},
        "table 2b and sec. 4.2, R50-C4",
    ),
    "mask-branch": Ablation(
        "nuclei",
        ("convolutions: mask-rcnn-small", f"MLP: {SYSTEM} arguments.mask=mlp"),
        {"convolutions": "33.6", "MLP": "31.5"},
        "table 2e, R50-FPN",
    ),
    "boxes": Ablation(
        "nuclei",
        ("with the mask head: mask-rcnn-small", "without: faster-rcnn-small"),
        {"with the mask head": "38.2", "without": "37.3"},
        "box AP on test-dev, table 3, R101-FPN",
        by="boxes",
    ),
    "body": Ablation(
        "nuclei",
        ("FPN: mask-rcnn-small", "C4: mask-rcnn-c4-small"),
        {"FPN": "33.6", "C4": "30.3"},
        "table 2a, R50",
    ),
}


def main(options: argparse.Namespace) -> None:
    """Compare, and write the tables."""
    check_sections(PAGE, list(ABLATIONS))
    for name, ablation in ABLATIONS.items():
        if options.only not in (None, name):
            continue
        epochs, changes, words = BUDGETS[ablation.data]
        answer = compare(
            ablation.entries,
            data=options.data / ablation.data,
            out=options.out / name,
            epochs=epochs,
            seeds=SEEDS,
            changes=[*changes, "evaluate_every=1000"],
            by=ablation.by,
        )
        (table,) = answer.tables
        header, *rows = [row[: -len(COSTS)] for row in rows_of(table)]  # times beside other work say nothing
        rows = [[row[0].strip("`"), *row[1:], ablation.paper.get(row[0].strip("`"), "-")] for row in rows]
        steps = ", ".join(sorted({str(row.facts.steps) for row in table.rows}))
        notes = [f"{ablation.data}, {words}, {steps} steps, {SEEDS} seeds. The paper: {ablation.source}.", ""]
        notes += [f"- {sentence}" for sentence in in_words(table)]
        report(name, answer.command, [[*header, "the paper"], *rows], "\n".join(notes), page=PAGE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--only", choices=list(ABLATIONS))
    main(parser.parse_args())
