"""Recipes as the lists of the families name them: what each is, what to expect of it, and how runs of its kind are trained."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from maskwright.recipes.recipe import AugmentOptions, OptimizerOptions, Recipe, ScheduleOptions, Stage

SMALL_OPTIMIZER = OptimizerOptions(
    kind="adamw", lr=5e-4, weight_decay=0.05, bias_weight_decay=0.0, norm_weight_decay=0.0, clip_norm=5.0
)

IMAGENET = "imagenet"
"""Where the weights of lite systems' backbones come from: a package that is installed with ours."""


class KnownRecipe(NamedTuple):
    """A recipe under its name, with what it is and what to expect of it in a line."""

    name: str
    about: str
    recipe: Recipe


@dataclass(frozen=True)
class Training:
    """How systems are trained that are trained alike, as their papers have it: the last weights count, not averaged."""

    stages: tuple[Stage, ...]
    train_on: Literal["all", "objects", "keypoints"] = "all"
    evaluate_every: int = 1

    def of(
        self, system: str, about: str, *, suffix: str = "", backbone_weights: str | None = None, **arguments: Any
    ) -> KnownRecipe:
        """The run of a system.

        Args:
            suffix: of the run's name, where it is not the usual one of the system.
            backbone_weights: where it is made for certain ones; by default whoever trains chooses them.
            arguments: for the system's builder.
        """
        recipe = Recipe(
            system=system,
            stages=self.stages,
            ema_decay=0.0,
            workers=4,
            train_on=self.train_on,
            evaluate_every=self.evaluate_every,
            backbone_weights=backbone_weights,
            arguments=arguments,
        )
        return KnownRecipe(f"{system}{suffix}", about, recipe)


def paper(system: str, about: str, *stages: Stage, evaluate_every: int = 1) -> KnownRecipe:
    """The run of a system that is trained like no other."""
    return Training(stages, evaluate_every=evaluate_every).of(system, about)


def small(system: str, about: str) -> KnownRecipe:
    """The run of a small system."""
    return KnownRecipe(system, about, small_recipe(system))


def lite(system: str, about: str) -> KnownRecipe:
    """The run of a lite system."""
    return KnownRecipe(system, about, lite_recipe(system))


def lite_recipe(system: str) -> Recipe:
    """From ImageNet weights, for a hundred images, the same for all lite systems: that of the small ones, more slowly."""
    recipe = small_recipe(system)
    optimizer = SMALL_OPTIMIZER.model_copy(update={"lr": 3e-4})
    stages = tuple(stage.model_copy(update={"optimizer": optimizer}) for stage in recipe.stages)
    return recipe.model_copy(update={"stages": stages, "backbone_weights": IMAGENET})


def small_recipe(system: str) -> Recipe:
    """From scratch, for hundreds of images, the same for all small systems, so that they compare fairly.

    30 epochs of AdamW on random windows of 256 px.
    """
    stage = Stage(
        epochs=30,
        batch_size=4,
        optimizer=SMALL_OPTIMIZER,
        schedule=ScheduleOptions(kind="cosine", warmup_steps=200),
        augment=AugmentOptions(crop_px="fit", jitter="fit", color=0.2),
    )
    return Recipe(system=system, stages=(stage,), fit_sizes=True, ema_decay=0.998)
