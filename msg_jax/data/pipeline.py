"""The input pipeline: a source string in, shuffled and resumable batches out (Grain)."""

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
import itertools
import os
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np

from msg_jax import storage
from msg_jax.clip import ClipSpec
from msg_jax.data.scenes import ScenesSource
from msg_jax.errors import UnreadableError, UserError

Element = dict[str, Any]


@runtime_checkable
class Items(Protocol):
    """Anything with random access."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


@runtime_checkable
class Source(Items, Protocol):
    """Random access to records. `skipped` lists the unusable files as {"path", "reason"}."""

    @property
    def spec(self) -> ClipSpec: ...

    @property
    def split(self) -> str: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def skipped(self) -> list[dict]: ...


@runtime_checkable
class PartSource(Source, Protocol):
    """A source that decodes its records, and can leave out frames of `video`: they are black."""

    def read(self, index: int, frames: range) -> Any: ...


Frames = Callable[[int, int], range]
"""Which frames of `video` the record in a row of the global batch of a step needs: (step, row) -> frames."""


def make_source(
    source: str,
    clip: ClipSpec,
    split: str,
    *,
    data_dir: str | None = None,
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
    **folder_options,
) -> Source:
    """Opens `scenes`, `folder:PATH` or `tfds:NAME_OR_FOLDER`.

    scenes  procedural scenes, a function of `sizes` (scenes per split) and `seed`; written once below `data_dir`, or made
            on the fly if that is None
    folder  videos, split by `seed`; takes `folder_options` (see `FolderSource`), also which `streams` of pictures to decode
    tfds    a TFDS data set, by folder or by registered name below `data_dir`

    Raises UserError if `source` is none of these, or if the data disagree with `clip`.
    """
    kind, _, place = source.partition(":")
    if kind == "scenes" and not place:
        if sizes is None:
            raise UserError("the source 'scenes' needs data.sizes: set the number of scenes of each split")
        if data_dir is None:
            return ScenesSource(clip, split, sizes[split], seed)
        if storage.in_bucket(storage.path(data_dir)):
            raise UserError(f"config.data.cache={data_dir} is in a bucket, but scenes are written to a disk: "
                            "name a folder there.")
        # TFDS and PyAV are imported only when needed
        from msg_jax.data.builders.scenes import prepare_scenes
        from msg_jax.data.tfds_source import TfdsSource

        return TfdsSource(prepare_scenes(data_dir, clip, seed, sizes), clip, split)
    if kind == "folder" and place:
        from msg_jax.data.folder import FolderSource

        return FolderSource(place, clip, split, seed=seed, **folder_options)
    if kind == "tfds" and place:
        from msg_jax.data.tfds_source import TfdsSource

        return TfdsSource(place, clip, split, data_dir)
    raise UserError(f"data.source is {source!r}; write scenes, folder:PATH or tfds:NAME_OR_FOLDER")


class Subset:
    """The items of `source` at `indices`, in that order."""

    def __init__(self, source: Items, indices: Sequence[int]):
        self._source, self._indices = source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Element:
        return self._source[self._indices[index]]


class Chosen(Subset):
    """A `Subset` of records that is itself a `Source`."""

    def __init__(self, source: Source, indices: Sequence[int]):
        super().__init__(source, indices)
        self.spec, self.split, self.class_names, self.skipped = source.spec, source.split, source.class_names, source.skipped


class Readable:
    """Replaces unreadable records of `source` by the next readable one.

    Calls `report` once for each unreadable record, with its row for `skipped.jsonl`. Indexing raises UserError if no record
    can be read.
    """

    def __init__(self, source: Items, report: Callable[[dict], None]):
        self._source, self._report = source, report
        self._bad: set[int] = set()

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Any:
        return self.read(index)

    def read(self, index: int, frames: range | None = None) -> Any:
        for i in (*range(index, len(self)), *range(index)):
            if i in self._bad:
                continue
            try:
                return _read(self._source, i, frames)
            except UnreadableError as error:
                self._bad.add(i)
                self._report(error.row)
        raise UserError(f"None of {len(self)} clips can be read: see the reasons in skipped.jsonl and replace the files.")


class Named:
    """Applies `transform` to every record and keeps the clip's `id`, by which messages name clips."""

    def __init__(self, source: Items, transform: Callable[[Element], Element] | None = None):
        self._source, self._transform = source, transform or (lambda record: record)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Element:
        return self.read(index)

    def read(self, index: int, frames: range | None = None) -> Element:
        record = _read(self._source, index, frames)
        return self._transform(record) | ({"id": record["id"]} if "id" in record else {})


def _read(source: Any, index: int, frames: range | None) -> Any:
    return source[index] if frames is None else source.read(index, frames)


class _Parts:
    """Records in an endless order, of which only the frames that their place in a batch needs are decoded."""

    def __init__(self, source: Any, order: Items, batch_size: int, frames: Frames):
        self._source, self._order, self._batch_size, self._frames = source, order, batch_size, frames

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> Element:
        return self._source.read(self._order[index], self._frames(*divmod(index, self._batch_size)))


class _Rows:
    """One process's rows of every global batch.

    The rows of all processes together are the batch that a single process would read. So noise drawn per row meets the same
    clip on any number of processes.
    """

    def __init__(self, elements: Items, batch_size: int, rows: Sequence[int]):
        self._elements, self._batch_size, self._rows = elements, batch_size, rows

    def __len__(self) -> int:
        return len(self._elements) // self._batch_size * len(self._rows)

    def __getitem__(self, index: int) -> Element:
        batch, row = divmod(index, len(self._rows))
        return self._elements[batch * self._batch_size + self._rows[row]]


def batches(
    source: Items,
    *,
    batch_size: int,
    seed: int,
    transform: Callable[[Element], Element] | None = None,
    read_threads: int = 0,
    rows: Sequence[int] | None = None,
    frames: Frames | None = None,
) -> grain.IterDataset:
    """Endless shuffled batches of `batch_size` clips over all processes.

    This process gets the `rows` of each batch, by default all. `transform` maps each record. Arrays are stacked, strings
    stay a list. Every pass over the source has its own order. With `frames`, a `PartSource` decodes only these.

    Batch number `step` is a function of `seed` and `step` alone, so the step is an iterator's whole state:
    `iterator.set_state({"next_index": step})` moves there, on any number of processes.
    """
    rows = range(batch_size) if rows is None else rows
    elements: Any = grain.MapDataset.source(range(len(source)) if frames else source).seed(seed).shuffle().repeat()
    if frames is not None:
        elements = grain.MapDataset.source(_Parts(source, elements, batch_size, frames))
    if transform is not None:
        elements = elements.map(transform)
    # batch before iterating, so that the state to save is one number
    share = grain.MapDataset.source(_Rows(elements, batch_size, rows)).batch(len(rows), drop_remainder=True, batch_fn=_stack)
    return share.to_iter_dataset(_read_options(read_threads))


def threads_or_cores(threads: int) -> int:
    """The number of reading threads: `threads`, or for 0 one for each core that this process may use."""
    return threads or len(os.sched_getaffinity(0))


def read_ahead(read: Callable[[int], Any], indices: Iterable[int], *, threads: int, ahead: int) -> Iterator[tuple[int, Any]]:
    """Yields (i, read(i)) in the order of `indices`. Threads read up to `ahead` items while the caller works on earlier ones.

    In place of an unreadable item it yields the UnreadableError. Another exception is raised at its item.
    """
    def one(index: int) -> Any:
        try:
            return read(index)
        except UnreadableError as error:
            return error

    pool, pending, rest = ThreadPoolExecutor(threads), collections.deque(), iter(indices)
    try:
        while True:
            pending.extend((i, pool.submit(one, i)) for i in itertools.islice(rest, ahead - len(pending)))
            if not pending:
                return
            index, item = pending.popleft()
            yield index, item.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _read_options(threads: int) -> grain.ReadOptions:
    threads = threads_or_cores(threads)
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)


def _stack(elements: Sequence[Element]) -> Element:
    """Stacks arrays and numbers. Strings stay a list, because devices hold none."""
    columns = {name: [element[name] for element in elements] for name in elements[0]}
    return {name: column if isinstance(column[0], str) else np.stack(column) for name, column in columns.items()}
