"""What the page and the HTTP API share: the loaded system, its queue, limits on what is asked, and files with owners."""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import pathlib
import re
import secrets
import shutil
import tempfile
import time

import numpy as np

from msg_jax.api import LoadedSystem, Request, Result, timed_prompts
from msg_jax.app.jobs import Job, Queue
from msg_jax.app.pictures import picture
from msg_jax.data import media, media_writer
from msg_jax.errors import UserError

_KEPT_SEC = 3600.0  # results are deleted after this time
_NAME = re.compile(r"[^/\\:\0]{1,200}")


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one request may ask for."""

    upload_bytes: int = 200_000_000
    video_sec: float = 60.0
    variants: int = 4
    steps: int = 200
    best_of: int = 16
    waiting: int = 20


@dataclasses.dataclass(frozen=True)
class Take:
    """The files of one variant, and its loudest sample; `video` is None for a sound without pictures."""

    seed: int
    peak: float
    sound: pathlib.Path
    video: pathlib.Path | None
    picture: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The takes of one job. Only its session may see them, under `token`."""

    token: str
    session: str
    folder: pathlib.Path
    takes: tuple[Take, ...]
    made: float


class Studio:
    """One loaded system for many users. Close it to delete its files."""

    def __init__(self, loaded: LoadedSystem, limits: Limits):
        self.loaded, self.limits = loaded, limits
        self.queue = Queue(limits.waiting)
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="msg_jax_app_"))
        self._outcomes: dict[str, Outcome] = {}

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def submit(self, session: str, video: pathlib.Path | None, request: Request) -> Job:
        """Queue a job whose result is an `Outcome`. Raises UserError for whatever can be seen to be wrong now."""
        if video is None and not (request.prompt or request.script):
            raise UserError("there is neither a video nor a prompt: give one of them")
        for name, most in (("variants", self.limits.variants), ("steps", self.limits.steps), ("best_of", self.limits.best_of)):
            if (getattr(request, name) or 0) > most:
                raise UserError(f"{name}={getattr(request, name)} is more than the {most} that are allowed here")
        if video is not None:
            with _without_folders(video):
                self._check(video)
        self._sweep()
        return self.queue.submit(lambda report: self._work(session, video, request, report))

    def _check(self, video: pathlib.Path) -> None:
        seconds = media.probe(video).duration_sec
        if seconds > self.limits.video_sec:
            raise UserError(f"{video.name} has {seconds:.1f} s, more than the {self.limits.video_sec:g} s that are allowed "
                            "here: cut it first")

    def _work(self, session: str, video: pathlib.Path | None, request: Request, report) -> Outcome:
        with _without_folders(video):
            made = self.loaded.run(video, request, lambda share: report(0.95 * share))
        token = secrets.token_urlsafe(16)
        folder = self.folder / token
        folder.mkdir()
        takes = []
        for index, seed in enumerate(made.seeds):
            takes.append(_write(made, index, seed, folder))
            report(0.95 + 0.05 * (index + 1) / len(made.seeds))
        outcome = self._outcomes[token] = Outcome(token, session, folder, tuple(takes), time.monotonic())
        return outcome

    def file(self, session: str, token: str, name: str) -> pathlib.Path | None:
        """A file of an outcome, if it belongs to the session."""
        outcome = self._outcomes.get(token)
        if outcome is None or not secrets.compare_digest(outcome.session.encode(), session.encode()):
            return None
        paths = (path for take in outcome.takes for path in (take.sound, take.video, take.picture) if path is not None)
        return next((path for path in paths if path.name == name), None)

    def _sweep(self) -> None:
        for token, outcome in list(self._outcomes.items()):
            if time.monotonic() - outcome.made > _KEPT_SEC:
                self._outcomes.pop(token, None)
                shutil.rmtree(outcome.folder, ignore_errors=True)


@contextlib.contextmanager
def _without_folders(video: pathlib.Path | None) -> Iterator[None]:
    """Keeps the server's own folders out of sentences about an upload."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error) if video is None else str(error).replace(f"{video.parent}/", "")) from error


def _write(made: Result, index: int, seed: int, folder: pathlib.Path) -> Take:
    waveform = made.waveforms[index]
    stem = made.video.stem if made.video else "sound"
    name = f"{stem}_seed{seed}"
    media_writer.write_audio(folder / f"{name}.wav", waveform, made.hz)
    drawn = folder / f"{name}.png"
    drawn.write_bytes(picture(waveform, made.hz))
    video = _with_pictures(made, index, folder / name) if made.video or made.frames else None
    return Take(seed, float(np.abs(waveform).max(initial=0)), folder / f"{name}.wav", video, drawn)


def _with_pictures(made: Result, index: int, place: pathlib.Path) -> pathlib.Path:
    """The pictures with the sound: generated ones, or a copy of the video in a container that browsers play if that fits."""
    suffix = ".mp4" if made.video is None else media_writer.copy_suffix(made.video).lower()
    for each in dict.fromkeys((suffix if suffix == ".webm" else ".mp4", suffix)):
        path = place.with_name(f"{place.name}{each}")
        with contextlib.suppress(UserError):
            made.write(path, index)
            return path
    name = place.name if made.video is None else made.video.name
    raise UserError(f"{name} cannot be copied into a video with sound: convert it to .mp4 first")


def plain_name(name: str) -> str:
    """The name of an uploaded video. Raises UserError if it is a path, an address, or not a video's."""
    if not _NAME.fullmatch(name) or name.startswith("."):
        raise UserError(f"{name[:100]!r} is not a plain file name: send a file, not a path or an address")
    if pathlib.Path(name).suffix.lower() not in media.VIDEO_SUFFIXES:
        raise UserError(f"{name} is not a video ({', '.join(media.VIDEO_SUFFIXES)})")
    return name


_NUMBERS = {
    "seed": int, "variants": int, "steps": int, "guidance": float, "best_of": int, "mix": float, "loudness": float,
    "start": float, "end": float,
}
_YES, _NO = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


def read_request(fields: Mapping[str, object]) -> Request:
    """A `Request` from the fields of a form; absent and empty ones keep their default. Raises UserError for others."""
    known = {field.name for field in dataclasses.fields(Request)}
    values = {}
    for name, value in fields.items():
        if name not in known:
            raise UserError(f"{name} is not a field: use {', '.join(sorted(known))}")
        if value is None or value == "":
            continue
        if name == "script":
            values[name] = timed_prompts(str(value))
            continue
        if name == "respect_cuts":
            if str(value).lower() not in (*_YES, *_NO):
                raise UserError(f"{name}={value} is neither true nor false")
            values[name] = str(value).lower() in _YES
            continue
        try:
            values[name] = _NUMBERS.get(name, str)(value)
        except (TypeError, ValueError) as error:
            raise UserError(f"{name}={value} is not a number") from error
    return Request(**values)
