"""Released vocoders (`best_netG.pt`, `bigvgan_generator.pt`) -> `models.vocoder`."""

import jax.numpy as jnp
import numpy as np

from msg_jax.convert.presets import choose
from msg_jax.convert.weights import Entry, Tensors, fill, kernel, shapes_of
from msg_jax.errors import UserError
from msg_jax.models.vocoder import DILATIONS, KERNELS, PRESETS, BigVGAN, VocoderConfig, half_band_filter
from msg_jax.types import Params

_WEIGHT_NORM = (  # names of magnitude and direction, before and since PyTorch 2.0
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)


def from_tensors(
    tensors: Tensors, config: VocoderConfig | str | None = None, source: str = "checkpoint"
) -> tuple[BigVGAN, Params]:
    """Convert to a module and its variables (`params`, float32), with weight normalisation folded in.

    `config` is a configuration, the name of a preset, or None for the preset that fits the tensors. Raises UserError if
    there is none, if a resampling filter differs from ours, and as `weights.fill` does.
    """
    tensors = fold_weight_norm({name.removeprefix("generator."): tensor for name, tensor in tensors.items()})
    config = choose(
        config, PRESETS, tensors, "conv_pre.weight", lambda preset: (preset.width, preset.bands, 7), source
    )
    filters = [name for name in tensors if name.endswith(".filter")]
    for name in filters:
        ours, theirs = half_band_filter(), np.ravel(tensors[name])
        if theirs.shape != ours.shape or not np.allclose(theirs, ours, atol=2e-4):  # the rounding of half precision
            raise UserError(f"{source}: {name} is not the 12-tap Kaiser filter that the vocoder here is built with")
    entries = [*table(config), *(Entry(None, name) for name in filters)]
    model = BigVGAN(config)
    return model, fill(entries, tensors, shapes_of(model, jnp.zeros((1, 1, config.bands))), source)


def fold_weight_norm(tensors: Tensors) -> dict[str, np.ndarray]:
    """Replace each pair of magnitude g and direction v by the weight g v / ||v||."""
    tensors = dict(tensors)
    for magnitude, direction in _WEIGHT_NORM:
        for name in [name for name in tensors if name.endswith(f".{magnitude}")]:
            layer = name.removesuffix(magnitude)
            g, v = tensors[name], np.asarray(tensors.get(layer + direction, 0), np.float32)
            if v.ndim and g.shape == (len(v), *[1] * (v.ndim - 1)):  # `fill` reports the others
                del tensors[name], tensors[layer + direction]
                norm = np.sqrt(np.square(v).sum(axis=tuple(range(1, v.ndim)), keepdims=True))
                tensors[f"{layer}weight"] = np.asarray(g, np.float32) * v / norm
    return tensors


def table(config: VocoderConfig) -> list[Entry]:
    """Conversion table of a checkpoint with folded weight normalisation."""
    entries = [
        *_conv("conv_in", "conv_pre"), *_activation("act_out", "activation_post"),
        *_conv("conv_out", "conv_post", bias=not config.v2),
    ]
    for i, rate in enumerate(config.upsample_rates):
        entries += [
            Entry(f"params/up{i}/phases/conv/kernel", f"ups.{i}.0.weight", lambda w, rate=rate: _phases(w, rate)),
            Entry(f"params/up{i}/bias", f"ups.{i}.0.bias"),
        ]
        for j, size in enumerate(KERNELS):
            path, name = f"block{i}_{size}", f"resblocks.{len(KERNELS) * i + j}"
            for k in range(len(DILATIONS)):
                entries += [
                    *_activation(f"{path}/dilated_act{k}", f"{name}.activations.{2 * k}"),
                    *_conv(f"{path}/dilated{k}", f"{name}.convs1.{k}"),
                    *_activation(f"{path}/plain_act{k}", f"{name}.activations.{2 * k + 1}"),
                    *_conv(f"{path}/plain{k}", f"{name}.convs2.{k}"),
                ]
    return entries


def _conv(path: str, name: str, bias: bool = True) -> list[Entry]:
    entries = [Entry(f"params/{path}/conv/kernel", f"{name}.weight", lambda weight: kernel(weight)[None])]
    return [*entries, Entry(f"params/{path}/conv/bias", f"{name}.bias")] if bias else entries


def _activation(path: str, name: str) -> list[Entry]:
    return [Entry(f"params/{path}/{leaf}", f"{name}.act.{leaf}") for leaf in ("alpha", "beta")]


def _phases(weight: np.ndarray, rate: int) -> np.ndarray:
    """Reorder a transposed convolution's weight (in, out, 2 rate) for `models.vocoder.Upsample`: (2, in, rate x out)."""
    earlier, later = weight[..., rate:], weight[..., :rate]
    return np.stack([half.swapaxes(1, 2).reshape(len(weight), -1) for half in (earlier, later)])
