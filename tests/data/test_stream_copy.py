"""Copies of videos as other programs write them: nothing is lost, or it is named."""

from fractions import Fraction
import io
import struct

import av
from av.stream import Disposition
import numpy as np
import pytest
from video_files import EVEN_MS, add_sample_box, beep, make_video, numbered, numbers, plain_video, remux, show_parts

from msg_jax.data import container_patch, containers, media, media_writer, stream_copy
from msg_jax.errors import UserError


def pictures(path):
    """The video's codec, tag, pixel aspect ratio, and decoded frames."""
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        frames = [frame.reformat(format="rgb24").to_ndarray() for frame in container.decode(video)]
        return video.codec_context.name, video.codec_context.codec_tag, video.sample_aspect_ratio, frames


def copy(source, out, **more):
    return media_writer.mux(source, beep(16_000, 0.5, 10.0)[0], 16_000, out, **more)


def short_video(path, codec, pix_fmt="yuv420p", size=(64, 48)):
    width, height = size
    return make_video(path, [numbered(i, width, height) for i in range(10)], EVEN_MS[:10], codec, pix_fmt=pix_fmt)


CODECS = [
    ("a.mp4", "libx265", "yuv420p", "hev1"), ("a.mov", "prores_ks", "yuv422p10le", "apch"),
    ("a.mov", "v210", "yuv422p10le", "v210"), ("a.mov", "rawvideo", "uyvy422", "2vuy"),
    ("a.avi", "rawvideo", "yuv420p", "I420"), ("a.avi", "rawvideo", "bgr24", "BGR\x18"),
    ("a.avi", "rawvideo", "gray", "Y800"), ("a.mkv", "rawvideo", "yuv420p", "I420"),
    ("a.m4v", "libx265", "yuv420p", "hev1"), ("a.avi", "wmv2", "yuv420p", "WMV2"), ("a.avi", "huffyuv", "yuv422p", "HFYU"),
]  # fmt: skip


@pytest.mark.parametrize("name, codec, pix_fmt, tag", CODECS)
def test_codec_tag_and_pictures_stay(tmp_path, name, codec, pix_fmt, tag):
    made = tmp_path / name.replace("m4v", "mp4")  # FFmpeg's own muxer for .m4v refuses this codec
    path = short_video(made, codec, pix_fmt).rename(tmp_path / name)
    assert copy(path, tmp_path / f"out_{name}") == []
    (*facts, frames), (*their_facts, their_frames) = pictures(tmp_path / f"out_{name}"), pictures(path)
    assert facts == their_facts and (tag == "BGR\x18" or facts[1] == tag)
    np.testing.assert_array_equal(frames, their_frames)


def test_the_tag_hvc1_stays_in_its_containers_and_only_there(tmp_path):
    def prepare(stream):
        stream.codec_context.codec_tag = "hvc1"

    path = remux(short_video(tmp_path / "a.mp4", "libx265"), tmp_path / "hvc1.mp4", prepare=prepare)
    for name, tag in (("o.mp4", "hvc1"), ("o.mov", "hvc1"), ("o.m4v", "hvc1"), ("o.mkv", "\0\0\0\0")):
        copy(path, tmp_path / name)
        assert pictures(tmp_path / name)[1] == tag


@pytest.mark.parametrize("codec, tag", [("wmv2", "WMV2"), ("huffyuv", "HFYU"), ("msmpeg4", ""), ("rawvideo", "")])
def test_what_matroska_holds_only_by_its_tag(tmp_path, codec, tag):
    """FFmpeg copies these codecs into Matroska, and says that it cannot; so that PyAV cannot write such a file."""
    path = short_video(tmp_path / "a.avi", codec, {"huffyuv": "yuv422p", "rawvideo": "bgr24"}.get(codec, "yuv420p"))
    for name in ("b.mkv", "c.mkv"):
        assert copy(path, tmp_path / name) == []
        *facts, frames = pictures(tmp_path / name)
        assert facts[1] == tag or not tag
        np.testing.assert_array_equal(frames, pictures(path)[-1])
        path = tmp_path / name


@pytest.mark.parametrize("codec, names", [("libx264", ["a.mp4", "b.mov", "c.mkv", "d.mkv", "e.mp4"]),
                                          ("libvpx-vp9", ["a.mp4", "b.webm", "c.webm", "d.mkv"])])  # fmt: skip
@pytest.mark.parametrize("aspect", [Fraction(32, 27), Fraction(12, 11), Fraction(3, 4)])
def test_a_pixel_aspect_ratio_that_only_the_container_holds(tmp_path, codec, names, aspect):
    """Exact through every container, and with it the size in which the pictures are read."""
    def prepare(stream):
        stream.codec_context.sample_aspect_ratio = aspect

    made = short_video(tmp_path / "made.mp4", codec, size=(96, 64))
    path = remux(made, tmp_path / f"x{names[0]}", prepare=prepare)
    for name in names:
        assert copy(path, tmp_path / name) == []
        path = tmp_path / name
        assert pictures(path)[2] == aspect
        assert media.probe(path).width == round(96 * aspect)
        read = media.read_video(path, [media.FrameGrid(25.0, 32, 3)], 0.2)[0]  # seeking finds the moved parts
        assert numbers(read) == [5, 6, 7]


def test_avi_names_the_pixel_aspect_ratio_that_it_cannot_hold(tmp_path):
    def prepare(stream):
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)

    path = remux(short_video(tmp_path / "a.mp4", "mpeg4"), tmp_path / "b.mp4", prepare=prepare)
    assert copy(path, tmp_path / "o.avi") == ["the pixel aspect ratio 4/3"]


@pytest.mark.parametrize("size, aspect, shown", [
    ((720, 576), Fraction(16, 15), (768, 576)), ((96, 64), Fraction(32, 27), (128, 72)),
    ((720, 480), Fraction(8, 9), (720, 540)), ((1279, 719), Fraction(4001, 3999), (1280, 719)),
])  # fmt: skip
def test_display_size(size, aspect, shown):
    assert container_patch.display_size(*size, aspect) == shown


def test_a_file_of_another_layout_is_not_patched(tmp_path):
    (tmp_path / "a.mkv").write_bytes(bytes.fromhex("1a45dfa380" "18538067ff"))
    with pytest.raises(ValueError, match="no void"):
        container_patch.set_pixel_aspect(tmp_path / "a.mkv", 4, 3, Fraction(2))
    (tmp_path / "a.mp4").write_bytes(struct.pack(">I4s", 8, b"mdat"))
    with pytest.raises(ValueError, match="no box moov"):
        container_patch.set_shown_duration(tmp_path / "a.mp4", Fraction(1))


# Times


def test_times_that_do_not_grow_are_repaired(tmp_path):
    """Matroska holds two packets of one time; MP4 does not, and needs one tick more."""
    def change(i, packet):
        if i == 7:
            packet.pts = packet.dts = packet.pts - 40
        return packet

    made = short_video(tmp_path / "a.mkv", "mpeg4")
    path = remux(made, tmp_path / "b.mkv", change)
    assert copy(path, tmp_path / "o.mp4") == []
    with av.open(str(path)) as theirs, av.open(str(tmp_path / "o.mp4")) as ours:
        packets = [[packet for packet in each.demux(video=0) if packet.size] for each in (theirs, ours)]
    assert [bytes(packet) for packet in packets[0]] == [bytes(packet) for packet in packets[1]]
    times = [packet.dts for packet in packets[1]]
    assert times == sorted(set(times))
    assert media.probe(tmp_path / "o.mp4").duration_sec == pytest.approx(media.probe(path).duration_sec, abs=2e-3)


@pytest.mark.parametrize("container, given, repaired", [
    ("mp4", [(0, 0), (5, 5), (5, 5), (6, 9)], [(0, 0), (5, 5), (6, 6), (7, 9)]),
    ("matroska", [(0, 0), (5, 5), (5, 5)], [(0, 0), (5, 5), (5, 5)]),
    ("mp4", [(0, 0), (9, 4), (10, 12)], [(0, 0), (4, 4), (10, 12)]),  # dts > pts: the middle of both and the least that grows
    ("mp4", [(0, 0), (8, 8), (20, 3)], [(0, 0), (8, 8), (9, 9)]),
    ("mp4", [(7, 2)], [(7, 7)]),
    ("mp4", [(None, 3), (2, 2), (None, None)], [(None, 3), (2, 2), (None, None)]),
])  # fmt: skip
def test_repair_of_dts_and_pts(container, given, repaired):
    with av.open(io.BytesIO(), "w", format=container) as out:
        stream = out.add_mux_stream("mpeg4", width=16, height=16)
        stream.time_base = Fraction(1, 1000)
        repair, found = stream_copy._Repair(stream, container), []
        for dts, pts in given:
            packet = av.Packet(b"x")
            packet.time_base, packet.dts, packet.pts = Fraction(1, 1000), dts, pts
            found.append((repair(packet, 0).dts, packet.pts))
    assert found == repaired


@pytest.mark.parametrize("begin, end", [(0, 1), (0, 20), (0, 22), (0, 75), (5, 40), (26, 27), (30, 74), (1, 75)])
@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_an_edit_list_shows_the_same_pictures_in_the_copy(tmp_path, suffix, begin, end):
    whole = plain_video(tmp_path / f"whole{suffix}")
    path = show_parts(whole, tmp_path / f"part{suffix}", (40 * begin, 40 * end))
    copy(path, tmp_path / f"out{suffix}")
    for each in (path, tmp_path / f"out{suffix}"):
        assert media.probe(each).duration_sec == pytest.approx((end - begin) / 25, abs=1e-3)
        assert numbers(media.read_video(each, [media.FrameGrid(25.0, 16, end - begin)])[0]) == list(range(begin, end))
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        sound = container.streams.audio[0]
        assert float(sound.duration * sound.time_base) == pytest.approx((end - begin) / 25, abs=1024 / 16_000)


def test_what_an_edit_list_cannot_hide_is_refused(tmp_path):
    whole = plain_video(tmp_path / "whole.mp4")
    path = show_parts(whole, tmp_path / "part.mp4", (200, 1000))
    with pytest.raises(UserError, match=r"out.mkv: a .mkv file cannot hide the pictures .*--container=mp4"):
        copy(path, tmp_path / "out.mkv")
    path = show_parts(whole, tmp_path / "two.mp4", (0, 600), (1400, 2000))
    with pytest.raises(UserError, match=r"two.mp4 joins several parts by an edit list"):
        copy(path, tmp_path / "out.mp4")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["part.mp4", "two.mp4", "whole.mp4"]


# What lies beside the pictures


HDR = {
    b"dvcC": bytes([1, 0, 5 << 1, 1 << 3 | 5]) + bytes(20), b"dvvC": bytes([1, 0, 8 << 1, 1 << 3 | 5]) + bytes(20),
    b"mdcv": struct.pack(">8H2I", 1, 2, 3, 4, 5, 6, 7, 8, 9, 10), b"clli": struct.pack(">HH", 1000, 400),
    b"st3d": bytes([0, 0, 0, 0, 2]), b"amve": bytes(range(8)), b"hfov": struct.pack(">I", 63_500),
}


@pytest.fixture(scope="module")
def hevc(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hevc")
    return remux(short_video(folder / "a.mp4", "libx265"), folder / "b.mp4",
                 prepare=lambda stream: setattr(stream.codec_context, "codec_tag", "hvc1"))


@pytest.mark.parametrize("name", HDR)
def test_hdr_dolby_vision_and_3d_stay(tmp_path, hevc, name):
    """Also what FFmpeg drops, and what it knows nothing of."""
    path, frames = add_sample_box(hevc, tmp_path / "c.mp4", b"hvc1", name, HDR[name]), pictures(hevc)[-1]
    for suffix in (".mp4", ".mov", ".m4v"):
        assert copy(path, tmp_path / f"o{suffix}") == []
        kept = name + HDR[name][:4] if (name, suffix) != (b"st3d", ".mov") else b"vexu"  # FFmpeg's own choice
        assert (tmp_path / f"o{suffix}").read_bytes().count(kept) == 1
        np.testing.assert_array_equal(pictures(tmp_path / f"o{suffix}")[-1], frames)
        copy(tmp_path / f"o{suffix}", tmp_path / "again.mov", overwrite=True)
        assert (tmp_path / "again.mov").read_bytes().count(name if name != b"st3d" else b"vexu") == 1


def test_side_data_that_a_container_cannot_hold_is_named(tmp_path, hevc):
    path = add_sample_box(hevc, tmp_path / "c.mp4", b"hvc1", b"st3d", HDR[b"st3d"])
    assert copy(path, tmp_path / "o.mkv") == []
    path = remux(short_video(tmp_path / "a.mp4", "mpeg4"), tmp_path / "b.mov",
                 prepare=lambda stream: stream.set_display_rotation(90))
    assert copy(path, tmp_path / "o.avi") == ["the side data DISPLAYMATRIX"]


def full_video(path, subtitles="subrip", start_ms=0):
    """A Matroska or MP4 file with two chapters, subtitles, three sound tracks and, in Matroska, a font and a cover."""
    made = plain_video(path.with_name(f"made{path.suffix}"), [ms + start_ms for ms in EVEN_MS])
    with av.open(str(made)) as source, av.open(str(path), "w") as out:
        streams = [out.add_stream_from_template(source.streams.video[0], opaque=True)]
        streams += [out.add_stream_from_template(source.streams.audio[0]) for _ in range(3)]
        streams[2].metadata["language"] = "fre"
        texts = out.add_mux_stream(subtitles)
        texts.time_base = Fraction(1, 1000)
        texts.metadata["language"] = "ger"
        if path.suffix == ".mkv":
            out.add_attachment("a.ttf", "application/x-truetype-font", b"font" * 9)
            out.add_attachment("cover.jpg", "image/jpeg", jpeg())
        out.metadata.update({"title": "Glaß", "artist": "Somebody"} | ({"my_key": "mine"} if path.suffix != ".mp4" else {}))
        base = Fraction(1, 1000)
        out.set_chapters([
            {"id": start, "start": start, "end": start + 1000, "time_base": base, "metadata": {"title": name}}
            for start, name in ((start_ms, "One"), (start_ms + 1000, "Two"))
        ])
        for pts, duration in ((start_ms + 200, 700), (start_ms + 1500, 9000), (start_ms + 8000, 500)):
            text = b"line" if subtitles != "mov_text" else b"\0\4line"
            packet = av.Packet(text)
            packet.time_base, packet.pts, packet.dts, packet.duration, packet.stream = base, pts, pts, duration, texts
            out.mux(packet)
        for packet in source.demux():
            if packet.size and packet.stream.type == "video":
                packet.stream = streams[0]
                out.mux(packet)
            elif packet.size:
                for stream in streams[1:]:
                    twin = av.Packet(bytes(packet))
                    for field in ("time_base", "pts", "dts", "duration"):
                        setattr(twin, field, getattr(packet, field))
                    twin.stream = stream
                    out.mux(twin)
    return path


def jpeg():
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 16, 16, "yuvj420p", Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(numbered(1, 16, 16), format="rgb24").reformat(format="yuvj420p")
    return bytes(encoder.encode(frame)[0])


def beside(path):
    """What lies beside the pictures and the sound: (kinds of streams, subtitles in ms, chapters, metadata)."""
    with av.open(str(path)) as container:
        kinds = [(s.type, s.language) for s in container.streams if s.type not in ("audio", "data")][1:]
        texts = []
        for stream in container.streams.subtitles:
            for packet in container.demux(stream):
                if packet.size > 2:
                    texts.append(tuple(round(1000 * ticks * packet.time_base) for ticks in (packet.pts, packet.duration)))
        chapters = [(float(c["start"] * c["time_base"]), c["metadata"]["title"]) for c in container.chapters()]
        assert len(container.streams.audio) == 1
        return kinds, texts, chapters, {key.lower(): value for key, value in container.metadata.items()}


@pytest.mark.parametrize("start_ms", [0, 480])
def test_matroska_keeps_all_but_the_other_sound(tmp_path, start_ms):
    path = full_video(tmp_path / "full.mkv", start_ms=start_ms)
    left_out = copy(path, tmp_path / "out.mkv")
    assert left_out == ["audio track 2 (flac, fre)", "audio track 3 (flac)"]
    kinds, texts, chapters, metadata = beside(tmp_path / "out.mkv")
    assert kinds == [("subtitle", "ger"), ("attachment", None), ("video", None)]
    assert texts == [(200, 700), (1500, 1500)]  # what goes on after the pictures is cut
    assert chapters == [(0.0, "One"), (1.0, "Two")]
    assert metadata["title"] == "Glaß" and metadata["my_key"] == "mine"
    with av.open(str(tmp_path / "out.mkv")) as container:
        font = next(stream for stream in container.streams if stream.type == "attachment")
        assert (font.name, font.data) == ("a.ttf", b"font" * 9)
        cover = container.streams.video[1]
        assert cover.disposition & Disposition.attached_pic and cover.metadata["filename"] == "cover.jpg"
        assert bytes(next(container.demux(cover))) == jpeg()
    assert media.probe(tmp_path / "out.mkv").duration_sec == pytest.approx(3.0, abs=2e-3)


def test_what_another_container_cannot_hold_is_named(tmp_path):
    path = full_video(tmp_path / "full.mkv")
    assert copy(path, tmp_path / "out.mp4") == [
        "audio track 2 (flac, fre)", "audio track 3 (flac)", "subtitle track 4 (srt, ger)", "attachment 5 (a.ttf)",
        "the metadata my_key",
    ]  # with a cover MP4 holds only the usual keys
    kinds, _, chapters, metadata = beside(tmp_path / "out.mp4")
    assert kinds == [("video", None)] and [name for _, name in chapters] == ["One", "Two"]
    assert (metadata["title"], metadata["artist"]) == ("Glaß", "Somebody")
    assert copy(path, tmp_path / "out.mov")[-1] == "cover picture 6 (mjpeg)"
    assert beside(tmp_path / "out.mov")[3]["my_key"] == "mine"
    path = short_video(tmp_path / "a.avi", "mpeg4")
    with av.open(str(path)) as source, av.open(str(tmp_path / "b.mkv"), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0], opaque=True)
        out.set_chapters([{"id": 1, "start": 0, "end": 300, "time_base": Fraction(1, 1000), "metadata": {"title": "One"}}])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    assert copy(tmp_path / "b.mkv", tmp_path / "out.avi") == ["1 chapters"]


def test_mp4_keeps_its_subtitles_and_chapters(tmp_path):
    path = full_video(tmp_path / "full.mp4", "mov_text")
    assert copy(path, tmp_path / "out.mp4") == ["audio track 2 (aac, fre)", "audio track 3 (aac, und)"]
    kinds, texts, chapters, _ = beside(tmp_path / "out.mp4")
    assert kinds == [("subtitle", "ger")] and chapters == [(0.0, "One"), (1.0, "Two")]
    assert texts == [(200, 700), (1500, 1500)]
    copy(tmp_path / "out.mp4", tmp_path / "again.mp4")
    assert beside(tmp_path / "again.mp4")[:3] == (kinds, texts, chapters)  # one track of chapters, not two


def test_a_packet_that_the_container_refuses_costs_only_the_extras(tmp_path, monkeypatch):
    path, place = full_video(tmp_path / "full.mkv"), stream_copy.StreamCopy._place_extra

    def spoil(self, packet):
        kept = place(self, packet)
        packet.pts, packet.dts = 5, 99  # no muxer takes it once the repair is out of the way
        return kept

    class NoRepair(stream_copy._Repair):
        def __call__(self, packet, start):
            if packet.stream.type == "subtitle":
                packet.stream = self._copy
                return packet
            return super().__call__(packet, start)

    monkeypatch.setattr(stream_copy.StreamCopy, "_place_extra", spoil)
    monkeypatch.setattr(stream_copy, "_Repair", NoRepair)
    left_out = copy(path, tmp_path / "out.mkv")
    assert "subtitle track 4 (srt, ger)" in left_out and "2 chapters" in left_out
    assert media.probe(tmp_path / "out.mkv").duration_sec == pytest.approx(3.0, abs=2e-3)


def test_what_is_written_is_read():
    assert containers.VIDEO_SUFFIXES[: len(stream_copy.FORMATS)] == tuple(stream_copy.FORMATS)


@pytest.mark.parametrize("name, codec, size, copied", [
    ("a.ts", "libx264", (96, 64), ".mkv"), ("a.m2ts", "libx264", (96, 64), ".mkv"), ("a.mpg", "mpeg2video", (96, 64), ".mkv"),
    ("a.flv", "libx264", (96, 64), ".mkv"), ("a.asf", "wmv2", (96, 64), ".mkv"), ("a.wmv", "wmv2", (96, 64), ".mkv"),
    ("a.3gp", "h263", (176, 144), ".mov"), ("a.mxf", "mpeg2video", (96, 64), ".mkv"), ("a.webm", "libvpx", (96, 64), ".webm"),
])
def test_containers_that_are_only_read_are_copied_into_another(tmp_path, name, codec, size, copied):
    """Frames for the networks, duration and pictures of the copy are those of the source."""
    path, times = tmp_path / name, EVEN_MS[:20]
    make_video(path, [numbered(i, *size) for i in range(20)], times, codec)
    assert media_writer.copy_suffix(path) == copied
    out = tmp_path / f"out{copied}"
    assert copy(path, out) == []
    (*facts, frames), (*their_facts, their_frames) = pictures(out), pictures(path)
    assert facts[0] == their_facts[0] and len(frames) == 20
    np.testing.assert_array_equal(frames, their_frames)
    assert media.probe(path).duration_sec == pytest.approx(0.8, abs=0.05)
    assert media.probe(out).duration_sec == pytest.approx(0.8, abs=0.05)
    (seen,), (again,) = (media.read_video(each, [media.FrameGrid(25.0, 32, 20)]) for each in (path, out))
    np.testing.assert_array_equal(seen, again)


@pytest.mark.parametrize("seconds", [0.04, 0.5, 1.37, 2.0, 9.0])
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".avi"])
def test_a_copy_ends_where_it_is_told(tmp_path, suffix, seconds):
    """Exactly, or, where the container cannot hide the pictures that B-frames refer to, a few pictures later."""
    source, out = plain_video(tmp_path / f"in{suffix}"), tmp_path / f"out{suffix}"
    assert copy(source, out, duration_sec=seconds) == []
    ours, theirs = bytes_of(out), bytes_of(source)
    assert ours == theirs[: len(ours)] and (len(ours) < len(theirs)) == (seconds < 3)
    asked, ends = min(seconds, 3.0), media.probe(out).duration_sec
    depth = 3 if suffix == ".mkv" else 0
    assert asked - 2e-3 <= ends <= asked + (0.04 if depth or suffix == ".avi" else 2e-3) + 0.04 * depth
    with av.open(str(out)) as container:
        blocks = list(container.decode(audio=0))
        heard = max(float(block.time + block.samples / block.sample_rate) for block in blocks)
        assert heard == pytest.approx(ends, abs=1024 / 16_000 if suffix == ".mkv" else 0.05)  # a frame of AAC
    first = int(min(seconds * 25, 75) + 1e-6)
    assert numbers(media.read_video(out, [media.FrameGrid(25.0, 16, first)])[0]) == list(range(first))


def bytes_of(path):
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(container.streams.video[0]) if packet.size]


def test_the_pictures_of_a_slow_video_are_cut_short_too(tmp_path):
    path = make_video(tmp_path / "slides.mp4", [numbered(i) for i in range(3)], [0, 1000, 5000])
    copy(path, tmp_path / "out.mp4", duration_sec=2.5)
    assert media.probe(tmp_path / "out.mp4").duration_sec == pytest.approx(2.5, abs=2e-3)
