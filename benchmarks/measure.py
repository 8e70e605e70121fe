"""Timing within one process, and the tables of README.md."""

import re
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from maskwright.runs.device import machine_line

README = Path(__file__).with_name("README.md")


Key = TypeVar("Key", bound=Hashable)


def seconds(functions: Mapping[Key, Callable[[], object]], *, repeats: int) -> dict[Key, float]:
    """Median time of each function, s; they take turns, so that a machine that changes its pace treats all alike."""
    for function in functions.values():
        function()
    times: dict[Key, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def matmul_rate(dtype: torch.dtype, *, side: int = 2048) -> Callable[[], object]:
    """A product of two square matrices, 2·side³ operations, to be timed beside what it is compared with."""
    a = torch.randn(side, side).to(dtype)
    return lambda: a @ a


def check_sections(page: Path, names: Sequence[str]) -> None:
    """Make sure, before anything is measured, that a page has a place for its tables."""
    text = page.read_text(encoding="utf-8")
    gone = [name for name in names if f"<!-- {name} -->\n" not in text or f"<!-- end of {name} -->" not in text]
    if gone:
        raise ValueError(f"{page}: has no sections {', '.join(gone)}: add <!-- NAME --> and <!-- end of NAME -->")


def report(name: str, command: str, rows: Sequence[Sequence[str]], notes: str = "", *, page: Path | None = None) -> None:
    """Print a table, its first row the header, and put it into its section of a page."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    body = "\n".join([f"`{command}`", "", *lines, "", *([notes, ""] if notes else []), machine_line()])
    print(body)
    page = page or README
    check_sections(page, [name])
    text = page.read_text(encoding="utf-8")
    section = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- end of {name} -->)", re.S)
    page.write_text(section.sub(lambda _: f"\n{body}\n\n", text), encoding="utf-8")
