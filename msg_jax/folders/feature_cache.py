"""Features of clips on disk, extracted once and kept until the clip or the backbone changes."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
import hashlib
import os
from typing import Any
import zipfile

import numpy as np

from msg_jax import storage
from msg_jax.data import clips
from msg_jax.data.clips import Pair, Reader
from msg_jax.errors import UserError
from msg_jax.inference.backbones import Backbone
from msg_jax.infra import logging, preemption
from msg_jax.storage import Path

Features = dict[str, np.ndarray]


class Extraction:
    """Features of clips, cached in `folder`/SIDE/BACKBONE/CLIP.npz."""

    def __init__(self, folder: Path, threads: int):
        self._folder, self._threads = folder, max(1, threads)
        self.skipped: list[dict[str, str]] = []

    def of(self, backbone: Backbone, side: str, readers: Mapping[str, Reader | Pair]) -> Iterator[tuple[str, Features]]:
        """Yield (clip, features). Unreadable clips have no features and are appended to `skipped`."""

        def extract(name: str) -> tuple[str, Features | UserError]:
            try:
                return name, self._features(backbone, side, name, readers[name])
            except UserError as error:
                return name, error

        for name, found in self._map(extract, list(readers), self._threads if backbone.threads else 1):
            if isinstance(found, UserError):
                self._skip(readers[name], found)
                found = {}
            yield name, found
            preemption.exit_if_requested(f"{side} {backbone.name} {name}")

    def _map(self, function: Callable, names: list[str], threads: int) -> Iterator:
        if threads == 1:
            yield from map(function, names)
            return
        with ThreadPoolExecutor(threads) as pool:
            for start in range(0, len(names), 16 * threads):  # in portions, so that a stop waits for one portion only
                yield from pool.map(function, names[start : start + 16 * threads])

    def _skip(self, reader: Reader | Pair, error: UserError) -> None:
        path = next((path for path in reader.paths if str(path) in str(error)), reader.paths[0])
        row = {"path": str(path), "reason": str(error)}
        if row not in self.skipped:
            self.skipped.append(row)
            logging.info("skipped %s", row["reason"])

    def _features(self, backbone: Backbone, side: str, name: str, reader: Reader | Pair) -> Features:
        path = self._folder / side / backbone.name / f"{name}.npz"
        stamp = "\n".join([backbone.version, f"{reader.duration_sec}", *map(clips.stamp, reader.paths)])
        kept = _read(path)
        if kept is not None and kept.pop("stamp", None) == stamp:
            return kept
        features = backbone.extract(reader)
        if not all(np.isfinite(value).all() for value in features.values() if value.dtype.kind != "U"):
            raise UserError(f"{reader.paths[0]}: {backbone.name} gives values that are not finite; replace the file or leave "
                            "it out")
        write(path, stamp=np.array(stamp), **features)
        return features


def _read(path: Path) -> Features | None:
    try:
        with storage.on_disk(path) as copy, np.load(copy, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def write(path: Path, **arrays: Any) -> None:
    """Write an .npz file atomically."""
    name = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]  # `path` may have the longest name that there can be
    with storage.new_file(path, unfinished=f".{name}.{os.getpid()}") as unfinished, unfinished.open("wb") as file:
        np.savez(file, **arrays)
