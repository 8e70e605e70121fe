"""What training starts from: a run, a weights file, or a word for weights that others publish."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from maskwright.formats.dataset import Categories
from maskwright.runs.checkpoints import PROPOSER, ModelCard, all_arguments, check_norms, find_weights, read_model
from maskwright.runs.importing import read_checkpoint
from maskwright.systems import SYSTEMS, System
from maskwright.systems.rcnn.keypoints import KEYPOINT_LAYER
from maskwright.weights.published import PUBLISHED, Published, fetch

COCO = "coco"


def find_published(init: str | Path, system: str) -> Published | None:
    """The weights that the word "coco" stands for; None for anything else, which is a path.

    The text "coco" is the word, even where a file or folder has that name: that one is "./coco", or a `Path`.

    Raises:
        ValueError: no such weights are published for this system.
    """
    if init != COCO:
        return None
    if system not in PUBLISHED:
        raise ValueError(
            f"no weights on COCO are published that fit {system}: there are for {', '.join(PUBLISHED)}; others start from a "
            "run or a weights file, --init RUN|FILE (a file or folder of that name is ./coco)"
        )
    return PUBLISHED[system]


def arguments_of(init: str | Path) -> dict[str, Any]:
    """What the builder of weights to start from was told, and what it took by itself; nothing of published ones.

    Raises:
        ValueError: no model of ours.
    """
    if init == COCO:
        return {}
    card = read_model(find_weights(Path(init)))[1]
    return all_arguments(card.system, card.arguments) if card.system in SYSTEMS else card.arguments


def initialize(system: System, card: ModelCard, init: str | Path, say: Callable[[str], object]) -> None:
    """Start from the weights of another model of the same network; rows of classes it knows by name come along.

    It may lack whole parts, if all it has finds a place: DeepMask starts SharpMask, Faster R-CNN starts Mask R-CNN. What knows
    keypoints starts afresh where those are others.

    Args:
        card: of `system`.
        init: a run folder or weights file, or "coco", see `find_published`.
        say: hears what is downloaded, and which rows and parts start afresh.

    Raises:
        ValueError: the weights cannot be had, or belong to another network.
    """
    file, tensors, source_card = _open_start(init, card, say)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(PROPOSER)}
    check_norms(card, source_card, file)
    if source_card.system != card.system:
        say(f"{file}: trained as {source_card.system}, whose parts without weights may differ from those of {card.system}")
    categories, known = card.categories, source_card.categories
    state = {name: tensor.clone() for name, tensor in system.state_dict().items()}
    pairs = [(i, known.names.index(name)) for i, name in enumerate(categories.names) if name in known.names]
    fresh = [name for name in categories.names if name not in known.names]
    rows_per_class = system.class_rows()
    missing = _missing_parts(state, tensors)
    if known.keypoints is not None and categories.keypoints is not None and known.keypoints.names != categories.keypoints.names:
        missing = (*missing, KEYPOINT_LAYER)
    for name, tensor in state.items():
        if name.startswith(missing):
            continue
        source = tensors.get(name)
        rows = rows_per_class.get(name)
        if source is None or (rows is None and source.shape != tensor.shape) or source.shape[1:] != tensor.shape[1:]:
            got = "missing" if source is None else tuple(source.shape)
            raise ValueError(
                f"{file}: {name} is {got}, expected {tuple(tensor.shape)}: these weights belong to another network"
            )
        if rows is None:
            tensor.copy_(source)
        elif len(tensor) - rows * len(categories) != len(source) - rows * len(known):
            raise ValueError(
                f"{file}: {name} has a background, or has none, unlike here: these weights belong to another network"
            )
        else:
            _copy_class_rows(tensor, source, rows, pairs, (len(categories), len(known)))
    lost = [name for name in tensors if name not in state and name.endswith("running_var")]
    if lost:
        known_as = {key: value for key, value in source_card.arguments.items() if "norm" in key}
        raise ValueError(
            f"{file}: its norms are frozen ({lost[0]}), those of {card.system} are not: give the arguments it has, {known_as}, "
            "with --set arguments.NAME=VALUE"
        )
    system.load_state_dict(state)
    say(f"started from {file}: {len(pairs)} of {len(categories)} classes known by name")
    if fresh:
        say(f"rows that start afresh: {', '.join(fresh)}")
    if missing:
        say(f"parts that start afresh: {', '.join(part.removesuffix('.') for part in missing)}")


def _open_start(init: str | Path, card: ModelCard, say: Callable[[str], object]) -> tuple[Path, dict[str, Tensor], ModelCard]:
    """The file, its tensors by our names, and the card of the model; of published weights that of a run made of them."""
    published = find_published(init, card.system)
    if published is None:
        file = find_weights(Path(init))
        return file, *read_model(file)
    file = fetch(published, say)
    converted = read_checkpoint(file, (card.system,))
    arguments = all_arguments(card.system, {**converted.arguments, **published.arguments})
    categories = Categories(converted.names, converted.ids, converted.keypoints)
    return file, converted.tensors, replace(card, arguments=arguments, categories=categories)


def _missing_parts(state: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Parts of a network, as beginnings of names, of which another one has nothing; none if it has anything else."""
    if any(name not in state for name in tensors):
        return ()
    parts = dict.fromkeys(re.match(r"(instance_heads\.)?[^.]+\.", name + ".")[0] for name in state)  # type: ignore[index]
    return tuple(part for part in parts if not any(name.startswith(part) for name in tensors))


def _copy_class_rows(target: Tensor, source: Tensor, rows: int, pairs: list[tuple[int, int]], counts: tuple[int, int]) -> None:
    """Copy the rows of classes, and what follows them (the background)."""
    for new, old in pairs:
        target[new * rows : (new + 1) * rows] = source[old * rows : (old + 1) * rows].to(target.dtype)
    if len(target) > counts[0] * rows:
        target[counts[0] * rows :] = source[counts[1] * rows :].to(target.dtype)
