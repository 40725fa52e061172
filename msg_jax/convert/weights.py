"""Read PyTorch checkpoints without PyTorch, and fill a Flax module's variables from their tensors by a table."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
import dataclasses
import functools
import io
import math
import os
import pathlib
import pickle
from typing import Any, BinaryIO
import zipfile

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
from jaxtyping import Shaped
import numpy as np
import safetensors.flax

from msg_jax.errors import UserError
from msg_jax.types import Params

Tensors = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One row of a conversion table: the variable at `path` is `transform` of the tensors `names`.

    A path is "collection/module/.../leaf". None marks known tensors that our module does not use.
    """

    path: str | None
    names: str | tuple[str, ...]
    transform: Callable[..., np.ndarray] = np.asarray

    @property
    def tensor_names(self) -> tuple[str, ...]:
        return (self.names,) if isinstance(self.names, str) else self.names


def kernel(weight: Shaped[np.ndarray, "out in *size"]) -> Shaped[np.ndarray, "*size in out"]:
    """Transpose a linear or convolution weight (out, in, ...) to Flax's layout (..., in, out)."""
    return np.moveaxis(weight, (0, 1), (-1, -2))


def linear(path: str, name: str, bias: bool = True, layer: str = "dense") -> list[Entry]:
    """Entries of one `layers.Dense` (`layers.Conv` with `layer="conv"`) at `path` under `params`."""
    entries = [Entry(f"params/{path}/{layer}/kernel", f"{name}.weight", kernel)]
    return [*entries, Entry(f"params/{path}/{layer}/bias", f"{name}.bias")] if bias else entries


def drop_axes(*axes: int) -> Callable[[np.ndarray], np.ndarray]:
    """A transform that removes axes of length 1. It raises ValueError for a longer one, which `fill` reports."""
    return functools.partial(np.squeeze, axis=axes)


def shapes_of(module: nn.Module, *inputs: Any, **keywords: Any) -> Params:
    """Shapes of a module's variables for these example inputs, without computing anything."""
    return nn.unbox(jax.eval_shape(lambda key: module.init(key, *inputs, **keywords), jax.random.key(0)))


def fill(entries: Iterable[Entry], tensors: Tensors, shapes: Params, source: str = "checkpoint") -> Params:
    """Convert `tensors` by the table `entries` to a tree of float32 arrays like `shapes`.

    Every tensor must have a variable, every variable a tensor, and all shapes must agree. Raises UserError with one sentence
    that names the file `source` and lists every tensor that does not fit.
    """
    expected: dict[str, Any] = traverse_util.flatten_dict(shapes, sep="/")
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
        except (IndexError, TypeError, ValueError):  # transforms do not check shapes themselves
            found = " and ".join(f"{name} of shape {array.shape}" for name, array in zip(entry.tensor_names, arrays))
            problems.append(f"{found} cannot be converted to {entry.path}")
            continue
        names = " and ".join(entry.tensor_names)
        if entry.path not in expected:
            problems.append(f"{names} maps to {entry.path}, which the network does not have")
        elif value.shape != expected[entry.path].shape:
            problems.append(f"{names} gives {value.shape} instead of {expected[entry.path].shape}")
        variables[entry.path] = np.asarray(value, np.float32, order="C")  # ascontiguousarray would make scalars 1-d
    problems += [f"{name} is unknown" for name in tensors if name not in used]
    unfilled = expected.keys() - {entry.path for entry in entries}
    problems += [f"{path} has no tensor" for path in sorted(unfilled)]
    if problems:
        raise UserError(
            f"{source} does not fit the network; choose the preset or the kind that it was saved from "
            f"({len(problems)} tensors disagree): {'; '.join(problems)}"
        )
    return traverse_util.unflatten_dict(variables, sep="/")


def read_checkpoint(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read all tensors of a .safetensors, .npz, .pth, .pt or .bin file by name. Nested dictionaries give dotted names.

    Executes nothing in the file: the unpickler for PyTorch's format can build only tensors, containers and plain values.
    Skips values that are not tensors (an epoch number, a file name). Raises UserError if the file is absent, has another
    format, or needs more than that.
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
    """Unpickle tensors, with their data from `storage(key, dtype, size)`. Raises for every global outside a short list."""

    def __init__(self, stream: BinaryIO, storage: Callable[[str, type, int], np.ndarray]):
        super().__init__(stream, encoding="utf-8")
        self._storage, self._storages = storage, {}

    def find_class(self, module: str, name: str):
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _STORAGE_DTYPES:
            return name  # a string, so the pickle cannot call it
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return self._rebuild_parameter
        if (module, name) == ("torch", "Size"):
            return tuple
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")

    def persistent_load(self, saved_id):
        _, storage_type, key, _, size, *view = saved_id
        if any(part is not None for part in view):
            raise pickle.UnpicklingError("it contains a view of a storage")
        if key not in self._storages:
            self._storages[key] = self._storage(key, _STORAGE_DTYPES[storage_type], size)
        return self._storages[key]

    def _rebuild_tensor(self, storage, offset, size, stride, requires_grad, hooks, metadata=None):
        # as_strided does not check bounds: a damaged file must not make it read outside the storage.
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
            raise UserError(f"{path} is neither a PyTorch zip archive nor a readable older file ({error}): {remedy}") from error
        return dict(_tensors_in(content))
    with zipfile.ZipFile(path) as archive:
        roots = [name.removesuffix("/data.pkl") for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise UserError(f"{path} contains {len(roots)} files named data.pkl instead of one: {remedy}")
        byteorder = f"{roots[0]}/byteorder"
        if byteorder in archive.namelist() and archive.read(byteorder) != b"little":
            raise UserError(f"{path} was saved on a big-endian machine, which is not supported: {remedy}")

        def storage(key, dtype, size):
            return np.frombuffer(archive.read(f"{roots[0]}/data/{key}"), dtype)

        try:
            content = _TensorUnpickler(io.BytesIO(archive.read(f"{roots[0]}/data.pkl")), storage).load()
        except Exception as error:  # a damaged pickle can raise anything
            raise UserError(f"{path} is not a plain file of tensors ({error}): {remedy}") from error
    return dict(_tensors_in(content))


_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def _read_legacy(path: pathlib.Path) -> Any:
    """Read PyTorch's format before 1.6. Can raise any exception for other files.

    The file has pickles of a magic number, a version, the machine, the content and the keys of the storages; then the size
    and the bytes of each storage.
    """
    storages: dict[str, np.ndarray] = {}
    bytes_left = path.stat().st_size

    def storage(key, dtype, size):
        nonlocal bytes_left
        bytes_left -= size * np.dtype(dtype).itemsize
        if size < 0 or bytes_left < 0:  # check before allocating
            raise pickle.UnpicklingError("its storages are larger than the file")
        storages[key] = np.zeros(size, dtype)  # filled below: the bytes follow the content
        return storages[key]

    with path.open("rb") as file:
        magic, _, machine, content, keys = (_TensorUnpickler(file, storage).load() for _ in range(5))
        if magic != _LEGACY_MAGIC or not machine["little_endian"]:
            raise pickle.UnpicklingError("its magic number is wrong, or it was saved on a big-endian machine")
        for key in keys:
            size, values = int.from_bytes(file.read(8), "little"), storages[key]
            data = file.read(values.nbytes)
            if size != values.size or len(data) != values.nbytes:
                raise pickle.UnpicklingError("it is truncated")
            values[:] = np.frombuffer(data, values.dtype)
    return content


def _tensors_in(content: Any, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Yield (dotted name, tensor) for every tensor of nested containers."""
    if isinstance(content, np.ndarray):
        yield prefix, content
    elif isinstance(content, Mapping):
        for name, value in content.items():
            yield from _tensors_in(value, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(content, (list, tuple)):
        for index, value in enumerate(content):
            yield from _tensors_in(value, f"{prefix}.{index}" if prefix else str(index))
