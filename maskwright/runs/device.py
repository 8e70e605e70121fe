"""Where and how precisely to compute."""

import ctypes
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True)
class Precision:
    """Autocast settings for a device: bfloat16 convolutions and matrix products, or float32 throughout."""

    device: str
    name: Literal["float32", "bfloat16"]

    def autocast(self) -> AbstractContextManager[object]:
        """Context in which the network runs."""
        enabled = self.name == "bfloat16"
        return torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16, enabled=enabled)


def choose_device(device: str = "auto") -> str:
    """The device asked for; "auto" is a CUDA GPU where there is one, else the CPU.

    Raises:
        ValueError: it does not exist here.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return device


def choose_precision(precision: Literal["auto", "float32", "bfloat16"], device: str) -> Precision:
    """bfloat16 where the device has units for it, unless told otherwise."""
    if precision != "auto":
        return Precision(device, precision)
    kind = torch.device(device).type
    if kind == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif kind == "cpu":
        fast = torch.cpu._is_amx_tile_supported()
    else:
        fast = False
    return Precision(device, "bfloat16" if fast else "float32")


def return_freed_memory() -> None:
    """Give heap pages that hold nothing back to the system; glibc keeps them after work on tensors of many sizes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
