"""The program `sweep`: many base models, each with its own changes to the config, for every seed, in one table.

A cell is a named set of changes. Cells that agree on the settings of a stage share it: it lies beside the cells if the sweep's
own config agrees too, else in `variants/`. `cells/NAME/seed_K/` holds a cell's networks and metrics. A finished cell is not
made again; a failed one is named in the table, and the sweep goes on.
"""

from collections.abc import Mapping
import dataclasses
import json
import math
import traceback
from typing import Any

import numpy as np

from msg_jax.config import tree
from msg_jax.config.schema import Config, Sweep
from msg_jax.errors import UserError
from msg_jax.infra import logging
from msg_jax.programs import checks
from msg_jax.programs.plan import Plan, maker, plan
from msg_jax.run.run import Run
from msg_jax.run.stage import settings, text_digest
from msg_jax.storage import Path
from msg_jax.studies import event_metrics
from msg_jax.tables import markdown

GROUPS = ("all", "transition", "1_source", "2_sources", "3_sources")
_COLUMNS = {
    "event F1": ("all", "event_f1"), "within 40 ms": ("all", "event_f1_40ms"), "onset F1": ("all", "onset_f1"),
    "class F1": ("all", "class_f1"), "transitions": ("transition", "event_f1"), "1 source": ("1_source", "event_f1"),
    "2 sources": ("2_sources", "event_f1"), "3 and more": ("3_sources", "event_f1"), "FD": ("fd_judge",),
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One set of changes on one of the study's axes; the baseline is a cell without changes."""

    axis: str
    name: str
    changes: Mapping[str, Any]

    def config(self, shared: Config) -> Config:
        """The sweep's config with this cell's changes. Raises UserError on an unknown field or a value of the wrong type."""
        try:
            return tree.replace(shared, program="stages", sweep=Sweep(), **self.changes)
        except UserError as error:
            raise UserError(f"config.sweep.cells.{self.axis}.{self.name} does not fit the config: {error}") from error


def cells_of(config: Config) -> list[Cell]:
    """The baseline, then the cells of `config.sweep.cells`, axis by axis. Raises UserError if two have the same name."""
    cells = [Cell("", "baseline", {})]
    cells += [Cell(axis, name, changes) for axis, named in config.sweep.cells.items() for name, changes in named.items()]
    names = [cell.name for cell in cells]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise UserError(f"config.sweep.cells has more than one {repeated[0]!r}: rename one.")
    return cells


def fingerprint(run: Run, stages: Plan, name: str) -> str:
    """A digest of the settings of a stage and of everything it needs."""
    stage = stages[name]
    needs = (fingerprint(run, stages, need) for need in stage.needs)
    return text_digest(name, json.dumps(settings(run, stage), sort_keys=True), *needs)


def place(run: Run, stages: Plan, shared: Run, shared_stages: Plan) -> Run:
    """A cell's run whose unseeded stages lie where all cells with equal settings find them."""
    places = {}
    for name, stage in stages.items():
        if not stage.seeded and not any(stages[need].seeded for need in stage.needs):
            own = fingerprint(run, stages, name)
            same = name in shared_stages and fingerprint(shared, shared_stages, name) == own
            places[name] = shared.root / name if same else shared.root / "variants" / f"{name}_{own[:8]}"
    return dataclasses.replace(run, places=places)


def run(config: Config, root: Path) -> None:
    """Make every cell for every seed; write `table.md` and `results.json`. Raises UserError if no cell could be made."""
    cells = cells_of(config)
    plain = cells[0].config(config)
    checks.check(plain)
    shared, failures = Run.create(plain, root), {}
    shared_stages = plan(plain)
    for seed in config.seeds:  # one seed of all cells first, so that a stopped sweep can be compared
        for cell in cells:
            if cell.name in failures:
                continue
            logging.info("\n%-13s %s, seed %d", "cell", cell.name, seed)
            try:
                _make(cell.config(config), cell.name, seed, shared, shared_stages)
            except Exception as error:  # whatever it is, the other cells can be made
                failures[cell.name] = str(error).splitlines()[0] if isinstance(error, UserError) else repr(error)
                logging.info("%-13s %s failed: %s", "cell", cell.name, failures[cell.name])
                if not isinstance(error, UserError):
                    logging.info("%s", traceback.format_exc())
    results = summary(config, shared.root, cells, failures)
    if not results["cells"]:
        raise UserError(f"No cell of the sweep could be made: {failures[cells[0].name]}")
    logging.write_atomically(shared.root / "results.json", json.dumps(results, indent=1) + "\n")
    table = format_table(results)
    logging.write_atomically(shared.root / "table.md", table)
    logging.info("\n%s", table)


def _make(config: Config, name: str, seed: int, shared: Run, shared_stages: Plan) -> None:
    checks.check(config)
    checks.check_batches(config, ("sf_cavp", "judge", "encoders", "base"), shared.mesh)
    mine, stages = Run.create(config, shared.root / "cells" / name), plan(config)
    maker(place(mine, stages, shared, shared_stages), stages, {})("event_metrics", seed)


def summary(config: Config, root: Path, cells: list[Cell], failures: dict[str, str]) -> dict[str, Any]:
    """Mean and standard error over seeds of each metric, and its difference to the baseline's, by cell and guidance scale.

    Differences are between equal seeds. `failed` has the reason of each failed cell.
    """
    rows, reference = {}, None
    for cell in cells:
        folder = root / "cells" / cell.name
        folders = [folder / f"seed_{seed}" if len(config.seeds) > 1 else folder for seed in config.seeds]
        if cell.name not in failures:
            found = [json.loads((each / "event_metrics" / event_metrics.FILE).read_text()) for each in folders]
            rows[cell.name] = [each["rows"] for each in found]
            reference = reference or found[0]["reconstructed"]
    results = {"seeds": list(config.seeds), "reconstructed": reference, "failed": failures, "cells": []}
    for cell in (cell for cell in cells if cell.name in rows):
        for place_, scale in enumerate(row["guidance"] for row in rows[cell.name][0]):
            mine = [_flat(seed[place_]) for seed in rows[cell.name]]
            base = [_flat(seed[place_]) for seed in rows.get("baseline", [])]
            results["cells"].append({
                "axis": cell.axis, "name": cell.name, "guidance": scale, "changes": cell.changes,
                "metrics": {key: mean_and_error([row[key] for row in mine]) for key in mine[0]},
                "differences": {
                    key: mean_and_error([row[key] - its[key] for row, its in zip(mine, base)])
                    for key in mine[0] if base and cell.name != "baseline"
                },
            })
    return results


def _flat(row: dict[str, Any]) -> dict[str, float]:
    """The metrics of a row; those of a group are named GROUP/NAME."""
    flat = {name: value for name, value in row.items() if isinstance(value, float) and name != "guidance"}
    return flat | {
        f"{group}/{name}": value for group in GROUPS if group in row for name, value in row[group].items() if name != "clips"
    }


def mean_and_error(values: list[float]) -> dict[str, float | None]:
    """Mean and standard error of the mean; the error of a single value is None.

    >>> mean_and_error([1.0, 3.0])
    {'mean': 2.0, 'error': 1.0}
    """
    error = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "error": error}


def format_table(results: dict[str, Any]) -> str:
    """Two Markdown tables, metrics and differences to the baseline, with failed cells below."""
    heading = ["axis", "cell", "guidance", *_COLUMNS]

    def row(cell: dict[str, Any], metrics: dict[str, Any], sign: str) -> list[str]:
        return [cell["axis"], cell["name"], f"{cell['guidance']:g}", *_values(metrics, sign)]

    ceiling = {key: {"mean": value, "error": None} for key, value in _flat(results["reconstructed"]).items()}
    rows = [row(cell, cell["metrics"], "") for cell in results["cells"]]
    rows.append(["", "real sound through the codec", "", *_values(ceiling, "")])
    lines = [f"Mean and standard error over {len(results['seeds'])} seeds; FD: smaller is better.", ""]
    lines += markdown([heading, *rows])
    differences = [row(cell, cell["differences"], "+") for cell in results["cells"] if cell["differences"]]
    if differences:
        lines += ["", "Differences to the baseline, seed by seed:", "", *markdown([heading, *differences])]
    lines += ["", *(f"- {name} failed: {reason}" for name, reason in results["failed"].items())]
    return "\n".join(lines).rstrip() + "\n"


def _values(metrics: dict[str, Any], sign: str) -> list[str]:
    texts = []
    for path in _COLUMNS.values():
        value = metrics.get("/".join(path))
        digits = 2 if path == ("fd_judge",) else 3
        texts.append("" if value is None else f"{value['mean']:{sign}.{digits}f}" + (
            f" ± {value['error']:.{digits}f}" if value["error"] is not None else ""))
    return texts
