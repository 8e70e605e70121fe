"""A run is opened: everything that can be checked is checked before the first step, then its folder is begun."""

from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from torch import nn

from maskwright.data.loader import Share
from maskwright.formats.dataset import Categories, Dataset
from maskwright.formats.files import read_json, write_json
from maskwright.recipes import Recipe
from maskwright.runs import choose_precision
from maskwright.runs.checkpoints import WEIGHTS, read_model
from maskwright.runs.starting import arguments_of
from maskwright.structures import KeypointSchema
from maskwright.systems import System
from maskwright.training.distributed import Processes
from maskwright.training.fitting import fitted
from maskwright.training.network import new_system, starting_weights, suited
from maskwright.training.optimization import moving_average, set_trainable
from maskwright.training.proposals import proposals_of
from maskwright.training.run import RECIPE, SPLIT, STATE, Run
from maskwright.training.sources import open_data, split_of, training_source, validation_batches
from maskwright.training.step import learnt_terms

SHOWN_PAIRS = 3  # of keypoints


def open_run(
    recipe: Recipe,
    out: Path,
    init: str | Path | None,
    *,
    resume: bool,
    device: str,
    processes: Processes,
    console: Console,
) -> Run:
    """Check everything that can be checked before the first step, then write the folder."""
    if recipe.data is None:
        raise ValueError("the recipe names no data")
    check_folder(out, resume=resume)
    for stage in recipe.stages:
        if stage.batch_size % (stage.micro_batches * processes.count):
            parts = f"{stage.micro_batches} parts on each of {processes.count} processes"
            raise ValueError(f"a batch of {stage.batch_size} cannot be computed in {parts}: change batch_size")
    precision = choose_precision(recipe.precision, device)
    train_set, val_set = open_data(recipe, say=partial(console.print, highlight=False))
    if resume and recipe.flip_pairs is None:
        train_set = _flipped_as_before(train_set, out)
    recipe = _resolved(recipe, init, train_set, console)
    system, card = new_system(recipe, train_set, console)
    for stage in recipe.stages:
        set_trainable(system, stage)  # complains of parts that do not exist
        if stage.patches is not None:
            training_source(stage, system, train_set, recipe.seed, None)  # complains where there is nothing to cut out
    _check_annotations(recipe, system, train_set, val_set)
    if not resume:
        recipe = starting_weights(system, recipe, card, init, console)
    cast(nn.Module, system).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    system.train()
    given = proposals_of(recipe, system, train_set, val_set, precision=precision, processes=processes, console=console)
    if given is not None:
        card = replace(card, proposer=given.card)
    run = Run(
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


def _resolved(recipe: Recipe, init: str | Path | None, train_set: Dataset, console: Console) -> Recipe:
    """The recipe with all that depends on the weights to start from, and on the data."""
    kept: dict[str, Any] = {}
    if init is not None:
        recipe = suited(recipe, init, console)
        kept = arguments_of(init) if recipe.fit_sizes else {}
    return fitted(recipe, train_set, partial(console.print, highlight=False, soft_wrap=True), kept)


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


def _check_annotations(recipe: Recipe, system: System, train_set: Dataset, val_set: Dataset) -> None:
    """Make sure that the data has what the system and the recipe need to know of it."""
    if system.task.has_masks and not (train_set.has_masks and val_set.has_masks):
        raise ValueError(
            f"{train_set.path}: some annotations have no segmentation, which {recipe.system} needs: train a box system"
        )
    if any(stage.augment.copy_paste for stage in recipe.stages) and not train_set.has_masks:
        raise ValueError(
            f"{train_set.path}: some annotations have no segmentation, which augment.copy_paste needs: leave it away"
        )
    if recipe.patience is not None and val_set.num_instances == 0:
        raise ValueError(f"{val_set.path}: has no objects, so that no score could end a stage: leave patience away")


def _flipped_as_before(dataset: Dataset, out: Path) -> Dataset:
    """With the keypoints that trade places in flips since a run began; by their names, another version may find others."""
    known, found = read_model(out / "last" / WEIGHTS)[1].categories.keypoints, dataset.categories.keypoints
    if known is None or found is None or known.names != found.names:
        return dataset
    return dataset.with_schema(replace(found, flip_pairs=known.flip_pairs))


def _check_same_data(run: Run, split: dict[str, Any]) -> None:
    """Make sure that a run that goes on has the images and classes it began with."""
    if read_json(run.out / SPLIT) != split:
        raise ValueError(f"{run.out / SPLIT}: the images of the data set have changed since the run began: start a new one")
    if (known := read_model(run.out / "last" / WEIGHTS)[1].categories) != run.card.categories:
        before, now = _listed(known), _listed(run.card.categories)
        raise ValueError(f"{run.train.path}: its classes are {now}, but were {before} when the run began: start a new one")


def _listed(categories: Categories) -> str:
    return ", ".join(f"{name} (id {number})" for name, number in zip(categories.names, categories.ids, strict=True))


def _check_terms(run: Run) -> None:
    """Complain now, not hours later, of terms of the loss that a stage names and the system does not have."""
    run.system.eval()  # leaves running statistics alone
    for stage in run.recipe.stages:
        proposals = None if run.given is None else run.given.val
        batches = validation_batches(stage, run.system, run.val, Share(), proposals) if stage.losses else iter(())
        for batch in islice(batches, 1):
            with torch.inference_mode(), run.precision.autocast():
                targets = [t.to(run.precision.device) for t in batch.targets]
                learnt_terms(run.system.loss(batch.images.to(run.precision.device), targets), stage)
    run.system.train()


def _introduce(run: Run) -> None:
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
    schema = run.train.categories.keypoints
    if schema is not None and any(stage.augment.horizontal_flip for stage in run.recipe.stages):
        run.console.print(_flips_in_words(schema, run.recipe), highlight=False, markup=False)
    if run.val.num_instances == 0:
        run.console.print(f"{run.val.path}: no objects in the validation images: no AP, the last model is kept as the best")
    for dataset in (run.train, run.val):
        if dataset.problems:
            run.console.print(f"{dataset.path}: {len(dataset.problems)} bad entries left out, the first: {dataset.problems[0]}")


def _flips_in_words(schema: KeypointSchema, recipe: Recipe) -> str:
    """Which keypoints trade places in left-right flips."""
    words = "keypoints that trade places in left-right flips: "
    pairs = [f"{schema.names[a]}/{schema.names[b]}" for a, b in schema.flip_pairs]
    if pairs:
        more = f" and {len(pairs) - SHOWN_PAIRS} more pairs" if len(pairs) > SHOWN_PAIRS else ""
        return f"{words}{', '.join(pairs[:SHOWN_PAIRS])}{more}"
    if recipe.flip_pairs is not None or len(schema.names) < 2:
        return f"{words}none"
    named = f'--set "flip_pairs=[[{schema.names[0]}, {schema.names[1]}]]"'
    return (
        f"{words}none, as no two names differ in left and right alone: each stays what it is. Name those that do with {named}, "
        "or set augment.horizontal_flip=0"
    )
