"""Extracted features on disk, as ArrayRecord shards of fixed-shape items: training decodes no video.

A folder holds `schema.json` ({name: [shape, dtype]}), pairs of `shard-00000.array_record` and `shard-00000.ids.json`, and
the marker `complete` once all shards are written. A record is the bytes of its arrays in the schema's order. The
`.ids.json` of a shard also has the digests of its records, and lists the items that were left out, each with its index and
the reason.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import hashlib
import json
import math
import os
from typing import Any, SupportsIndex

from array_record.python import (
    array_record_data_source,
    array_record_module,  # pyright: ignore[reportAttributeAccessIssue] compiled, without stub
)
import numpy as np

from msg_jax import storage
from msg_jax.errors import UserError

Arrays = Mapping[str, np.ndarray]


class FeatureWriter:
    """Writes `count` items in shards of `shard_items`. A new writer on the same folder continues an interrupted one.

    Process `process` writes every `processes`-th shard. A shard gets its name only when complete.
    """

    def __init__(self, folder: str | os.PathLike, count: int, shard_items: int, process: int = 0, processes: int = 1):
        self._folder, self._count, self._shard_items = storage.path(folder), count, shard_items
        self._mine = range(process, math.ceil(count / shard_items), processes)
        self._folder.mkdir(parents=True, exist_ok=True)
        for shard in self._mine:
            self._path(shard).with_suffix(".partial").unlink(missing_ok=True)

    @property
    def missing(self) -> Iterator[tuple[int, range]]:
        """Yields (shard, its item indices) for each unwritten shard of this process."""
        for shard in self._mine:
            if not self._path(shard).exists():
                start = shard * self._shard_items
                yield shard, range(start, min(start + self._shard_items, self._count))

    def write(self, shard: int, ids: Sequence[str], items: Sequence[Arrays], skipped: Sequence[dict] = ()) -> None:
        """Writes one shard. `skipped` has a row {"index", "path", "reason"} for each item that is not among `items`."""
        schema = {name: [list(value.shape), str(value.dtype)] for name, value in items[0].items()} if items else {}
        if items:
            storage.write_atomically(self._folder / "schema.json", json.dumps(schema))
        records = [b"".join(np.ascontiguousarray(item[name]).tobytes() for name in schema) for item in items]
        digests = [hashlib.sha256(record).hexdigest() for record in records]
        contents = {"ids": list(ids), "digests": digests, "skipped": list(skipped)}
        self._path(shard).with_suffix(".ids.json").write_text(json.dumps(contents))
        with storage.new_file(self._path(shard), unfinished=f"shard-{shard:05d}.partial") as partial:
            writer = array_record_module.ArrayRecordWriter(str(partial), "group_size:1,uncompressed")
            for record in records:
                writer.write(record)
            writer.close()

    def finish(self) -> None:
        """Marks the folder as complete, so that it can be read. Call it once no process has a missing shard."""
        (self._folder / "complete").write_text("")

    def _path(self, shard: int) -> storage.Path:
        return self._folder / f"shard-{shard:05d}.array_record"


class FeatureSource:
    """Random access to a folder of features. Item i is a dict of arrays, with its clip's `id`, which is also `ids[i]`.

    `skipped` lists the items that were left out. `kept[i]` is the index of item i among all items, left out or not. ArrayRecord
    reads files on a disk: shards in a bucket are copied to the cache first (`storage.cached`).

    Raises UserError if the folder is not complete, if every item was left out, or if a shard is damaged.
    """

    def __init__(self, folder: str | os.PathLike):
        folder = storage.path(folder)
        if not (folder / "complete").exists():
            raise UserError(f"{folder} holds no complete features: finish the stage that writes it.")
        on_disk = storage.cached(folder)
        shards = sorted(on_disk.glob("*.array_record"))
        contents = [json.loads(shard.with_suffix(".ids.json").read_text()) for shard in shards]
        self.ids = [name for each in contents for name in each["ids"]]
        self.skipped = [row for each in contents for row in each["skipped"]]
        self._digests = [digest for each in contents for digest in each.get("digests", [""] * len(each["ids"]))]
        if not self.ids:
            raise UserError(f"{folder} is empty: none of its {len(self.skipped)} clips could be read; replace the files that "
                            "skipped.jsonl lists and delete that folder.")
        left_out = {row["index"] for row in self.skipped}
        self.kept = [i for i in range(len(self.ids) + len(left_out)) if i not in left_out]
        self._schema = {
            name: (tuple(shape), np.dtype(dtype))
            for name, (shape, dtype) in json.loads((on_disk / "schema.json").read_text()).items()
        }
        self._folder, filled = folder, [str(shard) for shard, each in zip(shards, contents) if each["ids"]]
        with self._reading():
            self._records = array_record_data_source.ArrayRecordDataSource(filled)

    @property
    def dims(self) -> dict[str, int]:
        """The last dimension of each array, by name."""
        return {name: shape[-1] for name, (shape, _) in self._schema.items()}

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        with self._reading():
            record = self._records[int(index)]
        item: dict[str, Any] = {"id": self.ids[int(index)]}
        offset = 0
        for name, (shape, dtype) in self._schema.items():
            count = math.prod(shape)
            item[name] = np.frombuffer(record, dtype, count, offset).reshape(shape)
            offset += count * dtype.itemsize
        return item

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ValueError, OSError) as error:  # ArrayRecord checks every block
            raise UserError(f"A shard in {self._folder} cannot be read ({str(error)[:200]}); delete that folder and run its "
                            "stage again.") from error

    def digests(self) -> list[str]:
        """The SHA-256 of each record, taken when it was written. Older shards have none, and are read."""
        return [digest or hashlib.sha256(self._records[i]).hexdigest() for i, digest in enumerate(self._digests)]

    def stack(self, indices: Sequence[SupportsIndex] | np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Stacks the arrays `names` of several items along a leading batch dimension."""
        items = [self[i] for i in indices]
        return {name: np.stack([item[name] for item in items]) for name in names}
