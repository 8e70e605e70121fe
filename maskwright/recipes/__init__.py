"""Runs by name: what is trained, how long, and what to expect. A system's usual run has the name of the system."""

import difflib
import inspect

from maskwright.recipes import deepmask, embedmask, fast_rcnn, fcos, mask_rcnn, mnc
from maskwright.recipes.known import KnownRecipe, small_recipe
from maskwright.recipes.recipe import DataOptions, Recipe, Stage, parse_recipe, read_recipe
from maskwright.systems import RETIRED, SYSTEMS, find_builder

__all__ = [
    "FAMILIES",
    "RECIPES",
    "DataOptions",
    "Recipe",
    "Stage",
    "about_family",
    "find_recipe",
    "parse_recipe",
    "read_recipe",
]

FAMILIES = (mask_rcnn, embedmask, fcos, deepmask, fast_rcnn, mnc)
RECIPES: dict[str, KnownRecipe] = {known.name: known for family in FAMILIES for known in family.RECIPES}


def about_family(name: str) -> str:
    """What is known of a recipe's family: commands, cost, results, sources."""
    return next(inspect.getdoc(family) or "" for family in FAMILIES if any(known.name == name for known in family.RECIPES))


def find_recipe(name: str) -> Recipe:
    """A recipe by its name or that of its system; a system without one, of ours or not, has that of the small sizes.

    Raises:
        ValueError: no such recipe or system.
    """
    if name in RECIPES:
        return RECIPES[name].recipe
    if ":" not in name and name not in SYSTEMS and name not in RETIRED:
        near = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else "'maskwright recipes' lists them"
        raise ValueError(f"no recipe or system is named {name!r}: {hint}")
    find_builder(name)
    return small_recipe(name)
