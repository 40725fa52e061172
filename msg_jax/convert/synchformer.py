"""The visual encoder of the released Synchformer (`synchformer_state_dict.pth`) -> `models.synchformer`."""

import jax.numpy as jnp
import numpy as np

from msg_jax.convert.clip import attention, norm
from msg_jax.convert.presets import choose
from msg_jax.convert.weights import Entry, Tensors, drop_axes, fill, linear, shapes_of
from msg_jax.models.synchformer import PRESETS, Synchformer, SynchformerConfig
from msg_jax.types import Params

_ROOT = "vfeat_extractor"


def from_tensors(
    tensors: Tensors, config: SynchformerConfig | str | None = None, source: str = "checkpoint"
) -> tuple[Synchformer, Params]:
    """Convert the visual encoder to a module and its variables (`params`, float32), ignoring the rest of the file.

    `config` is a configuration, the name of a preset, or None for the preset that fits the tensors. Raises UserError if
    there is none, and as `weights.fill` does.
    """
    config = choose(
        config, PRESETS, tensors, f"{_ROOT}.pos_embed", lambda preset: (1, 1 + preset.positions, preset.width), source
    )
    model = Synchformer(config)
    tensors = {name: tensor for name, tensor in tensors.items() if name.startswith(f"{_ROOT}.")}
    example = jnp.zeros((1, 1, config.segment_frames, config.image_px, config.image_px, 3))
    return model, fill(table(config), tensors, shapes_of(model, example), source)


def table(config: SynchformerConfig) -> list[Entry]:
    """Conversion table of the visual encoder, without the unused 2-D patch embedding."""
    gather = f"{_ROOT}.spatial_attn_agg"
    entries = [
        Entry("params/patches/conv/kernel", f"{_ROOT}.patch_embed_3d.proj.weight", tube_kernel),
        Entry("params/patches/conv/bias", f"{_ROOT}.patch_embed_3d.proj.bias"),
        Entry(None, f"{_ROOT}.patch_embed.proj.weight"),
        Entry(None, f"{_ROOT}.patch_embed.proj.bias"),
        Entry("params/class_token", f"{_ROOT}.cls_token", drop_axes(0, 1)),
        Entry("params/space_positions", f"{_ROOT}.pos_embed", drop_axes(0)),
        Entry("params/time_positions", f"{_ROOT}.temp_embed", drop_axes(0)),
        *norm("norm", f"{_ROOT}.norm"),
        Entry("params/gather_token", f"{gather}.cls_token", drop_axes(0, 1)),
        *norm("gather/norm1", f"{gather}.norm1"),
        *norm("gather/norm2", f"{gather}.norm2"),
        *attention("gather", f"{gather}.self_attn"),
        *linear("gather/mlp_in", f"{gather}.linear1"),
        *linear("gather/mlp_out", f"{gather}.linear2"),
    ]
    for i in range(config.depth):
        path, name = f"block{i}", f"{_ROOT}.blocks.{i}"
        for ours, theirs in (("time", "timeattn"), ("space", "attn")):
            entries += linear(f"{path}/{ours}/qkv", f"{name}.{theirs}.qkv")
            entries += linear(f"{path}/{ours}/out", f"{name}.{theirs}.proj")
        for ours, theirs in (("norm_space", "norm1"), ("norm_mlp", "norm2"), ("norm_time", "norm3")):
            entries += norm(f"{path}/{ours}", f"{name}.{theirs}")
        entries += [*linear(f"{path}/mlp_in", f"{name}.mlp.fc1"), *linear(f"{path}/mlp_out", f"{name}.mlp.fc2")]
    return entries


def tube_kernel(weight: np.ndarray) -> np.ndarray:
    """Reshape a 3-D kernel (out, colours, frames, H, W) to a 2-D one with frames as channels: (H, W, frames x colours, out)."""
    weight = weight.transpose(3, 4, 2, 1, 0)
    return weight.reshape(*weight.shape[:2], -1, weight.shape[-1])
