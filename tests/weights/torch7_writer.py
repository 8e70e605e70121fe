"""Writes binary .t7 files as Torch7 does, objects that are one only once; for tests."""

import struct

import numpy as np


class LuaObject:
    def __init__(self, name, **fields):
        self.name = name
        self.fields = fields


class LuaFunction:
    def __init__(self, code, upvalues=None, kind=8):
        self.code, self.upvalues, self.kind = code, upvalues, kind


class Storage:
    def __init__(self, values, name="Float"):
        self.values, self.name = values, name


class LuaTensor:
    """A view of a storage; offset counts from 0."""

    def __init__(self, storage, sizes, strides, offset=0):
        self.storage, self.sizes, self.strides, self.offset = storage, sizes, strides, offset


def tensor(array, name="Float"):
    array = np.ascontiguousarray(array)
    strides = [s // array.itemsize for s in array.strides]
    return LuaTensor(Storage(array.reshape(-1), name), array.shape, strides)


class Writer:
    def __init__(self):
        self.parts, self.known = [], {}
        self.kept = []  # so that ids stay unique

    def numbers(self, form, *values):
        self.parts.append(struct.pack(f"<{form}", *values))

    def text(self, text):
        data = text if isinstance(text, bytes) else text.encode()
        self.numbers("i", len(data))
        self.parts.append(data)

    def new(self, kind, value):
        """Tag and index; whether the content must follow."""
        self.kept.append(value)
        is_new = id(value) not in self.known
        index = self.known.setdefault(id(value), len(self.known) + 1)
        self.numbers("ii", kind, index)
        return is_new

    def object(self, value):
        if value is None:
            self.numbers("i", 0)
        elif isinstance(value, bool):
            self.numbers("ii", 5, int(value))
        elif isinstance(value, (int, float)):
            self.numbers("id", 1, float(value))
        elif isinstance(value, (str, bytes)):
            self.numbers("i", 2)
            self.text(value)
        elif isinstance(value, dict):
            if self.new(3, value):
                self.numbers("i", len(value))
                for key, part in value.items():
                    self.object(key)
                    self.object(part)
        elif isinstance(value, LuaFunction):
            if value.kind == 6:
                self.numbers("i", 6)
            elif not self.new(value.kind, value):
                return
            self.text(value.code)
            self.object(value.upvalues)
        elif self.new(4, value):
            self.text("V 1")
            self.torch(value)

    def torch(self, value):
        if isinstance(value, Storage):
            self.text(f"torch.{value.name}Storage")
            self.numbers("q", len(value.values))
            self.parts.append(value.values.tobytes())
        elif isinstance(value, LuaTensor):
            self.text(f"torch.{value.storage.name}Tensor")
            self.numbers("i", len(value.sizes))
            self.numbers(f"{len(value.sizes)}q", *value.sizes)
            self.numbers(f"{len(value.sizes)}q", *value.strides)
            self.numbers("q", value.offset + 1)
            self.object(value.storage)
        else:
            self.text(value.name)
            self.object(value.fields)


def write_t7(path, value):
    writer = Writer()
    writer.object(value)
    path.write_bytes(b"".join(writer.parts))
    return path
