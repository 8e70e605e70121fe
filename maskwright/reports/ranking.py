"""Several entries on one data set, ranked, as data: what a report shows and results.json holds.

Everything is plain: numbers in [0, 1] unless a name ends in a unit, nan where there is nothing to say (null in JSON).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from maskwright.metrics.detection import KIND_ADJECTIVES, DetectionMetrics
from maskwright.metrics.overlaps import Kind
from maskwright.metrics.proposals import ProposalMetrics
from maskwright.metrics.statistics import Comparisons, Difference, Interval, Sampled
from maskwright.metrics.studies import AVERAGES, Study


@dataclass(frozen=True)
class Facts:
    """What an entry is and what it costs, as far as that is known.

    Args:
        task: of the system; entries are ranked within their task.
        source: what it was made of: a system with its changes, runs, or files.
        commands: that use it.
        parameters: of the network.
        steps: of the optimizer, per run.
        training_s: mean over seeds, evaluations in between included.
        image_ms: from pixels to masks, median.
        recipe: as YAML, of what was trained.
        memory_mb: above the model, at its highest, while predicting.
        histories: of each seed, points of the training curve: step, ap, train_loss, val_loss.
    """

    task: str
    source: str
    commands: tuple[str, ...] = ()
    parameters: int | None = None
    steps: int | None = None
    training_s: float | None = None
    image_ms: float | None = None
    memory_mb: float | None = None
    recipe: str | None = None
    histories: tuple[tuple[dict[str, float], ...], ...] = ()


@dataclass(frozen=True)
class Row:
    """One entry.

    Args:
        rank: within its task, from 1.
        kind: the overlap that decides.
        seeds: how many runs or files it is the mean of.
        averages: by the names in AVERAGES, mean over seeds with its interval.
        by_seed: the same metrics of each seed.
        metrics: COCO's numbers of each seed, by kind.
        per_class: AP by class name, mean over seeds.
        precision: at 101 recall points, by IoU threshold as text.
        recall: at each IoU threshold.
        errors: AP each kind of error costs.
        thresholds: of scores, where precision and recall balance best, of each seed.
        quality: of each image, by id, mean over seeds.
        proposals: recall of each seed, by kind, where the entry answers proposals.
    """

    name: str
    rank: int
    kind: Kind
    seeds: int
    averages: dict[str, Interval]
    by_seed: dict[str, list[float]]
    metrics: list[dict[Kind, DetectionMetrics]]
    per_class: dict[str, float]
    precision: dict[str, list[float]]
    recall: list[float]
    errors: dict[str, float]
    thresholds: list[float]
    quality: dict[int, float]
    facts: Facts
    proposals: list[dict[Kind, ProposalMetrics]]


@dataclass(frozen=True)
class Table:
    """The entries of one task, best first, and what can be told apart.

    Args:
        decides: the metric they are ranked by, a name in AVERAGES.
        spread: standard deviation between seeds, pooled over entries; 0 where every entry has one seed.
    """

    task: str
    decides: str
    rows: list[Row]
    differences: list[Difference]
    spread: float


@dataclass(frozen=True)
class Protocol:
    """On what and how everything was scored."""

    data: str
    split: str
    images: int
    objects: int
    classes: tuple[str, ...]
    max_detections: tuple[int, ...]
    resamples: int


@dataclass(frozen=True)
class Comparison:
    """All that a report says in numbers."""

    title: str
    protocol: Protocol
    tables: list[Table]
    machine: str
    command: str
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As results.json holds it."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain

    @property
    def rows(self) -> list[Row]:
        """All entries, task by task, best first."""
        return [row for table in self.tables for row in table.rows]


def tabulate(studies: Mapping[str, Sequence[Study]], facts: Mapping[str, Facts], *, images: int) -> list[Table]:
    """Rank entries within their tasks.

    Args:
        studies: of every entry, one for each seed.
        facts: of every entry.
        images: that hold objects.
    """
    tasks = list(dict.fromkeys(facts[name].task for name in studies))
    return [_table(task, {n: s for n, s in studies.items() if facts[n].task == task}, facts, images) for task in tasks]


def decisive(task: str) -> str:
    """The metric entries of a task are ranked by, a name in AVERAGES."""
    return "ar" if task == "proposals" else "ap"


def _table(task: str, studies: Mapping[str, Sequence[Study]], facts: Mapping[str, Facts], images: int) -> Table:
    decides = decisive(task)
    comparisons = {}
    for metric in AVERAGES:
        sampled = {name: _sampled(seeds, metric) for name, seeds in studies.items() if metric in seeds[0].values}
        if sampled:
            comparisons[metric] = Comparisons(sampled, images=images)
    means = {name: float(np.mean([s.values[decides] for s in seeds])) for name, seeds in studies.items()}
    ranked = sorted(studies, key=lambda name: (math.isnan(means[name]), -means[name]))
    rows = [_row(name, rank, studies[name], comparisons, facts[name]) for rank, name in enumerate(ranked, 1)]
    return Table(task, decides, rows, comparisons[decides].differences(), comparisons[decides].spread)


def _sampled(seeds: Sequence[Study], metric: str) -> Sampled:
    return Sampled(np.array([s.values[metric] for s in seeds]), np.stack([s.resampled[metric] for s in seeds]))


def _row(name: str, rank: int, seeds: Sequence[Study], comparisons: Mapping[str, Comparisons], facts: Facts) -> Row:
    first = seeds[0]
    classes = first.metrics[first.kind].per_class
    per_class = {c: [s.metrics[s.kind].per_class[c] for s in seeds] for c in classes}
    return Row(
        name=name,
        rank=rank,
        kind=first.kind,
        seeds=len(seeds),
        averages={metric: found.interval(name) for metric, found in comparisons.items() if name in found.entries},
        by_seed={metric: [s.values[metric] for s in seeds] for metric in first.values},
        metrics=[s.metrics for s in seeds],
        per_class={c: float(np.mean(v)) if min(v) >= 0 else math.nan for c, v in per_class.items()},
        precision={iou: np.mean([s.precision[iou] for s in seeds], axis=0).tolist() for iou in first.precision},
        recall=np.mean([s.recall for s in seeds], axis=0).tolist(),
        errors={cause: float(np.mean([s.errors[cause] for s in seeds])) for cause in first.errors},
        thresholds=[s.threshold for s in seeds],
        quality={i: float(np.mean([s.quality[i] for s in seeds])) for i in first.quality},
        facts=facts,
        proposals=[dict(s.proposals) for s in seeds if s.proposals],
    )


def _plain(value: Any) -> Any:
    """Without nan, which JSON does not have."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def in_words(table: Table) -> list[str]:
    """Which differences are real, in plain sentences."""
    metric = AVERAGES[table.decides]
    kind = f"{KIND_ADJECTIVES[table.rows[0].kind]} "
    sentences = []
    for d in table.differences:
        points, low, high = (f"{100 * v:+.1f}" for v in (d.interval.value, d.interval.low, d.interval.high))
        chance = f"p {'< 0.001' if d.p_value < 0.001 else f'= {d.p_value:.3f}'}"
        if d.is_real:
            sentences.append(f"{d.first} is better than {d.second}: {kind}{metric} {points} points [{low}, {high}], {chance}.")
        else:
            sentences.append(
                f"{d.first} and {d.second} cannot be told apart: {kind}{metric} {points} points [{low}, {high}], {chance}."
            )
    return sentences
