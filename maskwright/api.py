"""The verbs of the workbench as functions; the command line calls the same ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from maskwright.data.catalog import open_split
from maskwright.data.coco import Categories, CocoDataset
from maskwright.data.coco_results import check_results
from maskwright.data.files import read_json
from maskwright.data.loader import evaluation_batches
from maskwright.evaluation import DetectionMetrics, default_limits, detect, evaluate_detections
from maskwright.evaluation.detection import COCO_LIMITS
from maskwright.evaluation.overlaps import Kind
from maskwright.inference import Model, load
from maskwright.inference.writer import predict_files as predict
from maskwright.recipes import DataOptions, Recipe, find_recipe
from maskwright.recipes.recipe import read_recipe
from maskwright.runs.importing import import_weights
from maskwright.runs.progress import shown
from maskwright.systems import SYSTEMS, Task
from maskwright.training import train as train_recipe
from maskwright.training.loop import check_folder

__all__ = ["Evaluation", "evaluate", "import_weights", "load", "predict", "score", "train"]


def train(
    system: str,
    *,
    data: str | Path,
    out: str | Path,
    epochs: float | None = None,
    images: str | Path | None = None,
    val_fraction: float | None = None,
    classes: Sequence[str] | None = None,
    skip_invalid: bool = False,
    init: str | Path | None = None,
    changes: Sequence[str] = (),
    device: str = "auto",
    console: Console | None = None,
) -> DetectionMetrics:
    """Train a system on a data set.

    Args:
        system: a name in `maskwright systems`, or "package.module:builder".
        data: a folder with train and val splits, or one annotation file.
        out: the run folder to make.
        epochs: in place of the recipe's, for every stage.
        images: image folder of a single annotation file.
        val_fraction: share of a single file's images that is kept for validation.
        classes: names of the classes to use; by default all.
        skip_invalid: leave bad annotations out instead of stopping.
        init: a run or weights file to start from.
        changes: further recipe fields, like "optimizer.lr=0.01".
        device: "auto", "cpu", "cuda", …
        console: where progress is shown.

    Returns:
        Metrics on the validation split at the end.

    Raises:
        ValueError: what the user can mend, with the remedy.
    """
    recipe = find_recipe(system)
    if epochs is not None:
        recipe = recipe.with_changes([f"epochs={epochs}"])
    recipe = recipe.with_changes(changes)
    options = DataOptions(
        path=str(data),
        images=None if images is None else str(images),
        val_fraction=val_fraction,
        classes=None if classes is None else tuple(classes),
        invalid="skip" if skip_invalid else "stop",
    )
    recipe = recipe.model_copy(update={"data": options})
    return train_recipe(recipe, Path(out), init=None if init is None else Path(init), device=device, console=console)


def resume(out: str | Path, *, device: str = "auto", console: Console | None = None) -> DetectionMetrics:
    """Go on with a run from its last checkpoint.

    Raises:
        ValueError: nothing to resume, other data than before, or a system from outside the package.
    """
    check_folder(Path(out), resume=True)
    recipe: Recipe = read_recipe(Path(out) / "recipe.yaml")
    if recipe.system not in SYSTEMS:
        raise ValueError(f"{out}: trains {recipe.system!r}, which is not part of maskwright: a folder alone never imports code")
    return train_recipe(recipe, Path(out), resume=True, device=device, console=console)


@dataclass(frozen=True)
class Evaluation:
    """Metrics by kind, "bbox", "segm" and "boundary", and the detections they were computed from."""

    metrics: dict[Kind, DetectionMetrics]
    results: list[dict[str, Any]]


def evaluate(
    run: str | Path | Model,
    *,
    data: str | Path,
    split: Literal["train", "val"] = "val",
    images: str | Path | None = None,
    max_detections: Sequence[int] | None = None,
    class_agnostic: bool = False,
    skip_invalid: bool = False,
    arguments: Mapping[str, Any] | None = None,
    device: str = "auto",
    console: Console | None = None,
) -> Evaluation:
    """Score a model on a data set by COCO's protocol.

    Classes are matched by name; where no name is known, by original id.

    Args:
        run: a run folder, a weights file, or a model already loaded.
        data: a folder with splits, or one annotation file with `images`.
        max_detections: limits on the detections of an image; AP uses the last. By default 1, 10 and the model's own number.
        class_agnostic: whether an object counts as found whatever class it was given.
        arguments: of the system in place of the saved ones, where `run` is a path; for example {"short_px": 600}.

    Raises:
        ValueError: data that cannot be read, or whose classes the model does not know.
    """
    model = run if isinstance(run, Model) else load(run, device=device, **(arguments or {}))
    dataset = open_split(
        Path(data), split, images=None if images is None else Path(images), invalid="skip" if skip_invalid else "stop"
    )
    console = console or Console(markup=False)
    if class_agnostic:
        categories = Categories(model.names, (dataset.categories.ids[0],) * len(model.names))
    else:
        categories = match_categories(model.categories, dataset.categories, str(data), console)
    limits = default_limits(model.system.max_detections) if max_detections is None else max_detections
    limit = max(limits)
    batches = evaluation_batches(dataset, spec=model.system.input, batch_size=4)
    with shown(console, "evaluate", total=len(dataset)) as bar:
        results = detect(
            lambda batch: model.detect(batch, max_detections=limit), batches, categories, device=model.device, done=bar.advance
        )
    known = set(dataset.categories.ids)
    results = [entry for entry in results if entry["category_id"] in known]
    kinds: list[Kind] = ["bbox"]
    if model.system.task == Task.INSTANCES and _has_masks(dataset):
        kinds += ["segm", "boundary"]
    return Evaluation(
        evaluate_detections(dataset, results, kinds=kinds, max_detections=limits, class_agnostic=class_agnostic), results
    )


def score(
    predictions: str | Path,
    *,
    data: str | Path,
    split: Literal["train", "val"] = "val",
    max_detections: Sequence[int] | None = None,
    class_agnostic: bool = False,
    skip_invalid: bool = False,
) -> Evaluation:
    """Score anybody's COCO results file; images are not needed.

    Args:
        predictions: a list of COCO results, or what `maskwright predict` wrote.
        data: a folder with splits, or the annotation file itself.
    """
    path = Path(data)
    invalid: Literal["stop", "skip"] = "skip" if skip_invalid else "stop"
    dataset = open_split(path, split, invalid=invalid, needs_images=False)
    results = check_results(Path(predictions), read_json(Path(predictions)), dataset)
    if not results:
        raise ValueError(f"{predictions}: there are no results to score")
    kinds: list[Kind] = []
    if all("bbox" in entry for entry in results):
        kinds.append("bbox")
    if all("segmentation" in entry for entry in results) and _has_masks(dataset):
        kinds += ["segm", "boundary"]
    if not kinds:
        raise ValueError(f"{predictions}: some results have a 'bbox' and others a 'segmentation': give all of them one or both")
    limits = COCO_LIMITS if max_detections is None else max_detections
    return Evaluation(
        evaluate_detections(dataset, results, kinds=kinds, max_detections=limits, class_agnostic=class_agnostic), results
    )


def match_categories(model: Categories, data: Categories, where: str, console: Console) -> Categories:
    """The model's classes with the ids the data has for them; -1 for a class the data does not have.

    Classes are matched by name; by id only where the names are mere numbers.

    Raises:
        ValueError: nothing in common.
    """
    ids = dict(zip(data.names, data.ids, strict=True))
    if any(name in ids for name in model.names):
        unscored = [name for name in model.names if name not in ids]
        unknown = [name for name in data.names if name not in model.names]
        if unscored:
            console.print(f"not scored, as {where} has no such class: {', '.join(unscored)}", highlight=False)
        if unknown:
            console.print(f"unknown to the model: {', '.join(unknown)}", highlight=False)
        return Categories(model.names, tuple(ids.get(name, -1) for name in model.names))
    nameless = all(name.isdigit() for name in data.names) or all(name.isdigit() for name in model.names)
    if nameless and set(model.ids) == set(data.ids):
        return model
    raise ValueError(
        f"{where}: its classes ({', '.join(data.names)}) have no names in common with the model's "
        f"({', '.join(model.names)}): evaluate on data of the same classes"
    )


def _has_masks(dataset: CocoDataset) -> bool:
    """Whether masks can be scored; some without a segmentation would count as never found."""
    without = dataset.ids_without_mask()
    if 0 < len(without) < dataset.num_instances:
        raise ValueError(
            f"{dataset.path}: {len(without)} of {dataset.num_instances} annotations have no segmentation, for example "
            f"{', '.join(map(str, without[:5]))}: add them, or remove all to score boxes"
        )
    return not without
