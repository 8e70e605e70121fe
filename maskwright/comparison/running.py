"""Doing what a plan says: training, predicting, timing. All of it can be stopped and taken up again."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

from maskwright.formats.dataset import Dataset
from maskwright.formats.files import read_json, write_json
from maskwright.inference import Model
from maskwright.recipes import Recipe, read_recipe
from maskwright.runs.device import peak_memory, return_freed_memory
from maskwright.runs.progress import shown
from maskwright.training import train
from maskwright.training.run import RECIPE, SPLIT

TIMED_IMAGES, TURNS = 8, 3
DONE = "trained.json"  # in the folder of a run that was trained to its end


def train_run(recipe: Recipe, folder: Path, *, device: str, console: Console) -> None:
    """Train a run, or what is left of it, or nothing where it is done.

    Check it with `check_run` first.
    """
    if not (folder / DONE).is_file():
        train(recipe, folder, resume=(folder / RECIPE).is_file(), device=device, console=console)
        write_json(folder / DONE, {"seed": recipe.seed})
        return_freed_memory()


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


def kept(path: Path, key: Mapping[str, Any], make: Callable[[], Any]) -> Any:
    """What was made before and written to a file, if it was made of the same things; else it is made now.

    Args:
        key: all that the answer depends on, as JSON holds it.
    """
    if path.is_file():
        known = read_json(path)
        if isinstance(known, dict) and known.get("key") == key and "answer" in known:
            return known["answer"]
    answer = make()
    write_json(path, {"key": key, "answer": answer})
    return answer


def costs(models: Mapping[str, Model], dataset: Dataset, console: Console) -> dict[str, dict[str, float | None]]:
    """Median time of an image, ms, and highest memory above the model, MB; the models take turns on the same images.

    A machine that changes its pace thereby treats all alike.
    """
    step = max(1, len(dataset) // TIMED_IMAGES)
    indices = range(0, len(dataset), step)[:TIMED_IMAGES]
    answer: dict[str, dict[str, float | None]] = {}
    times: dict[str, list[float]] = {name: [] for name in models}
    with shown(console, "time", total=(TURNS + 1) * len(models)) as bar:
        images = {
            name: [dataset.read(i, m.system.input.intensity).image.numpy() for i in indices] for name, m in models.items()
        }
        for name, model in models.items():
            model.predict(images[name][0], threshold=0.0)  # what is set up once is not the model's cost
            memory = peak_memory(lambda m=model, n=name: _predict(m, images[n]), model.device)  # type: ignore[misc]
            answer[name] = {"memory_mb": memory}
            bar.advance()
        for _ in range(TURNS):
            for name, model in models.items():
                times[name] += _predict(model, images[name])
                bar.advance()
    for name, values in times.items():
        answer[name]["image_ms"] = 1000 * statistics.median(values)
    return answer


def _predict(model: Model, images: Sequence[npt.NDArray[np.uint8]]) -> list[float]:
    """Seconds for each image."""
    times = []
    for image in images:
        began = time.perf_counter()
        model.predict(image, threshold=0.0)
        times.append(time.perf_counter() - began)
    return times
