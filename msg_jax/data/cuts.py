"""Hard cuts of a video."""

from collections.abc import Iterator
import os

import av
from av.filter import Graph

from msg_jax.data import media

THRESHOLD = 8.0  # of FFmpeg's filter `scdet`, which scores pictures from 0 to 100; its page says 8 to 14
MIN_SHOT_SEC = 0.24  # a flash is no shot
_WIDTH_PX = 160  # pictures are compared at this width


def cut_times(path: str | os.PathLike) -> list[float]:
    """Seconds at which a new shot begins, found by FFmpeg's filter `scdet`; the first shot's start is not listed.

    Decodes the whole video, as far as it decodes. Raises UserError if it cannot be opened.
    """
    found: list[float] = []
    for time, score in _scores(path):
        if score >= THRESHOLD and time - (found[-1] if found else 0.0) >= MIN_SHOT_SEC:
            found.append(time)
    return found


def _scores(path: str | os.PathLike) -> Iterator[tuple[float, float]]:
    """The time of each picture in seconds, and how abruptly it differs from the one before, from 0 to 100."""
    graph, size = None, None
    for time, frame in media.pictures(path):
        if graph is None or size != (frame.width, frame.height, frame.format.name):  # a stream may change its size
            graph, size = _graph(frame), (frame.width, frame.height, frame.format.name)
        graph.vpush(frame)
        yield time, float(graph.vpull().metadata["lavfi.scd.score"])


def _graph(frame: av.VideoFrame) -> Graph:
    graph = Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
    graph.link_nodes(source, graph.add("scale", f"{_WIDTH_PX}:-2"), graph.add("scdet", f"threshold={THRESHOLD}"),
                     graph.add("buffersink")).configure()
    return graph
