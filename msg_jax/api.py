"""The Python API: load a system, make sound for a video, save it.

    system = msg_jax.load("runs/tiny/avp_rpo")
    result = system.generate("clip.mp4", prompt="glass breaking")
    result.save("out/")

The web app, its HTTP API and the node of ComfyUI stand on this module.
"""

from collections.abc import Callable
import dataclasses
import math
import os
import pathlib
import threading

from jaxtyping import Float, UInt8
import numpy as np

from msg_jax import storage
from msg_jax.data import media, media_writer
from msg_jax.errors import UserError
from msg_jax.inference.cues import Cue, parse_cues, read_cues
from msg_jax.inference.demo import load_demo
from msg_jax.inference.generate import Settings, Video, takes_for, takes_of_text
from msg_jax.inference.loading import load_checkpoint, load_weights
from msg_jax.inference.system import System
from msg_jax.infra import progress
from msg_jax.infra.record import read_record

_SOUND_SUFFIXES = (".wav", ".flac")
_LAST_SEED = 2**31 - 1


def timed_prompts(text: str) -> tuple[Cue, ...]:
    """The cues of a `Request`, from the text of their table. Raises UserError, naming the line, for a mistake in it."""
    return parse_cues(text, "script")


@dataclasses.dataclass(frozen=True)
class Request:
    """What one call may ask for; None takes the system's own value. Raises UserError for values out of range."""

    prompt: str = ""
    negative_prompt: str = ""
    seed: int = 0  # of the first variant; each further one has the next seed
    variants: int = 1
    steps: int | None = None
    guidance: float | None = None
    best_of: int = 1  # sounds for each variant, of which the one with the highest reward is kept
    mix: float = 0.0  # share of the video's own sound that is added
    loudness: float | None = None  # in LUFS
    script: tuple[Cue, ...] = ()  # timed prompts
    start: float = 0.0  # seconds; sound is made from here ...
    end: float | None = None  # ... to here, and elsewhere the video keeps its own
    respect_cuts: bool = False  # no sound depends on pictures from beyond a hard cut

    def __post_init__(self):
        whole = (("seed", 0, _LAST_SEED), ("variants", 1, None), ("steps", 1, None), ("best_of", 1, None))
        for name, least, most in whole:
            value = getattr(self, name)
            if value is not None and (value < least or (most is not None and value > most)):
                limit = f"from {least} to {most}" if most is not None else f"of at least {least}"
                raise UserError(f"{name}={value} is not a whole number {limit}")
        if not 0 <= self.mix <= 1:
            raise UserError(f"mix={self.mix} is not a share from 0 to 1")
        if self.loudness is not None and not math.isfinite(self.loudness):
            raise UserError(f"loudness={self.loudness} is not a number of LUFS")
        if not 0 <= self.start < math.inf:
            raise UserError(f"start={self.start} is not a number of seconds from 0 on")
        if self.end is not None and not self.start < self.end < math.inf:
            raise UserError(f"end={self.end} is not a number of seconds after start={self.start}")


@dataclasses.dataclass(frozen=True)
class Result:
    """The sounds of one call, a waveform (samples,) in [-1, 1] at `hz` for each variant, and their seeds.

    A joint system makes pictures too for a prompt alone: frames (T, H, W, 3), uint8, at `video_hz`.
    """

    video: pathlib.Path | None
    waveforms: tuple[Float[np.ndarray, " samples"], ...]
    hz: int
    seeds: tuple[int, ...]
    frames: tuple[UInt8[np.ndarray, "T H W 3"], ...] = ()  # one for each variant, or none
    video_hz: float = 0.0

    def save(self, place: str | os.PathLike, overwrite: bool = False) -> list[pathlib.Path]:
        """Write the sounds, and return what was written.

        A name with .wav or .flac gets the sound, a video's name (.mp4, .mkv, ...) the video with that sound. A folder gets
        both, named as the video. Several variants are NAME_0, NAME_1, ... Generated pictures are written as .mp4. Raises
        UserError for existing files unless `overwrite`.
        """
        place, written = pathlib.Path(place), []
        for variant, tag in enumerate(self._tags):
            for path in self._names(place, tag):
                self.write(path, variant, overwrite)
                written.append(path)
        return written

    def write(self, path: pathlib.Path, variant: int = 0, overwrite: bool = False) -> None:
        """Write one file of one variant: by its suffix the sound, or pictures with that sound.

        Raises UserError as `save` does.
        """
        waveform = self.waveforms[variant]
        if path.suffix.lower() in _SOUND_SUFFIXES:
            media_writer.write_audio(path, waveform, self.hz, overwrite=overwrite)
        elif self.video is not None:
            media_writer.mux(self.video, waveform, self.hz, path, overwrite=overwrite)
        elif not self.frames:
            raise UserError(f"{path} cannot be written, because there was no video: give a name with .wav, or a folder")
        elif path.suffix.lower() != ".mp4":
            raise UserError(f"{path} cannot be written, because generated pictures become .mp4: give such a name, or a folder")
        else:
            frames = self.frames[variant]
            media_writer.write_clip(path, frames, self.video_hz, waveform, self.hz, overwrite=overwrite)

    @property
    def _tags(self) -> list[str]:
        return [""] if len(self.waveforms) == 1 else [f"_{i}" for i in range(len(self.waveforms))]

    def _names(self, place: pathlib.Path, tag: str) -> list[pathlib.Path]:
        if place.suffix.lower() in (*_SOUND_SUFFIXES, *media.VIDEO_SUFFIXES):
            return [place.with_name(f"{place.stem}{tag}{place.suffix}")]
        if self.video is None:
            return [place / f"sound{tag}{suffix}" for suffix in (".wav", *([".mp4"] if self.frames else []))]
        return [place / f"{self.video.stem}{tag}{suffix}" for suffix in (".wav", media_writer.copy_suffix(self.video))]


class LoadedSystem:
    """A system in memory. Calls from several threads wait for each other."""

    def __init__(self, system: System):
        self.system = system
        self._lock = threading.Lock()

    def generate(
        self, video: str | os.PathLike | None = None, *, prompt: str = "", negative_prompt: str = "", seed: int = 0,
        variants: int = 1, steps: int | None = None, guidance: float | None = None, best_of: int = 1, mix: float = 0.0,
        loudness: float | None = None, script: str | os.PathLike | None = None, start: float = 0.0,
        end: float | None = None, respect_cuts: bool = False,
        on_progress: Callable[[float], None] | None = None,
    ) -> Result:
        """Make sound for a video, or for the prompt alone.

        `steps` and `guidance` are by default those of the system. `best_of` sounds are made for each variant, and the one that
        the run's reward prefers is kept. `mix` is the share of the video's own sound that is added, `loudness` the integrated
        loudness in LUFS, `script` a CSV file of timed prompts. Sound is made from `start` to `end` seconds; elsewhere the
        video keeps its own. With `respect_cuts` no sound depends on pictures from beyond a hard cut. `on_progress` is called
        with the share that is done, from 0 to 1; an exception that it raises ends the work. Raises UserError if the video
        cannot be read, and for values out of range.
        """
        cues = () if script is None else read_cues(script)
        request = Request(
            prompt, negative_prompt, seed, variants, steps, guidance, best_of, mix, loudness, cues, start, end, respect_cuts
        )
        return self.run(video, request, on_progress)

    def run(
        self, video: str | os.PathLike | None, request: Request, on_progress: Callable[[float], None] | None = None
    ) -> Result:
        """`generate` for a `Request`."""
        if video is None and not (request.prompt or request.script):
            raise UserError("there is neither a video nor a prompt: give one of them")
        system, path = self.system, None if video is None else pathlib.Path(video)
        settings = Settings(
            steps=request.steps or system.steps,
            guidance_scale=system.guidance_scale if request.guidance is None else request.guidance,
            seed=request.seed, variants=request.variants, prompt=request.prompt, negative_prompt=request.negative_prompt,
            best_of=request.best_of, mix=request.mix, loudness_lufs=request.loudness, script=request.script,
            start_sec=request.start, end_sec=request.end, respect_cuts=request.respect_cuts,
        )
        with self._lock, progress.listening(on_progress or (lambda share: None)):
            if path is None:
                takes = tuple(takes_of_text(system, settings))
            else:
                takes = tuple(takes_for(system, Video(path, path.name), settings))
        waveforms, seeds = (tuple(getattr(take, name) for take in takes) for name in ("waveform", "seed"))
        frames = tuple(take.frames for take in takes if take.frames is not None)
        return Result(path, waveforms, system.clip.audio_hz, seeds, frames, system.clip.video_hz)


def load(
    source: str | os.PathLike | None = None, variant: str | None = None, precision: str | None = None
) -> LoadedSystem:
    """Load a system from the folder of a finished stage, or from a folder of released weights (docs/WEIGHTS.md).

    Without a source it is the small model that comes with the package.

    `variant` names the one of several released variants in that folder, for example "small_16k". `precision`, float32 or
    bfloat16, is what encoders and generator compute in (default: float32 on a CPU, bfloat16 on accelerators).

    Raises UserError if something is missing; the sentence names the command that fetches it.
    """
    if source is None:
        return LoadedSystem(load_demo(precision))
    place = storage.path(source)
    if storage.in_bucket(place) or read_record(place) is not None:
        if variant is not None:
            raise UserError(f"{source} is a run's stage, which has no variants: leave out variant={variant!r}")
        return LoadedSystem(load_checkpoint(source, precision))
    return LoadedSystem(load_weights(source, variant, precision))
