"""What entries answer on a data set: detections of runs and of files, and what they can be ranked by."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from torch import nn

from maskwright.comparison.entries import Entry
from maskwright.comparison.history import with_history
from maskwright.comparison.kept import kept, stamp
from maskwright.comparison.request import DECIDES, RANKINGS, Request
from maskwright.formats.coco_results import check_results
from maskwright.formats.dataset import Dataset
from maskwright.formats.files import read_json
from maskwright.inference import Model
from maskwright.inference.predictor import load_with
from maskwright.inference.scoring import detections, has_keypoints, has_masks
from maskwright.metrics.overlaps import Kind
from maskwright.recipes.recipe import parse_assignments
from maskwright.reports.ranking import Facts
from maskwright.runs.checkpoints import find_weights
from maskwright.structures import Intensity
from maskwright.systems import Task


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


def ranked_by(by: str | None, name: str, answered: Answered) -> Answered:
    """An entry as if it answered no more than it is ranked by."""
    if by is None:
        return answered
    task, kinds = RANKINGS[by]
    if answered.facts.task == Task.PROPOSALS or DECIDES[by] not in answered.kinds:
        raise ValueError(f"{name!r} answers {answered.facts.task}, which cannot be ranked by {by}: leave it out, or --by")
    kinds = tuple(kind for kind in kinds if kind in answered.kinds)  # somebody's results may have nothing beside the finest
    return replace(answered, facts=replace(answered.facts, task=task), kinds=kinds)


def from_runs(
    request: Request, entry: Entry, weights: Sequence[Path], model: Model, dataset: Dataset, *, limit: int
) -> Answered:
    """Detections of every run of an entry, kept in files.

    Args:
        weights: of the runs.
        model: the first of them.
        limit: objects of an image at most.
    """
    arguments = {} if entry.system else parse_assignments(entry.changes)
    device = model.device

    def make(number: int, path: Path) -> Callable[[], list[dict[str, Any]]]:
        key = {"weights": stamp(find_weights(path)), "data": stamp(dataset.path), "images": dataset.image_ids.tolist()}
        key |= {"classes": list(dataset.categories.names), "limit": limit, "arguments": arguments}
        file = request.out / "detections" / f"{entry.slug}-{number}.json"

        def answer() -> list[dict[str, Any]]:
            opened = load_with(path, arguments, device=device, system=entry.system)
            agnostic = opened.system.task == Task.PROPOSALS
            return detections(opened, dataset, limit=limit, console=request.console, class_agnostic=agnostic)

        return lambda: cast(list[dict[str, Any]], kept(file, key, answer))

    answered = from_model(model, dataset, [make(number, path) for number, path in enumerate(weights)])
    answered = ranked_by(request.by, entry.name, answered)
    folders = [path.parent if path.name in ("best", "last") else path for path in weights]
    facts = answered.facts if any(folder.is_file() for folder in folders) else with_history(answered.facts, folders)
    source = " ".join([entry.system, *entry.changes]) if entry.system else ", ".join(map(str, weights))
    commands = tuple(f"maskwright predict {shlex.quote(str(path))} IMAGES --out pred/" for path in weights)
    return replace(answered, facts=replace(facts, source=source, commands=commands))
