"""Write sound files and videos, and replace a video's sound without touching its pictures.

Second 0 is the moment the first picture is shown, as in `media`. Every function raises UserError, one sentence that names
the file, if the file cannot be written.
"""

from collections.abc import Iterator
import contextlib
from fractions import Fraction
import heapq
import os
import pathlib
import tempfile

import av
from av.container import OutputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.reformatter import Colorspace
from jaxtyping import Float, UInt8
import numpy as np
import soundfile
import soxr

from msg_jax.data import containers, media, stream_copy
from msg_jax.data.files import new_file
from msg_jax.errors import UserError

_LIKE_MOV = (".3gp", ".3g2", ".f4v")  # .mkv holds no H.263
_DEFAULT_AUDIO_CODEC = {".webm": "libopus", ".avi": "pcm_s16le"}  # AVI cannot declare AAC's priming: PCM has none


def write_audio(
    path: str | os.PathLike, waveform: Float[np.ndarray, " S"], hz: int, *, overwrite: bool = False
) -> None:
    """Writes a waveform in [-1, 1] as 16-bit .wav or .flac of exactly S samples, clipping louder samples.

    Raises UserError for another suffix, and for an existing file unless `overwrite`.
    """
    path = pathlib.Path(path)
    if path.suffix.lower() not in (".wav", ".flac"):
        raise UserError(f"{path}: sound is written as .wav or .flac; choose one of these suffixes")
    with (
        new_file(path, overwrite) as unfinished, unfinished.open("wb") as file,
        soundfile.SoundFile(file, "w", hz, 1, format=path.suffix[1:], subtype="PCM_16") as out,
    ):
        for block in _blocks(waveform, hz):
            out.write(np.clip(np.round(block * 32768.0), -32768, 32767).astype(np.int16))


def mux(
    video_path: str | os.PathLike,
    waveform: Float[np.ndarray, " S"],
    hz: int,
    out_path: str | os.PathLike,
    *,
    audio_codec: str | None = None,
    duration_sec: float | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Writes a copy of a video with `waveform`, in [-1, 1] at `hz`, as its only sound.

    Video packets are copied, not re-encoded: bytes, time differences, codec tag, pixel aspect ratio, rotation, colour and
    metadata stay. (H.264 from .avi is the exception: other containers frame its bytes differently.) The first picture moves
    to second 0, where the waveform begins; the waveform is cut or padded with silence to the video's duration. With
    `duration_sec` the copy ends there, pictures and sound (`stream_copy.StreamCopy` says how with B-frames). Subtitles,
    chapters, attachments, covers and data tracks are copied too. Returns a description of each that the container cannot
    hold, and of each further sound track, because these are left out.

    The suffix of `out_path` chooses the container. `audio_codec` is an FFmpeg encoder name ("aac", "flac", "libopus", ...);
    the default is AAC, Opus in .webm and PCM in .avi. AAC and Opus begin with priming samples. MP4's edit list and
    Matroska's codec delay tell decoders to drop them, so the sound stays in place; at the end an AAC decoder may give up to
    one more codec frame (1024 samples) of silence. FLAC and PCM have neither and are exact to the sample. A rate that the
    codec lacks is resampled to its next higher one.

    The file gets its name only when complete. Raises UserError if `out_path` exists (unless `overwrite`) or cannot be
    written, if the container cannot hold the video or `audio_codec`, and if `video_path` cannot be read.
    """
    video_path, out_path = pathlib.Path(video_path), pathlib.Path(out_path)
    suffix = out_path.suffix.lower()
    if suffix not in stream_copy.FORMATS:
        raise UserError(f"{out_path} has no video container's suffix; use one of {', '.join(stream_copy.FORMATS)}")
    audio_codec = audio_codec or _DEFAULT_AUDIO_CODEC.get(suffix, "aac")
    with new_file(out_path, overwrite) as unfinished:
        try:
            return _mux(video_path, waveform, hz, out_path, unfinished, audio_codec, duration_sec, extras=True)
        except _ExtrasError:  # a subtitle that the container takes only in its header
            return _mux(video_path, waveform, hz, out_path, unfinished, audio_codec, duration_sec, extras=False)


def copy_suffix(video_path: str | os.PathLike) -> str:
    """The suffix of a video's copy: its own, or where that container is only read .mov or .mkv."""
    suffix = pathlib.Path(video_path).suffix
    return suffix if suffix.lower() in stream_copy.FORMATS else ".mov" if suffix.lower() in _LIKE_MOV else ".mkv"


def check_mux(video_path: str | os.PathLike, out_path: str | os.PathLike) -> None:
    """Raises UserError, before there is any sound, if `mux` could not copy the video into the container of `out_path`."""
    video_path, out_path = pathlib.Path(video_path), pathlib.Path(out_path)
    with containers.open_media(video_path) as source:
        stream_copy.StreamCopy(source, video_path, out_path)


class _ExtrasError(UserError):
    """The container refuses a packet, which may be one of the other streams."""


def _mux(
    video_path: pathlib.Path, waveform: np.ndarray, hz: int, out_path: pathlib.Path, unfinished: pathlib.Path, audio_codec: str,
    duration_sec: float | None, extras: bool,
) -> list[str]:
    with containers.open_media(video_path) as source:
        copy = stream_copy.StreamCopy(source, video_path, out_path, extras, duration_sec)
        with _writing(out_path, copy.has_extras), copy.open(unfinished) as out:
            audio_packets = _encode_audio(out, audio_codec, waveform, hz, float(copy.duration_sec), out_path)
            copy.add_extras(out)
            for packet in heapq.merge(copy.packets(), audio_packets, key=_decode_time):
                out.mux(packet)
        return copy.left_out


def encode_video(
    frames: UInt8[np.ndarray, "T H W 3"], hz: float, waveform: Float[np.ndarray, " S"] | None = None, audio_hz: int = 0
) -> bytes:
    """Encodes an MP4 that browsers play (H.264 yuv420p and AAC, index first), to embed small scenes in pages.

    `frames` are at `hz`. `waveform` in [-1, 1] is cut or padded to T / hz seconds; None makes a silent video. If the shorter
    side has less than 192 pixels, frames are enlarged by a whole factor with hard pixel edges.
    """
    factor = max(1, 192 // min(frames.shape[1:3]))
    even = [(0, size * factor % 2) for size in frames.shape[1:3]]  # yuv420p needs even sides
    rate = Fraction(hz).limit_denominator(1001)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "clip.mp4"
        with av.open(containers.file_url(path), "w", container_options={"movflags": "faststart"}) as out:
            video = out.add_stream("libx264", rate=rate, options={"crf": "18", "preset": "veryfast"})
            video.pix_fmt = "yuv420p"
            video.height, video.width = (size * factor + pad for size, (_, pad) in zip(frames.shape[1:3], even))
            video.codec_context.colorspace = 1  # BT.709, which browsers assume less reliably than they read
            audio_packets = []
            if waveform is not None:
                audio_packets = _encode_audio(out, "aac", waveform, audio_hz, len(frames) / hz, path)
            for frame in frames:
                large = np.pad(frame.repeat(factor, 0).repeat(factor, 1), (*even, (0, 0)), mode="edge")
                picture = av.VideoFrame.from_ndarray(large, format="rgb24")
                out.mux(video.encode(picture.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)))
            out.mux(video.encode(None))
            out.mux(audio_packets)
        return path.read_bytes()


def write_clip(
    path: pathlib.Path, frames: UInt8[np.ndarray, "T H W 3"], hz: float, waveform: Float[np.ndarray, " S"] | None = None,
    audio_hz: int = 0, overwrite: bool = False,
) -> None:
    """Writes the MP4 of `encode_video`. Raises UserError if the file exists, unless `overwrite`, or if it cannot be written."""
    with new_file(path, overwrite) as unfinished:
        unfinished.write_bytes(encode_video(frames, hz, waveform, audio_hz))


@contextlib.contextmanager
def _writing(path: pathlib.Path, has_extras: bool) -> Iterator[None]:
    try:
        yield
    except (FFmpegError, ValueError) as error:
        if isinstance(error, OSError):  # the disk failed, not the container
            raise UserError(f"{path} cannot be written ({containers.what(error)}); choose another place") from error
        if has_extras:
            raise _ExtrasError from error
        raise UserError(
            f"{path}: a {path.suffix} file cannot take this video as it is ({containers.what(error)}); "
            f"{stream_copy.advice(path.suffix)}"
        ) from error


# Sound


def _encode_audio(
    out: OutputContainer,
    codec_name: str,
    waveform: np.ndarray,
    hz: int,
    duration_sec: float,
    path: pathlib.Path,
) -> list[av.Packet]:
    """Adds an audio stream to `out` and returns its packets: the waveform from time 0, for `duration_sec`."""
    try:
        codec = av.Codec(codec_name, "w")
        if codec.type != "audio" or not codec.audio_formats:
            raise ValueError(f"{codec_name} does not encode audio")
        rates = codec.audio_rates or [hz]
        stream_hz = min((rate for rate in rates if rate >= hz), default=max(rates))
        stream = out.add_stream(codec_name, rate=stream_hz, layout="mono")
    except (ValueError, FFmpegError) as error:
        raise UserError(
            f"{path}: a {path.suffix} file cannot hold {codec_name} sound; omit the audio codec to use the container's default"
        ) from error
    assert isinstance(stream, av.AudioStream)
    stream.disposition = Disposition.default
    if stream_hz != hz:
        waveform = soxr.resample(np.asarray(waveform, np.float32), hz, stream_hz, quality="HQ")
    waveform = media.fit_length(waveform, round(duration_sec * stream_hz))
    stream.time_base = Fraction(1, stream_hz)
    converter = av.AudioResampler(format=codec.audio_formats[0], layout="mono", rate=stream_hz)
    packets, start = [], 0
    for block in _blocks(waveform, stream_hz):
        frame = av.AudioFrame.from_ndarray(np.clip(block[None], -1, 1), format="flt", layout="mono")
        frame.sample_rate, frame.time_base, frame.pts = stream_hz, stream.time_base, start
        for converted in converter.resample(frame):
            packets += stream.encode(converted)
        start += len(block)
    return packets + stream.encode(None)


def _blocks(waveform: Float[np.ndarray, " S"], hz: int) -> Iterator[Float[np.ndarray, " _"]]:
    """Tenths of a second, so that long sounds are not copied whole."""
    size = hz // 10
    return (np.asarray(waveform[start : start + size], np.float32) for start in range(0, len(waveform), size))


def _decode_time(packet: av.Packet) -> Fraction:
    ticks = packet.dts if packet.dts is not None else packet.pts
    return (ticks or 0) * packet.time_base
