"""Reading PyTorch checkpoints without PyTorch, and filling a Flax module's variables from their tensors by a table."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
import dataclasses
import functools
import io
import math
import os
import pathlib
import pickle
from typing import BinaryIO
import zipfile

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.flax

from msg_jax.errors import UserError
from msg_jax.types import Params

Tensors = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One row of a conversion table: the variable at `path` is `transform` of the tensors called `names`.

    A path is "collection/module/.../leaf". None marks tensors that are known and have no place in our module.
    """

    path: str | None
    names: str | tuple[str, ...]
    transform: Callable[..., np.ndarray] = np.asarray

    @property
    def tensor_names(self) -> tuple[str, ...]:
        return (self.names,) if isinstance(self.names, str) else self.names


def kernel(weight: np.ndarray) -> np.ndarray:
    """A linear or convolution weight (out, in, ...) as Flax has it (..., in, out)."""
    return np.moveaxis(weight, (0, 1), (-1, -2))


def linear(path: str, name: str, bias: bool = True, layer: str = "dense") -> list[Entry]:
    """The entries of one `layers.Dense` (or, with `layer="conv"`, `layers.Conv`) at `path` under `params`."""
    entries = [Entry(f"params/{path}/{layer}/kernel", f"{name}.weight", kernel)]
    return [*entries, Entry(f"params/{path}/{layer}/bias", f"{name}.bias")] if bias else entries


def drop_axes(*axes: int) -> Callable[[np.ndarray], np.ndarray]:
    """A transform that leaves out these axes; ValueError (which `fill` reports) where one is longer than 1."""
    return functools.partial(np.squeeze, axis=axes)


def shapes_of(module: nn.Module, *inputs, **keywords) -> Params:
    """The shapes of a module's variables for these example inputs; nothing is computed."""
    return nn.unbox(jax.eval_shape(lambda key: module.init(key, *inputs, **keywords), jax.random.key(0)))


def fill(entries: Iterable[Entry], tensors: Tensors, shapes: Params, source: str = "checkpoint") -> Params:
    """The variables, as a tree like `shapes` of float32 arrays, that the table makes of the tensors.

    Every tensor must have its place, every place its tensor, and every shape must agree. Raises UserError with one
    sentence that lists all that do not; `source` names the file in it.
    """
    expected = traverse_util.flatten_dict(shapes, sep="/")
    variables, problems, used = {}, [], set()
    for entry in entries:
        used.update(entry.tensor_names)
        missing = [name for name in entry.tensor_names if name not in tensors]
        if entry.path is None:
            continue
        if missing:
            problems += [f"{name} is missing" for name in missing]
            continue
        arrays = [np.asarray(tensors[name]) for name in entry.tensor_names]
        try:
            value = entry.transform(*arrays)
        except (IndexError, TypeError, ValueError):  # a transform may index and transpose as if the shape were right
            shapes_found = " and ".join(f"{name} has shape {array.shape}" for name, array in zip(entry.tensor_names, arrays))
            problems.append(f"{shapes_found}, of which {entry.path} cannot be made")
            continue
        if entry.path not in expected:
            problems.append(f"{entry.names} has no place {entry.path}")
        elif value.shape != expected[entry.path].shape:
            problems.append(f"{entry.names} gives {value.shape} where {expected[entry.path].shape} is expected")
        variables[entry.path] = np.asarray(value, np.float32, order="C")  # ascontiguousarray would make scalars 1-D
    problems += [f"{name} is unknown" for name in tensors if name not in used]
    unfilled = expected.keys() - {entry.path for entry in entries}
    problems += [f"no tensor is named for {path}" for path in sorted(unfilled)]
    if problems:
        raise UserError(
            f"{source} does not fit the network asked for ({len(problems)} tensors disagree; choose the preset or the "
            f"kind that it was saved from): {'; '.join(problems)}"
        )
    return traverse_util.unflatten_dict(variables, sep="/")


def read_checkpoint(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """All tensors of a .safetensors, .npz, .pth, .pt or .bin file by name; nested dictionaries give dotted names.

    Nothing in the file is executed: PyTorch's format is read by an unpickler that can build tensors, containers and
    plain values, and nothing else. Values that are not tensors (an epoch number, a file name) are left out. Raises
    UserError if the file is absent, of another format, or would need anything more.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not a file: give the path of a downloaded checkpoint")
    if path.suffix == ".safetensors":
        return {name: np.asarray(array) for name, array in safetensors.flax.load_file(path).items()}
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    if path.suffix in (".pth", ".pt", ".bin"):
        return _read_torch(path)
    raise UserError(f"{path} has the unknown suffix {path.suffix!r}: give a .safetensors, .npz, .pth, .pt or .bin file")


_STORAGE_DTYPES = {
    "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16, "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64, "IntStorage": np.int32, "ShortStorage": np.int16, "CharStorage": np.int8,
    "ByteStorage": np.uint8, "BoolStorage": np.bool_,
}


class _TensorUnpickler(pickle.Unpickler):
    """Builds tensors out of `storage(key, dtype, size)`. A global that is not on this short list ends the reading."""

    def __init__(self, stream: BinaryIO, storage: Callable[[str, type, int], np.ndarray]):
        super().__init__(stream, encoding="utf-8")
        self._storage, self._storages = storage, {}

    def find_class(self, module: str, name: str):
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _STORAGE_DTYPES:
            return name  # a string, so that the pickle has nothing to call
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return self._rebuild_parameter
        if (module, name) == ("torch", "Size"):
            return tuple
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, saved_id):
        _, storage_type, key, _, size, *view = saved_id
        if any(part is not None for part in view):
            raise pickle.UnpicklingError("it holds a view of a storage")
        if key not in self._storages:
            self._storages[key] = self._storage(key, _STORAGE_DTYPES[storage_type], size)
        return self._storages[key]

    def _rebuild_tensor(self, storage, offset, size, stride, requires_grad, hooks, metadata=None):
        # as_strided looks wherever it is told to: a damaged file must not make it look outside the storage
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if math.prod(size) and not (offset >= 0 and all(step >= 0 for step in stride) and last < storage.size):
            raise pickle.UnpicklingError(f"a tensor of size {size} reaches outside its storage")
        if not math.prod(size):
            return np.zeros(size, storage.dtype)
        strides = [step * storage.itemsize for step in stride]
        return np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False)

    def _rebuild_parameter(self, data, requires_grad, hooks):
        return data


def _read_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
    remedy = "save its state dict with torch.save in PyTorch 1.6 or later, or as .safetensors"
    if not zipfile.is_zipfile(path):
        try:
            content = _read_legacy(path)
        except Exception as error:  # a damaged pickle can raise anything
            raise UserError(f"{path} is not a PyTorch zip archive, and not a readable older one ({error}): {remedy}") from error
        return dict(_tensors_in(content))
    with zipfile.ZipFile(path) as archive:
        roots = [name.removesuffix("/data.pkl") for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise UserError(f"{path} holds {len(roots)} files called data.pkl instead of one: {remedy}")
        byteorder = f"{roots[0]}/byteorder"
        if byteorder in archive.namelist() and archive.read(byteorder) != b"little":
            raise UserError(f"{path} was saved on a big-endian machine, which is not read here: {remedy}")

        def storage(key, dtype, size):
            return np.frombuffer(archive.read(f"{roots[0]}/data/{key}"), dtype)

        try:
            content = _TensorUnpickler(io.BytesIO(archive.read(f"{roots[0]}/data.pkl")), storage).load()
        except Exception as error:  # a damaged pickle can raise anything
            raise UserError(f"{path} cannot be read as tensors alone ({error}): {remedy}") from error
    return dict(_tensors_in(content))


_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def _read_legacy(path: pathlib.Path):
    """PyTorch's form before 1.6: pickles of a magic number, a version, the machine, the content and the storages' keys,
    then each storage as its size and its bytes. Raises anything if it is not that."""
    storages: dict[str, np.ndarray] = {}
    room = path.stat().st_size

    def storage(key, dtype, size):
        nonlocal room
        room -= size * np.dtype(dtype).itemsize
        if size < 0 or room < 0:  # before memory is taken for it
            raise pickle.UnpicklingError("its storages are larger than the file")
        storages[key] = np.zeros(size, dtype)  # filled when its bytes come
        return storages[key]

    with path.open("rb") as file:
        magic, _, machine, content, keys = (_TensorUnpickler(file, storage).load() for _ in range(5))
        if magic != _LEGACY_MAGIC or not machine["little_endian"]:
            raise pickle.UnpicklingError("it was made by something else, or on a big-endian machine")
        for key in keys:
            size, values = int.from_bytes(file.read(8), "little"), storages[key]
            data = file.read(values.nbytes)
            if size != values.size or len(data) != values.nbytes:
                raise pickle.UnpicklingError("it is cut short")
            values[:] = np.frombuffer(data, values.dtype)
    return content


def _tensors_in(content, prefix: str = ""):
    if isinstance(content, np.ndarray):
        yield prefix, content
    elif isinstance(content, Mapping):
        for name, value in content.items():
            yield from _tensors_in(value, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(content, (list, tuple)):
        for index, value in enumerate(content):
            yield from _tensors_in(value, f"{prefix}.{index}" if prefix else str(index))
