"""What there is: the systems and the recipes, as tables and text for the terminal."""

import inspect
from collections.abc import Callable, Iterator
from typing import Annotated, cast, get_args, get_origin

import torch
import yaml
from rich.table import Column, Table
from torch import nn

from maskwright.recipes import RECIPES, Stage, about_family, find_recipe
from maskwright.systems import SYSTEMS, Sized, find_builder


def systems_table() -> Table:
    """Every system in a line."""
    table = Table("system", "task", Column("size", justify="right"), "what it is", box=None, caption_justify="left")
    table.caption = "size: parameters in millions, at 80 classes; 'maskwright systems NAME' lists parts and arguments"
    for column in table.columns[:3]:
        column.no_wrap = True
    for name in SYSTEMS:
        task, sizes = _measured(name)
        table.add_row(name, task, f"{sum(sizes.values()) / 1e6:.2f}", _first_line(find_builder(name)).split(":")[0])
    return table


def system_tables(name: str) -> Iterator[Table | str]:
    """The parts of one system, and its arguments."""
    yield _first_line(find_builder(name))
    parts = Table("part", Column("parameters, at 80 classes", justify="right"), box=None)
    for part, size in _measured(name)[1].items():
        parts.add_row(part, f"{size:,}")
    yield parts
    yield "\nArguments: --set arguments.NAME=VALUE to train, --set NAME=VALUE to import, evaluate and predict"
    arguments = Table(Column("argument", no_wrap=True), "default", "values, and what it is", box=None)
    builder = find_builder(name)
    described = type(builder.size).descriptions() if isinstance(builder, Sized) else {}
    for argument in inspect.signature(builder).parameters.values():
        if argument.default is not argument.empty:
            default = yaml.safe_dump(_plain(argument.default), default_flow_style=True).split("\n")[0]
            arguments.add_row(argument.name, default, _values(argument.annotation))
            if argument.name in described:
                arguments.add_row("", "", f"  {described[argument.name]}")
    yield arguments


def recipe_lines() -> Iterator[str]:
    """Every recipe: its name, epochs × images of a step for each stage, and below what to expect."""
    for known in RECIPES.values():
        lengths = " + ".join(f"{stage.epochs:g} × {stage.batch_size}" for stage in known.recipe.stages)
        yield f"{known.name}  ({lengths})\n    {known.about}"
    yield "(epochs × images of a step); 'maskwright recipes NAME' shows all fields, set them with --set FIELD=VALUE"


def recipe_text(name: str) -> str:
    """One recipe, as its file holds it, under what is to be expected of it, and what is known of it and its family."""
    recipe = find_recipe(name)
    stages = "\n".join(_stage_in_words(stage) for stage in recipe.stages)
    if name not in RECIPES:
        return f"That of the small sizes.\n{stages}\n\n{recipe.to_yaml()}"
    return f"{RECIPES[name].about}\n{stages}\n\n{about_family(name)}\n\n{recipe.to_yaml()}"


def _stage_in_words(stage: Stage) -> str:
    scales = stage.optimizer.lr_images is not None
    return f"Trained in {stage.in_words()}{', with another batch in proportion to it' if scales else ''}."


def _plain(value: object) -> object:
    """Tuples as YAML has them."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _values(hint: object) -> str:
    """Types and words an argument may have, as --set takes them."""
    if get_origin(hint) is Annotated:
        kind, *bounds = get_args(hint)
        return _values(kind) + "".join(_bounds(limit) for bound in bounds for limit in bound.metadata)
    if get_origin(hint) is dict:
        key, value = map(_values, get_args(hint))
        return f"{{{key}: {value}, ...}}"
    if get_origin(hint) is tuple:
        return f"[{', '.join('...' if part is ... else _values(part) for part in get_args(hint))}]"
    if parts := get_args(hint):
        return " | ".join(map(_values, parts))
    return "null" if hint is type(None) else hint.__name__ if isinstance(hint, type) else str(hint)


def _bounds(limit: object) -> str:
    """A bound of a number, behind its type."""
    signs = {"gt": " > ", "ge": " ≥ ", "le": " ≤ "}
    return "".join(f"{sign}{getattr(limit, name):g}" for name, sign in signs.items() if hasattr(limit, name))


def _first_line(builder: Callable[..., object]) -> str:
    return (builder.__doc__ or "").split("\n")[0]


def _measured(name: str) -> tuple[str, dict[str, int]]:
    """Task and parameters of each part, counted on the meta device: nothing is allocated."""
    with torch.device("meta"):
        system = find_builder(name)(num_classes=80)
    parts = cast(nn.Module, system).named_children()
    sizes = {part: sum(p.numel() for p in child.parameters()) for part, child in parts}
    return system.task, {part: size for part, size in sizes.items() if size}
