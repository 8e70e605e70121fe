"""Reading other people's weight files; nothing in them is ever run."""

import argparse
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from maskwright.weights.caffe import read_caffemodel
from maskwright.weights.pickles import read_pickle
from maskwright.weights.torch7 import read_t7, tensors_of

WRAPPERS = ("module.", "model.", "_orig_mod.")  # before every name: data parallel and averaging, Lightning, torch.compile


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The table of tensors in a .safetensors file, a torch checkpoint, a pickle of arrays, or a file of Torch7 or Caffe.

    A table under "state_dict" or "model" is taken out of what a training script saved around it, and what wrappers put before
    every name is left away.

    Raises:
        ValueError: no such file, damaged, or holding anything but plain data.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no such weights file")
    if path.suffix == ".t7":
        try:
            return tensors_of(read_t7(path))
        except RecursionError:
            raise ValueError(f"{path}: nested too deeply to be a network") from None
    if path.name.endswith((".caffemodel", ".caffemodel.h5")):
        return read_caffemodel(path)
    data: Any = READERS.get(path.suffix, _load_plain)(path)
    for key in ("state_dict", "model"):
        if isinstance(data, dict) and isinstance(data.get(key), dict):
            data = data[key]
    if not isinstance(data, dict) or not data or not all(isinstance(v, Tensor) for v in data.values()):
        keys = f" under its keys {', '.join(map(str, list(data)[:5]))}" if isinstance(data, dict) and data else ""
        raise ValueError(f"{path}: holds no table of tensors{keys}")
    table: dict[str, Tensor] = {str(name): value for name, value in data.items() if name != "n_averaged"}
    while prefix := next((p for p in WRAPPERS if all(name.startswith(p) for name in table)), None):
        table = {name.removeprefix(prefix): value for name, value in table.items()}
    return table


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged, or not a safetensors file ({error})") from None
    return tensors


def _load_plain(path: Path) -> Any:
    """A torch file of tensors, plain containers and the options torchvision's training scripts save beside them."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"holds {found[1]}" if found else "not a torch checkpoint, or one of more than tensors"
        raise ValueError(f"{path}: {what}; only tensors and plain containers are read: anything else could run code") from None
    except Exception as error:  # torch lets through whatever a cut file makes its reader stumble over
        raise ValueError(f"{path}: empty, cut off or not a torch checkpoint ({type(error).__name__})") from None


READERS = {".safetensors": _load_safetensors, ".pkl": read_pickle}
"""By suffix; all others are torch's."""
