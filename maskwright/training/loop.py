"""The training loop: a run is its stages, a stage its steps; read it from top to bottom.

A step is in `step.py`. At the end of an epoch the averaged model is scored on the validation set (`validation.py`) and saved
(`state.py`). Under torchrun every process does its share of each batch and of the validation set, and the first one writes.
"""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from maskwright.formats.files import write_text
from maskwright.metrics import DetectionMetrics
from maskwright.metrics.detection import KIND_ADJECTIVES, percent
from maskwright.recipes import Recipe, Stage
from maskwright.runs import save_model
from maskwright.runs.progress import shown
from maskwright.systems import Task
from maskwright.training.distributed import joined, own_device
from maskwright.training.opening import check_folder, open_run
from maskwright.training.optimization import learning_rate_factor
from maskwright.training.run import METRICS, RECIPE, Run
from maskwright.training.state import kept_weights, restore, restore_optimizer, save_last
from maskwright.training.step import Learner, begin_stage, take_step
from maskwright.training.timing import epochs_in, lasting
from maskwright.training.validation import validate


def train(
    recipe: Recipe,
    out: Path,
    *,
    init: str | Path | None = None,
    minutes: float | None = None,
    resume: bool = False,
    device: str = "auto",
    console: Console | None = None,
) -> DetectionMetrics:
    """Train a recipe into a run folder.

    Args:
        recipe: with its data filled in.
        out: the run folder; must be new, unless resuming.
        init: a run or weights file of the same network to start from, whatever its classes; or "coco", see `find_published`.
        minutes: of steps, in place of the epochs of a new run: measured once, and kept as epochs in its recipe.
        resume: go on from the last checkpoint of `out`.
        device: "auto", "cpu", "cuda", …
        console: where progress is shown; by default the terminal.

    Returns:
        Metrics of the last evaluation.

    Raises:
        ValueError: something about the data, the recipe or the folder that the user can mend; or a loss that is not finite.
    """
    device = own_device(device)
    with joined(device) as processes, open(os.devnull, "w", encoding="utf-8") as nowhere:
        console = (console or Console(markup=False)) if processes.is_first else Console(file=nowhere)
        if minutes is not None:
            check_folder(out, resume=False)
            lengths = epochs_in(recipe, minutes, init=init, device=device, processes=processes)
            recipe = lasting(recipe, lengths)
            console.print(_minutes_in_words(minutes, lengths), highlight=False)
        run = open_run(recipe, out, init, resume=resume, device=device, processes=processes, console=console)
        metrics: DetectionMetrics | None = None
        state = restore(run) if resume else None
        while run.stage < len(run.recipe.stages):
            metrics = _train_stage(run, run.recipe.stages[run.stage], state) or metrics
            run.stage, run.step, run.scores, state = run.stage + 1, 0, [], None
            run.system.load_state_dict(run.scored.state_dict())  # a stage builds on what the one before would have kept
        where = f"the best model is in {out / 'best'}, the last in {out / 'last'}, the metrics in {out / METRICS}"
        console.print(where, highlight=False, soft_wrap=True)
        if metrics is None:
            metrics = validate(run, run.recipe.stages[-1].model_copy(update={"is_scored": True}))[1][-1]
        return metrics


def _minutes_in_words(minutes: float, epochs: Sequence[float]) -> str:
    lengths = " and ".join(f"{length:.3g}" for length in epochs)
    return f"{minutes:g} minutes of steps are {lengths} epochs here; validation and checkpoints take theirs beside them"


def _train_stage(run: Run, stage: Stage, state: dict[str, Tensor] | None) -> DetectionMetrics | None:
    """All steps of a stage from `run.step` on; metrics of its last evaluation.

    Args:
        state: of the optimizer, where the stage was begun before.
    """
    learner = begin_stage(run, stage)
    if state is not None:
        restore_optimizer(learner.optimizer, state)
    per_epoch = len(learner.source.batches(0))
    total = max(1, round(stage.epochs * per_epoch))
    run.console.print(f"training: {total:,} {stage.in_words(run.processes.count)}", highlight=False)
    if run.step == 0:
        save_last(run, learner.optimizer)  # so that a run can be resumed from its first moment
        if run.processes.is_first:
            write_text(run.out / RECIPE, run.recipe.to_yaml())
    metrics = None
    with shown(run.console, "train", total=total, done=run.step) as bar:
        tick = time.monotonic()
        while run.step < total and not run.is_stalled:
            learner.set_rate(stage.lr * learning_rate_factor(stage.schedule, run.step, total))
            losses = take_step(run, learner)
            run.step += 1
            run.time_s, tick = run.time_s + time.monotonic() - tick, time.monotonic()
            bar.advance(note=f"loss {sum(losses.values()):.3f}")
            epoch, within = divmod(run.step, per_epoch)
            if run.step == total or (within == 0 and epoch % run.recipe.evaluate_every == 0):
                with bar.hidden():
                    metrics = report_epoch(run, learner, epoch=run.step / per_epoch)
            elif within == 0 or (run.recipe.checkpoint_steps and run.step % run.recipe.checkpoint_steps == 0):
                save_last(run, learner.optimizer)
    if run.step < total:
        run.console.print(_stalled_in_words(run, total), highlight=False)
    return metrics


def _stalled_in_words(run: Run, total: int) -> str:
    count, best = run.recipe.patience, percent(max(run.scores))
    evaluations = f"{count} evaluation{'s' if count != 1 else ''}"
    return f"stopped after step {run.step:,} of {total:,}, out of patience: {evaluations} without a score over {best}"


def report_epoch(run: Run, learner: Learner, *, epoch: float) -> DetectionMetrics | None:
    """Evaluate, save, and write a line of metrics.jsonl; the metric that decides, where there is one."""
    training = {name: total / steps for name, (total, steps) in run.sums.items()}
    run.sums = {}
    validation, metrics = validate(run, learner.stage)
    decisive = metrics[-1] if metrics else None
    score = -1.0 if decisive is None else decisive.ar[-1] if run.system.task == Task.PROPOSALS else decisive.ap
    improved = decisive is not None and (run.best is None or score > run.best or score < 0)  # nothing to find: take the last
    if decisive is not None:
        run.best = score if run.best is None else max(run.best, score)
        run.scores += [score] if score >= 0 else []
    line: dict[str, Any] = {
        "stage": run.stage,
        "epoch": round(epoch, 3),
        "step": run.step,
        "time_s": round(run.time_s, 1),
        "lr": learner.optimizer.param_groups[0]["lr"],
        "train_loss": training,
        "val_loss": validation,
        **{m.kind: m.to_dict() for m in metrics},
    }
    if run.processes.is_first:  # what comes last makes the others count; a run killed in between does them again
        if improved:
            save_model(run.out / "best", run.card, kept_weights(run))
        with (run.out / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    save_last(run, learner.optimizer)
    parts = [f"loss {sum(training.values()):.3f}", f"validation loss {sum(validation.values()):.3f}"]
    parts += [_in_words(m, run.system.task) for m in metrics]
    run.console.print(f"epoch {epoch:.4g}: {', '.join(parts)}{' (best)' if improved else ''}")
    return decisive


def _in_words(m: DetectionMetrics, task: Task) -> str:
    what = KIND_ADJECTIVES[m.kind]
    if task == Task.PROPOSALS:
        return f"{what} " + " ".join(f"AR@{n} {percent(ar)}" for n, ar in zip(m.max_detections, m.ar, strict=True))
    return f"{what} AP {percent(m.ap)} AP50 {percent(m.ap50)}"
