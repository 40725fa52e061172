"""Timed prompts: a CSV file of cues, each a span of time with a prompt of its own."""

from collections.abc import Sequence
import csv
import dataclasses
import itertools
import math
import os
import pathlib

from msg_jax.errors import UserError

COLUMNS = ("start", "end", "prompt", "negative_prompt")


@dataclasses.dataclass(frozen=True)
class Cue:
    """What is to be heard from `start_sec` to `end_sec`."""

    start_sec: float
    end_sec: float
    prompt: str = ""
    negative_prompt: str = ""


def read_cues(path: str | os.PathLike) -> tuple[Cue, ...]:
    """Read cues from a CSV file with the columns start, end, prompt and, if wanted, negative_prompt.

    Times are seconds, or [hours:]minutes:seconds. Raises UserError, naming the line, if a time cannot be read, if a cue ends
    before it starts, or if two overlap.
    """
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--script={path} cannot be read ({error}); give a CSV file in UTF-8.") from error
    rows = csv.reader(text.splitlines())
    header = [name.strip() for name in next(rows, [])]
    if header not in (list(COLUMNS), list(COLUMNS[:-1])):
        raise UserError(f"--script={path} must begin with the line {','.join(COLUMNS)}, or without the last name.")
    cues = []
    for row in rows:
        where = f"--script={path}, line {rows.line_num}"
        if not any(row):
            continue
        if len(row) != len(header):
            raise UserError(f"{where}: {len(row)} values for {len(header)} columns; put a prompt with commas in double quotes.")
        start, end = (_seconds(value, where) for value in row[:2])
        if not start < end:
            raise UserError(f"{where}: the cue ends at {end:g} s and starts at {start:g} s; give a later end.")
        cues.append((start, end, where, [each.strip() for each in row[2:]]))
    cues.sort(key=lambda cue: cue[0])
    for (_, end, _, _), (start, _, where, _) in itertools.pairwise(cues):
        if start < end:
            raise UserError(f"{where}: the cue starts at {start:g} s, before the last one ends at {end:g} s; cues may not "
                            "overlap.")
    if not cues:
        raise UserError(f"--script={path} has no cues; add a line for each.")
    return tuple(Cue(start, end, *texts) for start, end, _, texts in cues)


def _seconds(text: str, where: str) -> float:
    try:
        parts = [float(part) for part in text.strip().split(":")]
        seconds = sum(part * 60**power for power, part in enumerate(reversed(parts)))
    except ValueError:
        parts, seconds = [], math.nan
    if not 1 <= len(parts) <= 3 or not 0 <= seconds < math.inf or min(parts) < 0:
        raise UserError(f"{where}: {text!r} is not a time; write seconds, or minutes:seconds.")
    return seconds


def fill(cues: Sequence[Cue], duration_sec: float, rest: Cue) -> list[Cue]:
    """The cues of a clip from 0 to `duration_sec`, with the texts of `rest` where there is none."""
    filled, at = [], 0.0
    for cue in cues:
        start, end = min(cue.start_sec, duration_sec), min(cue.end_sec, duration_sec)
        if start > at:
            filled.append(dataclasses.replace(rest, start_sec=at, end_sec=start))
        if end > start:
            filled.append(dataclasses.replace(cue, start_sec=start, end_sec=end))
        at = max(at, end)
    if at < duration_sec:
        filled.append(dataclasses.replace(rest, start_sec=at, end_sec=duration_sec))
    return filled
