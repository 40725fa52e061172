"""A run: one folder, one config, and what its stages leave for each other."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import threading
import time
from typing import Any

import grain
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from msg_jax import networks, system, train
from msg_jax.clip import ClipSpec
from msg_jax.convert.bundle import DOCUMENT, Bundle
from msg_jax.data import mel, pipeline
from msg_jax.errors import UserError
from msg_jax.infra import checkpoint, guard, logging, runtime
from msg_jax.infra import mesh as mesh_lib
from msg_jax.infra.record import RECORD, read_record
from msg_jax.types import Params

_SKIPPED_LOCK = threading.Lock()  # of the threads that read ahead


@dataclasses.dataclass(frozen=True)
class Run:
    """The folder of a run and its config. Seeded stages live in `seed_K/` when the run has more than one seed."""

    root: pathlib.Path
    config: ConfigDict
    clip: ClipSpec
    mesh: jax.sharding.Mesh
    places: Mapping[str, pathlib.Path] = dataclasses.field(default_factory=dict)  # of unseeded stages that lie elsewhere

    @classmethod
    def create(cls, config: ConfigDict, workdir: str | pathlib.Path) -> "Run":
        config = config.copy_and_resolve_references()
        if config.weights:  # recorded so that it is found from everywhere
            config.weights = str(pathlib.Path(config.weights).resolve())
        return cls(pathlib.Path(workdir), config, ClipSpec.from_dict(config.clip.to_dict()), mesh_lib.make_mesh(config.mesh))

    def folder(self, stage: str, seed: int | None = None) -> pathlib.Path:
        if stage in self.places:
            return self.places[stage]
        return self.root / stage if seed is None or len(self.config.seeds) == 1 else self.root / f"seed_{seed}" / stage

    def source(self, split: str, kept: Sequence[int] | None = None) -> pipeline.Source:
        """The random-access source of a split (data/pipeline.py), or of those of its clips whose features were `kept`."""
        data, prepared = self.config.data, self.folder("prepare")
        source = pipeline.make_source(
            data.source, self.clip, split, data_dir=data.cache, seed=data.seed,
            sizes={name: data[name] for name in ("train", "validation", "test")},
            windows_per_video=data.windows_per_video,
            index_path=prepared / "videos.json",
            index_is_final=(read_record(prepared) or {}).get("finished", False),  # the clips are those that `prepare` found
            squash_clip_video=networks.is_released(self.config, "encoders.kind"),  # as CLIP saw its pictures
        )
        return source if kept is None else pipeline.Chosen(source, kept)

    def report_skipped(self, row: dict) -> None:
        """Adds a row {"path", "reason"} to the run's `skipped.jsonl`, and says so, unless it is there."""
        path = self.root / "skipped.jsonl"
        with _SKIPPED_LOCK:
            rows = logging.read_metrics(path)
            if row not in rows:
                logging.write_jsonl(path, [*rows, row])
                logging.info("skipped %s: %s", row["path"], row["reason"])

    @functools.cached_property
    def released(self) -> Bundle | None:
        """The released files of `config.weights`, converted; None for a config that names none of their networks.

        Raises UserError if the folder is not given, or as `system.open_weights` does.
        """
        if not any(networks.is_released(self.config, field) for field in networks.KINDS):
            return None
        if not self.config.weights:
            raise UserError(f"config.variant={self.config.variant} works with released files: say in which folder they are "
                            f"with --config.weights=FOLDER ({DOCUMENT} lists the files and where they are published).")
        folder, variant = self.config.weights, self.config.variant
        runtime.first_process_alone(lambda: system.open_weights(folder, variant), folder)  # converts the files
        return system.open_weights(folder, variant)

    def load_released(self, kind: str, *prefixes: str) -> Params:
        """Variables of a released network (`Bundle.load`), whole on every device of this process."""
        return self.local(self.released.load(kind, *prefixes))

    def frozen(self, *sides: str) -> system.InTurn:
        """Variables of the frozen "encoders" and of these sides of the "codec", `encoder` or `decoder`, loaded in turn."""
        loaders = system.frozen_loaders(self.config, self.released, self.load, *sides)
        return system.InTurn(loaders, stay=self.released is None or system.fits(self.released))

    def arrays(self, record: dict) -> dict[str, Any]:
        """What networks see of a record: frames as uint8 (the device turns them into floats) and the log-mel."""
        return {
            "video": record["video"], "clip_video": record["clip_video"],
            "mel": mel.log_mel(record["waveform"], self.clip.mel),
        }

    def load(self, stage: str, seed: int | None = None) -> Any:
        """What a finished stage exported, whole on every device of this process."""
        return self.local(checkpoint.load(self.folder(stage, seed) / "params"))

    @functools.cached_property
    def local_mesh(self) -> jax.sharding.Mesh:
        """This process's devices: frozen networks work here, each process on its own share of the clips."""
        return mesh_lib.make_mesh(devices=self.mesh.local_devices)

    def local(self, tree: Any) -> Any:
        """A tree from anywhere, whole on every device of this process."""
        return mesh_lib.replicate(tree, self.local_mesh)

    def batches(self, source: Any, batch_size: int, transform: Callable | None = None, *, seed: int) -> grain.IterDataset:
        """Endless shuffled batches of this process's share of a global batch of `batch_size`."""
        ways = mesh_lib.batch_devices(self.mesh)
        if batch_size % ways:
            raise UserError(f"batch_size={batch_size} cannot be split over {ways} devices: make it a multiple of {ways}.")
        source = pipeline.Named(pipeline.Readable(source, self.report_skipped), transform)
        return pipeline.batches(
            source, batch_size=batch_size, seed=seed, read_threads=self.config.data.read_threads,
            rows=mesh_lib.local_rows(self.mesh, batch_size),
        )

    @property
    def dtype(self) -> jnp.dtype:
        return networks.compute_dtype()

    def fit_options(self, section: ConfigDict, folder: pathlib.Path) -> dict[str, Any]:
        """The keyword arguments of `train.fit` that come from the config."""
        every = self.config.every
        return dict(
            steps=section.steps, workdir=folder, mesh=self.mesh, log_every=every.log, checkpoint_every=every.checkpoint,
            watch=self.watch,
        )

    @property
    def watch(self) -> train.Watch:
        """What looks on while a stage trains. Raises UserError if `log.profile_steps` is not A:B."""
        log, profile = self.config.log, None
        if log.profile_steps:
            first, _, end = log.profile_steps.partition(":")
            if not (first.isdecimal() and end.isdecimal() and int(first) < int(end)):
                raise UserError(f"--profile_steps={log.profile_steps} is not A:B, two steps of which the first is smaller.")
            profile = int(first), int(end)
        return train.Watch(guard.Limits(**self.config.guard), log.tensorboard, log.wandb, profile, log.explain_sharding)


def git_revision() -> str | None:
    """The revision of the source that runs, `+changed` if it was edited since; None outside a checkout."""
    here = pathlib.Path(__file__).parent
    try:
        describe = ["git", "-C", str(here), "describe", "--always", "--dirty=+changed", "--abbrev=12"]
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def versions() -> dict[str, str]:
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "av")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


@dataclasses.dataclass(frozen=True)
class Stage:
    """One node of the plan: what it needs, which config decides its result, and the function that makes it.

    `make(run, folder, seed)` leaves its result in `folder` and returns the result's digest. It may be killed at any
    moment and is called again on the same folder.
    """

    name: str
    make: Any
    needs: tuple[str, ...] = ()
    sections: tuple[str, ...] = ()  # SECTION or SECTION.FIELD of the config: what decides the result beside `clip` and `data`
    seeded: bool = False
    alone: bool = False  # process 0 makes it while the others wait
    weights: tuple[str, ...] = ()  # kinds of the released networks on whose files the result depends


def settings(run: Run, stage: Stage) -> dict:
    """The part of the config that decides the stage's result."""
    config = json.loads(run.config.to_json_best_effort())
    kept = {name: config[name] for name in ("clip", "data", "seed")}
    kept["data"] = _without(kept["data"], "cache", "read_threads")
    for section in stage.sections:
        outer, _, inner = section.partition(".")
        if inner:
            kept.setdefault(outer, {})[inner] = config[outer][inner]
        else:
            kept[outer] = _without(config[outer], "accumulate", "remat")  # how it is computed, not what
    if stage.weights:
        kept["weights"] = run.released.checksums(*stage.weights)
    return kept


def _without(section: Any, *names: str) -> Any:
    return {name: value for name, value in section.items() if name not in names} if isinstance(section, dict) else section


def ensure(run: Run, stage: Stage, seed: int | None, upstream: dict[str, str]) -> str:
    """Makes the stage unless it stands already, and returns its digest.

    Raises UserError when the folder holds a result of other settings or of other upstream results, naming the field.
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
        "config": json.loads(run.config.to_json_best_effort()),
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
        _write_record(folder, record | {"finished": True, "digest": made[0], "seconds": round(time.monotonic() - begun, 1)})
    runtime.barrier(f"stage {folder}")
    return read_record(folder)["digest"]


def _write_record(folder: pathlib.Path, record: dict) -> None:
    if jax.process_index() == 0:
        logging.write_atomically(folder / RECORD, json.dumps(record, indent=1) + "\n")


def _refuse_difference(folder: pathlib.Path, record: dict, wanted: dict) -> None:
    for field, theirs, ours in _differences(record["settings"], json.loads(json.dumps(wanted["settings"]))):
        raise UserError(
            f"{folder} was made with {field}={theirs}, this run has {field}={ours}: choose another --workdir, or delete "
            "that folder to make it again."
        )
    for stage, digest in wanted["upstream"].items():
        if record["upstream"].get(stage) != digest:
            raise UserError(
                f"{folder} was made from another {stage} than the one that stands beside it: delete {folder} to make it again."
            )


def _differences(theirs: dict, ours: dict, prefix: str = "config."):
    for name in sorted(set(theirs) | set(ours)):
        a, b = theirs.get(name), ours.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _differences(a, b, f"{prefix}{name}.")
        elif a != b:
            yield f"{prefix}{name}", a, b


def text_digest(*texts: str) -> str:
    sha = hashlib.sha256()
    for text in texts:
        sha.update(text.encode())
    return sha.hexdigest()
