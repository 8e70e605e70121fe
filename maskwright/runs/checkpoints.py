"""Models on disk: safetensors for the numbers, JSON for everything else. Loading one never runs code from it."""

import inspect
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, ValidationError, validate_call
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from maskwright.formats.dataset import Categories
from maskwright.formats.files import atomic_write, write_json
from maskwright.recipes.recipe import complaints
from maskwright.structures import InputSpec, KeypointSchema
from maskwright.systems import SYSTEMS, Sized, System, Task, current_name, find_builder
from maskwright.systems.proposals.propose_then_detect import ProposeThenDetect
from maskwright.weights.backbone import is_word

FORMAT = 2
KNOWN_FORMATS = (1, FORMAT)  # 1, until version 0.1: small systems had their images padded
WEIGHTS = "weights.safetensors"
CARD = "model.json"
NORM_EPS = 1e-5  # of frozen norms, where a system has no argument for it
PROPOSER = "proposer."  # before the names of weights of a system that a detector brings along
ORIGIN = "timm"  # of a ResNet's weights, likewise


@dataclass(frozen=True)
class ModelCard:
    """What is needed to build the network again and to name its answers.

    Args:
        system: a name in SYSTEMS, or "package.module:builder".
        arguments: the builder's, by name, the number of classes included.
        categories: names and original ids of the classes.
        input: how an image becomes pixels.
        proposer: of the proposal system a detector brings along.
    """

    system: str
    arguments: dict[str, Any]
    categories: Categories
    input: InputSpec
    proposer: "ModelCard | None" = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, data: dict[str, Any], source: Path) -> "ModelCard":
        """What `to_dict` gave.

        Raises:
            ValueError: not a model of ours, or of a later format.
        """
        try:
            if data["format"] not in KNOWN_FORMATS:
                raise ValueError(f"{source}: format {data['format']}, expected {FORMAT}: update maskwright to open it")
            names, ids = tuple(map(str, data["categories"]["names"])), tuple(map(int, data["categories"]["ids"]))
            schema = data["categories"].get("keypoints")
            system, arguments = current_name(str(data["system"])), dict(data["arguments"])
            if data["format"] == 1 and system in SYSTEMS and all_arguments(system, {}).get("size_divisor") is None:
                arguments.pop("size_divisor", None)  # nothing needed that padding, which moved group norms' statistics
            if not len(names) == len(ids) == arguments["num_classes"]:
                raise KeyError("categories")
            return cls(
                system=system,
                arguments=arguments,
                categories=Categories(names, ids, None if schema is None else KeypointSchema.from_dict(schema)),
                input=InputSpec.from_dict(data["input"]),
                proposer=None
                if data.get("proposer") is None
                else cls.from_dict({**data["proposer"], "format": data["format"]}, source),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{source}: not a model of maskwright ({error!r}): import other checkpoints first") from None


def build_system(name: str, arguments: Mapping[str, Any]) -> System:
    """A network by its builder's name and arguments, weights not yet loaded.

    Raises:
        ValueError: no such system, an argument its builder does not have, or a value the argument cannot have.
    """
    builder = find_builder(name)
    if not isinstance(builder, Sized):  # a plain function, which checks nothing itself
        builder = validate_call(config=ConfigDict(arbitrary_types_allowed=True))(builder)
    try:
        return builder(**all_arguments(name, arguments))
    except ValidationError as error:
        raise ValueError(f"the arguments of {name} do not fit:{complaints(error)}") from None
    except ValueError as error:
        raise ValueError(f"{name} cannot be built of these arguments: {error}") from None


def all_arguments(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A builder's arguments with its defaults filled in, as they are saved with a run.

    Raises:
        ValueError: no such system, or an argument its builder does not have.
    """
    known = inspect.signature(find_builder(name)).parameters
    unknown = [argument for argument in arguments if argument not in known]
    if unknown:
        raise ValueError(f"{name} has no argument {', '.join(unknown)}: there are {', '.join(known)}")
    return {**{key: p.default for key, p in known.items() if p.default is not p.empty}, **arguments}


def learns_keypoints(name: str, arguments: Mapping[str, Any]) -> bool:
    """Whether a system of that name and these arguments learns keypoints.

    Raises:
        ValueError: no such system, or an argument its builder does not have.
    """
    return all_arguments(name, arguments).get("num_keypoints") is not None


# Writing


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors and JSON metadata into one safetensors file, atomically."""
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    header = {key: json.dumps(value) for key, value in metadata.items()}
    atomic_write(path, lambda temporary: save_file(plain, temporary, metadata=header))


def save_model(folder: Path, card: ModelCard, weights: Mapping[str, Tensor]) -> None:
    """Write a model into a folder: the weights, which carry the card, and the card once more for people to read."""
    save_tensors(folder / WEIGHTS, weights, {"maskwright": card.to_dict()})
    write_json(folder / CARD, card.to_dict(), indent=2)


# Reading


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        ValueError: the file is damaged or not safetensors.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            metadata = {key: json.loads(header[key]) for key in ("maskwright", "training") if key in header}
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 (not a dict)
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: damaged, or not a safetensors file ({error})") from None


def read_model(file: Path) -> tuple[dict[str, Tensor], ModelCard]:
    """Weights, and the card in their header.

    Raises:
        ValueError: not a model of ours, or damaged.
    """
    tensors, metadata = read_tensors(file)
    if "maskwright" not in metadata:
        raise ValueError(f"{file}: not a model of maskwright: its header names no system")
    return tensors, ModelCard.from_dict(metadata["maskwright"], file)


def find_weights(path: Path) -> Path:
    """The weights file of a run folder (the best ones, else the last), of a model folder, or the file itself.

    Raises:
        ValueError: nothing there.
    """
    if path.is_file():
        return path
    for candidate in (path / "best" / WEIGHTS, path / "last" / WEIGHTS, path / WEIGHTS):
        if candidate.is_file():
            return candidate
    what = "no weights in this folder" if path.is_dir() else "there is no such run or weights file"
    raise ValueError(f"{path}: {what}; expected best/{WEIGHTS} or last/{WEIGHTS}")


def open_model(
    path: Path, arguments: Mapping[str, Any] | None = None, *, outside: str | None = None, proposer: Path | None = None
) -> tuple[System, ModelCard]:
    """Build a system and load its weights from a run folder or weights file.

    Args:
        arguments: builder arguments to use instead of the saved ones, for example max_detections; those that decide the size
            of the input decide it anew.
        outside: a system from outside the package that the caller vouches for.
        proposer: run of a proposal system, for a detector that brings none along, or in place of it.

    Raises:
        ValueError: not a model of ours, weights that do not fit, or a system from outside the package.
    """
    file = find_weights(path)
    tensors, card = read_model(file)
    if proposer is not None or card.proposer is not None:
        return _open_with_proposer(file, card, tensors, arguments, proposer)
    if card.system not in SYSTEMS and card.system != outside:
        raise ValueError(f"{file}: made by {card.system!r}, which is not part of maskwright: a file alone never imports code")
    system = build_system(card.system, {**card.arguments, **(arguments or {})})
    spec = replace(system.input, intensity=card.input.intensity) if arguments else _input(card, system)
    system.input = spec
    card = replace(card, arguments={**card.arguments, **(arguments or {})}, input=spec)
    try:
        load_strictly(system, tensors, file)
    except ValueError as error:
        changed = ", ".join(arguments or {})
        raise ValueError(
            f"{error}; given here: {changed}, of which some change the network" if changed else str(error)
        ) from None
    return system, card


def _input(card: ModelCard, system: System) -> InputSpec:
    """How a saved model's images become pixels: as they did when it learnt; what they are padded to is the system's own."""
    return replace(card.input, size_divisor=system.input.size_divisor)


def _open_with_proposer(
    file: Path,
    card: ModelCard,
    tensors: Mapping[str, Tensor],
    arguments: Mapping[str, Any] | None,
    other: Path | None,
) -> tuple[System, ModelCard]:
    """A detector on proposals with the system that makes them, its own or another."""
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith(PROPOSER)}
    for part in (card, *([card.proposer] if card.proposer and other is None else [])):
        if part.system not in SYSTEMS:
            raise ValueError(f"{file}: made by {part.system!r}, which is not part of maskwright: a file never imports code")
    arguments = {**card.arguments, **(arguments or {})}
    detector = build_system(card.system, arguments)
    load_strictly(detector, own, file)
    if other is not None:
        proposer, made = open_model(other)
    else:
        assert card.proposer is not None
        made, proposer = card.proposer, build_system(card.proposer.system, card.proposer.arguments)
        proposer.input = _input(made, proposer)
        load_strictly(proposer, {n.removeprefix(PROPOSER): t for n, t in tensors.items() if n.startswith(PROPOSER)}, file)
    if proposer.task != Task.PROPOSALS:
        raise ValueError(f"{other}: is a run of {made.system}, which answers {proposer.task}: name one of a proposal system")
    proposer.max_detections = getattr(detector, "num_proposals", proposer.max_detections)  # as many as it was trained on
    whole: Any = ProposeThenDetect(proposer, detector)
    return whole, replace(card, arguments=arguments, proposer=made)


def load_strictly(system: System, tensors: Mapping[str, Tensor], file: Path) -> None:
    """Fill a network with exactly its weights.

    Raises:
        ValueError: names missing, unexpected, or of another shape.
    """
    expected = system.state_dict()
    wrong = [f"missing {name}" for name in expected if name not in tensors]
    wrong += [f"unexpected {name}" for name in tensors if name not in expected]
    wrong += [
        f"{name} is {tuple(tensors[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in expected
        if name in tensors and tensors[name].shape != expected[name].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(f"{file}: the weights do not fit the network: {'; '.join(wrong[:5])}{more}")
    system.load_state_dict({name: tensor.to(expected[name].dtype) for name, tensor in tensors.items()})


def find_backbone(source: str, card: ModelCard) -> str:
    """Where the weights of a backbone lie, for a model that `card` describes: a file, that of a run, or a word as it is.

    Raises:
        ValueError: nothing there, or a run whose backbone was trained for other pixels or with other norms.
    """
    if is_word(source):
        return source
    file = find_weights(Path(source))
    if file.suffix == ".safetensors" and "maskwright" in read_tensors(file)[1]:
        check_norms(card, read_model(file)[1], file)
    return str(file)


def check_norms(card: ModelCard, source: ModelCard, file: Path) -> None:
    """Make sure that weights mean the same here: those of frozen norms have an eps, those of a ResNet an origin.

    Raises:
        ValueError: they would mean something else, with the argument to set where there is one.
    """
    origin, other = (c.arguments.get("weights_origin", ORIGIN) for c in (card, source))
    if origin != other:
        remedy = f": add --set arguments.weights_origin={other}" if "weights_origin" in card.arguments else ""
        raise ValueError(f"{file}: its ResNet is that of {other}, {card.system} has that of {origin}{remedy}")
    eps, wanted = (c.arguments.get("norm_eps", NORM_EPS) for c in (card, source))
    if eps != wanted:
        set_it = f"add --set arguments.norm_eps={wanted:g}"
        remedy = set_it if "norm_eps" in card.arguments else f"train {source.system} instead"
        raise ValueError(f"{file}: its norms want eps {wanted:g}, {card.system} has {eps:g}: {remedy}")
