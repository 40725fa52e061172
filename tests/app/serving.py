"""The app in front of a stand-in for a system: a tone for each variant, as long as the video, made when the test lets it."""

import contextlib
import dataclasses
import threading
import time
import types

import numpy as np

from msg_jax.api import Request, Result
from msg_jax.app.studio import Limits, Studio
from msg_jax.data import media

HZ = 16_000


def tone_hz(seed: int, prompt: str = "") -> int:
    """The tone tells whose request a sound answers."""
    return 200 + 50 * seed + 1000 * len(prompt)


def heard_hz(waveform: np.ndarray) -> int:
    """The tone that is heard, to 10 Hz."""
    spectrum = np.abs(np.fft.rfft(waveform[:HZ] if len(waveform) >= HZ else np.pad(waveform, (0, HZ - len(waveform)))))
    return round(spectrum.argmax() / 10) * 10


@dataclasses.dataclass
class Tones:
    """Stands for a `LoadedSystem`. While `gate` is shut, a job reports progress and does not end."""

    system = types.SimpleNamespace(steps=25, guidance_scale=4.5)

    gate: threading.Event = dataclasses.field(default_factory=threading.Event)
    seen: list[Request] = dataclasses.field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    def run(self, video, request, on_progress):
        self.seen.append(request)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            while not self.gate.is_set():
                on_progress(0.25)
                time.sleep(0.005)
            on_progress(0.5)
        finally:
            self.at_once -= 1
        seconds = media.probe(video).duration_sec if video else 1.0
        times, seeds = np.arange(round(seconds * HZ)) / HZ, range(request.seed, request.seed + request.variants)
        tones = tuple((0.5 * np.sin(2 * np.pi * tone_hz(seed, request.prompt) * times)).astype(np.float32) for seed in seeds)
        return Result(video, tones, HZ, tuple(seeds))


@contextlib.contextmanager
def served(limits: Limits):
    """A server on the loopback interface, in a thread. Yields (address, studio, tones)."""
    import uvicorn

    from msg_jax.app.server import application

    tones = Tones()
    studio = Studio(tones, limits)
    server = uvicorn.Server(uvicorn.Config(application(studio), host="127.0.0.1", port=0, log_config=None))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", studio, tones
    finally:
        tones.gate.set()
        server.should_exit = True
        thread.join(10)
        studio.close()
