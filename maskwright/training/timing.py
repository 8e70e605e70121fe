"""How long training is: epochs, or minutes, which a stopwatch turns into epochs."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from maskwright.recipes import Recipe
from maskwright.training.distributed import Processes
from maskwright.training.opening import open_run
from maskwright.training.step import begin_stage, take_step

WARM_UP, TIMED = 2, 8  # steps


@dataclass(frozen=True)
class Budget:
    """How long systems are trained: epochs, or minutes of training; by default as long as their recipes say."""

    epochs: float | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if self.epochs is not None and self.minutes is not None:
            raise ValueError("epochs and minutes both say how long to train: give one of them")
        if any(value is not None and not 0 < value < float("inf") for value in (self.epochs, self.minutes)):
            raise ValueError("got a budget of nothing or without end, expected a positive number of epochs or minutes")

    def check(self, changes: Sequence[str]) -> None:
        """Make sure that no change of a recipe says how long to train, where minutes do.

        Raises:
            ValueError: one does.
        """
        for change in changes:
            if self.minutes is not None and change.split("=")[0].strip().endswith("epochs"):
                raise ValueError(f"got {change!r} and --minutes, which both say how long to train: give one of them")

    def applied(self, recipe: Recipe, changes: Sequence[str]) -> Recipe:
        """A recipe of so many epochs, and then with its changes; minutes are for `epochs_in`.

        Raises:
            ValueError: a field that does not exist, or epochs beside minutes.
        """
        self.check(changes)
        if self.epochs is not None:
            recipe = recipe.with_changes([f"epochs={self.epochs}"])
        return recipe.with_changes(changes)


def epochs_in(
    recipe: Recipe, minutes: float, *, init: str | Path | None = None, device: str, processes: Processes
) -> list[float]:
    """Epochs of each stage, in the proportions of the recipe, that fit into a time of training.

    It is the time of the steps: validation and checkpoints take theirs beside it.

    Args:
        init: weights to start from, where frozen parts need them.
        device: this process' own.
    """
    per_epoch = seconds_per_epoch(recipe, init=init, device=device, processes=processes)
    usual = sum(stage.epochs * seconds for stage, seconds in zip(recipe.stages, per_epoch, strict=True))
    return [float(f"{stage.epochs * 60 * minutes / usual:.6g}") for stage in recipe.stages]


def lasting(recipe: Recipe, epochs: Sequence[float]) -> Recipe:
    """A recipe with so many epochs for each of its stages."""
    return recipe.with_changes([f"stages.{i}.epochs={length}" for i, length in enumerate(epochs)])


def seconds_per_epoch(recipe: Recipe, *, init: str | Path | None, device: str, processes: Processes) -> list[float]:
    """How long the steps of an epoch of each stage take here, measured on a few of them; nothing is kept."""
    answer = []
    with TemporaryDirectory() as folder:
        console, out = Console(quiet=True), Path(folder, "run")
        run = open_run(recipe, out, init, resume=False, device=device, processes=processes, console=console)
        stages = run.recipe.stages
        for run.stage, stage in enumerate(stages):
            learner = begin_stage(run, stage)
            learner.set_rate(0.0)  # the weights are those of a beginning, all the time
            times = []
            for _ in range(WARM_UP + TIMED):
                began = time.monotonic()
                take_step(run, learner)
                times.append(time.monotonic() - began)
            answer.append(statistics.median(times[WARM_UP:]) * len(learner.source.batches(0)))
    told: list[float] = processes.tell(answer)  # all must take as many steps
    return told
