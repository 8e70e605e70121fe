"""report.html: one self-contained page about one entry or several, readable on a phone, printable, without scripts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from maskwright.formats.files import write_text
from maskwright.metrics.detection import KIND_ADJECTIVES
from maskwright.metrics.errors import CAUSES
from maskwright.metrics.matching import RECALLS, THRESHOLDS
from maskwright.metrics.proposals import COUNTS
from maskwright.metrics.statistics import Interval
from maskwright.metrics.studies import AVERAGES, SHOWN_IOUS
from maskwright.reports.gallery import Group
from maskwright.reports.plots import COLORS, Plot, Point, Series, chart, dot_rows, frontier
from maskwright.reports.ranking import Comparison, Row, Table, in_words

SIZES = ("small", "medium", "large")


@dataclass(frozen=True)
class _Line:
    """A row of the table: cells with what stands below them."""

    name: str
    about: str
    color: str
    cells: list[tuple[str, str]]


@dataclass(frozen=True)
class _Error:
    cause: str
    meaning: str
    cells: list[str]


@dataclass(frozen=True)
class _Section:
    """What the page says of one task."""

    id: str
    title: str
    columns: list[str]
    rows: list[_Line]
    legend: str
    how: str
    sentences: list[tuple[bool, str]]
    plots: list[Plot]
    error_names: list[str]
    errors: list[_Error] = field(default_factory=list)


def write_report(path: Path, comparison: Comparison, groups: Sequence[Group] = ()) -> None:
    """Write the page, atomically.

    Args:
        groups: pictures.
    """
    write_text(path, render(comparison, groups))


def render(comparison: Comparison, groups: Sequence[Group] = ()) -> str:
    """The page as text; names of classes, files and entries are escaped."""
    colors = {row.name: COLORS[i % len(COLORS)] for i, row in enumerate(comparison.rows)}
    source = resources.files("maskwright.reports").joinpath("templates", "report.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    sections = [_section(table, colors) for table in comparison.tables]
    return environment.from_string(source).render(c=comparison, sections=sections, groups=groups)


def _section(table: Table, colors: Mapping[str, str]) -> _Section:
    kind = KIND_ADJECTIVES[table.rows[0].kind]
    metrics = [name for name in AVERAGES if any(name in row.averages for row in table.rows)]
    some_seeds = any(row.seeds > 1 for row in table.rows)
    spread = f"; one training differs from the next by {100 * table.spread:.1f} points (standard deviation)"
    return _Section(
        id=table.task,
        title=f"{table.task.capitalize()}: {kind} {AVERAGES[table.decides]}",
        columns=[*(AVERAGES[name] for name in metrics), "ms an image", "peak MB", "M param.", "training, min"],
        rows=[_line(row, metrics, colors[row.name]) for row in table.rows],
        legend=f"In percent, of {kind} overlap where nothing else is said; 95 % intervals below. Peak: memory above the model.",
        how=f"Paired bootstrap over the images; p corrected for the number of pairs (Holm){spread if some_seeds else ''}.",
        sentences=list(zip([d.is_real for d in table.differences], in_words(table), strict=True)),
        plots=_plots(table, kind, {row.name: colors[row.name] for row in table.rows}),
        error_names=[row.name for row in table.rows],
        errors=_errors(table),
    )


def _line(row: Row, metrics: Sequence[str], color: str) -> _Line:
    facts = row.facts
    about = [f"{row.seeds} seeds" if row.seeds > 1 else "one seed", f"{facts.steps} steps" if facts.steps else ""]
    cells = [_cell(row.averages[name]) if name in row.averages else ("-", "") for name in metrics]
    costs = (facts.image_ms, facts.memory_mb, _scaled(facts.parameters, 1e-6), _scaled(facts.training_s, 1 / 60))
    cells += [("-" if cost is None else f"{cost:.1f}" if cost < 100 else f"{cost:.0f}", "") for cost in costs]
    return _Line(row.name, ", ".join(part for part in about if part), color, cells)


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _cell(interval: Interval) -> tuple[str, str]:
    if not math.isfinite(interval.value):
        return "-", ""
    return f"{100 * interval.value:.1f}", f"{100 * interval.low:.1f} – {100 * interval.high:.1f}"


def _errors(table: Table) -> list[_Error]:
    causes = [cause for cause in CAUSES if any(cause in row.errors for row in table.rows)]
    several = any(len(row.per_class) > 1 for row in table.rows)
    return [
        _Error(cause, CAUSES[cause], [f"{100 * row.errors[cause]:.1f}" if cause in row.errors else "-" for row in table.rows])
        for cause in causes
        if several or cause not in ("class", "both")
    ]


def _plots(table: Table, kind: str, colors: Mapping[str, str]) -> list[Plot]:
    """Every plot there is data for."""
    plots = [_speed(table, kind, colors)] if any(row.facts.image_ms is not None for row in table.rows) else []
    plots.append(_sizes(table, kind, colors))
    plots += _proposals(table, kind, colors) if table.rows[0].proposals else _detections(table, kind, colors)
    return plots + _training(table, kind, colors)


def _sizes(table: Table, kind: str, colors: Mapping[str, str]) -> Plot:
    short = table.decides.upper()
    by_size = {size: {row.name: _percent(row.averages[f"{table.decides}_{size}"]) for row in table.rows} for size in SIZES}
    return dot_rows(f"{table.task}-sizes", f"{kind} {short} by object size", by_size, colors, x_label=f"{short}, percent")


def _proposals(table: Table, kind: str, colors: Mapping[str, str]) -> list[Plot]:
    """Recall against the number of proposals, and against IoU for each number."""
    task = table.task
    by_number = [
        Series(row.name, colors[row.name], [Point(math.log10(n), 100 * ar) for n, ar in zip(COUNTS, mean, strict=True)])
        for row in table.rows
        for mean in [np.mean([seed[row.kind].curve for seed in row.proposals], axis=0)]
    ]
    marks = {math.log10(n): str(n) for n in (1, 10, 100, 1000)}
    axes: dict[str, Any] = {"x_label": "proposals an image", "x_range": (0.0, 3.0), "x_ticks": marks}
    title = f"{kind} AR against number of proposals"
    plots = [chart(f"{task}-number", title, by_number, y_label="AR, percent", **axes)]
    for place, limit in enumerate(table.rows[0].proposals[0][table.rows[0].kind].limits):
        recall = [
            Series(row.name, colors[row.name], [Point(t, 100 * r) for t, r in zip(THRESHOLDS, mean, strict=True)])
            for row in table.rows
            for mean in [np.mean([seed[row.kind].recall[place] for seed in row.proposals], axis=0)]
        ]
        title = f"Recall against IoU, {limit} proposals an image"
        axes = {"x_label": "IoU", "y_label": "recall, percent", "x_range": (0.5, 0.95)}
        plots.append(chart(f"{task}-recall-{limit}", title, recall, **axes))
    return plots


def _detections(table: Table, kind: str, colors: Mapping[str, str]) -> list[Plot]:
    """AP by class, recall, precision, and what errors cost."""
    task, rows, plots = table.task, table.rows, []
    classes = {c: max(row.per_class[c] for row in rows) for c in rows[0].per_class}
    if len(classes) > 1:
        order = sorted(classes, key=lambda c: (math.isnan(classes[c]), -classes[c]))
        by_class = {c: {row.name: (100 * row.per_class[c], math.nan, math.nan) for row in rows} for c in order}
        note = "Classes without objects in these images have no dot." if any(math.isnan(v) for v in classes.values()) else ""
        plots.append(dot_rows(f"{task}-classes", f"{kind} AP by class", by_class, colors, x_label="AP, percent", note=note))
    recall = [
        Series(row.name, colors[row.name], [Point(t, 100 * r) for t, r in zip(THRESHOLDS, row.recall, strict=True)])
        for row in rows
    ]
    plots.append(
        chart(f"{task}-recall", "Recall against IoU", recall, x_label="IoU", y_label="recall, percent", x_range=(0.5, 0.95))
    )
    for iou in SHOWN_IOUS:
        precision = [
            Series(row.name, colors[row.name], [Point(r, p) for r, p in zip(RECALLS, row.precision[iou], strict=True)])
            for row in rows
        ]
        plots.append(
            chart(
                f"{task}-precision-{iou.replace('.', '')}",
                f"Precision against recall at IoU {iou}",
                precision,
                x_label="recall",
                y_label="precision",
                x_range=(0, 1),
                y_range=(0, 1),
            )
        )
    if any(row.errors for row in rows):
        costs = {
            e.cause: {row.name: (100 * row.errors.get(e.cause, math.nan), math.nan, math.nan) for row in rows}
            for e in _errors(table)
        }
        plots.append(dot_rows(f"{task}-errors", "What errors cost", costs, colors, x_label="AP gained by mending, points"))
    return plots


def _percent(interval: Interval) -> tuple[float, float, float]:
    return 100 * interval.value, 100 * interval.low, 100 * interval.high


def _speed(table: Table, kind: str, colors: Mapping[str, str]) -> Plot:
    """Accuracy against time, and the entries that nothing faster reaches."""
    places = {
        row.name: Point(row.facts.image_ms, *_percent(row.averages[table.decides]))
        for row in table.rows
        if row.facts.image_ms is not None
    }
    series = [Series(name, colors[name], [point], is_line=False) for name, point in places.items()]
    edge = Series("frontier", "#9aa5b1", frontier(list(places.values())), is_dashed=True)
    return chart(
        f"{table.task}-speed",
        f"{kind} {AVERAGES[table.decides]} against time",
        [edge, *series] if len(places) > 1 else series,
        x_label="ms an image",
        y_label=f"{AVERAGES[table.decides]}, percent",
        note="Dashed: the frontier, which nothing as fast goes beyond." if len(places) > 1 else "",
    )


def _training(table: Table, kind: str, colors: Mapping[str, str]) -> list[Plot]:
    """The metric that decides and losses while training, a line for each seed."""
    plots = []
    seen = [(row, history) for row in table.rows for history in row.facts.histories if history]
    if seen:
        ap = [Series(row.name, colors[row.name], [Point(p["step"], 100 * p["ap"]) for p in h]) for row, h in seen]
        metric = AVERAGES[table.decides]
        title = f"{kind} {metric} while training"
        plots.append(chart(f"{table.task}-training", title, ap, x_label="step", y_label=f"{metric}, percent"))
        losses = [
            Series(row.name, colors[row.name], [Point(p["step"], p[what]) for p in h], is_dashed=what == "train_loss")
            for row, h in seen
            for what in ("val_loss", "train_loss")
        ]
        note = "Whole: validation; dashed: training. Losses of different systems do not compare."
        plots.append(chart(f"{table.task}-loss", "Loss while training", losses, x_label="step", y_label="loss", note=note))
    return plots
