"""What is compared: entries as people write them, and how long each is trained."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskwright.formats.files import read_json, write_json
from maskwright.recipes import RECIPES, DataOptions, Recipe, find_recipe
from maskwright.training.timing import seconds_per_epoch

PLAN = "plan.json"
CHECKPOINT_STEPS = 100  # of runs that a comparison trains, so that little is lost when it is stopped
EVALUATIONS = 5  # points of a training curve, about


@dataclass(frozen=True)
class Entry:
    """One row of a comparison: a system to train, runs that are there already, or somebody's results.

    Args:
        name: what it is called in the report.
        system: what to train, a system or a recipe; None for the others.
        runs: run folders or weights files, each a seed.
        results: COCO results files, each a seed.
        changes: texts like "arguments.margin=fixed" for a recipe; like "cut=log" for runs.
    """

    name: str
    system: str | None = None
    runs: tuple[Path, ...] = ()
    results: tuple[Path, ...] = ()
    changes: tuple[str, ...] = ()

    @property
    def slug(self) -> str:
        """The name as part of a file name."""
        return "".join(c if c.isalnum() or c in "-." else "-" for c in self.name.lower()).strip("-.")


def parse_entry(text: str) -> Entry:
    """An entry as it is written on the command line: "[NAME: ]WHAT... [name=value...]".

    WHAT is a system; or one or more run folders, or COCO results files, each made with another seed. What follows changes
    recipe fields of a system, or arguments of runs.

    Raises:
        ValueError: neither a system nor a file, or a mixture of them.
    """
    name, colon, rest = text.partition(": ")
    try:
        words = shlex.split(rest if colon else text)
    except ValueError as error:
        raise ValueError(f"got the entry {text!r}: {str(error).lower()}: quote it as for a shell") from None
    changes = tuple(word for word in words if "=" in word and not Path(word).exists())
    what = [word for word in words if word not in changes]
    if not what:
        raise ValueError(
            f"got the entry {text!r}, expected a system, run folders or results files, for example mask-rcnn-small"
        )
    unknown = [word for word in what if word in RECIPES or not Path(word).exists()]
    if unknown == what and len(what) == 1:
        if not (what[0] in RECIPES or ":" in what[0]) and ("/" in what[0] or what[0].endswith(".json")):
            raise ValueError(f"{what[0]}: there is no such run folder or results file")
        find_recipe(what[0])  # complains of systems that do not exist
        return Entry(name if colon else " ".join(words), system=what[0], changes=changes)
    if unknown:
        raise ValueError(
            f"got the entry {text!r}, but {unknown[0]} does not exist: name run folders or results files of one kind"
        )
    paths = tuple(map(Path, what))
    usual = name if colon else " ".join([*(path.stem if path.is_file() else path.name for path in paths), *changes])
    if all(path.suffix == ".json" for path in paths):
        if changes:
            raise ValueError(f"got the entry {text!r}: results files have no arguments to change: leave {changes[0]!r} away")
        return Entry(usual, results=paths)
    if any(path.suffix == ".json" for path in paths):
        raise ValueError(f"got the entry {text!r}: runs and results files cannot be seeds of one entry: make them two")
    return Entry(usual, runs=paths, changes=changes)


def parse_entries(texts: Sequence[str]) -> list[Entry]:
    """All entries of a comparison.

    Raises:
        ValueError: an entry that is not one, a name without letters, or two of the same name.
    """
    entries = [parse_entry(text) for text in texts]
    slugs = [entry.slug for entry in entries]
    if "" in slugs:
        raise ValueError(f"got the name {entries[slugs.index('')].name!r}, expected one with a letter or digit for its files")
    twice = [entry.name for entry in entries if slugs.count(entry.slug) > 1]
    if twice:
        raise ValueError(f'two entries are called {twice[0]!r}: give them names, like "mine: {texts[0]}"')
    return entries


@dataclass(frozen=True)
class Budget:
    """How long systems are trained: epochs, or minutes of training; by default as long as their recipes say."""

    epochs: float | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if self.epochs is not None and self.minutes is not None:
            raise ValueError("epochs and minutes both say how long to train: give one of them")
        if any(value is not None and not value > 0 for value in (self.epochs, self.minutes)):
            raise ValueError("got a budget of nothing, expected a positive number of epochs or minutes")


def recipes(
    entries: Sequence[Entry], data: DataOptions, changes: Sequence[str], budget: Budget, out: Path, device: str
) -> dict[str, Recipe]:
    """The recipe of every entry that is trained, by name; how many steps a budget of minutes buys is measured once and kept.

    Args:
        changes: recipe fields set in all entries, before their own.
        out: the folder of the comparison.

    Raises:
        ValueError: a field that does not exist, or a folder that was made with another budget.
    """
    kept: dict[str, Any] = read_json(out / PLAN) if (out / PLAN).is_file() else {}
    for change in [*changes, *(change for entry in entries if entry.system for change in entry.changes)]:
        if change.split("=")[0].strip() == "seed":
            raise ValueError(f"got {change!r}, but a comparison trains seeds 0, 1, …: say how many with --seeds")
        if budget.minutes is not None and change.split("=")[0].strip().endswith("epochs"):
            raise ValueError(f"got {change!r} and --minutes, which both say how long to train: give one of them")
    answer: dict[str, Recipe] = {}
    for entry in entries:
        if entry.system is None:
            continue
        recipe = find_recipe(entry.system).model_copy(update={"checkpoint_steps": CHECKPOINT_STEPS, "data": data})
        if budget.epochs is not None:
            recipe = recipe.with_changes([f"epochs={budget.epochs}"])
        recipe = recipe.with_changes([*changes, *entry.changes])
        if budget.minutes is not None:
            asked = {"minutes": budget.minutes, "system": entry.system, "changes": [*changes, *entry.changes]}
            known = kept.get(entry.name)
            if known is None:
                kept[entry.name] = known = {**asked, "epochs": _epochs_in(recipe, budget.minutes, device)}
                write_json(out / PLAN, kept, indent=2)
            elif {key: known[key] for key in asked} != asked:
                raise ValueError(
                    f"{out}: {entry.name!r} was planned otherwise here: choose another --out, or another name for it"
                )
            recipe = recipe.with_changes([f"stages.{i}.epochs={epochs}" for i, epochs in enumerate(known["epochs"])])
        every = max(1, round(sum(stage.epochs for stage in recipe.stages) / EVALUATIONS))
        if not any(change.startswith("evaluate_every") for change in (*changes, *entry.changes)):
            recipe = recipe.with_changes([f"evaluate_every={every}"])
        answer[entry.name] = recipe
    write_json(out / PLAN, kept, indent=2)  # which also says that the folder is a comparison's
    return answer


def _epochs_in(recipe: Recipe, minutes: float, device: str) -> list[float]:
    """Epochs of each stage, in the proportions of the recipe, that fit into a time of training."""
    per_epoch = seconds_per_epoch(recipe, device=device)
    usual = sum(stage.epochs * seconds for stage, seconds in zip(recipe.stages, per_epoch, strict=True))
    return [float(f"{stage.epochs * 60 * minutes / usual:.6g}") for stage in recipe.stages]
