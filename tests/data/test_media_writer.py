"""Writing sound and videos, read back by PyAV and by `media`."""

import os

import av
from av.video.reformatter import Colorspace
import numpy as np
import pytest
import soundfile
from video_files import KINDS, RECORDED, UNEVEN_MS, beep, numbers, onset_sec, plain_video

from msg_jax.data import media, media_writer
from msg_jax.errors import UserError


def packets(path):
    """(bytes, seconds since the first picture) of each packet of the video stream."""
    with av.open(str(path)) as container:
        found = [(bytes(p), float(p.pts * p.time_base)) for p in container.demux(video=0) if p.size]
    start = min(time for _, time in found)
    return [(data, time - start) for data, time in found]


def decoded_audio_sec(path):
    with av.open(str(path)) as container:
        return sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_write_audio(tmp_path, suffix):
    steps = np.random.default_rng(0).integers(-32768, 32768, 1001)
    path = tmp_path / "new" / f"sound{suffix}"
    media_writer.write_audio(path, np.concatenate([steps / 32768, [1.5, -1.5]]), 16_000)
    read, hz = soundfile.read(path, dtype="int16")
    assert hz == 16_000
    np.testing.assert_array_equal(read, [*steps, 32767, -32768])
    with pytest.raises(UserError, match=rf"sound{suffix} exists already; pass --overwrite"):
        media_writer.write_audio(path, np.zeros(3), 16_000)
    media_writer.write_audio(path, np.zeros(3), 8_000, overwrite=True)
    assert soundfile.info(path).frames == 3 and os.listdir(path.parent) == [path.name]
    with pytest.raises(UserError, match=r"sound.mp3: sound is written as .wav or .flac"):
        media_writer.write_audio(tmp_path / "sound.mp3", np.zeros(3), 16_000)


CODEC_FRAME_SEC = 1024 / 16_000


def check_mux(source, out, waveform_onset_sec, hz=16_000, **codec):
    """Replaces the sound by a beep, and checks the packets and the sound's time and length; returns metadata and codec."""
    duration_sec = media.probe(source).duration_sec
    media_writer.mux(source, beep(hz, waveform_onset_sec, duration_sec + 1)[0], hz, out, **codec)
    for (ours, our_sec), (theirs, their_sec) in zip(packets(out), packets(source), strict=True):
        assert ours == theirs
        assert our_sec == pytest.approx(their_sec, abs=1.001e-3)
    assert 0 <= decoded_audio_sec(out) - duration_sec + 1e-3 < CODEC_FRAME_SEC
    waveform = media.read_audio(out, 0.0, round(duration_sec * hz), hz)
    assert onset_sec(waveform, hz) == pytest.approx(waveform_onset_sec, abs=1.5e-3)
    with av.open(str(out)) as container:
        assert len(container.streams.audio) == 1
        return dict(container.metadata), container.streams.audio[0].codec_context.name


@pytest.mark.parametrize("name", KINDS)
def test_mux_copies_video_packets(tmp_path, videos, name):
    metadata, codec = check_mux(videos[name], tmp_path / name, 0.8)
    assert {key.lower(): value for key, value in metadata.items()}["title"] == "Glaß"
    assert codec == {"clip.webm": "opus", "clip.avi": "pcm_s16le"}.get(name, "aac")


@pytest.mark.parametrize("source, out", [("clip.mp4", "a.mkv"), ("clip.mkv", "b.mp4"), ("clip.mov", "c.m4v"),
                                         ("clip.webm", "d.mkv"), ("clip.avi", "e.mkv")])  # fmt: skip
def test_mux_into_another_container(tmp_path, videos, source, out):
    check_mux(videos[source], tmp_path / out, 0.8)


def test_a_name_with_a_colon_is_a_file(tmp_path, videos):
    check_mux(videos["clip.mp4"], tmp_path / "12:30 a.mp4", 0.8)
    check_mux(tmp_path / "12:30 a.mp4", tmp_path / "http:b.mkv", 0.8)


def test_mux_of_uneven_times_and_a_late_start(tmp_path):
    path = plain_video(tmp_path / "uneven.mp4", [ms + 1480 for ms in UNEVEN_MS])
    check_mux(path, tmp_path / "out.mp4", 0.8)
    (frames,) = media.read_video(tmp_path / "out.mp4", [media.FrameGrid(1000.0, 8, 900)])
    assert numbers(frames) == [np.searchsorted(UNEVEN_MS, i, side="right") - 1 for i in range(900)]


def test_lossless_mux_is_exact(tmp_path, videos):
    waveform = np.random.default_rng(0).integers(-32768, 32768, 48_000) / 32768
    media_writer.mux(videos["clip.mp4"], waveform, 16_000, tmp_path / "out.mp4", audio_codec="flac")
    assert decoded_audio_sec(tmp_path / "out.mp4") == pytest.approx(3.0, abs=1e-9)
    np.testing.assert_array_equal(media.read_audio(tmp_path / "out.mp4", 0.0, 48_000, 16_000), waveform)


def test_mux_does_not_overwrite_and_leaves_no_partial_file(tmp_path, videos, monkeypatch):
    out = tmp_path / "out.mp4"
    out.write_text("mine")
    with pytest.raises(UserError, match=r"out.mp4 exists already; pass --overwrite"):
        media_writer.mux(videos["clip.mp4"], np.zeros(9), 16_000, out)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(media_writer, "_decode_time", interrupt)
        media_writer.mux(videos["clip.mp4"], np.zeros(9), 16_000, out, overwrite=True)
    assert out.read_text() == "mine" and os.listdir(tmp_path) == ["out.mp4"]
    media_writer.mux(videos["clip.mp4"], np.zeros(9), 16_000, out, overwrite=True)
    media_writer.mux(out, np.zeros(9), 16_000, out, overwrite=True)  # onto itself
    assert media.probe(out).duration_sec == pytest.approx(3.0) and os.listdir(tmp_path) == ["out.mp4"]


@pytest.mark.parametrize("source, name, codec, fault", [
    ("clip.mp4", "out.webm", None, r"out.webm: a .webm file cannot hold h264 video; use a .mkv file"),
    ("clip.mp4", "out.avi", None, r"out.avi: a .avi file cannot hold this video, whose pictures are"),
    ("clip.webm", "out.webm", "aac", r"out.webm: a .webm file cannot hold aac sound"),
    ("clip.mp4", "out.mp4", "mpeg4", r"out.mp4: a .mp4 file cannot hold mpeg4 sound"),
    ("clip.mp4", "out.mp4", "shellac", r"out.mp4: a .mp4 file cannot hold shellac sound"),
    ("clip.mp4", "out.txt", None, r"out.txt has no video container's suffix; use one of .mp4"),
    ("clip.mp4", "clip.mp4/out.mp4", None, r"out.mp4 cannot be written"),
])  # fmt: skip
def test_mux_refuses_in_one_sentence(tmp_path, videos, source, name, codec, fault):
    (tmp_path / "clip.mp4").touch()
    with pytest.raises(UserError, match=fault):
        media_writer.mux(videos[source], np.zeros(9), 16_000, tmp_path / name, audio_codec=codec)
    assert os.listdir(tmp_path) == ["clip.mp4"]


@pytest.mark.parametrize("size, factor", [((24, 24), 8), ((25, 31), 7), ((200, 301), 1)])
def test_encode_video(tmp_path, size, factor):
    frames = np.zeros((20, *size, 3), np.uint8)
    frames[10:, :, :, 0] = 200  # red from the eleventh picture on
    blob = media_writer.encode_video(frames, 12.5, beep(16_000, 0.8, 2.0)[0], 16_000)
    assert blob.index(b"moov") < blob.index(b"mdat")
    path = tmp_path / "scene.mp4"
    path.write_bytes(blob)
    info = media.probe(path)
    assert info.duration_sec == pytest.approx(1.6) and info.video_hz == pytest.approx(12.5)
    assert (info.height, info.width) == tuple(side * factor + side * factor % 2 for side in size)
    with av.open(str(path)) as container:
        video = container.streams.video[0].codec_context
        assert (video.name, video.pix_fmt, video.colorspace) == ("h264", "yuv420p", Colorspace.ITU709)
    (read,) = media.read_video(path, [media.FrameGrid(12.5, 24, 20)])
    np.testing.assert_allclose(read[:, 4:20, 4:20].mean((1, 2)), [[0, 0, 0]] * 10 + [[200, 0, 0]] * 10, atol=4)
    assert onset_sec(media.read_audio(path, 0.0, 16_000, 16_000), 16_000) == pytest.approx(0.8, abs=1e-3)


@pytest.mark.parametrize("name", RECORDED)
def test_mux_of_recorded_videos(tmp_path, shared, name):
    path = shared / "media" / f"{name}.mp4"
    check_mux(path, tmp_path / "out.mp4", 1.0)
    check_mux(path, tmp_path / "out.mkv", 1.0, audio_codec="flac")
