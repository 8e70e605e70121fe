"""Other people's checkpoints become runs of ours."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from maskwright.data.coco import Categories
from maskwright.data.files import write_json
from maskwright.runs.checkpoints import ModelCard, all_arguments, build_system, load_strictly, save_model
from maskwright.systems import Task
from maskwright.weights import torchvision
from maskwright.weights.files import read_state_dict

_FROM_TORCHVISION = {  # what is asked for → the builder with the parts these weights were trained with
    "faster-rcnn-r50-fpn": "faster-rcnn-r50-fpn-torchvision",
    "mask-rcnn-r50-fpn": "mask-rcnn-r50-fpn-torchvision",
}


def import_weights(
    file: str | Path,
    *,
    system: str,
    out: str | Path,
    classes: Sequence[str] | None = None,
    norm_eps: float | None = None,
    arguments: Mapping[str, Any] | None = None,
    say: Callable[[str], object] = lambda text: None,
) -> ModelCard:
    """Make a run of a checkpoint of torchvision's Faster or Mask R-CNN (R50-FPN, first versions), whatever its classes.

    The run records torchvision's own parts, so that it answers as torchvision does. Every row but the background's keeps its
    number as original id; the rows of COCO also their names.

    Args:
        file: a .pth or .safetensors file, never executed.
        system: "mask-rcnn-r50-fpn" or "faster-rcnn-r50-fpn".
        out: the run folder to make.
        classes: names of rows 1, 2, …; by default COCO's for 91 rows, else the numbers.
        norm_eps: of the frozen norms, which the file does not hold. By default 0 for the files torchvision publishes,
            recognized by their hash, and 1e-5 for all others; a model fine-tuned from published weights wants 0 as well.
        arguments: further ones of the builder, for example short_px.
        say: hears what was decided.

    Raises:
        ValueError: a file that is not such a checkpoint, with what is missing, left over or of another shape.
    """
    file, out = Path(file), Path(out)
    builder = _check(system, out, arguments or {})
    converted = _read_torchvision(file)
    names = _names(file, converted.num_classes, classes)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    is_official = any(digest.startswith(known) for known in torchvision.OFFICIAL)
    eps = norm_eps if norm_eps is not None else 0.0 if is_official else 1e-5
    given = {"num_classes": converted.num_classes, "norm_eps": eps, **(arguments or {})}
    network = build_system(builder, given)
    if converted.has_masks != (network.task == Task.INSTANCES):
        has, other = ("has a", "mask-rcnn") if converted.has_masks else ("has no", "faster-rcnn")
        raise ValueError(f"{file}: {has} mask head: import it with --system {other}-r50-fpn")
    load_strictly(network, converted.tensors, file)
    card = ModelCard(
        system=builder,
        arguments=all_arguments(builder, given),
        categories=Categories(names, tuple(range(1, converted.num_classes + 1))),
        input=network.input,
    )
    save_model(out / "best", card, network.state_dict())
    write_json(out / "import.json", {"file": file.name, "sha256": digest, "arguments": card.arguments}, indent=2)
    how = "as published" if is_official else "the default" if norm_eps is None else "as given"
    say(f"{builder}: {converted.num_classes} classes, norm eps {eps:g} ({how}), {len(converted.tensors)} tensors")
    if classes is None:
        say(f"classes named {', '.join(names[:3])}, ...: give others with --classes")
    if not is_official and norm_eps is None and not converted.has_trained_norms:
        say("weights fine-tuned from those torchvision publishes were trained with eps 0: import those with --norm-eps 0")
    return card


def _check(system: str, out: Path, arguments: Mapping[str, Any]) -> str:
    """The builder for what is asked for, after a look at all that needs no file."""
    builders = _FROM_TORCHVISION | {builder: builder for builder in _FROM_TORCHVISION.values()}
    if system not in builders:
        raise ValueError(f"weights cannot be imported into {system!r} yet: there are {', '.join(_FROM_TORCHVISION)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: the folder is not empty: choose another --out")
    if taken := {"num_classes", "norm_eps"} & set(arguments):
        raise ValueError(f"{', '.join(sorted(taken))} cannot be set: rows count the classes, --norm-eps gives the norms' eps")
    return builders[system]


def _names(file: Path, num_classes: int, given: Sequence[str] | None) -> tuple[str, ...]:
    """A name for each row beside the background's."""
    names = torchvision.class_names(num_classes) if given is None else list(given)
    repeated = "" if len(set(names)) == len(names) else ", some of them twice"
    if len(names) != num_classes or repeated:
        raise ValueError(
            f"{file}: has rows for {num_classes} classes beside the background, got {len(names)} names{repeated}: "
            "give each row a name of its own, in order"
        )
    return tuple(names)


def _read_torchvision(file: Path) -> torchvision.Converted:
    """A checkpoint in our names."""
    state = read_state_dict(file)
    if torchvision.is_second_version(state):
        raise ValueError(f"{file}: of a second version (..._resnet50_fpn_v2): only the first ones can be imported")
    if not torchvision.is_torchvision(state):
        some = ", ".join(list(state)[:3])
        raise ValueError(f"{file}: not a checkpoint of torchvision's Faster or Mask R-CNN (it holds {some}, ...)")
    try:
        return torchvision.convert(state)
    except ValueError as error:
        raise ValueError(f"{file}: does not fit the network: {error}") from None
