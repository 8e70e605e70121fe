"""Tables of numbers for the terminal: what a model scored, and how several compare."""

import math
from collections.abc import Iterator, Mapping

from rich.table import Table

from maskwright.metrics import DetectionMetrics
from maskwright.metrics.cityscapes import CityscapesMetrics
from maskwright.metrics.detection import KEYPOINT_LIMIT, percent
from maskwright.metrics.evaluation import Evaluation
from maskwright.metrics.overlaps import Kind
from maskwright.metrics.proposals import ProposalMetrics
from maskwright.metrics.region_ap import RegionMetrics
from maskwright.metrics.studies import AVERAGES
from maskwright.reports.ranking import Comparison

KIND_NAMES: Mapping[Kind, str] = {"bbox": "boxes", "segm": "masks", "boundary": "edges", "keypoints": "keypoints"}
"""As people call them."""


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
