"""Scales of an image pyramid that suit a data set."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from maskwright.formats import Dataset
from maskwright.recipes import Recipe
from maskwright.runs.checkpoints import build_system
from maskwright.structures import PatchGeometry
from maskwright.structures.patches import octaves_for

PERCENTILES = (2.5, 25.0, 50.0, 75.0, 97.5)


def octaves_of_data(
    recipe: Recipe, arguments: dict[str, Any], dataset: Dataset, say: Callable[[str], object]
) -> tuple[float, ...]:
    """The scales at which a recipe's system sees most objects of a data set at their canonical size, base-2 logarithms.

    Args:
        arguments: of the system's builder.
        say: hears the statistics and what follows from them.

    Raises:
        ValueError: a system without windows, or data without objects.
    """
    with torch.device("meta"):
        system = build_system(recipe.system, arguments)
    geometry = getattr(system, "geometry", None)
    if not isinstance(geometry, PatchGeometry):
        raise ValueError(f"octaves_from_data is for systems that look at windows, {recipe.system} looks at whole images")
    sides: list[float] = []
    for i in range(len(dataset)):
        boxes = dataset.boxes(i)[~dataset.columns(i).is_crowd]
        scale = system.input.resize.scale(dataset.image_size(i))
        sides += ((boxes[:, 2:] - boxes[:, :2]).max(axis=1) * scale).tolist()
    octaves = octaves_for(sides, object_px=geometry.object_px)
    shown = ", ".join(f"{side:.0f}" for side in np.percentile(sides, PERCENTILES))
    say(
        f"objects: longer sides of {shown} px at {', '.join(f'{p:g}' for p in PERCENTILES)} %; "
        f"pyramid: scales 2^({', '.join(f'{octave:g}' for octave in octaves)}), which show them at {geometry.object_px} px"
    )
    return octaves
