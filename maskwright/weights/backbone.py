"""ImageNet weights for a timm backbone."""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import timm
from torch import Tensor, nn

from maskwright.weights.files import read_state_dict


def load_backbone(network: nn.Module, name: str, source: str) -> None:
    """Fill a timm feature extractor with weights; its classifier is left out.

    Args:
        network: what `timm.create_model(name, features_only=True)` built.
        name: timm's name of it.
        source: a .safetensors or .pth file with timm's (or torchvision's) keys, the weights file of a run that has such a
            backbone, or "timm" to download timm's own weights.

    Raises:
        ValueError: the file cannot be read, or is of another network.
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
    if source == "timm":
        return cast(dict[str, Tensor], timm.create_model(name, pretrained=True).state_dict())
    state = read_state_dict(Path(source))
    prefix = next((key.split(".network.")[0] for key in state if ".network." in key), None)
    if prefix is None:
        return state
    inside = f"{prefix}.network."  # a run's, where the backbone has a name; of several backbones the first
    return {key.removeprefix(inside): value for key, value in state.items() if key.startswith(inside)}
