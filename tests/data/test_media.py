"""Videos made on the fly, whose pictures carry their own number and whose sound begins at a known time."""

from fractions import Fraction
import os

import av
from av.video.reformatter import Colorspace, Interpolation
import numpy as np
import pytest
import soundfile

from msg_jax.data import media
from msg_jax.errors import UserError

WIDTH, HEIGHT = 96, 64
EVEN_MS = [40 * i for i in range(75)]  # 25 pictures a second for 3 s
UNEVEN_MS = np.cumsum([0, *np.random.default_rng(0).integers(7, 120, 60)]).tolist()
LAST_MS = 40  # how long the last picture stays
KINDS = {
    "clip.mp4": ("libx264", "aac"),
    "clip.mov": ("libx264", "pcm_s16le"),
    "clip.mkv": ("libx264", "flac"),
    "clip.webm": ("libvpx", "libopus"),
    "clip.avi": ("mpeg4", "pcm_s16le"),
}
ENCODER = {
    "libx264": {"g": "24", "bf": "3", "preset": "veryfast", "crf": "4", "x264-params": "scenecut=0"},
    "libvpx": {"g": "24", "deadline": "realtime", "cpu-used": "8", "crf": "4", "b:v": "4M"},
    "mpeg4": {"g": "24", "b": "20M", "qmin": "1", "qmax": "1"},
}


def numbered(i, width=WIDTH, height=HEIGHT):
    """A picture that says `i` (below 256) by the brightness of its left and right halves."""
    picture = np.empty((height, width, 3), np.uint8)
    picture[:, : width // 2], picture[:, width // 2 :] = 8 + i // 16 * 15, 8 + i % 16 * 15
    return picture


def numbers(frames):
    """What `numbered` wrote, read back from (T, px, px, 3)."""
    half = frames.shape[2] // 2
    left, right = frames[:, :, : half - 2].mean((1, 2, 3)), frames[:, :, half + 2 :].mean((1, 2, 3))
    return (np.round((left - 8) / 15) * 16 + np.round((right - 8) / 15)).astype(int).tolist()


def beep(hz, onset_sec, duration_sec, channels=1):
    """(channels, S): silence, from `onset_sec` on a 1 kHz cosine."""
    time = np.arange(round(duration_sec * hz)) / hz
    tone = 0.5 * np.cos(2 * np.pi * 1000 * (time - onset_sec)) * (time >= onset_sec - 1e-9)
    return np.tile(tone.astype(np.float32), (channels, 1))


def onset_sec(waveform, hz):
    return np.argmax(np.abs(waveform) > 0.25) / hz


def make_video(
    path, pictures, times_ms, codec="libx264", sound=None, sound_hz=48_000, sound_codec="flac", layout="mono",
    sound_start_ms=0, rotation=None, pixel_aspect=None, pix_fmt="yuv420p",
):  # fmt: skip
    """Writes `pictures` (H, W, 3) shown from `times_ms` on and `sound` (channels, S)."""
    with av.open(str(path), "w") as out:
        ticks_hz = 25 if path.suffix == ".avi" else 1000  # AVI counts pictures
        video = out.add_stream(codec, rate=25, options=ENCODER.get(codec, {}))
        video.height, video.width, video.pix_fmt = *pictures[0].shape[:2], pix_fmt
        video.time_base = video.codec_context.time_base = Fraction(1, ticks_hz)
        if rotation is not None:
            video.set_display_rotation(*rotation)
        if pixel_aspect is not None:
            video.codec_context.sample_aspect_ratio = pixel_aspect
        out.metadata["title"] = "Glaß"
        packets = []
        if sound is not None:
            stream = out.add_stream(sound_codec, rate=sound_hz, layout=layout)
            fitting = av.AudioResampler(format=stream.codec_context.format, layout=layout, rate=sound_hz)
            for start in range(0, sound.shape[1], 4800):
                part = np.ascontiguousarray(sound[:, start : start + 4800])
                block = av.AudioFrame.from_ndarray(part, format="fltp", layout=layout)
                block.sample_rate, block.time_base = sound_hz, Fraction(1, sound_hz)
                block.pts = start + sound_start_ms * sound_hz // 1000
                for frame in fitting.resample(block):
                    packets += stream.encode(frame)
            packets += stream.encode(None)
        for picture, ms, until_ms in zip(pictures, times_ms, [*times_ms[1:], times_ms[-1] + LAST_MS]):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pix_fmt)
            frame.time_base = Fraction(1, ticks_hz)
            frame.pts, frame.duration = round(ms * ticks_hz / 1000), round((until_ms - ms) * ticks_hz / 1000)
            packets += video.encode(frame)
        packets += video.encode(None)
        for packet in sorted(packets, key=lambda p: (p.dts if p.dts is not None else p.pts) * p.time_base):
            out.mux(packet)
    return path


def plain_video(path, times_ms=EVEN_MS, **more):
    codec, sound_codec = KINDS[f"clip{path.suffix}"]
    sound = beep(48_000, 1.25, 3.0)
    return make_video(
        path, [numbered(i) for i in range(len(times_ms))], times_ms, codec, sound, sound_codec=sound_codec, **more
    )


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return {name: plain_video(folder / name) for name in KINDS}


def packets(path):
    """[(bytes, seconds since the first picture), ...] of the video stream."""
    with av.open(str(path)) as container:
        found = [(bytes(p), float(p.pts * p.time_base)) for p in container.demux(video=0) if p.size]
    start = min(time for _, time in found)
    return [(data, time - start) for data, time in found]


def decoded_audio_sec(path):
    with av.open(str(path)) as container:
        return sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))


# Reading pictures


@pytest.mark.parametrize("name", KINDS)
def test_probe(videos, name):
    info = media.probe(videos[name])
    assert info.duration_sec == pytest.approx(3.0, abs=1e-3) and info.video_hz == pytest.approx(25, abs=0.05)
    assert (info.width, info.height, info.has_audio) == (WIDTH, HEIGHT, True)
    assert info.start_sec == 0


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("start_sec", [0.0, 0.98, 1.7, 2.43])
def test_every_grid_time_gets_the_picture_on_screen(videos, name, start_sec):
    streams = [media.FrameGrid(25.0, 32, 20), media.FrameGrid(8.0, 20, 5), media.FrameGrid(60.0, 16, 7)]
    for grid, frames in zip(streams, media.read_video(videos[name], streams, start_sec)):
        times_ms = [round(1e6 * (start_sec + i / grid.hz)) / 1e3 for i in range(grid.count)]
        assert frames.shape == (grid.count, grid.px, grid.px, 3) and frames.dtype == np.uint8
        assert numbers(frames) == [min(int(ms // 40), 74) for ms in times_ms]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
@pytest.mark.parametrize("shift_ms", [0, 1480])
def test_uneven_times_and_late_start(tmp_path, suffix, shift_ms):
    path = plain_video(tmp_path / f"uneven{suffix}", [ms + shift_ms for ms in UNEVEN_MS])
    info = media.probe(path)
    assert info.start_sec == pytest.approx(shift_ms / 1000, abs=1e-3)
    # How long the last picture stays is lost in MP4 with B-frames: then it is taken to be the mean of all.
    last_ms = UNEVEN_MS[-1] / (len(UNEVEN_MS) - 1) if suffix == ".mp4" else LAST_MS
    assert info.duration_sec == pytest.approx((UNEVEN_MS[-1] + last_ms) / 1000, abs=2e-3)
    for start_ms in (0, 777, 2205):
        (frames,) = media.read_video(path, [media.FrameGrid(1000.0, 8, 700)], start_ms / 1000)
        expected = [np.searchsorted(UNEVEN_MS, start_ms + i, side="right") - 1 for i in range(700)]
        assert numbers(frames) == expected


def test_avi_with_b_frames_begins_a_frame_late(tmp_path, monkeypatch):
    """And stays so when muxed: pictures and sound keep their distance."""
    monkeypatch.setitem(ENCODER, "mpeg4", {**ENCODER["mpeg4"], "bf": "2"})
    path, out = plain_video(tmp_path / "b.avi"), tmp_path / "b.mkv"
    media.mux(path, media.read_audio(path, 0.0, 48_000, 16_000), 16_000, out)
    for file, late in ((path, 1), (out, 0)):
        waveform = media.read_audio(file, 0.0, 32_000, 16_000)
        assert onset_sec(waveform, 16_000) == pytest.approx(1.21 + 0.04 * late, abs=1e-3)
        for first in (0, 40):
            (frames,) = media.read_video(file, [media.FrameGrid(25.0, 32, 20)], first / 25)
            assert numbers(frames) == [max(0, first + i - late) for i in range(20)]


def test_a_window_past_the_end(videos):
    (frames,) = media.read_video(videos["clip.mp4"], [media.FrameGrid(25.0, 16, 50)], 2.8)
    assert numbers(frames) == [70, 71, 72, 73, 74] + [74] * 45
    with pytest.raises(UserError, match=r"clip.mp4 ends at 3.00 s: no window can start at 3.50 s"):
        media.read_video(videos["clip.mp4"], [media.FrameGrid(25.0, 16, 5)], 3.5)


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
    media.mux(path, np.zeros(10), 16_000, out)
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
def test_bad_files_get_one_sentence(bad_files, name, fault):
    calls = [
        lambda path: media.probe(path),
        lambda path: media.read_video(path, [media.FrameGrid(25.0, 16, 2)]),
        lambda path: media.read_audio(path, 0.0, 100, 16_000),
        lambda path: media.mux(path, np.zeros(100), 16_000, bad_files / "out.mp4"),
    ]
    for call in calls:
        with pytest.raises(UserError, match=fault) as caught:
            call(bad_files / name)
        assert str(bad_files / name) in str(caught.value) and "\n" not in str(caught.value)
    assert not (bad_files / "out.mp4").exists()


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
def test_a_file_that_breaks_is_used_as_far_as_it_goes(tmp_path, videos, name):
    """The index stands in front, so that a cut file opens; half its bytes hold about half its pictures."""
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


# Writing


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_write_audio(tmp_path, suffix):
    steps = np.random.default_rng(0).integers(-32768, 32768, 1001)
    path = tmp_path / "new" / f"sound{suffix}"
    media.write_audio(path, np.concatenate([steps / 32768, [1.5, -1.5]]), 16_000)
    read, hz = soundfile.read(path, dtype="int16")
    assert hz == 16_000
    np.testing.assert_array_equal(read, [*steps, 32767, -32768])
    with pytest.raises(UserError, match=rf"sound{suffix} exists already; pass --overwrite"):
        media.write_audio(path, np.zeros(3), 16_000)
    media.write_audio(path, np.zeros(3), 8_000, overwrite=True)
    assert soundfile.info(path).frames == 3 and os.listdir(path.parent) == [path.name]
    with pytest.raises(UserError, match=r"sound.mp3: sound is written as .wav or .flac"):
        media.write_audio(tmp_path / "sound.mp3", np.zeros(3), 16_000)


CODEC_FRAME_SEC = 1024 / 16_000


def check_mux(source, out, waveform_onset_sec, hz=16_000, **codec):
    """Replaces the sound by a beep; holds the packets, the sound's place and its length against the truth."""
    duration_sec = media.probe(source).duration_sec
    media.mux(source, beep(hz, waveform_onset_sec, duration_sec + 1)[0], hz, out, **codec)
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
    media.mux(videos["clip.mp4"], waveform, 16_000, tmp_path / "out.mp4", audio_codec="flac")
    assert decoded_audio_sec(tmp_path / "out.mp4") == pytest.approx(3.0, abs=1e-9)
    np.testing.assert_array_equal(media.read_audio(tmp_path / "out.mp4", 0.0, 48_000, 16_000), waveform)


def test_mux_never_overwrites_and_leaves_nothing_half_made(tmp_path, videos, monkeypatch):
    out = tmp_path / "out.mp4"
    out.write_text("mine")
    with pytest.raises(UserError, match=r"out.mp4 exists already; pass --overwrite"):
        media.mux(videos["clip.mp4"], np.zeros(9), 16_000, out)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(media, "_decode_time", interrupt)
        media.mux(videos["clip.mp4"], np.zeros(9), 16_000, out, overwrite=True)
    assert out.read_text() == "mine" and os.listdir(tmp_path) == ["out.mp4"]
    media.mux(videos["clip.mp4"], np.zeros(9), 16_000, out, overwrite=True)
    media.mux(out, np.zeros(9), 16_000, out, overwrite=True)  # onto itself
    assert media.probe(out).duration_sec == pytest.approx(3.0) and os.listdir(tmp_path) == ["out.mp4"]


@pytest.mark.parametrize("source, name, codec, fault", [
    ("clip.mp4", "out.webm", None, r"out.webm: a .webm file cannot hold h264 video; use the suffix .mkv"),
    ("clip.mp4", "out.avi", None, r"out.avi: a .avi file cannot take this video"),
    ("clip.webm", "out.webm", "aac", r"out.webm: a .webm file cannot hold aac sound"),
    ("clip.mp4", "out.mp4", "shellac", r"out.mp4: a .mp4 file cannot hold shellac sound"),
    ("clip.mp4", "out.txt", None, r"out.txt has no video container's suffix; use one of .mp4"),
    ("clip.mp4", "clip.mp4/out.mp4", None, r"out.mp4 cannot be written"),
])  # fmt: skip
def test_mux_refuses_in_one_sentence(tmp_path, videos, source, name, codec, fault):
    (tmp_path / "clip.mp4").touch()
    with pytest.raises(UserError, match=fault):
        media.mux(videos[source], np.zeros(9), 16_000, tmp_path / name, audio_codec=codec)
    assert os.listdir(tmp_path) == ["clip.mp4"]


@pytest.mark.parametrize("size, factor", [((24, 24), 8), ((25, 31), 7), ((200, 301), 1)])
def test_encode_video(tmp_path, size, factor):
    frames = np.zeros((20, *size, 3), np.uint8)
    frames[10:, :, :, 0] = 200  # red from the eleventh picture on
    blob = media.encode_video(frames, 12.5, beep(16_000, 0.8, 2.0)[0], 16_000)
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


# Recorded videos


@pytest.mark.parametrize("name", ["bigbuckbunny", "vggsound_-26aVYRtEAc_000030", "vggsound_-BAKe6QGTUk_000030",
                                  "vggsound_0DCit2EBtjs_000030"])  # fmt: skip
def test_recorded_videos(tmp_path, shared, name):
    path = shared / "media" / f"{name}.mp4"
    with av.open(str(path)) as container:
        width = round(64 * container.streams.video[0].width / container.streams.video[0].height)
        left, how = (width - 64) // 2, Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
        truth = [
            (frame.time, frame.reformat(width, 64, "rgb24", interpolation=how).to_ndarray()[:, left : left + 64])
            for frame in container.decode(video=0)
        ]
    for start_sec in (0.0, 3.1):
        (frames,) = media.read_video(path, [media.FrameGrid(25.0, 64, 40)], start_sec)
        for i, frame in enumerate(frames):
            shown = [picture for time, picture in truth if time <= start_sec + i / 25 + 1e-6][-1]
            np.testing.assert_array_equal(frame, shown)
        whole = media.read_audio(path, 0.0, 80_000, 16_000)
        part = media.read_audio(path, start_sec, 16_000, 16_000)
        first = round(start_sec * 16_000)
        np.testing.assert_allclose(part, whole[first : first + 16_000], atol=2e-3)
    check_mux(path, tmp_path / "out.mp4", 1.0)
    check_mux(path, tmp_path / "out.mkv", 1.0, audio_codec="flac")
