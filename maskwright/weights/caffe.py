"""Reading Caffe's .caffemodel and .caffemodel.h5 files: the numbers of each layer, nothing else; nothing is run.

Source: Caffe's caffe.proto. A .caffemodel is a NetParameter in protobuf's wire format: field 100 holds layers, field 2 those of
files before 2014; a layer's name and blobs are fields 1 and 7, or 4 and 6; a blob's numbers are field 5 (float32) or 8
(float64), its sizes field 7, or fields 1 to 4.
"""

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_MAX_DIMENSIONS = 8
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LAYERS = {100: (1, 7), 2: (4, 6)}  # field of the net: fields of name and blobs

Field = tuple[int, int, Any]
"""Number, wire type, and value: an int, or the bytes."""


def read_caffemodel(path: Path) -> dict[str, Tensor]:
    """Tensors by "layer.number": 0 is the weight, 1 the bias.

    Raises:
        ValueError: damaged, not such a file, or h5py is not installed.
    """
    if path.suffix == ".h5":
        return _read_hdf5(path)
    tensors: dict[str, Tensor] = {}
    try:
        for number, wire, value in _fields(memoryview(path.read_bytes())):
            if number in _LAYERS and wire == _BYTES:
                tensors |= _layer(value, *_LAYERS[number])
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cut off or not a .caffemodel ({error})") from None
    except ValueError as error:
        raise ValueError(f"{path}: not a .caffemodel: {error}") from None
    if not tensors:
        raise ValueError(f"{path}: holds no layer with numbers: is it the .caffemodel, and not the .prototxt?")
    return tensors


def _layer(data: memoryview, name_field: int, blobs_field: int) -> dict[str, Tensor]:
    name, blobs = "", []
    for number, wire, value in _fields(data):
        if number == name_field and wire == _BYTES:
            name = bytes(value).decode()
        elif number == blobs_field and wire == _BYTES:
            blobs.append(_blob(value))
    return {f"{name}.{i}": blob for i, blob in enumerate(blobs)}


def _blob(data: memoryview) -> Tensor:
    """One array of numbers."""
    pieces: list[np.ndarray[Any, Any]] = []
    legacy: dict[int, int] = {}
    shape: list[int] | None = None
    for number, wire, value in _fields(data):
        if number in (5, 8) and wire != _VARINT:
            kind = "<f4" if number == 5 else "<f8"
            pieces.append(np.frombuffer(value, dtype=kind))  # packed, or one number at a time
        elif number == 7 and wire == _BYTES:
            shape = [v for n, w, value_ in _fields(value) if n == 1 for v in ([value_] if w == _VARINT else _varints(value_))]
        elif number in (1, 2, 3, 4) and wire == _VARINT:
            legacy[number] = value
    numbers = np.concatenate(pieces).astype(np.float32) if pieces else np.zeros(0, dtype=np.float32)
    sizes = shape if shape is not None else [legacy.get(number, 1) for number in (1, 2, 3, 4)]
    if len(sizes) > _MAX_DIMENSIONS or math.prod(sizes) != len(numbers):
        raise ValueError(f"a blob of {' x '.join(map(str, sizes))} holds {len(numbers)} numbers")
    return torch.from_numpy(numbers).reshape(sizes)


def _fields(data: memoryview) -> Iterator[Field]:
    """The fields of a message, in order."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, wire, value
            continue
        if wire == _BYTES:
            length, at = _varint(data, at)
        elif wire in (_FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"field {number} has the unknown wire type {wire}")
        if at + length > len(data):
            raise IndexError(f"field {number} wants {length} bytes of {len(data) - at}")
        yield number, wire, data[at : at + length]
        at += length


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at
        if shift > 63:
            raise ValueError("a number has more than ten bytes")


def _varints(data: memoryview) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        yield value


def _read_hdf5(path: Path) -> dict[str, Tensor]:
    """The same of an HDF5 file: /data/LAYER/0 and 1; layers that share another's numbers are empty."""
    try:
        import h5py
    except ImportError:
        raise ValueError(f"{path}: HDF5 files need h5py: uv pip install 'maskwright[caffe]'") from None
    found: dict[str, np.ndarray[Any, Any]] = {}
    try:
        with h5py.File(path, "r") as file:
            if not isinstance(file.get("data", getlink=True), h5py.HardLink):
                raise KeyError("data")
            for layer, group in file["data"].items():
                for number in group:
                    if not isinstance(group.get(number, getlink=True), h5py.HardLink):
                        raise ValueError(f"{layer}/{number} lies in another place")
                    if group[number].nbytes > path.stat().st_size:
                        raise ValueError(f"{layer}/{number} claims to be larger than the file")
                    found[f"{layer}.{number}"] = np.asarray(group[number], np.float32)
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{path}: damaged, or not a Caffe network in HDF5 ({error})") from None
    if not found:
        raise ValueError(f"{path}: holds no layer with numbers")
    return {name: torch.from_numpy(values) for name, values in found.items()}
