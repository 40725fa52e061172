"""Reading videos whose frames carry their number and whose sound begins at a known time."""

import dataclasses
from fractions import Fraction
import gc
import math
import re

import av
from golden_files import SMALL
import numpy as np
from PIL import Image
import pytest
import soundfile
from video_files import (
    ENCODER,
    EVEN_MS,
    HEIGHT,
    KINDS,
    LAST_MS,
    RECORDED,
    UNEVEN_MS,
    WIDTH,
    beep,
    exif,
    lasting,
    make_video,
    numbered,
    numbers,
    onset_sec,
    plain_video,
    remux,
    show_parts,
)

from msg_jax.data import media, media_writer
from msg_jax.errors import UserError

# Reading pictures


@pytest.mark.parametrize("name", KINDS)
def test_probe(videos, name):
    info = media.probe(videos[name])
    assert info.duration_sec == pytest.approx(3.0, abs=1e-3) and info.video_hz == pytest.approx(25, abs=0.05)
    assert (info.width, info.height, info.has_audio) == (WIDTH, HEIGHT, True)
    assert info.start_sec == 0


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("start_sec", [0.0, 0.98, 1.7, 2.431])
def test_every_frame_is_the_picture_that_its_rule_names(videos, name, start_sec):
    """Pictures appear every 40 ms. Exact arithmetic: the last one before the frame's middle, or the first from its time on."""
    for choice in ("training", "mmaudio_inference"):
        sizes = ((25.0, 32, 20), (8.0, 20, 5), (60.0, 16, 7))
        streams = [media.FrameGrid(hz, px, count, choice=choice) for hz, px, count in sizes]
        for grid, frames in zip(streams, media.read_video(videos[name], streams, start_sec)):
            assert frames.shape == (grid.count, grid.px, grid.px, 3) and frames.dtype == np.uint8
            times = [Fraction(str(start_sec)) + Fraction(i) / Fraction(grid.hz) for i in range(grid.count)]
            if choice == "training":
                expected = [math.ceil((time + 1 / Fraction(2 * grid.hz)) * 25) - 1 for time in times]
            elif grid.hz == 25.0:  # ties, which rounding decides; test_frame_grid.py has them
                continue
            else:
                expected = [math.ceil(time * 25) for time in times]
            assert numbers(frames) == [min(number, 74) for number in expected]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("choice", ["training", "mmaudio_inference"])
def test_a_part_has_the_frames_of_the_whole_and_ends_early(videos, name, choice, monkeypatch):
    grid, kept = media.FrameGrid(25.0, 32, 40, choice=choice), range(13, 27)
    (whole,) = media.read_video(videos[name], [grid], 0.98)
    converted, to_rgb = [], media.scaling.ToRgb.__call__
    monkeypatch.setattr(media.scaling.ToRgb, "__call__", lambda self, frame: converted.append(1) or to_rgb(self, frame))
    (part,) = media.read_video(videos[name], [dataclasses.replace(grid, kept=kept)], 0.98)
    np.testing.assert_array_equal(part[13:27], whole[13:27])
    assert not part[:13].any() and not part[27:].any() and part[13:27].any()
    assert len(converted) == len(kept)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
@pytest.mark.parametrize("shift_ms", [0, 1480])
def test_uneven_times_and_late_start(tmp_path, suffix, shift_ms):
    path = plain_video(tmp_path / f"uneven{suffix}", [ms + shift_ms for ms in UNEVEN_MS])
    info = media.probe(path)
    assert info.start_sec == pytest.approx(shift_ms / 1000, abs=1e-3)
    # MP4 with B-frames loses the duration of the last picture; its track's length is near
    assert info.duration_sec == pytest.approx((UNEVEN_MS[-1] + LAST_MS) / 1000, abs=15e-3 if suffix == ".mp4" else 2e-3)
    for start_ms in (0, 777, 2205):
        (frames,) = media.read_video(path, [media.FrameGrid(1000.0, 8, 700)], start_ms / 1000)
        expected = [np.searchsorted(UNEVEN_MS, start_ms + i, side="right") - 1 for i in range(700)]
        assert numbers(frames) == expected


def test_avi_with_b_frames_begins_a_frame_late(tmp_path, monkeypatch):
    """And stays so when muxed: pictures and sound keep their distance."""
    monkeypatch.setitem(ENCODER, "mpeg4", {**ENCODER["mpeg4"], "bf": "2"})
    path, out = plain_video(tmp_path / "b.avi"), tmp_path / "b.mkv"
    media_writer.mux(path, media.read_audio(path, 0.0, 48_000, 16_000), 16_000, out)
    for file, late in ((path, 1), (out, 0)):
        waveform = media.read_audio(file, 0.0, 32_000, 16_000)
        assert onset_sec(waveform, 16_000) == pytest.approx(1.21 + 0.04 * late, abs=1e-3)
        for first in (0, 40):
            (frames,) = media.read_video(file, [media.FrameGrid(25.0, 32, 20)], first / 25)
            assert numbers(frames) == [max(0, first + i - late) for i in range(20)]


def test_a_window_past_the_end(videos):
    assert media.read_video(videos["clip.mp4"], [], 0.5) == []
    (frames,) = media.read_video(videos["clip.mp4"], [media.FrameGrid(25.0, 16, 50)], 2.8)
    assert numbers(frames) == [70, 71, 72, 73, 74] + [74] * 45
    with pytest.raises(UserError, match=r"clip.mp4 ends at 3.00 s: no window can start at 3.50 s"):
        media.read_video(videos["clip.mp4"], [media.FrameGrid(25.0, 16, 5)], 3.5)


def test_pictures_are_freed_before_the_next_window_is_read(videos):
    gc.collect()
    gc.disable()  # PyAV's side data and its picture hold each other
    try:
        media.read_video(videos["clip.mp4"], [media.FrameGrid(25.0, 16, 50)], 0.5)
        assert sum(isinstance(each, av.VideoFrame) for each in gc.get_objects()) < 5
    finally:
        gc.enable()


CORNERS = np.array([[200, 40], [90, 140]], np.uint8)  # brightness of the four quarters as stored


@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_display_matrix(tmp_path, degrees, flip, suffix):
    """Of all eight orientations, the shown picture is the stored one turned counter-clockwise, then mirrored."""
    stored = np.repeat(np.repeat(CORNERS, HEIGHT // 2, 0), WIDTH // 2, 1)[..., None].repeat(3, -1)
    path = make_video(tmp_path / f"turned{suffix}", [stored] * 3, [0, 40, 80], rotation=(degrees, flip))
    shown = np.rot90(CORNERS, degrees // 90)
    shown = shown[:, ::-1] if flip else shown
    (frames,) = media.read_video(path, [media.FrameGrid(25.0, 32, 1)])
    quarters = frames[0].reshape(2, 16, 2, 16, 3)[:, 4:12, :, 4:12].mean((1, 3, 4))
    np.testing.assert_allclose(quarters, shown, atol=4)
    info = media.probe(path)
    assert (info.width, info.height) == ((HEIGHT, WIDTH) if degrees in (90, -90) else (WIDTH, HEIGHT))
    out = tmp_path / f"out{suffix}"
    media_writer.mux(path, np.zeros(10), 16_000, out)
    np.testing.assert_array_equal(media.read_video(out, [media.FrameGrid(25.0, 32, 1)])[0], frames)


@pytest.mark.parametrize("width, height, pix_fmt", [(30, 90, "yuv420p"), (33, 51, "yuv444p"), (2, 2, "yuv420p")])
def test_portrait_odd_and_tiny(tmp_path, width, height, pix_fmt):
    """A horizontal ramp in time: the centre square of a tall picture lies between a third and two thirds of it."""
    ramp = np.broadcast_to(np.linspace(20, 230, height)[:, None, None], (height, width, 3)).astype(np.uint8)
    path = make_video(tmp_path / "tall.mp4", [ramp] * 2, [0, 40], pix_fmt=pix_fmt)
    (frames,) = media.read_video(path, [media.FrameGrid(25.0, 24, 1)])
    rows = frames[0].mean((1, 2))
    centre = np.linspace(20, 230, height)[(height - width) // 2 : (height + width) // 2]
    assert rows.mean() == pytest.approx(centre.mean(), abs=1 + 210 / height * width / 24 / 2)  # half a pixel
    if width > 2:
        assert rows[-1] - rows[0] == pytest.approx((centre[-1] - centre[0]) * 23 / 24, rel=0.06)


def test_non_square_pixels_are_stretched(tmp_path):
    """Stored 48 x 64, shown 96 x 64: the centre square lacks the outer sixths, where the brightness differs."""
    stored = numbered(3, 48, 64)
    stored[:, :7] = stored[:, -7:] = 250
    path = make_video(tmp_path / "wide.mp4", [stored] * 2, [0, 40], pixel_aspect=Fraction(2))
    assert (media.probe(path).width, media.probe(path).height) == (96, 64)
    assert numbers(media.read_video(path, [media.FrameGrid(25.0, 64, 1)])[0]) == [3]


def test_downscaling_antialiases(tmp_path):
    """Stripes finer than the output's pixels become their mean."""
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 254
    path = make_video(tmp_path / "stripes.mkv", [stripes] * 2, [0, 40], pix_fmt="yuv444p")
    (frames,) = media.read_video(path, [media.FrameGrid(25.0, 8, 1)])
    np.testing.assert_allclose(frames[0].astype(float), 127, atol=4)


@pytest.mark.parametrize("case", ["120x90", "320x180", "64x100", "500x300"])
def test_scaling_is_torchvisions(tmp_path, case):
    """golden/front_end.npz has lossless videos of one picture, and what MMAudio's transforms make of them."""
    with np.load(SMALL / "front_end.npz") as golden:
        file, clip, sync = (golden[f"scaled/{case}/{name}"] for name in ("file", "clip", "sync"))
    path = tmp_path / "still.mkv"
    path.write_bytes(file.tobytes())
    grids = [media.FrameGrid(8.0, 384, 1, squash=True), media.FrameGrid(25.0, 224, 1)]
    for (frame,), expected in zip(media.read_video(path, grids), (clip, sync)):
        difference = frame[::4, ::4] - expected.astype(float)
        assert np.abs(difference).mean() < 0.2 and abs(difference.mean()) < 0.02


# Reading sound


@pytest.mark.parametrize("name, slack_sec", [("clip.mp4", 1e-3), ("clip.mov", 5e-5), ("clip.mkv", 1e-3),
                                             ("clip.webm", 1e-3), ("clip.avi", 5e-5)])  # fmt: skip
@pytest.mark.parametrize("start_sec, hz", [(0.0, 48_000), (0.0, 16_000), (1.1, 16_000), (1.2, 44_100)])
def test_audio_onset(videos, name, slack_sec, start_sec, hz):
    waveform = media.read_audio(videos[name], start_sec, 2 * hz, hz)
    assert waveform.shape == (2 * hz,) and waveform.dtype == np.float32
    assert onset_sec(waveform, hz) == pytest.approx(1.25 - start_sec, abs=slack_sec + 2 / hz)
    late = media.read_audio(videos[name], 2.5, hz, hz)
    assert np.abs(late[round(0.6 * hz) :]).max() == 0 and np.abs(late[: round(0.4 * hz)]).max() > 0.45


def test_audio_samples_are_exact_at_the_native_rate(videos):
    truth = beep(48_000, 1.25, 3.0)[0]
    read = media.read_audio(videos["clip.mov"], 1.0, 48_000, 48_000)
    np.testing.assert_allclose(read, truth[48_000:96_000], atol=1 / 32768)
    resampled = media.read_audio(videos["clip.mov"], 1.5, 16_000, 16_000)  # no edges: the filter has its margins
    np.testing.assert_allclose(resampled, truth[72_000:120_000:3], atol=2e-3)


@pytest.mark.parametrize("shift_ms, sound_start_ms", [(0, 300), (1000, 1300), (500, 0)])
def test_audio_stream_that_starts_elsewhere(tmp_path, shift_ms, sound_start_ms):
    path = plain_video(tmp_path / "late.mkv", [ms + shift_ms for ms in EVEN_MS], sound_start_ms=sound_start_ms)
    waveform = media.read_audio(path, 0.0, 144_000, 48_000)
    assert onset_sec(waveform, 48_000) == pytest.approx(1.25 + (sound_start_ms - shift_ms) / 1000, abs=1e-3)


@pytest.mark.parametrize("layout, levels", [("stereo", (0.5, -0.1)), ("5.1", (0.6, 0.3, 0.3, -0.9, 0.0, 0.0))])
def test_mono_is_the_mean_of_the_channels(tmp_path, layout, levels):
    sound = np.repeat(np.float32(levels)[:, None], 48_000, 1)
    pictures = [numbered(i) for i in range(25)]
    path = make_video(tmp_path / "many.mkv", pictures, EVEN_MS[:25], sound=sound, layout=layout)
    np.testing.assert_allclose(media.read_audio(path, 0.25, 8_000, 16_000), np.mean(levels), atol=1e-4)


def test_no_audio(tmp_path):
    path = make_video(tmp_path / "silent.mp4", [numbered(0)] * 3, [0, 40, 80])
    assert not media.probe(path).has_audio
    with pytest.raises(UserError, match=r"silent.mp4 has no audio stream"):
        media.read_audio(path, 0.0, 100, 16_000)


# Bad files


@pytest.fixture
def bad_files(tmp_path, videos):
    whole = videos["clip.mp4"].read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.mp4").write_text("not a video, but long enough to be looked at closely\n" * 100)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    with av.open(str(tmp_path / "sound.mp4"), "w") as out:
        stream = out.add_stream("aac", rate=16_000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 16_000
        out.mux(stream.encode(silence) + stream.encode(None))
    return tmp_path


@pytest.mark.parametrize("name, fault", [
    ("cut.mp4", "cut short"), ("text.mp4", "not a video"), ("empty.mp4", r"empty \(0 bytes\)"),
    ("sound.mp4", "no video stream"), ("missing.mp4", "does not exist"), ("folder.mp4", "folder, not a video"),
])  # fmt: skip
def test_a_bad_file_raises_one_sentence(bad_files, name, fault):
    calls = [
        lambda path: media.probe(path),
        lambda path: media.read_video(path, [media.FrameGrid(25.0, 16, 2)]),
        lambda path: media.read_audio(path, 0.0, 100, 16_000),
        lambda path: media_writer.mux(path, np.zeros(100), 16_000, bad_files / "out.mp4"),
    ]
    for call in calls:
        with pytest.raises(UserError, match=fault) as caught:
            call(bad_files / name)
        assert str(bad_files / name) in str(caught.value) and "\n" not in str(caught.value)
    assert not (bad_files / "out.mp4").exists()


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
def test_a_file_that_breaks_is_used_as_far_as_it_goes(tmp_path, videos, name):
    """The index comes first, so that a cut file opens; half its bytes hold about half its pictures."""
    path = tmp_path / name
    noise = np.random.default_rng(0).integers(0, 255, (75, HEIGHT, WIDTH, 3), np.uint8)
    frames = [np.where(noise_ % 4 == 0, noise_, numbered(i)).astype(np.uint8) for i, noise_ in enumerate(noise)]
    make_video(tmp_path / f"whole_{name}", frames, EVEN_MS)
    with av.open(str(tmp_path / f"whole_{name}")) as source, av.open(
        str(path), "w", container_options={"movflags": "faststart"} if name == "clip.mp4" else {}
    ) as out:  # fmt: skip
        stream = out.add_stream_from_template(source.streams.video[0], opaque=True)
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (usable,) = media.read_video(path, [media.FrameGrid(25.0, 16, 20)], 0.0)
    assert len(usable) == 20
    with pytest.raises(UserError, match=rf"{name} breaks off at 1\.\d\d s"):
        media.read_video(path, [media.FrameGrid(25.0, 16, 60)], 0.0)


# Files as other programs and cameras write them


@pytest.mark.parametrize("orientation, corners", [(1, [[0, 1], [2, 3]]), (6, [[2, 0], [3, 1]]), (8, [[1, 3], [0, 2]])])
def test_side_data_without_a_name(tmp_path, orientation, corners):
    """Frames with EXIF data, for which PyAV has no name: it raises ValueError for all side data of such a frame."""
    stored = np.repeat(np.repeat(CORNERS, HEIGHT // 2, 0), WIDTH // 2, 1)[..., None].repeat(3, -1)
    made = make_video(tmp_path / "a.mov", [stored] * 3, [0, 40, 80], "mjpeg", pix_fmt="yuvj420p")
    path = remux(made, tmp_path / "exif.mov", lambda i, packet: bytes(packet)[:2] + exif(orientation) + bytes(packet)[2:])
    (frames,) = media.read_video(path, [media.FrameGrid(25.0, 32, 1)])
    quarters = frames[0].reshape(2, 16, 2, 16, 3)[:, 4:12, :, 4:12].mean((1, 3, 4))
    np.testing.assert_allclose(quarters, CORNERS.ravel()[corners], atol=4)
    assert media.probe(path).duration_sec == pytest.approx(0.12, abs=1e-3)


def test_the_length_of_a_variable_rate_with_b_frames(tmp_path):
    """The last picture lasts 40 ms, the others a second: its own duration is stored with another one."""
    path = make_video(tmp_path / "vfr.mp4", [numbered(i) for i in range(6)], [1000 * i for i in range(6)])
    assert media.probe(path).duration_sec == pytest.approx(5.04, abs=5e-3)
    assert numbers(media.read_video(path, [media.FrameGrid(10.0, 16, 10)], 4.5)[0]) == [4] * 5 + [5] * 5
    made = make_video(tmp_path / "a.mp4", [numbered(i) for i in range(6)], [0, 40, 80, 120, 160, 200])
    path = remux(made, tmp_path / "frozen.mp4", lambda i, packet: lasting(packet, 40 if i < 5 else 6000))
    assert media.probe(path).duration_sec == pytest.approx(6.2, abs=0.05)
    assert numbers(media.read_video(path, [media.FrameGrid(10.0, 16, 10)], 5.0)[0]) == [5] * 10


@pytest.mark.parametrize("begin_ms", [0, 500, 1500, 3000])
def test_a_cut_at_one_picture_a_second_is_whole(tmp_path, begin_ms):
    """The header counts from the middle of a picture that is not shown."""
    made = make_video(tmp_path / "a.mp4", [numbered(i) for i in range(8)], [1000 * i for i in range(8)])
    whole = remux(made, tmp_path / "whole.mp4", lambda i, packet: lasting(packet, 1000))
    path = show_parts(whole, tmp_path / "b.mp4", (begin_ms, 8000))
    first = -(-begin_ms // 1000)
    assert media.probe(path).duration_sec == pytest.approx(8 - first, abs=0.51)
    read = numbers(media.read_video(path, [media.FrameGrid(1.0, 16, 9)])[0])
    assert read == [min(first + i, 7) for i in range(9)]


@pytest.mark.parametrize("seconds, breaks", [(0.2, False), (1.5, True)])
def test_the_header_declares_more_than_there_is(tmp_path, seconds, breaks):
    """Matroska's duration is a tag. A picture lasts 40 ms, so a second and a half are missing pictures."""
    with av.open(str(plain_video(tmp_path / "a.mkv"))) as source, av.open(str(tmp_path / "b.mkv"), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0], opaque=True)
        for packet in source.demux(video=0):
            if packet.size and packet.pts < 3000 - 1000 * seconds:
                packet.stream = stream
                out.mux(packet)
    path = tmp_path / "b.mkv"
    path.write_bytes(re.sub(rb"00:00:0[12].\d{9}", b"00:00:03.000000000", path.read_bytes()))
    if breaks:
        with pytest.raises(UserError, match=r"b.mkv breaks off at 1\.\d\d s \(3.00 s declared\)"):
            media.read_video(path, [media.FrameGrid(25.0, 16, 75)])
    else:
        media.read_video(path, [media.FrameGrid(25.0, 16, 75)])


def test_encrypted_files_are_refused(tmp_path):
    key = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "00" * 16, "encryption_kid": "11" * 16}
    with av.open(str(plain_video(tmp_path / "a.mp4"))) as source, av.open(
        str(tmp_path / "drm.mp4"), "w", container_options=key
    ) as out:  # fmt: skip
        copies = {each.index: out.add_stream_from_template(each, opaque=True) for each in source.streams}
        for packet in source.demux():
            if packet.size:
                packet.stream = copies[packet.stream.index]
                out.mux(packet)
    for call in (
        media.probe, lambda path: media.read_video(path, [media.FrameGrid(25.0, 16, 2)]),
        lambda path: media.read_audio(path, 0.0, 100, 16_000),
        lambda path: media_writer.mux(path, np.zeros(9), 16_000, tmp_path / "out.mp4"),
    ):
        with pytest.raises(UserError, match=r"drm.mp4 is encrypted"):
            call(tmp_path / "drm.mp4")
    with av.open(str(plain_video(tmp_path / "a.mkv"))) as source, av.open(str(tmp_path / "drm.mkv"), "w") as out:
        copy = out.add_stream_from_template(source.streams.video[0], opaque=True)
        copy.metadata["enc_key_id"] = "AAAA"
        out.mux(next(source.demux(video=0)))
    with pytest.raises(UserError, match=r"drm.mkv is encrypted"):
        media.probe(tmp_path / "drm.mkv")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_sound_that_is_not_a_number_is_refused(tmp_path, value):
    sound = beep(48_000, 0.5, 3.0)
    sound[0, 100_000:100_010] = value
    path = make_video(tmp_path / "nan.mkv", [numbered(i) for i in range(75)], EVEN_MS, sound=sound, sound_codec="pcm_f32le")
    for call in (media.check_sound, lambda path: media.read_audio(path, 1.5, 16_000, 16_000)):
        with pytest.raises(UserError, match=r"nan.mkv has sound samples that are NaN or infinite"):
            call(path)
    assert np.isfinite(media.read_audio(path, 0.0, 16_000, 16_000)).all()
    media_writer.mux(path, np.zeros(9), 16_000, tmp_path / "out.mkv")  # its own sound does not matter


@pytest.mark.parametrize("options", [{}, {"format": "RF64"}, {"format": "WAVEX", "subtype": "FLOAT"}])
def test_a_cut_wav_is_not_silence(tmp_path, options):
    path = tmp_path / "a.wav"
    soundfile.write(path, beep(16_000, 0.0, 3.0)[0], 16_000, **options)
    whole, read = path.read_bytes(), media.read_audio(path, 0.0, 4 * 16_000, 16_000)
    assert np.abs(read[32_000:47_000]).max() > 0.4 and not read[48_000:].any()  # a whole one goes on in silence
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"a.wav breaks off: its sound is cut short at 1\.\d\d s"):
        media.read_audio(path, 0.0, 3 * 16_000, 16_000)
    assert len(media.read_audio(path, 0.0, 16_000, 16_000)) == 16_000
    at = whole.index(b"data") + 4
    path.write_bytes(whole[:at] + b"\xff" * 4 + whole[at + 4 :])  # as programs write it that cannot go back
    assert options == {"format": "RF64"} or len(media.read_audio(path, 0.0, 3 * 16_000, 16_000))


def write_sound(path, codec):
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=16_000, layout="mono")
        tone = av.AudioFrame.from_ndarray(beep(16_000, 0.0, 3.0), format="fltp", layout="mono")
        tone.sample_rate = 16_000
        fitting = av.AudioResampler(format=stream.codec_context.format, layout="mono", rate=16_000, frame_size=1152)
        for frame in (*fitting.resample(tone), *fitting.resample(None)):
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("name, codec", [("a.mp3", "libmp3lame"), ("a.flac", "flac"), ("a.m4a", "aac"), ("a.ogg", "libopus")])
def test_other_cut_sound_is_not_silence(tmp_path, name, codec):
    path = write_sound(tmp_path / name, codec)
    media.read_audio(path, 0.0, 4 * 16_000, 16_000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    if name == "a.ogg":  # declares no length: it ends where it is cut
        return
    with pytest.raises(UserError, match=r"breaks off|damaged|cut short"):
        media.read_audio(path, 0.0, 3 * 16_000, 16_000)


@pytest.mark.parametrize("error", [ValueError("31 is not a valid Type"), OSError(5, "Input/output error"), KeyError("x")])
def test_whatever_a_decoder_raises_becomes_a_sentence(videos, monkeypatch, error):
    def surprise(*_):
        raise error

    monkeypatch.setattr(media, "_shown_size", surprise)
    for call in (media.probe, lambda path: media.read_video(path, [media.FrameGrid(25.0, 16, 2)])):
        with pytest.raises(UserError, match=r"clip.mp4 is damaged \(.*(Type|error|x)") as caught:
            call(videos["clip.mp4"])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case, seconds", [
    ("exif_mjpeg.mov", 1.0), ("hvc1.mp4", 2.0), ("raw_i420.avi", 0.52), ("wmv2.mkv", 2.0), ("sar.mp4", 2.0),
    ("dup_dts.mp4", 2.0), ("trim_end.mp4", 0.8), ("vfr_bframes.mp4", 5.04), ("lowfps_cut.mp4", 6.0),
    ("full.mkv", 2.0), ("nan_audio.mkv", 3.4),
])  # fmt: skip
def test_small_files_of_many_kinds(shared, tmp_path, case, seconds):
    path = shared / "cases" / case
    assert media.probe(path).duration_sec == pytest.approx(seconds, abs=0.05)
    grids = [media.FrameGrid(25.0, 16, round(25 * seconds) + 10)]
    media_writer.mux(path, np.zeros(9), 16_000, tmp_path / case)
    np.testing.assert_array_equal(media.read_video(path, grids)[0], media.read_video(tmp_path / case, grids)[0])
    assert media.probe(tmp_path / case).duration_sec == pytest.approx(seconds, abs=0.05)


# Recorded videos


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_videos(shared, name):
    path = shared / "media" / f"{name}.mp4"
    with av.open(str(path)) as container:
        truth = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    height, width = truth[0][1].shape[:2]
    left = round((64 * width // height - 64) / 2)
    for start_sec in (0.0, 3.1):
        (frames,) = media.read_video(path, [media.FrameGrid(25.0, 64, 40)], start_sec)
        for i, frame in enumerate(frames):
            (shown,) = [picture for time, picture in truth if time < start_sec + (i + 0.5) / 25 - 1e-6][-1:]
            resized = Image.fromarray(shown).resize((64 * width // height, 64), Image.Resampling.BICUBIC)
            difference = frame - np.asarray(resized, float)[:, left : left + 64]
            assert np.abs(difference).mean() < 0.2 and abs(difference.mean()) < 0.03
        whole = media.read_audio(path, 0.0, 80_000, 16_000)
        part = media.read_audio(path, start_sec, 16_000, 16_000)
        first = round(start_sec * 16_000)
        np.testing.assert_allclose(part, whole[first : first + 16_000], atol=2e-3)
