"""How long training would take."""

import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from maskwright.recipes import Recipe
from maskwright.training.distributed import joined, own_device
from maskwright.training.opening import open_run
from maskwright.training.step import begin_stage, take_step

WARM_UP, TIMED = 2, 8  # steps


def seconds_per_epoch(recipe: Recipe, *, device: str = "auto") -> list[float]:
    """How long the steps of an epoch of each stage take here, measured on a few of them; nothing is kept."""
    answer = []
    with TemporaryDirectory() as folder, joined(own_device(device)) as processes:
        console = Console(quiet=True)
        run = open_run(
            recipe, Path(folder, "run"), None, resume=False, device=own_device(device), processes=processes, console=console
        )
        for run.stage, stage in enumerate(recipe.stages):
            learner = begin_stage(run, stage)
            learner.set_rate(0.0)  # the weights are those of a beginning, all the time
            times = []
            for _ in range(WARM_UP + TIMED):
                began = time.monotonic()
                take_step(run, learner)
                times.append(time.monotonic() - began)
            answer.append(statistics.median(times[WARM_UP:]) * len(learner.source.batches(0)))
    return answer
