"""Features of videos, kept in a folder between calls under a digest of what they follow from."""

from collections.abc import Sequence
import hashlib
from importlib import metadata
import pathlib
import zipfile

import jax
from jaxtyping import Num, UInt8
import numpy as np

from msg_jax.data.files import new_file
from msg_jax.errors import UserError
from msg_jax.infra import logging

Features = tuple[Num[np.ndarray, "frames Dc"], Num[np.ndarray, "steps Ds"]]
"""Of a window: CLIP's, or those in its place, and Synchformer's."""


class FeatureCache:
    """The features of windows by their frames, in `folder`/KEY.npz.

    A key is the SHA-256 of the decoded frames and of `encoders`, which says what encodes them: so a file under another name
    is found again, and another frame choice, clip setting, weight or version is not. An entry that cannot be read, or whose
    values do not have the digest that lies beside them, counts as missing and is written again.
    """

    def __init__(self, folder: pathlib.Path, encoders: str):
        self._folder = folder
        self._encoders = f"{metadata.version('msg_jax')} {jax.default_backend()} {encoders}"

    def key(self, window: Sequence[UInt8[np.ndarray, "_ _ _ 3"]]) -> str:
        digest = hashlib.sha256(self._encoders.encode())
        for frames in window:
            digest.update(str(frames.shape).encode())
            digest.update(np.ascontiguousarray(frames).data)
        return digest.hexdigest()

    def read(self, key: str) -> Features | None:
        """The features of a window, or None."""
        try:
            with np.load(self._path(key), allow_pickle=False) as file:
                features, digest = (file["clip"], file["sync"]), str(file["sha256"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        return features if digest == _digest(key, features) else None

    def write(self, key: str, features: Features) -> None:
        """Keep the features of a window. A folder that cannot be written is only reported: the sound does not need it."""
        try:
            with new_file(self._path(key), overwrite=True) as unfinished, unfinished.open("wb") as file:
                np.savez(file, clip=features[0], sync=features[1], sha256=np.array(_digest(key, features)))
        except UserError as error:
            logging.info("features are not kept: %s", error)

    def _path(self, key: str) -> pathlib.Path:
        return self._folder / f"{key}.npz"


def _digest(key: str, features: Features) -> str:
    digest = hashlib.sha256(key.encode())
    for each in features:
        digest.update(f"{each.dtype}{each.shape}".encode())
        digest.update(np.ascontiguousarray(each).data)
    return digest.hexdigest()
