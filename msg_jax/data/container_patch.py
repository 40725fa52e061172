"""Set what PyAV cannot set in a finished video file.

That is the pixel aspect ratio in Matroska; in MP4 the length that an edit list shows, and boxes that describe the pictures.
"""

from collections.abc import Iterator
from fractions import Fraction
import math
import os
import pathlib
from typing import BinaryIO
import zlib

# Matroska: the identifiers of elements
_SEGMENT, _SEEK_HEAD, _SEEK, _SEEK_POSITION = 0x18538067, 0x114D9B74, 0x4DBB, 0x53AC
_TRACKS, _TRACK, _TRACK_TYPE, _VIDEO, _CLUSTER = 0x1654AE6B, 0xAE, 0x83, 0xE0, 0x1F43B675
_DISPLAY_WIDTH, _DISPLAY_HEIGHT, _DISPLAY_UNIT = 0x54B0, 0x54BA, 0x54B2
_CRC, _VOID = 0xBF, 0xEC


def set_pixel_aspect(path: pathlib.Path, width: int, height: int, aspect: Fraction) -> None:
    """Sets the pixel aspect ratio of the video track of a Matroska or WebM file that FFmpeg wrote without one.

    Raises ValueError if the file is laid out differently.
    """
    with path.open("r+b") as file:
        _set_aspect(file, *display_size(width, height, aspect))


def display_size(width: int, height: int, aspect: Fraction) -> tuple[int, int]:
    """The smallest size with exactly this shape that is not below (width, height); a rounded one if that is too large."""
    shape = Fraction(width, height) * aspect
    scale = max(math.ceil(Fraction(width, shape.numerator)), math.ceil(Fraction(height, shape.denominator)))
    exact = shape.numerator * scale, shape.denominator * scale
    return exact if exact[0] <= 4 * width and exact[1] <= 4 * height else (round(width * aspect), height)


# Matroska


def _number(data: bytes, at: int, keep_marker: bool) -> tuple[int, int]:
    """(a variable-length number, where it ends); identifiers keep the marker of their length."""
    length = 9 - data[at].bit_length()
    value = int.from_bytes(data[at : at + length], "big")
    return value if keep_marker else value & ((1 << 7 * length) - 1), at + length


def _elements(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(identifier, start, start of the content, end) of each element."""
    while at < end:
        name, size_at = _number(data, at, keep_marker=True)
        size, content = _number(data, size_at, keep_marker=False)
        yield name, at, content, content + size
        at = content + size


def _element(name: int, content: bytes) -> bytes:
    size = next(n for n in range(1, 9) if len(content) < (1 << 7 * n) - 1)
    return _bytes(name) + (len(content) | 1 << 7 * size).to_bytes(size, "big") + content


def _bytes(number: int) -> bytes:
    return number.to_bytes(max(1, (number.bit_length() + 7) // 8), "big")


def _master(name: int, children: list[tuple[int, bytes]]) -> bytes:
    """An element of elements, with a new checksum in place of an old one."""
    content = b"".join(_element(child, data) for child, data in children if child != _CRC)
    if any(child == _CRC for child, _ in children):
        content = _element(_CRC, zlib.crc32(content).to_bytes(4, "little")) + content
    return _element(name, content)


def _children(data: bytes) -> list[tuple[int, bytes]]:
    return [(name, data[content:end]) for name, _, content, end in _elements(data, 0, len(data))]


def _set_aspect(file: BinaryIO, width: int, height: int) -> None:
    """Enlarges the element Tracks towards the front, into the void that FFmpeg leaves after its table of positions."""
    segment, parts = _parts(file)
    if not {_SEEK_HEAD, _VOID, _TRACKS} <= parts.keys() or parts[_VOID][0] != parts[_SEEK_HEAD][2]:
        raise ValueError("no void after the table of positions")
    (seek_at, seek_content, seek_end), (_, _, void_end) = parts[_SEEK_HEAD], parts[_VOID]
    tracks_at, tracks_content, tracks_end = parts[_TRACKS]
    file.seek(0)
    head = file.read(tracks_end)

    tracks = _children(head[tracks_content:tracks_end])
    for i, (name, data) in enumerate(tracks):
        track = _children(data) if name == _TRACK else []
        if (_TRACK_TYPE, b"\1") in track:
            place = next(i for i, (name, _) in enumerate(track) if name == _VIDEO)
            video = [(name, data) for name, data in _children(track[place][1]) if name != _DISPLAY_UNIT]
            video += [(_DISPLAY_WIDTH, _bytes(width)), (_DISPLAY_HEIGHT, _bytes(height))]
            track[place] = _VIDEO, b"".join(_element(*child) for child in video)
            tracks[i] = _TRACK, b"".join(_element(*child) for child in track)
            break
    new_tracks = _master(_TRACKS, tracks)
    growth = len(new_tracks) - (tracks_end - tracks_at)

    def moved(position: bytes) -> bytes:
        place = int.from_bytes(position, "big")
        return _bytes(place - growth if void_end <= place + segment <= tracks_at else place)

    seeks = [
        (name, b"".join(_element(key, moved(value) if key == _SEEK_POSITION else value) for key, value in _children(data)))
        if name == _SEEK else (name, data) for name, data in _children(head[seek_content:seek_end])
    ]
    new_seek = _master(_SEEK_HEAD, seeks)
    room = void_end - growth - seek_at - len(new_seek)
    if room < 9:
        raise ValueError("the void after the table of positions is full")
    void = _bytes(_VOID) + (room - 9 | 1 << 56).to_bytes(8, "big") + bytes(room - 9)
    file.seek(seek_at)
    file.write(new_seek + void + head[void_end:tracks_at] + new_tracks)


def _parts(file: BinaryIO) -> tuple[int, dict[int, tuple[int, int, int]]]:
    """Where the segment begins, and the first of each element in it: (start, start of the content, end), up to a cluster."""
    at, end, segment, parts = 0, file.seek(0, os.SEEK_END), 0, {}
    while at < end:
        file.seek(at)
        head = file.read(12)
        name, size_at = _number(head, 0, keep_marker=True)
        size, content = _number(head, size_at, keep_marker=False)
        if name == _CLUSTER:
            break
        if name == _SEGMENT:
            segment = at = at + content
            continue
        parts.setdefault(name, (at, at + content, at + content + size))
        at += content + size
    return segment, parts


# MP4 and MOV

_TO_SAMPLES = (b"mdia", b"minf", b"stbl", b"stsd")
_VISUAL_BYTES = 8 + 78  # of a description of pictures, before the boxes in it
_DESCRIBING = {  # the boxes that describe pictures, by what they are about
    b"dvcC": "Dolby Vision", b"dvvC": "Dolby Vision", b"dvwC": "Dolby Vision", b"hvcE": "enhancement layer",
    b"vexu": "stereo", b"st3d": "stereo", b"hfov": "field of view", b"sv3d": "sphere",
    b"mdcv": "mastering display", b"clli": "light level", b"amve": "ambient light",
}


def set_shown_duration(path: pathlib.Path, seconds: Fraction) -> None:
    """Sets how much of the first track of an MP4 or MOV file its edit list shows. Raises ValueError if it has none."""
    with path.open("r+b") as file:
        movie = _box(file, _whole(file), b"moov")
        edits, _ = _box(file, _box(file, _box(file, movie, b"trak"), b"edts"), b"elst")
        header, _ = _box(file, movie, b"mvhd")
        timescale = _integer(file, header + (20 if _integer(file, header, 1) else 12), 4)
        number = 8 if _integer(file, edits, 1) else 4
        last = _integer(file, edits + 4, 4) - 1
        file.seek(edits + 8 + last * (2 * number + 4))
        file.write(round(seconds * timescale).to_bytes(number, "big"))


def copy_descriptions(source: pathlib.Path, track_id: int, path: pathlib.Path) -> None:
    """Copies what describes the pictures of a track, and FFmpeg drops, to the first track of an MP4 or MOV file.

    These are the boxes of Dolby Vision, of stereo and spherical pictures, and of HDR. Raises ValueError if the source has any
    that the file lacks, and its index is not its end, where it can grow.
    """
    with source.open("rb") as file, path.open("r+b") as out:
        try:
            theirs = _descriptions(file, _track(file, track_id))[1]
        except ValueError:
            return
        movie = _box(out, _whole(out), b"moov")
        track = _box(out, movie, b"trak")
        place, ours = _descriptions(out, track)
        missing = b"".join(box for about, box in theirs.items() if about not in ours)
        if not missing:
            return
        if movie[1] != _whole(out)[1]:
            raise ValueError("the index is not the file's end")
        parents, part = [movie, track], track
        for name in _TO_SAMPLES:
            part = _box(out, part, name)
            parents.append(part)
        starts = [start - 8 for start, _ in parents] + [part[0] + 8]  # the entry is the first in the last box
        for start in starts:
            size = _integer(out, start, 4) + len(missing)
            out.seek(start)
            out.write(size.to_bytes(4, "big"))
        out.seek(place)
        rest = out.read()
        out.seek(place)
        out.write(missing + rest)


Range = tuple[int, int]  # where the content of a box begins and ends


def _whole(file: BinaryIO) -> Range:
    return 0, file.seek(0, os.SEEK_END)


def _integer(file: BinaryIO, at: int, size: int) -> int:
    file.seek(at)
    return int.from_bytes(file.read(size), "big")


def _boxes(file: BinaryIO, within: Range) -> Iterator[tuple[bytes, Range]]:
    """(name, content) of each box."""
    at, end = within
    while at + 8 <= end:
        size, content = _integer(file, at, 4), at + 8
        name = file.read(4)
        if size == 1:
            size, content = _integer(file, at + 8, 8), at + 16
        size = size or end - at
        if size < 8:  # QuickTime ends a list of boxes with zeros
            return
        yield name, (content, at + size)
        at += size


def _box(file: BinaryIO, within: Range, wanted: bytes) -> Range:
    """The content of the first box `wanted`. Raises ValueError if there is none."""
    for name, content in _boxes(file, within):
        if name == wanted:
            return content
    raise ValueError(f"no box {wanted.decode()}")


def _track(file: BinaryIO, track_id: int) -> Range:
    for name, content in _boxes(file, _box(file, _whole(file), b"moov")):
        if name == b"trak":
            header, _ = _box(file, content, b"tkhd")
            if _integer(file, header + (20 if _integer(file, header, 1) else 12), 4) == track_id:
                return content
    raise ValueError(f"no track {track_id}")


def _descriptions(file: BinaryIO, track: Range) -> tuple[int, dict[str, bytes]]:
    """The end of the boxes in the first description of a track's pictures, and the describing ones by what they are about."""
    for name in _TO_SAMPLES:
        track = _box(file, track, name)
    entry = track[0] + 8
    last, found = entry + _VISUAL_BYTES, {}
    for name, (content, end) in _boxes(file, (last, entry + _integer(file, entry, 4))):
        last = end
        if name in _DESCRIBING:
            file.seek(content - 8)
            found[_DESCRIBING[name]] = file.read(end - content + 8)
    return last, found
