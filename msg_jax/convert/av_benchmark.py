"""Read the feature cache of av-benchmark's PyTorch harness: one .pth file per network, with {clip: tensor}.

The name of a file gives its network (`pann_features.pth`, `passt_logits.pth`, `imagebind_audio.pth`), the width of a tensor
gives its feature. So embeddings and logits may share a file.
"""

from collections.abc import Mapping
import os
import pathlib

import numpy as np

from msg_jax.convert.weights import read_checkpoint
from msg_jax.errors import UserError

WIDTHS = {
    "vggish": {128: "vggish"},
    "pann": {2048: "panns", 527: "panns_logits"},
    "passt": {768: "passt", 527: "passt_logits"},
    "imagebind_audio": {1024: "imagebind_audio"},
    "imagebind_video": {1024: "imagebind_video"},
    "synchformer_audio": {768: "synchformer_features_audio"},
    "synchformer_video": {768: "synchformer_features_video"},
    "clap_laion_audio": {512: "clap_laion_audio"},
    "clap_laion_text": {512: "clap_laion_text"},
    "clap_ms_audio": {1024: "clap_ms_audio"},
    "clap_ms_text": {1024: "clap_ms_text"},
}
"""Word in the file name -> last dimension of a tensor -> our name of the feature."""
_SEQUENCES = ("vggish", "synchformer_features_audio", "synchformer_features_video")  # the others are one vector per clip

_SUFFIXES = (".wav", ".flac", ".mp3", ".mp4", ".mkv", ".webm")


def read_features(folder: str | os.PathLike) -> tuple[dict[str, dict[str, np.ndarray]], list[str]]:
    """Return the features as {name: {clip: array}}, and the names of the .pth files without any known feature.

    Raises UserError if `folder` is not a folder or has no .pth file, or if a file cannot be read.
    """
    folder = pathlib.Path(folder)
    files = sorted(folder.glob("*.pth")) if folder.is_dir() else []
    if not files:
        raise UserError(f"{folder} holds no features (.pth); give the folder of av-benchmark's cache")
    found: dict[str, dict[str, np.ndarray]] = {}
    unused = []
    for path in files:
        widths = next((each for word, each in WIDTHS.items() if word in path.stem.lower()), {})
        features = _named(read_checkpoint(path), widths) if widths else {}
        if not features:
            unused.append(path.name)
        for name, clips in features.items():
            found.setdefault(name, {}).update(clips)
    return found, unused


def _named(tensors: Mapping[str, np.ndarray], widths: Mapping[int, str]) -> dict[str, dict[str, np.ndarray]]:
    """Group the tensors of a file as {name: {clip: array}}, by their width."""
    features: dict[str, dict[str, np.ndarray]] = {}
    for key, tensor in tensors.items():
        name = widths.get(tensor.shape[-1] if tensor.ndim else 0)
        if name is not None:
            rows = np.asarray(tensor, np.float32)
            if name not in _SEQUENCES:
                rows = rows.reshape(-1, tensor.shape[-1]).mean(axis=0)
            features.setdefault(name, {})[_clip(key)] = rows
    return features


def _clip(key: str) -> str:
    """Stem of the clip, without the key of a nested dictionary ("2048", "logits") that may follow it."""
    for part in ("2048", "logits", "embedding", "features"):
        key = key.removesuffix(f".{part}")
    return next((key.removesuffix(suffix) for suffix in _SUFFIXES if key.endswith(suffix)), key)
