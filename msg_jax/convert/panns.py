"""PANNs' CNN14 (`Cnn14_16k_mAP=0.438.pth`, `Cnn14_mAP=0.431.pth`) -> `models.panns`."""

import jax.numpy as jnp
import numpy as np

from msg_jax.convert.presets import choose
from msg_jax.convert.weights import Entry, Tensors, fill, kernel, linear, shapes_of
from msg_jax.models.panns import PRESETS, Cnn14, PannsConfig
from msg_jax.types import Params

_EPSILON = 1e-5  # PyTorch's BatchNorm2d


def from_tensors(
    tensors: Tensors, config: PannsConfig | str | None = None, source: str = "checkpoint"
) -> tuple[Cnn14, Params]:
    """Convert to a module and its variables (`params`, float32), with batch norms folded into scale and bias.

    `config` is a configuration, the name of a preset, or None for the preset that fits the file's mel filters. Raises
    UserError if there is none, and as `weights.fill` does.
    """
    tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    config = choose(
        config, PRESETS, tensors, "logmel_extractor.melW",
        lambda preset: (preset.mel.n_fft // 2 + 1, preset.mel.bands), source,
    )
    model = Cnn14(config)
    return model, fill(table(config, tensors), tensors, shapes_of(model, jnp.zeros((1, 64, config.mel.bands))), source)


def table(config: PannsConfig, tensors: Tensors) -> list[Entry]:
    """Conversion table, without the fixed front end and the batch counters."""
    unused = [name for name in tensors if name.startswith(("spectrogram_extractor.", "logmel_extractor."))
              or name.endswith(".num_batches_tracked")]
    entries = [
        *(Entry(None, name) for name in unused), *_affine("norm", "bn0"), *linear("embedding", "fc1"),
        *linear("classes", "fc_audioset"),
    ]
    for i in range(1, len(config.widths) + 1):
        for j in (1, 2):
            entries.append(Entry(f"params/block{i}/conv{j}/conv/kernel", f"conv_block{i}.conv{j}.weight", kernel))
            entries += _affine(f"block{i}/norm{j}", f"conv_block{i}.bn{j}")
    return entries


def _affine(path: str, name: str) -> list[Entry]:
    weight, bias, mean, variance = (f"{name}.{part}" for part in ("weight", "bias", "running_mean", "running_var"))
    return [
        Entry(f"params/{path}/scale", (weight, variance), _scale),
        Entry(f"params/{path}/bias", (bias, mean, weight, variance), lambda b, m, w, v: np.float32(b) - m * _scale(w, v)),
    ]


def _scale(weight: np.ndarray, variance: np.ndarray) -> np.ndarray:
    return np.float32(weight) / np.sqrt(np.float32(variance) + np.float32(_EPSILON))
