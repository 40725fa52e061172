"""Released MMAudio networks -> `models.mmdit`."""

import numpy as np

from msg_jax.convert.weights import Entry, Tensors, drop_axes, fill, linear, shapes_of
from msg_jax.errors import UserError
from msg_jax.models.mmdit import PRESETS, MMDiT, MMDiTConfig, example_inputs
from msg_jax.types import Params


def from_tensors(
    tensors: Tensors, config: MMDiTConfig | str | None = None, source: str = "checkpoint"
) -> tuple[MMDiT, Params]:
    """Convert to a module and its variables (`params` and `buffers`, float32).

    `config` is a configuration, the name of a preset, or None for the preset that fits the tensors. Raises UserError if
    there is none, and as `weights.fill` does.
    """
    if config is None:
        config = preset_of(tensors, source)
    elif isinstance(config, str):
        if config not in PRESETS:
            raise UserError(f"unknown preset {config!r}: choose one of {', '.join(PRESETS)}")
        config = PRESETS[config]
    model = MMDiT(config)
    return model, fill(table(config), tensors, shapes_of(model, *example_inputs(config)), source)


def table(config: MMDiTConfig) -> list[Entry]:
    """Conversion table of a released checkpoint."""
    second = 2 if config.v2 else 1  # v1 has no activation between the two layers of the clip and text inputs
    entries = [
        *linear("audio_input/proj", "audio_input_proj.0", layer="conv"),
        *_gated_mlp("audio_input/mlp", "audio_input_proj.2", layer="conv"),
        *linear("sync_input/proj", "sync_input_proj.0", layer="conv"),
        *_gated_mlp("sync_input/mlp", "sync_input_proj.2", layer="conv"),
        *linear("clip_input/proj", "clip_input_proj.0"),
        *_gated_mlp("clip_input/mlp", f"clip_input_proj.{second}", layer="conv"),
        *linear("text_input/proj", "text_input_proj.0"),
        *_gated_mlp("text_input/mlp", f"text_input_proj.{second}"),
        *linear("clip_pooled", "clip_cond_proj"),
        *linear("text_pooled", "text_cond_proj"),
        *_gated_mlp("pooled_mlp", "global_cond_mlp"),
        *linear("t_embed/in", "t_embed.mlp.0"),
        *linear("t_embed/out", "t_embed.mlp.2"),
        *linear("final_adaln/linear", "final_layer.adaLN_modulation.1"),
        *linear("final", "final_layer.conv", layer="conv"),
        Entry("params/sync_positions", "sync_pos_emb", drop_axes(0, 1)),
        Entry("params/empty_clip", "empty_clip_feat", drop_axes(0)),
        Entry("params/empty_sync", "empty_sync_feat", drop_axes(0)),
        Entry("buffers/empty_text", "empty_string_feat"),
        Entry("buffers/latent_mean", "latent_mean", drop_axes(0, 1)),
        Entry("buffers/latent_std", "latent_std", drop_axes(0, 1)),
        # Computed from the sizes; MMAudio's own loader drops them too.
        *(Entry(None, name) for name in ("t_embed.freqs", "latent_rot", "clip_rot")),
    ]
    for i in range(config.joint_depth):
        last = i == config.joint_depth - 1
        for stream, layer in (("latent", "conv"), ("clip", "conv"), ("text", "dense")):
            if last and stream != "latent":
                layer = None
            entries += _stream(f"joint_{i}/{stream}", f"joint_blocks.{i}.{stream}_block", config.heads, layer)
    for i in range(config.fused_depth):
        entries += _stream(f"fused_{i}/latent", f"fused_blocks.{i}", config.heads, "conv")
    return entries


def _gated_mlp(path: str, name: str, layer: str = "dense") -> list[Entry]:
    return [linear(f"{path}/{w}", f"{name}.{w}", bias=False, layer=layer)[0] for w in ("w1", "w2", "w3")]


def _stream(path: str, name: str, heads: int, layer: str | None) -> list[Entry]:
    def qkv(array: np.ndarray) -> np.ndarray:
        """Reorder the outputs (heads, dim, 3) to (heads, 3, dim), which makes q, k and v contiguous; outputs last."""
        by_head = array.reshape(heads, -1, 3, *array.shape[1:]).swapaxes(1, 2)
        return by_head.reshape(array.shape).T

    entries = [
        *linear(f"{path}/adaln/linear", f"{name}.adaLN_modulation.1"),
        Entry(f"params/{path}/qkv/dense/kernel", f"{name}.attn.qkv.weight", qkv),
        Entry(f"params/{path}/qkv/dense/bias", f"{name}.attn.qkv.bias", qkv),
        Entry(f"params/{path}/q_norm/scale", f"{name}.attn.q_norm.weight"),
        Entry(f"params/{path}/k_norm/scale", f"{name}.attn.k_norm.weight"),
    ]
    if layer is None:
        return entries
    return [
        *entries,
        *linear(f"{path}/out", f"{name}.linear1", layer=layer),
        *_gated_mlp(f"{path}/mlp", f"{name}.ffn", layer=layer),
    ]


def preset_of(tensors: Tensors, source: str) -> MMDiTConfig:
    """Return the released preset that fits the tensors. Raises UserError, which names the file `source`, if there is none."""
    def depth(prefix: str) -> int:
        return len({name.split(".")[1] for name in tensors if name.startswith(prefix)})

    hidden, channels = getattr(tensors.get("audio_input_proj.0.weight"), "shape", (None, None))[:2]
    found = (channels, hidden, depth("joint_blocks."), depth("fused_blocks."), "clip_input_proj.2.w1.weight" in tensors)
    for config in PRESETS.values():
        if found == (config.latent_channels, config.hidden, config.joint_depth, config.fused_depth, config.v2):
            return config
    raise UserError(f"{source} fits no released MM-DiT ({', '.join(PRESETS)}): pass its configuration")
