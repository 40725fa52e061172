"""Copy the pictures of a video, and what lies beside them, packet by packet into another container.

Packets keep their bytes. Their times are shifted so that the first picture is at second 0, and repaired as `ffmpeg -c copy`
repairs them where a container needs them to grow.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
from fractions import Fraction
import io
import pathlib
from typing import Any

import av
from av.bitstream import BitStreamFilterContext
from av.container import InputContainer, OutputContainer
from av.error import FFmpegError
from av.rational import AVRational
from av.stream import AttachmentStream, Disposition, Stream

from msg_jax.data import container_patch, containers
from msg_jax.errors import UserError

FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm", ".avi": "avi"}
_EDITS = ("mp4", "mov")  # formats that can hide pictures
_DISPLAY_SIZE = ("matroska", "webm")  # formats whose pixel aspect ratio PyAV cannot set
_UNOFFICIAL = {"strict": "unofficial"}  # with it, MP4 keeps Dolby Vision and 3D side data
_MDTA = {"movflags": "use_metadata_tags"}  # with it, MP4 keeps any key, but where fewer players look
_STRUCTURE = {"major_brand", "minor_version", "compatible_brands", "encoder", "software", "duration"}
_ADVICE = "use a .mkv file (--container=mkv)"

Add = Callable[[OutputContainer], Stream]


def advice(suffix: str) -> str:
    """What to do about a container that cannot hold a video."""
    return _ADVICE if suffix != ".mkv" else "convert the video first"


class StreamCopy:
    """A copy of all streams of `source` but its sound, into the container that `path`'s suffix names.

    The container decides what it can hold: `left_out` describes each stream, and each part of the metadata, that it cannot.
    Sound beyond the first track is among them, because the new sound is to be the only one.

    With `until_sec` the copy ends there: packets after the last one, in decoding order, whose picture is shown before are left
    out. Pictures among the others that B-frames refer to but that are shown later are hidden by an edit list in MP4 and MOV.
    Other containers show them too, so that the copy is longer by the depth of the reordering, usually one to four pictures.

    Raises UserError if the container cannot hold the video itself.
    """

    def __init__(
        self, source: InputContainer, video_path: pathlib.Path, path: pathlib.Path, extras: bool = True,
        until_sec: float | None = None,
    ):
        self._source, self._video_path, self._path = source, video_path, path
        self._format = FORMATS[path.suffix.lower()]
        self._video = containers.video_stream(source, video_path)
        self._whole, times = _measure(video_path)
        self._extent, self._kept = self._whole, len(times)
        if until_sec is not None:
            self._extent, self._kept = self._cut(times, until_sec)
        self._hides = False
        self._options = {"allow_raw_vfw": "1"} if self._format == "matroska" else {}
        self._add_video = self._way()
        self._extras: list[tuple[Stream, Add]] = []
        self.left_out: list[str] = []
        for stream in source.streams:
            self._plan(stream, extras)
        structure = _STRUCTURE if self._format in _EDITS else ()
        self._metadata = {key: value for key, value in source.metadata.items() if key.lower() not in structure}
        self._plan_metadata()
        self._chapters = self._shifted_chapters()
        if self._chapters and (self._format == "avi" or not extras):
            self.left_out.append(f"{len(self._chapters)} chapters")
            self._chapters = []
        if self._aspect and self._format == "avi":
            self.left_out.append(f"the pixel aspect ratio {self._aspect}")

    def _cut(self, times: Sequence[int | None], until_sec: float) -> tuple[containers.Extent, int]:
        """The extent of the pictures until `until_sec`, and how many packets they need; `times` are those of all packets."""
        whole = self._whole
        end = whole.start + Fraction(round(until_sec * 1e6), 10**6) / containers.time_base(self._video)
        if end >= whole.end:
            return whole, len(times)
        kept = max(i for i, ticks in enumerate(times) if ticks is not None and whole.start <= ticks < end) + 1
        shown = sorted({ticks for ticks in times[:kept] if ticks is not None and ticks >= whole.start})
        if self._format in _EDITS:
            shown = [ticks for ticks in shown if ticks < end]
        if shown[-1] >= end:
            later = [ticks for ticks in times if ticks is not None and ticks > shown[-1]]
            end = min(later, default=whole.end)
        return dataclasses.replace(whole, last=shown[-1], end=end, pictures=len(shown)), kept

    def _way(self) -> Add:
        """The first way of adding the video that the container takes."""
        # AVI takes MP4's avc1, but its players do not
        tag = "" if self._format == "avi" and "mp4" in self._source.format.name else _tag(self._video)
        ways = [self._by_template(each) for each in dict.fromkeys((tag, ""))]
        for way in (*ways, self._by_parameters):
            if self._takes(way):
                return way
        raise self._refusal(self._video.codec_context.name)

    def _interval(self) -> Fraction:
        """The seconds of each picture. Raises UserError if they differ, or if pictures are stored in another order."""
        interval, base = containers.frame_sec(self._video), containers.time_base(self._video)
        if self._source.format.name == "avi":
            return interval
        with containers.open_media(self._video_path) as source:
            video = containers.video_stream(source, self._video_path)
            packets = [(packet.pts, packet.dts) for packet in _demux(source, [video], self._video_path) if packet.size]
        first, last = self._whole.start, self._whole.last
        mean = Fraction(last - first, max(len(packets) - 1, 1)) * base
        for step in (interval, mean or interval):
            times = [first + round(i * step / base) for i in range(len(packets))]
            if all(dts in (None, pts) and abs((pts or 0) - time) <= 1 for (pts, dts), time in zip(packets, times)):
                return step
        raise UserError(
            f"{self._path}: a .avi file cannot hold this video, whose pictures are of different lengths or stored in another "
            f"order; {_ADVICE}"
        )

    def _refusal(self, codec: str) -> UserError:
        suffix = self._path.suffix
        return UserError(f"{self._path}: a {suffix} file cannot hold {codec} video; {advice(suffix)}")

    def _by_template(self, tag: str) -> Add:
        def add(out: OutputContainer) -> Stream:
            video = out.add_stream_from_template(self._video, opaque=True)
            if tag:
                video.codec_context.codec_tag = tag
            if self._video.average_rate:  # ASF may not have one
                video.codec_context.framerate = self._video.average_rate
            if self._video.sample_aspect_ratio:
                video.codec_context.sample_aspect_ratio = self._video.sample_aspect_ratio
            return video

        return add

    def _by_parameters(self, out: OutputContainer) -> Stream:
        """For codecs that FFmpeg copies although it does not list them for the container."""
        video = out.add_mux_stream(out.default_video_codec, rate=1 / containers.frame_sec(self._video))
        BitStreamFilterContext("null", self._video, video)
        video.time_base = containers.time_base(self._video)
        return video

    def _takes(self, *additions: Add, **options: str) -> bytes | None:
        """A file with these streams and without packets; None if the container refuses one."""
        file = io.BytesIO()
        try:
            options = self._options | options
            with av.open(file, "w", format=self._format, container_options=options, metadata_errors="surrogateescape") as out:
                for add in additions:
                    add(out)
                out.start_encoding()
        except (ValueError, TypeError, FFmpegError):
            return None
        return file.getvalue()

    def _plan(self, stream: Stream, extras: bool) -> None:
        if stream.index == self._video.index or self._is_implied(stream):
            return
        if stream.type == "audio":
            if stream.index != self._source.streams.audio[0].index:
                self.left_out.append(_describe(stream))
            return

        add = self._attached_cover(stream) if _is_cover(stream) and self._format == "matroska" else _by_template(stream)
        is_lost = _is_cover(stream) and self._format == "mov"  # it takes a cover, but does not write it
        if extras and not is_lost and self._takes(self._add_video, add):
            self._extras.append((stream, add))
        else:
            self.left_out.append(_describe(stream))

    def _is_implied(self, stream: Stream) -> bool:
        """Whether the container writes the stream again by itself: MP4's tracks of chapters and of the time code."""
        if stream.type != "data" or "mp4" not in self._source.format.name:
            return False
        return "timecode" in stream.metadata or (stream.name == "bin_data" and bool(self._source.chapters()))

    def _attached_cover(self, stream: Stream) -> Add:
        codec = stream.codec_context.name if stream.codec_context else ""
        kind = {"mjpeg": "jpeg"}.get(codec, codec)

        def add(out: OutputContainer) -> Stream:
            with containers.open_media(self._video_path) as source:
                picture = next(packet for packet in source.demux(source.streams[stream.index]) if packet.size)
            name = stream.metadata.get("filename", f"cover.{kind.replace('jpeg', 'jpg')}")
            return out.add_attachment(name, f"image/{kind}", bytes(picture))

        return add

    def _plan_metadata(self) -> None:
        """Chooses the options with which the container keeps more of the file's metadata. Matroska keeps all."""
        if self._format in ("matroska", "webm"):
            return
        wanted, lost = {key.lower() for key in self._metadata} - _STRUCTURE, {}
        has_cover = any(_is_cover(stream) for stream, _ in self._extras)  # lost with _MDTA
        for options in ({}, _MDTA) if self._format in _EDITS and not has_cover else ({},):
            def add(out: OutputContainer) -> Stream:
                out.metadata.update(self._metadata)
                return self._add_video(out)

            with contextlib.suppress(FFmpegError):
                written = io.BytesIO(self._takes(add, **options) or b"")
                with av.open(written, metadata_errors="surrogateescape") as again:
                    lost[tuple(options.items())] = sorted(wanted - {key.lower() for key in again.metadata})
        if lost:
            best = min(lost, key=lambda options: len(lost[options]))
            self._options |= dict(best)
            self.left_out += [f"the metadata {', '.join(lost[best])}"] if lost[best] else []

    def _shifted_chapters(self) -> list:
        start, end = (ticks * containers.time_base(self._video) for ticks in (self._extent.start, self._extent.end))
        chapters = []
        for chapter in self._source.chapters():
            base = chapter["time_base"] or Fraction(1, 1000)
            first, last = (min(max(chapter[side] * base, start), end) - start for side in ("start", "end"))
            if first < last:
                chapters.append({**chapter, "time_base": base, "start": round(first / base), "end": round(last / base)})
        return chapters

    @property
    def _aspect(self) -> Fraction | None:
        """The pixel aspect ratio, if the container holds it and not the codec."""
        aspect = self._video.sample_aspect_ratio
        return None if not aspect or aspect == (self._video.codec_context.sample_aspect_ratio or 1) else Fraction(aspect)

    @property
    def has_extras(self) -> bool:
        """Whether other streams than the pictures are copied."""
        return bool(self._extras or self._chapters)

    @property
    def duration_sec(self) -> Fraction:
        """How long the pictures are shown."""
        return (self._extent.end - self._extent.start) * containers.time_base(self._video)

    @contextlib.contextmanager
    def open(self, file: pathlib.Path) -> Iterator[OutputContainer]:
        """Opens the container, to add the sound; what it cannot set while writing is set when it closes."""
        url = containers.file_url(file)
        options = self._options | _UNOFFICIAL
        with av.open(url, "w", format=self._format, container_options=options, metadata_errors="surrogateescape") as out:
            out.metadata.update(self._metadata)
            video = self._add_video(out)
            if self._format == "avi":  # AVI numbers its frames: one tick must be one frame
                video.time_base = self._interval()
            video.metadata.update({key: value for key, value in self._video.metadata.items() if key != "DURATION"})
            video.disposition = self._video.disposition
            self._copies = {self._video.index: video}
            yield out
        self._finish(file)

    def add_extras(self, out: OutputContainer) -> None:
        """Adds the other streams, after the sound, and writes the header."""
        self._copies |= {stream.index: add(out) for stream, add in self._extras}
        if self._chapters:
            out.set_chapters(self._chapters)
        out.start_encoding()

    def packets(self) -> Iterator[av.Packet]:
        """The packets of all copied streams, in the file's order. Raises UserError if the source cannot be read to its end."""
        streams = [self._video, *(stream for stream, _ in self._extras)]
        copied = [stream for stream in streams if not isinstance(self._copies[stream.index], AttachmentStream)]
        repair = {stream.index: _Repair(self._copies[stream.index], self._format) for stream in copied}
        hidden, start, seen = list[av.Packet](), containers.start_ticks(self._video), 0
        for packet in _demux(self._source, copied, self._video_path):
            if packet.size == 0:  # demux ends with empty packets that only flush the decoders
                continue
            stream = packet.stream
            if stream.index == self._video.index:
                seen += 1
                if seen > self._kept:
                    continue
                if packet.is_discard:
                    hidden.append(packet)  # those after the last picture that is shown are not needed
                    continue
                for each in hidden:
                    self._check_hidden(each)
                    yield repair[stream.index](each, start)
                hidden.clear()
                self._hides |= self._format in _EDITS and _ticks(packet) >= self._extent.end
                if packet.pts == self._extent.last:  # with B-frames MP4 gives it another picture's duration
                    packet.duration = round(self._extent.end - self._extent.last)
                yield repair[stream.index](packet, start)
            elif self._place_extra(packet):
                yield repair[stream.index](packet, 0)

    def _check_hidden(self, packet: av.Packet) -> None:
        """Raises UserError unless the container can hide the picture of a packet that an edit list hides."""
        ticks = packet.pts if packet.pts is not None else packet.dts
        if self._format not in _EDITS:
            raise UserError(
                f"{self._path}: a {self._path.suffix} file cannot hide the pictures that the edit list of {self._video_path} "
                "hides; use a .mp4 file (--container=mp4)"
            )
        if ticks is not None and self._extent.start <= ticks < self._extent.end:
            raise UserError(f"{self._video_path} joins several parts by an edit list, which cannot be copied; convert it first")
        self._hides |= ticks is not None and ticks >= self._extent.end

    def _place_extra(self, packet: av.Packet) -> bool:
        """Moves a packet of another stream onto the pictures' clock; False if it lies outside the pictures."""
        stream, video_base = packet.stream, containers.time_base(self._video)
        if _is_cover(stream):
            packet.pts = packet.dts = 0
            return True
        base = containers.time_base(stream)
        shift, end = round(containers.start_ticks(self._video) * video_base / base), round(self.duration_sec / base)
        ticks = packet.pts if packet.pts is not None else packet.dts
        if ticks is None or (stream.type == "subtitle" and bytes(packet) == b"\0\0"):  # MP4's gaps, which it writes again
            return False
        if stream.type == "video" and self._extent is not self._whole and (packet.dts or ticks) - shift >= end:
            return False
        if stream.type == "video":  # its pictures refer to each other, so that none can be left out
            packet.pts = None if packet.pts is None else packet.pts - shift
            packet.dts = None if packet.dts is None else packet.dts - shift
            return True
        first, last = ticks - shift, ticks - shift + (packet.duration or 0)
        if first >= end or (last <= 0 and first < 0):
            return False
        packet.pts = packet.dts = max(first, 0)
        packet.duration = max(0, min(last, end) - max(first, 0))
        return True

    def _finish(self, file: pathlib.Path) -> None:
        if self._hides:
            container_patch.set_shown_duration(file, self.duration_sec)
        if self._format in _EDITS and "mp4" in self._source.format.name:
            container_patch.copy_descriptions(self._video_path, self._video.id, file)
        context = self._video.codec_context
        if self._format in _DISPLAY_SIZE and self._aspect:
            try:
                container_patch.set_pixel_aspect(file, context.width, context.height, self._aspect)
            except ValueError:
                self.left_out.append(f"the pixel aspect ratio {self._aspect}")
        ours, theirs = _first_picture(file), _first_picture(self._video_path)
        if ours is None or theirs is None:
            return
        if ours.format.name != theirs.format.name:  # raw video: the container has no code for its format
            raise self._refusal(f"raw {theirs.format.name}")
        lost = sorted(_side_data(theirs) - _side_data(ours))
        self.left_out += [f"the side data {', '.join(lost)}"] if lost else []


class _Repair:
    """Moves the packets of one stream to their copy, and makes their times grow as `ffmpeg -c copy` does."""

    def __init__(self, copy: Stream, container_format: str):
        self._copy, self._step = copy, 0 if container_format in ("matroska", "webm") else 1
        self._last: int | None = None

    def __call__(self, packet: av.Packet, start: int) -> av.Packet:
        packet.pts = None if packet.pts is None else packet.pts - start
        packet.dts = None if packet.dts is None else packet.dts - start
        packet.stream = self._copy
        packet.rescale_ts(AVRational(containers.time_base(self._copy)))
        pts, dts, last = packet.pts, packet.dts, self._last
        if pts is not None and dts is not None and pts < dts:
            least = dts if last is None else last + 1
            pts = dts = sorted((pts, dts, least))[1]
        if dts is not None and last is not None and dts < last + self._step:
            dts = last + self._step
            pts = None if pts is None else max(pts, dts)
        packet.pts, packet.dts = pts, dts
        self._last = dts if dts is not None else last
        return packet


def _measure(path: pathlib.Path) -> tuple[containers.Extent, list[int | None]]:
    """The extent of the pictures, and the time of every packet in decoding order, None for a hidden one."""
    shown = []
    with containers.open_media(path) as container:
        video = containers.video_stream(container, path)
        with contextlib.suppress(FFmpegError):  # as far as the packets can be read
            shown = [containers.Shown.of(each) for each in containers.packets(container, video, path) if each.size]
        found = [each for each in shown if each is not None]
        if not found:
            raise UserError(f"{path} has no picture that can be decoded; replace the file or leave it out")
        extent = containers.Extent.of(container, video, found)
    return extent, [None if each is None else each.ticks for each in shown]


def _ticks(packet: av.Packet) -> int:
    return (packet.pts if packet.pts is not None else packet.dts) or 0


def _first_picture(path: pathlib.Path) -> av.VideoFrame | None:
    """The first picture with the side data, of the codec and of the container, that describe it; None if it is damaged."""
    with contextlib.suppress(UserError), containers.open_media(path) as container:
        return next(container.decode(containers.video_stream(container, path)), None)
    return None


def _side_data(picture: av.VideoFrame) -> set[str]:
    side_data: Any = picture.side_data  # the stub says a TypedDict
    return {side_data[i].type.name for i in range(len(side_data))}


def _demux(source: InputContainer, streams: list, path: pathlib.Path) -> Iterator[av.Packet]:
    try:
        yield from source.demux(streams)
    except FFmpegError as error:
        raise UserError(f"{path} is damaged ({containers.what(error)}); replace the file or leave it out") from error


def _by_template(stream: Stream) -> Add:
    def add(out: OutputContainer) -> Stream:
        copy = out.add_stream_from_template(stream, opaque=True)
        copy.metadata.update({key: value for key, value in stream.metadata.items() if key != "DURATION"})
        copy.disposition = stream.disposition
        return copy

    return add


def _tag(video: av.VideoStream) -> str:
    try:
        return video.codec_context.codec_tag.strip("\0") and video.codec_context.codec_tag
    except UnicodeDecodeError:
        return ""


def _is_cover(stream: Stream) -> bool:
    return bool(stream.disposition & Disposition.attached_pic)


def _describe(stream: Stream) -> str:
    """For example "audio track 2 (aac, ger)"."""
    codec = stream.codec_context.name if stream.codec_context else getattr(stream, "name", None)
    facts = ", ".join(filter(None, (codec, stream.language)))
    kind = "cover picture" if _is_cover(stream) else "attachment" if stream.type == "attachment" else f"{stream.type} track"
    return f"{kind} {stream.index}" + (f" ({facts})" if facts else "")
