import numpy as np
import pytest

from msg_jax.data.features import FeatureSource, FeatureWriter
from msg_jax.errors import UserError


def _item(i):
    return {"latents": np.full((3, 2), i, np.float32), "flags": np.array([i, -i], np.int16)}


def test_a_killed_writer_resumes_and_the_reader_sees_every_item(tmp_path):
    writer = FeatureWriter(tmp_path, 7, shard_items=3)
    assert [(shard, list(rows)) for shard, rows in writer.missing] == [(0, [0, 1, 2]), (1, [3, 4, 5]), (2, [6])]
    writer.write(0, ["a", "b", "c"], [_item(i) for i in range(3)])
    (tmp_path / "shard-00001.partial").write_bytes(b"cut")
    with pytest.raises(UserError, match="no complete features"):
        FeatureSource(tmp_path)

    writer = FeatureWriter(tmp_path, 7, shard_items=3)
    assert not list(tmp_path.glob("*.partial"))
    for shard, rows in writer.missing:
        assert shard > 0
        writer.write(shard, ["abcdefg"[i] for i in rows], [_item(i) for i in rows])
    assert not list(writer.missing)
    writer.finish()

    source = FeatureSource(tmp_path)
    assert source.ids == list("abcdefg") and len(source) == 7
    assert source.dims == {"latents": 2, "flags": 2}
    for i in range(7):
        for name, value in _item(i).items():
            np.testing.assert_array_equal(source[i][name], value)
            assert source[i][name].dtype == value.dtype
    np.testing.assert_array_equal(source.stack([5, 1], ("flags",))["flags"], [[5, -5], [1, -1]])


def test_skipped_items_are_listed_and_the_others_keep_their_index(tmp_path):
    """Seven clips of which 1, 3, 4 and 5 are unreadable, among them a whole shard."""
    bad = {1, 3, 4, 5}
    writer = FeatureWriter(tmp_path, 7, shard_items=3)
    for shard, rows in writer.missing:
        good = [i for i in rows if i not in bad]
        skipped = [{"index": i, "path": f"{i}.mp4", "reason": "broken"} for i in rows if i in bad]
        writer.write(shard, ["abcdefg"[i] for i in good], [_item(i) for i in good], skipped)
    writer.finish()
    source = FeatureSource(tmp_path)
    assert source.ids == list("acg") and source.kept == [0, 2, 6]
    assert [row["path"] for row in source.skipped] == ["1.mp4", "3.mp4", "4.mp4", "5.mp4"]
    np.testing.assert_array_equal(source[1]["flags"], [2, -2])
    np.testing.assert_array_equal(source[2]["flags"], [6, -6])

    empty = FeatureWriter(tmp_path / "none", 2, shard_items=3)
    empty.write(0, [], [], [{"index": i, "path": f"{i}.mp4", "reason": "broken"} for i in range(2)])
    empty.finish()
    with pytest.raises(UserError, match="none of its 2 clips could be read"):
        FeatureSource(tmp_path / "none")
