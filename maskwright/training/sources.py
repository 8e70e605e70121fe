"""What a run learns from: its images, and the batches of a stage, whole images or patches of them."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from maskwright.data.loader import Batch, Share, TrainingImages, TrainingSource, evaluation_batches, training_batches
from maskwright.data.patches import SAMPLERS, Objects, PatchAugmentation, TrainingPatches
from maskwright.data.proposals import Proposals
from maskwright.data.transforms import Compose
from maskwright.formats import Dataset, open_datasets
from maskwright.formats.catalog import images_to_learn_from
from maskwright.recipes import Recipe, Stage
from maskwright.runs.checkpoints import learns_keypoints
from maskwright.structures import PatchGeometry
from maskwright.systems import System
from maskwright.training.augmentation import augmentation, patch_augmentation


def training_source(stage: Stage, system: System, dataset: Dataset, seed: int, proposals: Proposals | None) -> TrainingSource:
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
        dataset,
        spec=system.input,
        transform=transform,
        batch_size=stage.batch_size,
        seed=seed,
        proposals=proposals,
        copy_paste=stage.augment.copy_paste,
    )


def validation_batches(
    stage: Stage, system: System, dataset: Dataset, share: Share, proposals: Proposals | None
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
    stage: Stage, system: System, dataset: Dataset, augment: PatchAugmentation, num_batches: int, seed: int
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


def open_data(
    recipe: Recipe, *, with_images: bool = True, say: Callable[[str], object] = lambda text: None
) -> tuple[Dataset, Dataset]:
    """The images a recipe learns from, and those it is validated on.

    Args:
        with_images: whether to look at the files of the images.
        say: hears what becomes of images without objects.

    Raises:
        ValueError: data that cannot be read, that has nothing to learn from, or images that are not there.
    """
    assert recipe.data is not None
    options, has_keypoints = recipe.data, learns_keypoints(recipe.system, recipe.arguments)
    train_set, val_set = open_datasets(
        Path(options.path),
        images=None if options.images is None else Path(options.images),
        val_fraction=options.val_fraction,
        classes=options.classes,
        invalid=options.invalid,
        keypoints=has_keypoints if options.keypoints is None else options.keypoints,
    )
    if has_keypoints and train_set.categories.keypoints is None:
        raise ValueError(f"{train_set.path}: none of its categories has keypoints, which {recipe.system} needs")
    if has_keypoints:
        known, found = train_set.categories.keypoints, val_set.categories.keypoints
        names = [", ".join(schema.names) if schema else "none" for schema in (found, known)]
        if names[0] != names[1]:
            raise ValueError(f"{val_set.path}: its keypoints ({names[0]}) are not those of {train_set.path} ({names[1]})")
    if recipe.flip_pairs is not None:
        if not has_keypoints:
            raise ValueError(f"flip_pairs are of keypoints, which {recipe.system} does not learn: leave them away")
        train_set, val_set = (_with_flip_pairs(dataset, recipe.flip_pairs) for dataset in (train_set, val_set))
    say(_images_without_objects(train_set, recipe))
    train_set = train_set.subset(images_to_learn_from(train_set, recipe.train_on))
    if not has_keypoints:
        train_set, val_set = train_set.without_keypoints(), val_set.without_keypoints()
    for dataset in (train_set, val_set) if with_images else ():
        gone = [str(dataset.image_path(i)) for i in range(len(dataset)) if not dataset.image_path(i).is_file()]
        if gone:
            more = f" and {len(gone) - 5} more" if len(gone) > 5 else ""
            raise ValueError(f"{dataset.path}: {len(gone)} images are missing: {', '.join(gone[:5])}{more}")
        for i in range(len(dataset)):
            dataset.check_image(i)
    return train_set, val_set


def _with_flip_pairs(dataset: Dataset, pairs: Sequence[tuple[str, str]]) -> Dataset:
    assert dataset.categories.keypoints is not None
    return dataset.with_schema(dataset.categories.keypoints.with_flip_pairs(pairs))


def _images_without_objects(dataset: Dataset, recipe: Recipe) -> str:
    """How many there are, and whether they teach."""
    of_points = recipe.train_on == "keypoints"
    count = int((dataset.num_objects(with_keypoints=of_points) == 0).sum())
    words = f"training images without {'visible keypoints' if of_points else 'objects'}"
    if not count:
        return f"{words}: none of {len(dataset)}"
    patches = [stage.patches for stage in recipe.stages]
    if recipe.train_on != "all":
        fate = f"left out (train_on: {recipe.train_on}); --set train_on=all learns from them"
    elif all(options and (options.rule == "official" or "score" not in options.kinds) for options in patches):
        fate = "not shown, as patches are cut from images with objects"
    else:
        fate = "learnt from, as background"
    return f"{words}: {count} of {len(dataset)}, {fate}"


def split_of(datasets: tuple[Dataset, Dataset]) -> dict[str, list[int]]:
    """Ids of the images of both, as a run keeps them."""
    return {"train": datasets[0].image_ids.tolist(), "val": datasets[1].image_ids.tolist()}
