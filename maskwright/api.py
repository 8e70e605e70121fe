"""The verbs of the workbench as functions; the command line calls the same ones."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from rich.console import Console

from maskwright.comparison import compare
from maskwright.comparison.answers import from_results
from maskwright.comparison.comparing import REPORT
from maskwright.comparison.scoring import Scoring, ScoringChoices, command, open_scoring, shell_words
from maskwright.formats.coco_results import check_results, holds_keypoints
from maskwright.formats.dataset import Dataset
from maskwright.formats.files import read_json
from maskwright.inference import Model, load
from maskwright.inference.predictor import load_with
from maskwright.inference.writer import predict_files as predict
from maskwright.metrics import DetectionMetrics
from maskwright.metrics.detection import COCO_LIMITS
from maskwright.metrics.evaluation import Evaluation
from maskwright.recipes import Recipe, find_recipe
from maskwright.recipes.recipe import DataChoices, check_names, data_options, read_recipe
from maskwright.runs.importing import import_weights
from maskwright.systems import SYSTEMS
from maskwright.training import train as train_recipe
from maskwright.training.opening import check_folder
from maskwright.training.run import RECIPE, SPLIT
from maskwright.training.sources import open_data
from maskwright.training.timing import Budget

__all__ = ["Evaluation", "compare", "evaluate", "import_weights", "load", "predict", "report", "resume", "score", "train"]


def train(
    system: str,
    *,
    data: str | Path,
    out: str | Path,
    epochs: float | None = None,
    minutes: float | None = None,
    init: str | Path | None = None,
    changes: Sequence[str] = (),
    device: str = "auto",
    console: Console | None = None,
    **choices: Unpack[DataChoices],
) -> DetectionMetrics:
    """Train a system on a data set.

    Args:
        system: a name in `maskwright systems` or `maskwright recipes`, or "package.module:builder".
        data: a folder with train and val splits, or one annotation file.
        out: the run folder to make.
        epochs: in place of the recipe's, for every stage.
        minutes: of training, in place of epochs, shared out among stages as their epochs would have been; the steps that fit
            are measured once. Validation takes its time beside them.
        init: a run or weights file to start from, or "coco" for the weights torchvision publishes of the system.
        changes: further recipe fields, like "optimizer.lr=0.01".
        device: "auto", "cpu", "cuda", …
        console: where progress is shown.
        choices: images, val_fraction, classes, skip_invalid: see `DataChoices`.

    Returns:
        Metrics on the validation split at the end.

    Raises:
        ValueError: what the user can mend, with the remedy.
    """
    check_names(train, choices, DataChoices)
    recipe = Budget(epochs, minutes).applied(find_recipe(system), changes)
    recipe = recipe.model_copy(update={"data": data_options(data, choices)})
    metrics = train_recipe(recipe, Path(out), init=init, minutes=minutes, device=device, console=console)
    _report_training(Path(out), recipe.system, device, console)
    return metrics


def resume(out: str | Path, *, device: str = "auto", console: Console | None = None) -> DetectionMetrics:
    """Go on with a run from its last checkpoint.

    Raises:
        ValueError: nothing to resume, other data than before, or a system from outside the package.
    """
    check_folder(Path(out), resume=True)
    recipe: Recipe = read_recipe(Path(out) / "recipe.yaml")
    if recipe.system not in SYSTEMS:
        raise ValueError(f"{out}: trains {recipe.system!r}, which is not part of maskwright: a folder alone never imports code")
    metrics = train_recipe(recipe, Path(out), resume=True, device=device, console=console)
    _report_training(Path(out), recipe.system, device, console)
    return metrics


def _report_training(out: Path, system: str, device: str, console: Console | None) -> None:
    """A page about the best model, written by one of the processes that trained it."""
    if int(os.environ.get("RANK", "0")) == 0:
        report(out, system=system, device=device, console=console)


def evaluate(
    run: str | Path | Model,
    *,
    data: str | Path,
    arguments: Mapping[str, Any] | None = None,
    device: str = "auto",
    console: Console | None = None,
    **choices: Unpack[ScoringChoices],
) -> Evaluation:
    """Score a model on a data set by COCO's protocol.

    Classes are matched by name; where no name is known, by original id.

    Args:
        run: a run folder, a weights file, or a model already loaded.
        data: a folder with splits, or one annotation file with `images`.
        arguments: of the system in place of the saved ones, where `run` is a path; for example {"short_px": 600}.
        choices: split, images, max_detections, class_agnostic, skip_invalid, report: see `ScoringChoices`.

    Raises:
        ValueError: data that cannot be read, or whose classes the model does not know.
    """
    check_names(evaluate, choices, ScoringChoices)
    model = run if isinstance(run, Model) else load_with(run, arguments or {}, device=device)
    scoring = open_scoring(Path(data), choices, keypoints=model.system.task.has_keypoints, console=console)
    where = None if isinstance(run, Model) else Path(run)
    if where is not None and console is not None:
        _say_learnt(where, Path(data), scoring.dataset, console)
    changed = [word for name, value in (arguments or {}).items() for word in ("--set", f"{name}={value}")]
    return scoring.of_model(model, where, command(["evaluate", str(where or "RUN")], data, choices, changed))


def _say_learnt(run: Path, data: Path, dataset: Dataset, console: Console) -> None:
    """Say how many of the images a run was trained on, where it divided this very file itself."""
    if not ((run / RECIPE).is_file() and (run / SPLIT).is_file()):
        return
    options = read_recipe(run / RECIPE).data
    if options is None or options.val_fraction is None or Path(options.path).resolve() != data.resolve():
        return
    learnt = set(read_json(run / SPLIT)["train"]) & set(dataset.image_ids.tolist())
    console.print(
        f"{len(learnt)} of these {len(dataset)} images were learnt from: 'maskwright report {run}' scores the others alone",
        highlight=False,
    )


def score(
    predictions: str | Path,
    *,
    data: str | Path,
    console: Console | None = None,
    **choices: Unpack[ScoringChoices],
) -> Evaluation:
    """Score anybody's COCO results file; images are only needed for pictures in the report.

    Args:
        predictions: a list of COCO results, or what `maskwright predict` wrote.
        data: a folder with splits, or the annotation file itself.
        choices: as for `evaluate`.
    """
    check_names(score, choices, ScoringChoices)
    file = Path(predictions)
    given = read_json(file)
    scoring = open_scoring(Path(data), choices, keypoints=holds_keypoints(given), needs_images=False, console=console)
    answered = from_results(file, check_results(file, given, scoring.dataset), scoring.dataset)
    words = ["evaluate", "--predictions", str(file)]
    return scoring.of(file.stem, answered, COCO_LIMITS, command(words, data, choices))


def report(
    run: str | Path,
    *,
    data: str | Path | None = None,
    images: str | Path | None = None,
    system: str | None = None,
    device: str = "auto",
    console: Console | None = None,
) -> Evaluation:
    """Score a run on its validation images and write its report.html: metrics with intervals, curves, errors, pictures.

    Args:
        run: a run folder; its best model is used.
        data: where its data set is now; by default where it was.
        images: where the images of an annotation file are now.
        system: a system from outside the package that may be imported if the run is of it.

    Raises:
        ValueError: not a run, or its data is not there.
    """
    folder = Path(run)
    if not (folder / RECIPE).is_file():
        raise ValueError(f"{folder}: is not the folder of a run: use 'maskwright evaluate' for weights and results files")
    recipe = read_recipe(folder / RECIPE)
    options = recipe.data
    if options is None:
        raise ValueError(f"{folder / RECIPE}: names no data: use 'maskwright evaluate {folder} --data DIR'")
    if data is None and not Path(options.path).exists():
        raise ValueError(f"{options.path}: the data of {folder} is not there any more: say where it is with --data DIR")
    if data is not None:
        options = options.model_copy(update={"path": str(data), "images": options.images if Path(data).is_file() else None})
    if images is not None:
        options = options.model_copy(update={"images": str(images)})
    recipe = recipe.model_copy(update={"data": options})
    dataset = open_data(recipe)[1]
    scoring = Scoring(dataset, report=folder / REPORT, console=console)
    words = shell_words(["report", str(folder)], {"--data": data, "--images": images})
    return scoring.of_model(load(folder, device=device, system=system), folder, words)
