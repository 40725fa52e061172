"""Arrays on disk, extracted once: ArrayRecord shards of fixed-shape items, so that training never decodes a video twice.

A folder holds `schema.json` ({name: [shape, dtype]}), `shard-00000.array_record` with `shard-00000.ids.json`, and so on, and
`complete` once nothing is missing. A record is the bytes of its arrays, one after the other in the schema's order. Items
that could not be had are listed in the `.ids.json` of their shard, each with its index and the reason.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import hashlib
import json
import math
import pathlib

from array_record.python import array_record_data_source, array_record_module
import numpy as np

from msg_jax.errors import UserError

Arrays = Mapping[str, np.ndarray]


class FeatureWriter:
    """Writes items in shards; a shard gets its name only when it is whole, so a killed writer goes on where it was.

    Several processes share the shards: process `process` of `processes` writes every so manieth.
    """

    def __init__(self, folder: str | pathlib.Path, count: int, shard_items: int, process: int = 0, processes: int = 1):
        self._folder, self._count, self._shard_items = pathlib.Path(folder), count, shard_items
        self._mine = range(process, math.ceil(count / shard_items), processes)
        self._folder.mkdir(parents=True, exist_ok=True)
        for shard in self._mine:
            self._path(shard).with_suffix(".partial").unlink(missing_ok=True)

    @property
    def missing(self) -> Iterator[tuple[int, range]]:
        """(shard, the item indices it holds) of every shard of this process that is not yet written."""
        for shard in self._mine:
            if not self._path(shard).exists():
                start = shard * self._shard_items
                yield shard, range(start, min(start + self._shard_items, self._count))

    def write(self, shard: int, ids: Sequence[str], items: Sequence[Arrays], skipped: Sequence[dict] = ()) -> None:
        """`skipped`: rows {"index", "path", "reason"} of those items of the shard that are not among `items`."""
        schema = {name: [list(value.shape), str(value.dtype)] for name, value in items[0].items()} if items else {}
        if items:
            beside = self._folder / f"schema.json.{shard}"
            beside.write_text(json.dumps(schema))
            beside.replace(self._folder / "schema.json")
        contents = {"ids": list(ids), "skipped": list(skipped)}
        self._path(shard).with_suffix(".ids.json").write_text(json.dumps(contents))
        partial = self._path(shard).with_suffix(".partial")
        writer = array_record_module.ArrayRecordWriter(str(partial), "group_size:1,uncompressed")
        for item in items:
            writer.write(b"".join(np.ascontiguousarray(item[name]).tobytes() for name in schema))
        writer.close()
        partial.replace(self._path(shard))

    def finish(self) -> None:
        """Called when nothing is missing, in any process: only now can the folder be read."""
        (self._folder / "complete").touch()

    def _path(self, shard: int) -> pathlib.Path:
        return self._folder / f"shard-{shard:05d}.array_record"


class FeatureSource:
    """Random access to a folder of features: item i is a dict of arrays and of the `id` of its clip, which is `ids[i]`.

    `skipped` are the rows of the items that were left out, and `kept[i]` is the index that item i had among all.

    Raises UserError if the folder was not written to the end, every item was left out, or a shard is damaged.
    """

    def __init__(self, folder: str | pathlib.Path):
        folder = pathlib.Path(folder)
        if not (folder / "complete").exists():
            raise UserError(f"{folder} holds no complete features: run the stage that writes it to its end.")
        shards = sorted(folder.glob("*.array_record"))
        contents = [json.loads(shard.with_suffix(".ids.json").read_text()) for shard in shards]
        self.ids = [name for each in contents for name in each["ids"]]
        self.skipped = [row for each in contents for row in each["skipped"]]
        if not self.ids:
            raise UserError(f"{folder} is empty: none of its {len(self.skipped)} clips could be read; replace the files that "
                            "skipped.jsonl names and delete that folder.")
        left_out = {row["index"] for row in self.skipped}
        self.kept = [i for i in range(len(self.ids) + len(left_out)) if i not in left_out]
        self._schema = {
            name: (tuple(shape), np.dtype(dtype))
            for name, (shape, dtype) in json.loads((folder / "schema.json").read_text()).items()
        }
        self._folder, filled = folder, [str(shard) for shard, each in zip(shards, contents) if each["ids"]]
        with self._reading():
            self._records = array_record_data_source.ArrayRecordDataSource(filled)

    @property
    def dims(self) -> dict[str, int]:
        """The last dimension of every array."""
        return {name: shape[-1] for name, (shape, _) in self._schema.items()}

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        with self._reading():
            record = self._records[int(index)]
        item, offset = {"id": self.ids[int(index)]}, 0
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
        """The SHA-256 of every record's bytes."""
        return [hashlib.sha256(self._records[i]).hexdigest() for i in range(len(self))]

    def stack(self, indices: Sequence[int], names: Sequence[str]) -> dict[str, np.ndarray]:
        """Several items as arrays with a leading batch dimension."""
        items = [self[i] for i in indices]
        return {name: np.stack([item[name] for item in items]) for name in names}
