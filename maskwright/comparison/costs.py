"""What models cost: time and memory, measured side by side."""

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console

from maskwright.comparison.kept import kept, stamp
from maskwright.formats.dataset import Dataset
from maskwright.inference import Model
from maskwright.runs.checkpoints import find_weights
from maskwright.runs.device import peak_memory
from maskwright.runs.progress import shown

TIMED_IMAGES, TURNS = 8, 3


def kept_costs(
    models: Mapping[str, Model], weights: Mapping[str, Sequence[Path]], dataset: Dataset, out: Path, console: Console
) -> dict[str, dict[str, float | None]]:
    """Time and memory of all models, measured together once, and kept in the folder of a comparison."""
    if not models:
        return {}
    made_of = {
        name: [stamp(find_weights(paths[0])), models[name].card.arguments, models[name].device, models[name].precision.name]
        for name, paths in weights.items()
    }
    key = json.loads(json.dumps({**made_of, "": [stamp(dataset.path), torch.get_num_threads()]}))
    found: dict[str, dict[str, float | None]] = kept(out / "costs.json", key, lambda: costs(models, dataset, console))
    return found


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
