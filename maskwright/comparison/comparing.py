"""Several systems, runs or results files on one data set: train what is to be trained, score all alike, write one report."""

import json
import math
import os
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from torch import nn

from maskwright.comparison.plan import PLAN, Budget, Entry, parse_entries, recipes
from maskwright.comparison.running import check_run, costs, kept, train_run
from maskwright.formats import open_datasets
from maskwright.formats.catalog import open_split
from maskwright.formats.coco_results import check_results, holds_keypoints
from maskwright.formats.dataset import Dataset
from maskwright.formats.files import read_json, write_json
from maskwright.inference import Model, load
from maskwright.inference.predictor import load_with
from maskwright.inference.scoring import detections, has_keypoints, has_masks, match_categories
from maskwright.metrics import default_limits
from maskwright.metrics.detection import COCO_LIMITS, check_limits, proposal_limits
from maskwright.metrics.overlaps import Kind
from maskwright.metrics.proposal_study import study_proposals
from maskwright.metrics.statistics import RESAMPLES, image_weights
from maskwright.metrics.studies import Study, study
from maskwright.recipes import DataOptions, Recipe, find_recipe
from maskwright.recipes.recipe import parse_assignments
from maskwright.reports.gallery import Group, gallery
from maskwright.reports.page import write_report
from maskwright.reports.tables import Comparison, Facts, Protocol, decisive, tabulate
from maskwright.runs.checkpoints import all_arguments, find_weights
from maskwright.runs.device import machine_line
from maskwright.runs.progress import shown
from maskwright.structures import Intensity
from maskwright.systems import Task, find_builder
from maskwright.training.network import check_start, new_system
from maskwright.training.optimization import set_trainable
from maskwright.training.proposals import check_proposals
from maskwright.training.run import METRICS, RECIPE
from maskwright.training.sources import open_data, split_of

RESULTS, REPORT = "results.json", "report.html"
FEWER_RESAMPLES, MANY = 400, 1000  # so many images vary less
FEW = 20  # images, on which a bootstrap says too much


@dataclass(frozen=True, eq=False)
class Answered:
    """An entry whose detections are there, or can be had.

    Args:
        results: of each seed, original category ids; called more than once.
        kinds: of overlap to score.
        intensity: how its images are read.
    """

    facts: Facts
    results: Sequence[Callable[[], list[dict[str, Any]]]]
    kinds: Sequence[Kind]
    intensity: Intensity


def compare(
    entries: Sequence[str],
    *,
    data: str | Path,
    out: str | Path = "compare",
    epochs: float | None = None,
    minutes: float | None = None,
    seeds: int = 3,
    changes: Sequence[str] = (),
    options: DataOptions | None = None,
    max_detections: Sequence[int] | None = None,
    by: str | None = None,
    device: str = "auto",
    console: Console | None = None,
) -> Comparison:
    """Compare systems, runs and anybody's results on one data set; write report.html and results.json.

    Stopped at any moment and called again, it goes on where it was; entries can be added to a folder later.

    Args:
        entries: each "[NAME: ]WHAT... [name=value...]", where WHAT is a system to train, or run folders, or COCO results files.
        data: a folder with train and val splits; everything is scored on val.
        out: the folder to write into.
        epochs, minutes: how long each run is trained, one of them; by default as long as the recipes say.
        seeds: runs of each system that is trained.
        changes: recipe fields for all that is trained, like "augment.vertical_flip=0.5".
        options: further choices about the data: image folder, validation share, classes, bad annotations.
        max_detections: limits on the detections of an image and class; by default 1, 10 and the most any model gives.
        by: rank all entries by "boxes", "masks" or "keypoints"; by default each by the finest it answers, in tables by task.

    Raises:
        ValueError: what the user can mend, before anything is trained where that can be known.
    """
    out, console = Path(out), console or Console(markup=False)
    parsed = parse_entries(entries)
    _check_request(parsed, seeds, by)
    _check_place(out)
    options = (options or DataOptions(path=str(data))).model_copy(update={"path": str(data)})
    models = {entry.name: _opened(entry, device) for entry in parsed if entry.runs}
    options = _with_keypoints(options, parsed, models)
    dataset = _open_data(options, parsed)
    for name, model in models.items():
        _check_model(name, model, dataset, by, console)
    answered = {e.name: _ranked_by(by, e.name, from_files(e.results, dataset)) for e in parsed if e.results}
    budget = Budget(epochs, minutes)
    plan = recipes(parsed, options, changes, budget, out, device)
    folders = {e.name: [out / "runs" / f"{e.slug}-{seed}" for seed in range(seeds)] for e in parsed if e.system}
    _train(plan, folders, dataset, device, console)
    for entry in parsed:
        if entry.system:
            models[entry.name] = load(folders[entry.name][0] / "last", device=device, system=entry.system)
    weights = {e.name: [f / "last" for f in folders[e.name]] if e.system else list(e.runs) for e in parsed if not e.results}
    found, limits = _answer(parsed, models, weights, dataset, max_detections, by, out, console)
    answered = {e.name: (answered | found)[e.name] for e in parsed}
    command = _command(entries, options, out, budget, seeds, changes, max_detections, by)
    title = f"Comparison on {Path(data).name}"
    comparison = assemble(dataset, answered, title=title, command=command, limits=limits, console=console)
    write_json(out / RESULTS, comparison.to_dict(), indent=1)
    publish(comparison, dataset, answered, out / REPORT, console)
    return comparison


def _answer(
    entries: Sequence[Entry],
    models: Mapping[str, Model],
    weights: Mapping[str, Sequence[Path]],
    dataset: Dataset,
    max_detections: Sequence[int] | None,
    by: str | None,
    out: Path,
    console: Console,
) -> tuple[dict[str, Answered], tuple[int, ...]]:
    """What the models answer, and the limits on detections, the same for all."""
    most = max((model.system.max_detections for model in models.values()), default=COCO_LIMITS[-1])
    are_proposals = bool(models) and all(model.system.task == Task.PROPOSALS for model in models.values())
    limits = check_limits(max_detections or (proposal_limits(most) if are_proposals else default_limits(most)))
    measured = _costs(models, weights, dataset, out, console)
    answered = {}
    for entry in entries:
        if not entry.results:
            found = _from_runs(entry, weights[entry.name], models[entry.name], dataset, limits[-1], by, out, console)
            answered[entry.name] = with_costs(found, measured[entry.name])
    return answered, limits


def _check_place(out: Path) -> None:
    """A comparison goes into a folder of its own, and is one process.

    Raises:
        ValueError: neither empty nor a comparison's; or several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("compare is one process: start it without torchrun, or train runs with torchrun and compare those")
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / PLAN).is_file())):
        raise ValueError(f"{out}: is not the folder of a comparison: choose another --out")


def assemble(
    dataset: Dataset,
    answered: Mapping[str, Answered],
    *,
    title: str,
    command: str,
    limits: Sequence[int],
    console: Console,
    split: str = "val",
    class_agnostic: bool = False,
) -> Comparison:
    """Study all detections, and rank them."""
    resamples = RESAMPLES if len(dataset) <= MANY else FEWER_RESAMPLES
    weights = image_weights(len(dataset), resamples=resamples)
    studies: dict[str, list[Study]] = {}
    with shown(console, "study", total=sum(len(entry.results) for entry in answered.values())) as bar:
        for name, entry in answered.items():
            for results in entry.results:
                how: dict[str, Any] = {"kinds": entry.kinds, "max_detections": limits, "weights": weights}
                if entry.facts.task == Task.PROPOSALS:
                    found = study_proposals(dataset, results(), **how)
                else:
                    found = study(dataset, results(), **how, class_agnostic=class_agnostic)
                studies.setdefault(name, []).append(found)
                bar.advance()
    there = sum(len(dataset.columns(i).labels) > 0 for i in range(len(dataset)))
    tables = tabulate(studies, {name: entry.facts for name, entry in answered.items()}, images=there)
    notes = []
    if there < FEW:
        notes.append(f"Only {there} images hold objects: intervals of so few are too narrow.")
    if any(row.seeds == 1 for table in tables for row in table.rows):
        notes.append("Where there is one seed, what is said holds for these weights; another training may come out otherwise.")
    return Comparison(
        title=title,
        protocol=Protocol(
            data=str(dataset.path),
            split=split,
            images=len(dataset),
            objects=dataset.num_instances,
            classes=dataset.categories.names,
            max_detections=tuple(limits),
            resamples=resamples,
        ),
        tables=tables,
        machine=machine_line(),
        command=command,
        notes=tuple(notes),
    )


def publish(comparison: Comparison, dataset: Dataset, answered: Mapping[str, Answered], out: Path, console: Console) -> None:
    """Write the page, with pictures where the images are there."""
    groups: list[Group] = []
    gone = sum(not dataset.image_path(i).is_file() for i in range(len(dataset)))
    if gone:
        note = f"No pictures: {gone} of {len(dataset)} images are not there."
        comparison = replace(comparison, notes=(*comparison.notes, note))
    else:
        intensity = next(iter(answered.values())).intensity
        groups = gallery(dataset, comparison.tables, lambda name: answered[name].results[0](), intensity)
    write_report(out, comparison, groups)
    console.print(f"report written to {out}", highlight=False, soft_wrap=True)


# Entries

RANKINGS: Mapping[str, tuple[Task, tuple[Kind, ...]]] = {
    "boxes": (Task.BOXES, ("bbox",)),
    "masks": (Task.INSTANCES, ("bbox", "segm", "boundary")),
    "keypoints": (Task.KEYPOINTS, ("bbox", "keypoints")),
}
"""What entries of several tasks can be ranked by, and what they are then scored on."""
DECIDES: Mapping[str, Kind] = {"boxes": "bbox", "masks": "segm", "keypoints": "keypoints"}


def _check_request(entries: Sequence[Entry], seeds: int, by: str | None) -> None:
    """Make sure that there is something to do, and that all that is trained can be ranked so.

    Raises:
        ValueError: nothing to compare, a ranking that is none, or a system that does not answer what it is to be ranked by.
    """
    if not entries or seeds < 1:
        raise ValueError("got nothing to compare: name at least one system, run folder or results file, and at least one seed")
    if by is None:
        return
    if by not in RANKINGS:
        raise ValueError(f"got the ranking {by!r}, expected {', '.join(RANKINGS)}")
    for entry in entries:
        if entry.system:
            with torch.device("meta"):  # a network without numbers
                task = find_builder(find_recipe(entry.system).system)(num_classes=1).task
            lacks = {"masks": not task.has_masks, "keypoints": not task.has_keypoints}.get(by, False)
            if lacks or task == Task.PROPOSALS:
                raise ValueError(f"{entry.name!r} answers {task}, which cannot be ranked by {by}: leave it out, or --by")


def _ranked_by(by: str | None, name: str, answered: Answered) -> Answered:
    """An entry as if it answered no more than it is ranked by."""
    if by is None:
        return answered
    task, kinds = RANKINGS[by]
    if answered.facts.task == Task.PROPOSALS or DECIDES[by] not in answered.kinds:
        raise ValueError(f"{name!r} answers {answered.facts.task}, which cannot be ranked by {by}: leave it out, or --by")
    kinds = tuple(kind for kind in kinds if kind in answered.kinds)  # somebody's results may have nothing beside the finest
    return replace(answered, facts=replace(answered.facts, task=task), kinds=kinds)


def from_files(paths: Sequence[Path], dataset: Dataset) -> Answered:
    """Somebody's COCO results."""

    def read(path: Path) -> list[dict[str, Any]]:
        return check_results(path, read_json(path), dataset)

    first, *others = [from_results(path, read(path), dataset) for path in paths]  # all that can be wrong is said at once
    if any(other.kinds != first.kinds for other in others):
        raise ValueError(f"{paths[0]} and {paths[1]} hold different things, boxes or masks or both: make them two entries")
    facts = replace(first.facts, source=", ".join(map(str, paths)))
    return replace(first, facts=facts, results=[lambda path=path: read(path) for path in paths])  # type: ignore[misc]


def from_results(path: Path, results: list[dict[str, Any]], dataset: Dataset) -> Answered:
    """Somebody's COCO results, read and checked."""
    kinds = kinds_of(path, results, dataset)
    return Answered(Facts(task=_task_of(kinds), source=str(path)), [lambda: results], kinds, Intensity())


def kinds_of(path: Path, results: Sequence[dict[str, Any]], dataset: Dataset) -> list[Kind]:
    """What somebody's results can be scored on.

    Raises:
        ValueError: nothing in them, or a mixture.
    """
    if not results:
        raise ValueError(f"{path}: there are no results to score")
    kinds: list[Kind] = ["bbox"] if all("bbox" in entry for entry in results) else []
    if all("segmentation" in entry for entry in results) and has_masks(dataset):
        kinds += ["segm", "boundary"]
    if all("keypoints" in entry for entry in results) and dataset.categories.keypoints is not None:
        kinds.append("keypoints")
    if not kinds:
        raise ValueError(f"{path}: some results lack what others have (bbox, segmentation, keypoints): give all the same")
    return kinds


def from_model(model: Model, dataset: Dataset, results: Sequence[Callable[[], list[dict[str, Any]]]]) -> Answered:
    """What a model answered."""
    task = model.system.task
    kinds: list[Kind] = ["bbox"]
    if task.has_masks and has_masks(dataset):
        kinds += ["segm"] if task == Task.PROPOSALS else ["segm", "boundary"]
    if task.has_keypoints and has_keypoints(model.categories, dataset):
        kinds.append("keypoints")
    if task != Task.PROPOSALS:
        task = _task_of(kinds)
    parameters = sum(p.numel() for p in cast(nn.Module, model.system).parameters())
    facts = Facts(task=task, source=model.card.system, parameters=parameters)
    return Answered(facts, results, kinds, model.system.input.intensity)


def say_unscored(model: Model, answered: Answered, dataset: Dataset, console: Console) -> None:
    """Tell of keypoints that the data does not have."""
    if model.system.task.has_keypoints and "keypoints" not in answered.kinds:
        console.print(f"{dataset.path}: has no keypoints: those of the model are not scored", highlight=False)


def _task_of(kinds: Sequence[Kind]) -> Task:
    """What is answered where so much can be scored."""
    if "keypoints" in kinds:
        return Task.MASKS_AND_KEYPOINTS if "segm" in kinds else Task.KEYPOINTS
    return Task.INSTANCES if "segm" in kinds else Task.BOXES


def with_costs(answered: Answered, measured: Mapping[str, float | None]) -> Answered:
    """With what `costs` found."""
    facts = replace(answered.facts, image_ms=measured["image_ms"], memory_mb=measured["memory_mb"])
    return replace(answered, facts=facts)


def with_history(facts: Facts, folders: Sequence[Path]) -> Facts:
    """What run folders tell about their training."""
    histories = [tuple(_points(folder / METRICS, Task(facts.task))) for folder in folders]
    lengths = [history[-1]["time_s"] for history in histories if history]
    recipe = folders[0] / RECIPE
    return replace(
        facts,
        steps=int(histories[0][-1]["step"]) if histories[0] else None,
        training_s=sum(lengths) / len(lengths) if lengths else None,
        histories=tuple(histories),
        recipe=recipe.read_text(encoding="utf-8") if recipe.is_file() else None,
    )


def _points(path: Path, task: Task) -> Iterable[dict[str, float]]:
    """The training curve of a run, steps of all stages in a row."""
    answers = {"keypoints": task.has_keypoints, "segm": task.has_masks, "bbox": True}
    if not path.is_file():
        return
    before, stage, last = 0, 0, 0
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:  # cut off when a run was killed
            continue
        if not isinstance(line, dict) or not {"stage", "step", "time_s", "train_loss", "val_loss"} <= line.keys():
            continue
        if line["stage"] != stage:
            before, stage = before + last, line["stage"]
        last = line["step"]
        scored = next((line[kind] for kind, is_answered in answers.items() if is_answered and kind in line), None)
        value = -1.0  # the metrics of a stage that is not scored are missing
        if scored is not None:
            value = scored["ar"][-1] if decisive(task) == "ar" else scored["ap"]
        yield {
            "step": float(before + last),
            "time_s": line["time_s"],
            "ap": value if value >= 0 else math.nan,
            "train_loss": sum(line["train_loss"].values()),
            "val_loss": sum(line["val_loss"].values()),
        }


def _from_runs(
    entry: Entry,
    weights: Sequence[Path],
    model: Model,
    dataset: Dataset,
    limit: int,
    by: str | None,
    out: Path,
    console: Console,
) -> Answered:
    """Detections of every run of an entry, kept in files."""
    arguments = {} if entry.system else parse_assignments(entry.changes)
    device = model.device

    def make(number: int, path: Path) -> Callable[[], list[dict[str, Any]]]:
        key = {"weights": _stamp(find_weights(path)), "data": _stamp(dataset.path), "images": dataset.image_ids.tolist()}
        key |= {"classes": list(dataset.categories.names), "limit": limit, "arguments": arguments}
        file = out / "detections" / f"{entry.slug}-{number}.json"

        def answer() -> list[dict[str, Any]]:
            opened = load_with(path, arguments, device=device, system=entry.system)
            agnostic = opened.system.task == Task.PROPOSALS
            return detections(opened, dataset, limit=limit, console=console, class_agnostic=agnostic)

        return lambda: cast(list[dict[str, Any]], kept(file, key, answer))

    answered = from_model(model, dataset, [make(number, path) for number, path in enumerate(weights)])
    answered = _ranked_by(by, entry.name, answered)
    folders = [path.parent if path.name in ("best", "last") else path for path in weights]
    facts = answered.facts if any(folder.is_file() for folder in folders) else with_history(answered.facts, folders)
    source = " ".join([entry.system, *entry.changes]) if entry.system else ", ".join(map(str, weights))
    commands = tuple(f"maskwright predict {shlex.quote(str(path))} IMAGES --out pred/" for path in weights)
    return replace(answered, facts=replace(facts, source=source, commands=commands))


def _stamp(path: Path) -> list[str | int]:
    """What tells one state of a file from another."""
    state = path.stat()
    return [str(path.resolve()), state.st_size, state.st_mtime_ns]


# Steps


def _with_keypoints(options: DataOptions, entries: Sequence[Entry], models: Mapping[str, Model]) -> DataOptions:
    """Data with keypoints, if anything that is compared answers them."""
    systems = [find_recipe(entry.system).system for entry in entries if entry.system]
    trained = any("num_keypoints" in all_arguments(system, {}) for system in systems)
    opened = any(model.system.task.has_keypoints for model in models.values())
    given = any(holds_keypoints(read_json(path)) for entry in entries for path in entry.results)
    return options.model_copy(update={"keypoints": True}) if trained or opened or given else options


def _open_data(options: DataOptions, entries: Sequence[Entry]) -> Dataset:
    """The images everything is scored on."""
    path, keypoints = Path(options.path), bool(options.keypoints)
    images = None if options.images is None else Path(options.images)
    how: dict[str, Any] = {"images": images, "classes": options.classes, "invalid": options.invalid, "keypoints": keypoints}
    if options.val_fraction is not None or any(entry.system for entry in entries):
        return open_datasets(path, val_fraction=options.val_fraction, **how)[1]
    return open_split(path, "val", needs_images=any(entry.runs for entry in entries), **how)


def _opened(entry: Entry, device: str) -> Model:
    """The model of a run, after a look at all its seeds."""
    opened = [load_with(path, parse_assignments(entry.changes), device=device) for path in entry.runs]
    for path, model in zip(entry.runs, opened, strict=True):
        if model.card.system != opened[0].card.system:
            raise ValueError(f"{path}: is not of {opened[0].card.system} as {entry.runs[0]} is: make them two entries")
    return opened[0]


def _check_model(name: str, model: Model, dataset: Dataset, by: str | None, console: Console) -> None:
    """Make sure that a model can be scored on the data, and ranked."""
    if model.system.task != Task.PROPOSALS:
        match_categories(model.categories, dataset.categories, str(dataset.path), console)
    answered = _ranked_by(by, name, from_model(model, dataset, []))
    say_unscored(model, answered, dataset, console)


def _check_plan(plan: Mapping[str, Recipe], dataset: Dataset) -> None:
    """Build what is to be trained, all of it before the first."""
    for name, recipe in plan.items():
        try:
            system, _ = new_system(recipe, dataset, Console(quiet=True))
            check_start(system, recipe)
            check_proposals(recipe, system)
            for stage in recipe.stages:
                set_trainable(system, stage)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None


def _train(
    plan: Mapping[str, Recipe],
    folders: Mapping[str, Sequence[Path]],
    dataset: Dataset,
    device: str,
    console: Console,
) -> None:
    """Train what is left, seed by seed.

    What was trained is taken as it is after its last step: nothing is chosen on the images it is scored on.
    """
    _check_plan(plan, dataset)
    runs = [
        (name, seed, recipe.with_changes([f"seed={seed}"]), folders[name][seed])
        for seed in range(max(map(len, folders.values()), default=0))
        for name, recipe in plan.items()
    ]
    images: dict[tuple[str, str], dict[str, list[int]]] = {}  # what a recipe learns from depends on so much of it
    for _, _, recipe, folder in runs:
        key = (recipe.system, recipe.train_on)
        if (folder / RECIPE).is_file():
            images[key] = images.get(key) or split_of(open_data(recipe, with_images=False))
            check_run(recipe, folder, images[key])
    for name, seed, recipe, folder in runs:
        console.print(f"{name}, seed {seed}: {folder}", highlight=False, soft_wrap=True)
        train_run(recipe, folder, device=device, console=console)


def _costs(
    models: Mapping[str, Model], weights: Mapping[str, Sequence[Path]], dataset: Dataset, out: Path, console: Console
) -> dict[str, dict[str, float | None]]:
    """Time and memory of all models, measured together."""
    if not models:
        return {}
    made_of = {
        name: [_stamp(find_weights(paths[0])), models[name].card.arguments, models[name].device, models[name].precision.name]
        for name, paths in weights.items()
    }
    key = json.loads(json.dumps({**made_of, "": [_stamp(dataset.path), torch.get_num_threads()]}))
    found: dict[str, dict[str, float | None]] = kept(out / "costs.json", key, lambda: costs(models, dataset, console))
    return found


def _command(
    entries: Sequence[str],
    options: DataOptions,
    out: Path,
    budget: Budget,
    seeds: int,
    changes: Sequence[str],
    max_detections: Sequence[int] | None,
    by: str | None,
) -> str:
    """What makes this comparison again."""
    words = ["maskwright", "compare", *entries, "--data", options.path]
    for name, value in (
        ("--images", options.images),
        ("--val-fraction", options.val_fraction),
        ("--classes", None if options.classes is None else ",".join(options.classes)),
        ("--minutes", budget.minutes),
        ("--max-detections", None if max_detections is None else ",".join(map(str, max_detections))),
        ("--seeds", seeds),
        ("--by", by),
    ):
        if value is not None:
            words += [name, str(value)]
    for change in [*([] if budget.epochs is None else [f"epochs={budget.epochs}"]), *changes]:
        words += ["--set", change]
    return shlex.join([*words, "--out", str(out)])
