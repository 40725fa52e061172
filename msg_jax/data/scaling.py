"""Decoded pictures as square RGB frames, within a seventh of a level of MMAudio's own (docs/WEIGHTS.md).

MMAudio converts with FFmpeg's fast conversion to RGB and resizes with torchvision's antialiased bicubic kernel (a = -1/2),
on 8 bits. The conversion here is the same. FFmpeg's scaler resizes with the same kernel, a tenth of Pillow's time.
"""

from fractions import Fraction

import av
from av.filter import Graph
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8
import numpy as np


class ToRgb:
    """Converts pictures to 8-bit RGB with the arithmetic of PyAV's `to_ndarray("rgb24")`; remembers the last one."""

    def __init__(self):
        self._to_packed, self._to_planes = VideoReformatter(), VideoReformatter()
        self._source, self._planes = None, None

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        """The planes G, B and R of a picture, labelled Y, U and V: the scaler leaves unchanged what it takes for YUV."""
        if self._source is not frame or self._planes is None:
            rgb = self._to_planes.reformat(self._to_packed.reformat(frame, format="rgb24"), format="gbrp")
            self._planes = av.VideoFrame(frame.width, frame.height, "yuv444p")
            for plane, values in zip(self._planes.planes, rgb.planes):
                plane.update(values)  # pyright: ignore[reportArgumentType] any buffer
            self._source = frame
        return self._planes


class Resizer:
    """Resizes planes of 8 bits with the antialiased bicubic kernel; keeps the filter for pictures of one size."""

    def __init__(self):
        self._sizes, self._graph = None, Graph()

    def __call__(self, planes: av.VideoFrame, width: int, height: int) -> UInt8[np.ndarray, "3 {height} {width}"]:
        if self._sizes != (sizes := (planes.width, planes.height, width, height)):
            self._sizes, self._graph = sizes, Graph()
            source = self._graph.add_buffer(
                width=planes.width, height=planes.height, format=planes.format, time_base=Fraction(1, 1000)
            )
            kernel = "flags=bicubic+accurate_rnd:param0=0:param1=0.5"  # B and C of Mitchell and Netravali
            scale, sink = self._graph.add("scale", f"{width}:{height}:{kernel}"), self._graph.add("buffersink")
            source.link_to(scale)
            scale.link_to(sink)
            self._graph.configure()
        self._graph.push(planes)
        resized = self._graph.pull()
        assert isinstance(resized, av.VideoFrame)
        return resized.to_ndarray()


def square(planes: av.VideoFrame, shown: tuple[int, int], px: int, squash: bool, resize: Resizer) -> UInt8[np.ndarray, "h w 3"]:
    """A picture from `ToRgb`, shown with the width and height `shown`, as RGB (px, px, 3).

    The shorter side becomes `px` long, the longer one truncated to whole pixels and cropped at the centre, as torchvision
    does. With `squash` both sides become `px` long.
    """
    width, height = (px, px) if squash else (px * side // min(shown) for side in shown)
    top, left = round((height - px) / 2), round((width - px) / 2)
    red_green_blue = resize(planes, width, height)[[2, 0, 1], top : top + px, left : left + px]
    return red_green_blue.transpose(1, 2, 0)
