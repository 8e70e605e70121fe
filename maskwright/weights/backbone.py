"""ImageNet weights for a timm backbone."""

import pickle
from pathlib import Path
from typing import Any, cast

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn


def load_backbone(network: nn.Module, name: str, source: str) -> None:
    """Fill a timm feature extractor with weights; its classifier is left out.

    Args:
        network: what `timm.create_model(name, features_only=True)` built.
        name: timm's name of it.
        source: a .safetensors or .pth file with timm's (or torchvision's) keys, or "timm" to download timm's own weights.

    Raises:
        ValueError: the file cannot be read, or is of another network.
    """
    if source == "timm":
        state = cast(dict[str, Tensor], timm.create_model(name, pretrained=True).state_dict())
    else:
        state = _read(Path(source))
    expected = network.state_dict()
    wrong = [key for key, value in expected.items() if key not in state or state[key].shape != value.shape]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"{source}: not weights of {name}: {', '.join(wrong[:3])}{more} are missing or of another shape")
    if any(key.endswith("running_mean") for key in state) and not any(key.endswith("running_mean") for key in expected):
        raise ValueError(f"{source}: made for batch norm, but the network has another norm: leave arguments.norm as it is")
    network.load_state_dict({key: state[key].to(value.dtype) for key, value in expected.items()})


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"{path}: there is no such weights file")
    try:
        data: Any = (
            load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as plain weights ({str(error).splitlines()[0]})") from None
    for key in ("state_dict", "model"):
        if isinstance(data, dict) and isinstance(data.get(key), dict):
            data = data[key]
    if not isinstance(data, dict) or not all(isinstance(v, Tensor) for v in data.values()):
        raise ValueError(f"{path}: holds no table of tensors")
    return data
