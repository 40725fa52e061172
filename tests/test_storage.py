"""Files in a bucket, in a storage server on this machine, beside the same files on a disk."""

import json
import pathlib

import numpy as np
import pytest

from msg_jax import programs, storage
from msg_jax.clip import ClipSpec
from msg_jax.config.schema import Config
from msg_jax.data import media_writer, pipeline
from msg_jax.data.features import FeatureSource, FeatureWriter
from msg_jax.data.folder import FolderSource
from msg_jax.errors import UserError
from msg_jax.infra import checkpoint, logging, metering, runtime
from msg_jax.run.run import Run


@pytest.fixture(params=["disk", "bucket"])
def root(request, tmp_path) -> storage.Path:
    """An empty folder."""
    if request.param == "disk":
        return storage.path(tmp_path / "run")
    return storage.path(f"{request.getfixturevalue('bucket')}/{tmp_path.name}")


@pytest.fixture
def remote(bucket, tmp_path) -> storage.Path:
    """An empty folder in the bucket."""
    return storage.path(f"{bucket}/{tmp_path.name}")


def _names(folder):
    return [path.relative_to(folder).as_posix() for path in storage.files_below(folder)]


def test_files_are_written_listed_moved_and_removed(root):
    assert not storage.files_below(root)
    storage.write_atomically(root / "a" / "one.txt", "café \udcff")
    storage.write_atomically(root / "a" / "b" / "two.bin", bytes(range(256)))
    with storage.new_file(root / "three.txt", unfinished="three.partial") as unfinished:
        unfinished.write_text("3")
    with pytest.raises(OSError), storage.new_file(root / "four.txt") as unfinished:
        unfinished.write_text("4")
        raise OSError
    assert _names(root) == ["a/b/two.bin", "a/one.txt", "three.txt"]
    assert (root / "a" / "one.txt").read_text() == "café \\udcff"
    assert (root / "a" / "b" / "two.bin").read_bytes() == bytes(range(256))
    assert storage.absolute(root / "a" / ".." / "three.txt") == root / "three.txt"

    storage.move(root / "a", root / "moved" / "a")
    assert _names(root) == ["moved/a/b/two.bin", "moved/a/one.txt", "three.txt"]
    storage.remove(root / "moved")
    storage.remove(root / "moved")
    assert _names(root) == ["three.txt"]


def test_a_copy_on_a_disk_follows_its_object(remote):
    path = remote / "clip.txt"
    for text in ("one", "two"):  # of one length
        storage.write_atomically(path, text)
        with storage.on_disk(path) as copy:
            assert copy.name == "clip.txt" and copy.read_text() == text
        assert not copy.exists()
        assert storage.cached(path).read_text() == text == (storage.cached(remote) / "clip.txt").read_text()
    with pytest.raises(FileNotFoundError, match=r"nothing\.txt"):
        storage.cached(remote / "nothing.txt")


def test_checksums_tell_changed_files_and_those_of_objects_read_none(root):
    for name in ("a", "b/c"):
        storage.write_atomically(root / name, name)
    before = storage.checksums(root, ["a", "b/c", "none"])
    storage.write_atomically(root / "b" / "c", "d")
    after = storage.checksums(root, ["a", "b/c"])
    assert before.keys() == after.keys() and before["a"] == after["a"] and before["b/c"] != after["b/c"]
    sha256 = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"  # of the letter a
    assert before["a"] == ("crc32c wdBDMA==" if storage.in_bucket(root) else sha256)


def test_metrics_grow_and_end_at_the_resumed_step(root):
    file = logging.MetricsFile(root / "metrics.jsonl")
    for step in (5, 10, 15):
        file.write(step, {"loss": 1.0 / step})
    file = logging.MetricsFile(root / "metrics.jsonl", resumed_step=10)
    file.write(15, {"loss": 2.0})
    rows = logging.read_metrics(root / "metrics.jsonl")
    assert [(row["step"], row["loss"]) for row in rows] == [(5, 0.2), (10, 0.1), (15, 2.0)]


def test_a_writer_of_features_continues_and_the_shards_are_those_on_a_disk(remote, tmp_path):
    items = [{"x": np.full((3, 2), i, np.float32)} for i in range(5)]
    for folder in (tmp_path, remote):
        first = FeatureWriter(folder, 5, 2)
        first.write(0, ["0", "1"], items[:2])
        with pytest.raises(UserError, match="no complete features"):
            FeatureSource(folder)
        for shard, rows in (missing := list(FeatureWriter(folder, 5, 2).missing)):
            first.write(shard, [str(i) for i in rows], [items[i] for i in rows])
        assert [shard for shard, _ in missing] == [1, 2]
        first.finish()
    here, there = FeatureSource(tmp_path), FeatureSource(remote)
    assert there.ids == list("01234") and there.digests() == here.digests()
    np.testing.assert_array_equal(there[4]["x"], items[4]["x"])
    assert _names(remote) == _names(tmp_path)


def test_a_folder_of_videos_gives_the_same_records(remote, tmp_path):
    clip = ClipSpec(duration_sec=0.8, video_px=16, clip_video_px=8)
    frames = np.random.default_rng(0).integers(0, 256, (25, 16, 16, 3), np.uint8)
    video = media_writer.encode_video(frames, 25.0, np.sin(np.arange(16_000) / 5.0), 16_000)
    for i in range(3):
        storage.write_atomically(tmp_path / "videos" / f"{i}.mp4", video)
        storage.write_atomically(remote / f"{i}.mp4", video)
    storage.write_atomically(remote / "cut.mp4", b"no video")
    index = remote / "index" / "videos.json"
    there = FolderSource(remote, clip, "train", index_path=index)
    here = FolderSource(tmp_path / "videos", clip, "train")
    assert len(there) == len(here) == 1 and list(json.loads(index.read_text())) == ["0.mp4", "1.mp4", "2.mp4", "cut.mp4"]
    for name, value in here[0].items():
        np.testing.assert_array_equal(there[0][name], value)
    (row,) = there.skipped
    assert row["path"] == f"{remote}/cut.mp4" and row["reason"].startswith(f"{remote}/cut.mp4 ")


def test_an_exported_tree_is_complete_with_its_mark_and_refused_when_changed(remote):
    tree = {"w": np.arange(4000, dtype=np.float32)}
    digest = checkpoint.export(remote / "params", tree)
    assert digest == checkpoint.digest(checkpoint.load(remote / "params"))
    mark = remote / "params" / "commit_success.txt"
    mark.unlink()
    assert (remote / "params").exists() and not checkpoint.is_complete(remote / "params")
    with pytest.raises(UserError, match=f"No network is stored at {remote}/params"):
        checkpoint.load(remote / "params")

    checkpoint.export(remote / "params", tree)
    largest = max(storage.files_below(remote / "params"), key=lambda path: len(path.read_bytes()))
    storage.write_atomically(largest, largest.read_bytes()[::-1])
    with pytest.raises(UserError, match=f"{largest.name} is not as it was written"):
        checkpoint.load(remote / "params")


def test_skipped_files_are_collected_once(root):
    run = Run(root, Config(), mesh=None)
    logging.write_jsonl(root / "skipped.jsonl", [{"path": "first.mp4", "reason": "x"}])
    for name in ("first.mp4", "second.mp4", "third.mp4", "second.mp4"):
        run.report_skipped({"path": name, "reason": "x"})
    run.collect_skipped()
    run.collect_skipped()
    rows = [row["path"] for row in logging.read_metrics(root / "skipped.jsonl")]
    assert sorted(rows) == ["first.mp4", "second.mp4", "third.mp4"]


def test_a_trace_is_uploaded(remote):
    profiler = metering.Profiler((1, 2), remote / "profile")
    profiler.before(1)
    profiler.after(2, np.zeros(1))
    assert any(name.endswith(".xplane.pb") for name in _names(remote / "profile"))


@pytest.mark.parametrize(("workdir", "sentence"), [
    ("gs://no_such_bucket/run", r"^The bucket no_such_bucket does not exist, or these credentials may not list it"),
    ("s3://bucket/run", r"^s3://bucket/run is a URL of the kind s3: give a folder, or gs://BUCKET/FOLDER\.$"),
    (pathlib.Path("s3://bucket/run"), r"^s3:/bucket/run is a URL of the kind s3"),
])
def test_a_place_that_cannot_be_used_is_a_sentence(workdir, sentence, bucket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=sentence):
        programs.run(Config(), workdir)
    assert list(tmp_path.iterdir()) == []


def test_scenes_are_not_written_to_a_bucket(bucket):
    with pytest.raises(UserError, match=r"^config.data.cache=gs://bucket/data is in a bucket, but scenes are written"):
        pipeline.make_source("scenes", ClipSpec(), "train", data_dir=f"{bucket}/data", sizes={"train": 1})


def test_without_gcsfs_a_bucket_is_refused(monkeypatch):
    monkeypatch.setattr(storage.importlib.util, "find_spec", lambda name: None)
    sentence = r"^gs://b/run needs the package gcsfs, which is not installed: pip install 'msg_jax\[gcs\]'\.$"
    with pytest.raises(UserError, match=sentence):
        storage.path("gs://b/run")


def test_a_failing_bucket_is_a_sentence():
    HttpError = pytest.importorskip("gcsfs.retry").HttpError
    message = runtime.user_message(HttpError({"code": 503, "message": "Service Unavailable"}))
    assert message.startswith("The bucket failed (HttpError: Service Unavailable, 503): ") and message.endswith("is finished.")
