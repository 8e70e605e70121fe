"""One step of the optimizer: batches → loss terms with their counts → backward passes → clipped gradients → new weights."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from typing import cast

import torch
from torch import Tensor, nn

from maskwright.data.loader import Batch, Share, TrainingSource, training_batches
from maskwright.recipes import Stage
from maskwright.structures import ImageBatch, Instances
from maskwright.systems import Loss
from maskwright.training.distributed import parallel, without_exchange
from maskwright.training.optimization import build_optimizer, set_trainable
from maskwright.training.run import Run
from maskwright.training.sources import training_source

Moved = tuple[ImageBatch, list[Instances], float]
"""A micro-batch on its device: images, targets, and its weight."""


@dataclass(frozen=True, eq=False)
class Learner:
    """What learns in a stage, and from what.

    Args:
        network: whose forward is the loss.
        optimizer: of its trainable parameters.
        source: what all processes learn from.
        batches: this process' micro-batches, from the run's step on.
    """

    stage: Stage
    network: nn.Module
    optimizer: torch.optim.Optimizer
    source: TrainingSource
    batches: Iterator[Batch]

    def set_rate(self, rate: float) -> None:
        """The learning rate of the next step; groups have factors of their own."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_factor"]


def begin_stage(run: Run, stage: Stage) -> Learner:
    """Free the parts that learn in a stage, and find what they learn from."""
    set_trainable(run.system, stage)
    optimizer = build_optimizer(run.system, stage.optimizer)
    proposals = None if run.given is None else run.given.train
    source = training_source(stage, run.system, run.train, run.recipe.seed + run.stage, proposals)
    uses_all = stage.patches is None and not stage.losses  # a kind of patches teaches some heads, as some terms do
    share = Share(stage.micro_batches, run.processes.rank, run.processes.count)
    return Learner(
        stage=stage,
        network=parallel(run.system, run.processes, uses_all=uses_all),
        optimizer=optimizer,
        source=source,
        batches=training_batches(source, workers=run.recipe.workers, share=share, start=run.step),
    )


def take_step(run: Run, learner: Learner) -> dict[str, float]:
    """One step over the micro-batches of a batch; the loss terms.

    Raises:
        ValueError: the loss or its gradient is not finite.
    """
    device = run.precision.device
    batches = list(islice(learner.batches, learner.stage.micro_batches))
    count = sum(len(b.images) for b in batches)
    moved = [(replace(b.images.to(device), num_in_step=count), [t.to(device) for t in b.targets], b.weight) for b in batches]
    learner.optimizer.zero_grad(set_to_none=True)
    values = {name: float(value) for name, value in run.processes.sum(_backward(run, learner, moved)).items()}
    learning = [p for group in learner.optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(learning, learner.stage.optimizer.clip_norm or float("inf"))
    if not all(value == value and abs(value) != float("inf") for value in values.values()) or not torch.isfinite(norm):
        raise ValueError(_not_finite(run, values, float(norm), [name for batch in batches for name in batch.names]))
    learner.optimizer.step()
    if run.average is not None:
        run.average.update_parameters(cast(nn.Module, run.system))
    for name, value in values.items():
        total, steps = run.sums.get(name, (0.0, 0))
        run.sums[name] = (total + value, steps + 1)
    return values


def _backward(run: Run, learner: Learner, batches: Sequence[Moved]) -> dict[str, Tensor]:
    """Gradients of a batch, one backward pass for each micro-batch; this process' part of the loss terms."""
    counts = _counts(run, batches, learner.stage) if len(batches) > 1 else None
    sums: dict[str, Tensor] = {}
    for i, (images, targets, weight) in enumerate(batches):
        with nullcontext() if i == len(batches) - 1 else without_exchange(learner.network):
            with run.precision.autocast():
                losses = learnt_terms(learner.network(images, targets), learner.stage)
            counts = counts or run.processes.sum({name: weight * loss.count for name, loss in losses.items()})
            terms = {name: _mean(weight * loss.total, counts[name]) for name, loss in losses.items()}
            whole = torch.stack(list(terms.values())).sum()
            torch.autograd.backward(whole * run.processes.count)  # several processes average their gradients
        for name, term in terms.items():
            sums[name] = sums.get(name, torch.zeros_like(term)) + term.detach()
    return sums


def learnt_terms(losses: dict[str, Loss], stage: Stage) -> dict[str, Loss]:
    """The terms a stage learns by.

    Raises:
        ValueError: a term the system does not have.
    """
    unknown = [name for name in stage.losses if name not in losses]
    if unknown:
        raise ValueError(f"the loss has no term {', '.join(unknown)}: there are {', '.join(losses)}")
    return {name: losses[name] for name in stage.losses} if stage.losses else losses


def _counts(run: Run, batches: Sequence[Moved], stage: Stage) -> dict[str, Tensor]:
    """What the terms are divided by over a whole batch, which must be known before its first backward pass."""
    counts: dict[str, Tensor] = {}
    with torch.no_grad(), run.precision.autocast():
        for images, targets, weight in batches:
            for name, loss in learnt_terms(run.system.loss(images, targets), stage).items():
                counts[name] = counts.get(name, torch.zeros_like(loss.count)) + weight * loss.count
    return run.processes.sum(counts)


def _mean(total: Tensor, count: Tensor) -> Tensor:
    """A term of the loss, divided by its count, if there is one."""
    return total / torch.where(count > 0, count, torch.ones_like(count))


def _not_finite(run: Run, values: dict[str, float], norm: float, names: Sequence[str]) -> str:
    terms = ", ".join(f"{name} {value:g}" for name, value in values.items())
    return (
        f"the loss or its gradient is not finite at step {run.step} ({terms}; gradient norm {norm:g}); the batch held "
        f"{', '.join(names)}. The last checkpoint is untouched. Look at these images and their annotations; "
        "if they are fine, lower optimizer.lr or set optimizer.clip_norm"
    )
