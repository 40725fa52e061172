"""Released MMAudio mel VAEs (`v1-16.pth`, `v1-44.pth`) -> `models.vae`."""

import math

import jax.numpy as jnp
import numpy as np

from msg_jax.convert.presets import choose
from msg_jax.convert.weights import Entry, Tensors, drop_axes, fill, kernel, shapes_of
from msg_jax.models.vae import DECODER_BLOCKS, ENCODER_BLOCKS, PRESETS, VAE, WIDTH_MULTIPLIERS, VAEConfig
from msg_jax.types import Params


def from_tensors(
    tensors: Tensors, config: VAEConfig | str | None = None, source: str = "checkpoint"
) -> tuple[VAE, Params]:
    """Convert to a module and its variables (`params` and `buffers`, float32), with released kernels normalised.

    `config` is a configuration, the name of a preset, or None for the preset that fits the tensors. Raises UserError if
    there is none, and as `weights.fill` does.
    """
    config = choose(
        config, PRESETS, tensors, "encoder.conv_in.weight", lambda preset: (preset.width, preset.bands, 3), source
    )
    model = VAE(config)
    example = jnp.zeros((1, 2, config.bands))
    return model, fill(table(folded=_is_folded(tensors)), tensors, shapes_of(model, example), source)


def table(folded: bool) -> list[Entry]:
    """Conversion table of a checkpoint; `folded` means that its kernels are already normalised."""
    transform = kernel if folded else lambda weight: kernel(_fold(weight))

    def conv(path: str, name: str) -> Entry:
        return Entry(f"params/{path}/mp/conv/kernel", f"{name}.weight", transform)

    def block(path: str, name: str, widens: bool = False) -> list[Entry]:
        entries = [conv(f"{path}/conv1", f"{name}.conv1"), conv(f"{path}/conv2", f"{name}.conv2")]
        return [*entries, conv(f"{path}/shortcut", f"{name}.nin_shortcut")] if widens else entries

    entries = [
        Entry("buffers/mel_mean", "data_mean", drop_axes(0, 2)),
        Entry("buffers/mel_std", "data_std", drop_axes(0, 2)),
        conv("encoder/down_before", "encoder.down.0.downsample.conv1"),
        conv("encoder/down_after", "encoder.down.0.downsample.conv2"),
        conv("decoder/up", "decoder.up.1.upsample.conv"),
    ]
    for side in ("encoder", "decoder"):
        entries += [
            conv(f"{side}/conv_in", f"{side}.conv_in"),
            conv(f"{side}/output/conv", f"{side}.conv_out"),
            Entry(f"params/{side}/output/gain", f"{side}.learnable_gain"),
            conv(f"{side}/middle/attention/qkv", f"{side}.mid.attn_1.qkv"),
            conv(f"{side}/middle/attention/out", f"{side}.mid.attn_1.proj_out"),
            *block(f"{side}/middle/block1", f"{side}.mid.block_1"),
            *block(f"{side}/middle/block2", f"{side}.mid.block_2"),
        ]
    last = len(WIDTH_MULTIPLIERS) - 1
    for i in range(len(WIDTH_MULTIPLIERS)):
        for j in range(ENCODER_BLOCKS):
            entries += block(f"encoder/level{i}/block{j}", f"encoder.down.{i}.block.{j}", widens=j == 0 and i > 0)
        for j in range(DECODER_BLOCKS):
            entries += block(f"decoder/level{i}/block{j}", f"decoder.up.{i}.block.{j}", widens=j == 0 and i < last)
    return entries


def _norms(weight: np.ndarray) -> np.ndarray:
    """Norm of each output channel."""
    weight = np.atleast_2d(np.asarray(weight, np.float32))
    return np.linalg.norm(weight.reshape(len(weight), -1), axis=1)


def _fold(weight: np.ndarray) -> np.ndarray:
    """Scale to unit norm per output channel (EDM2 eq. 47), with the epsilon of the training."""
    root = math.sqrt(weight[0].size)
    norms = (1e-4 + _norms(weight) / root) * root
    return np.asarray(weight, np.float32) / norms.reshape(-1, *[1] * (weight.ndim - 1))


def _is_folded(tensors: Tensors) -> bool:
    """Whether all kernels are normalised: their norms are just below 1 per channel; released ones are many times larger."""
    return all(_norms(tensor).max() <= 1 for name, tensor in tensors.items() if name.endswith(".weight"))
