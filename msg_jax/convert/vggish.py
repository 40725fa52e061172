"""torchvggish's VGGish (`vggish-10086976.pth`) -> `models.vggish`."""

import jax.numpy as jnp

from msg_jax.convert.presets import choose
from msg_jax.convert.weights import Entry, Tensors, fill, kernel, linear, shapes_of
from msg_jax.models.vggish import PRESETS, VGGish, VGGishConfig
from msg_jax.types import Params


def from_tensors(
    tensors: Tensors, config: VGGishConfig | str | None = None, source: str = "checkpoint"
) -> tuple[VGGish, Params]:
    """Convert to a module and its variables (`params`, float32).

    `config` is a configuration, the name of a preset, or None for the preset that fits the tensors. Raises UserError if
    there is none, and as `weights.fill` does.
    """
    config = choose(
        config, PRESETS, tensors, "features.0.weight", lambda preset: (preset.stages[0][0], 1, 3, 3), source
    )
    model = VGGish(config)
    return model, fill(table(config), tensors, shapes_of(model, jnp.zeros((1, 96, 64))), source)


def table(config: VGGishConfig) -> list[Entry]:
    """Conversion table. PyTorch counts a convolution and its ReLU as two layers, a pooling as one."""
    entries, place, layer = [], 0, 0
    for widths in config.stages:
        for _ in widths:
            entries.append(Entry(f"params/conv{layer}/conv/kernel", f"features.{place}.weight", kernel))
            entries.append(Entry(f"params/conv{layer}/conv/bias", f"features.{place}.bias"))
            place, layer = place + 2, layer + 1
        place += 1
    return entries + [entry for i in range(len(config.dense)) for entry in linear(f"dense{i}", f"embeddings.{2 * i}")]
