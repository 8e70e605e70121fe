"""Reading Torch7's .t7 files. Functions in them are skipped over, never run; a file can only make tensors, tables and numbers.

Source: torch7's File.lua, generic/Tensor.c and generic/Storage.c, cutorch's generic/CStorage.c; binary form, little-endian.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

NIL, NUMBER, STRING, TABLE, TORCH, BOOLEAN, FUNCTION, RECURSIVE_FUNCTION, LEGACY_FUNCTION = 0, 1, 2, 3, 4, 5, 6, 8, 7
_TYPES = {
    "Double": "<f8",
    "Float": "<f4",
    "Half": "<f2",
    "Long": "<i8",
    "Int": "<i4",
    "Short": "<i2",
    "Char": "<i1",
    "Byte": "<u1",
    "Cuda": "<f4",
    **{f"Cuda{name}": code for name, code in (("Double", "<f8"), ("Half", "<f2"), ("Long", "<i8"), ("Int", "<i4"))},
    **{f"Cuda{name}": code for name, code in (("Short", "<i2"), ("Char", "<i1"), ("Byte", "<u1"))},
}
_MAX_DIMENSIONS = 16
_MAX_PATHS = 100_000


@dataclass
class Torch7Object:
    """An object of a Lua class, for example of nn.Linear; its fields are all that is known of it."""

    name: str
    fields: dict[Any, Any] = field(default_factory=dict)


def read_t7(path: Path) -> Any:
    """What a .t7 file holds: None, bool, float, str, Tensor, dict (of Lua's tables) and `Torch7Object`.

    Objects that were one in Lua are one here. Tensors keep their sizes, strides and offsets, as views of their storage.

    Raises:
        ValueError: not such a file, cut off, or damaged.
    """
    try:
        return _Reader(path.read_bytes()).object()
    except (struct.error, IndexError, OverflowError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cut off, or not a binary .t7 file of Torch7 ({error})") from None
    except RecursionError:
        raise ValueError(f"{path}: nested too deeply to be a Torch7 model") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}: not a binary .t7 file of Torch7, or damaged") from None


def tensors_of(value: Any) -> dict[str, Tensor]:
    """Tensors inside, by every path to them, "model.trunk.modules.1.weight"; numbers come as tensors without dimensions.

    Raises:
        ValueError: more paths than a network has, as tables that share tables can make without end.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in _paths(value, "", ()):
        found[name] = tensor
        if len(found) > _MAX_PATHS:
            raise ValueError(f"more than {_MAX_PATHS} paths to tensors and numbers: not a network")
    return found


def _paths(value: Any, name: str, above: tuple[int, ...]) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield name, torch.tensor(float(value))
    fields = value.fields if isinstance(value, Torch7Object) else value
    if isinstance(fields, dict) and id(fields) not in above:  # an object may hold itself
        for key, part in fields.items():
            yield from _paths(part, f"{name}.{key}" if name else str(key), (*above, id(fields)))


class _Reader:
    """Walks through a file from front to back."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.place = 0
        self.known: dict[int, Any] = {}

    def _numbers(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{form}", self.data, self.place)
        self.place += struct.calcsize(f"<{form}")
        return values

    def _int(self) -> int:
        return int(self._numbers("i")[0])

    def _long(self) -> int:
        return int(self._numbers("q")[0])

    def _bytes(self, count: int) -> bytes:
        if count < 0 or self.place + count > len(self.data):
            raise ValueError(f"{count} bytes wanted at {self.place} of {len(self.data)}")
        piece = self.data[self.place : self.place + count]
        self.place += count
        return piece

    def _text(self) -> str:
        return self._bytes(self._int()).decode("utf-8", errors="surrogateescape")

    def object(self) -> Any:
        """The object that begins here."""
        kind = self._int()
        if kind == NIL:
            return None
        if kind == NUMBER:
            return self._numbers("d")[0]
        if kind == STRING:
            return self._text()
        if kind == BOOLEAN:
            return self._int() == 1
        if kind == FUNCTION:
            self._bytes(self._int())
            self.object()  # what the function closes over
            return None
        if kind not in (TABLE, TORCH, RECURSIVE_FUNCTION, LEGACY_FUNCTION):
            raise ValueError(f"an object of unknown kind {kind} at byte {self.place - 4}")
        index = self._int()
        if index in self.known:
            return self.known[index]
        if kind == TABLE:
            return self._table(index)
        if kind == TORCH:
            return self._torch(index)
        self.known[index] = None
        self._bytes(self._int())
        self.object()
        return None

    def _table(self, index: int) -> dict[Any, Any]:
        table: dict[Any, Any] = {}
        self.known[index] = table
        for _ in range(self._int()):
            key, value = self.object(), self.object()
            if isinstance(key, float) and key.is_integer():
                key = int(key)
            if isinstance(key, (str, int, float, bool)):  # other keys name nothing
                table[key] = value
        return table

    def _torch(self, index: int) -> Any:
        version = self._text()
        name = self._text() if version.startswith("V ") else version
        element = _TYPES.get(name.removeprefix("torch.").removesuffix("Tensor").removesuffix("Storage"))
        if element is not None and name.endswith("Storage"):
            self.known[index] = self._storage(np.dtype(element))
        elif element is not None and name.endswith("Tensor"):
            self.known[index] = self._tensor(np.dtype(element))
        else:
            found = Torch7Object(name)
            self.known[index] = found
            fields = self.object()
            if isinstance(fields, dict):
                found.fields.update(fields)
        return self.known[index]

    def _storage(self, element: np.dtype[Any]) -> Tensor:
        raw = self._bytes(self._long() * element.itemsize)
        return torch.from_numpy(np.frombuffer(raw, dtype=element).copy())

    def _tensor(self, element: np.dtype[Any]) -> Tensor:
        count = self._int()
        if not 0 <= count <= _MAX_DIMENSIONS:
            raise ValueError(f"a tensor of {count} dimensions at byte {self.place - 4}")
        sizes, strides = self._numbers(f"{count}q"), self._numbers(f"{count}q")
        offset, storage = self._long() - 1, self.object()  # Lua counts from 1
        if storage is None or count == 0:
            return torch.from_numpy(np.empty(0, dtype=element))
        if not isinstance(storage, Tensor) or storage.ndim != 1:
            raise ValueError(f"a tensor without a storage at byte {self.place}")
        last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
        is_inside = min(sizes) == 0 or (last < len(storage) and math.prod(sizes) <= len(storage))  # none is made larger
        if min(sizes) < 0 or min(strides) < 0 or offset < 0 or not is_inside:
            raise ValueError(f"a tensor of sizes {sizes} reaches beyond its storage of {len(storage)} at byte {self.place}")
        return torch.as_strided(storage, sizes, strides, offset)
