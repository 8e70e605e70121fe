"""Training what a plan says, seed by seed; all of it can be stopped and taken up again."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from maskwright.formats.dataset import Dataset
from maskwright.formats.files import read_json, write_json
from maskwright.recipes import Recipe, read_recipe
from maskwright.runs.device import return_freed_memory
from maskwright.training import train
from maskwright.training.fitting import fitted
from maskwright.training.network import check_start, new_system, with_tag
from maskwright.training.optimization import set_trainable
from maskwright.training.proposals import check_proposals
from maskwright.training.run import RECIPE, SPLIT
from maskwright.training.sources import open_data, split_of

DONE = "trained.json"  # in the folder of a run that was trained to its end


def train_all(
    plan: Mapping[str, Recipe],
    folders: Mapping[str, Sequence[Path]],
    dataset: Dataset,
    device: str,
    console: Console,
) -> None:
    """Train what is left, seed by seed.

    What was trained is taken as it is after its last step: nothing is chosen on the images it is scored on.
    """
    plan = {name: _checked(name, recipe, dataset, console) for name, recipe in plan.items()}
    runs = [
        (name, seed, recipe.with_changes([f"seed={seed}"]), folders[name][seed])
        for seed in range(max(map(len, folders.values()), default=0))
        for name, recipe in plan.items()
    ]
    images: dict[tuple[str, str], dict[str, list[int]]] = {}  # what a recipe learns from depends on so much of it
    for _, _, recipe, folder in runs:
        key = (recipe.system, recipe.train_on)
        if (folder / RECIPE).is_file():
            images[key] = images.get(key) or split_of(open_data(recipe, with_images=False))
            check_run(recipe, folder, images[key])
    for name, seed, recipe, folder in runs:
        console.print(f"{name}, seed {seed}: {folder}", highlight=False, soft_wrap=True)
        train_run(recipe, folder, device=device, console=console)


def _checked(name: str, recipe: Recipe, dataset: Dataset, console: Console) -> Recipe:
    """Build what is to be trained, before the first is; the recipe as the run will record it."""
    try:
        learnt = open_data(recipe, with_images=False)[0] if recipe.fit_sizes else dataset
        recipe = fitted(recipe, learnt, lambda line: console.print(f"{name}: {line}", highlight=False, soft_wrap=True))
        system, _ = new_system(recipe, dataset, Console(quiet=True))
        check_start(system, recipe)
        check_proposals(recipe, system)
        for stage in recipe.stages:
            set_trainable(system, stage)
        return with_tag(recipe, system)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def check_run(recipe: Recipe, folder: Path, images: Mapping[str, Sequence[int]]) -> None:
    """Make sure that a run that was begun is the one asked for.

    Args:
        images: ids of the images of both splits, as they are now.

    Raises:
        ValueError: the folder holds a run of another recipe, or on other images.
    """
    if not (folder / RECIPE).is_file():
        return
    if (known := read_recipe(folder / RECIPE)) != recipe:
        old, new = known.model_dump(), recipe.model_dump()
        differing = ", ".join(name for name in old if old[name] != new[name])
        raise ValueError(f"{folder}: was begun with another recipe ({differing} differ): choose another --out")
    if read_json(folder / SPLIT) != images:
        raise ValueError(f"{folder}: was begun on other images than the data set has now: choose another --out")


def train_run(recipe: Recipe, folder: Path, *, device: str, console: Console) -> None:
    """Train a run, or what is left of it, or nothing where it is done.

    Check it with `check_run` first.
    """
    if not (folder / DONE).is_file():
        train(recipe, folder, resume=(folder / RECIPE).is_file(), device=device, console=console)
        write_json(folder / DONE, {"seed": recipe.seed})
        return_freed_memory()
