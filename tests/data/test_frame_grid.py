"""Frame choice against FFmpeg's `fps` filter and against the frames that MMAudio's own code took (golden/front_end.npz)."""

from fractions import Fraction

import av
from av.filter import Graph
from golden_files import SMALL
import mmaudio_reference
import numpy as np
import pytest

from msg_jax.data.frame_grid import FrameGrid, mmaudio_duration_sec


def chosen(grid, times_sec):
    """Numbers of the pictures, shown at `times_sec`, that the frames of a grid are."""
    numbers = []
    for i, (shown, until) in enumerate(zip(times_sec, [*times_sec[1:], times_sec[-1] + 1])):
        numbers += [i] * (grid.decided(shown, until) - len(numbers))
    return numbers


def fps_filter(ticks, time_base, hz):
    """Numbers of the pictures that FFmpeg's filter takes."""
    graph = Graph()
    source = graph.add_buffer(width=16, height=16, format="gray", time_base=time_base)
    fps, sink = graph.add("fps", f"fps={hz}"), graph.add("buffersink")
    source.link_to(fps)
    fps.link_to(sink)
    graph.configure()
    numbers = []

    def pull():
        while True:
            try:
                frame = graph.pull()
            except (BlockingIOError, EOFError):
                return
            numbers.append(int(frame.to_ndarray()[0, :2] @ [1, 256]))

    for i, pts in enumerate(ticks):
        pixels = np.zeros((16, 16), np.uint8)
        pixels[0, :2] = i % 256, i // 256
        frame = av.VideoFrame.from_ndarray(pixels, format="gray")
        frame.pts, frame.time_base = int(pts), time_base
        graph.push(frame)
        pull()
    graph.push(None)
    pull()
    return numbers


RATES = {name: Fraction(rate) for name, rate in mmaudio_reference.RATES.items()}


@pytest.mark.parametrize("hz", [8, 25])
@pytest.mark.parametrize("rate", [*RATES, "uneven"])
def test_training_is_the_fps_filter(rate, hz):
    if rate == "uneven":
        time_base = Fraction(1, 1000)
        ticks = np.cumsum([0, *np.random.default_rng(0).integers(7, 120, 130)])
    else:
        time_base, ticks = 1 / RATES[rate], np.arange(round(8 * RATES[rate]))
    times = [float(int(tick) * time_base) for tick in ticks]
    grid = FrameGrid(hz, 1, int(times[-1] * hz) - 1)
    assert chosen(grid, times) == fps_filter(ticks, time_base, hz)[: grid.count]


@pytest.mark.parametrize("rate", RATES)
def test_mmaudio_inference_is_what_mmaudio_takes(rate):
    times = [float(i / RATES[rate]) for i in range(round(8 * RATES[rate]))]
    with np.load(SMALL / "front_end.npz") as golden:
        for hz, name in ((8.0, "clip"), (25.0, "sync")):
            expected = golden[f"choice/{rate}/{name}"].tolist()
            assert chosen(FrameGrid(hz, 1, len(expected), choice="mmaudio_inference"), times) == expected
        assert mmaudio_duration_sec(times[-1], (8.0, 25.0), 8.0) == float(golden[f"choice/{rate}/seconds"])
