"""The whole released Synchformer (`synchformer_state_dict.pth`, `24-01-04T16-39-21.pt`) -> `models.synchformer`."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from msg_jax.convert import synchformer
from msg_jax.convert.clip import attention, norm
from msg_jax.convert.presets import choose
from msg_jax.convert.weights import Entry, Tensors, drop_axes, fill, kernel, linear, shapes_of
from msg_jax.models.synchformer import PRESETS, WINDOW_SEGMENTS, FullSynchformer, SynchformerConfig
from msg_jax.types import Params


def from_tensors(
    tensors: Tensors, config: SynchformerConfig | str | None = None, source: str = "checkpoint"
) -> tuple[FullSynchformer, Params]:
    """Convert both encoders and the offset transformer to a module and its variables (`params`, float32).

    `config` is a configuration, the name of a preset, or None for the preset that fits the tensors. Raises UserError if
    there is none, and as `weights.fill` does.
    """
    parts = ("vfeat_extractor.", "afeat_extractor.", "vproj.", "aproj.", "transformer.")
    tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    tensors = {name: tensor for name, tensor in tensors.items() if name.startswith(parts)}  # drops the optimiser's
    config = choose(
        config, PRESETS, tensors, "vfeat_extractor.pos_embed", lambda preset: (1, 1 + preset.positions, preset.width), source
    )
    model = FullSynchformer(config)
    px, frames = config.image_px, config.segment_frames
    examples = (
        jnp.zeros((1, WINDOW_SEGMENTS, frames, px, px, 3)),
        jnp.zeros((1, WINDOW_SEGMENTS, config.mel_frames, config.bands)),
    )
    return model, fill(table(config), tensors, shapes_of(model, *examples), source)


def table(config: SynchformerConfig) -> list[Entry]:
    """Conversion table."""
    visual = [
        dataclasses.replace(entry, path=entry.path and entry.path.replace("params/", "params/visual/", 1))
        for entry in synchformer.table(config)
    ]
    return [*visual, *_audio(config), *_offset(config)]


def _audio(config: SynchformerConfig) -> list[Entry]:
    tower, gather = "afeat_extractor.ast", "afeat_extractor.freq_attn_agg"
    embeddings = f"{tower}.embeddings"
    entries = [
        Entry("params/audio/patches/conv/kernel", f"{embeddings}.patch_embeddings.projection.weight", kernel),
        Entry("params/audio/patches/conv/bias", f"{embeddings}.patch_embeddings.projection.bias"),
        Entry("params/audio/tokens", (f"{embeddings}.cls_token", f"{embeddings}.distillation_token"),
              lambda *tokens: np.concatenate([token[0] for token in tokens])),
        Entry("params/audio/positions", f"{embeddings}.position_embeddings", drop_axes(0)),
        *norm("audio/norm", f"{tower}.layernorm"),
        Entry("params/audio/gather_token", f"{gather}.cls_token", drop_axes(0, 1)),
        *norm("audio/gather/norm1", f"{gather}.norm1"), *norm("audio/gather/norm2", f"{gather}.norm2"),
        *attention("audio/gather", f"{gather}.self_attn"),
        *linear("audio/gather/mlp_in", f"{gather}.linear1"), *linear("audio/gather/mlp_out", f"{gather}.linear2"),
    ]
    for i in range(config.depth):
        path, name = f"audio/block{i}", f"{tower}.encoder.layer.{i}"
        entries += [
            *norm(f"{path}/norm1", f"{name}.layernorm_before"), *norm(f"{path}/norm2", f"{name}.layernorm_after"),
            *joined(f"{path}/qkv", *(f"{name}.attention.attention.{part}" for part in ("query", "key", "value"))),
            *linear(f"{path}/out", f"{name}.attention.output.dense"),
            *linear(f"{path}/mlp_in", f"{name}.intermediate.dense"), *linear(f"{path}/mlp_out", f"{name}.output.dense"),
        ]
    return entries


def _offset(config: SynchformerConfig) -> list[Entry]:
    entries = [
        *linear("sync/video_in", "vproj"), *linear("sync/audio_in", "aproj"),
        *norm("sync/video_norm", "transformer.vis_in_lnorm"), *norm("sync/audio_norm", "transformer.aud_in_lnorm"),
        Entry("params/sync/offset_token", "transformer.OFF_tok", drop_axes(0, 1)),
        Entry("params/sync/modality_token", "transformer.MOD_tok", drop_axes(0, 1)),
        Entry("params/sync/positions", "transformer.pos_emb_cfg.pos_emb", drop_axes(0)),
        *norm("sync/norm", "transformer.ln_f"), *linear("sync/head", "transformer.off_head"),
    ]
    for i in range(config.sync_depth):
        path, name = f"sync/block{i}", f"transformer.blocks.{i}"
        entries += [
            *norm(f"{path}/norm1", f"{name}.ln1"), *norm(f"{path}/norm2", f"{name}.ln2"),
            *joined(f"{path}/qkv", *(f"{name}.attn.{part}" for part in ("query", "key", "value"))),
            *linear(f"{path}/out", f"{name}.attn.proj"),
            *linear(f"{path}/mlp_in", f"{name}.mlp.0"), *linear(f"{path}/mlp_out", f"{name}.mlp.2"),
        ]
    return entries


def joined(path: str, *names: str) -> list[Entry]:
    """Entries that join linear layers with equal inputs, such as query, key and value, into one at `path`."""
    return [
        Entry(f"params/{path}/dense/kernel", tuple(f"{name}.weight" for name in names),
              lambda *weights: np.concatenate([kernel(weight) for weight in weights], axis=1)),
        Entry(f"params/{path}/dense/bias", tuple(f"{name}.bias" for name in names),
              lambda *biases: np.concatenate(biases)),
    ]
