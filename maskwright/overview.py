"""Tables for people: what systems there are, and what a model scored."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from rich.table import Table
from torch import nn

from maskwright.evaluation import DetectionMetrics
from maskwright.evaluation.detection import percent
from maskwright.systems import SYSTEMS


@dataclass(frozen=True)
class SystemRow:
    """A line of `maskwright systems`."""

    name: str
    task: str
    parts: str
    total: str
    source: str


def describe_systems(num_classes: int = 80) -> Iterator[SystemRow]:
    """Every system, counted on the meta device: nothing is allocated."""
    for name, builder in SYSTEMS.items():
        with torch.device("meta"):
            system = builder(num_classes=num_classes)
        module = cast(nn.Module, system)
        sizes = {part: sum(p.numel() for p in child.parameters()) for part, child in module.named_children()}
        parts = ", ".join(f"{part} {size / 1e6:.1f}" for part, size in sizes.items() if size)
        total = f"{sum(sizes.values()) / 1e6:.2f}"
        yield SystemRow(name, system.task, parts, total, (builder.__doc__ or "").split(":")[0].splitlines()[0])


def metric_tables(metrics: Mapping[str, DetectionMetrics]) -> Iterator[Table]:
    """COCO's numbers in percent, one row for each kind; then AP by class where there are several."""
    first = next(iter(metrics.values()))
    limit = first.max_detections[-1]
    table = Table(
        "", "AP", "AP50", "AP75", "AP small", "AP medium", "AP large", *(f"AR {m}" for m in first.max_detections),
        title=f"COCO, in percent, at most {limit} detections an image", title_justify="left", box=None,
    )  # fmt: skip
    for kind, m in metrics.items():
        values = [m.ap, m.ap50, m.ap75, m.ap_small, m.ap_medium, m.ap_large, *m.ar]
        table.add_row({"bbox": "boxes", "segm": "masks"}[kind], *(percent(v) for v in values))
    yield table
    if len(first.per_class) > 1:
        by_class = Table(
            "class", *(f"{'box' if kind == 'bbox' else 'mask'} {what}" for kind in metrics for what in ("AP", "AP50")), box=None
        )
        for name in first.per_class:
            by_class.add_row(name, *(percent(v) for m in metrics.values() for v in (m.per_class[name], m.per_class_ap50[name])))
        yield by_class
