"""One model, or one results file, on one data set: every protocol that applies, and a page where one is asked for."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypedDict

from rich.console import Console

from maskwright.comparison.answers import Answered, from_model, say_unscored, with_costs
from maskwright.comparison.costs import costs
from maskwright.comparison.history import with_history
from maskwright.comparison.publishing import assemble, publish
from maskwright.formats.catalog import open_split
from maskwright.formats.dataset import Dataset
from maskwright.inference import Model
from maskwright.inference.scoring import detections
from maskwright.metrics import default_limits
from maskwright.metrics.detection import DetectionMetrics, check_limits
from maskwright.metrics.evaluation import Evaluation, evaluate
from maskwright.metrics.overlaps import Kind
from maskwright.systems import Task


class ScoringChoices(TypedDict, total=False):
    """What may be said about how a model or a results file is scored.

    split: of a folder; "val" by default.
    images: image folder of an annotation file; by default, where only pictures need it, its own.
    max_detections: limits on the detections of an image; AP uses the last. By default 1, 10 and the model's own number.
    class_agnostic: whether an object counts as found whatever class it was given.
    skip_invalid: leave bad annotations out instead of stopping.
    report: a page to write about it.
    """

    split: Literal["train", "val"]
    images: str | Path | None
    max_detections: Sequence[int] | None
    class_agnostic: bool
    skip_invalid: bool
    report: str | Path | None


@dataclass(frozen=True, eq=False)
class Scoring:
    """How detections of a data set are scored, and where the page about it goes."""

    dataset: Dataset
    split: str = "val"
    max_detections: Sequence[int] | None = None
    class_agnostic: bool = False
    report: Path | None = None
    console: Console | None = None

    def of_model(self, model: Model, where: Path | None, command: str) -> Evaluation:
        """Predict, then score.

        Args:
            where: the run folder or weights file, if that is known.
            command: that makes the page again.
        """
        console = self.console or Console(markup=False)
        is_proposer = model.system.task == Task.PROPOSALS
        if is_proposer and not self.class_agnostic:
            return replace(self, class_agnostic=True).of_model(model, where, command)
        usual = default_limits(model.system.max_detections, of_proposals=is_proposer)
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
        """Score what was answered.

        Args:
            usual: limits, where none were asked for.
            command: that makes the page again.
        """
        limits, results = check_limits(self.max_detections or usual), answered.results[0]()
        metrics = None if self.report is None else self._publish(self.report, name, answered, limits, command)
        return evaluate(
            self.dataset,
            results,
            kinds=answered.kinds,
            max_detections=limits,
            class_agnostic=self.class_agnostic,
            metrics=metrics,
        )

    def _publish(
        self, report: Path, name: str, answered: Answered, limits: Sequence[int], command: str
    ) -> dict[Kind, DetectionMetrics]:
        """Write the page; COCO's numbers on it."""
        console, entries = self.console or Console(markup=False), {name: answered}
        how: dict[str, Any] = {"split": self.split, "class_agnostic": self.class_agnostic, "console": console}
        comparison = assemble(self.dataset, entries, title=name, command=command, limits=limits, **how)
        try:
            publish(comparison, self.dataset, entries, report, console)
        except OSError as error:  # the numbers are not lost with the page
            console.print(f"{report}: the report could not be written ({error.strerror}): name another with --report")
        return comparison.rows[0].metrics[0]


def open_scoring(
    data: Path, choices: ScoringChoices, *, keypoints: bool, needs_images: bool = True, console: Console | None
) -> Scoring:
    """Open the data, to score something on it.

    Args:
        keypoints: whether to read COCO's file of people with keypoints.
        needs_images: whether they must be there.

    Raises:
        ValueError: data that cannot be read.
    """
    split, images, report = choices.get("split", "val"), choices.get("images"), choices.get("report")
    dataset = open_split(
        data,
        split,
        images=None if images is None else Path(images),
        invalid="skip" if choices.get("skip_invalid") else "stop",
        needs_images=needs_images,
        keypoints=keypoints,
    )
    return Scoring(
        dataset,
        split,
        choices.get("max_detections"),
        choices.get("class_agnostic", False),
        None if report is None else Path(report),
        console,
    )


def command(words: Sequence[str], data: str | Path, choices: ScoringChoices, changed: Sequence[str] = ()) -> str:
    """What scores the same again, for the shell.

    Args:
        changed: further words.
    """
    agnostic = ["--class-agnostic"] if choices.get("class_agnostic") else []
    split = choices.get("split", "val")
    options = {
        "--images": choices.get("images"),
        "--split": split if split != "val" else None,
        "--max-detections": choices.get("max_detections"),
    }
    return shell_words([*words, "--data", str(data), *agnostic, *changed], options)


def shell_words(words: Sequence[str], options: Mapping[str, Any]) -> str:
    """A command of ours; options without a value are left out."""
    text = {name: ",".join(map(str, v)) if isinstance(v, (list, tuple)) else str(v) for name, v in options.items() if v}
    return shlex.join(["maskwright", *words, *(word for pair in text.items() for word in pair)])
