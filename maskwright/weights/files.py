"""Reading other people's weight files; nothing in them is ever run."""

import argparse
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The table of tensors in a .safetensors file or a torch checkpoint.

    A table under "state_dict" or "model" is taken out of what a training script saved around it, and a "module." that data
    parallel training put before every name is left away.

    Raises:
        ValueError: no such file, damaged, or holding anything but plain data.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no such weights file")
    try:
        data: Any = load_file(path) if path.suffix == ".safetensors" else _load_plain(path)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as plain weights ({str(error).splitlines()[0]})") from None
    for key in ("state_dict", "model"):
        if isinstance(data, dict) and isinstance(data.get(key), dict):
            data = data[key]
    if not isinstance(data, dict) or not data or not all(isinstance(v, Tensor) for v in data.values()):
        raise ValueError(f"{path}: holds no table of tensors")
    if all(name.startswith("module.") for name in data):
        data = {name.removeprefix("module."): value for name, value in data.items()}
    table: dict[str, Tensor] = data
    return table


def _load_plain(path: Path) -> Any:
    """A torch file of tensors, plain containers and the options torchvision's training scripts save beside them."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        data: Any = torch.load(path, map_location="cpu", weights_only=True)
    return data
