"""Compare finished evaluations or runs: metrics in columns, and differences to the first with their intervals.

A run has one entry per system, guidance scale and seed, which is compared with the same entry of the first run.
"""

from collections.abc import Sequence
import dataclasses
import json
from typing import Any

import numpy as np

from msg_jax import storage
from msg_jax.clip import ClipSpec
from msg_jax.config import tree
from msg_jax.config.schema import FolderEvaluation
from msg_jax.errors import UserError
from msg_jax.evaluation import bootstrap, measurement, onsets, report
from msg_jax.infra import logging
from msg_jax.infra.record import RECORD, read_record
from msg_jax.storage import Path

_COUNTS = "counts/"  # tables of (tp, fp, fn) of a run's clips, by the F1 that they make


@dataclasses.dataclass(frozen=True)
class Entry:
    """One column: the metrics of a set of clips, and the tables to resample them by clip."""

    label: str
    system: str  # pairs the entries of two runs
    row: dict[str, Any]
    ids: Sequence[str]  # of the clips, one per row of the tables
    tables: dict[str, np.ndarray]
    replicates: dict[str, np.ndarray]

    def tables_of(self, ids: Sequence[str]) -> dict[str, np.ndarray]:
        """The rows of these clips."""
        places = {name: place for place, name in enumerate(self.ids)}
        rows = [places[name] for name in ids]
        return {name: table[rows] for name, table in self.tables.items()}


def run(config: FolderEvaluation, root: Path) -> None:
    """Compare `config.runs`; write tables and report to `root`. Raises UserError if one of them was not evaluated."""
    runs = listed(config.runs)
    if len(runs) < 2:
        raise UserError("config.runs names fewer than two folders: give two or more, --config.runs=A,B.")
    names = listed(config.names) or _short_names(runs)
    if len(names) != len(runs):
        raise UserError(f"config.names has {len(names)} names for {len(runs)} runs: give one for each, or none.")
    record = read_record(root)
    taken = (root / "results.json").exists() if record is None else record.get("compares") != runs
    if taken:
        raise UserError(f"{root} does not hold this comparison; choose another --workdir.")
    first, *others = (read_entries(storage.path(folder), name) for folder, name in zip(runs, names))
    columns = {entry.label: entry.row for entries in (first, *others) for entry in entries}
    options = dict(seed=config.seed, resamples=config.bootstrap)
    compared = [(entry, baseline) for entries in others for entry in entries for baseline in first
              if entry.system == baseline.system or len(entries) == len(first) == 1]
    against = {f"{entry.label} - {baseline.label}": difference(entry, baseline, **options) for entry, baseline in compared}
    results = {
        "rows": [{"system": label, **row} for label, row in columns.items()],
        "differences": [{"system": entry.label, "baseline": baseline.label, **row}
                        for (entry, baseline), row in zip(compared, against.values())],
    }
    logging.write_atomically(root / RECORD, json.dumps({"compares": runs}) + "\n")
    logging.write_atomically(root / "results.json", json.dumps(results, indent=1) + "\n")
    table = report.format_metrics(columns, against)
    logging.write_atomically(root / "table.txt", table + "\n")
    path = report.write_metrics(
        root, columns, ClipSpec(mel=onsets.MEL), intro=f"{len(runs)} evaluations compared.",
        differences=against, baseline=names[0], title="Systems compared",
        facts={"compared": dict(zip(names, runs)), "config": tree.to_dict(config)},
    )
    logging.info("%s\n\nreport: %s", table, path)


def listed(text: str) -> list[str]:
    """The parts of "a,b" or "(a, b)"."""
    return [part for part in (each.strip(" '\"") for each in text.strip(" ()[]").split(",")) if part]


def _short_names(folders: Sequence[str]) -> list[str]:
    """The last part of each path, or whole paths if two last parts are equal."""
    names = [storage.path(folder).name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def read_entries(folder: Path, name: str) -> list[Entry]:
    """Read one entry from an evaluation, or one per system, guidance scale and seed from a run."""
    path = folder / "results.json"
    if not path.exists():
        raise UserError(f"config.runs names {folder}, which holds no results.json: evaluate it first, or leave it out.")
    try:
        rows = json.loads(path.read_text())["rows"]
    except (ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error}): evaluate {folder} again.") from error
    record = read_record(folder) or {}
    return [_of_evaluation(folder, name, rows)] if "evaluates" in record else _of_run(folder, name, rows)


def _of_evaluation(folder: Path, name: str, rows: list[dict]) -> Entry:
    with storage.on_disk(folder / "per_clip.npz") as copy, np.load(copy, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}

    def part(prefix):
        return {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}

    row = {key: value for key, value in rows[0].items() if key not in ("system", "event_count")}
    return Entry(name, "", row, arrays["ids"].tolist(), part("table/"), part("jackknife/"))


def _of_run(folder: Path, name: str, rows: list[dict]) -> list[Entry]:
    entries, prepared = [], (read_record(folder / "prepare") or {}).get("digest", str(folder))
    for row in rows:
        key = "-".join(str(row[field]) for field in ("system", "guidance", "seed") if row[field] is not None)
        kept = folder / "evaluate" / "rows" / f"{key}.json"
        counts = json.loads(kept.read_text()).get("counts", {}) if kept.exists() else {}
        tables = {f"{_COUNTS}{metric}": np.array(rows) for metric, rows in counts.items()}
        clips = len(next(iter(tables.values()), ()))
        ids = [f"{prepared}-{row['split']}-{i}" for i in range(clips)]  # a run's clips are the first of its split
        metrics = {field: value for field, value in row.items() if field not in ("system", "guidance", "split", "seed")}
        entries.append(Entry(f"{name}/{key}", key, metrics, ids, tables, {}))
    return entries


def difference(ours: Entry, theirs: Entry, *, seed: int, resamples: int) -> dict[str, Any]:
    """The metrics that both entries have, ours minus theirs, on the clips that both measured.

    A metric that is not a sum over clips needs the *same* clips on both sides.
    """
    row: dict[str, Any] = {}
    shared = sorted(set(ours.ids) & set(theirs.ids))
    same = len(shared) == len(ours.ids) == len(theirs.ids) > 0
    options = dict(seed=seed, resamples=resamples)
    tables = [entry.tables_of(shared) for entry in (ours, theirs)]
    paired = measurement.differences(*tables, **options) if shared else {}
    for name in (name for name in tables[0] if name.startswith(_COUNTS) and name in tables[1] and shared):
        paired[name.removeprefix(_COUNTS)] = bootstrap.f1_difference_interval(*(each[name] for each in tables), **options)
    for name in ours.row:
        if name.endswith("_reason") or name not in theirs.row:
            continue
        our_value, their_value = (_value(entry.row.get(name)) for entry in (ours, theirs))
        if our_value is None or their_value is None:
            row |= {name: None, f"{name}_reason": "one of the two was not computed"}
        elif name in paired:
            row[name] = paired[name]
        elif same and name in ours.replicates and name in theirs.replicates:
            gap = ours.replicates[name] - theirs.replicates[name]
            row[name] = bootstrap.jackknife_interval(our_value - their_value, gap)
        elif same:
            row[name] = our_value - their_value
        else:
            row |= {name: None, f"{name}_reason": f"{ours.label} and {theirs.label} were measured on different clips"}
    return row


def _value(value: Any) -> float | None:
    return value.get("value") if isinstance(value, dict) else value
