"""Other people's checkpoints become runs of ours."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from maskwright.formats.dataset import Categories
from maskwright.formats.files import write_json
from maskwright.runs.checkpoints import NORM_EPS, ModelCard, all_arguments, build_system, load_strictly, save_model
from maskwright.weights import deepmask, detectron2, embedmask, mnc, torchvision
from maskwright.weights.conversion import Converted, Source
from maskwright.weights.files import read_state_dict

_EMBEDMASK = [f"embedmask-{depth}{version}" for depth in ("r50", "r101") for version in ("", "-arxiv", "-scalar", "-fused")]
_FLAT = [f"{kind}-rcnn-{depth}-{body}" for kind in ("faster", "mask") for depth in ("r50", "r101") for body in ("c4", "dc5")]
_DEEP = [f"{kind}-rcnn-{depth}-fpn" for kind in ("faster", "keypoint", "mask") for depth in ("r101", "x101")]
_DETECTRON2 = [*_FLAT, *_DEEP, "mask-keypoint-rcnn-r50-fpn"]
IMPORTABLE: dict[str, tuple[str, ...]] = {  # what is asked for → builders with the parts such weights were trained with
    "deepmask-r50": ("deepmask-r50",),
    "faster-rcnn-r50-fpn": ("faster-rcnn-r50-fpn-torchvision", "faster-rcnn-r50-fpn-torchvision-v2", "faster-rcnn-r50-fpn"),
    "fcos-r50": ("fcos-r50-torchvision",),
    "keypoint-rcnn-r50-fpn": ("keypoint-rcnn-r50-fpn-torchvision", "keypoint-rcnn-r50-fpn"),
    "mask-rcnn-r50-fpn": ("mask-rcnn-r50-fpn-torchvision", "mask-rcnn-r50-fpn-torchvision-v2", "mask-rcnn-r50-fpn"),
    "mnc-vgg16": ("mnc-vgg16-released",),
    "sharpmask-r50": ("sharpmask-r50",),
    **{name: (name,) for name in (*_EMBEDMASK, *_DETECTRON2)},
}

_FINE_TUNED = "weights fine-tuned from those torchvision publishes were trained with eps 0: import those with --norm-eps 0"


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
    """Make a run of another toolkit's checkpoint, whatever its classes.

    torchvision's Faster, Mask and Keypoint R-CNN (R50-FPN) and FCOS; detectron2's Faster, Mask and Keypoint
    R-CNN (.pkl files of its zoo, or .pth); the authors' EmbedMask, DeepMask and SharpMask (.t7 files of Torch7) and MNC
    (.caffemodel or .caffemodel.h5 of Caffe). The run records the parts these weights were trained with; torchvision's answer as
    they do there. Rows keep their numbers as original ids; where there are as many as COCO has (torchvision 91, others 80),
    they get its names and ids.

    Args:
        file: a .pth, .pkl, .safetensors, .t7, .caffemodel or .caffemodel.h5 file, never executed.
        system: one of IMPORTABLE, or a builder it stands for.
        out: the run folder to make.
        classes: names of the rows, the background's left out; by default COCO's where their number says so, else the numbers.
        norm_eps: of torchvision's frozen norms, which the file does not hold. By default 0 for the files torchvision publishes
            of its R-CNNs, recognized by their hash, and 1e-5 for all others; a model fine-tuned from those wants 0 as well.
        arguments: further ones of the builder, for example short_px.
        say: hears what was decided.

    Raises:
        ValueError: a file that is not such a checkpoint, with what is missing, left over or of another shape.
    """
    file, out = Path(file), Path(out)
    converted = read_checkpoint(file, _check(system, out, arguments or {}))
    builder = converted.system
    names = _names(file, converted, classes)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    is_official = any(digest.startswith(known) for known in torchvision.OFFICIAL)
    given = _arguments(file, converted, arguments or {}, say)
    if "norm_eps" in all_arguments(builder, given):
        given["norm_eps"] = norm_eps if norm_eps is not None else 0.0 if is_official else NORM_EPS
    elif norm_eps is not None:
        raise ValueError(f"{file}: the norms of {builder} have the eps of its authors: leave --norm-eps out")
    network = build_system(builder, given)
    load_strictly(network, converted.tensors, file)
    card = ModelCard(
        system=builder,
        arguments=all_arguments(builder, given),
        categories=Categories(names, converted.ids, converted.keypoints),
        input=network.input,
    )
    save_model(out / "best", card, network.state_dict())
    write_json(out / "import.json", {"file": file.name, "sha256": digest, "arguments": card.arguments}, indent=2)
    how = "as published" if is_official else "the default" if norm_eps is None else "as given"
    eps = f"norm eps {given['norm_eps']:g} ({how}), " if "norm_eps" in given else ""
    say(f"{builder}: {len(names)} classes, {eps}{len(converted.tensors)} tensors")
    if classes is None:
        say(f"classes named {', '.join(names[:3])}, ...: give others with --classes")
    if converted.norm_eps_unknown and not is_official and norm_eps is None:
        say(_FINE_TUNED)
    return card


def _check(system: str, out: Path, arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """The builders for what is asked for, after a look at all that needs no file."""
    builders = {builder: (builder,) for found in IMPORTABLE.values() for builder in found} | IMPORTABLE
    if system not in builders:
        raise ValueError(f"weights cannot be imported into {system!r} yet: there are {', '.join(IMPORTABLE)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: the folder is not empty: choose another --out")
    if taken := {"num_classes", "num_keypoints", "norm_eps", "branch_norm"} & set(arguments):
        known = "the file tells the classes and how it was built, --norm-eps gives the norms' eps"
        raise ValueError(f"{', '.join(sorted(taken))} cannot be set: {known}")
    return builders[system]


def _arguments(file: Path, converted: Converted, given: Mapping[str, Any], say: Callable[[str], object]) -> dict[str, Any]:
    """What the file tells, what is assumed, and what was given."""
    if "weights_origin" in given and "weights_origin" not in converted.assumed:
        raise ValueError(f"{file}: weights_origin cannot be set: the file tells whose weights they are")
    for name, value in converted.assumed.items():
        if name not in given:
            say(f"{name}={value} is assumed, as the file does not tell: if you know better, --set {name}=...")
    return {**converted.arguments, **converted.assumed, **given}


def _names(file: Path, converted: Converted, given: Sequence[str] | None) -> tuple[str, ...]:
    """A name for each row beside the background's."""
    names = converted.names if given is None else tuple(given)
    repeated = "" if len(set(names)) == len(names) else ", some of them twice"
    if len(names) != len(converted.ids) or repeated:
        raise ValueError(
            f"{file}: has rows for {len(converted.ids)} classes beside the background, got {len(names)} names{repeated}: "
            "give each row a name of its own, in order"
        )
    return names


def read_checkpoint(file: Path, builders: Sequence[str]) -> Converted:
    """A checkpoint of what one of the builders builds, in our names.

    Raises:
        ValueError: damaged, or of something else.
    """
    state = read_state_dict(file)
    sources: list[Source] = [torchvision, detectron2, embedmask, deepmask, mnc]
    for source in sources:
        if source.recognizes(state):
            try:
                converted = source.convert(state)
            except ValueError as error:
                raise ValueError(f"{file}: does not fit the network: {error}") from None
            if converted.system not in builders:
                right = next((asked for asked, found in IMPORTABLE.items() if converted.system in found), None)
                if right is None:
                    raise ValueError(f"{file}: holds the weights of {converted.system}, which is not built here yet")
                raise ValueError(f"{file}: holds the weights of another system: import it with --system {right}")
            return converted
    some = ", ".join(list(state)[:3])
    known = "torchvision, detectron2 (R-CNNs), or the authors of EmbedMask, DeepMask, SharpMask or MNC"
    raise ValueError(f"{file}: not a checkpoint of {known} (it holds {some}, ...)")
