"""V-JEPA 2 as `transformers` names it (`facebook/vjepa2-vitl-fpc64-256`) -> `models.vjepa2`."""

import jax.numpy as jnp

from msg_jax.convert.clip import norm
from msg_jax.convert.presets import choose
from msg_jax.convert.synchformer import tube_kernel
from msg_jax.convert.synchformer_full import joined
from msg_jax.convert.weights import Entry, Tensors, fill, linear, shapes_of
from msg_jax.models.vjepa2 import FRAMES_PER_TUBE, PRESETS, VJEPA2, VJEPA2Config
from msg_jax.types import Params

_PATCHES = "encoder.embeddings.patch_embeddings.proj"


def from_tensors(
    tensors: Tensors, config: VJEPA2Config | str | None = None, source: str = "checkpoint"
) -> tuple[VJEPA2, Params]:
    """Convert the encoder to a module and its variables (`params`, float32), ignoring the predictor.

    `config` is a configuration, the name of a preset, or None for the preset that fits the tensors. Raises UserError if
    there is none, and as `weights.fill` does.
    """
    config = choose(
        config, PRESETS, tensors, f"{_PATCHES}.weight",
        lambda preset: (preset.width, 3, FRAMES_PER_TUBE, preset.patch_px, preset.patch_px), source,
    )
    model = VJEPA2(config)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("predictor.")}
    example = jnp.zeros((1, FRAMES_PER_TUBE, config.image_px, config.image_px, 3))
    return model, fill(table(config), tensors, shapes_of(model, example), source)


def table(config: VJEPA2Config) -> list[Entry]:
    """Conversion table of the encoder."""
    entries = [
        Entry("params/patches/conv/kernel", f"{_PATCHES}.weight", tube_kernel),
        Entry("params/patches/conv/bias", f"{_PATCHES}.bias"),
        *norm("norm", "encoder.layernorm"),
    ]
    for i in range(config.depth):
        path, name = f"block{i}", f"encoder.layer.{i}"
        entries += [
            *norm(f"{path}/norm1", f"{name}.norm1"), *norm(f"{path}/norm2", f"{name}.norm2"),
            *joined(f"{path}/qkv", *(f"{name}.attention.{part}" for part in ("query", "key", "value"))),
            *linear(f"{path}/out", f"{name}.attention.proj"),
            *linear(f"{path}/mlp_in", f"{name}.mlp.fc1"), *linear(f"{path}/mlp_out", f"{name}.mlp.fc2"),
        ]
    return entries
