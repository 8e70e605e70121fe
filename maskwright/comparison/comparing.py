"""Several systems, runs or results files on one data set: train what is to be trained, score all alike, write one report."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from rich.console import Console

from maskwright.comparison.answers import Answered, from_files, from_model, from_runs, ranked_by, say_unscored, with_costs
from maskwright.comparison.costs import kept_costs
from maskwright.comparison.entries import Entry, parse_entries
from maskwright.comparison.plan import recipes
from maskwright.comparison.publishing import assemble, publish
from maskwright.comparison.request import Request
from maskwright.comparison.training import train_all
from maskwright.formats import open_datasets
from maskwright.formats.catalog import open_split
from maskwright.formats.coco_results import holds_keypoints
from maskwright.formats.dataset import Dataset
from maskwright.formats.files import read_json, write_json
from maskwright.inference import Model, load
from maskwright.inference.predictor import load_with
from maskwright.inference.scoring import match_categories
from maskwright.metrics import default_limits
from maskwright.metrics.detection import COCO_LIMITS, check_limits
from maskwright.recipes import find_recipe
from maskwright.recipes.recipe import DataChoices, check_names, data_options, parse_assignments
from maskwright.reports.ranking import Comparison
from maskwright.runs.checkpoints import learns_keypoints
from maskwright.systems import Task
from maskwright.training.timing import Budget

RESULTS, REPORT = "results.json", "report.html"


class ComparisonChoices(DataChoices, total=False):
    """What else may be said about a comparison.

    max_detections: limits on the detections of an image and class; by default 1, 10 and the most any model gives.
    by: rank all entries by "boxes", "masks" or "keypoints"; by default each by the finest it answers, in tables by task.
    """

    max_detections: Sequence[int] | None
    by: str | None


def compare(
    entries: Sequence[str],
    *,
    data: str | Path,
    out: str | Path = "compare",
    epochs: float | None = None,
    minutes: float | None = None,
    seeds: int = 3,
    changes: Sequence[str] = (),
    device: str = "auto",
    console: Console | None = None,
    **choices: Unpack[ComparisonChoices],
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
        choices: images, val_fraction, classes, skip_invalid, max_detections, by: see `DataChoices`, `ComparisonChoices`.

    Raises:
        ValueError: what the user can mend, before anything is trained where that can be known.
    """
    check_names(compare, choices, ComparisonChoices)
    request = Request(
        words=entries,
        entries=parse_entries(entries),
        data=data_options(data, choices),
        out=Path(out),
        budget=Budget(epochs, minutes),
        seeds=seeds,
        changes=changes,
        max_detections=choices.get("max_detections"),
        by=choices.get("by"),
        device=device,
        console=console or Console(markup=False),
    )
    request.check()
    return _compared(request)


def _compared(request: Request) -> Comparison:
    """The story of a comparison."""
    models = {entry.name: _opened(entry, request.device) for entry in request.entries if entry.runs}
    request = _with_keypoints(request, models)
    dataset = _open_data(request)
    for name, model in models.items():
        _check_model(request, name, model, dataset)
    files = {e.name: ranked_by(request.by, e.name, from_files(e.results, dataset)) for e in request.entries if e.results}
    weights = {e.name: list(e.runs) for e in request.entries if e.runs} | _train(request, dataset)
    for entry in request.entries:
        if entry.system:
            models[entry.name] = load(weights[entry.name][0], device=request.device, system=entry.system)
    limits = _limits(request, models)
    answered = files | _answers(request, models, weights, dataset, limit=limits[-1])
    answered = {entry.name: answered[entry.name] for entry in request.entries}
    title = f"Comparison on {Path(request.data.path).name}"
    comparison = assemble(dataset, answered, title=title, command=request.command(), limits=limits, console=request.console)
    write_json(request.out / RESULTS, comparison.to_dict(), indent=1)
    publish(comparison, dataset, answered, request.out / REPORT, request.console)
    return comparison


def _train(request: Request, dataset: Dataset) -> dict[str, list[Path]]:
    """Train what is to be trained; the last weights of every run."""
    plan = recipes(request.entries, request.data, request.changes, request.budget, request.out, request.device)
    folders = {
        e.name: [request.out / "runs" / f"{e.slug}-{n}" for n in range(request.seeds)] for e in request.entries if e.system
    }
    train_all(plan, folders, dataset, request.device, request.console)
    return {name: [folder / "last" for folder in runs] for name, runs in folders.items()}


def _limits(request: Request, models: Mapping[str, Model]) -> tuple[int, ...]:
    """On detections, the same for all."""
    most = max((model.system.max_detections for model in models.values()), default=COCO_LIMITS[-1])
    are_proposals = bool(models) and all(model.system.task == Task.PROPOSALS for model in models.values())
    return check_limits(request.max_detections or default_limits(most, of_proposals=are_proposals))


def _answers(
    request: Request, models: Mapping[str, Model], weights: Mapping[str, Sequence[Path]], dataset: Dataset, *, limit: int
) -> dict[str, Answered]:
    """What the models answer, and what they cost."""
    measured = kept_costs(models, weights, dataset, request.out, request.console)
    answered = {}
    for entry in request.entries:
        if not entry.results:
            found = from_runs(request, entry, weights[entry.name], models[entry.name], dataset, limit=limit)
            answered[entry.name] = with_costs(found, measured[entry.name])
    return answered


# Opening


def _opened(entry: Entry, device: str) -> Model:
    """The model of a run, after a look at all its seeds."""
    opened = [load_with(path, parse_assignments(entry.changes), device=device) for path in entry.runs]
    for path, model in zip(entry.runs, opened, strict=True):
        if model.card.system != opened[0].card.system:
            raise ValueError(f"{path}: is not of {opened[0].card.system} as {entry.runs[0]} is: make them two entries")
    return opened[0]


def _with_keypoints(request: Request, models: Mapping[str, Model]) -> Request:
    """Data with keypoints, if anything that is compared answers them."""
    planned = [find_recipe(entry.system).with_changes(entry.changes) for entry in request.entries if entry.system]
    trained = any(learns_keypoints(recipe.system, recipe.arguments) for recipe in planned)
    opened = any(model.system.task.has_keypoints for model in models.values())
    given = any(holds_keypoints(read_json(path)) for entry in request.entries for path in entry.results)
    return replace(request, data=request.data.model_copy(update={"keypoints": True})) if trained or opened or given else request


def _open_data(request: Request) -> Dataset:
    """The images everything is scored on."""
    options, entries = request.data, request.entries
    path, keypoints = Path(options.path), bool(options.keypoints)
    images = None if options.images is None else Path(options.images)
    how: dict[str, Any] = {"images": images, "classes": options.classes, "invalid": options.invalid, "keypoints": keypoints}
    if options.val_fraction is not None or any(entry.system for entry in entries):
        return open_datasets(path, val_fraction=options.val_fraction, **how)[1]
    return open_split(path, "val", needs_images=any(entry.runs for entry in entries), **how)


def _check_model(request: Request, name: str, model: Model, dataset: Dataset) -> None:
    """Make sure that a model can be scored on the data, and ranked."""
    if model.system.task != Task.PROPOSALS:
        match_categories(model.categories, dataset.categories, str(dataset.path), request.console)
    answered = ranked_by(request.by, name, from_model(model, dataset, []))
    say_unscored(model, answered, dataset, request.console)
