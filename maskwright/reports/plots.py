"""The geometry of two kinds of plots; the report's template draws them as SVG.

A chart has two axes of numbers: lines, or dots with whiskers. A dot plot has a row for each thing and a dot for each entry.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 440.0, 44.0, 12.0, 10.0, 38.0
ROW = 11.0  # between the dots of one row of a dot plot
COLORS = ("#1769aa", "#d1495b", "#2e8b57", "#b8860b", "#7b4fa3", "#00838f", "#c2571a", "#5d6d7e", "#ad1457", "#6b8e23")
"""Of entries, in order; after ten they come again."""


@dataclass(frozen=True)
class Point:
    """A place in a plot's own units, with the ends of its interval where there is one."""

    x: float
    y: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class Series:
    """Points of one entry: joined by a line, or dots."""

    name: str
    color: str
    points: Sequence[Point]
    is_line: bool = True
    is_dashed: bool = False


@dataclass(frozen=True)
class Tick:
    """A mark on an axis, px."""

    place: float
    label: str


@dataclass(frozen=True)
class Mark:
    """A dot with its whiskers, px; `title` is what a pointer shows."""

    x: float
    y: float
    low: float | None
    high: float | None
    color: str
    title: str


@dataclass(frozen=True)
class Stroke:
    """A line, as SVG wants its points."""

    points: str
    color: str
    is_dashed: bool


@dataclass(frozen=True)
class Plot:
    """What a template draws.

    Args:
        id, title, note: of the figure.
        is_rows: whether whiskers lie across, as in a dot plot.
        legend: names with colors.
    """

    id: str
    title: str
    note: str
    height: float
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    x_label: str
    y_label: str
    strokes: list[Stroke] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    legend: list[tuple[str, str]] = field(default_factory=list)
    is_rows: bool = False
    width: float = WIDTH
    left: float = LEFT
    right: float = WIDTH - RIGHT
    top: float = TOP
    bottom: float = BOTTOM


def ticks(low: float, high: float, *, count: int = 5) -> list[float]:
    """Round numbers from `low` to `high`."""
    if not high > low:
        high = low + 1.0
    raw = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(raw))
    step = unit * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * unit >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def chart(
    plot_id: str,
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    note: str = "",
    y_range: tuple[float, float] | None = None,
    x_range: tuple[float, float] | None = None,
    x_ticks: Mapping[float, str] | None = None,
) -> Plot:
    """Lines and dots over two axes; ranges are those of the data, from zero where nothing else is asked for.

    Args:
        x_ticks: marks of an axis that is not to be read in its own units, for example of logarithms.
    """
    points = [p for s in series for p in s.points if math.isfinite(p.x) and math.isfinite(p.y)]
    ys = [v for p in points for v in (p.y, p.low, p.high) if math.isfinite(v)] or [0.0]
    x_low, x_high = x_range or (0.0, max((p.x for p in points), default=1.0) * 1.08)
    y_low, y_high = y_range or (min(0.0, *ys), max(ys) * 1.08)
    x_high, y_high = (max(high, low + 1e-9) for low, high in ((x_low, x_high), (y_low, y_high)))
    height = 280.0

    def across(x: float) -> float:
        return round(LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT), 1)

    def down(y: float) -> float:
        return round(height - BOTTOM - (y - y_low) / (y_high - y_low) * (height - TOP - BOTTOM), 1)

    strokes, marks = [], []
    for s in series:
        finite = [p for p in s.points if math.isfinite(p.x) and math.isfinite(p.y)]
        if s.is_line:
            strokes.append(Stroke(" ".join(f"{across(p.x)},{down(p.y)}" for p in finite), s.color, s.is_dashed))
        for p in finite if not s.is_line or len(finite) == 1 else []:
            ends = [None if math.isnan(v) else down(v) for v in (p.low, p.high)]
            marks.append(Mark(across(p.x), down(p.y), ends[0], ends[1], s.color, f"{s.name}: {p.x:.4g}, {p.y:.4g}"))
    return Plot(
        id=plot_id,
        title=title,
        note=note,
        height=height,
        x_ticks=[Tick(across(x), label) for x, label in (x_ticks or {x: f"{x:g}" for x in ticks(x_low, x_high)}).items()],
        y_ticks=[Tick(down(y), f"{y:g}") for y in ticks(y_low, y_high)],
        x_label=x_label,
        y_label=y_label,
        strokes=strokes,
        marks=marks,
        legend=list(dict.fromkeys((s.name, s.color) for s in series)),
    )


def dot_rows(
    plot_id: str,
    title: str,
    rows: Mapping[str, Mapping[str, tuple[float, float, float]]],
    colors: Mapping[str, str],
    *,
    x_label: str,
    note: str = "",
) -> Plot:
    """A row for each thing, in it a dot for each entry.

    Args:
        rows: row → entry → value and the ends of its interval, nan for none.
        colors: of entries.
    """
    left = min(150.0, 24.0 + 6.2 * max((len(name[:22]) for name in rows), default=4))
    values = [v for row in rows.values() for three in row.values() for v in three if math.isfinite(v)] or [0.0]
    low, high = min(0.0, *values), max(*values, 1e-9) * 1.05

    def across(x: float) -> float:
        return round(left + (x - low) / (high - low) * (WIDTH - left - RIGHT), 1)

    marks, labels, y = [], [], TOP
    for name, row in rows.items():
        spread = max(20.0, ROW * len(row) + 6)
        labels.append(Tick(round(y + spread / 2, 1), name if len(name) <= 22 else name[:21] + "…"))
        for i, (entry, (value, lower, upper)) in enumerate(row.items()):
            if not math.isfinite(value):
                continue
            ends = [None if math.isnan(v) else across(v) for v in (lower, upper)]
            place = round(y + spread / 2 + ROW * (i - (len(row) - 1) / 2), 1)
            marks.append(Mark(across(value), place, ends[0], ends[1], colors[entry], f"{entry}, {name}: {value:.2f}"))
        y += spread
    return Plot(
        id=plot_id,
        title=title,
        note=note,
        height=y + BOTTOM,
        x_ticks=[Tick(across(x), f"{x:g}") for x in ticks(low, high)],
        y_ticks=labels,
        x_label=x_label,
        y_label="",
        marks=marks,
        legend=list(colors.items()),
        is_rows=True,
        left=left,
    )


def frontier(points: Sequence[Point]) -> list[Point]:
    """Those that nothing cheaper (x) reaches or beats (y)."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x, -p.y)):
        if math.isfinite(point.x) and math.isfinite(point.y) and (not best or point.y > best[-1].y):
            best.append(point)
    return best
