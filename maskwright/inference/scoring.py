"""What a model finds in a whole data set, in the form that is scored."""

from dataclasses import replace
from typing import Any

from rich.console import Console

from maskwright.data.loader import evaluation_batches
from maskwright.formats.dataset import Categories, Dataset
from maskwright.inference.predictor import Model
from maskwright.metrics import detect
from maskwright.runs.progress import shown


def detections(
    model: Model, dataset: Dataset, *, limit: int, console: Console, class_agnostic: bool = False
) -> list[dict[str, Any]]:
    """Detections as COCO results; those of classes that the data does not have are left out.

    Args:
        limit: objects of an image at most.
        class_agnostic: whether classes do not matter; all answers get the id of the first.

    Raises:
        ValueError: model and data have no class in common.
    """
    if class_agnostic:
        categories = Categories(model.names, (dataset.categories.ids[0],) * len(model.names))
    else:
        categories = match_categories(model.categories, dataset.categories, str(dataset.path), console)
    batches = evaluation_batches(dataset, spec=model.system.input, batch_size=4)
    with shown(console, "evaluate", total=len(dataset)) as bar:
        found = detect(
            lambda batch: model.detect(batch, max_detections=limit), batches, categories, device=model.device, done=bar.advance
        )
    known = set(dataset.categories.ids)
    return [entry for entry in found if entry["category_id"] in known]


def match_categories(model: Categories, data: Categories, where: str, console: Console) -> Categories:
    """The model's classes with the ids the data has for them; -1 for a class the data does not have.

    Classes are matched by name; by id only where the names are mere numbers.

    Raises:
        ValueError: nothing in common.
    """
    ids = dict(zip(data.names, data.ids, strict=True))
    if any(name in ids for name in model.names):
        unscored = [name for name in model.names if name not in ids]
        unknown = [name for name in data.names if name not in model.names]
        if unscored:
            console.print(f"not scored, as {where} has no such class: {', '.join(unscored)}", highlight=False)
        if unknown:
            console.print(f"unknown to the model, so that their AP is 0: {', '.join(unknown)}", highlight=False)
        return replace(model, ids=tuple(ids.get(name, -1) for name in model.names))
    nameless = all(name.isdigit() for name in data.names) or all(name.isdigit() for name in model.names)
    if nameless and set(model.ids) == set(data.ids):
        return model
    raise ValueError(
        f"{where}: its classes ({', '.join(data.names)}) have no names in common with the model's "
        f"({', '.join(model.names)}): evaluate on data of the same classes"
    )


def has_keypoints(model: Categories, dataset: Dataset) -> bool:
    """Whether keypoints can be scored.

    Raises:
        ValueError: model and data have keypoints, but not the same ones.
    """
    known, wanted = model.keypoints, dataset.categories.keypoints
    if known is not None and wanted is not None and known.names != wanted.names:
        names = [", ".join(schema.names) for schema in (wanted, known)]
        raise ValueError(f"{dataset.path}: its keypoints ({names[0]}) are not the model's ({names[1]})")
    return known is not None and wanted is not None


def has_masks(dataset: Dataset) -> bool:
    """Whether masks can be scored; some without a segmentation would count as never found.

    Raises:
        ValueError: some have one and others do not.
    """
    without = dataset.ids_without_mask()
    if 0 < len(without) < dataset.num_instances:
        raise ValueError(
            f"{dataset.path}: {len(without)} of {dataset.num_instances} annotations have no segmentation, for example "
            f"{', '.join(map(str, without[:5]))}: add them, or remove all to score boxes"
        )
    return not without
