"""Bars for long loops."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Bar:
    """A bar on the terminal, moved by whoever does the work."""

    def __init__(self, progress: Progress, name: str, *, total: int, done: int) -> None:
        self._progress = progress
        self._task = progress.add_task(name, total=total, completed=done, note="")

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Some more is done; `note` stands behind the bar."""
        self._progress.update(self._task, advance=steps, note=note)

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Out of the way while something else is shown."""
        self._progress.stop()
        yield
        self._progress.start()


@contextmanager
def shown(console: Console | None, name: str, *, total: int, done: int = 0) -> Iterator[Bar]:
    """A bar for `total` steps of which `done` are behind us."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console or Console(), transient=True) as progress:
        yield Bar(progress, name, total=total, done=done)
