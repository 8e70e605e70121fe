"""Pickled tables of numpy arrays, as detectron2's model zoo publishes them, read without numpy's or anybody's code.

A pickle is a program that may call whatever it names. Here it may name what numpy pickles arrays with, and `OrderedDict`; these
names stand for the few lines below, and every other one ends the reading.
"""

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

CODES = frozenset(f"{kind}{size}" for kind in "iuf" for size in (1, 2, 4, 8)) - {"f1"}
"""Of numbers, as numpy names them without byte order."""


class _RefusedError(ValueError):
    """What a pickle holds and is not read."""


class _Type:
    """A dtype: numbers of some size and byte order."""

    def __init__(self, code: str, *_: object) -> None:
        if code not in CODES:
            raise _RefusedError(f"holds an array of {code!r}, expected numbers")
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise _RefusedError("holds an array of a damaged type")
        self.order = state[1]

    def read(self, content: bytes | bytearray | str) -> npt.NDArray[Any]:
        """Numbers one after the other; Python 2 wrote bytes as texts."""
        data = content.encode("latin1") if isinstance(content, str) else content
        if not isinstance(data, (bytes, bytearray)):
            raise _RefusedError("holds an array of Python's objects, expected numbers")
        return np.frombuffer(data, dtype=np.dtype(self.order + self.code))


class _Array:
    """An array that is still to be filled."""

    def __init__(self, *_: object) -> None:
        self.array: npt.NDArray[Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, is_fortran, content = state
        if not isinstance(kind, _Type) or not all(isinstance(side, int) and side >= 0 for side in shape):
            raise _RefusedError("holds a damaged array")
        self.array = kind.read(content).reshape(shape, order="F" if is_fortran else "C")


class _Name:
    """What a name in a pickle stands for: it can be called, and nothing about it can be changed."""

    __slots__ = ()


class _MakeType(_Name):
    __slots__ = ()

    def __call__(self, code: str, *_: object) -> _Type:
        return _Type(code)


class _MakeArray(_Name):
    __slots__ = ()

    def __call__(self, *_: object) -> _Array:
        return _Array()


class _FillArray(_Name):
    """An array as numpy pickles it since protocol 5."""

    __slots__ = ()

    def __call__(self, content: bytes | bytearray, kind: Any, shape: tuple[int, ...], order: str, *_: object) -> _Array:
        array = _Array()
        array.__setstate__((1, shape, kind, order == "F", content))
        return array


class _MakeNumber(_Name):
    __slots__ = ()

    def __call__(self, kind: Any, content: Any = b"") -> float | int:
        if not isinstance(kind, _Type):
            raise _RefusedError("holds a damaged number")
        number: float | int = kind.read(content)[0].item()
        return number


class _Encode(_Name):
    __slots__ = ()

    def __call__(self, text: str, encoding: str) -> bytes:
        if encoding != "latin1":
            raise _RefusedError(f"holds text encoded as {encoding}")
        return text.encode("latin1")


class _NoBytes(_Name):
    """What Python 3 writes for no bytes in the old protocols."""

    __slots__ = ()

    def __call__(self) -> bytes:
        return b""


class _MakeDict(_Name):
    __slots__ = ()

    def __call__(self, pairs: Any = ()) -> dict[str, Any]:
        return dict(pairs)


_KNOWN: dict[tuple[str, str], _Name] = {
    ("collections", "OrderedDict"): _MakeDict(),
    ("_codecs", "encode"): _Encode(),
    ("__builtin__", "bytes"): _NoBytes(),
    ("numpy", "dtype"): _MakeType(),
    ("numpy", "ndarray"): _MakeArray(),
    **{
        (f"{package}.{module}", name): value
        for package in ("numpy.core", "numpy._core")
        for module, name, value in (
            ("multiarray", "_reconstruct", _MakeArray()),
            ("multiarray", "scalar", _MakeNumber()),
            ("numeric", "_frombuffer", _FillArray()),
        )
    },
}

MOST_TUPLES = 20_000
"""In a pickle: five for an array, and too few to be nested so deeply that Python's own reader fails."""


def _check_program(data: bytes) -> None:
    """Refuse what would make Python's reader fail or take memory out of proportion, before it is run.

    Raises:
        ValueError: such a program, or one that is cut off.
    """
    tuples = 0
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(data):
            raise _RefusedError("holds a place number beyond its own length")
        if opcode.name.startswith(("EXT", "FROZENSET", "EMPTY_SET")):
            raise _RefusedError(f"holds {opcode.name}")
        tuples += opcode.name.startswith("TUPLE")
    if tuples > MOST_TUPLES:
        raise _RefusedError(f"holds {tuples} tuples")


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """What a name stands for.

        Raises:
            ValueError: it is not one that arrays are made with.
        """
        if (module, name) not in _KNOWN:
            raise _RefusedError(f"holds {module}.{name}")
        return _KNOWN[module, name]


def read_pickle(path: Path) -> Any:
    """Plain containers, numbers and tensors in a pickle.

    Raises:
        ValueError: damaged, or holding anything else, by its name.
    """
    data = path.read_bytes()
    try:
        _check_program(data)
        return _Tensors()(_Reader(io.BytesIO(data), encoding="latin1").load())
    except _RefusedError as error:
        raise ValueError(
            f"{path}: {error}; only arrays of numbers and plain containers are read: anything else could run code"
        ) from None
    except RecursionError:
        raise ValueError(f"{path}: nested too deeply to be a network") from None
    except Exception as error:  # whatever a damaged program makes its reader stumble over
        raise ValueError(f"{path}: empty, cut off or not a pickle ({type(error).__name__})") from None


class _Tensors:
    """Containers with tensors in the place of arrays; what is there twice is made once."""

    def __init__(self) -> None:
        self.made: dict[int, Any] = {}

    def __call__(self, value: Any) -> Any:
        """The same with tensors."""
        if not isinstance(value, (_Array, dict, list, tuple)):
            return value
        if id(value) not in self.made:
            self.made[id(value)] = self._convert(value)
        return self.made[id(value)]

    def _convert(self, value: Any) -> Any:
        if isinstance(value, _Array):
            return _tensor(value)
        if isinstance(value, dict):
            return {key: self(part) for key, part in value.items()}
        return type(value)(self(part) for part in value)


def _tensor(value: _Array) -> Tensor:
    if value.array is None:
        raise _RefusedError("holds an array without content")
    array = value.array
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
