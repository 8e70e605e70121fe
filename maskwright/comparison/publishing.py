"""Answers become a ranking and a page: all of them are studied, told apart, and shown beside the images."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from maskwright.comparison.answers import Answered
from maskwright.formats.dataset import Dataset
from maskwright.metrics.statistics import RESAMPLES, image_weights
from maskwright.metrics.studies import Study, study, study_proposals
from maskwright.reports.gallery import Group, gallery
from maskwright.reports.page import write_report
from maskwright.reports.ranking import Comparison, Protocol, tabulate
from maskwright.runs.device import machine_line
from maskwright.runs.progress import shown
from maskwright.systems import Task

FEWER_RESAMPLES, MANY = 400, 1000  # so many images vary less
FEW = 20  # images, on which a bootstrap says too much


def assemble(
    dataset: Dataset,
    answered: Mapping[str, Answered],
    *,
    title: str,
    command: str,
    limits: Sequence[int],
    console: Console,
    split: str = "val",
    class_agnostic: bool = False,
) -> Comparison:
    """Study all detections, and rank them."""
    resamples = RESAMPLES if len(dataset) <= MANY else FEWER_RESAMPLES
    weights = image_weights(len(dataset), resamples=resamples)
    studies: dict[str, list[Study]] = {}
    with shown(console, "study", total=sum(len(entry.results) for entry in answered.values())) as bar:
        for name, entry in answered.items():
            for results in entry.results:
                how: dict[str, Any] = {"kinds": entry.kinds, "max_detections": limits, "weights": weights}
                if entry.facts.task == Task.PROPOSALS:
                    found = study_proposals(dataset, results(), **how)
                else:
                    found = study(dataset, results(), **how, class_agnostic=class_agnostic)
                studies.setdefault(name, []).append(found)
                bar.advance()
    there = sum(len(dataset.columns(i).labels) > 0 for i in range(len(dataset)))
    tables = tabulate(studies, {name: entry.facts for name, entry in answered.items()}, images=there)
    notes = []
    if there < FEW:
        notes.append(f"Only {there} images hold objects: intervals of so few are too narrow.")
    if any(row.seeds == 1 for table in tables for row in table.rows):
        notes.append("Where there is one seed, what is said holds for these weights; another training may come out otherwise.")
    return Comparison(
        title=title,
        protocol=Protocol(
            data=str(dataset.path),
            split=split,
            images=len(dataset),
            objects=dataset.num_instances,
            classes=dataset.categories.names,
            max_detections=tuple(limits),
            resamples=resamples,
        ),
        tables=tables,
        machine=machine_line(),
        command=command,
        notes=tuple(notes),
    )


def publish(comparison: Comparison, dataset: Dataset, answered: Mapping[str, Answered], out: Path, console: Console) -> None:
    """Write the page, with pictures where the images are there."""
    groups: list[Group] = []
    gone = sum(not dataset.image_path(i).is_file() for i in range(len(dataset)))
    if gone:
        note = f"No pictures: {gone} of {len(dataset)} images are not there."
        comparison = replace(comparison, notes=(*comparison.notes, note))
    else:
        intensity = next(iter(answered.values())).intensity
        groups = gallery(dataset, comparison.tables, lambda name: answered[name].results[0](), intensity)
    write_report(out, comparison, groups)
    console.print(f"report written to {out}", highlight=False, soft_wrap=True)
