"""The training loop: one function to read from top to bottom.

A step is: batches → loss terms with their counts → one backward pass for each micro-batch → clipped gradients → optimizer →
moving average. At the end of an epoch the averaged model is scored on the validation set and saved. Under torchrun every
process does its share of each batch and of the validation set, and the first one writes.
"""

import json
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from maskwright.data.loader import Batch, Share, TrainingSource, evaluation_batches, training_batches
from maskwright.formats import Dataset
from maskwright.formats.dataset import Categories
from maskwright.formats.files import read_json, write_json, write_text
from maskwright.layers.backbones import Backbone, ImageNetPart
from maskwright.layers.norms import has_frozen_norms
from maskwright.metrics import DetectionMetrics, default_limits, detect, evaluate_detections
from maskwright.metrics.detection import KIND_ADJECTIVES, percent, proposal_limits
from maskwright.metrics.overlaps import Kind
from maskwright.recipes import Recipe, Stage
from maskwright.runs import ModelCard, Precision, choose_precision, initialize, save_model
from maskwright.runs.checkpoints import (
    ORIGIN,
    PROPOSER,
    WEIGHTS,
    all_arguments,
    build_system,
    find_backbone,
    learns_keypoints,
    read_model,
    read_tensors,
    save_tensors,
)
from maskwright.runs.device import return_freed_memory
from maskwright.runs.progress import shown
from maskwright.structures import ImageBatch, Instances
from maskwright.systems import Loss, System, Task
from maskwright.training.distributed import Processes, joined, own_device, parallel, without_exchange
from maskwright.training.optimization import build_optimizer, learning_rate_factor, moving_average, set_trainable
from maskwright.training.proposals import GivenProposals, proposals_of
from maskwright.training.scales import octaves_of_data
from maskwright.training.sources import open_data, split_of, training_source, validation_batches
from maskwright.weights import load_backbone, load_part

STATE, RECIPE, SPLIT, METRICS = "training.safetensors", "recipe.yaml", "split.json", "metrics.jsonl"
POSITION = ("stage", "step", "best", "time_s", "sums")  # of a run, kept in its checkpoints
WARM_UP, TIMED = 2, 8  # steps, when it is measured how long one takes
KINDS: dict[Task, list[Kind]] = {
    Task.INSTANCES: ["bbox", "segm"],
    Task.BOXES: ["bbox"],
    Task.PROPOSALS: ["bbox", "segm"],
    Task.KEYPOINTS: ["bbox", "keypoints"],
    Task.MASKS_AND_KEYPOINTS: ["bbox", "segm", "keypoints"],
}
"""What a task is scored on; the last decides which model is best."""
PROPOSAL = Categories(("object",), (1,))  # the one class of systems that do not tell classes apart


@dataclass
class _Run:
    """What a run carries from step to step."""

    recipe: Recipe
    out: Path
    card: ModelCard
    system: System
    train: Dataset
    val: Dataset
    precision: Precision
    console: Console
    processes: Processes
    average: AveragedModel | None
    given: GivenProposals | None
    stage: int = 0
    step: int = 0  # of the stage
    best: float | None = None  # AP of the best model, negative where there is nothing to find
    time_s: float = 0.0  # spent on the steps so far, evaluation and saving included
    sums: dict[str, tuple[float, int]] = field(default_factory=dict)  # loss terms since the last report, and their steps

    @property
    def scored(self) -> System:
        """The model that is evaluated and kept: the averaged one where there is one."""
        return self.system if self.average is None else cast(System, self.average.module)


def train(
    recipe: Recipe,
    out: Path,
    *,
    init: Path | None = None,
    resume: bool = False,
    device: str = "auto",
    console: Console | None = None,
) -> DetectionMetrics:
    """Train a recipe into a run folder.

    Args:
        recipe: with its data filled in.
        out: the run folder; must be new, unless resuming.
        init: a run or weights file of the same network to start from, whatever its classes.
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
        run = _open_run(recipe, out, init, resume=resume, device=device, processes=processes, console=console)
        metrics: DetectionMetrics | None = None
        state = _restore(run) if resume else None
        while run.stage < len(recipe.stages):
            metrics = _train_stage(run, recipe.stages[run.stage], state) or metrics
            run.stage, run.step, state = run.stage + 1, 0, None
            run.system.load_state_dict(run.scored.state_dict())  # a stage builds on what the one before would have kept
        where = f"the best model is in {out / 'best'}, the last in {out / 'last'}, the metrics in {out / METRICS}"
        console.print(where, highlight=False, soft_wrap=True)
        if metrics is None:
            metrics = _evaluate(run, recipe.stages[-1].model_copy(update={"is_scored": True}))[1][-1]
        return metrics


def seconds_per_epoch(recipe: Recipe, *, device: str = "auto") -> list[float]:
    """How long the steps of an epoch of each stage take here, measured on a few of them; nothing is kept."""
    answer = []
    with TemporaryDirectory() as folder, joined(own_device(device)) as processes:
        console = Console(quiet=True)
        run = _open_run(
            recipe, Path(folder, "run"), None, resume=False, device=own_device(device), processes=processes, console=console
        )
        for run.stage, stage in enumerate(recipe.stages):
            set_trainable(run.system, stage)
            optimizer = build_optimizer(run.system, stage.optimizer)
            for group in optimizer.param_groups:
                group["lr"] = 0.0  # the weights are those of a beginning, all the time
            source, network = _source(run, stage), _parallel(run, stage)
            batches = _batches(run, stage, source)
            times = []
            for _ in range(WARM_UP + TIMED):
                began = time.monotonic()
                _step(run, network, optimizer, list(islice(batches, stage.micro_batches)), stage)
                times.append(time.monotonic() - began)
            answer.append(statistics.median(times[WARM_UP:]) * len(source.batches(0)))
    return answer


def _train_stage(run: _Run, stage: Stage, state: dict[str, Tensor] | None) -> DetectionMetrics | None:
    """All steps of a stage from `run.step` on; metrics of its last evaluation."""
    set_trainable(run.system, stage)
    optimizer = build_optimizer(run.system, stage.optimizer)
    if state is not None:
        _restore_optimizer(optimizer, state)
    source, network = _source(run, stage), _parallel(run, stage)
    per_epoch = len(source.batches(0))
    total = max(1, round(stage.epochs * per_epoch))
    batches = _batches(run, stage, source)
    run.console.print(f"training: {total:,} {stage.in_words(run.processes.count)}", highlight=False)
    if run.step == 0:
        _save_last(run, optimizer)  # so that a run can be resumed from its first moment
        if run.processes.is_first:
            write_text(run.out / RECIPE, run.recipe.to_yaml())
    metrics = None
    with shown(run.console, "train", total=total, done=run.step) as bar:
        tick = time.monotonic()
        while run.step < total:
            factor = learning_rate_factor(stage.schedule, run.step, total)
            for group in optimizer.param_groups:
                group["lr"] = stage.lr * factor * group["lr_factor"]
            losses = _step(run, network, optimizer, list(islice(batches, stage.micro_batches)), stage)
            run.step += 1
            run.time_s, tick = run.time_s + time.monotonic() - tick, time.monotonic()
            bar.advance(note=f"loss {sum(losses.values()):.3f}")
            epoch, within = divmod(run.step, per_epoch)
            if run.step == total or (within == 0 and epoch % run.recipe.evaluate_every == 0):
                with bar.hidden():
                    metrics = _report(run, stage, optimizer, epoch=run.step / per_epoch)
            elif within == 0 or (run.recipe.checkpoint_steps and run.step % run.recipe.checkpoint_steps == 0):
                _save_last(run, optimizer)
    return metrics


def _source(run: _Run, stage: Stage) -> TrainingSource:
    proposals = None if run.given is None else run.given.train
    return training_source(stage, run.system, run.train, run.recipe.seed + run.stage, proposals)


def _parallel(run: _Run, stage: Stage) -> nn.Module:
    uses_all = stage.patches is None and not stage.losses  # a kind of patches teaches some heads, as some terms do
    return parallel(run.system, run.processes, uses_all=uses_all)


def _batches(run: _Run, stage: Stage, source: TrainingSource) -> Iterator[Batch]:
    """This process' micro-batches of a stage, from the run's step on."""
    share = Share(stage.micro_batches, run.processes.rank, run.processes.count)
    return training_batches(source, workers=run.recipe.workers, share=share, start=run.step)


def _step(
    run: _Run, network: nn.Module, optimizer: torch.optim.Optimizer, batches: Sequence[Batch], stage: Stage
) -> dict[str, float]:
    """One step of the optimizer over the micro-batches of a batch; the loss terms."""
    device, processes = run.precision.device, run.processes
    count = sum(len(b.images) for b in batches)
    moved = [(replace(b.images.to(device), num_in_step=count), [t.to(device) for t in b.targets], b.weight) for b in batches]
    counts = _counts(run, moved, stage) if len(moved) > 1 else None
    sums: dict[str, Tensor] = {}
    optimizer.zero_grad(set_to_none=True)
    for i, (images, targets, weight) in enumerate(moved):
        with nullcontext() if i == len(moved) - 1 else without_exchange(network):
            with run.precision.autocast():
                losses = _learnt(network(images, targets), stage)
            counts = counts or processes.sum({name: weight * loss.count for name, loss in losses.items()})
            terms = {name: _mean(weight * loss.total, counts[name]) for name, loss in losses.items()}
            whole = torch.stack(list(terms.values())).sum()
            torch.autograd.backward(whole * processes.count)  # several processes average their gradients
        for name, term in terms.items():
            sums[name] = sums.get(name, torch.zeros_like(term)) + term.detach()
    values = {name: float(value) for name, value in processes.sum(sums).items()}
    learning = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(learning, stage.optimizer.clip_norm or float("inf"))
    if not all(value == value and abs(value) != float("inf") for value in values.values()) or not torch.isfinite(norm):
        raise ValueError(_not_finite(run, values, float(norm), [name for batch in batches for name in batch.names]))
    optimizer.step()
    if run.average is not None:
        run.average.update_parameters(cast(nn.Module, run.system))
    for name, value in values.items():
        total, steps = run.sums.get(name, (0.0, 0))
        run.sums[name] = (total + value, steps + 1)
    return values


def _learnt(losses: dict[str, Loss], stage: Stage) -> dict[str, Loss]:
    """The terms a stage learns by.

    Raises:
        ValueError: a term the system does not have.
    """
    unknown = [name for name in stage.losses if name not in losses]
    if unknown:
        raise ValueError(f"the loss has no term {', '.join(unknown)}: there are {', '.join(losses)}")
    return {name: losses[name] for name in stage.losses} if stage.losses else losses


def _counts(run: _Run, batches: Sequence[tuple[ImageBatch, list[Instances], float]], stage: Stage) -> dict[str, Tensor]:
    """What the terms are divided by over a whole batch, which must be known before its first backward pass."""
    counts: dict[str, Tensor] = {}
    with torch.no_grad(), run.precision.autocast():
        for images, targets, weight in batches:
            for name, loss in _learnt(run.system.loss(images, targets), stage).items():
                counts[name] = counts.get(name, torch.zeros_like(loss.count)) + weight * loss.count
    return run.processes.sum(counts)


def _mean(total: Tensor, count: Tensor) -> Tensor:
    """A term of the loss, divided by its count, if there is one."""
    return total / torch.where(count > 0, count, torch.ones_like(count))


def _not_finite(run: _Run, values: dict[str, float], norm: float, names: Sequence[str]) -> str:
    terms = ", ".join(f"{name} {value:g}" for name, value in values.items())
    return (
        f"the loss or its gradient is not finite at step {run.step} ({terms}; gradient norm {norm:g}); the batch held "
        f"{', '.join(names)}. The last checkpoint is untouched. Look at these images and their annotations; "
        "if they are fine, lower optimizer.lr or set optimizer.clip_norm"
    )


# Evaluation


def _evaluate(run: _Run, stage: Stage) -> tuple[dict[str, float], list[DetectionMetrics]]:
    """Loss terms and metrics of the kept model on the validation set, the metric that decides last."""
    system, processes = run.scored, run.processes
    system.eval()
    with torch.inference_mode(), run.precision.autocast():
        totals = _validation_losses(run, stage)
        results = _validation_results(run) if stage.is_scored else []
    system.train()
    answer = None
    if gathered := processes.gather((results, totals)):
        names = {name for _, part in gathered for name in part}
        losses = {name: _share_of_sums([part[name] for _, part in gathered if name in part]) for name in sorted(names)}
        everything = [entry for part, _ in gathered for entry in part]
        answer = losses, _score(run, everything) if stage.is_scored else []
    losses, scores = processes.tell(answer)
    return_freed_memory()  # validation images have sizes of their own
    return losses, scores


def _validation_losses(run: _Run, stage: Stage) -> dict[str, list[float]]:
    """This process' total and count of each term over the validation batches."""
    totals: dict[str, list[float]] = {}
    device, share = run.precision.device, Share(1, run.processes.rank, run.processes.count)
    proposals = None if run.given is None else run.given.val
    for batch in validation_batches(stage, run.scored, run.val, share, proposals):
        losses = run.scored.loss(batch.images.to(device), [t.to(device) for t in batch.targets])
        for name, loss in losses.items():
            total, count = totals.setdefault(name, [0.0, 0.0])
            totals[name] = [total + batch.weight * float(loss.total), count + batch.weight * float(loss.count)]
    return totals


def _validation_results(run: _Run) -> list[dict[str, Any]]:
    """Detections in this process' share of the validation images."""
    mine = run.val.subset(range(run.processes.rank, len(run.val), run.processes.count))
    proposals = None if run.given is None else run.given.val
    batches = evaluation_batches(mine, spec=run.scored.input, batch_size=4, proposals=proposals)
    categories = run.val.categories
    if run.scored.task == Task.PROPOSALS:
        categories = Categories(PROPOSAL.names, categories.ids[:1])  # classes are ignored
    with shown(run.console, "validate", total=len(mine)) as bar:
        return detect(run.scored.predict, batches, categories, device=run.precision.device, done=bar.advance)


def _score(run: _Run, results: list[dict[str, Any]]) -> list[DetectionMetrics]:
    task, most = run.system.task, run.system.max_detections
    is_agnostic = task == Task.PROPOSALS
    limits = proposal_limits(most) if is_agnostic else default_limits(most)
    metrics = evaluate_detections(run.val, results, kinds=KINDS[task], max_detections=limits, class_agnostic=is_agnostic)
    return list(metrics.values())


def _share_of_sums(parts: Sequence[Sequence[float]]) -> float:
    """A loss term from the totals and counts of several processes."""
    total, count = (sum(part[i] for part in parts) for i in range(2))
    return total / (count or 1.0)


def _report(run: _Run, stage: Stage, optimizer: torch.optim.Optimizer, *, epoch: float) -> DetectionMetrics | None:
    """Evaluate, save, and write a line of metrics.jsonl; the metric that decides, where there is one."""
    training = {name: total / steps for name, (total, steps) in run.sums.items()}
    run.sums = {}
    validation, metrics = _evaluate(run, stage)
    decisive = metrics[-1] if metrics else None
    score = -1.0 if decisive is None else decisive.ar[-1] if run.system.task == Task.PROPOSALS else decisive.ap
    improved = decisive is not None and (run.best is None or score > run.best or score < 0)  # nothing to find: take the last
    if decisive is not None:
        run.best = score if run.best is None else max(run.best, score)
    line: dict[str, Any] = {
        "stage": run.stage,
        "epoch": round(epoch, 3),
        "step": run.step,
        "time_s": round(run.time_s, 1),
        "lr": optimizer.param_groups[0]["lr"],
        "train_loss": training,
        "val_loss": validation,
        **{m.kind: m.to_dict() for m in metrics},
    }
    if run.processes.is_first:  # what comes last makes the others count; a run killed in between does them again
        if improved:
            save_model(run.out / "best", run.card, _weights(run))
        with (run.out / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    _save_last(run, optimizer)
    parts = [f"loss {sum(training.values()):.3f}", f"validation loss {sum(validation.values()):.3f}"]
    parts += [_in_words(m, run.system.task) for m in metrics]
    run.console.print(f"epoch {epoch:.4g}: {', '.join(parts)}{' (best)' if improved else ''}")
    return decisive


def _in_words(m: DetectionMetrics, task: Task) -> str:
    what = KIND_ADJECTIVES[m.kind]
    if task == Task.PROPOSALS:
        return f"{what} " + " ".join(f"AR@{n} {percent(ar)}" for n, ar in zip(m.max_detections, m.ar, strict=True))
    return f"{what} AP {percent(m.ap)} AP50 {percent(m.ap50)}"


# Checkpoints


def _save_last(run: _Run, optimizer: torch.optim.Optimizer) -> None:
    """The kept model, and beside it all that training needs to go on."""
    if not run.processes.is_first:
        return
    save_model(run.out / "last", run.card, _weights(run))
    tensors = {f"model.{name}": tensor for name, tensor in run.system.state_dict().items()}
    if run.average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in run.average.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in values.items() if value is not None}
    position = {name: getattr(run, name) for name in POSITION}
    save_tensors(run.out / "last" / STATE, tensors, {"training": position})


def _weights(run: _Run) -> dict[str, Tensor]:
    """Of the kept model, and of the system that makes its proposals."""
    brought = {} if run.given is None else run.given.weights
    return {**run.scored.state_dict(), **{f"{PROPOSER}{name}": tensor for name, tensor in brought.items()}}


def _restore(run: _Run) -> dict[str, Tensor]:
    """Load the last checkpoint into the run; what belongs to the optimizer is returned."""
    tensors, metadata = read_tensors(run.out / "last" / STATE)
    position = metadata["training"]
    for name in POSITION:
        setattr(run, name, position[name])
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    run.system.load_state_dict(parts["model"])
    if run.average is not None:
        run.average.load_state_dict(parts["average"])
    if run.processes.is_first:
        _tidy(run)
    return parts["optimizer"]


def _tidy(run: _Run) -> None:
    """Remove what a killed run left behind: temporary files, and metrics of steps that are done again."""
    for temporary in run.out.rglob(".*.tmp"):
        temporary.unlink()
    if not (run.out / METRICS).is_file():
        return
    kept = []
    for text in (run.out / METRICS).read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:  # cut off
            continue
        if (line["stage"], line["step"]) <= (run.stage, run.step):
            kept.append(text)
    write_text(run.out / METRICS, "".join(f"{text}\n" for text in kept))


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        like = parameters[int(index)]  # in whose order of memory updates are fast
        state.setdefault(int(index), {})[key] = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


# Beginning


def _open_run(
    recipe: Recipe,
    out: Path,
    init: Path | None,
    *,
    resume: bool,
    device: str,
    processes: Processes,
    console: Console,
) -> _Run:
    """Check everything that can be checked before the first step, then write the folder."""
    if recipe.data is None:
        raise ValueError("the recipe names no data")
    check_folder(out, resume=resume)
    for stage in recipe.stages:
        if stage.batch_size % (stage.micro_batches * processes.count):
            parts = f"{stage.micro_batches} parts on each of {processes.count} processes"
            raise ValueError(f"a batch of {stage.batch_size} cannot be computed in {parts}: change batch_size")
    precision = choose_precision(recipe.precision, device)
    train_set, val_set = open_data(recipe)
    system, card = new_system(recipe, train_set, console)
    for stage in recipe.stages:
        set_trainable(system, stage)  # complains of parts that do not exist
        if stage.patches is not None:
            training_source(stage, system, train_set, recipe.seed, None)  # complains where there is nothing to cut out
    if system.task.has_masks and not (train_set.has_masks and val_set.has_masks):
        raise ValueError(
            f"{train_set.path}: some annotations have no segmentation, which {recipe.system} needs: train a box system"
        )
    if not resume:
        _starting_weights(system, recipe, card, init, console)
    cast(nn.Module, system).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    system.train()
    given = proposals_of(recipe, system, train_set, val_set, precision=precision, processes=processes, console=console)
    if given is not None:
        card = replace(card, proposer=given.card)
    run = _Run(
        recipe=recipe,
        out=out,
        card=card,
        system=system,
        train=train_set,
        val=val_set,
        precision=precision,
        console=console,
        processes=processes,
        average=moving_average(system, recipe.ema_decay) if recipe.ema_decay else None,
        given=given,
    )
    _check_terms(run)
    split = split_of((train_set, val_set))
    processes.tell(None)  # all have looked at the folder before the first one writes
    if resume:
        _check_same_data(run, split)
    elif processes.is_first:
        write_json(out / SPLIT, split)
    _introduce(run)
    return run


def _check_same_data(run: _Run, split: dict[str, Any]) -> None:
    """Make sure that a run that goes on has the images and classes it began with."""
    if read_json(run.out / SPLIT) != split:
        raise ValueError(f"{run.out / SPLIT}: the images of the data set have changed since the run began: start a new one")
    if (known := read_model(run.out / "last" / WEIGHTS)[1].categories) != run.card.categories:
        before, now = _listed(known), _listed(run.card.categories)
        raise ValueError(f"{run.train.path}: its classes are {now}, but were {before} when the run began: start a new one")


def _check_terms(run: _Run) -> None:
    """Complain now, not hours later, of terms of the loss that a stage names and the system does not have."""
    run.system.eval()  # leaves running statistics alone
    for stage in run.recipe.stages:
        proposals = None if run.given is None else run.given.val
        batches = validation_batches(stage, run.system, run.val, Share(), proposals) if stage.losses else iter(())
        for batch in islice(batches, 1):
            with torch.inference_mode(), run.precision.autocast():
                targets = [t.to(run.precision.device) for t in batch.targets]
                _learnt(run.system.loss(batch.images.to(run.precision.device), targets), stage)
    run.system.train()


def new_system(recipe: Recipe, train_set: Dataset, console: Console) -> tuple[System, ModelCard]:
    """The network with its first weights, and what it takes to build it again."""
    arguments = all_arguments(recipe.system, {"num_classes": len(train_set.categories), **recipe.arguments})
    if learns_keypoints(recipe.system, recipe.arguments):
        assert train_set.categories.keypoints is not None
        joints = len(train_set.categories.keypoints.names)
        if recipe.arguments.get("num_keypoints", joints) != joints:
            raise ValueError(f"{train_set.path}: has {joints} keypoints: leave arguments.num_keypoints away")
        arguments["num_keypoints"] = joints
    if recipe.octaves_from_data and "octaves" not in recipe.arguments:
        arguments["octaves"] = octaves_of_data(recipe, arguments, train_set, lambda text: console.print(text, highlight=False))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)  # of the initial weights, for which torch takes no generator
        system = build_system(recipe.system, arguments)
    system.input = replace(system.input, intensity=recipe.intensity)
    categories = train_set.categories
    if system.task == Task.PROPOSALS:
        arguments["num_classes"], categories = 1, PROPOSAL
    return system, ModelCard(recipe.system, arguments, categories, system.input)


def check_folder(out: Path, *, resume: bool) -> None:
    """A run begins in a folder without one; recipe.yaml, written after the first checkpoint, says that there is one.

    Raises:
        ValueError: the folder is not what it should be.
    """
    has_run = (out / RECIPE).is_file()
    if resume and not (has_run and (out / "last" / STATE).is_file()):
        raise ValueError(f"{out}: there is no checkpoint to resume from: start the run anew without --resume")
    if not resume and out.exists():
        unfinished = {SPLIT, "last"} if not has_run else set()  # killed before its first checkpoint was whole
        if any(path.name not in unfinished and path.suffix != ".tmp" for path in out.iterdir()):
            raise ValueError(f"{out}: the folder is not empty: choose another --out, or go on with --resume")


def _starting_weights(system: System, recipe: Recipe, card: ModelCard, init: Path | None, console: Console) -> None:
    """Weights to start from: those of another run, of ImageNet, or none where the norms can do without."""
    backbones, others = _pretrained_parts(system)
    if recipe.backbone_weights is not None:
        origin = card.arguments.get("weights_origin", ORIGIN)
        if recipe.backbone_weights == "timm" and origin != "timm":
            raise ValueError(f"timm's weights do not fit a ResNet of {origin}: leave arguments.weights_origin as it is")
        source = find_backbone(recipe.backbone_weights, card)
        for part in backbones:
            load_backbone(part.network, part.name, source)
        for other in others:
            load_part(other, str(other.pretrained), other.sources, source)
    if init is not None:
        initialize(system, card, init, lambda text: console.print(text, highlight=False))
    else:
        check_start(system, recipe)


def _pretrained_parts(system: System) -> tuple[list[Backbone], list[ImageNetPart]]:
    """What may begin with weights of an ImageNet network."""
    others = [part for part in system.modules() if isinstance(part, ImageNetPart) and part.pretrained is not None]
    return [part for part in system.modules() if isinstance(part, Backbone)], others


def check_start(system: System, recipe: Recipe) -> None:
    """Make sure that no weights are missing which training cannot make.

    Raises:
        ValueError: there are frozen parts, and nothing pretrained for them.
    """
    backbones, others = _pretrained_parts(system)
    inside = {module for part in (*backbones, *others) for module in part.modules()}
    if has_frozen_norms(module for module in system.modules() if module not in inside):
        raise ValueError(
            f"{recipe.system} has frozen norms outside the backbone, which only make sense with pretrained weights: "
            "add --init RUN|FILE, or train them with --set arguments.branch_norm=group"
        )
    if recipe.backbone_weights is None and (has_frozen_norms(system.modules()) or _never_learns(system, recipe)):
        raise ValueError(
            f"{recipe.system} has frozen norms or parts, which only make sense with pretrained weights: add --init RUN|FILE, "
            "--set backbone_weights=FILE (or =timm to download them), or train norms from scratch with "
            "--set arguments.norm=group --set frozen=[]"
        )


def _never_learns(system: System, recipe: Recipe) -> bool:
    """Whether some parameter is frozen in every stage."""
    names = [name for name, _ in system.named_parameters()]
    return any(all(name.startswith(stage.frozen) for stage in recipe.stages) for name in names)


def _listed(categories: Categories) -> str:
    return ", ".join(f"{name} (id {number})" for name, number in zip(categories.names, categories.ids, strict=True))


def _introduce(run: _Run) -> None:
    """Say what is about to happen."""
    count = sum(p.numel() for p in run.system.parameters())
    spec = run.system.input
    short, long = spec.resize.short_px, spec.resize.long_px
    size = "images as large as they are" if short is None else f"short side {short} px"
    size += f", long side at most {long} px" if long is not None else ""
    several = f", {run.processes.count} processes" if run.processes.count > 1 else ""
    run.console.print(
        f"{run.recipe.system}: {count / 1e6:.2f} M parameters, {run.precision.name} on {run.precision.device}{several}\n"
        f"data: {len(run.train)} training and {len(run.val)} validation images, {run.train.num_instances} and "
        f"{run.val.num_instances} objects, classes {', '.join(run.train.categories.names)}\n"
        f"input: {size}; images of more than 8 bits: {spec.intensity}",
        highlight=False,
    )
    if run.val.num_instances == 0:
        run.console.print(f"{run.val.path}: no objects in the validation images: no AP, the last model is kept as the best")
    for dataset in (run.train, run.val):
        if dataset.problems:
            run.console.print(f"{dataset.path}: {len(dataset.problems)} bad entries left out, the first: {dataset.problems[0]}")
