"""Random containers, codecs, rates, times and damage: no traceback, and nothing is lost from a file that is whole."""

import dataclasses
from fractions import Fraction
import os
import pathlib
import time
from unittest import mock

import av
import numpy as np
import pytest
import soundfile
from video_files import beep, make_video, numbered, remux, show_parts

from msg_jax.clip import TINY
from msg_jax.data import media, media_writer, stream_copy
from msg_jax.errors import UserError
from msg_jax.inference import generate as generate_lib
from msg_jax.inference.generate import Settings, generate
from msg_jax.inference.system import System

BUDGET_SEC = 60
CODECS = {  # by suffix: (video codec, pixel format), and codecs of sound
    ".mp4": ([("libx264", "yuv420p"), ("libx265", "yuv420p"), ("mpeg4", "yuv420p"), ("libvpx-vp9", "yuv420p")],
             ["aac", "flac"]),
    ".m4v": ([("libx264", "yuv420p"), ("mpeg4", "yuv420p")], ["aac"]),
    ".mov": ([("libx264", "yuv420p"), ("prores_ks", "yuv422p10le"), ("mjpeg", "yuvj420p"), ("rawvideo", "uyvy422")],
             ["pcm_s16le", "aac", "pcm_f32le"]),
    ".mkv": ([("libx264", "yuv420p"), ("ffv1", "yuv444p"), ("libvpx", "yuv420p"), ("msmpeg4", "yuv420p")],
             ["flac", "libopus", "pcm_f32le"]),
    ".webm": ([("libvpx", "yuv420p"), ("libvpx-vp9", "yuv420p")], ["libopus"]),
    ".avi": ([("mpeg4", "yuv420p"), ("mjpeg", "yuvj420p"), ("huffyuv", "yuv422p"), ("rawvideo", "bgr24"), ("wmv2", "yuv420p")],
             ["pcm_s16le"]),
}  # fmt: skip
INTERVALS_MS = {".avi": [40], "": [1000, 200, 40, 20]}  # AVI counts pictures of one length
ASPECTS = [None, Fraction(4, 3), Fraction(32, 27), Fraction(10, 11)]


@dataclasses.dataclass
class Made:
    """A random video, and what is known of it."""

    path: pathlib.Path
    seconds: float  # of its pictures
    slack_sec: float
    aspect: Fraction | None
    damaged: bool


def pick(rng, choices):
    return choices[rng.integers(len(choices))]


def make(rng, folder, number) -> Made:
    suffix = pick(rng, list(CODECS))
    codecs, sounds = CODECS[suffix]
    codec, pix_fmt = pick(rng, codecs)
    interval, count = pick(rng, INTERVALS_MS.get(suffix, INTERVALS_MS[""])), int(rng.integers(1, 30))
    times = interval * np.arange(count)
    uneven = suffix in (".mkv", ".webm", ".mp4") and codec not in ("msmpeg4", "mpeg4") and rng.random() < 0.4
    if uneven:
        times = np.cumsum([0, *rng.integers(5, 2 * interval, count - 1)])
    seconds = (times[-1] + 40) / 1000
    if suffix in (".mkv", ".webm") and rng.random() < 0.3:
        times = times + int(rng.integers(0, 3000))
    sound = None if rng.random() < 0.3 else beep(48_000, 0.1, seconds, channels=1)
    name = pick(rng, ["clip", "-26aVY", "caf\udce9", "x" * 200, "a:b", "sub/clip"])
    path = folder / f"{name}{number}{suffix}"
    path.parent.mkdir(exist_ok=True)
    made = make_video(
        folder / f".made{suffix.replace('m4v', 'mp4')}", [numbered(i) for i in range(count)], times.tolist(), codec, sound,
        sound_codec=pick(rng, sounds), pix_fmt=pix_fmt,
    )
    aspect, slack_sec = None, 0.05 if not uneven else 0.05 + 2 * interval / 1000
    if suffix in (".mp4", ".mov") and rng.random() < 0.5:
        aspect = pick(rng, ASPECTS)

        def prepare(stream):
            if aspect:
                stream.codec_context.sample_aspect_ratio = aspect
            if codec == "libx265":
                stream.codec_context.codec_tag = pick(rng, ["hvc1", "hev1"])

        made = remux(made, folder / f".copy{suffix}", prepare=prepare)
        slack_sec += interval / 1000  # not every encoder tells how long the last picture lasts
        if codec == "libx264" and not uneven and count > 3 and b"elst" in made.read_bytes():
            begin, end = sorted(rng.choice(count + 1, 2, replace=False).tolist())
            made = show_parts(made, folder / f".part{suffix}", (begin * interval, end * interval))
            seconds = (end - begin) * interval / 1000
    data = bytearray(made.read_bytes())
    damage = pick(rng, [None, None, None, "cut", "flip", "zero", "tail"])
    if damage == "cut":
        data = data[: rng.integers(len(data))]
    elif damage == "flip":
        for at in rng.integers(0, len(data), 20):
            data[at] ^= int(rng.integers(1, 256))
    elif damage == "zero":
        at = int(rng.integers(len(data)))
        data[at : at + 200] = bytes(len(data[at : at + 200]))
    elif damage == "tail":
        data += rng.bytes(500)
    path.write_bytes(data)
    return Made(path, seconds, slack_sec, aspect, damage is not None)


def facts(path):
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        packets = [bytes(packet) for packet in container.demux(video) if packet.size and not packet.is_discard]
        return video.codec_context.name, video.codec_context.codec_tag, video.sample_aspect_ratio or 1, packets


def check_whole(made, out):
    """A file without damage: its length is known, and its copy has its tag, its pixel aspect ratio and its packets."""
    info = media.probe(made.path)
    assert info.duration_sec == pytest.approx(made.seconds, abs=made.slack_sec)
    assert media_writer.mux(made.path, np.zeros(9), 16_000, out, overwrite=True) == []
    assert media.probe(out).duration_sec == pytest.approx(info.duration_sec, abs=2e-3)
    assert facts(out) == facts(made.path)
    grid = media.FrameGrid(25.0, 16, min(60, round(25 * info.duration_sec) + 3))
    np.testing.assert_array_equal(media.read_video(out, [grid])[0], media.read_video(made.path, [grid])[0])


def check_other(rng, made, folder):
    """Another container: it refuses the video, or holds the same one. AVI cannot hold the length of the last picture."""
    out = folder / f"whole{pick(rng, [suffix for suffix in stream_copy.FORMATS if suffix != '.avi'])}"
    try:
        media_writer.mux(made.path, np.zeros(9), 16_000, out, overwrite=True)
    except UserError as error:
        assert "cannot hold" in str(error) or "cannot hide" in str(error) or "cannot take" in str(error)
        return
    length = media.probe(made.path).duration_sec
    assert media.probe(out).duration_sec == pytest.approx(length, abs=0.05)
    assert facts(out)[2:] == facts(made.path)[2:]
    grid = media.FrameGrid(25.0, 16, min(60, round(25 * length) + 3))
    np.testing.assert_array_equal(media.read_video(out, [grid])[0], media.read_video(made.path, [grid])[0])


def check_any(rng, made, folder):
    """Whatever the file: each function succeeds or raises UserError, in one sentence that names the file."""
    start = float(rng.uniform(0, made.seconds))
    other = folder / f"other{pick(rng, list(stream_copy.FORMATS))}"
    for call in (
        lambda: media.probe(made.path), lambda: media.check_sound(made.path),
        lambda: media.read_video(made.path, [media.FrameGrid(8.0, 16, 9)], start),
        lambda: media.read_audio(made.path, start, 9_000, 16_000),
        lambda: media_writer.mux(made.path, np.zeros(9), 16_000, other, overwrite=True),
    ):
        try:
            call()
        except UserError as error:
            assert "\n" not in str(error) and any(str(path) in str(error) for path in (made.path, other))
    assert not list(folder.glob("*.unfinished*")) + list(folder.glob(".*.unfinished*"))


@pytest.mark.slow
def test_random_files(tmp_path, monkeypatch):
    folder, out, copies = tmp_path / "in", tmp_path / "out", tmp_path / "copies"
    folder.mkdir()
    copies.mkdir()
    begun, number, files = time.monotonic(), 0, []
    while time.monotonic() - begun < BUDGET_SEC:
        rng = np.random.default_rng(number)
        files.append(made := make(rng, folder, number))
        try:
            if not made.damaged:
                check_whole(made, copies / f"whole{made.path.suffix}")
                check_other(rng, made, copies)
            check_any(rng, made, copies)
        except Exception as error:
            raise AssertionError(f"file {number}: {made}") from error
        number += 1

    system = mock.Mock(spec=System, clip=TINY, digest="0")
    monkeypatch.setattr(generate_lib, "takes_for", lambda system, video, settings: iter(
        [generate_lib.Take(np.zeros(round(media.probe(video.path).duration_sec * 16_000), np.float32), 0)]))  # fmt: skip
    rows, skipped = generate(system, [folder], out, Settings(steps=1, guidance_scale=1.0))
    assert sorted(row.get("input", row.get("path")) for row in (*rows, *skipped)) == sorted(str(made.path) for made in files)
    assert not {row["path"] for row in skipped} & {str(made.path) for made in files if not made.damaged}
    for row in rows:
        assert soundfile.info(os.fsencode(out / row["outputs"][0])).frames > 0 and (out / row["outputs"][1]).exists()
