"""The length that the header of a sound file declares, where FFmpeg hides or guesses it."""

import os
import struct


def missing_wav_sec(path: str | os.PathLike) -> float:
    """How many seconds of its samples a RIFF or RF64 file lacks, by its header; 0 for any other file.

    FFmpeg and libsndfile silently shorten the declared length to what the file holds. A writer that could not go back to its
    header leaves the size 0 or all ones, which declares nothing.
    """
    with open(path, "rb") as file:
        head = file.read(12)
        if head[:4] not in (b"RIFF", b"RF64") or head[8:] != b"WAVE":
            return 0.0
        size64, bytes_per_sec = 0, 1
        while len(chunk := file.read(8)) == 8:
            name, size = struct.unpack("<4sI", chunk)
            if name == b"data":
                size = size64 if size == 0xFFFFFFFF else size
                return max(0, file.tell() + size - os.path.getsize(path)) / bytes_per_sec
            if name == b"fmt ":
                bytes_per_sec = max(1, struct.unpack("<8xI", file.read(12))[0])
                size -= 12
            if name == b"ds64":
                size64 = struct.unpack("<8xQ", file.read(16))[0]
                size -= 16
            file.seek(size + size % 2, os.SEEK_CUR)
    return 0.0


def counts_mp3_frames(path: str | os.PathLike) -> bool:
    """Whether an MP3 file begins with a count of its frames. Without one, FFmpeg guesses the duration."""
    with open(path, "rb") as file:
        head = file.read(10)
        if head[:3] == b"ID3":  # its size has 7 bits a byte
            file.seek(sum((byte & 127) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0))), os.SEEK_CUR)
        else:
            file.seek(0)
        frame = file.read(256)
    for name in (b"Xing", b"Info"):
        at = frame.find(name)
        if at >= 0 and len(frame) >= at + 8:
            return bool(frame[at + 7] & 1)
    return b"VBRI" in frame
