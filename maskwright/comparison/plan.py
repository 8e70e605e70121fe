"""What is trained: the recipe of every system, and for how long."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskwright.comparison.entries import Entry
from maskwright.formats.files import read_json, write_json
from maskwright.recipes import DataOptions, Recipe, find_recipe
from maskwright.training.timing import seconds_per_epoch

PLAN = "plan.json"
CHECKPOINT_STEPS = 100  # of runs that a comparison trains, so that little is lost when it is stopped
EVALUATIONS = 5  # points of a training curve, about


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
