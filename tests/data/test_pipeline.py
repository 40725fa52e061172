import itertools
import pathlib
import sys

import numpy as np
import pytest

from msg_jax.clip import TINY
from msg_jax.data.pipeline import Chosen, Named, Readable, batches, make_source
from msg_jax.data.scenes import ScenesSource
from msg_jax.data.tfds_source import TfdsSource
from msg_jax.errors import UnreadableError, UserError

SIZES = {"train": 6, "validation": 2, "test": 2}


class Numbers:
    """Eleven records whose value is their index."""

    spec, split, class_names, skipped = TINY, "train", (), []

    def __len__(self):
        return 11

    def __getitem__(self, index):
        return {"id": f"clip-{index}", "value": np.float32(index)}


def _values(count, start=0, **options):
    dataset = batches(Numbers(), **{"batch_size": 4, "seed": 7} | options)
    iterator = iter(dataset)
    iterator.set_state({"next_index": start})
    return np.stack([batch["value"] for batch in itertools.islice(iterator, count)])


def test_every_clip_comes_once_per_pass_and_passes_differ():
    order = _values(11).astype(int).reshape(-1)  # 44 draws: four passes
    passes = order.reshape(4, 11)
    assert all(sorted(one) == list(range(11)) for one in passes.tolist())
    assert len({tuple(one) for one in passes.tolist()}) == 4


@pytest.mark.parametrize("step", [1, 2, 5])
def test_resumes_at_any_step(step):
    np.testing.assert_array_equal(_values(3, start=step), _values(8)[step : step + 3])


def test_a_saved_state_is_the_step():
    iterator = iter(batches(Numbers(), batch_size=4, seed=7))
    for _ in range(3):
        next(iterator)
    assert iterator.get_state() == {"next_index": 3}


@pytest.mark.parametrize("rows", [None, [1, 3]])
def test_frames_are_those_of_a_records_place_in_the_batch(rows):
    """The order stays that of whole records, and unreadable ones are replaced alike."""

    class Parts(Numbers):
        def read(self, index, frames=None):
            if index == 5:
                raise UnreadableError("five.mp4", "broken")
            return {"id": f"clip-{index}", "value": np.float32(index), "frames": np.array(frames or 0)}

        def __getitem__(self, index):
            return self.read(index)

    def first(frames):
        source = Named(Readable(Parts(), lambda row: None), lambda record: record)
        return list(itertools.islice(batches(source, batch_size=4, seed=7, rows=rows, frames=frames), 6))

    cut, whole = first(lambda step, row: range(10 * step + row, 10 * step + row + 2)), first(None)
    for step, (mine, other) in enumerate(zip(cut, whole)):
        np.testing.assert_array_equal(mine["value"], other["value"])
        assert mine["id"] == other["id"]
        assert mine["frames"].tolist() == [[10 * step + row, 10 * step + row + 1] for row in rows or range(4)]


@pytest.mark.parametrize("processes", [2, 4])
def test_the_rows_of_all_processes_are_the_global_batch(processes):
    alone = _values(6)
    for split in ([*np.arange(4).reshape(processes, -1)], [range(index, 4, processes) for index in range(processes)]):
        shares = [_values(6, rows=[int(row) for row in rows]) for rows in split]
        np.testing.assert_array_equal(np.concatenate(shares, axis=1), alone[:, np.concatenate([list(r) for r in split])])


def test_read_threads_do_not_change_the_batches_but_the_seed_does():
    np.testing.assert_array_equal(_values(6, read_threads=1), _values(6, read_threads=8))
    assert np.any(_values(2) != _values(2, seed=8))


def test_the_transform_maps_each_record():
    doubled = _values(3, transform=lambda record: record | {"value": 2 * record["value"]})
    np.testing.assert_array_equal(doubled, 2 * _values(3))


def test_arrays_are_stacked_and_strings_stay_a_list():
    first = next(iter(batches(Numbers(), batch_size=4, seed=0)))
    assert first["value"].shape == (4,) and first["value"].dtype == np.float32
    assert first["id"] == [f"clip-{value:.0f}" for value in first["value"]]


def test_a_batch_may_be_larger_than_the_source():
    values = _values(2, batch_size=22).astype(int)
    assert all(sorted(half) == list(range(11)) for batch in values.tolist() for half in (batch[:11], batch[11:]))


def test_make_source(tmp_path):
    on_the_fly = make_source("scenes", TINY, "test", seed=3, sizes=SIZES)
    stored = make_source("scenes", TINY, "test", seed=3, sizes=SIZES, data_dir=str(tmp_path))
    assert isinstance(on_the_fly, ScenesSource) and isinstance(stored, TfdsSource)
    np.testing.assert_array_equal(on_the_fly[1]["video"], stored[1]["video"])
    (version,) = pathlib.Path(tmp_path, "scenes").glob("*/1.0.0")
    assert make_source(f"tfds:{version}", TINY, "test")[1]["id"] == stored[1]["id"]
    ids = [make_source("scenes", TINY, split, seed=3, sizes=SIZES)[0]["id"] for split in SIZES]
    assert len(set(ids)) == 3
    for wrong in ("scene", "folder:", "scenes:x", "/some/videos"):
        with pytest.raises(UserError, match="write scenes, folder:PATH or tfds:"):
            make_source(wrong, TINY, "train", sizes=SIZES)
    with pytest.raises(UserError, match=r"data\.sizes"):
        make_source("scenes", TINY, "train")


def test_no_tensorflow():
    assert "tensorflow" not in sys.modules


def test_a_run_resumes_at_the_next_batch_on_another_number_of_processes():
    """Two processes for three steps, then one, then four, read the batches of one process throughout."""
    alone = _values(9)
    steps = [np.concatenate([_values(3, start=3 * part, rows=list(rows)) for rows in split], axis=1)
             for part, split in enumerate(([range(2), range(2, 4)], [range(4)], [[0], [1], [2], [3]]))]
    np.testing.assert_array_equal(np.concatenate(steps), alone)


class Broken(Numbers):
    """Eleven records of which `bad` cannot be read."""

    def __init__(self, *bad):
        self.bad = bad

    def __getitem__(self, index):
        if index in self.bad:
            raise UnreadableError(f"{index}.mp4", "it is damaged")
        return super().__getitem__(index)


def test_an_unreadable_record_is_replaced_by_the_next():
    rows = []
    source = Readable(Broken(3, 4, 10), rows.append)
    for _ in range(2):
        assert [source[i]["id"] for i in (2, 3, 4, 5, 10)] == ["clip-2", "clip-5", "clip-5", "clip-5", "clip-0"]
    assert [row["path"] for row in rows] == ["3.mp4", "4.mp4", "10.mp4"]  # each reported once
    assert rows[0]["reason"] == "it is damaged" and len(source) == 11
    with pytest.raises(UserError, match="None of 11 clips can be read"):
        Readable(Broken(*range(11)), rows.append)[7]


def test_chosen_records_keep_their_order():
    source = Chosen(Numbers(), [7, 2])
    assert len(source) == 2 and [source[i]["id"] for i in range(2)] == ["clip-7", "clip-2"]
    assert source.split == "train" and source.spec is TINY
