"""The network of a run, and the weights it starts from."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from maskwright.formats import Dataset
from maskwright.layers.backbones import Backbone, ImageNetPart
from maskwright.layers.norms import has_frozen_norms
from maskwright.recipes import Recipe
from maskwright.runs import ModelCard, initialize
from maskwright.runs.checkpoints import ORIGIN, all_arguments, build_system, find_backbone, learns_keypoints
from maskwright.runs.starting import find_published
from maskwright.systems import System, Task
from maskwright.training.proposals import PROPOSAL
from maskwright.weights import load_backbone, load_part
from maskwright.weights.backbone import in_words, is_word, spell_out
from maskwright.weights.published import PUBLISHED


def new_system(recipe: Recipe, train_set: Dataset, console: Console) -> tuple[System, ModelCard]:
    """The network with its first weights, and what it takes to build it again."""
    arguments = all_arguments(recipe.system, {"num_classes": len(train_set.categories), **recipe.arguments})
    if learns_keypoints(recipe.system, recipe.arguments):
        assert train_set.categories.keypoints is not None
        joints = len(train_set.categories.keypoints.names)
        if recipe.arguments.get("num_keypoints", joints) != joints:
            raise ValueError(f"{train_set.path}: has {joints} keypoints: leave arguments.num_keypoints away")
        arguments["num_keypoints"] = joints
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)  # of the initial weights, for which torch takes no generator
        system = build_system(recipe.system, arguments)
    system.input = replace(system.input, intensity=recipe.intensity)
    categories = train_set.categories
    if system.task == Task.PROPOSALS:
        arguments["num_classes"], categories = 1, PROPOSAL
    return system, ModelCard(recipe.system, arguments, categories, system.input)


def suited(recipe: Recipe, init: str | Path, console: Console) -> Recipe:
    """The recipe with the arguments that published weights want, where it does not say otherwise."""
    published = find_published(init, recipe.system)
    wanted = {} if published is None else {k: v for k, v in published.arguments.items() if k not in recipe.arguments}
    for name, value in wanted.items():
        console.print(f"arguments.{name}={value}, as the weights on COCO want", highlight=False)
    return recipe.model_copy(update={"arguments": {**recipe.arguments, **wanted}})


def starting_weights(system: System, recipe: Recipe, card: ModelCard, init: str | Path | None, console: Console) -> Recipe:
    """Weights to start from: those of another run, of ImageNet, or none where the norms can do without.

    Returns:
        The recipe `with_tag`.
    """
    say = partial(console.print, highlight=False, soft_wrap=True)
    recipe = with_tag(recipe, system)
    if recipe.backbone_weights is not None:
        origin = card.arguments.get("weights_origin", ORIGIN)
        if is_word(recipe.backbone_weights) and origin != "timm":
            raise ValueError(f"timm's weights do not fit a ResNet of {origin}: leave arguments.weights_origin as it is")
        source = find_backbone(recipe.backbone_weights, card)
        backbones, others = _pretrained_parts(system)
        for name in _networks(system) if is_word(source) else ():
            say(f"backbone: {in_words(source, name, system.input)}")
        for part in backbones:
            load_backbone(part.network, part.name, source)
        for other in others:
            load_part(other, str(other.pretrained), other.sources, source)
    if init is not None:
        initialize(system, card, init, say)
    else:
        check_start(system, recipe)
    return recipe


def with_tag(recipe: Recipe, system: System) -> Recipe:
    """The recipe, which says of weights of timm which they are.

    Raises:
        ValueError: timm has none of that name for the system's networks.
    """
    if recipe.backbone_weights is None:
        return recipe
    return recipe.model_copy(update={"backbone_weights": spell_out(recipe.backbone_weights, _networks(system))})


def _networks(system: System) -> list[str]:
    """timm's names of the networks that may begin with weights of ImageNet, each once."""
    backbones, others = _pretrained_parts(system)
    return list(dict.fromkeys([*(part.name for part in backbones), *(str(part.pretrained) for part in others)]))


def _pretrained_parts(system: System) -> tuple[list[Backbone], list[ImageNetPart]]:
    """What may begin with weights of an ImageNet network."""
    others = [part for part in system.modules() if isinstance(part, ImageNetPart) and part.pretrained is not None]
    return [part for part in system.modules() if isinstance(part, Backbone)], others


def check_start(system: System, recipe: Recipe) -> None:
    """Make sure that no weights are missing which training cannot make.

    Raises:
        ValueError: there are frozen parts, and nothing pretrained for them.
    """
    backbones, others = _pretrained_parts(system)
    start = "--init RUN|FILE|coco" if recipe.system in PUBLISHED else "--init RUN|FILE"
    inside = {module for part in (*backbones, *others) for module in part.modules()}
    if has_frozen_norms(module for module in system.modules() if module not in inside):
        raise ValueError(
            f"{recipe.system} has frozen norms outside the backbone, which only make sense with pretrained weights: "
            f"add {start}, or train them with --set arguments.branch_norm=group"
        )
    if recipe.backbone_weights is None and (has_frozen_norms(system.modules()) or _never_learns(system, recipe)):
        raise ValueError(
            f"{recipe.system} has frozen norms or parts, which only make sense with pretrained weights: add {start}, "
            "--set backbone_weights=FILE (or =timm to download them), or train norms from scratch with "
            "--set arguments.norm=group --set frozen=[]"
        )


def _never_learns(system: System, recipe: Recipe) -> bool:
    """Whether some parameter is frozen in every stage."""
    names = [name for name, _ in system.named_parameters()]
    return any(all(name.startswith(stage.frozen) for stage in recipe.stages) for name in names)
