"""Pickled tables of numpy arrays, as detectron2's model zoo and Detectron publish them, read without numpy's or anybody's code.

A pickle is a program that may call whatever it names. Here it may name what numpy pickles arrays with, and `OrderedDict`; these
names stand for the few lines below, and every other one ends the reading.
"""

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

CODES = frozenset(f"{kind}{size}" for kind in "iuf" for size in (1, 2, 4, 8)) - {"f1"}
"""Of numbers, as numpy names them without byte order."""


class _Type:
    """A dtype: numbers of some size and byte order."""

    def __init__(self, code: str, *_: object) -> None:
        if code not in CODES:
            raise ValueError(f"holds an array of {code!r}, expected numbers")
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise ValueError("holds an array of a damaged type")
        self.order = state[1]

    def read(self, content: bytes | bytearray | str) -> npt.NDArray[Any]:
        """Numbers one after the other; Python 2 wrote bytes as texts."""
        data = content.encode("latin1") if isinstance(content, str) else content
        if not isinstance(data, (bytes, bytearray)):
            raise ValueError("holds an array of Python's objects, expected numbers")
        return np.frombuffer(data, dtype=np.dtype(self.order + self.code))


class _Array:
    """An array that is still to be filled."""

    def __init__(self, *_: object) -> None:
        self.array: npt.NDArray[Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, is_fortran, content = state
        if not isinstance(kind, _Type) or not all(isinstance(side, int) and side >= 0 for side in shape):
            raise ValueError("holds a damaged array")
        self.array = kind.read(content).reshape(shape, order="F" if is_fortran else "C")


def _filled(content: bytes | bytearray, kind: Any, shape: tuple[int, ...], order: str, *_: object) -> _Array:
    """An array as numpy pickles it since protocol 5."""
    array = _Array()
    array.__setstate__((1, shape, kind, order == "F", content))
    return array


def _scalar(kind: Any, content: Any = b"") -> float | int:
    if not isinstance(kind, _Type):
        raise ValueError("holds a damaged number")
    number: float | int = kind.read(content)[0].item()
    return number


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise ValueError(f"holds text encoded as {encoding}")
    return text.encode("latin1")


def _empty() -> bytes:
    return b""


_KNOWN = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _empty,  # what Python 3 writes for none in the old protocols
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): _Array,
    **{
        (f"{package}.{module}", name): value
        for package in ("numpy.core", "numpy._core")
        for module, name, value in (
            ("multiarray", "_reconstruct", _Array),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _filled),
        )
    },
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """What a name stands for.

        Raises:
            ValueError: it is not one that arrays are made with.
        """
        if (module, name) not in _KNOWN:
            raise ValueError(f"holds {module}.{name}")
        return _KNOWN[module, name]


def read_pickle(path: Path) -> Any:
    """Plain containers, numbers and tensors in a pickle.

    Raises:
        ValueError: damaged, or holding anything else, by its name.
    """
    try:
        with path.open("rb") as file:
            return _tensors(_Reader(file, encoding="latin1").load())
    except ValueError as error:
        raise ValueError(
            f"{path}: {error}; only arrays of numbers and plain containers are read: anything else could run code"
        ) from None
    except RecursionError:
        raise ValueError(f"{path}: nested too deeply to be a network") from None
    except Exception as error:  # whatever a damaged program makes its reader stumble over
        raise ValueError(f"{path}: empty, cut off or not a pickle ({type(error).__name__})") from None


def _tensors(value: Any) -> Any:
    """The same with tensors in the place of arrays."""
    if isinstance(value, _Array):
        return _tensor(value)
    if isinstance(value, dict):
        return {key: _tensors(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_tensors(part) for part in value)
    return value


def _tensor(value: _Array) -> Tensor:
    if value.array is None:
        raise ValueError("holds an array without content")
    array = value.array
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
