"""Stages: the nodes of a run's plan, and how one is made once."""

from collections.abc import Callable, Iterator
import dataclasses
import hashlib
import json
import os
import time
from typing import Any

import jax

from msg_jax.config import tree
from msg_jax.errors import UserError
from msg_jax.infra import logging, runtime
from msg_jax.infra.record import RECORD, git_revision, read_record, versions
from msg_jax.run.run import Run
from msg_jax.storage import Path

Make = Callable[[Run, Path, int | None], str]
_HOW_NOT_WHAT = ("accumulate", "remat", "blocks", "cache", "read_threads", "label", "note", "attention_implementation")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One node of the plan.

    `make(run, folder, seed)` leaves its result in `folder` and returns the result's digest. It may be killed at any moment
    and is then called again on the same folder.
    """

    name: str
    make: Make
    needs: tuple[str, ...] = ()
    sections: tuple[str, ...] = ()  # SECTION or SECTION.FIELD: the settings that decide the result, beside `clip` and `data`
    seeded: bool = False
    alone: bool = False  # process 0 makes it while the others wait
    weights: tuple[str, ...] = ()  # kinds of released networks on whose files the result depends


def settings(run: Run, stage: Stage) -> dict[str, Any]:
    """The settings that decide the stage's result, as JSON."""
    config = json.loads(json.dumps(tree.to_dict(run.config)))
    kept = {name: _deciding(config[name]) for name in ("clip", "data", "seed")}
    for section in stage.sections:
        outer, _, inner = section.partition(".")
        if inner:
            kept.setdefault(outer, {})[inner] = _deciding(config[outer][inner])
        else:
            kept[outer] = _deciding(config[outer])
    if stage.weights:
        assert run.released is not None
        kept["weights"] = run.released.checksums(*stage.weights)
    return kept


def _deciding(section: Any) -> Any:
    """A section without the fields that say how a result is computed, not what it is."""
    if not isinstance(section, dict):
        return section
    return {name: _deciding(value) for name, value in section.items() if name not in _HOW_NOT_WHAT}


def ensure(run: Run, stage: Stage, seed: int | None, upstream: dict[str, str]) -> str:
    """Make the stage unless it is finished already; return its digest.

    Raises UserError, naming the field, if the folder holds a result of other settings or of other upstream results.
    """
    folder = run.folder(stage.name, seed)
    wanted = {"settings": settings(run, stage), "seed": seed, "upstream": upstream}
    record = read_record(folder)
    if record is not None:
        _refuse_difference(folder, record, wanted)
        if record["finished"]:
            logging.info("%-13s done before in %s", stage.name, folder)
            return record["digest"]
    logging.info("%-13s -> %s", stage.name, folder)
    folder.mkdir(parents=True, exist_ok=True)
    record = record or wanted | {
        "stage": stage.name, "finished": False, "git_revision": git_revision(), "versions": versions(), "seconds": 0.0,
        "device": f"{len(jax.devices())} x {jax.devices()[0].device_kind}", "clip_spec": run.clip.to_dict(),
        "config": tree.to_dict(run.config),
        "places": {name: os.path.relpath(place, folder) for name, place in run.places.items()},
    }
    _write_record(folder, record)
    begun = time.monotonic()
    made: list[str] = []
    if stage.alone:
        runtime.first_process_alone(lambda: made.append(stage.make(run, folder, seed)), str(folder))
    else:
        made.append(stage.make(run, folder, seed))
    if jax.process_index() == 0:
        run.collect_skipped()
        _write_record(folder, record | {"finished": True, "digest": made[0], "seconds": round(time.monotonic() - begun, 1)})
    runtime.barrier(f"stage {folder}")
    finished = read_record(folder)
    assert finished is not None
    return finished["digest"]


def text_digest(*texts: str) -> str:
    """SHA-256 of texts."""
    sha = hashlib.sha256()
    for text in texts:
        sha.update(text.encode())
    return sha.hexdigest()


def _write_record(folder: Path, record: dict) -> None:
    if jax.process_index() == 0:
        logging.write_atomically(folder / RECORD, json.dumps(record, indent=1) + "\n")


def _refuse_difference(folder: Path, record: dict, wanted: dict) -> None:
    for field, theirs, ours in _differences(record["settings"], wanted["settings"]):
        raise UserError(
            f"{folder} was made with {field}={theirs}, this run has {field}={ours}: choose another --workdir, or delete "
            "that folder to make it again."
        )
    for stage, digest in wanted["upstream"].items():
        if record["upstream"].get(stage) != digest:
            raise UserError(
                f"{folder} was made from another {stage} than the one that stands beside it: delete {folder} to make it again."
            )


def _differences(theirs: dict, ours: dict, prefix: str = "config.") -> Iterator[tuple[str, Any, Any]]:
    for name in sorted(set(theirs) | set(ours)):
        a, b = theirs.get(name), ours.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _differences(a, b, f"{prefix}{name}.")
        elif a != b and (name in theirs or b):  # the empty value of a field that came later is what was done before
            yield f"{prefix}{name}", a, b
