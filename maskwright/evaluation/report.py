"""report.html of a run: curves, metrics and pictures in one self-contained file."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from PIL import Image

from maskwright.data.files import write_text
from maskwright.evaluation.detection import percent

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 560, 240, 46, 26

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1180px; margin: 2em auto; padding: 0 1em; color: #1c2430; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
table { border-collapse: collapse; } td, th { padding: .25em .8em; text-align: right; border-bottom: 1px solid #dde3ea; }
td:first-child, th:first-child { text-align: left; }
.curves { display: flex; flex-wrap: wrap; gap: 1.5em; } .pictures img { width: 100%; }
svg text { font: 11px system-ui, sans-serif; fill: #55606e; } pre { background: #f4f6f8; padding: 1em; overflow: auto; }
</style></head><body>
<h1>{{ title }}</h1>
<p>{{ summary }}</p>
<h2>Metrics of the best model's epoch, in percent</h2>
<table><tr><th></th>{% for name in columns %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</table>
{% if by_class %}<h2>By class</h2>
<table><tr><th>class</th><th>AP</th><th>AP50</th></tr>
{% for row in by_class %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</table>{% endif %}
<h2>Training</h2>
<div class="curves">{% for curve in curves %}
<svg width="{{ width }}" height="{{ height }}" role="img" aria-label="{{ curve.title }}">
<text x="{{ left }}" y="14">{{ curve.title }}</text>
{% for tick in curve.ticks %}<line x1="{{ left }}" x2="{{ width }}" y1="{{ tick.y }}" y2="{{ tick.y }}" stroke="#dde3ea"/>
<text x="{{ left - 6 }}" y="{{ tick.y + 4 }}" text-anchor="end">{{ tick.label }}</text>{% endfor %}
<text x="{{ left }}" y="{{ height - 6 }}">epoch {{ curve.first }}</text>
<text x="{{ width }}" y="{{ height - 6 }}" text-anchor="end">{{ curve.last }}</text>
{% for line in curve.lines %}<polyline points="{{ line.points }}" fill="none" stroke="{{ line.color }}" stroke-width="2"/>
<circle cx="{{ line.end_x }}" cy="{{ line.end_y }}" r="3" fill="{{ line.color }}"/>
<text x="{{ left + 8 + 150 * loop.index0 }}" y="30" style="fill: {{ line.color }}">{{ line.name }}</text>{% endfor %}
</svg>{% endfor %}</div>
{% if picture %}<h2>Validation images</h2><div class="pictures"><img alt="predictions" src="{{ picture }}"></div>{% endif %}
<h2>Recipe</h2><pre>{{ recipe }}</pre>
</body></html>
"""


@dataclass(frozen=True)
class _Line:
    name: str
    color: str
    points: str
    end_x: float
    end_y: float


@dataclass(frozen=True)
class _Curve:
    title: str
    first: str
    last: str
    ticks: Sequence[Mapping[str, Any]]
    lines: Sequence[_Line]


def write_report(run: Path, *, title: str, summary: str, picture: Image.Image | None) -> None:
    """Write report.html of a run folder from its metrics.jsonl and recipe.yaml.

    Args:
        picture: predictions on some validation images.
    """
    history = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    kinds = [kind for kind in ("bbox", "segm") if kind in history[-1]]
    best = max(history, key=lambda line: line[kinds[-1]]["ap"])
    limits = best[kinds[-1]]["max_detections"]
    names = {"bbox": "boxes", "segm": "masks"}
    metrics = [best[kind] for kind in kinds]
    fields = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    rows = [[names[m["kind"]], *(percent(m[f]) for f in fields), *(percent(v) for v in m["ar"])] for m in metrics]
    last = metrics[-1]
    by_class = [[name, percent(ap), percent(last["per_class_ap50"][name])] for name, ap in last["per_class"].items()]
    epochs = [line["epoch"] for line in history]
    curves = [
        _curve(
            "loss",
            epochs,
            {
                "training": [sum(line["train_loss"].values()) for line in history],
                "validation": [sum(line["val_loss"].values()) for line in history],
            },
        ),
        _curve("AP, percent", epochs, {names[kind]: [100 * line[kind]["ap"] for line in history] for kind in kinds}),
    ]
    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(_PAGE)
    text = page.render(
        title=title,
        summary=summary,
        columns=["AP", "AP50", "AP75", "AP small", "AP medium", "AP large", *(f"AR {limit}" for limit in limits)],
        rows=rows,
        by_class=by_class if len(by_class) > 1 else [],
        curves=curves,
        width=_WIDTH,
        height=_HEIGHT,
        left=_LEFT,
        picture=None if picture is None else _data_address(picture),
        recipe=(run / "recipe.yaml").read_text(encoding="utf-8"),
    )
    write_text(run / "report.html", text)


def _curve(title: str, x: Sequence[float], series: Mapping[str, Sequence[float]]) -> _Curve:
    values = [v for line in series.values() for v in line]
    low, high = min(0.0, *values), max(*values, 1e-6)
    span = (max(x) - min(x)) or 1.0

    def place(xi: float, yi: float) -> tuple[float, float]:
        across = _LEFT + (xi - min(x)) / span * (_WIDTH - _LEFT - 8)
        return round(across, 1), round(_HEIGHT - _BOTTOM - (yi - low) / (high - low) * (_HEIGHT - _BOTTOM - 44), 1)

    lines = []
    for (name, line), color in zip(series.items(), ("#1769aa", "#d1495b"), strict=False):
        points = [place(xi, yi) for xi, yi in zip(x, line, strict=True)]
        lines.append(_Line(name, color, " ".join(f"{a},{b}" for a, b in points), *points[-1]))
    ticks = [
        {"y": place(min(x), low + share * (high - low))[1], "label": f"{low + share * (high - low):.3g}"}
        for share in (0, 0.5, 1)
    ]
    return _Curve(title, f"{min(x):g}", f"{max(x):g}", ticks, lines)


def _data_address(picture: Image.Image) -> str:
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
