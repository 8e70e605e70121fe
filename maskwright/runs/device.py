"""Where and how precisely to compute."""

import ctypes
import platform
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import torch
import torchvision


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
    """bfloat16 where the device has units for it, unless told otherwise.

    Raises:
        ValueError: no such precision.
    """
    if precision not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"got precision {precision!r}, expected auto, float32 or bfloat16")
    if precision != "auto":
        return Precision(device, precision)
    kind = torch.device(device).type
    if kind == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif kind == "cpu":
        fast = bfloat16_units() is not None
    else:
        fast = False
    return Precision(device, "bfloat16" if fast else "float32")


def bfloat16_units() -> str | None:
    """What the processor computes bfloat16 with, if it can: matrix units (AMX) or vectors (AVX-512)."""
    if torch.cpu._is_amx_tile_supported():
        return "AMX"
    return "AVX-512" if torch.cpu._is_avx512_bf16_supported() else None


def machine_line() -> str:
    """What figures are taken on, in a line: processor, threads, versions and date."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    try:
        ours = f"maskwright {version('maskwright')}, "
    except PackageNotFoundError:  # run from its sources
        ours = ""
    versions = f"torch {torch.__version__.split('+')[0]}, torchvision {torchvision.__version__.split('+')[0]}"
    return (
        f"{ours}{platform.machine()}, {torch.get_num_threads()} threads, bf16: {bfloat16_units() or 'no'}{gpu}; "
        f"{versions}; {date.today().isoformat()}"
    )


def peak_memory(work: Callable[[], object], device: str) -> float | None:
    """How far memory rises above what was held before while something is done, at its highest, MB; None where unknown."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return float(torch.cuda.max_memory_allocated(device) - before) / 2**20
    forget = Path("/proc/self/clear_refs")
    if not forget.exists():
        work()
        return None
    return_freed_memory()
    forget.write_text("5")  # the highest so far is forgotten
    before = _resident("VmRSS")
    work()
    return (_resident("VmHWM") - before) / 2**20


def _resident(field: str) -> int:
    """Resident memory, bytes: now (VmRSS), or at its highest (VmHWM)."""
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(match[1]) if match else 0


def return_freed_memory() -> None:
    """Give heap pages that hold nothing back to the system; glibc keeps them after work on tensors of many sizes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
