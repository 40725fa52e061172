"""From a source string to batches: Grain shuffles, reads ahead and resumes; this file only says in which order."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import grain
import numpy as np

from msg_jax.clip import ClipSpec
from msg_jax.data.scenes import ScenesSource
from msg_jax.errors import UnreadableError, UserError

Element = dict[str, Any]


class Source(Protocol):
    """Random access to records; `skipped` lists the files that gave none, as {"path", "reason"}."""

    spec: ClipSpec
    split: str
    class_names: tuple[str, ...]
    skipped: list[dict]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Element: ...


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
    """Opens `scenes`, `folder:PATH` or `tfds:NAME_OR_FOLDER`; imports only what that kind needs.

    `sizes` (scenes per split) and `seed` decide the procedural scenes: written once below `data_dir`, or made on the
    fly if that is None. A folder is divided into splits by `seed` too, and takes `folder_options` (`FolderSource`).

    Raises UserError if the string is none of these, or the data disagree with `clip`.
    """
    kind, _, place = source.partition(":")
    if kind == "scenes" and not place:
        if sizes is None:
            raise UserError("the source 'scenes' needs data.sizes, the number of scenes of each split")
        if data_dir is None:
            return ScenesSource(clip, split, sizes[split], seed)
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
    """The items of anything with random access at some indices, in that order."""

    def __init__(self, source: Any, indices: Sequence[int]):
        self._source, self._indices = source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Element:
        return self._source[self._indices[index]]


class Chosen(Subset):
    """The records of a source at some indices, in that order."""

    def __init__(self, source: Source, indices: Sequence[int]):
        super().__init__(source, indices)
        self.spec, self.split, self.class_names, self.skipped = source.spec, source.split, source.class_names, source.skipped


class Readable:
    """A source that gives the next record that can be read in the place of one that cannot.

    `report` is told of each such record, as a row of `skipped.jsonl`, when it is met first. Raises UserError if there is
    no record that can be read.
    """

    def __init__(self, source: Any, report: Callable[[dict], None]):
        self._source, self._report, self._bad = source, report, set()

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Any:
        for i in (*range(index, len(self)), *range(index)):
            if i in self._bad:
                continue
            try:
                return self._source[i]
            except UnreadableError as error:
                self._bad.add(i)
                self._report(error.row)
        raise UserError(f"None of {len(self)} clips can be read: skipped.jsonl says why.")


class Named:
    """A source whose transformed records keep the `id` of their clip; messages name clips by it."""

    def __init__(self, source: Any, transform: Callable[[Element], Element] | None = None):
        self.split = getattr(source, "split", "")
        self._source, self._transform = source, transform or (lambda record: record)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Element:
        record = self._source[index]
        return self._transform(record) | ({"id": record["id"]} if "id" in record else {})


class _Rows:
    """One process's share of every global batch: the `rows` that its devices hold.

    Put in their places, the shares are the global batch of a single process, row by row, so that noise drawn per row meets
    the same clip on any number of processes.
    """

    def __init__(self, elements: grain.MapDataset, batch_size: int, rows: Sequence[int]):
        self._elements, self._batch_size, self._rows = elements, batch_size, rows

    def __len__(self) -> int:
        return len(self._elements) // self._batch_size * len(self._rows)

    def __getitem__(self, index: int) -> Element:
        batch, row = divmod(index, len(self._rows))
        return self._elements[batch * self._batch_size + self._rows[row]]


def batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    transform: Callable[[Element], Element] | None = None,
    random_transform: Callable[[Element, np.random.Generator], Element] | None = None,
    shuffle: bool = True,
    repeat: bool = True,
    read_threads: int = 2,
    rows: Sequence[int] | None = None,
) -> grain.IterDataset:
    """Batches of `batch_size` clips over all processes; this process gets its `rows` of each, by default all.

    `transform` is applied to a record first, then `random_transform` with a generator of the element's own. Arrays are
    stacked, strings kept as a list. Batch number `step` is a function of `seed` and `step` alone, so that an iterator's
    whole state is its step: `iterator.set_state({"next_index": step})` goes there, whatever the process count was.
    Incomplete last batches are dropped.

    Raises UserError if the source is smaller than one batch.
    """
    rows = range(batch_size) if rows is None else rows
    if len(source) < batch_size and not repeat:
        raise UserError(f"the {source.split} split has {len(source)} clips, less than one batch of {batch_size}")
    elements = grain.MapDataset.source(source).seed(seed)
    if shuffle:
        elements = elements.shuffle()
    if repeat:
        elements = elements.repeat()
    if transform is not None:
        elements = elements.map(transform)
    if random_transform is not None:
        elements = elements.random_map(random_transform)
    # batching comes before iteration: then the state to save is one number
    share = grain.MapDataset.source(_Rows(elements, batch_size, rows)).batch(len(rows), drop_remainder=True, batch_fn=_stack)
    return share.to_iter_dataset(_read_options(read_threads))


def _read_options(threads: int) -> grain.ReadOptions:
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)


def _stack(elements: list[Element]) -> Element:
    """Stacks arrays and numbers; strings stay a list, for no device takes them."""
    columns = {name: [element[name] for element in elements] for name in elements[0]}
    return {name: column if isinstance(column[0], str) else np.stack(column) for name, column in columns.items()}
