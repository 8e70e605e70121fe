"""Runs of DeepMask and SharpMask.

Paper sizes: the authors' schedules on COCO, batches of 32 patches, 4,000 of them an epoch, from ImageNet weights.

    maskwright train sharpmask-r50 --data coco --set backbone_weights=timm --out runs/sharpmask

Cost: about five days for DeepMask and two for the refinement on a K40 (the papers and users of the code). Expect mask AR@10,
100, 1000 of 14.4, 25.8, 33.1 for DeepMask and 15.6, 27.6, 35.5 for SharpMask (SharpMask, table 3). Not run by us at this size.

The code's schedule of the second stage never takes effect, its rate stays at 0.001; here it drops as it was meant to.

Small sizes: from scratch, scales chosen by the sizes of the training objects.

    maskwright train sharpmask-small --data nuclei --out runs/sharpmask-nuclei
"""

from maskwright.recipes.known import IMAGENET, SMALL_OPTIMIZER, KnownRecipe, paper
from maskwright.recipes.recipe import AugmentOptions, OptimizerOptions, PatchOptions, Recipe, ScheduleOptions, Stage
from maskwright.structures import PatchKind

MASKS_AND_SCORES: dict[PatchKind, float] = {"mask": 0.5, "score": 0.5}
REFINED: dict[PatchKind, float] = {"refined": 1.0}
DEEPMASK_PARTS = ("backbone.", "head.", "mask_head.")
REFINEMENT = ("refinement.",)

DEEPMASK_STAGE = Stage(
    epochs=300,
    batch_size=32,
    optimizer=OptimizerOptions(
        kind="sgd", lr=0.001, lr_images=32, weight_decay=5e-4, bias_weight_decay=5e-4, norm_weight_decay=5e-4
    ),
    schedule=ScheduleOptions(kind="step", warmup_steps=0, factors=(0.5, 0.1), drops=(50 / 300, 120 / 300)),
    patches=PatchOptions(kinds=MASKS_AND_SCORES, batches_per_epoch=4000, validation_batches=500),
)
"""The code's schedule: 300 epochs, rate 0.001, 0.0005 from the 51st, 0.0001 from the 121st."""

REFINEMENT_STAGE = Stage(
    epochs=120,
    batch_size=32,
    optimizer=OptimizerOptions(
        kind="sgd", lr=0.001, lr_images=32, momentum=0.0, weight_decay=0.0, bias_weight_decay=0.0, norm_weight_decay=0.0
    ),
    schedule=ScheduleOptions(kind="step", warmup_steps=0, factors=(0.5, 0.1), drops=(50 / 120, 80 / 120)),
    patches=PatchOptions(kinds=REFINED, batches_per_epoch=4000, validation_batches=500),
    frozen=DEEPMASK_PARTS,
)
"""The refinement alone: 0.001, 0.0005 from the 51st epoch, 0.0001 from the 81st; neither momentum nor decay (the code)."""


_SMALL = Stage(
    epochs=30,
    batch_size=32,
    optimizer=SMALL_OPTIMIZER.model_copy(update={"lr": 1e-3}),
    schedule=ScheduleOptions(kind="cosine", warmup_steps=100),
    augment=AugmentOptions(color=0.2),
    patches=PatchOptions(kinds=MASKS_AND_SCORES, batches_per_epoch=50),
)


def _first(stage: Stage) -> Stage:
    """DeepMask, on which a refinement is to be learnt."""
    return stage.model_copy(update={"frozen": REFINEMENT, "is_scored": False})


_SMALL_REFINEMENT = _SMALL.model_copy(
    update={"epochs": 10.0, "patches": PatchOptions(kinds=REFINED, batches_per_epoch=50), "frozen": DEEPMASK_PARTS}
)


def _small(system: str, about: str, *stages: Stage) -> KnownRecipe:
    recipe = Recipe(system=system, stages=stages, fit_sizes=True, ema_decay=0.998, evaluate_every=10, workers=1)
    return KnownRecipe(system, about, recipe)


def _lite(system: str, about: str, *stages: Stage) -> KnownRecipe:
    known = _small(system, about, *stages)
    return known._replace(recipe=known.recipe.model_copy(update={"backbone_weights": IMAGENET}))


RECIPES = (
    paper(
        "deepmask-r50",
        "DeepMask, R50: expect mask AR@10, 100, 1000 of 14.4, 25.8, 33.1 (SharpMask, table 3).",
        DEEPMASK_STAGE,
        evaluate_every=10,
    ),
    paper(
        "deepmask-vgg",
        "DeepMask, VGG-A: expect mask AR@10, 100, 1000 of 12.6, 24.5, 33.1 (DeepMask, table 1).",
        DEEPMASK_STAGE,
        evaluate_every=10,
    ),
    paper(
        "sharpmask-r50",
        "SharpMask, R50, in two stages: expect mask AR@10, 100, 1000 of 15.6, 27.6, 35.5 (SharpMask, table 3).",
        _first(DEEPMASK_STAGE),
        REFINEMENT_STAGE,
        evaluate_every=10,
    ),
    _lite("deepmask-lite", "DeepMask, lite.", _SMALL),
    _lite("sharpmask-lite", "SharpMask, lite, in two stages.", _first(_SMALL), _SMALL_REFINEMENT),
    _small("deepmask-small", "DeepMask, small.", _SMALL),
    _small("sharpmask-small", "SharpMask, small, in two stages.", _first(_SMALL), _SMALL_REFINEMENT),
)
