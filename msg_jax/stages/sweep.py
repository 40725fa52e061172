"""A study: one base model after the other, each with its own changes to the config, for every seed, in one table.

A cell is a named set of changes. What it needs is made once for all cells that agree on it: beside the cells where the sweep's
own config asks for it too, in `variants/` where several cells share another. In `cells/NAME/seed_K/` are a cell's networks and
figures. A finished one is not made again; one that fails is told in the table, and the next begins.
"""

from collections.abc import Callable
import dataclasses
import json
import math
import pathlib
import traceback
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from msg_jax import networks
from msg_jax.errors import UserError
from msg_jax.infra import logging
from msg_jax.stages import figures
from msg_jax.stages.common import Run, Stage, settings, text_digest

GROUPS = ("all", "transition", "1_source", "2_sources", "3_sources")
_COLUMNS = {
    "event F1": ("all", "event_f1"), "within 40 ms": ("all", "event_f1_40ms"), "onset F1": ("all", "onset_f1"),
    "class F1": ("all", "class_f1"), "transitions": ("transition", "event_f1"), "1 source": ("1_source", "event_f1"),
    "2 sources": ("2_sources", "event_f1"), "3 and more": ("3_sources", "event_f1"), "FD": ("fd_judge",),
}
Plan = Callable[[ConfigDict], dict[str, Stage]]
Maker = Callable[[Run, dict[str, Stage]], Callable[[str, int | None], str]]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One set of changes on one of the study's axes; the baseline is a cell without changes."""

    axis: str
    name: str
    changes: ConfigDict

    def config(self, shared: ConfigDict) -> ConfigDict:
        """The sweep's config with this cell's changes. Raises UserError on a field that there is not, or of another type."""
        config = shared.copy_and_resolve_references().unlock()
        del config.sweep
        config.lock()
        try:
            config.update(self.changes.to_dict())
        except (KeyError, AttributeError, TypeError) as error:
            raise UserError(f"config.sweep.cells.{self.axis}.{self.name} does not fit the config: {str(error).splitlines()[0]}."
                            ) from error
        return config.unlock()


def cells_of(config: ConfigDict) -> list[Cell]:
    """The baseline, then the cells of `config.sweep.cells`, axis by axis. Raises UserError where two have one name."""
    cells = [Cell("", "baseline", ConfigDict())]
    cells += [Cell(axis, name, changes) for axis, named in config.sweep.cells.items() for name, changes in named.items()]
    names = [cell.name for cell in cells]
    if doubled := [name for name in names if names.count(name) > 1]:
        raise UserError(f"config.sweep.cells has more than one {doubled[0]!r}: rename one.")
    return cells


def fingerprint(run: Run, stages: dict[str, Stage], name: str) -> str:
    """What decides a stage's result: its settings, and those of all that it needs."""
    stage = stages[name]
    needs = (fingerprint(run, stages, need) for need in stage.needs)
    return text_digest(name, json.dumps(settings(run, stage), sort_keys=True), *needs)


def place(run: Run, stages: dict[str, Stage], shared: Run, shared_stages: dict[str, Stage]) -> Run:
    """A cell's run whose unseeded stages lie where every cell finds them that has the same settings."""
    places = {}
    for name, stage in stages.items():
        if not stage.seeded and not any(stages[need].seeded for need in stage.needs):
            own = fingerprint(run, stages, name)
            same = name in shared_stages and fingerprint(shared, shared_stages, name) == own
            places[name] = shared.root / name if same else shared.root / "variants" / f"{name}_{own[:8]}"
    return dataclasses.replace(run, places=places)


def run(config: ConfigDict, workdir: str | pathlib.Path, plan: Plan, maker: Maker) -> None:
    """Makes every cell for every seed and writes `table.md` and `results.json`. Raises UserError if no cell could be made."""
    cells, plain = cells_of(config), Cell("", "baseline", ConfigDict()).config(config)
    shared = Run.create(plain, workdir)
    networks.check(plain, shared.clip)
    shared_stages, failures = plan(plain), {}
    for seed in config.seeds:  # one seed of all cells first: a sweep that is stopped early can be compared
        for cell in cells:
            if cell.name in failures:
                continue
            logging.info("\n%-13s %s, seed %d", "cell", cell.name, seed)
            try:
                changed = cell.config(config)
                mine = Run.create(changed, shared.root / "cells" / cell.name)
                networks.check(changed, mine.clip)
                stages = plan(changed)
                maker(place(mine, stages, shared, shared_stages), stages)("figures", seed)
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


def summary(config: ConfigDict, root: pathlib.Path, cells: list[Cell], failures: dict[str, str]) -> dict[str, Any]:
    """Per cell and guidance scale: each figure as mean and standard error over seeds, and as difference to the baseline.

    Differences are those of equal seeds. A cell that failed has its reason.
    """
    rows, reference = {}, None
    for cell in cells:
        folder = root / "cells" / cell.name
        folders = [folder / f"seed_{seed}" if len(config.seeds) > 1 else folder for seed in config.seeds]
        if cell.name not in failures:
            found = [json.loads((each / "figures" / figures.FILE).read_text()) for each in folders]
            rows[cell.name] = [each["rows"] for each in found]
            reference = reference or found[0]["reconstructed"]
    results = {"seeds": list(config.seeds), "reconstructed": reference, "failed": failures, "cells": []}
    for cell in (cell for cell in cells if cell.name in rows):
        for place_, scale in enumerate(row["guidance"] for row in rows[cell.name][0]):
            mine = [_flat(seed[place_]) for seed in rows[cell.name]]
            base = [_flat(seed[place_]) for seed in rows.get("baseline", [])]
            results["cells"].append({
                "axis": cell.axis, "name": cell.name, "guidance": scale, "changes": cell.changes.to_dict(),
                "figures": {key: mean_and_error([row[key] for row in mine]) for key in mine[0]},
                "differences": {
                    key: mean_and_error([row[key] - its[key] for row, its in zip(mine, base)])
                    for key in mine[0] if base and cell.name != "baseline"
                },
            })
    return results


def _flat(row: dict[str, Any]) -> dict[str, float]:
    """The figures of a row, with "GROUP/NAME" for those of a group."""
    flat = {name: value for name, value in row.items() if isinstance(value, float) and name != "guidance"}
    return flat | {
        f"{group}/{name}": value for group in GROUPS if group in row for name, value in row[group].items() if name != "clips"
    }


def mean_and_error(values: list[float]) -> dict[str, float | None]:
    """Mean and standard error of the mean, which one value alone does not have.

    >>> mean_and_error([1.0, 3.0])
    {'mean': 2.0, 'error': 1.0}
    """
    error = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "error": error}


def format_table(results: dict[str, Any]) -> str:
    """Two Markdown tables: figures, and differences to the baseline; what failed, and why, below."""
    heading = ["axis", "cell", "guidance", *_COLUMNS]
    lines = [f"Mean and standard error over {len(results['seeds'])} seeds; FD: smaller is better.", "", *_header(heading)]
    for cell in results["cells"]:
        lines.append(_line([cell["axis"], cell["name"], f"{cell['guidance']:g}", *_values(cell["figures"], "")]))
    ceiling = {key: {"mean": value, "error": None} for key, value in _flat(results["reconstructed"]).items()}
    lines.append(_line(["", "real sound through the codec", "", *_values(ceiling, "")]))
    if any(cell["differences"] for cell in results["cells"]):
        lines += ["", "Differences to the baseline, seed by seed:", "", *_header(heading)]
        lines += [
            _line([cell["axis"], cell["name"], f"{cell['guidance']:g}", *_values(cell["differences"], "+")])
            for cell in results["cells"] if cell["differences"]
        ]
    lines += ["", *(f"- {name} failed: {reason}" for name, reason in results["failed"].items())]
    return "\n".join(lines).rstrip() + "\n"


def _header(names: list[str]) -> list[str]:
    return [_line(names), _line(["---"] * len(names))]


def _line(values: list[str]) -> str:
    return f"| {' | '.join(values)} |"


def _values(figures_: dict[str, Any], sign: str) -> list[str]:
    texts = []
    for path in _COLUMNS.values():
        value = figures_.get("/".join(path))
        digits = 2 if path == ("fd_judge",) else 3
        texts.append("" if value is None else f"{value['mean']:{sign}.{digits}f}" + (
            f" ± {value['error']:.{digits}f}" if value["error"] is not None else ""))
    return texts
