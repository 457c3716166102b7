"""Writes test/fixtures/pickled-by-cpython.pt with CPython's own pickler and zipfile, and no PyTorch.

The classes below stand in for torch's: what counts is that the pickle's bytes are made by another implementation than
test/support/torch-writer.ts. Run from the root of the repository: python3 test/support/make-torch-fixture.py
"""

import collections
import io
import pickle
import struct
import sys
import types
import zipfile

torch = types.ModuleType("torch")
utils = types.ModuleType("torch._utils")
sys.modules.update({"torch": torch, "torch._utils": utils})


class FloatStorage:
    def __init__(self, key, values):
        self.key, self.values = key, values


FloatStorage.__module__ = "torch"
FloatStorage.__qualname__ = "FloatStorage"
torch.FloatStorage = FloatStorage


def _rebuild_tensor_v2(*args):
    raise NotImplementedError


_rebuild_tensor_v2.__module__ = "torch._utils"
utils._rebuild_tensor_v2 = _rebuild_tensor_v2


class Tensor:
    def __init__(self, storage, offset, shape, strides):
        self.args = (storage, offset, shape, strides, False, collections.OrderedDict())

    def __reduce__(self):
        return _rebuild_tensor_v2, self.args


class Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        if isinstance(obj, FloatStorage):
            return "storage", FloatStorage, obj.key, "cpu", len(obj.values)
        return None


first = FloatStorage("0", [float(i) for i in range(12)])
second = FloatStorage("1", [0.5, -0.25])
state = collections.OrderedDict()
state["weight"] = Tensor(first, 0, (3, 4), (4, 1))
state["tied"] = Tensor(first, 0, (3, 4), (4, 1))
state["transposed"] = Tensor(first, 0, (4, 3), (1, 4))
state["row"] = Tensor(first, 4, (4,), (1,))
state["bias"] = Tensor(second, 0, (2,), (1,))
state._metadata = collections.OrderedDict({"": {"version": 1}})
checkpoint = {"model": state, "step": 123456789012, "lr": 4e-4, "betas": [0.9, 0.95], "name": "pg19", "done": False}

buffer = io.BytesIO()
Pickler(buffer, protocol=2).dump(checkpoint)
with zipfile.ZipFile("test/fixtures/pickled-by-cpython.pt", "w", zipfile.ZIP_STORED) as archive:
    def add(name, data):
        archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)

    add("pickled-by-cpython/data.pkl", buffer.getvalue())
    add("pickled-by-cpython/byteorder", "little")
    for storage in (first, second):
        add(f"pickled-by-cpython/data/{storage.key}", struct.pack(f"<{len(storage.values)}f", *storage.values))
    add("pickled-by-cpython/version", "3\n")
