"""The field's metrics inside a run are those of the same sounds in files."""

import functools
import json
import types

import numpy as np
import pytest

from msg_jax import programs
from msg_jax.clip import TINY
from msg_jax.config.tree import replace
from msg_jax.data import media_writer, scenes
from msg_jax.data.clips import Held
from msg_jax.recipes import presets, runs
from msg_jax.studies.field_metrics import FieldMetrics

CLIPS, HZ = 4, TINY.audio_hz


def test_sounds_in_memory_have_the_metrics_of_their_files(tmp_path):
    """Of copies that are late by 0.2 s. Files of pictures are compressed, so that motion differs a little."""
    records = [scenes.make_scene(1, "test", index, TINY) for index in range(CLIPS)]
    late = [np.pad(record["waveform"], (HZ // 5, 0))[: -HZ // 5] for record in records]
    for i, record in enumerate(records):
        media_writer.write_audio(tmp_path / "real" / f"{i}.wav", record["waveform"], HZ)
        video = media_writer.encode_video(record["video"], TINY.video_hz, record["waveform"], HZ)
        (tmp_path / "real" / f"{i}.mp4").write_bytes(video)
        media_writer.write_audio(tmp_path / "late" / f"{i}.wav", late[i], HZ)
    options = dict(generated=str(tmp_path / "late"), reference=str(tmp_path / "real"), examples=0, bootstrap=100)
    programs.run(replace(runs.evaluate(""), **options), tmp_path / "out")
    wanted = json.loads((tmp_path / "out" / "results.json").read_text())["rows"][0]

    asked = []
    metrics = FieldMetrics(types.SimpleNamespace(clip=TINY, config=replace(presets.get("smoke"), evaluate=dict(bootstrap=100))))
    ids = [record["id"] for record in records]

    def pictures(record):
        asked.append(record["id"])
        return record["video"]

    def features(sounds):
        return [
            metrics.features(name, sound, record["waveform"], functools.partial(pictures, record))
            for name, sound, record in zip(ids, sounds, records)
        ]

    found = metrics.row(ids, features(late))
    for name in ("fd_logmel", "onset_f1_spectral_flux", "sync_score_spectral_flux", "stft_l1_waveform", "desync_spectral_flux"):
        assert found[name]["value"] == pytest.approx(wanted[name]["value"], abs=2e-3), name
    assert found["desync_spectral_flux"]["value"] == pytest.approx(0.2, abs=0.011)
    assert found["av_align_motion_energy"]["value"] == pytest.approx(wanted["av_align_motion_energy"]["value"], abs=0.1)
    assert found["fd_vggish"] is None and "vggish" in found["fd_vggish_reason"]
    missing = {name for name in wanted if name not in found and not name.startswith("pesq")}
    assert missing == {"system", "event_count"}

    same = metrics.row(ids, features([record["waveform"] for record in records]))
    assert same["onset_f1_spectral_flux"]["value"] == 1 and same["fd_logmel"]["value"] == pytest.approx(0, abs=1e-6)
    assert asked == ids  # pictures are read once


def test_held_pictures_are_taken_in_time_and_squared():
    """Frames at 25 Hz become 8 Hz; of a wide picture the middle stays, or with `squash` all of it."""
    pictures = np.repeat(np.arange(50, dtype=np.uint8)[:, None, None, None], 3, axis=3) * np.ones((1, 8, 24, 1), np.uint8)
    pictures[:, :, :8] += 100
    held = Held(np.zeros(32_000, np.float32), 16_000, pictures, 25.0)
    frames = held.frames(8, 8)
    np.testing.assert_array_equal(frames[:, 4, 4, 0], np.arange(16) * 25 // 8)
    assert frames.shape == (16, 8, 8, 3)
    squashed = held.frames(25, 8, squash=True)
    assert squashed[0, 4, 0, 0] > 80 and abs(int(squashed[0, 4, 6, 0])) < 3
    assert held.waveform(8000).shape == (16_000,) and held.duration_sec == 2
