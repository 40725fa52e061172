"""Open media files: their streams, their clocks, and the time that their pictures cover.

Every function raises UserError, one sentence that names the file, for a file that it cannot use.
"""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
from fractions import Fraction
import itertools
import os
import pathlib
import re

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition, Stream

from msg_jax.errors import UserError

VIDEO_SUFFIXES: tuple[str, ...] = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi",  # also written (`stream_copy.FORMATS`)
    ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".vob", ".flv", ".f4v", ".wmv", ".asf", ".3gp", ".3g2", ".ogv", ".ogm", ".mxf",
)
SOUND_SUFFIXES: tuple[str, ...] = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac")
TRUNCATED_SEC = 0.25  # a file that ends this much before its declared duration counts as cut short


def is_sound(path: str | os.PathLike) -> bool:
    """Whether the suffix is that of a sound file."""
    return pathlib.Path(path).suffix.lower() in SOUND_SUFFIXES


def file_url(path: str | os.PathLike) -> str:
    """The path as FFmpeg's URL; FFmpeg takes a plain name with a colon for a protocol."""
    return f"file:{os.fspath(path)}"


def what(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has none."""
    text = getattr(error, "strerror", None) or str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def open_media(path: str | os.PathLike) -> Iterator[InputContainer]:
    """Opens a video or sound file. Raises UserError if it is missing, empty or neither.

    Any exception while the file is open becomes a UserError too: what a decoder raises for a damaged file has no bounds.
    """
    path, kind = pathlib.Path(path), "sound" if is_sound(path) else "video"
    if not os.path.isfile(path):  # unlike pathlib's, False for a name that is too long
        fault = f"is a folder, not a {kind}" if os.path.isdir(path) else "does not exist"
        raise UserError(f"{path} {fault}; check the path")
    if os.path.getsize(path) == 0:
        raise UserError(f"{path} is empty (0 bytes); replace the file or leave it out")
    try:
        container = av.open(file_url(path), metadata_errors="surrogateescape")
    except Exception as error:
        raise UserError(
            f"{path} cannot be opened as a {kind} ({what(error)}): it is cut short or not a {kind}; "
            "replace the file or leave it out"
        ) from error
    try:
        with container:
            yield container
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} is damaged ({what(error)}); replace the file or leave it out") from error


# Streams


def video_stream(container: InputContainer, path: str | os.PathLike) -> av.VideoStream:
    """The first video stream that is not a cover picture.

    Raises UserError if there is none, if it is encrypted, or if there is no decoder for it.
    """
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            _refuse_encrypted(stream, path)
            if stream.codec_context is None:
                raise UserError(f"{path}: its video codec is not supported; convert it to H.264 first")
            return stream
    raise UserError(f"{path} has no video stream; give a file with pictures")


def audio_stream(container: InputContainer) -> av.AudioStream | None:
    """The first audio stream that can be decoded."""
    return next((stream for stream in container.streams.audio if stream.codec_context is not None), None)


def packets(container: InputContainer, stream: Stream, path: str | os.PathLike) -> Iterator[av.Packet]:
    """The packets of a stream, the empty one that flushes its decoder last. Raises UserError if they are encrypted."""
    _refuse_encrypted(stream, path)
    for packet in container.demux(stream):
        if packet.has_sidedata("encryption_info"):  # MP4
            raise UserError(f"{path} is encrypted; give a file without copy protection")
        yield packet


def _refuse_encrypted(stream: Stream, path: str | os.PathLike) -> None:
    if any(key.lower() == "enc_key_id" for key in stream.metadata):  # Matroska and WebM
        raise UserError(f"{path} is encrypted; give a file without copy protection")


# Clocks


def time_base(stream: Stream) -> Fraction:
    """Seconds per tick. PyAV's type allows None, but an opened stream always has one."""
    assert stream.time_base is not None
    return stream.time_base


def start_ticks(stream: Stream) -> int:
    """The stream's start on the container's clock, in units of its time base."""
    return stream.start_time or 0


def frame_sec(video: av.VideoStream) -> Fraction:
    """The mean frame interval in seconds; 1 / 25 if the container declares no rate."""
    return 1 / (video.average_rate or video.guessed_rate or Fraction(25))


def declared_sec(stream: Stream) -> float:
    """The duration that the header declares, 0 if none. In Matroska it is a tag that counts from the container's 0."""
    if stream.duration:
        return float(stream.duration * time_base(stream))
    tag = re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", stream.metadata.get("DURATION", ""))
    if tag is None:
        return 0.0
    hours, minutes, seconds = map(float, tag.groups())
    return 3600 * hours + 60 * minutes + seconds - float(start_ticks(stream) * time_base(stream))


def is_cut(container: InputContainer, stream: Stream) -> bool:
    """Whether the index of an MP4 file lists data beyond the file's end."""
    if "mp4" not in container.format.name or not len(stream.index_entries):
        return False
    last = stream.index_entries[len(stream.index_entries) - 1]
    return last.pos + last.size > container.size


@dataclasses.dataclass(frozen=True)
class Shown:
    """When a packet's picture is shown, and for how long, in ticks; 0 for an unknown duration."""

    ticks: int
    duration: int

    @classmethod
    def of(cls, packet: av.Packet) -> "Shown | None":
        """None for a packet without a time, and for a picture that an edit list hides."""
        ticks = packet.pts if packet.pts is not None else packet.dts
        return None if ticks is None or packet.is_discard else cls(ticks, packet.duration or 0)


@dataclasses.dataclass(frozen=True)
class Extent:
    """The time that a stream's pictures cover, in ticks on the container's clock."""

    start: int  # of the first picture
    last: int  # start of the last picture
    end: Fraction | int  # of the last picture
    longest: Fraction | int  # interval between two pictures
    pictures: int

    @classmethod
    def of(cls, container: InputContainer, video: av.VideoStream, shown: Sequence[Shown]) -> "Extent":
        """Measures the pictures `shown`, in decoding order; at least one."""
        times = sorted(each.ticks for each in shown)
        start, last = times[0], times[-1]
        last_duration = max((each.ticks, each.duration) for each in shown)[1]
        mean = Fraction(last - start, len(shown) - 1) if len(shown) > 1 else frame_sec(video) / time_base(video)
        longest = max((after - before for before, after in itertools.pairwise(times)), default=mean)
        declared, is_mp4 = start + round(Fraction(declared_sec(video)) / time_base(video)), "mp4" in container.format.name
        # MP4 stores durations in decoding order, so with B-frames the last one is not that of the last picture shown.
        if last_duration and (shown[-1].ticks == last or not is_mp4):
            end, in_order = last + last_duration, times == [each.ticks for each in shown]
            end = min(end, declared) if is_mp4 and in_order and declared > last else end
        else:
            # The track's length holds the last picture's duration, if the track is about as long as its pictures together:
            # decoding runs ahead of the pictures by some intervals.
            total = sum(each.duration for each in shown) or last - start + mean
            whole = Fraction(container.duration or 0, av.time_base) / time_base(video)  # of all tracks
            guess = min(last + mean, whole) if is_mp4 and whole > last else last + mean
            end = declared if declared > last and abs(declared - start - total) <= 4 * longest else guess
        return cls(start, last, end, longest, len(shown))


def measure(container: InputContainer, video: av.VideoStream, path: str | os.PathLike) -> Extent | None:
    """The extent of a stream's pictures, from its packets; None if there are none. Decodes nothing."""
    shown: list[Shown] = []
    with contextlib.suppress(FFmpegError):  # as far as the packets can be read
        for packet in packets(container, video, path):
            if (each := Shown.of(packet)) is not None:
                shown.append(each)
    return Extent.of(container, video, shown) if shown else None
