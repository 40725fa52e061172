"""Reading PyTorch checkpoints without PyTorch, and filling a Flax module's variables from their tensors by a table."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
import dataclasses
import io
import math
import os
import pathlib
import pickle
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
        value = entry.transform(*(np.asarray(tensors[name]) for name in entry.tensor_names))
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
    """Builds tensors out of a PyTorch zip archive. A global that is not on this short list ends the reading."""

    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(io.BytesIO(archive.read(f"{root}/data.pkl")), encoding="utf-8")
        self._archive, self._root, self._storages = archive, root, {}

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
        _, storage_type, key, _, _ = saved_id
        if key not in self._storages:
            data = self._archive.read(f"{self._root}/data/{key}")
            self._storages[key] = np.frombuffer(data, dtype=_STORAGE_DTYPES[storage_type])
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
        raise UserError(f"{path} is not a PyTorch zip archive: {remedy}")
    with zipfile.ZipFile(path) as archive:
        roots = [name.removesuffix("/data.pkl") for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise UserError(f"{path} holds {len(roots)} files called data.pkl instead of one: {remedy}")
        byteorder = f"{roots[0]}/byteorder"
        if byteorder in archive.namelist() and archive.read(byteorder) != b"little":
            raise UserError(f"{path} was saved on a big-endian machine, which is not read here: {remedy}")
        try:
            content = _TensorUnpickler(archive, roots[0]).load()
        except Exception as error:  # a damaged pickle can raise anything
            raise UserError(f"{path} cannot be read as tensors alone ({error}): {remedy}") from error
    return dict(_tensors_in(content))


def _tensors_in(content, prefix: str = ""):
    if isinstance(content, np.ndarray):
        yield prefix, content
    elif isinstance(content, Mapping):
        for name, value in content.items():
            yield from _tensors_in(value, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(content, (list, tuple)):
        for index, value in enumerate(content):
            yield from _tensors_in(value, f"{prefix}.{index}" if prefix else str(index))
