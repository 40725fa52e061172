"""A run: one folder and one configuration."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import threading
from typing import Any

import grain
import jax

from msg_jax import networks, storage, train
from msg_jax.clip import ClipSpec
from msg_jax.config import tree
from msg_jax.config.schema import Config, Training
from msg_jax.convert.bundle import DOCUMENT, Bundle
from msg_jax.data import mel, pipeline
from msg_jax.errors import UserError
from msg_jax.inference import frozen
from msg_jax.infra import checkpoint, guard, logging, runtime
from msg_jax.infra import mesh as mesh_lib
from msg_jax.infra.record import read_record
from msg_jax.storage import Path
from msg_jax.types import Params

_SKIPPED_LOCK = threading.Lock()  # the threads that read ahead report skipped files


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Holds an exclusive lock among processes, until the block or the process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclasses.dataclass(frozen=True)
class Run:
    """The folder of a run, its configuration and its devices.

    Seeded stages live in `seed_K/` when the run has several seeds. `places` are folders of unseeded stages that lie elsewhere.
    """

    root: Path
    config: Config
    mesh: jax.sharding.Mesh
    places: Mapping[str, Path] = dataclasses.field(default_factory=dict)

    @classmethod
    def create(cls, config: Config, workdir: str | os.PathLike) -> "Run":
        """Raises UserError if the mesh does not fit the devices."""
        if config.weights:  # the record must hold from every working directory
            config = tree.replace(config, weights=str(storage.absolute(storage.path(config.weights))))
        return cls(storage.path(workdir), config, mesh_lib.make_mesh(config.mesh))

    @property
    def clip(self) -> ClipSpec:
        return self.config.clip

    def folder(self, stage: str, seed: int | None = None) -> Path:
        if stage in self.places:
            return self.places[stage]
        return self.root / stage if seed is None or len(self.config.seeds) == 1 else self.root / f"seed_{seed}" / stage

    def source(
        self, split: str, kept: Sequence[int] | None = None, streams: Sequence[str] = ("video", "clip_video")
    ) -> pipeline.Source:
        """The random-access source of a split (data/pipeline.py), or of its clips at the indices `kept`.

        Videos are decoded to the `streams` alone. Data that is decoded already may have more.
        """
        data, prepared = self.config.data, self.folder("prepare")
        source = pipeline.make_source(
            data.source, self.clip, split, data_dir=data.cache, seed=data.seed,
            sizes={"train": data.train, "validation": data.validation, "test": data.test},
            windows_per_video=data.windows_per_video,
            frame_choice=data.frame_choice,
            index_path=prepared / "videos.json",
            index_is_final=(read_record(prepared) or {}).get("finished", False),  # the clips are those that `prepare` found
            squash_clip_video=self.config.encoders.kind == "released",  # as CLIP saw its images in training
            streams=streams,
        )
        return source if kept is None else pipeline.Chosen(source, kept)

    def report_skipped(self, row: dict) -> None:
        """Add a row {"path", "reason"} to the run's `skipped.jsonl`, and log it, unless it is there already.

        Threads, processes and Beam workers may call it at once, also on hosts that share the folder. A bucket has no locks:
        there each row gets an object of its own, and `collect_skipped` makes the list.
        """
        if storage.in_bucket(self.root):
            own = self._skipped_rows / f"{hashlib.sha256(json.dumps(row).encode()).hexdigest()[:16]}.json"
            if not own.exists():
                logging.write_atomically(own, json.dumps(row))
                logging.info("skipped %s: %s", row["path"], row["reason"])
            return
        path = self.root / "skipped.jsonl"
        with _SKIPPED_LOCK, _lock(self.root / ".skipped.lock"):
            rows = logging.read_metrics(path)
            if row not in rows:
                logging.write_jsonl(path, [*rows, row])
                logging.info("skipped %s: %s", row["path"], row["reason"])

    def collect_skipped(self) -> None:
        """Add the rows that were reported in a bucket to the run's `skipped.jsonl`. One process calls it."""
        if storage.in_bucket(self.root) and (files := storage.files_below(self._skipped_rows)):
            path = self.root / "skipped.jsonl"
            rows, new = logging.read_metrics(path), [json.loads(file.read_text()) for file in files]
            logging.write_jsonl(path, [*rows, *(row for row in new if row not in rows)])

    @property
    def _skipped_rows(self) -> Path:
        return self.root / "skipped"

    @functools.cached_property
    def released(self) -> Bundle | None:
        """The converted files of `config.weights`; None if the config uses none of their networks.

        Raises UserError if the folder is not given, or as `frozen.open_weights_of` does.
        """
        config, vision = self.config, networks.has_vision_encoder(self.config)
        if not (vision or networks.released_fields(config)):
            return None
        if not config.weights:
            field = f"encoders.kind={config.encoders.kind}" if vision else f"variant={config.variant}"
            raise UserError(f"config.{field} needs released files: name their folder with --config.weights=FOLDER "
                            f"({DOCUMENT} lists the files and where they are published).")
        runtime.first_process_alone(lambda: frozen.open_weights_of(config), config.weights)  # converts the files
        return frozen.open_weights_of(config)

    def load_released(self, kind: str, *prefixes: str) -> Params:
        """Variables of a released network (`Bundle.load`), whole on every device of this process."""
        assert self.released is not None
        return self.local(self.released.load(kind, *prefixes))

    def frozen(self, *codec_sides: str) -> frozen.LazyWeights:
        """Variables of the frozen "encoders" and of the "codec", whole on every device of this process; `codec_sides` as for
        `frozen.loaders`."""
        loaders = frozen.loaders(self.config, self.released, self.load, *codec_sides)
        here = {name: lambda load=load: self.local(load()) for name, load in loaders.items()}
        return frozen.LazyWeights(here, keep_all=self.released is None or frozen.fits_in_memory(self.released))

    def arrays(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """What networks see of a record: frames as uint8 (devices convert them to floats) and the log-mel."""
        pictures = {name: record[name] for name in ("video", "clip_video") if name in record}
        return pictures | {"mel": mel.log_mel(record["waveform"], self.clip.mel)}

    def load(self, stage: str, seed: int | None = None) -> Params:
        """What a finished stage exported, whole on every device of this process."""
        return self.local(checkpoint.load(self.folder(stage, seed) / "params"))

    @functools.cached_property
    def local_mesh(self) -> jax.sharding.Mesh:
        """This process's devices: frozen networks run here, each process on its own share of the clips."""
        return mesh_lib.make_mesh(devices=self.mesh.local_devices)

    def local(self, tree: Any) -> Any:
        """A tree, whole on every device of this process."""
        return mesh_lib.replicate(tree, self.local_mesh)

    def batches(
        self, source: Any, batch_size: int, transform: Callable | None = None, *, seed: int,
        frames: pipeline.Frames | None = None,
    ) -> grain.IterDataset:
        """Endless shuffled batches (`pipeline.batches`): this process's share of a global batch of `batch_size`."""
        ways = mesh_lib.batch_devices(self.mesh)
        if batch_size % ways:
            raise UserError(f"batch_size={batch_size} cannot be split over {ways} devices: make it a multiple of {ways}.")
        source = pipeline.Named(pipeline.Readable(source, self.report_skipped), transform)
        return pipeline.batches(
            source, batch_size=batch_size, seed=seed, read_threads=self.config.data.read_threads,
            rows=mesh_lib.local_rows(self.mesh, batch_size), frames=frames,
        )

    def fit(self, task: train.Task, section: Training, folder: Path, *, seed: int) -> train.TrainState:
        """Train `task` for `section.steps` in `folder` with the run's mesh and intervals (`train.fit`)."""
        every = self.config.every
        return train.fit(
            task, steps=section.steps, workdir=folder, mesh=self.mesh, seed=seed, log_every=every.log,
            checkpoint_every=every.checkpoint, held_out_every=every.held_out, observe=self._observe,
        )

    @property
    def _observe(self) -> train.Observe:
        """Raises UserError if `log.profile_steps` is not A:B."""
        log, profile = self.config.log, None
        if log.profile_steps:
            first, _, end = log.profile_steps.partition(":")
            if not (first.isdecimal() and end.isdecimal() and int(first) < int(end)):
                raise UserError(f"--profile_steps={log.profile_steps} is not A:B with steps A < B.")
            profile = int(first), int(end)
        return train.Observe(
            guard.Limits(**tree.to_dict(self.config.guard)), log.tensorboard, log.wandb, profile, log.explain_sharding
        )
