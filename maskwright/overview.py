"""Tables for people: what systems there are, and what a model scored."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, cast, get_args, get_origin

import torch
import yaml
from rich.table import Column, Table
from torch import nn

from maskwright.api import Evaluation
from maskwright.metrics import DetectionMetrics
from maskwright.metrics.cityscapes import CityscapesMetrics
from maskwright.metrics.detection import KEYPOINT_LIMIT, KIND_NAMES, percent
from maskwright.metrics.overlaps import Kind
from maskwright.metrics.proposals import ProposalMetrics
from maskwright.metrics.region_ap import RegionMetrics
from maskwright.metrics.studies import AVERAGES
from maskwright.recipes import RECIPES, Stage, find_recipe
from maskwright.reports.tables import Comparison
from maskwright.systems import SYSTEMS, Sized, find_builder


def systems_table() -> Table:
    """Every system in a line."""
    table = Table("system", "task", Column("size", justify="right"), "what it is", box=None, caption_justify="left")
    table.caption = "size: parameters in millions, at 80 classes; 'maskwright systems NAME' lists parts and arguments"
    for column in table.columns[:3]:
        column.no_wrap = True
    for name in SYSTEMS:
        task, sizes = _measured(name)
        table.add_row(name, task, f"{sum(sizes.values()) / 1e6:.2f}", _first_line(find_builder(name)).split(":")[0])
    return table


def system_tables(name: str) -> Iterator[Table | str]:
    """The parts of one system, and its arguments."""
    yield _first_line(find_builder(name))
    parts = Table("part", Column("parameters, at 80 classes", justify="right"), box=None)
    for part, size in _measured(name)[1].items():
        parts.add_row(part, f"{size:,}")
    yield parts
    yield "\nArguments: --set arguments.NAME=VALUE to train, --set NAME=VALUE to import, evaluate and predict"
    arguments = Table("argument", "default", "values", "what it is", box=None)
    builder = find_builder(name)
    described = type(builder.size).descriptions() if isinstance(builder, Sized) else {}
    for argument in inspect.signature(builder).parameters.values():
        if argument.default is not argument.empty:
            default = yaml.safe_dump(_plain(argument.default), default_flow_style=True).split("\n")[0]
            arguments.add_row(argument.name, default, _values(argument.annotation), described.get(argument.name, ""))
    yield arguments


def recipe_lines() -> Iterator[str]:
    """Every recipe: its name, epochs × images of a step for each stage, and below what to expect."""
    for name, build in RECIPES.items():
        lengths = " + ".join(f"{stage.epochs:g} × {stage.batch_size}" for stage in build().stages)
        yield f"{name}  ({lengths})\n    {_first_line(build)}"
    yield "(epochs × images of a step); 'maskwright recipes NAME' shows all fields, set them with --set FIELD=VALUE"


def recipe_text(name: str) -> str:
    """One recipe, as its file holds it, under what is to be expected of it, and what is known of it and its family."""
    recipe = find_recipe(name)
    stages = "\n".join(_stage_in_words(stage) for stage in recipe.stages)
    if name not in RECIPES:
        return f"That of the small sizes.\n{stages}\n\n{recipe.to_yaml()}"
    build = RECIPES[name]
    return f"{_first_line(build)}\n{stages}\n\n{inspect.getdoc(inspect.getmodule(build))}\n\n{recipe.to_yaml()}"


def _stage_in_words(stage: Stage) -> str:
    scales = stage.optimizer.lr_images is not None
    return f"Trained in {stage.in_words()}{', with another batch in proportion to it' if scales else ''}."


def _plain(value: object) -> object:
    """Tuples as YAML has them."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _values(hint: object) -> str:
    """Types and words an argument may have, as --set takes them."""
    if get_origin(hint) is Annotated:
        kind, *bounds = get_args(hint)
        return _values(kind) + "".join(_bounds(part) for bound in bounds for part in bound.metadata)
    if get_origin(hint) is dict:
        key, value = map(_values, get_args(hint))
        return f"{{{key}: {value}, ...}}"
    if get_origin(hint) is tuple:
        return f"[{', '.join('...' if part is ... else _values(part) for part in get_args(hint))}]"
    if parts := get_args(hint):
        return " | ".join(map(_values, parts))
    return "null" if hint is type(None) else hint.__name__ if isinstance(hint, type) else str(hint)


def _bounds(limit: object) -> str:
    """A bound of a number, behind its type."""
    signs = {"gt": " > ", "ge": " ≥ ", "le": " ≤ "}
    return "".join(f"{sign}{getattr(limit, name):g}" for name, sign in signs.items() if hasattr(limit, name))


def _first_line(builder: Callable[..., object]) -> str:
    return (builder.__doc__ or "").split("\n")[0]


def _measured(name: str) -> tuple[str, dict[str, int]]:
    """Task and parameters of each part, counted on the meta device: nothing is allocated."""
    with torch.device("meta"):
        system = find_builder(name)(num_classes=80)
    parts = cast(nn.Module, system).named_children()
    sizes = {part: sum(p.numel() for p in child.parameters()) for part, child in parts}
    return system.task, {part: size for part, size in sizes.items() if size}


def evaluation_tables(evaluation: Evaluation) -> Iterator[Table]:
    """What was found out: the recall of proposals, where classes were ignored, and COCO's numbers."""
    if evaluation.proposals:
        yield from proposal_tables(evaluation.proposals)
    yield from metric_tables(evaluation.metrics)
    if evaluation.regions is not None:
        yield region_table(evaluation.regions)
    if evaluation.cityscapes is not None:
        yield cityscapes_table(evaluation.cityscapes)


def proposal_tables(proposals: Mapping[Kind, ProposalMetrics]) -> Iterator[Table]:
    """Recall in percent, one row for each kind."""
    first = next(iter(proposals.values()))
    sizes = ("small", "medium", "large")
    last = first.limits[-1]
    columns = [*(f"AR@{n}" for n in first.limits), "AUC", "mean AR", *(f"AR@{last} {size}" for size in sizes)]
    table = Table("", *columns, title="proposals, in percent; classes are ignored", title_justify="left", box=None)
    for kind, m in proposals.items():
        values = [*m.ar["all"], m.auc["all"], m.mean_ar, *(m.ar[size][-1] for size in sizes)]
        table.add_row(KIND_NAMES[kind], *(percent(v) for v in values))
    yield table


def metric_tables(metrics: Mapping[Kind, DetectionMetrics]) -> Iterator[Table]:
    """COCO's numbers in percent, one row for each kind; then AP by class where there are several."""
    first = next(iter(metrics.values()))
    limit = first.max_detections[-1]
    few = "keypoints" in metrics and limit > KEYPOINT_LIMIT
    table = Table(
        "", "AP", "AP50", "AP75", "AP small", "AP medium", "AP large", *(f"AR {m}" for m in first.max_detections),
        title=f"COCO, in percent, at most {limit} detections an image{', 20 of keypoints' if few else ''}",
        title_justify="left", box=None,
    )  # fmt: skip
    for kind, m in metrics.items():
        recall = dict(zip(m.max_detections, m.ar, strict=True))
        recalls = [recall[n if n in recall else m.max_detections[-1]] for n in first.max_detections]
        values = [m.ap, m.ap50, m.ap75, m.ap_small, m.ap_medium, m.ap_large, *recalls]
        table.add_row(KIND_NAMES[kind], *(percent(v) for v in values))
    yield table
    if len(first.per_class) > 1:
        by_class = Table("class", *(f"{KIND_NAMES[kind]} {what}" for kind in metrics for what in ("AP", "AP50")), box=None)
        for name in first.per_class:
            by_class.add_row(name, *(percent(v) for m in metrics.values() for v in (m.per_class[name], m.per_class_ap50[name])))
        yield by_class


def region_table(regions: RegionMetrics) -> Table:
    """mAP^r in percent."""
    columns = [*(f"at {threshold:g}" for threshold in regions.map), "0.1 to 0.9"]
    table = Table("", *columns, title="VOC, in percent, 11 points", title_justify="left", box=None)
    table.add_row("mAP^r", *(percent(v) for v in regions.map.values()), percent(regions.volume))
    return table


def cityscapes_table(metrics: CityscapesMetrics) -> Table:
    """AP in percent, of all classes and of each."""
    table = Table("", "AP", "AP50", title="Cityscapes, in percent", title_justify="left", box=None)
    table.add_row("all classes", percent(metrics.ap), percent(metrics.ap50))
    for name, (ap, ap50) in metrics.per_class.items():
        table.add_row(name, percent(ap), percent(ap50))
    return table


def comparison_tables(comparison: Comparison) -> Iterator[Table]:
    """A ranked table for each task, with the interval of the metric that decides."""
    for ranked in comparison.tables:
        shown = [name for name in AVERAGES if name not in ("ap_small", "ap_medium", "ap_large")]
        names = [name for name in shown if any(name in row.averages for row in ranked.rows)]
        titles = [AVERAGES[name] for name in names]
        place = names.index(ranked.decides)
        columns = [*titles[: place + 1], "95 %", *titles[place + 1 :], "ms", "MB"]
        table = Table("", *columns, title=f"{ranked.task}, in percent; ms and MB an image", title_justify="left", box=None)
        for row in ranked.rows:
            means = [row.averages[name].value if name in row.averages else math.nan for name in names]
            cells = ["-" if math.isnan(value) else f"{100 * value:.1f}" for value in means]
            found = row.averages[ranked.decides]
            interval = "-" if math.isnan(found.low) else f"{100 * found.low:.1f}-{100 * found.high:.1f}"
            costs = ["-" if cost is None else f"{cost:.0f}" for cost in (row.facts.image_ms, row.facts.memory_mb)]
            table.add_row(row.name, *cells[: place + 1], interval, *cells[place + 1 :], *costs)
        yield table
