"""Arrays on disk, extracted once: ArrayRecord shards of fixed-shape items, so that training never decodes a video twice.

A folder holds `schema.json` ({name: [shape, dtype]}), `shard-00000.array_record` with `shard-00000.ids.json`, and so on, and
`complete` once nothing is missing. A record is the bytes of its arrays, one after the other in the schema's order.
"""

from collections.abc import Iterator, Mapping, Sequence
import hashlib
import json
import math
import pathlib

from array_record.python import array_record_data_source, array_record_module
import numpy as np

from msg_jax.errors import UserError

Arrays = Mapping[str, np.ndarray]


class FeatureWriter:
    """Writes items in shards; a shard gets its name only when it is whole, so a killed writer goes on where it was."""

    def __init__(self, folder: str | pathlib.Path, count: int, shard_items: int):
        self._folder, self._count, self._shard_items = pathlib.Path(folder), count, shard_items
        self._folder.mkdir(parents=True, exist_ok=True)
        for left in self._folder.glob("*.partial"):
            left.unlink()

    @property
    def missing(self) -> Iterator[tuple[int, range]]:
        """(shard, the item indices it holds) of every shard not yet written."""
        for shard in range(math.ceil(self._count / self._shard_items)):
            if not self._path(shard).exists():
                start = shard * self._shard_items
                yield shard, range(start, min(start + self._shard_items, self._count))

    def write(self, shard: int, ids: Sequence[str], items: Sequence[Arrays]) -> None:
        schema = {name: [list(value.shape), str(value.dtype)] for name, value in items[0].items()}
        (self._folder / "schema.json").write_text(json.dumps(schema))
        self._path(shard).with_suffix(".ids.json").write_text(json.dumps(list(ids)))
        partial = self._path(shard).with_suffix(".partial")
        writer = array_record_module.ArrayRecordWriter(str(partial), "group_size:1,uncompressed")
        for item in items:
            writer.write(b"".join(np.ascontiguousarray(item[name]).tobytes() for name in schema))
        writer.close()
        partial.replace(self._path(shard))

    def finish(self) -> None:
        """Called when nothing is missing: only now can the folder be read."""
        (self._folder / "complete").touch()

    def _path(self, shard: int) -> pathlib.Path:
        return self._folder / f"shard-{shard:05d}.array_record"


class FeatureSource:
    """Random access to a folder of features: item i is a dict of arrays; `ids[i]` names its clip.

    Raises UserError if the folder was not written to the end.
    """

    def __init__(self, folder: str | pathlib.Path):
        folder = pathlib.Path(folder)
        if not (folder / "complete").exists():
            raise UserError(f"{folder} holds no complete features: run the stage that writes it to its end.")
        shards = sorted(folder.glob("*.array_record"))
        self.ids = [name for shard in shards for name in json.loads(shard.with_suffix(".ids.json").read_text())]
        self._schema = {
            name: (tuple(shape), np.dtype(dtype))
            for name, (shape, dtype) in json.loads((folder / "schema.json").read_text()).items()
        }
        self._records = array_record_data_source.ArrayRecordDataSource([str(shard) for shard in shards])

    @property
    def dims(self) -> dict[str, int]:
        """The last dimension of every array."""
        return {name: shape[-1] for name, (shape, _) in self._schema.items()}

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        record = self._records[int(index)]
        item, offset = {}, 0
        for name, (shape, dtype) in self._schema.items():
            count = math.prod(shape)
            item[name] = np.frombuffer(record, dtype, count, offset).reshape(shape)
            offset += count * dtype.itemsize
        return item

    def digests(self) -> list[str]:
        """The SHA-256 of every record's bytes."""
        return [hashlib.sha256(self._records[i]).hexdigest() for i in range(len(self))]

    def stack(self, indices: Sequence[int], names: Sequence[str]) -> dict[str, np.ndarray]:
        """Several items as arrays with a leading batch dimension."""
        items = [self[i] for i in indices]
        return {name: np.stack([item[name] for item in items]) for name in names}
