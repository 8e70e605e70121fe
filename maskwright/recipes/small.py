"""Runs of the small sizes: from scratch, for hundreds of images, and the same for all systems, so that they compare fairly."""

from maskwright.recipes.recipe import AugmentOptions, OptimizerOptions, Recipe, ScheduleOptions, Stage


def small_recipe(system: str) -> Recipe:
    """30 epochs of AdamW on random windows of 256 px."""
    stage = Stage(
        epochs=30,
        batch_size=4,
        optimizer=OptimizerOptions(
            kind="adamw", lr=5e-4, weight_decay=0.05, bias_weight_decay=0.0, norm_weight_decay=0.0, clip_norm=5.0
        ),
        schedule=ScheduleOptions(kind="cosine", warmup_steps=200),
        augment=AugmentOptions(crop_px=256, jitter=(0.5, 1.6), vertical_flip=0.0, color=0.2),
    )
    return Recipe(system=system, stages=(stage,), ema_decay=0.998)
