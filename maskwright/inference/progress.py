"""Progress bars for loops over images."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def counted(console: Console | None, name: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar that the yielded function moves by a number of images."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console or Console(), transient=True) as progress:
        yield partial(progress.advance, progress.add_task(name, total=total))
