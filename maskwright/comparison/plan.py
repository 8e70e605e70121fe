"""What is trained: the recipe of every system, and for how long."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskwright.comparison.entries import Entry
from maskwright.formats.files import read_json, write_json
from maskwright.recipes import DataOptions, Recipe, find_recipe
from maskwright.training.distributed import Processes, own_device
from maskwright.training.timing import Budget, epochs_in, lasting

PLAN = "plan.json"
CHECKPOINT_STEPS = 100  # of runs that a comparison trains, so that little is lost when it is stopped
EVALUATIONS = 5  # points of a training curve, about


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
    wanted = [*changes, *(change for entry in entries if entry.system for change in entry.changes)]
    budget.check(wanted)
    for change in wanted:
        if change.split("=")[0].strip() == "seed":
            raise ValueError(f"got {change!r}, but a comparison trains seeds 0, 1, …: say how many with --seeds")
    answer: dict[str, Recipe] = {}
    for entry in entries:
        if entry.system is None:
            continue
        recipe = find_recipe(entry.system).model_copy(update={"checkpoint_steps": CHECKPOINT_STEPS, "data": data})
        recipe = budget.applied(recipe, [*changes, *entry.changes])
        if recipe.patience is not None:
            raise ValueError(
                f"{entry.name!r} would stop by the images that all are scored on: leave patience away, or train it before and "
                "compare its run"
            )
        if budget.minutes is not None:
            asked = {"minutes": budget.minutes, "system": entry.system, "changes": [*changes, *entry.changes]}
            known = kept.get(entry.name)
            if known is None:
                epochs = epochs_in(recipe, budget.minutes, device=own_device(device), processes=Processes())
                kept[entry.name] = known = {**asked, "epochs": epochs}
                write_json(out / PLAN, kept, indent=2)
            elif {key: known[key] for key in asked} != asked:
                raise ValueError(
                    f"{out}: {entry.name!r} was planned otherwise here: choose another --out, or another name for it"
                )
            recipe = lasting(recipe, known["epochs"])
        every = max(1, round(sum(stage.epochs for stage in recipe.stages) / EVALUATIONS))
        if not any(change.startswith("evaluate_every") for change in (*changes, *entry.changes)):
            recipe = recipe.with_changes([f"evaluate_every={every}"])
        answer[entry.name] = recipe
    write_json(out / PLAN, kept, indent=2)  # which also says that the folder is a comparison's
    return answer
