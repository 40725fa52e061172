"""PyTorch files written by hand.

Such a file is a zip archive of one pickle and one raw file per storage. The stand-ins below pickle under PyTorch's own
names.
"""

import collections
import io
import pickle
import zipfile

import numpy as np


class Global:
    def __init__(self, module, name):
        self.module, self.name = module, name


class Rebuild:
    """Pickles as a call of torch._utils._rebuild_tensor_v2."""

    def __init__(self, *arguments, function=("torch._utils", "_rebuild_tensor_v2")):
        self.arguments, self.function = arguments, function


class Storage:
    def __init__(self, type_name, key):
        self.type_name, self.key = type_name, key


class TorchPickler(pickle._Pickler):
    """The pure-Python pickler, which can be told to write globals that do not exist here."""

    def persistent_id(self, value):
        if isinstance(value, Storage):
            return ("storage", Global("torch", value.type_name), value.key, "cpu", 0)
        return None

    def save(self, value, save_persistent_id=True):
        if isinstance(value, Global):
            self.write(pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode())
        elif isinstance(value, Rebuild):
            self.save(Global(*value.function))
            self.save(value.arguments)
            self.write(pickle.REDUCE)
        else:
            super().save(value, save_persistent_id)


def write_torch(path, content, storages, byteorder=b"little"):
    stream = io.BytesIO()
    TorchPickler(stream, protocol=2).dump(content)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", stream.getvalue())
        archive.writestr("archive/byteorder", byteorder)
        for key, array in storages.items():
            archive.writestr(f"archive/data/{key}", array.tobytes())
    return path


def tensor(storage, offset, size, stride):
    return Rebuild(storage, offset, size, stride, False, collections.OrderedDict())


def write_state(path, tensors):
    """A state dict: every array as a float32 tensor with a storage of its own."""
    arrays = {name: np.asarray(array, np.float32, order="C") for name, array in tensors.items()}
    content = collections.OrderedDict(
        (name, tensor(Storage("FloatStorage", name), 0, a.shape, tuple(n // 4 for n in a.strides)))
        for name, a in arrays.items()
    )
    return write_torch(path, content, arrays)


class _LegacyPickler(TorchPickler):
    """Storages bear their sizes, and may be views of others."""

    def __init__(self, stream, sizes):
        super().__init__(stream, protocol=2)
        self._sizes = sizes

    def persistent_id(self, value):
        found = super().persistent_id(value)
        return found and (*found[:4], self._sizes[value.key], None)


def write_legacy(path, content, storages, magic=0x1950A86A20F9469CFC6C, sizes=None):
    """The form of PyTorch before 1.6: pickles one after the other, then the storages."""
    stream = io.BytesIO()
    sizes = sizes or {key: array.size for key, array in storages.items()}
    for value in (magic, 1001, {"little_endian": True}, content, list(storages)):
        _LegacyPickler(stream, sizes).dump(value)
    for array in storages.values():
        stream.write(array.size.to_bytes(8, "little") + array.tobytes())
    path.write_bytes(stream.getvalue())
    return path
