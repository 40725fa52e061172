"""Test videos made on the fly: frames carry their number, and the sound begins at a known time."""

from fractions import Fraction
import struct

import av
import numpy as np

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
RECORDED = (  # in ../shared/media
    "bigbuckbunny", "vggsound_-26aVYRtEAc_000030", "vggsound_-BAKe6QGTUk_000030", "vggsound_0DCit2EBtjs_000030",
)
ENCODER = {
    "libx264": {"g": "24", "bf": "3", "preset": "veryfast", "crf": "4", "x264-params": "scenecut=0"},
    "libvpx": {"g": "24", "deadline": "realtime", "cpu-used": "8", "crf": "4", "b:v": "4M"},
    "mpeg4": {"g": "24", "b": "20M", "qmin": "1", "qmax": "1"},
}


def numbered(i, width=WIDTH, height=HEIGHT):
    """A picture that encodes `i` (below 256) in the brightness of its left and right halves."""
    picture = np.empty((height, width, 3), np.uint8)
    picture[:, : width // 2], picture[:, width // 2 :] = 8 + i // 16 * 15, 8 + i % 16 * 15
    return picture


def numbers(frames):
    """Decodes the numbers of `numbered` pictures (T, px, px, 3)."""
    half = frames.shape[2] // 2
    left, right = frames[:, :, : half - 2].mean((1, 2, 3)), frames[:, :, half + 2 :].mean((1, 2, 3))
    return (np.round((left - 8) / 15) * 16 + np.round((right - 8) / 15)).astype(int).tolist()


def beep(hz, onset_sec, duration_sec, channels=1):
    """Silence, then from `onset_sec` on a 1 kHz cosine: (channels, S)."""
    time = np.arange(round(duration_sec * hz)) / hz
    tone = 0.5 * np.cos(2 * np.pi * 1000 * (time - onset_sec)) * (time >= onset_sec - 1e-9)
    return np.tile(tone.astype(np.float32), (channels, 1))


def onset_sec(waveform, hz):
    return np.argmax(np.abs(waveform) > 0.25) / hz


def make_video(
    path, pictures, times_ms, codec="libx264", sound=None, sound_hz=48_000, sound_codec="flac", layout="mono",
    sound_start_ms=0, rotation=None, pixel_aspect=None, pix_fmt="yuv420p",
):  # fmt: skip
    """Writes a video of `pictures` (H, W, 3), shown from `times_ms` on, with `sound` (channels, S)."""
    with av.open(str(path), "w") as out:
        ticks_hz = 25 if path.suffix in (".avi", ".mpg", ".mxf") else 1000  # AVI and MPEG-2 count pictures
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


# Files as other programs write them


def remux(source, path, change=lambda i, packet: packet, options=None, prepare=lambda stream: None):
    """Copies the pictures of a video, each packet through `change`; `prepare` may set what the container holds."""
    with av.open(str(source)) as container, av.open(str(path), "w", container_options=options or {}) as out:
        stream = out.add_stream_from_template(container.streams.video[0], opaque=True)
        prepare(stream)
        for i, packet in enumerate(packet for packet in container.demux(video=0) if packet.size):
            fields = {name: getattr(packet, name) for name in ("time_base", "pts", "dts", "duration", "is_keyframe")}
            packet = change(i, packet)
            if not isinstance(packet, av.Packet):  # other bytes
                packet = av.Packet(packet)
                for name, value in fields.items():
                    setattr(packet, name, value)
            packet.stream = stream
            out.mux(packet)
    return path


def lasting(packet, ms):
    """The packet, with another duration."""
    packet.duration = round(ms / 1000 / packet.time_base)
    return packet


_CHILDREN = {b"stsd": 8, b"avc1": 78, b"hvc1": 78}  # where the boxes in a box begin, if not at 0


def edit_box(data, names, edit):
    """The bytes of an MP4 file whose index is last, with the content of the first box at this path of names through `edit`."""
    at = 0
    while at < len(data):
        size, name = struct.unpack(">I4s", data[at : at + 8])
        if name == names[0]:
            content = data[at + 8 : at + size]
            if names[1:]:
                first = _CHILDREN.get(name, 0)
                content = content[:first] + edit_box(content[first:], names[1:], edit)
            else:
                content = edit(content)
            return data[:at] + struct.pack(">I4s", len(content) + 8, name) + content + data[at + size :]
        at += size
    raise ValueError(f"no box {names[0]}")


def show_parts(source, path, *parts_ms):
    """Writes the MP4 with an edit list that shows only these (begin, end) of its pictures."""
    def edits(content):
        _, media_time = struct.unpack(">Ii", content[8:16])
        rows = [struct.pack(">Iii", end - begin, media_time + begin * ticks_hz // 1000, 1 << 16) for begin, end in parts_ms]
        return struct.pack(">II", 0, len(rows)) + b"".join(rows)

    with av.open(str(source)) as container:
        ticks_hz = container.streams.video[0].time_base.denominator
    path.write_bytes(edit_box(source.read_bytes(), [b"moov", b"trak", b"edts", b"elst"], edits))
    return path


def add_sample_box(source, path, entry, name, content):
    """Writes the MP4 with one more box in the description `entry` of its pictures."""
    box = struct.pack(">I4s", len(content) + 8, name) + content
    names = [b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", entry]
    path.write_bytes(edit_box(source.read_bytes(), names, lambda old: old + box))
    return path


def exif(orientation):
    """A JPEG's segment of EXIF data with one entry, the orientation."""
    body = b"Exif\0\0" + b"MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 0x112, 3, 1, orientation, 0, 0)
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
