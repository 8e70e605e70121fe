"""What the batches of a stage are: whole images, or patches of them."""

from collections.abc import Iterator

from maskwright.data import CocoDataset
from maskwright.data.loader import Batch, Share, TrainingImages, TrainingSource, evaluation_batches, training_batches
from maskwright.data.patches import SAMPLERS, Objects, PatchAugmentation, TrainingPatches
from maskwright.data.proposals import Proposals
from maskwright.data.transforms import Compose
from maskwright.recipes import Stage
from maskwright.structures import PatchGeometry
from maskwright.systems import System
from maskwright.training.augmentation import augmentation, patch_augmentation


def training_source(
    stage: Stage, system: System, dataset: CocoDataset, seed: int, proposals: Proposals | None
) -> TrainingSource:
    """What a stage learns from."""
    if stage.patches is not None:
        options = stage.patches
        source = _patches(stage, system, dataset, patch_augmentation(stage.augment), options.batches_per_epoch, seed)
        if not len(source.sampler.objects.teaching):
            raise ValueError(
                f"{dataset.path}: no object, crowds left out, of at least {options.min_area_px:g} px² and "
                f"{options.min_side_px:g} px on both sides: lower patches.min_area_px and patches.min_side_px"
            )
        return source
    transform = augmentation(stage.augment, system.input, dataset.categories.keypoints)
    return TrainingImages(
        dataset, spec=system.input, transform=transform, batch_size=stage.batch_size, seed=seed, proposals=proposals
    )


def validation_batches(
    stage: Stage, system: System, dataset: CocoDataset, share: Share, proposals: Proposals | None
) -> Iterator[Batch]:
    """One process' batches for a stage's validation loss, always the same ones and not augmented."""
    if stage.patches is None:
        mine = dataset.subset(range(share.rank, len(dataset), share.processes))
        yield from evaluation_batches(mine, spec=system.input, batch_size=4, proposals=proposals)
    else:
        still = PatchAugmentation(Compose([]), Compose([]))
        source = _patches(stage, system, dataset, still, stage.patches.validation_batches, seed=0)
        if not len(source.sampler.objects.teaching):
            return
        batches = training_batches(source, workers=0, share=share)
        for _ in range(stage.patches.validation_batches):
            yield next(batches)


def _patches(
    stage: Stage, system: System, dataset: CocoDataset, augment: PatchAugmentation, num_batches: int, seed: int
) -> TrainingPatches:
    options, geometry = stage.patches, getattr(system, "geometry", None)
    assert options is not None
    if not isinstance(geometry, PatchGeometry):
        raise ValueError("the recipe trains on patches, but its system looks at whole images: leave `patches` away")
    area, side = options.min_area_px, options.min_side_px
    objects = Objects(dataset, system.input, geometry, min_area_px=area, min_side_px=side)
    return TrainingPatches(
        SAMPLERS[options.rule](objects),
        spec=system.input,
        augment=augment,
        kinds=options.kinds,
        num_batches=num_batches,
        batch_size=stage.batch_size,
        seed=seed,
    )
