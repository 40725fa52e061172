"""Video and sound files: decode by timestamp, encode, and replace a video's sound without touching its pictures.

Second 0 is always the moment at which the first picture is shown, whatever the container's own clock says; sound is
placed on the same clock. (AVI counts from the start of decoding: with B-frames its first picture comes a frame later,
for players as for us.) Containers round timestamps (Matroska to milliseconds), so times within half a millisecond are
equal. Every function raises UserError, one sentence that names the file, for a file that is not what it should be.
"""

from collections.abc import Iterable, Iterator, Sequence
import contextlib
import dataclasses
from fractions import Fraction
import heapq
import math
import os
import pathlib
import re
import tempfile

import av
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import Colorspace, Interpolation
import numpy as np
import soundfile
import soxr

from msg_jax.errors import UserError

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
SOUND_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac")

_ROUNDING_SEC = 0.0005 + 1e-9
_SEEK_SLACK_SEC = 1.0  # containers index by decode time, which B-frames move; audio decoders need packets to settle
_GAP_SEC = 0.002  # a smaller jump between audio timestamps is rounding: closing it avoids clicks
_TRUNCATED_SEC = 0.25  # pictures missing at the declared end, beyond which a file counts as cut short
_DEFAULT_AUDIO_CODEC = {".webm": "libopus", ".avi": "pcm_s16le"}  # AVI cannot declare AAC's priming: PCM has none


@dataclasses.dataclass(frozen=True)
class FrameGrid:
    """`count` frames at `hz`, `px` x `px`: one stream that an encoder wants from a video.

    Pictures are cropped, or with `squash` made square as a whole.
    """

    hz: float
    px: int
    count: int
    squash: bool = False


@dataclasses.dataclass(frozen=True)
class MediaInfo:
    """What a video file holds: pixels are counted as shown (rotated, non-square pixels stretched)."""

    duration_sec: float  # from the first picture's appearance to the last one's end
    start_sec: float  # the first picture's time on the container's clock
    video_hz: float  # mean over the file
    width: int
    height: int
    has_audio: bool


def probe(path: str | os.PathLike) -> MediaInfo:
    """Reads all video packets and decodes the first picture; the header's own claims are not trusted.

    Raises UserError if the file is missing, empty, no video, or without a picture that can be decoded.
    """
    with _open(path) as container:
        video, audio = _video_stream(container, path), _audio_stream(container)
        first, shown = None, []
        with _reading(path):
            for packet in container.demux(video):
                if first is None:
                    first = next(iter(packet.decode()), None)
                ticks = packet.pts if packet.pts is not None else packet.dts
                if ticks is not None and not packet.is_discard:
                    shown.append((ticks, packet.duration or 0))
        if first is None or not shown:
            raise UserError(f"{path} has no picture that can be decoded; replace the file or leave it out")
        width, height = _shown_size(first, video)
        if _is_sideways(_display_matrix(first)):
            width, height = height, width
        (start, _), (end, last_ticks) = min(shown), max(shown)
        # MP4 stores durations in order of decoding: with B-frames they are not those of the shown pictures.
        if last_ticks and (shown[-1][0] == end or "mp4" not in container.format.name):
            end += last_ticks
        else:
            end += Fraction(end - start, len(shown) - 1) if len(shown) > 1 else _frame_ticks(video)
        duration_sec = float((end - start) * video.time_base)
        return MediaInfo(
            duration_sec=duration_sec,
            start_sec=float(start * video.time_base),
            video_hz=len(shown) / duration_sec,
            width=width,
            height=height,
            has_audio=audio is not None,
        )


def is_sound(path: str | os.PathLike) -> bool:
    """Whether the file's suffix is that of sound without pictures."""
    return pathlib.Path(path).suffix.lower() in SOUND_SUFFIXES


def declared_sec(path: str | os.PathLike) -> float:
    """The length in seconds that the file's header claims, 0 if it does not; nothing is decoded."""
    with _open(path) as container:
        return (container.duration or 0) / av.time_base


def read_video(path: str | os.PathLike, streams: Sequence[FrameGrid], start_sec: float = 0.0) -> list[np.ndarray]:
    """Samples a video at fixed rates from `start_sec` on, in one decoding pass for all `streams`.

    Returns, for each FrameGrid, uint8 (count, px, px, 3) RGB: frame i is the picture on screen at `start_sec + i / hz`,
    that is, the last one whose timestamp is not later. After the video's end its last picture stays. Pictures are
    turned upright by the display matrix, resized (antialiased bicubic) so that the shorter side has `px` pixels, and
    cropped at the centre; for a grid that squashes, both sides are resized to `px` pixels.

    A damaged file is used as far as it goes: if decoding breaks, or the pictures end well before the declared duration,
    then windows before that point are returned as usual and windows that need more raise UserError. So do a file that
    cannot be opened and a `start_sec` at which the video is already over.
    """
    with _open(path) as container:
        video = _video_stream(container, path)
        video.thread_type = "AUTO"
        frames = _decode_from(container, video, video, start_sec)
        samplers = [_GridSampler(grid, start_sec, video) for grid in streams]
        shown, failure = None, None
        try:
            for time, frame in frames:
                if shown is not None:
                    for sampler in samplers:
                        sampler.fill(shown, until_sec=time)
                if all(sampler.is_full for sampler in samplers):
                    break
                shown, shown_sec = frame, time
        except av.FFmpegError as error:
            failure = error.strerror
        if shown is None:
            raise UserError(f"{path} has no picture that can be decoded; replace the file or leave it out")
        if not all(sampler.is_full for sampler in samplers):
            shown_until = shown_sec + float((shown.duration or _frame_ticks(video)) * video.time_base)
            declared = _declared_sec(video)
            if failure or declared - shown_until > _TRUNCATED_SEC:
                reason = failure or f"{declared:.2f} s declared"
                raise UserError(
                    f"{path} breaks off at {shown_until:.2f} s ({reason}), before the window from {start_sec:.2f} s is "
                    "full; replace the file or use an earlier window"
                )
            if start_sec >= shown_until:
                raise UserError(f"{path} ends at {shown_until:.2f} s: no window can start at {start_sec:.2f} s")
            for sampler in samplers:
                sampler.fill(shown, until_sec=math.inf)
        return [sampler.out for sampler in samplers]


def read_audio(path: str | os.PathLike, start_sec: float, samples: int, hz: int) -> np.ndarray:
    """The first audio stream from `start_sec` on (second 0 is the first picture) as float32 (samples,) in [-1, 1].

    In a file of sound alone (`SOUND_SUFFIXES`) second 0 is where the sound begins.
    Placed by timestamp, so that a stream that begins late or has a hole is silent there; zeros follow its end. Mono is
    the plain mean of all channels, also of 5.1: it cannot clip. Rates are converted by soxr HQ.

    Raises UserError if there is no audio stream or it breaks before the window is full.
    """
    with _open(path) as container:
        audio = _audio_stream(container)
        clock = audio if is_sound(path) else _video_stream(container, path)
        if audio is None:
            raise UserError(f"{path} has no audio stream; give a video with sound")
        native_hz = audio.codec_context.sample_rate
        # Margins for the resampling filter, whole at both rates so that output sample 0 falls on start_sec.
        divisor = math.gcd(native_hz, hz)
        units = math.ceil(0.05 * divisor)
        margin, native_margin = units * hz // divisor, units * native_hz // divisor
        first = round(start_sec * native_hz) - native_margin
        native = np.zeros(math.ceil(samples * native_hz / hz) + 2 * native_margin, np.float32)

        cursor = None
        with _reading(path):
            for time, block in _mono_blocks(_decode_from(container, audio, clock, first / native_hz), native_hz):
                position = round(time * native_hz) - first
                if cursor is None or abs(position - cursor) > _GAP_SEC * native_hz:
                    cursor = position
                if cursor >= len(native):
                    break
                kept = block[max(-cursor, 0) : len(native) - cursor]
                native[max(cursor, 0) : max(cursor, 0) + len(kept)] = kept
                cursor += len(block)
    if cursor is None and is_sound(path) and start_sec <= 0:
        raise UserError(f"{path} holds no sound that can be decoded; replace the file or leave it out")
    if native_hz != hz:
        native = soxr.resample(native, native_hz, hz, quality="HQ")
    return _fit(np.clip(native[margin:], -1, 1), samples)


def write_audio(path: str | os.PathLike, waveform: np.ndarray, hz: int, *, overwrite: bool = False) -> None:
    """Writes float (S,) in [-1, 1] as 16-bit .wav or .flac of exactly S samples; louder samples are clipped.

    Raises UserError for another suffix, and for an existing file unless `overwrite`.
    """
    path = pathlib.Path(path)
    if path.suffix.lower() not in (".wav", ".flac"):
        raise UserError(f"{path}: sound is written as .wav or .flac; choose one of these suffixes")
    pcm16 = np.clip(np.round(np.asarray(waveform) * 32768.0), -32768, 32767).astype(np.int16)
    with _new_file(path, overwrite) as unfinished, unfinished.open("wb") as file:
        soundfile.write(file, pcm16, hz, format=path.suffix[1:], subtype="PCM_16")


def mux(
    video_path: str | os.PathLike,
    waveform: np.ndarray,
    hz: int,
    out_path: str | os.PathLike,
    *,
    audio_codec: str | None = None,
    overwrite: bool = False,
) -> None:
    """Writes the pictures of `video_path` with `waveform` (float (S,) in [-1, 1] at `hz`) as their only sound.

    Video packets are copied, not re-encoded: the same bytes (but for H.264 from .avi, which other containers frame
    differently), the same distances in time, rotation and metadata. The first picture moves to second 0, and the
    waveform begins there; it is cut or padded with silence to the video's length.

    The suffix of `out_path` chooses the container. `audio_codec` is an FFmpeg encoder name ("aac", "flac", "libopus",
    ...); by default AAC, Opus in .webm and PCM in .avi. AAC and Opus begin with priming samples: MP4's edit list and
    Matroska's codec delay tell decoders to drop them, so sound stays in place; at the end an AAC decoder may give up to
    one codec frame (1024 samples) of silence more. FLAC and PCM have neither and are exact to the sample. A rate that
    the codec lacks is resampled to the next higher one it has.

    The file appears under its name only when complete. Raises UserError if `out_path` exists (unless `overwrite`), if
    the container cannot hold the video or `audio_codec`, and if `video_path` cannot be read.
    """
    out_path = pathlib.Path(out_path)
    suffix = out_path.suffix.lower()
    if suffix not in VIDEO_SUFFIXES:
        raise UserError(f"{out_path} has no video container's suffix; use one of {', '.join(VIDEO_SUFFIXES)}")
    audio_codec = audio_codec or _DEFAULT_AUDIO_CODEC.get(suffix, "aac")
    duration_sec = probe(video_path).duration_sec
    with _open(video_path) as source, _new_file(out_path, overwrite) as unfinished:
        source_video = _video_stream(source, video_path)
        with _writing(out_path), av.open(_url(unfinished), "w", metadata_errors="surrogateescape") as out:
            out.metadata.update(source.metadata)
            video = _add_copied_stream(out, source_video, out_path)
            audio_packets = _encode_audio(out, audio_codec, waveform, hz, duration_sec, out_path)
            video_packets = _packets_from_zero(source, source_video, video)
            for packet in heapq.merge(video_packets, audio_packets, key=_decode_time):
                out.mux(packet)


def encode_video(frames: np.ndarray, hz: float, waveform: np.ndarray, audio_hz: int) -> bytes:
    """An MP4 (H.264 yuv420p and AAC, index first) that browsers play, for pages that embed small scenes.

    `frames` uint8 (T, H, W, 3) at `hz`; `waveform` float (S,) in [-1, 1], cut or padded to T / hz seconds. Pictures
    whose shorter side has less than 192 pixels are enlarged by a whole factor with hard pixel edges.
    """
    factor = max(1, 192 // min(frames.shape[1:3]))
    even = [(0, size * factor % 2) for size in frames.shape[1:3]]  # yuv420p halves both sides
    rate = Fraction(hz).limit_denominator(1001)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "clip.mp4"
        with av.open(_url(path), "w", container_options={"movflags": "faststart"}) as out:
            video = out.add_stream("libx264", rate=rate, options={"crf": "18", "preset": "veryfast"})
            video.pix_fmt = "yuv420p"
            video.height, video.width = (size * factor + pad for size, (_, pad) in zip(frames.shape[1:3], even))
            video.codec_context.colorspace = 1  # BT.709, which browsers assume less reliably than they read
            audio_packets = _encode_audio(out, "aac", waveform, audio_hz, len(frames) / hz, path)
            for frame in frames:
                large = np.pad(frame.repeat(factor, 0).repeat(factor, 1), (*even, (0, 0)), mode="edge")
                picture = av.VideoFrame.from_ndarray(large, format="rgb24")
                out.mux(video.encode(picture.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)))
            out.mux(video.encode(None))
            out.mux(audio_packets)
        return path.read_bytes()


# Opening and closing


def _url(path: str | os.PathLike) -> str:
    return f"file:{os.fspath(path)}"  # else FFmpeg takes a name with a colon for a protocol


@contextlib.contextmanager
def _open(path: str | os.PathLike) -> Iterator[av.container.InputContainer]:
    path, kind = pathlib.Path(path), "sound" if is_sound(path) else "video"
    if not path.is_file():
        raise UserError(f"{path} {f'is a folder, not a {kind}' if path.is_dir() else 'does not exist'}; check the path")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty (0 bytes); replace the file or leave it out")
    try:
        container = av.open(_url(path), metadata_errors="surrogateescape")
    except av.FFmpegError as error:
        raise UserError(
            f"{path} cannot be opened as a {kind} ({error.strerror}): it is cut short or not a {kind} at all; "
            "replace the file or leave it out"
        ) from error
    with container:
        yield container


@contextlib.contextmanager
def _reading(path: str | os.PathLike) -> Iterator[None]:
    try:
        yield
    except av.FFmpegError as error:
        raise UserError(f"{path} is damaged ({error.strerror}); replace the file or leave it out") from error


@contextlib.contextmanager
def _writing(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except av.FFmpegError as error:
        if isinstance(error, OSError):  # the disk's fault, not the container's
            raise
        raise UserError(
            f"{path}: a {path.suffix} file cannot take this video as it is ({error.strerror}); use the suffix .mkv"
        ) from error


@contextlib.contextmanager
def _new_file(path: pathlib.Path, overwrite: bool) -> Iterator[pathlib.Path]:
    """Gives a temporary name beside `path`, renamed to it on success and removed on any exception."""
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists already; pass --overwrite to replace it, or choose another name")
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}.unfinished{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield unfinished
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); choose another place for it") from error


# Streams and their clocks


def _video_stream(container: av.container.InputContainer, path: str | os.PathLike) -> av.VideoStream:
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            if stream.codec_context is None:
                raise UserError(f"{path}: its video codec is not supported; convert it to H.264 first")
            return stream
    raise UserError(f"{path} has no video stream; give a file with pictures")


def _audio_stream(container: av.container.InputContainer) -> av.AudioStream | None:
    return next((stream for stream in container.streams.audio if stream.codec_context is not None), None)


def _start_ticks(stream: av.stream.Stream) -> int:
    return stream.start_time or 0


def _declared_sec(video: av.VideoStream) -> float:
    """The length that the header claims, 0 if it does not; in Matroska it is a tag, counted from the container's 0."""
    if video.duration:
        return float(video.duration * video.time_base)
    tag = re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", video.metadata.get("DURATION", ""))
    if tag is None:
        return 0.0
    hours, minutes, seconds = map(float, tag.groups())
    return 3600 * hours + 60 * minutes + seconds - float(_start_ticks(video) * video.time_base)


def _frame_ticks(video: av.VideoStream) -> Fraction:
    """One mean frame interval in units of the stream's time base, for containers that do not say."""
    return 1 / ((video.average_rate or video.guessed_rate or 25) * video.time_base)


def _decode_from(container, stream, clock: av.stream.Stream, start_sec: float) -> Iterator[tuple[float, av.frame.Frame]]:
    """Yields (seconds since `clock` begins, frame) of `stream`, from `start_sec` or a little earlier on."""
    start = _start_ticks(clock)

    def timed():
        for frame in container.decode(stream):
            ticks = frame.pts if frame.pts is not None else frame.dts
            if ticks is not None:
                yield float(ticks * stream.time_base - start * clock.time_base), frame

    if start_sec > _SEEK_SLACK_SEC:
        # By the video stream, also for sound: it is the one that every container indexes.
        target = start + math.floor(Fraction(start_sec - _SEEK_SLACK_SEC) / clock.time_base)
        with contextlib.suppress(av.FFmpegError):  # a file without an index is read from its start
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
    """Fills the frames of one FrameGrid, in order, from pictures that arrive in order."""

    def __init__(self, grid: FrameGrid, start_sec: float, video: av.VideoStream):
        self.out = np.empty((grid.count, grid.px, grid.px, 3), np.uint8)
        self._grid, self._start_sec, self._video = grid, start_sec, video
        self._filled = 0
        self._reformatter = av.video.reformatter.VideoReformatter()

    @property
    def is_full(self) -> bool:
        return self._filled == self._grid.count

    def fill(self, frame: av.VideoFrame, until_sec: float) -> None:
        """Uses `frame` for all grid times before `until_sec`, when the next picture appears."""
        before = (until_sec - _ROUNDING_SEC - self._start_sec) * self._grid.hz
        stop = min(self._grid.count, math.ceil(before)) if math.isfinite(before) else self._grid.count
        if stop > self._filled:
            self.out[self._filled : stop] = self._square(frame)
            self._filled = stop

    def _square(self, frame: av.VideoFrame) -> np.ndarray:
        px = self._grid.px
        width, height = _shown_size(frame, self._video)
        scale = px / min(width, height)
        shape = (px, px) if self._grid.squash else (max(px, round(width * scale)), max(px, round(height * scale)))
        resized = self._reformatter.reformat(
            frame,
            width=shape[0],
            height=shape[1],
            format="gbrp",  # planes: the same bits as packed rgb24, from twice as fast code of the scaler
            interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT,
        ).to_ndarray()
        top, left = (resized.shape[0] - px) // 2, (resized.shape[1] - px) // 2
        return _upright(resized[top : top + px, left : left + px], _display_matrix(frame))


def _shown_size(frame: av.VideoFrame, video: av.VideoStream) -> tuple[int, int]:
    """Width and height with non-square pixels stretched, before any rotation."""
    return round(frame.width * (video.sample_aspect_ratio or 1)), frame.height


def _display_matrix(frame: av.VideoFrame) -> np.ndarray | None:
    """The linear part [[a, b], [c, d]] of the display transform: shown x = a x + c y, shown y = b x + d y."""
    data = frame.side_data.get(SideDataType.DISPLAYMATRIX)
    return None if data is None else np.frombuffer(bytes(data), np.int32).reshape(3, 3)[:2, :2]


def _is_sideways(matrix: np.ndarray | None) -> bool:
    return matrix is not None and abs(int(matrix[0, 1])) > abs(int(matrix[0, 0]))


def _upright(image: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
    """Applies the nearest of the eight quarter turns and reflections to (H, W, 3)."""
    if matrix is None:
        return image
    (a, b), (c, d) = matrix
    if _is_sideways(matrix):
        image, a, d = image.swapaxes(0, 1), c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


# Sound


def _mono_blocks(frames: Iterable[tuple[float, av.AudioFrame]], hz: int) -> Iterator[tuple[float, np.ndarray]]:
    """Turns (seconds, decoded frame) into (seconds, float32 mean of the channels at `hz`)."""
    converter, converted_kind = None, None
    for time, frame in frames:
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if kind != converted_kind:  # AAC may change its mind in mid-stream
            converter, converted_kind = av.AudioResampler(format="fltp", rate=hz), kind
        blocks = [planes.to_ndarray().mean(0) for planes in converter.resample(frame)]
        yield time, np.concatenate([np.zeros(0, np.float32), *blocks])


def _fit(waveform: np.ndarray, samples: int) -> np.ndarray:
    """Cuts or zero-pads (S,) to (samples,)."""
    return np.pad(waveform[:samples], (0, max(0, samples - len(waveform)))).astype(np.float32)


def _encode_audio(
    out: av.container.OutputContainer,
    codec_name: str,
    waveform: np.ndarray,
    hz: int,
    duration_sec: float,
    path: pathlib.Path,
) -> list[av.Packet]:
    """Adds an audio stream to `out` and returns its packets: `duration_sec` of the waveform from time 0."""
    try:
        codec = av.Codec(codec_name, "w")
        rates = codec.audio_rates or [hz]
        stream_hz = min((rate for rate in rates if rate >= hz), default=max(rates))
        stream = out.add_stream(codec_name, rate=stream_hz, layout="mono")
    except (ValueError, av.FFmpegError) as error:
        raise UserError(
            f"{path}: a {path.suffix} file cannot hold {codec_name} sound; leave the audio codec out for one that fits"
        ) from error
    if stream_hz != hz:
        waveform = soxr.resample(np.asarray(waveform, np.float32), hz, stream_hz, quality="HQ")
    waveform = np.clip(_fit(waveform, round(duration_sec * stream_hz)), -1, 1)
    stream.time_base = Fraction(1, stream_hz)
    converter = av.AudioResampler(format=codec.audio_formats[0], layout="mono", rate=stream_hz)
    block = stream_hz // 10
    packets = []
    for start in range(0, len(waveform), block):
        frame = av.AudioFrame.from_ndarray(waveform[None, start : start + block], format="flt", layout="mono")
        frame.sample_rate, frame.time_base, frame.pts = stream_hz, stream.time_base, start
        for converted in converter.resample(frame):
            packets += stream.encode(converted)
    return packets + stream.encode(None)


# Copying pictures


def _add_copied_stream(out, source_video: av.VideoStream, path: pathlib.Path) -> av.VideoStream:
    try:
        video = out.add_stream_from_template(source_video, opaque=True)
    except ValueError as error:
        codec = source_video.codec_context.name
        raise UserError(f"{path}: a {path.suffix} file cannot hold {codec} video; use the suffix .mkv") from error
    if path.suffix.lower() == ".avi":  # AVI numbers its frames: one tick must be one frame
        video.time_base = 1 / source_video.average_rate
    video.metadata.update({key: value for key, value in source_video.metadata.items() if key != "DURATION"})
    return video


def _packets_from_zero(source, source_video: av.VideoStream, video: av.VideoStream) -> Iterator[av.Packet]:
    start = _start_ticks(source_video)
    for packet in source.demux(source_video):
        if packet.size == 0:  # demux ends with an empty packet that only means: flush the decoder
            continue
        packet.stream = video
        packet.pts = None if packet.pts is None else packet.pts - start
        packet.dts = None if packet.dts is None else packet.dts - start
        yield packet


def _decode_time(packet: av.Packet) -> Fraction:
    ticks = packet.dts if packet.dts is not None else packet.pts
    return (ticks or 0) * packet.time_base
