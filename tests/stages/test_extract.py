"""Extraction on several devices, from clips that threads read ahead."""

import threading
import time
from unittest import mock

from flax.core import meta
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msg_jax import networks
from msg_jax.config.tree import replace
from msg_jax.data import mel
from msg_jax.data.features import FeatureSource, FeatureWriter
from msg_jax.data.pipeline import read_ahead
from msg_jax.errors import UnreadableError
from msg_jax.inference import frozen
from msg_jax.infra import checkpoint
from msg_jax.infra import mesh as mesh_lib
from msg_jax.models.codec import fit_pca
from msg_jax.recipes import presets
from msg_jax.run.run import Run
from msg_jax.stages import extract


def _untrained(root, devices: int) -> Run:
    """A run on the first `devices` devices with an untrained codec and encoder."""
    config = replace(
        presets.get("smoke"), data=dict(cache=str(root / "scenes"), train=7, validation=3, test=3, read_threads=3),
        extract=dict(batch_size=6, shard_clips=4, motion=True),
    )
    run = Run(root, config, mesh_lib.make_mesh((devices, 1, 1), jax.devices()[:devices]))
    if not (root / "codec").exists():
        clip = run.clip
        log_mels = np.cumsum(np.random.default_rng(0).normal(size=(8, clip.mel_frames, clip.mel.bands)), axis=1) - 4
        checkpoint.export(root / "codec" / "params", fit_pca(log_mels, mel.mel_basis(clip.mel), clip)[0])
        video = jnp.zeros((1, clip.video_frames, clip.video_px, clip.video_px, 3))
        clip_video = jnp.zeros((1, clip.clip_video_frames, clip.clip_video_px, clip.clip_video_px, 3))
        variables = jax.jit(networks.encoder(clip).init)(jax.random.key(0), video, clip_video)
        checkpoint.export(root / "encoders" / "params", meta.unbox(variables["params"]))
    return run


def test_four_devices_share_the_work_and_compute_what_one_computes(tmp_path, monkeypatch):
    used, spread = [], mesh_lib.spread

    def spying(tree, mesh):
        placed = spread(tree, mesh)
        used.append({(shard.device.id, shard.data.shape[0]) for shard in placed["mel"].addressable_shards})
        return placed

    features = {}
    for devices in (1, 4):
        run = _untrained(tmp_path, devices)
        monkeypatch.setattr(extract.mesh_lib, "spread", spying)
        extract.make(run, tmp_path / f"on_{devices}", None)
        features[devices] = FeatureSource(tmp_path / f"on_{devices}" / "train")
        # a batch of 6 clips is padded to 8 on four devices, two for each
        rows, used[:] = {(device, 6 if devices == 1 else 2) for device in range(devices)}, []
        extract.Extractor(run)([dict(_clip(run), id="a", caption="x")])
        assert used == [rows]
    assert features[1].ids == features[4].ids and len(features[1]) == 7
    for i in range(7):
        for name in ("latents", "clip", "sync", "text", "motion"):
            np.testing.assert_allclose(features[4][i][name], features[1][i][name], rtol=1e-5, atol=1e-5)


def _clip(run: Run) -> dict:
    return run.arrays(run.source("train")[0])


def test_released_encoders_split_frames_over_the_devices():
    """`_per_item` of a network that scales its items: each of the four devices gets two of eight items at once."""
    mesh, shards = mesh_lib.make_mesh((4, 1, 1), jax.devices()[:4]), []

    def network(factor, items):
        shards.append({(shard.device.id, shard.data.shape[0]) for shard in items.addressable_shards})
        return factor * items

    items = np.arange(3 * 5 * 2, dtype=np.float32).reshape(3, 5, 2)
    found = frozen._per_item(network, mesh_lib.replicate(np.float32(2), mesh), items, 2, mesh)
    np.testing.assert_array_equal(found, 2 * items)
    assert shards == [{(device, 2) for device in range(4)}] * 2  # 15 items in batches of 8


def test_clips_are_read_ahead_in_order_by_several_threads():
    """Three threads read while the caller works: ten items of 30 ms in far less than 300 ms."""
    running, most, lock = 0, 0, threading.Lock()

    def read(index):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.03)
        with lock:
            running -= 1
        if index == 4:
            raise UnreadableError("4.mp4", "broken")
        return 10 * index

    found = list(read_ahead(read, range(10), threads=3, ahead=5))
    assert [index for index, _ in found] == list(range(10)) and most == 3
    assert isinstance(found.pop(4)[1], UnreadableError) and [item for _, item in found] == [0, 10, 20, 30, 50, 60, 70, 80, 90]


def test_what_is_not_asked_for_is_not_read_and_an_error_is_raised_at_its_clip():
    asked = []

    def read(index):
        asked.append(index)
        if index == 1:
            raise OSError("the disk")
        return index

    reading = read_ahead(read, range(100), threads=1, ahead=3)
    assert next(reading) == (0, 0)
    with pytest.raises(OSError, match="the disk"):
        next(reading)
    assert max(asked) < 5


def test_decoding_goes_on_while_the_devices_encode():
    """Reading a batch of four takes 80 ms of a thread, encoding it 80 ms: six batches take seven turns, not twelve."""
    spans = {"read": [], "encode": []}

    def spend(kind, seconds):
        begun = time.monotonic()
        time.sleep(seconds)
        spans[kind].append((begun, time.monotonic()))

    def read(index):
        spend("read", 0.02)
        return {"id": str(index)}

    def encode(batch):
        spend("encode", 0.08)
        return {"clip": np.array([int(clip["id"]) for clip in batch])}

    run, writer = mock.Mock(spec=Run), mock.Mock(spec=FeatureWriter)
    run.config = mock.Mock(**{"extract.batch_size": 4})
    encoder = mock.Mock(spec=extract.Extractor, side_effect=encode)
    begun = time.monotonic()
    reading = read_ahead(read, range(24), threads=1, ahead=5)
    assert extract.write_shard(run, encoder, reading, writer, 0, range(24)) == (24, 0)
    took = time.monotonic() - begun
    _, ids, items, _ = writer.write.call_args.args
    assert ids == [str(i) for i in range(24)] and [item["clip"] for item in items] == list(range(24))
    first, last = spans["encode"][0][0], spans["read"][-1][1]
    both = sum(max(0.0, min(end, last) - max(start, first)) for start, end in spans["encode"])
    assert both > 0.7 * (last - first)  # from the first batch to the last clip, the encoder is hardly ever idle
    assert took < sum(end - start for kind in spans.values() for start, end in kind) * 0.75
