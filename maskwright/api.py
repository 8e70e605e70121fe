"""The verbs of the workbench as functions; the command line calls the same ones."""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from maskwright.comparison import compare
from maskwright.comparison.comparing import (
    REPORT,
    Answered,
    assemble,
    from_model,
    from_results,
    publish,
    say_unscored,
    with_costs,
    with_history,
)
from maskwright.comparison.running import costs
from maskwright.formats.catalog import open_split
from maskwright.formats.coco_results import check_results, holds_keypoints
from maskwright.formats.dataset import Dataset
from maskwright.formats.files import read_json
from maskwright.inference import Model, load
from maskwright.inference.predictor import load_with
from maskwright.inference.scoring import detections
from maskwright.inference.writer import predict_files as predict
from maskwright.metrics import DetectionMetrics, default_limits, evaluate_detections
from maskwright.metrics.cityscapes import CityscapesMetrics, evaluate_cityscapes, is_cityscapes
from maskwright.metrics.detection import COCO_LIMITS, check_limits, proposal_limits
from maskwright.metrics.overlaps import Kind
from maskwright.metrics.proposals import ProposalMetrics, evaluate_proposals
from maskwright.metrics.region_ap import RegionMetrics, evaluate_regions
from maskwright.recipes import Recipe, find_recipe
from maskwright.recipes.recipe import data_options, read_recipe
from maskwright.runs.importing import import_weights
from maskwright.systems import SYSTEMS, Task
from maskwright.training import train as train_recipe
from maskwright.training.opening import check_folder
from maskwright.training.run import RECIPE, SPLIT
from maskwright.training.sources import open_data

__all__ = ["Evaluation", "compare", "evaluate", "import_weights", "load", "predict", "report", "resume", "score", "train"]


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
        system: a name in `maskwright systems` or `maskwright recipes`, or "package.module:builder".
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
    options = data_options(
        path=str(data),
        images=None if images is None else str(images),
        val_fraction=val_fraction,
        classes=None if classes is None else tuple(classes),
        invalid="skip" if skip_invalid else "stop",
    )
    recipe = recipe.model_copy(update={"data": options})
    metrics = train_recipe(recipe, Path(out), init=None if init is None else Path(init), device=device, console=console)
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


@dataclass(frozen=True)
class Evaluation:
    """Metrics by kind, "bbox", "segm", "boundary" and "keypoints", and the detections they were computed from.

    Where classes are ignored there is also the recall of the answers as proposals; where they are not, VOC's mAP^r of masks,
    and on Cityscapes the AP of its benchmark.
    """

    metrics: dict[Kind, DetectionMetrics]
    results: list[dict[str, Any]]
    proposals: dict[Kind, ProposalMetrics] = field(default_factory=dict)
    regions: RegionMetrics | None = None
    cityscapes: CityscapesMetrics | None = None


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
    report: str | Path | None = None,
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
        report: a page to write about it.

    Raises:
        ValueError: data that cannot be read, or whose classes the model does not know.
    """
    model = run if isinstance(run, Model) else load_with(run, arguments or {}, device=device)
    dataset = open_split(
        Path(data),
        split,
        images=None if images is None else Path(images),
        invalid="skip" if skip_invalid else "stop",
        keypoints=model.system.task.has_keypoints,
    )
    where = None if isinstance(run, Model) else Path(run)
    if where is not None and console is not None:
        _say_learnt(where, Path(data), dataset, console)
    scoring = _Scoring(dataset, split, max_detections, class_agnostic, None if report is None else Path(report), console)
    options = {"--images": images, "--split": split if split != "val" else None, "--max-detections": max_detections}
    words = ["evaluate", str(where or "RUN"), "--data", str(data), *(["--class-agnostic"] if class_agnostic else [])]
    words += [word for name, value in (arguments or {}).items() for word in ("--set", f"{name}={value}")]
    return scoring.of_model(model, where, _command(words, options))


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
    split: Literal["train", "val"] = "val",
    images: str | Path | None = None,
    max_detections: Sequence[int] | None = None,
    class_agnostic: bool = False,
    skip_invalid: bool = False,
    report: str | Path | None = None,
    console: Console | None = None,
) -> Evaluation:
    """Score anybody's COCO results file; images are only needed for pictures in the report.

    Args:
        predictions: a list of COCO results, or what `maskwright predict` wrote.
        data: a folder with splits, or the annotation file itself.
        images: folder of the images of an annotation file; by default its own.
        report: a page to write about it.
    """
    file, invalid = Path(predictions), "skip" if skip_invalid else "stop"
    where = None if images is None else Path(images)
    given = read_json(file)
    keypoints = holds_keypoints(given)
    dataset = open_split(Path(data), split, images=where, invalid=invalid, needs_images=False, keypoints=keypoints)  # type: ignore[arg-type]
    results = check_results(file, given, dataset)
    scoring = _Scoring(dataset, split, max_detections, class_agnostic, None if report is None else Path(report), console)
    answered = from_results(file, results, dataset)
    options = {"--images": images, "--split": split if split != "val" else None, "--max-detections": max_detections}
    words = ["evaluate", "--predictions", str(file), "--data", str(data), *(["--class-agnostic"] if class_agnostic else [])]
    return scoring.of(file.stem, answered, COCO_LIMITS, _command(words, options))


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
    scoring = _Scoring(dataset, "val", None, False, folder / REPORT, console)
    return scoring.of_model(
        load(folder, device=device, system=system),
        folder,
        _command(["report", str(folder)], {"--data": data, "--images": images}),
    )


def _command(words: Sequence[str], options: Mapping[str, Any]) -> str:
    """What makes a page again, for the shell."""
    text = {name: ",".join(map(str, v)) if isinstance(v, (list, tuple)) else str(v) for name, v in options.items() if v}
    return shlex.join(["maskwright", *words, *(word for pair in text.items() for word in pair)])


@dataclass(frozen=True)
class _Scoring:
    """How detections of a data set are scored, and where the page about it goes."""

    dataset: Dataset
    split: str
    max_detections: Sequence[int] | None
    class_agnostic: bool
    report: Path | None
    console: Console | None

    def of_model(self, model: Model, where: Path | None, command: str) -> Evaluation:
        """Predict, then score."""
        console = self.console or Console(markup=False)
        most, is_proposer = model.system.max_detections, model.system.task == Task.PROPOSALS
        if is_proposer and not self.class_agnostic:
            return replace(self, class_agnostic=True).of_model(model, where, command)
        usual = proposal_limits(most) if is_proposer else default_limits(most)
        limit = check_limits(self.max_detections or usual)[-1]
        results = detections(model, self.dataset, limit=limit, console=console, class_agnostic=self.class_agnostic)
        answered = from_model(model, self.dataset, [lambda: results])
        say_unscored(model, answered, self.dataset, console)
        name = model.card.system if where is None else where.name
        if self.report is not None:
            facts = answered.facts if where is None or where.is_file() else with_history(answered.facts, [where])
            answered = with_costs(replace(answered, facts=facts), costs({name: model}, self.dataset, console)[name])
        return self.of(name, answered, usual, command)

    def of(self, name: str, answered: Answered, usual: Sequence[int], command: str) -> Evaluation:
        """Score what was answered."""
        limits, results = check_limits(self.max_detections or usual), answered.results[0]()
        proposals: dict[Kind, ProposalMetrics] = {}
        if self.class_agnostic:
            kinds = [kind for kind in answered.kinds if kind != "boundary"]
            proposals = evaluate_proposals(self.dataset, results, kinds=kinds, max_detections=limits)
        has_regions = "segm" in answered.kinds and not self.class_agnostic
        regions = evaluate_regions(self.dataset, results) if has_regions else None
        is_benchmark = has_regions and is_cityscapes(self.dataset)
        cityscapes = evaluate_cityscapes(self.dataset, results) if is_benchmark else None
        if self.report is None:
            metrics = evaluate_detections(
                self.dataset, results, kinds=answered.kinds, max_detections=limits, class_agnostic=self.class_agnostic
            )
            return Evaluation(metrics, results, proposals, regions, cityscapes)
        console = self.console or Console(markup=False)
        comparison = assemble(
            self.dataset,
            {name: answered},
            title=name,
            command=command,
            limits=limits,
            console=console,
            split=self.split,
            class_agnostic=self.class_agnostic,
        )
        try:
            publish(comparison, self.dataset, {name: answered}, self.report, console)
        except OSError as error:  # the numbers are not lost with the page
            console.print(f"{self.report}: the report could not be written ({error.strerror}): name another with --report")
        return Evaluation(comparison.rows[0].metrics[0], results, proposals, regions, cityscapes)
