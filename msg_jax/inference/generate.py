"""Sound for video files: find them, sample, write sounds and videos, and record what was made and what was skipped."""

from collections.abc import Iterable, Iterator, Sequence
import contextlib
import dataclasses
import itertools
import math
import os
import pathlib
import sys
import time
from typing import Any, NamedTuple

from jaxtyping import Float
import numpy as np
from tqdm import tqdm

from msg_jax.data import containers, cuts, files, level, media, media_writer
from msg_jax.data.frame_grid import FrameChoice, FrameGrid, mmaudio_duration_sec
from msg_jax.errors import UserError
from msg_jax.inference.cues import Cue, fill
from msg_jax.inference.ranking import Ranker
from msg_jax.inference.sampling import Window, cue_windows
from msg_jax.inference.system import System
from msg_jax.infra import logging, progress, runtime

_SUFFIXES = ", ".join(media.VIDEO_SUFFIXES)
_ENCODED, _SAMPLED = 0.4, 0.8  # about what share of a video's work is done then, for the progress bar
_BAR = "{l_bar}{bar}| {n:.2f}/{total} {unit} [{elapsed}<{remaining}]"
_NAME_LENGTH = 100  # of a sound for a prompt alone
_JOIN_SEC = 0.02  # of the cross-fade between a part's sound and the video's own
_ROUNDING_SEC = 1e-6


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings for all videos of a call."""

    steps: int
    guidance_scale: float
    guidance_rescale: float | None = None  # share by which guided data are brought back to their level; None: the system's
    seed: int = 0
    variants: int = 1
    prompt: str = ""
    negative_prompt: str = ""
    audio_format: str = "wav"
    container: str = ""  # of the videos with sound, for example "mkv"; "" for each video's own
    overwrite: bool = False
    duration_sec: float | None = None  # cut each video to its first seconds, one sequence if the system can; None: all
    start_sec: float = 0.0  # sound is made from here ...
    end_sec: float | None = None  # ... to here, and elsewhere the video keeps its own; None: to its end
    respect_cuts: bool = False  # no window sees pictures from beyond a hard cut
    frame_choice: FrameChoice | None = None  # None: the system's
    noise: Float[np.ndarray, "variants tokens channels"] | None = None  # instead of the seeds' noise
    cache: pathlib.Path | None = None  # folder that keeps the features of videos between calls
    script: tuple[Cue, ...] = ()  # timed prompts; `prompt` and `negative_prompt` hold where there is no cue
    best_of: int = 1  # sounds for each variant, of which the one with the highest reward is kept
    mix: float = 0.0  # share of the video's own sound that is added
    loudness_lufs: float | None = None  # integrated loudness, under a true peak of -1 dBTP; None: as the codec makes it

    @property
    def tags(self) -> list[str]:
        """What the name of each variant ends in."""
        return [""] if self.variants == 1 else [f"_{i}" for i in range(self.variants)]

    @property
    def prompts(self) -> set[str]:
        """All texts."""
        cues = (self, *self.script)
        return {text for cue in cues for text in (cue.prompt, cue.negative_prompt) if text}


@dataclasses.dataclass(frozen=True)
class Video:
    """One input; `name` is its path relative to the given folder, or the file's name."""

    path: pathlib.Path
    name: str

    def outputs(self, out: pathlib.Path, settings: Settings) -> list[tuple[pathlib.Path, pathlib.Path]]:
        """Paths of (sound, video with sound) of each variant."""
        stem = self.name.removesuffix(self.path.suffix)
        suffix = f".{settings.container}" if settings.container else media_writer.copy_suffix(self.path)
        return [(out / f"{stem}{tag}.{settings.audio_format}", out / f"{stem}{tag}{suffix}") for tag in settings.tags]


def find_videos(inputs: Iterable[pathlib.Path], out: pathlib.Path) -> tuple[list[Video], list[dict]]:
    """Find the videos among files and folders (`files.find_files`); return also rows {"path", "reason"} for inputs without any.

    Earlier results are not taken as inputs if `out` lies inside a given folder.
    """
    videos, skipped, real_out = {}, [], os.path.realpath(out)
    for given in inputs:
        if os.path.isdir(given):
            paths, unlisted = files.find_files(given, media.VIDEO_SUFFIXES)
            skipped += unlisted
            if _is_below(real_out, os.path.realpath(given)):
                paths = [path for path in paths if not _is_below(os.path.realpath(path), real_out)]
            inside = [Video(path, path.relative_to(given).as_posix()) for path in paths]
            if not inside:
                skipped.append({"path": str(given), "reason": f"{given} holds no video ({_SUFFIXES})"})
        elif os.path.exists(given) and given.suffix.lower() not in media.VIDEO_SUFFIXES:
            inside = []
            skipped.append({"path": str(given), "reason": f"{given} is not a video ({_SUFFIXES})"})
        else:
            inside = [Video(given, given.name)]
        videos |= {(os.path.realpath(video.path), video.name): video for video in inside}
    return list(videos.values()), skipped


def _is_below(path: str, folder: str) -> bool:
    return path != folder and os.path.commonpath([path, folder]) == folder


def refuse_collisions(videos: Sequence[Video], out: pathlib.Path, settings: Settings) -> None:
    """Raises UserError if an output exists (unless `overwrite`), is an input, or belongs to two inputs."""
    sources, owners = {os.path.realpath(video.path) for video in videos}, {}
    for video in videos:
        for path in (path for pair in video.outputs(out, settings) for path in pair):
            if os.path.realpath(path) in sources:
                raise UserError(f"{path} is itself an input and would be replaced; choose another --out")
            if path in owners:
                raise UserError(
                    f"{owners[path]} and {video.path} would both be written to {path}; give their common folder, or "
                    "each its own --out"
                )
            _refuse_existing([path], settings)
            owners[path] = video.path


def _refuse_existing(paths: Iterable[pathlib.Path], settings: Settings) -> None:
    for path in paths:
        if os.path.exists(path) and not settings.overwrite:
            raise UserError(f"{path} exists already; pass --overwrite to replace it, or choose another --out")


class Part(NamedTuple):
    """The part of a video that gets sound, and the system for its length."""

    system: System
    tokens: int  # latent tokens to sample
    start_sec: float
    samples: int  # of its sound
    whole_samples: int  # of the sound of the whole video


def fit(system: System, path: pathlib.Path, settings: Settings) -> Part:
    """What to sample for a video.

    A system for any length gets a window of exactly the part's length, if that is at most the system's clip or if
    `duration_sec` is set. With `mmaudio_inference` the window ends where MMAudio's does. Otherwise a longer video is sampled
    jointly over overlapping windows, and a shorter one keeps its last frame. Raises UserError if the file cannot be read, or
    if it ends before the part starts.
    """
    clip, start_sec = system.clip, settings.start_sec
    whole_sec = min(media.probe(path).duration_sec, settings.duration_sec or math.inf)
    if start_sec >= whole_sec:
        raise UserError(f"{path} ends at {whole_sec:.2f} s, and its sound is to start at {start_sec:g} s; start earlier")
    duration_sec = min(whole_sec, settings.end_sec or math.inf) - start_sec
    samples, window_sec = round(duration_sec * clip.audio_hz), round(duration_sec, 3)  # containers round to milliseconds
    whole = samples if duration_sec == whole_sec else round(whole_sec * clip.audio_hz)
    if not system.any_length or (settings.duration_sec is None and window_sec > clip.duration_sec):
        return Part(system, system.tokens(samples), start_sec, samples, whole)
    if (settings.frame_choice or system.frame_choice) == "mmaudio_inference":
        most_sec = duration_sec if settings.end_sec else settings.duration_sec or clip.duration_sec
        last_sec = media.last_picture_sec(path, start_sec + most_sec) - start_sec
        window_sec = mmaudio_duration_sec(last_sec, (clip.clip_video_hz, clip.video_hz), most_sec)
    fitting = system.of_length(window_sec)
    return Part(fitting, fitting.clip.latent_tokens, start_sec, samples, whole)


class Take(NamedTuple):
    """One variant: a waveform (round(duration_sec * audio_hz),) in [-1, 1], its seed unless noise was given, with `best_of`
    the reward of each sound that it was chosen from, and frames (T, H, W, 3), uint8, where pictures were generated too."""

    waveform: np.ndarray
    seed: int | None
    rewards: tuple[float, ...] = ()
    frames: np.ndarray | None = None


def takes_for(system: System, video: Video, settings: Settings) -> Iterator[Take]:
    """Yield a sound per variant; the video is encoded once.

    Raises UserError if the file cannot be read, or if the noise of the settings has another shape than needed.
    """
    ranker = _ranker(system, settings)
    part = fit(system, video.path, settings)
    clip, choice = part.system.clip, settings.frame_choice or system.frame_choice
    shots = _Shots.of(video.path) if settings.respect_cuts else None
    plan = _Plan.of(part, settings, shots.starts_sec if shots else ())
    grids = (
        FrameGrid(clip.video_hz, clip.video_px, clip.video_frames, choice=choice),
        FrameGrid(clip.clip_video_hz, clip.clip_video_px, clip.clip_video_frames, system.squashes_clip_video, choice),
    )
    embeddings: list[object] = []

    def seen(window: Window) -> list[np.ndarray]:
        start_sec = part.start_sec + window.start / clip.latent_hz
        frames = media.read_video(video.path, grids, start_sec)
        if shots:
            frames = shots.held(frames, grids, start_sec, part.start_sec + (window.first + 0.5) / clip.latent_hz)
        if ranker is not None:
            embeddings.append(ranker.embed(frames[0]))
        return frames

    noises = _noises(system, video.name, part.tokens, settings)

    def conditions() -> Any:
        with progress.part(0, _ENCODED):
            return part.system.encode(map(seen, plan.windows), plan.prompts, len(plan.windows), settings.cache)

    own = _own_sound(video.path, part, clip.audio_hz, settings)
    starts = [window.start for window in plan.windows]
    sounds = _sounds(part, conditions(), noises, plan, settings)
    for variant in range(settings.variants):
        waveforms, rewards, best = [sound for sound, _ in itertools.islice(sounds, settings.best_of)], (), 0
        if ranker is not None:
            rewards = tuple(ranker.score(embeddings, starts, waveform) for waveform in waveforms)
            best = int(np.argmax(rewards))
        yield Take(_finished(waveforms[best], own, part, clip.audio_hz, settings), _seed(settings, variant, best), rewards)


def takes_of_text(system: System, settings: Settings) -> Iterator[Take]:
    """Yield a sound per variant for the prompt alone, with pictures where the system makes them.

    It is `duration_sec` long, by default the system's clip. Raises UserError as `takes_for` does, and with
    `best_of`, `mix`, `start_sec` or `end_sec`.
    """
    if settings.best_of > 1:
        raise UserError("--best_of ranks sounds for a video, and a prompt alone has none: leave it out")
    if settings.mix:
        raise UserError("--mix adds a video's own sound, and a prompt alone has none: leave it out")
    if settings.start_sec or settings.end_sec:
        raise UserError("--start and --end choose a part of a video, and a prompt alone has none: give a --duration")
    if settings.respect_cuts:
        raise UserError("--respect_cuts finds the cuts of a video, and a prompt alone has none: leave it out")
    duration_sec, hz = settings.duration_sec or system.clip.duration_sec, system.clip.audio_hz
    fitting = system.of_length(duration_sec) if system.any_length else system
    samples = round(duration_sec * hz)
    tokens = fitting.clip.latent_tokens if system.any_length else system.tokens(samples)
    part = Part(fitting, tokens, 0.0, samples, samples)
    noises, plan = _noises(system, "", tokens, settings), _Plan.of(part, settings)
    conditions = fitting.encode_text_alone(plan.prompts, len(plan.windows))
    for variant, (waveform, frames) in enumerate(_sounds(part, conditions, noises, plan, settings)):
        finished = _finished(waveform, None, part, hz, settings)
        shown = None if frames is None else frames[: round(part.samples / hz * part.system.clip.video_hz)]
        yield Take(finished, _seed(settings, variant, 0), frames=shown)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """The windows of a clip, each with its texts."""

    windows: Sequence[Window]
    prompts: Sequence[str]
    negative_prompts: Sequence[str]

    @classmethod
    def of(cls, part: Part, settings: Settings, cuts_sec: Sequence[float] = ()) -> "_Plan":
        """Windows for a part of a video, divided where a cue of the script begins or ends, and at cuts of the video."""
        clip, end_sec = part.system.clip, part.start_sec + part.samples / part.system.clip.audio_hz
        rest = Cue(0.0, 0.0, settings.prompt, settings.negative_prompt)
        spans = [
            dataclasses.replace(cue, start_sec=start, end_sec=end) for cue in fill(settings.script, end_sec, rest)
            for start, end in itertools.pairwise([cue.start_sec, *_inside(cuts_sec, cue), cue.end_sec])
            if end > part.start_sec
        ]
        ends = [*(round((cue.end_sec - part.start_sec) * clip.latent_hz) for cue in spans[:-1]), part.tokens]
        kept = [i for i, end in enumerate(ends) if end > (ends[i - 1] if i else 0)]  # longer than half a token
        window = clip.latent_tokens
        numbered = cue_windows([0, *(ends[i] for i in kept)], window, window // 2, part.system.fade_tokens)
        cues = [spans[kept[number]] for number, _ in numbered]
        return cls([each for _, each in numbered], [cue.prompt for cue in cues], [cue.negative_prompt for cue in cues])


def _inside(times_sec: Sequence[float], cue: Cue) -> list[float]:
    return [time for time in times_sec if cue.start_sec < time < cue.end_sec]


@dataclasses.dataclass(frozen=True)
class _Shots:
    """The shots of a video, by the times at which they start after a hard cut."""

    starts_sec: Sequence[float]
    picture_sec: float  # how long a picture is shown

    @classmethod
    def of(cls, path: pathlib.Path) -> "_Shots":
        return cls(cuts.cut_times(path), 1 / media.probe(path).video_hz)

    def held(
        self, frames: Sequence[np.ndarray], grids: Sequence[FrameGrid], start_sec: float, at_sec: float
    ) -> list[np.ndarray]:
        """Frames from `start_sec` on, where the first and last of the shot at `at_sec` stand for those of its neighbours."""
        first = max((time for time in self.starts_sec if time <= at_sec), default=-math.inf)
        # A picture counts for times up to its own length before it is shown (`FrameChoice`).
        end = min((time for time in self.starts_sec if time > at_sec), default=math.inf) - self.picture_sec
        held = []
        for pictures, grid in zip(frames, grids):
            times = start_sec + np.arange(len(pictures)) / grid.hz
            low = np.searchsorted(times, first - _ROUNDING_SEC)
            high = max(low, np.searchsorted(times, end, side="right") - 1)
            held.append(pictures[np.clip(np.arange(len(pictures)), low, high)])
        return held


def _own_sound(path: pathlib.Path, part: Part, hz: int, settings: Settings) -> np.ndarray | None:
    """The video's own sound, if it is needed: to be mixed in, or to be kept around the part. Silence if it has none."""
    around = part.samples < part.whole_samples
    if not settings.mix and not around:
        return None
    if not settings.mix and not media.probe(path).has_audio:
        return np.zeros(part.whole_samples, np.float32)
    return media.read_audio(path, 0.0, part.whole_samples, hz)


def _finished(waveform: np.ndarray, own: np.ndarray | None, part: Part, hz: int, settings: Settings) -> np.ndarray:
    """The sound with the video's own sound and at its loudness, as the settings say, within the video's own sound."""
    first = round(part.start_sec * hz)
    if settings.mix:
        assert own is not None
        waveform = waveform + settings.mix * own[first : first + len(waveform)]
        waveform = waveform / max(1.0, float(np.abs(waveform).max()))
    if settings.loudness_lufs is not None:
        waveform = level.at_loudness(waveform, hz, settings.loudness_lufs)
    if own is None or part.samples == part.whole_samples:
        return waveform
    whole, faded = own.copy(), round(_JOIN_SEC * hz)
    ramp = np.ones(len(waveform), np.float32)
    edge = np.linspace(0, 1, min(faded, len(waveform) // 2), endpoint=False, dtype=np.float32)
    if first:
        ramp[: len(edge)] = edge
    if first + len(waveform) < part.whole_samples:
        ramp[len(ramp) - len(edge) :] = edge[::-1]
    span = slice(first, first + len(waveform))
    whole[span] = ramp * waveform + (1 - ramp) * whole[span]
    return whole


def _noises(system: System, name: str, tokens: int, settings: Settings) -> list[np.ndarray]:
    """The noise (1, tokens, C) of each sound."""
    if settings.noise is None:
        sounds = settings.variants * settings.best_of
        return [system.noise(settings.seed + sound, name, tokens) for sound in range(sounds)]
    shape = (settings.variants, tokens, system.latent_channels)
    if settings.noise.shape != shape:
        raise UserError(
            f"the noise has the shape {settings.noise.shape}, but {name or 'the prompt'} needs {shape}; give another --noise"
        )
    return list(settings.noise.astype(np.float32)[:, None])


def _seed(settings: Settings, variant: int, chosen: int) -> int | None:
    return settings.seed + variant * settings.best_of + chosen if settings.noise is None else None


def _ranker(system: System, settings: Settings) -> Ranker | None:
    """The system's reward, if it is needed. Raises UserError if it has none, or if the noise is given."""
    if settings.best_of == 1:
        return None
    if settings.noise is not None:
        raise UserError("--best_of draws several noises for each sound, and --noise gives one: leave out one of them")
    if system.load_ranker is None:
        raise UserError("--best_of ranks sounds by the reward of a run, which this system does not have: give a --checkpoint "
                        "whose run has the stages sf_cavp and sound_events")
    return system.load_ranker()


def _sounds(
    part: Part, conditions: Any, noises: Sequence[np.ndarray], plan: _Plan, settings: Settings
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    system, sampled, count = part.system, [], len(noises)
    for i, noise in enumerate(noises):  # all before the first is decoded, because weights may be loaded lazily
        with progress.part(_ENCODED, _SAMPLED), progress.part(i / count, (i + 1) / count):
            sampled.append(system.sample(
                conditions, noise, steps=settings.steps, guidance_scale=settings.guidance_scale,
                guidance_rescale=settings.guidance_rescale,
                negative_prompt=plan.negative_prompts, windows=plan.windows,
            ))
    del conditions  # those of a long video are as large as its sound
    runtime.trim_heap()
    for i, latents in enumerate(sampled):
        with progress.part(_SAMPLED, 1), progress.part(i / count, (i + 1) / count):
            waveform = system.decode(latents)
        if not np.isfinite(waveform).all():
            raise UserError("the model made a sound with samples that are not numbers: try more --steps, or a checkpoint that "
                            "was trained longer")
        yield media.fit_length(waveform, part.samples), system.pictures(latents)


def generate(
    system: System, inputs: Iterable[pathlib.Path], out: pathlib.Path, settings: Settings, quiet: bool = True
) -> tuple[list[dict], list[dict]]:
    """Make sound for all videos among files and folders; return the new rows of generated.jsonl and skipped.jsonl.

    Without inputs, make the sound of the prompt alone. A video's sound does not depend on the other videos, and whatever goes
    wrong with one video, the others get theirs. A variant has both its files and its row, or none. Raises UserError, before
    anything is computed, if `out` cannot be a folder, if an output would overwrite a file (`refuse_collisions`), or if the
    system cannot read a prompt; and at the end if skipped.jsonl cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={out} cannot be made a folder ({error.strerror}); choose another place") from error
    inputs = list(inputs)
    videos, skipped = find_videos(inputs, out)
    refuse_collisions(videos, out, settings)
    if not inputs:
        _refuse_container(system, settings)
        _refuse_existing(itertools.chain.from_iterable(_text_outputs(out, system, settings)), settings)
    for prompt in settings.prompts:
        system.embed_text(prompt)
    _ranker(system, settings)
    record = _Record(out)
    for row in skipped:
        _report(f"skipped: {row['reason']}", quiet)
    with tqdm(total=len(videos) or 1, unit="video" if videos else "sound", bar_format=_BAR, disable=quiet) as bar:
        for done, video in enumerate(videos):
            try:
                with progress.listening(_mover(bar, done)):
                    _sounds_with_pictures(system, video, out, settings, record, quiet)
            except Exception as error:
                surprise = f"{video.path} gets no sound ({containers.what(error)})"
                reason = str(error) if isinstance(error, UserError) else surprise
                skipped.append({"path": str(video.path), "reason": reason})
                _report(f"skipped: {reason}", quiet)
            _mover(bar, done)(1)
        if not inputs:
            with progress.listening(_mover(bar, 0)):
                _sounds_alone(system, out, settings, record)
            _mover(bar, 0)(1)
    try:
        logging.write_jsonl(out / "skipped.jsonl", skipped)
    except OSError as error:
        raise UserError(
            f"{out / 'skipped.jsonl'} cannot be written ({containers.what(error)}); make room, then run the command again"
        ) from error
    return record.made, skipped


def _mover(bar: tqdm, done: int) -> progress.Listener:
    """Moves the bar to `done` videos and a share of the next one, never back."""

    def move(share: float) -> None:
        bar.update(max(0.0, done + share - bar.n))

    return move


def _sounds_with_pictures(
    system: System, video: Video, out: pathlib.Path, settings: Settings, record: "_Record", quiet: bool
) -> None:
    begun = time.monotonic()
    media_writer.check_mux(video.path, video.outputs(out, settings)[0][1])
    for variant, (waveform, seed, rewards, _) in enumerate(takes_for(system, video, settings)):
        paths = video.outputs(out, settings)[variant]
        with record.adding(paths) as row:
            left_out = _write(video, waveform, system.clip.audio_hz, paths, settings)
            row |= {"input": str(video.path)} | _row(system, settings, seed, paths, out, begun)
            row |= {"rewards": rewards} if rewards else {}
            row |= {"left_out": left_out} if left_out else {}
        if left_out and variant == 0:
            _report(f"left out of the copy of {video.path}: {', '.join(left_out)}", quiet)
        begun = time.monotonic()


def _sounds_alone(system: System, out: pathlib.Path, settings: Settings, record: "_Record") -> None:
    begun = time.monotonic()
    for variant, take in enumerate(takes_of_text(system, settings)):
        paths, hz = _text_outputs(out, system, settings)[variant], system.clip.audio_hz
        with record.adding(paths) as row:
            media_writer.write_audio(paths[0], take.waveform, hz, overwrite=settings.overwrite)
            if take.frames is not None:
                media_writer.write_clip(
                    paths[1], take.frames, system.clip.video_hz, take.waveform, hz, overwrite=settings.overwrite
                )
            row |= {"input": None} | _row(system, settings, take.seed, paths, out, begun)
        begun = time.monotonic()


def _text_outputs(out: pathlib.Path, system: System, settings: Settings) -> list[list[pathlib.Path]]:
    """Paths of each variant for the prompt alone, named after it: the sound, and the clip if there are pictures."""
    stem = settings.prompt.replace(" ", "_").replace("/", "_").replace(".", "")[:_NAME_LENGTH]
    suffixes = (settings.audio_format, *(("mp4",) if system.makes_pictures else ()))
    return [[out / f"{stem}{tag}.{suffix}" for suffix in suffixes] for tag in settings.tags]


def _refuse_container(system: System, settings: Settings) -> None:
    """Raises UserError if a prompt alone is to give a video that the system cannot make."""
    if settings.container and not system.makes_pictures:
        raise UserError("--container is for videos, and this model makes sound without pictures from a prompt: give a video, "
                        "or the --checkpoint of a joint run")
    if settings.container not in ("", "mp4"):
        raise UserError(f"--container={settings.container} cannot be chosen for generated pictures, which are written as mp4: "
                        "leave it out")


def _row(
    system: System, settings: Settings, seed: int | None, paths: Sequence[pathlib.Path], out: pathlib.Path, begun: float
) -> dict:
    return {
        "outputs": [path.relative_to(out).as_posix() for path in paths],
        "seed": seed,
        "steps": settings.steps,
        "guidance": settings.guidance_scale,
        "guidance_rescale": system.rescale if settings.guidance_rescale is None else settings.guidance_rescale,
        "prompt": settings.prompt,
        "negative_prompt": settings.negative_prompt,
        "script": [dataclasses.asdict(cue) for cue in settings.script],
        "start_sec": settings.start_sec,
        "end_sec": settings.end_sec,
        "respect_cuts": settings.respect_cuts,
        "mix": settings.mix,
        "loudness_lufs": settings.loudness_lufs,
        "frame_choice": settings.frame_choice or system.frame_choice,
        "checkpoint": system.digest,
        "seconds": round(time.monotonic() - begun, 3),
    }


def _write(
    video: Video, waveform: np.ndarray, hz: int, paths: tuple[pathlib.Path, pathlib.Path], settings: Settings
) -> list[str]:
    """Writes the sound and the video with it; returns what the copy of the video lacks."""
    sound, picture = paths
    left_out = media_writer.mux(
        video.path, waveform, hz, picture, duration_sec=settings.duration_sec, overwrite=settings.overwrite
    )
    media_writer.write_audio(sound, waveform, hz, overwrite=settings.overwrite)
    return left_out


class _Record:
    """generated.jsonl of an output folder; `made` are the rows of this call."""

    def __init__(self, out: pathlib.Path):
        self._path, self.made = out / "generated.jsonl", []
        self._rows = {row["outputs"][0]: row for row in logging.read_metrics(self._path)}

    @contextlib.contextmanager
    def adding(self, paths: Sequence[pathlib.Path]) -> Iterator[dict]:
        """Records the row that the block fills. If that fails, deletes the block's files, unless it has not touched them."""
        before, row, key = [_stamp(path) for path in paths], {}, paths[0].relative_to(self._path.parent).as_posix()
        try:
            yield row
            try:
                logging.write_jsonl(self._path, (self._rows | {key: row}).values())
            except OSError as error:
                raise UserError(f"{paths[0]} is not kept: {self._path} cannot be written ({containers.what(error)})") from error
        except BaseException:
            if [_stamp(path) for path in paths] != before:
                for path in paths:
                    path.unlink(missing_ok=True)
                if self._rows.pop(key, None):
                    with contextlib.suppress(OSError):
                        logging.write_jsonl(self._path, self._rows.values())
            raise
        self._rows[key] = row
        self.made.append(row)


def _stamp(path: pathlib.Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def _report(sentence: str, quiet: bool) -> None:
    with contextlib.nullcontext() if quiet else tqdm.external_write_mode(file=sys.stderr):
        print(sentence, file=sys.stderr)
