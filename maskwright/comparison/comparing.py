"""Several systems, runs or results files on one data set: train what is to be trained, score all alike, write one report."""

import json
import os
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from torch import nn

from maskwright.comparison.plan import Budget, Entry, parse_entries, recipes
from maskwright.comparison.running import costs, kept, train_run
from maskwright.data import open_datasets
from maskwright.data.catalog import open_split
from maskwright.data.coco import CocoDataset
from maskwright.data.coco_results import check_results
from maskwright.data.files import read_json, write_json
from maskwright.evaluation import default_limits
from maskwright.evaluation.comparison import Comparison, Facts, Protocol, tabulate
from maskwright.evaluation.detection import COCO_LIMITS, check_limits
from maskwright.evaluation.gallery import Group, gallery
from maskwright.evaluation.overlaps import Kind
from maskwright.evaluation.report import write_report
from maskwright.evaluation.statistics import RESAMPLES, image_weights
from maskwright.evaluation.study import Study, study
from maskwright.inference import Model, load
from maskwright.inference.scoring import detections, has_masks
from maskwright.recipes import DataOptions, Recipe
from maskwright.recipes.recipe import parse_assignments
from maskwright.runs.checkpoints import find_weights
from maskwright.runs.device import machine_line
from maskwright.runs.progress import shown
from maskwright.structures import Intensity
from maskwright.systems import Task
from maskwright.training.loop import METRICS, RECIPE

RESULTS, REPORT = "results.json", "report.html"
FEWER_RESAMPLES, MANY = 400, 1000  # so many images vary less


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
    out: str | Path,
    epochs: float | None = None,
    minutes: float | None = None,
    seeds: int = 3,
    changes: Sequence[str] = (),
    options: DataOptions | None = None,
    max_detections: Sequence[int] | None = None,
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

    Raises:
        ValueError: what the user can mend, before anything is trained where that can be known.
    """
    out, console = Path(out), console or Console(markup=False)
    parsed = parse_entries(entries)
    if not parsed or seeds < 1:
        raise ValueError("got nothing to compare: name at least one system, run folder or results file, and at least one seed")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("compare is one process: start it without torchrun, or train runs with torchrun and compare those")
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not _is_ours(out))):
        raise ValueError(f"{out}: is not the folder of a comparison: choose another --out")
    options = (options or DataOptions(path=str(data))).model_copy(update={"path": str(data)})
    dataset = _validation_set(options, parsed)
    for entry in parsed:
        for path in entry.results:  # all that can be wrong with them is said before hours of training
            check_results(path, read_json(path), dataset)
    budget = Budget(epochs, minutes)
    plan = recipes(parsed, options, changes, budget, out, device)
    runs = _train(plan, parsed, out, seeds, device, console)
    answered, limits = _answer(parsed, runs, dataset, max_detections, out, device, console)
    command = _command(entries, options, out, budget, seeds, changes, max_detections)
    comparison = assemble(
        dataset,
        answered,
        title=f"Comparison on {Path(data).name}",
        command=command,
        limits=limits,
        out=out / REPORT,
        console=console,
    )
    write_json(out / RESULTS, comparison.to_dict(), indent=1)
    return comparison


def _answer(
    entries: Sequence[Entry],
    runs: Mapping[str, Sequence[Path]],
    dataset: CocoDataset,
    max_detections: Sequence[int] | None,
    out: Path,
    device: str,
    console: Console,
) -> tuple[dict[str, Answered], tuple[int, ...]]:
    """Detections of all entries, and the limits on them, the same for all."""
    arguments = {e.name: {} if e.system else parse_assignments(e.changes) for e in entries}
    systems = {e.name: e.system for e in entries}
    models = {n: load(paths[0], device=device, system=systems[n], **arguments[n]) for n, paths in runs.items()}
    most = max((model.system.max_detections for model in models.values()), default=COCO_LIMITS[-1])
    limits = check_limits(max_detections or default_limits(most))
    measured = _costs(models, runs, dataset, out, console)
    answered = {}
    for entry in entries:
        if entry.results:
            answered[entry.name] = from_files(entry.results, dataset)
        else:
            found = _from_runs(entry, runs[entry.name], models[entry.name], dataset, limits[-1], out, console)
            answered[entry.name] = with_costs(found, measured[entry.name])
    return answered, limits


def assemble(
    dataset: CocoDataset,
    answered: Mapping[str, Answered],
    *,
    title: str,
    command: str,
    limits: Sequence[int],
    out: Path,
    console: Console,
    split: str = "val",
    class_agnostic: bool = False,
) -> Comparison:
    """Study all detections, rank them and write the page."""
    resamples = RESAMPLES if len(dataset) <= MANY else FEWER_RESAMPLES
    weights = image_weights(len(dataset), resamples=resamples)
    studies: dict[str, list[Study]] = {}
    with shown(console, "study", total=sum(len(entry.results) for entry in answered.values())) as bar:
        for name, entry in answered.items():
            for results in entry.results:
                agnostic = class_agnostic or entry.facts.task == Task.PROPOSALS
                studies.setdefault(name, []).append(
                    study(
                        dataset, results(), kinds=entry.kinds, max_detections=limits, weights=weights, class_agnostic=agnostic
                    )
                )
                bar.advance()
    tables = tabulate(studies, {name: entry.facts for name, entry in answered.items()})
    gone = sum(not dataset.image_path(i).is_file() for i in range(len(dataset)))
    notes = [f"No pictures: {gone} of {len(dataset)} images are not there."] if gone else []
    if any(row.seeds == 1 for table in tables for row in table.rows):
        notes.append("Where there is one seed, what is said holds for these weights; another training may come out otherwise.")
    comparison = Comparison(
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
    groups: list[Group] = []
    if not gone:
        intensity = next(iter(answered.values())).intensity
        groups = gallery(dataset, tables, lambda name: answered[name].results[0](), intensity)
    write_report(out, comparison, groups)
    console.print(f"report written to {out}", highlight=False, soft_wrap=True)
    return comparison


# Entries


def from_files(paths: Sequence[Path], dataset: CocoDataset) -> Answered:
    """Somebody's COCO results."""

    def read(path: Path) -> list[dict[str, Any]]:
        return check_results(path, read_json(path), dataset)

    first = from_results(paths[0], read(paths[0]), dataset)
    facts = replace(first.facts, source=", ".join(map(str, paths)))
    return replace(first, facts=facts, results=[lambda path=path: read(path) for path in paths])  # type: ignore[misc]


def from_results(path: Path, results: list[dict[str, Any]], dataset: CocoDataset) -> Answered:
    """Somebody's COCO results, read and checked."""
    kinds = kinds_of(path, results, dataset)
    task = Task.INSTANCES if "segm" in kinds else Task.BOXES
    return Answered(Facts(task=task, source=str(path)), [lambda: results], kinds, Intensity())


def kinds_of(path: Path, results: Sequence[dict[str, Any]], dataset: CocoDataset) -> list[Kind]:
    """What somebody's results can be scored on.

    Raises:
        ValueError: nothing in them, or a mixture.
    """
    if not results:
        raise ValueError(f"{path}: there are no results to score")
    kinds: list[Kind] = ["bbox"] if all("bbox" in entry for entry in results) else []
    if all("segmentation" in entry for entry in results) and has_masks(dataset):
        kinds += ["segm", "boundary"]
    if not kinds:
        raise ValueError(f"{path}: some results have a 'bbox' and others a 'segmentation': give all of them one or both")
    return kinds


def from_model(model: Model, dataset: CocoDataset, results: Sequence[Callable[[], list[dict[str, Any]]]]) -> Answered:
    """What a model answered."""
    masks = model.system.task == Task.INSTANCES and has_masks(dataset)
    kinds: list[Kind] = ["bbox", "segm", "boundary"] if masks else ["bbox"]
    task = Task.BOXES if model.system.task == Task.INSTANCES and not masks else model.system.task
    parameters = sum(p.numel() for p in cast(nn.Module, model.system).parameters())
    facts = Facts(task=task, source=model.card.system, parameters=parameters)
    return Answered(facts, results, kinds, model.system.input.intensity)


def with_costs(answered: Answered, measured: Mapping[str, float | None]) -> Answered:
    """With what `costs` found."""
    facts = replace(answered.facts, image_ms=measured["image_ms"], memory_mb=measured["memory_mb"])
    return replace(answered, facts=facts)


def with_history(facts: Facts, folders: Sequence[Path]) -> Facts:
    """What run folders tell about their training."""
    histories = [tuple(_points(folder / METRICS)) for folder in folders]
    lengths = [history[-1]["time_s"] for history in histories if history]
    recipe = folders[0] / RECIPE
    return replace(
        facts,
        steps=int(histories[0][-1]["step"]) if histories[0] else None,
        training_s=sum(lengths) / len(lengths) if lengths else None,
        histories=tuple(histories),
        recipe=recipe.read_text(encoding="utf-8") if recipe.is_file() else None,
    )


def _points(path: Path) -> Iterable[dict[str, float]]:
    """The training curve of a run, steps of all stages in a row."""
    if not path.is_file():
        return
    before, stage, last = 0, 0, 0
    for text in path.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        if line["stage"] != stage:
            before, stage = before + last, line["stage"]
        last = line["step"]
        yield {
            "step": float(before + last),
            "time_s": line["time_s"],
            "ap": line["segm" if "segm" in line else "bbox"]["ap"],
            "train_loss": sum(line["train_loss"].values()),
            "val_loss": sum(line["val_loss"].values()),
        }


def _from_runs(
    entry: Entry, weights: Sequence[Path], model: Model, dataset: CocoDataset, limit: int, out: Path, console: Console
) -> Answered:
    """Detections of every run of an entry, kept in files."""
    arguments = {} if entry.system else parse_assignments(entry.changes)
    device = model.device

    def make(number: int, path: Path) -> Callable[[], list[dict[str, Any]]]:
        key = {"weights": _stamp(find_weights(path)), "data": _stamp(dataset.path), "images": dataset.image_ids.tolist()}
        key |= {"classes": list(dataset.categories.names), "limit": limit, "arguments": arguments}
        file = out / "detections" / f"{entry.slug}-{number}.json"

        def answer() -> list[dict[str, Any]]:
            opened = load(path, device=device, system=entry.system, **arguments)
            return detections(opened, dataset, limit=limit, console=console)

        return lambda: cast(list[dict[str, Any]], kept(file, key, answer))

    answered = from_model(model, dataset, [make(number, path) for number, path in enumerate(weights)])
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


def _train(
    plan: Mapping[str, Recipe], entries: Sequence[Entry], out: Path, seeds: int, device: str, console: Console
) -> dict[str, list[Path]]:
    """Train what is left, seed by seed; where the weights of each entry are.

    What was trained is taken as it is after its last step: nothing is chosen on the images it is scored on.
    """
    for seed in range(seeds):
        for name, recipe in plan.items():
            folder = _folder(out, next(entry for entry in entries if entry.name == name), seed)
            console.print(f"{name}, seed {seed}: {folder}", highlight=False, soft_wrap=True)
            train_run(recipe.with_changes([f"seed={seed}"]), folder, device=device, console=console)
    trained = {e.name: [_folder(out, e, seed) / "last" for seed in range(seeds)] for e in entries if e.system}
    return {e.name: trained[e.name] if e.system else list(e.runs) for e in entries if not e.results}


def _folder(out: Path, entry: Entry, seed: int) -> Path:
    return out / "runs" / f"{entry.slug}-{seed}"


def _costs(
    models: Mapping[str, Model], runs: Mapping[str, Sequence[Path]], dataset: CocoDataset, out: Path, console: Console
) -> dict[str, dict[str, float | None]]:
    """Time and memory of all models, measured together."""
    if not models:
        return {}
    key = {name: _stamp(find_weights(paths[0])) for name, paths in runs.items()}
    found: dict[str, dict[str, float | None]] = kept(out / "costs.json", key, lambda: costs(models, dataset, console))
    return found


def _validation_set(options: DataOptions, entries: Sequence[Entry]) -> CocoDataset:
    """The images everything is scored on."""
    path = Path(options.path)
    images = None if options.images is None else Path(options.images)
    if options.val_fraction is not None or any(entry.system for entry in entries):
        return open_datasets(
            path, images=images, val_fraction=options.val_fraction, classes=options.classes, invalid=options.invalid
        )[1]
    return open_split(
        path,
        "val",
        images=images,
        classes=options.classes,
        invalid=options.invalid,
        needs_images=any(entry.runs for entry in entries),
    )


def _is_ours(out: Path) -> bool:
    return any((out / name).exists() for name in (RESULTS, "runs", "detections", "plan.json", "costs.json"))


def _command(
    entries: Sequence[str],
    options: DataOptions,
    out: Path,
    budget: Budget,
    seeds: int,
    changes: Sequence[str],
    max_detections: Sequence[int] | None,
) -> str:
    """What makes this comparison again."""
    words = ["maskwright", "compare", *entries, "--data", options.path]
    for name, value in (
        ("--images", options.images),
        ("--val-fraction", options.val_fraction),
        ("--classes", None if options.classes is None else ",".join(options.classes)),
        ("--epochs", budget.epochs),
        ("--minutes", budget.minutes),
        ("--max-detections", None if max_detections is None else ",".join(map(str, max_detections))),
        ("--seeds", seeds),
    ):
        if value is not None:
            words += [name, f"{value:g}" if isinstance(value, float) else str(value)]
    for change in changes:
        words += ["--set", change]
    if options.invalid == "skip":
        words.append("--skip-invalid")
    return shlex.join([*words, "--out", str(out)])
