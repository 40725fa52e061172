"""python -m msg_jax.data.multi_event ANNOTATION.csv --out=IDS.txt [--FLAG=VALUE ...]

Select the multi-event clips of a test set by a rule that can be published with the list. The file begins with the rule, its
parameters, the counts and a SHA-256 of the sorted ids; then follow the clip ids, one a line, in sections by number of classes.

The annotation is one of
  event times   a header with the columns id, class, onset, offset (seconds), one row per event;
  labels        VGGSound's columns id, start, label, split (the header is optional), one row per label; clip ids are
                ID_000030, as VGGSound's files are named;
  vggsounder    VGGSounder's csv, or the word vggsounder for the file of the installed package. A clip's classes are its
                labels that are both audible and visible, with --offscreen those that are only audible. Labels that name
                the same event count once (`vggsounder_labels.csv`). Clips with background music, a still image or a
                voice-over have none.

A clip is selected if it meets any of the --kinds (with --match=all: all of them):
  classes     it has at least --min_classes different classes;
  events      it has at least --min_events events that begin --min_gap_sec or more after each other;
  overlap     two events of different classes overlap for at least --min_overlap_sec;
  transition  one class has ended before another first begins, or overlaps with it by at most --min_overlap_sec.
Labels have no times, so the last two forms support only `classes`.
"""

import argparse
import collections
from collections.abc import Mapping, Sequence
import csv
import dataclasses
import hashlib
import itertools
import json
import math
import os
import pathlib
import sys
from typing import NamedTuple

from msg_jax.data import vggsounder
from msg_jax.errors import UserError, fail

KINDS = ("classes", "events", "overlap", "transition")
TIMED = KINDS[1:]
_TIME_COLUMNS = ("id", "class", "onset", "offset")
_LABEL_COLUMNS = ("id", "start", "label", "split")
_SECTION = "# number of classes: "
_NUMBERS = ("min_classes", "min_events", "min_gap_sec", "min_overlap_sec")  # fields of `Rule`


class Event(NamedTuple):
    """One row of an annotation. Times are NaN if it has none."""

    label: str
    onset_sec: float = math.nan
    offset_sec: float = math.nan


@dataclasses.dataclass(frozen=True)
class Rule:
    """The definition of a multi-event clip."""

    kinds: tuple[str, ...] = ("classes",)
    match: str = "any"  # any | all of the kinds
    min_classes: int = 2
    min_events: int = 2
    min_gap_sec: float = 0.5
    min_overlap_sec: float = 0.1

    def chooses(self, events: Sequence[Event]) -> bool:
        """Whether a clip with these events is a multi-event clip."""
        met = meets(events, self)
        return (any if self.match == "any" else all)(met[kind] for kind in self.kinds)


def meets(events: Sequence[Event], rule: Rule) -> dict[str, bool]:
    """Whether a clip with these events meets each of the rule's kinds."""
    by_class = {label: [event for event in events if event.label == label] for label in {event.label for event in events}}
    pairs = list(itertools.combinations(by_class.values(), 2))
    tests = {
        "classes": lambda: len(by_class) >= rule.min_classes,
        "events": lambda: separated(events, rule.min_gap_sec) >= rule.min_events,
        "overlap": lambda: any(
            _overlap_sec(a, b) >= rule.min_overlap_sec for one, other in pairs for a in one for b in other
        ),
        "transition": lambda: any(
            max(a.offset_sec for a in first) - min(b.onset_sec for b in then) <= rule.min_overlap_sec
            for one, other in pairs for first, then in ((one, other), (other, one))
        ),
    }
    return {kind: tests[kind]() for kind in rule.kinds}


def separated(events: Sequence[Event], min_gap_sec: float) -> int:
    """The largest number of events, of any class, whose onsets are all at least `min_gap_sec` apart."""
    count, last = 0, -math.inf
    for onset in sorted(event.onset_sec for event in events):
        if onset - last >= min_gap_sec - 1e-9:
            count, last = count + 1, onset
    return count


def _overlap_sec(a: Event, b: Event) -> float:
    return min(a.offset_sec, b.offset_sec) - max(a.onset_sec, b.onset_sec)


def read_events(path: str | os.PathLike) -> dict[str, list[Event]]:
    """Reads events by clip id from a csv with the columns id, class, onset, offset.

    Raises UserError, naming the line, for a malformed row.
    """
    clips: dict[str, list[Event]] = {}
    for line, row in _rows(pathlib.Path(path), _TIME_COLUMNS):
        try:
            onset, offset = float(row["onset"]), float(row["offset"])
        except (TypeError, ValueError):
            onset = offset = math.nan
        if not (0 <= onset <= offset < math.inf):
            raise UserError(
                f"{path} line {line}: onset {row['onset']!r} and offset {row['offset']!r} are not seconds in ascending order; "
                "correct the row"
            )
        clips.setdefault(row["id"], []).append(Event(row["class"], onset, offset))
    return clips


def read_labels(path: str | os.PathLike, split: str | None = None) -> dict[str, list[Event]]:
    """Reads labels by clip id from VGGSound's columns id, start, label, split: of one split, or of all if None.

    Raises UserError, naming the line, for a malformed row.
    """
    clips: dict[str, list[Event]] = {}
    for line, row in _rows(pathlib.Path(path), _LABEL_COLUMNS):
        if not (row["start"] or "").strip().isdigit():
            raise UserError(f"{path} line {line}: the start {row['start']!r} is not a whole number of seconds; correct the row")
        if split is None or row["split"] == split:
            clips.setdefault(f"{row['id']}_{int(row['start']):06d}", []).append(Event(row["label"]))
    return clips


def read_vggsounder(path: str | os.PathLike, offscreen: bool = False) -> dict[str, list[Event]]:
    """Reads on-screen events by clip id from VGGSounder's csv, or off-screen events. Flagged clips have none.

    Raises UserError, naming the line, for a malformed row.
    """
    clips: dict[str, dict[str, str]] = {}
    flagged = set()
    for line, row in _rows(pathlib.Path(path), vggsounder.COLUMNS):
        if row["modality"] not in vggsounder.MODALITIES:
            raise UserError(f"{path} line {line}: the modality {row['modality']!r} is not A, V or AV; correct the row")
        flags = [row[name] for name in vggsounder.FLAGS]
        if not set(flags) <= {"True", "False"}:
            raise UserError(f"{path} line {line}: the flags {', '.join(flags)} are not True or False; correct the row")
        if "True" in flags:
            flagged.add(row["video_id"])
        clips.setdefault(row["video_id"], {})[row["label"]] = row["modality"]
    choose = vggsounder.offscreen if offscreen else vggsounder.onscreen
    return {name: [Event(label) for label in sorted(choose(labels))] if name not in flagged else []
            for name, labels in clips.items()}


def form_of(path: str | os.PathLike) -> str:
    """The form of an annotation, by its first line: times, labels or vggsounder."""
    header = set(next(iter(_table(pathlib.Path(path))), (0, []))[1])
    forms = {"times": _TIME_COLUMNS, "vggsounder": vggsounder.COLUMNS}
    return next((form for form, columns in forms.items() if set(columns) <= header), "labels")


def read_annotation(path: str | os.PathLike, split: str | None = None,
                    offscreen: bool = False) -> tuple[dict[str, list[Event]], str]:
    """Reads events by clip id from any form of annotation; also returns the form.

    Raises UserError if the file has none of the forms, or if it has no splits or modalities to choose from.
    """
    form = form_of(path)
    if form != "labels" and split is not None:
        raise UserError(f"{path} has no splits: leave out --split")
    if form != "vggsounder" and offscreen:
        raise UserError(f"{path} does not say which events are off screen: leave out --offscreen, or give VGGSounder's csv")
    if form == "vggsounder":
        return read_vggsounder(path, offscreen), form
    return (read_events(path) if form == "times" else read_labels(path, split)), form


def _table(path: pathlib.Path) -> list[tuple[int, list[str]]]:
    """(line number, cells) of each non-empty line."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            return [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(row)]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a csv file of events or labels") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}); save it as comma-separated UTF-8 text") from error


def _rows(path: pathlib.Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """(line number, cells by column) of each row. A file of labels may lack the header."""
    table = _table(path)
    if not table:
        raise UserError(f"{path} is empty; give a file with the columns {', '.join(columns)}")
    header = table[0][1]
    if set(columns) <= set(header):
        table = table[1:]
    elif columns == _LABEL_COLUMNS and len(header) == len(columns) and "id" not in header:
        header = list(columns)
    else:
        raise UserError(f"{path}: the first line {','.join(header)!r} does not name the columns {', '.join(columns)}; add them")
    for line, cells in table:
        if len(cells) != len(header):
            raise UserError(f"{path} line {line} has {len(cells)} values, not {len(header)}; correct the row")
    return [(line, dict(zip(header, cells))) for line, cells in table]


def select(clips: Mapping[str, Sequence[Event]], rule: Rule) -> list[str]:
    """The sorted ids of the clips that the rule chooses."""
    return sorted(name for name, events in clips.items() if rule.chooses(events))


def list_digest(ids: Sequence[str]) -> str:
    """SHA-256 of the ids, each followed by a line feed."""
    return hashlib.sha256("".join(f"{name}\n" for name in ids).encode()).hexdigest()


def show(clips: Mapping[str, Sequence[Event]], rule: Rule, annotation: pathlib.Path, source: Mapping[str, str]) -> str:
    """The text of a list file: `# field: value` lines, then sections of ids. `source` says what was read of the annotation."""
    chosen = select(clips, rule)
    sections = by_classes({name: clips[name] for name in chosen})
    used = {"classes": ("min_classes",), "events": ("min_events", "min_gap_sec"), "overlap": ("min_overlap_sec",),
            "transition": ("min_overlap_sec",)}
    parameters = {name: getattr(rule, name) for kind in rule.kinds for name in used[kind]}
    header = {
        "rule": f"{rule.match} of {', '.join(rule.kinds)}",
        "parameters": json.dumps(parameters),
        "annotation": f"{annotation.name}, sha256 {hashlib.sha256(annotation.read_bytes()).hexdigest()}",
        **source,
        "clips": f"{len(chosen)} of {len(clips)}",
        "clips by number of classes": json.dumps({count: len(names) for count, names in sections.items()}),
        **{kind: sum(meets(events, rule)[kind] for events in clips.values()) for kind in rule.kinds},
        "sha256 of the list": list_digest(chosen),
    }
    lines = [f"# {name}: {value}" for name, value in header.items()]
    for count, names in sections.items():
        lines += [f"{_SECTION}{count}", *names]
    return "\n".join(["# multi-event clips", *lines, ""])


def by_classes(clips: Mapping[str, Sequence[Event]]) -> dict[int, list[str]]:
    """The ids of the clips with each number of classes, in the order of `clips`."""
    sections = collections.defaultdict(list)
    for name, events in clips.items():
        sections[len({event.label for event in events})].append(name)
    return dict(sorted(sections.items()))


def read_list(path: str | os.PathLike) -> dict[str, int | None]:
    """Reads the sorted ids of a list file, each with its clip's number of classes: None where the list has no sections.

    Raises UserError if it cannot be read, or if its header has a SHA-256 that does not match the ids.
    """
    path = pathlib.Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); give a text file with one clip id a line") from error
    ids, count = {}, None
    for line in filter(None, map(str.strip, lines)):
        if line.startswith(_SECTION):
            count = int(line.removeprefix(_SECTION))
        elif not line.startswith("#"):
            ids[line] = count
    ids = dict(sorted(ids.items()))
    for line in lines:
        name, _, digest = line.removeprefix("# ").partition(": ")
        if line.startswith("#") and name == "sha256 of the list" and digest.strip() != list_digest(list(ids)):
            raise UserError(f"{path} was changed: its ids do not match the SHA-256 in its header; make the list again")
    return ids


def _source(form: str, split: str | None, offscreen: bool) -> dict[str, str]:
    """The header's lines on what was read of an annotation."""
    if form == "vggsounder":
        return {
            "annotated by": "VGGSounder (arXiv 2508.08237), Apache-2.0",
            "labels": f"{'audible only' if offscreen else 'audible and visible'}; no {', '.join(vggsounder.FLAGS)}",
            "merged labels": f"{vggsounder.TABLE.name}, sha256 {hashlib.sha256(vggsounder.TABLE.read_bytes()).hexdigest()}",
        }
    return {"split": split} if split else {}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        fail(f"{message}; --help lists all flags.")


def parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    usage, _, details = (__doc__ or "").partition("\n\n")
    flags = _Parser(prog="python -m msg_jax.data.multi_event", usage=usage, description=details, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("annotation", type=pathlib.Path, help="a csv file, or the word vggsounder")
    flags.add_argument("--out", type=pathlib.Path, required=True, help="the list to write")
    flags.add_argument("--kinds", help=f"a subset of {','.join(KINDS)} (default: all; for labels: classes)")
    flags.add_argument("--match", choices=("any", "all"), default="any")
    flags.add_argument("--split", help="of a file of labels: train or test")
    flags.add_argument("--offscreen", action="store_true", help="of VGGSounder: the events that are only audible")
    for name in _NUMBERS:
        default = getattr(Rule, name)
        flags.add_argument(f"--{name}", type=type(default), default=default)
    flags.add_argument("--overwrite", action="store_true", help="replace an existing list")
    return flags


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; exits with code 2 and one sentence on a user error."""
    args = parser().parse_args(argv)
    try:
        annotation = vggsounder.installed_csv() if str(args.annotation) == "vggsounder" else args.annotation
        clips, form = read_annotation(annotation, args.split, args.offscreen)
        kinds = tuple(args.kinds.split(",")) if args.kinds else KINDS if form == "times" else KINDS[:1]
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown:
            raise UserError(f"--kinds has {unknown[0]!r}: choose from {', '.join(KINDS)}")
        if form != "times" and set(kinds) & set(TIMED):
            raise UserError(f"{annotation} has labels without times, which support only --kinds=classes")
        if args.out.exists() and not args.overwrite:
            raise UserError(f"{args.out} exists already; pass --overwrite to replace it, or choose another --out")
        rule = dataclasses.replace(Rule(kinds, args.match), **{name: getattr(args, name) for name in _NUMBERS})
        text = show(clips, rule, annotation, _source(form, args.split, args.offscreen))
        args.out.parent.mkdir(parents=True, exist_ok=True)
        temporary = args.out.with_name(f".{args.out.name}.{os.getpid()}")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(args.out)
    except UserError as error:
        fail(str(error))
    print("".join(f"{line[2:]}\n" for line in text.splitlines() if line.startswith("# ")), end="", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
