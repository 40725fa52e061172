"""Read video and sound files: probe them, and decode both streams by timestamp.

Second 0 is the moment the first picture is shown, whatever the container's own clock says; sound is placed on the same
clock. (AVI counts from the start of decoding. With B-frames its first picture appears one frame late, for players as for
us.) Every function raises UserError, one sentence that names the file, for a file that it cannot use, whatever goes wrong
inside it.
"""

from collections.abc import Iterable, Iterator, Sequence
import contextlib
import dataclasses
from fractions import Fraction
import math
import os
from typing import Any

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Stream
from jaxtyping import Float, Float32, UInt8
import numpy as np
import soxr

from msg_jax.data import containers, scaling, sound_headers
from msg_jax.data.containers import SOUND_SUFFIXES, VIDEO_SUFFIXES, is_sound, open_media
from msg_jax.data.frame_grid import FrameGrid
from msg_jax.errors import UserError

__all__ = [
    "SOUND_SUFFIXES", "VIDEO_SUFFIXES", "FrameGrid", "MediaInfo", "check_sound", "declared_sec", "fit_length", "is_sound",
    "last_picture_sec", "pictures", "probe", "read_audio", "read_video",
]

_ROUNDING_SEC = 0.0005 + 1e-9  # containers round timestamps, Matroska to milliseconds
_SEEK_SLACK_SEC = 1.0  # containers index by decode time, which B-frames shift; audio decoders need packets to settle
_GAP_SEC = 0.002  # smaller jumps between audio timestamps are rounding; closing them avoids clicks
_FLOAT_CODECS = ("pcm_f", "wavpack")  # the beginnings of names of codecs whose samples may be NaN


def _unnamed(cls: type[SideDataType], value: int) -> SideDataType:
    member = object.__new__(cls)
    member._name_, member._value_ = f"UNNAMED_{value}", value
    return member


# PyAV raises ValueError for all side data of a frame if it has no name for one of them (EXIF, 3D displays, ...).
SideDataType._missing_ = classmethod(_unnamed)  # pyright: ignore[reportAttributeAccessIssue] a hook of Enum


@dataclasses.dataclass(frozen=True)
class MediaInfo:
    """Properties of a video file."""

    duration_sec: float  # from the start of the first picture to the end of the last
    start_sec: float  # time of the first picture on the container's clock
    video_hz: float  # mean over the file
    width: int  # as shown: rotated, non-square pixels stretched
    height: int
    has_audio: bool


def probe(path: str | os.PathLike) -> MediaInfo:
    """Measures a video by reading all video packets and decoding the first picture; it does not trust the header.

    Raises UserError if the file is missing, empty or not a video, or if no picture can be decoded.
    """
    with open_media(path) as container:
        video, audio = containers.video_stream(container, path), containers.audio_stream(container)
        first, shown = None, []
        for packet in containers.packets(container, video, path):
            if first is None:
                first = next(iter(packet.decode()), None)
            shown.append(containers.Shown.of(packet))
        shown = [each for each in shown if each is not None]
        if first is None or not shown:
            raise UserError(f"{path} has no picture that can be decoded; replace the file or leave it out")
        extent, time_base = containers.Extent.of(container, video, shown), containers.time_base(video)
        width, height = _shown_size(first, video)
        if _is_sideways(_display_matrix(first)):
            width, height = height, width
        duration_sec = float((extent.end - extent.start) * time_base)
        return MediaInfo(
            duration_sec=duration_sec,
            start_sec=float(extent.start * time_base),
            video_hz=extent.pictures / duration_sec,
            width=width,
            height=height,
            has_audio=audio is not None,
        )


def declared_sec(path: str | os.PathLike) -> float:
    """The duration that the file's header declares, 0 if none. Decodes nothing."""
    with open_media(path) as container:
        return (container.duration or 0) / av.time_base


def last_picture_sec(path: str | os.PathLike, until_sec: float) -> float:
    """The time of the last picture that appears at `until_sec` or before. Decodes nothing. Raises UserError as `probe` does."""
    with open_media(path) as container:
        video = containers.video_stream(container, path)
        start, time_base = containers.start_ticks(video), containers.time_base(video)
        shown = map(containers.Shown.of, containers.packets(container, video, path))
        times = [float((each.ticks - start) * time_base) for each in shown if each is not None]
    return max((time for time in times if time <= until_sec), default=0.0)


def pictures(path: str | os.PathLike) -> Iterator[tuple[float, av.VideoFrame]]:
    """Yields (seconds, decoded picture) as far as the file decodes. Raises UserError if it cannot be opened."""
    with open_media(path) as container:
        video = containers.video_stream(container, path)
        video.thread_type = "AUTO"
        with contextlib.suppress(FFmpegError):
            yield from _decode_from(container, video, video, 0.0, path)


def read_video(
    path: str | os.PathLike, streams: Sequence[FrameGrid], start_sec: float = 0.0
) -> list[UInt8[np.ndarray, "_ _ _ 3"]]:
    """Samples a video at fixed rates from `start_sec` on, in one decoding pass for all `streams`.

    Returns uint8 (count, px, px, 3) RGB for each FrameGrid. Frame i is the picture for the time `start_sec + i / hz` by the
    grid's FrameChoice. After the end of the video its last picture stays. Pictures are resized (antialiased bicubic) so that
    the shorter side has `px` pixels, cropped at the centre, and turned upright by the display matrix. With `squash` both
    sides are resized to `px` pixels instead. Decoding ends with the last frame that a grid keeps.

    A damaged file is used as far as it decodes. If decoding fails, or the pictures end well before the declared duration,
    windows before that point are returned as usual, and windows that need more raise UserError. So do a file that cannot be
    opened and a `start_sec` after the end of the video. Without `streams` nothing is opened.
    """
    if not streams:
        return []
    with open_media(path) as container:
        video = containers.video_stream(container, path)
        video.thread_type = "AUTO"
        frames = _decode_from(container, video, video, start_sec, path)
        to_rgb = scaling.ToRgb()
        samplers = [_GridSampler(grid, start_sec, video, to_rgb) for grid in streams]
        shown, shown_sec, failure = None, 0.0, None
        try:
            for time, frame in frames:
                if shown is not None:
                    for sampler in samplers:
                        sampler.fill(shown, shown_sec, until_sec=time)
                if all(sampler.is_full for sampler in samplers):
                    break
                shown, shown_sec = frame, time
        except FFmpegError as error:
            failure = containers.what(error)
        if shown is None:
            raise UserError(f"{path} has no picture that can be decoded; replace the file or leave it out")
        if not all(sampler.is_full for sampler in samplers):
            _refuse_window(container, video, path, start_sec, shown, shown_sec, failure)
            for sampler in samplers:
                sampler.fill_up(shown)
        return [sampler.out for sampler in samplers]


def _refuse_window(
    container: InputContainer, video: av.VideoStream, path: str | os.PathLike, start_sec: float,
    shown: av.VideoFrame, shown_sec: float, failure: str | None,
) -> None:
    """Raises UserError unless the picture at `shown_sec`, the last that decodes, is the video's last and not before the window.

    Decoding ended there with the error `failure`, or with the file.
    """
    time_base, declared = containers.time_base(video), containers.declared_sec(video)
    shown_until = shown_sec + float((shown.duration or containers.frame_sec(video) / time_base) * time_base)
    is_cut = containers.is_cut(container, video)
    if not (failure or is_cut) and declared - shown_until <= containers.TRUNCATED_SEC and start_sec < shown_until:
        return
    with open_media(path) as again:  # the packets know better how long a picture is shown, but they must all be read
        video = containers.video_stream(again, path)
        extent = containers.measure(again, video, path)
    assert extent is not None
    last_sec, end_sec = (float((ticks - extent.start) * time_base) for ticks in (extent.last, extent.end))
    slack_sec = max(containers.TRUNCATED_SEC, 1.5 * float(extent.longest * time_base))
    is_last = last_sec - shown_sec <= containers.TRUNCATED_SEC
    end_sec = max(shown_until, end_sec) if is_last else shown_until
    if failure or is_cut or not is_last or declared - end_sec > slack_sec:
        reason = failure or f"{max(declared, last_sec):.2f} s declared"
        raise UserError(
            f"{path} breaks off at {shown_until:.2f} s ({reason}), inside the window from {start_sec:.2f} s; "
            "replace the file or use an earlier window"
        )
    if start_sec >= end_sec:
        raise UserError(
            f"{path} ends at {end_sec:.2f} s: no window can start at {start_sec:.2f} s; use an earlier window"
        )


def read_audio(path: str | os.PathLike, start_sec: float, samples: int, hz: int) -> Float32[np.ndarray, " {samples}"]:
    """Reads `samples` samples of the first audio stream from `start_sec` on, mono at `hz`, in [-1, 1].

    In a sound file (`SOUND_SUFFIXES`) second 0 is where the sound begins. Samples are placed by timestamp: a stream that
    begins late or has a hole is silent there, and zeros follow its end. Mono is the plain mean of all channels, also of 5.1,
    so it cannot clip. Rates are converted by soxr HQ.

    Raises UserError if there is no audio stream, if it breaks off before the window is full, or if samples are NaN or
    infinite.
    """
    with open_media(path) as container:
        video = None if is_sound(path) else containers.video_stream(container, path)
        audio = _audible(container, path)
        clock = audio if video is None else video
        native_hz = audio.codec_context.sample_rate
        # Margins for the resampling filter: whole samples at both rates, so that output sample 0 falls on start_sec.
        divisor = math.gcd(native_hz, hz)
        units = math.ceil(0.05 * divisor)
        margin, native_margin = units * hz // divisor, units * native_hz // divisor
        first = round(start_sec * native_hz) - native_margin
        native = np.zeros(math.ceil(samples * native_hz / hz) + 2 * native_margin, np.float32)

        cursor = None
        frames = _decode_from(container, audio, clock, first / native_hz, path)
        for time, block in _mono_blocks(frames, native_hz):
            position = round(time * native_hz) - first
            if cursor is None or abs(position - cursor) > _GAP_SEC * native_hz:
                cursor = position
            if cursor >= len(native):
                break
            kept = block[max(-cursor, 0) : len(native) - cursor]
            native[max(cursor, 0) : max(cursor, 0) + len(kept)] = kept
            cursor += len(block)
        end_sec = ((cursor or 0) + first) / native_hz
        if end_sec < start_sec + samples / hz and _sound_is_missing(container, audio, clock, end_sec, path):
            raise UserError(
                f"{path} breaks off: its sound is cut short at {end_sec:.2f} s, inside the window from {start_sec:.2f} s; "
                "replace the file or use an earlier window"
            )
    if cursor is None and is_sound(path) and start_sec <= 0:
        raise UserError(f"{path} holds no sound that can be decoded; replace the file or leave it out")
    _refuse_nan(native, path)
    if native_hz != hz:
        native = soxr.resample(native, native_hz, hz, quality="HQ")
    return fit_length(np.clip(native[margin:], -1, 1), samples)


def check_sound(path: str | os.PathLike) -> None:
    """Raises UserError if the first audio stream has samples that are NaN or infinite, which only float codecs can have."""
    with open_media(path) as container:
        audio = _audible(container, path)
        if audio.codec_context.name.startswith(_FLOAT_CODECS):
            for packet in containers.packets(container, audio, path):
                for frame in packet.decode():
                    _refuse_nan(frame.to_ndarray(), path)


def _audible(container: InputContainer, path: str | os.PathLike) -> av.AudioStream:
    audio = containers.audio_stream(container)
    if audio is None:
        raise UserError(f"{path} has no audio stream; give a video with sound")
    return audio


def _refuse_nan(samples: np.ndarray, path: str | os.PathLike) -> None:
    if not np.isfinite(samples).all():
        raise UserError(f"{path} has sound samples that are NaN or infinite; replace the file or leave it out")


def _sound_is_missing(
    container: InputContainer, audio: av.AudioStream, clock: Stream, end_sec: float, path: str | os.PathLike
) -> bool:
    """Whether the file declares more sound than up to `end_sec`. Only some containers declare it exactly."""
    if containers.is_cut(container, audio) or sound_headers.missing_wav_sec(path) > containers.TRUNCATED_SEC:
        return True
    kinds = set(container.format.name.split(","))
    if not kinds & {"matroska", "flac"} and not ("mp3" in kinds and sound_headers.counts_mp3_frames(path)):
        return False
    begin, zero = (containers.start_ticks(each) * containers.time_base(each) for each in (audio, clock))
    return float(begin - zero) + containers.declared_sec(audio) - end_sec > containers.TRUNCATED_SEC


def _decode_from(
    container: InputContainer, stream: av.VideoStream | av.AudioStream, clock: Stream, start_sec: float, path: str | os.PathLike
) -> Iterator[tuple[float, Any]]:
    """Yields (seconds since the start of `clock`, frame) of `stream`, from `start_sec` or a little earlier on."""
    start, time_base, clock_base = containers.start_ticks(clock), containers.time_base(stream), containers.time_base(clock)

    def timed():
        for packet in containers.packets(container, stream, path):
            for frame in packet.decode():
                ticks = frame.pts if frame.pts is not None else frame.dts
                if ticks is not None:
                    yield float(ticks * time_base - start * clock_base), frame

    if start_sec > _SEEK_SLACK_SEC:
        # Seek by the video stream, also for sound: every container indexes it.
        target = start + math.floor(Fraction(start_sec - _SEEK_SLACK_SEC) / clock_base)
        with contextlib.suppress(FFmpegError):  # a file without an index is read from its start
            container.seek(target, stream=clock)
        frames = timed()
        first = next(frames, None)
        if first is not None and first[0] <= start_sec + _ROUNDING_SEC:
            yield first
            yield from frames
            return
        container.seek(start, stream=clock)
    yield from timed()


# Pictures


class _GridSampler:
    """Fills the frames of one FrameGrid in order, from pictures in order."""

    def __init__(self, grid: FrameGrid, start_sec: float, video: av.VideoStream, to_rgb: scaling.ToRgb):
        self._kept = range(grid.count) if grid.kept is None else grid.kept
        self.out = (np.empty if grid.kept is None else np.zeros)((grid.count, grid.px, grid.px, 3), np.uint8)
        self._grid, self._start_sec, self._video, self._to_rgb = grid, start_sec, video, to_rgb
        self._filled = 0
        self._resize = scaling.Resizer()
        self._display_matrix: tuple[np.ndarray | None, ...] = ()  # of the first picture that is used

    @property
    def is_full(self) -> bool:
        return self._filled >= self._kept.stop

    def fill(self, frame: av.VideoFrame, shown_sec: float, until_sec: float) -> None:
        """Uses `frame`, shown from `shown_sec` until the next picture at `until_sec`, for all frames that are its own."""
        self._fill_to(self._grid.decided(shown_sec - self._start_sec, until_sec - self._start_sec), frame)

    def fill_up(self, frame: av.VideoFrame) -> None:
        """Uses `frame` for all remaining frames."""
        self._fill_to(self._grid.count, frame)

    def _fill_to(self, stop: int, frame: av.VideoFrame) -> None:
        first, last = max(self._filled, self._kept.start), min(stop, self._kept.stop)
        if first < last:
            shown, px, squash = _shown_size(frame, self._video), self._grid.px, self._grid.squash
            image = scaling.square(self._to_rgb(frame), shown, px, squash, self._resize)
            # Not of every picture: PyAV keeps one whose side data was read until the next full garbage collection.
            self._display_matrix = self._display_matrix or (_display_matrix(frame),)
            self.out[first:last] = _upright(image, *self._display_matrix)
        self._filled = max(self._filled, stop)


def _shown_size(frame: av.VideoFrame, video: av.VideoStream) -> tuple[int, int]:
    """Width and height with non-square pixels stretched, before rotation."""
    return round(frame.width * (video.sample_aspect_ratio or 1)), frame.height


def _display_matrix(frame: av.VideoFrame) -> np.ndarray | None:
    """The linear part [[a, b], [c, d]] of the display transform: shown x = a x + c y, shown y = b x + d y."""
    side_data = frame.side_data
    data = side_data.get(SideDataType.DISPLAYMATRIX)  # pyright: ignore[reportCallIssue, reportArgumentType] wrong stub
    return None if data is None else np.frombuffer(bytes(data), np.int32).reshape(3, 3)[:2, :2]


def _is_sideways(matrix: np.ndarray | None) -> bool:
    return matrix is not None and abs(int(matrix[0, 1])) > abs(int(matrix[0, 0]))


def _upright(image: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
    """Applies the nearest of the eight quarter turns and reflections to an image (H, W, 3)."""
    if matrix is None:
        return image
    (a, b), (c, d) = matrix
    if _is_sideways(matrix):
        image, a, d = image.swapaxes(0, 1), c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


# Sound


def _mono_blocks(frames: Iterable[tuple[float, av.AudioFrame]], hz: int) -> Iterator[tuple[float, np.ndarray]]:
    """Turns (seconds, decoded frame) into (seconds, float32 mean of the channels at `hz`)."""
    converter, converted_kind = av.AudioResampler(format="fltp", rate=hz), None
    for time, frame in frames:
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if kind != converted_kind:  # AAC may change its format in mid-stream
            converter, converted_kind = av.AudioResampler(format="fltp", rate=hz), kind
        blocks = [planes.to_ndarray().mean(0) for planes in converter.resample(frame)]
        yield time, np.concatenate([np.zeros(0, np.float32), *blocks])


def fit_length(waveform: Float[np.ndarray, " S"], samples: int) -> Float32[np.ndarray, " {samples}"]:
    """Cuts or zero-pads a waveform to `samples` samples. What is only cut is not copied."""
    kept = np.asarray(waveform[:samples], np.float32)
    return kept if len(kept) == samples else np.pad(kept, (0, samples - len(kept)))
