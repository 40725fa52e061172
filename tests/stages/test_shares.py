"""Work that several processes share, shard by shard: the same result in one process, in two, and after a kill."""

import json

from flax.core import meta
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msg_jax import networks
from msg_jax.config.tree import replace
from msg_jax.data import scenes
from msg_jax.data.features import FeatureWriter
from msg_jax.infra import mesh as mesh_lib
from msg_jax.infra import runtime
from msg_jax.models.sf_cavp import SFCAVP
from msg_jax.recipes import presets
from msg_jax.run.run import Run
from msg_jax.stages import alignment, sound_events
from msg_jax.types import AVBatch
from tests.released_run import tiny_sf_cavp

CLIPS = 10


class Counted(scenes.ScenesSource):
    """Scenes that note which of them were read."""

    read: list[int]

    def __getitem__(self, index):
        self.read.append(index)
        return super().__getitem__(index)


@pytest.fixture(scope="module")
def reward():
    """A small SF-CAVP without training, and its parameters."""
    clip = presets.get("smoke").clip
    model = SFCAVP(tiny_sf_cavp(clip))
    video = jnp.zeros((1, clip.video_frames, clip.video_px, clip.video_px, 3))
    variables = jax.jit(model.init)(jax.random.key(0), AVBatch(video, jnp.zeros((1, clip.mel_frames, clip.mel.bands))))
    return model, meta.unbox(variables["params"])


@pytest.fixture
def source(reward, monkeypatch):
    config = presets.get("smoke")
    found = Counted(config.clip, "train", CLIPS, 0)
    found.read = []
    monkeypatch.setattr(Run, "source", lambda *args, **kwargs: found)
    monkeypatch.setattr(Run, "load", lambda *args: reward[1])
    monkeypatch.setattr(networks, "reward_model", lambda *args: reward[0])
    monkeypatch.setattr(runtime, "barrier", lambda name: None)
    return found


def _run(root) -> Run:
    config = replace(presets.get("smoke"), evaluate=dict(batch_size=2))
    writer = FeatureWriter(root / "extract" / "train", CLIPS, CLIPS)
    for shard, rows in writer.missing:
        writer.write(shard, [str(i) for i in rows], [{"x": np.zeros(1, np.float32)} for _ in rows])
    writer.finish()
    return Run(root, config, mesh_lib.make_mesh((1, 1, 1), jax.devices()[:1]))


def _as_process(monkeypatch, process: int, processes: int):
    monkeypatch.setattr(jax, "process_index", lambda: process)
    monkeypatch.setattr(jax, "process_count", lambda: processes)


def test_alignment(source, tmp_path, monkeypatch):
    monkeypatch.setattr(alignment, "_SHARD_BATCHES", 2)  # shards of 4, 4 and 2 clips
    run, alone, shared = _run(tmp_path), tmp_path / "alone", tmp_path / "shared"
    digest = alignment.make(run, alone, None)
    scores = json.loads((alone / "scores.json").read_text())
    assert len(scores) == len(set(scores)) == CLIPS and sorted(source.read) == list(range(CLIPS))

    source.read.clear()
    _as_process(monkeypatch, 1, 2)
    with pytest.raises(FileNotFoundError, match=r"00000\.json"):  # it would wait for process 0
        alignment.make(run, shared, None)
    assert sorted(source.read) == [4, 5, 6, 7] and not (shared / "scores.json").exists()
    source.read.clear()
    _as_process(monkeypatch, 0, 1)  # a run that was killed and goes on with one process
    assert alignment.make(run, shared, None) == digest
    assert sorted(source.read) == [0, 1, 2, 3, 8, 9] and json.loads((shared / "scores.json").read_text()) == scores


def test_features_of_sound_events(source, tmp_path, monkeypatch):
    monkeypatch.setattr(sound_events, "_AT_ONCE", 2)
    monkeypatch.setattr(sound_events, "_SHARD_CLIPS", 4)
    run = _run(tmp_path)
    features, log_mels = sound_events.extract_features(run, tmp_path / "alone", 9)
    assert log_mels.shape == (9, run.clip.mel_frames, run.clip.mel.bands)
    assert all(x.shape[0] == 9 and x.dtype == np.float16 for x in features.values())
    for i in (0, 8):
        np.testing.assert_array_equal(log_mels[i], run.arrays(source[i])["mel"])

    source.read.clear()
    _as_process(monkeypatch, 1, 2)
    sound_events.extract_features(run, tmp_path / "shared", 9)  # process 0 has written nothing yet
    assert sorted(source.read) == [4, 5, 6, 7]
    (tmp_path / "shared" / "complete").unlink()
    source.read.clear()
    _as_process(monkeypatch, 0, 1)
    again, mels_again = sound_events.extract_features(run, tmp_path / "shared", 9)
    assert sorted(source.read) == [0, 1, 2, 3, 8]
    np.testing.assert_array_equal(mels_again, log_mels)
    for name, x in features.items():
        np.testing.assert_array_equal(again[name], x)
