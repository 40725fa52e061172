"""open_clip checkpoints (DFN5B-CLIP-ViT-H-14) -> `models.clip_encoder`."""

import jax.numpy as jnp

from msg_jax.convert.presets import choose
from msg_jax.convert.weights import Entry, Tensors, fill, kernel, linear, shapes_of
from msg_jax.models.clip_encoder import CLIP, PRESETS, CLIPConfig
from msg_jax.types import Params


def from_tensors(
    tensors: Tensors, config: CLIPConfig | str | None = None, source: str = "checkpoint"
) -> tuple[CLIP, Params]:
    """Convert both towers to a module and its variables (`params`, float32).

    `config` is a configuration, the name of a preset, or None for the preset that fits the tensors. Raises UserError if
    there is none, and as `weights.fill` does.
    """
    config = choose(
        config, PRESETS, tensors, "visual.positional_embedding",
        lambda preset: (1 + preset.patches, preset.vision_width), source,
    )
    model = CLIP(config)
    images = jnp.zeros((1, config.image_px, config.image_px, 3))
    tokens = jnp.zeros((1, config.context_tokens), jnp.int32)
    return model, fill(table(config), tensors, shapes_of(model, images, tokens), source)


def table(config: CLIPConfig) -> list[Entry]:
    """Conversion table of an open_clip checkpoint, without the text projection and the logit scale."""
    entries = [
        Entry("params/image/patches/conv/kernel", "visual.conv1.weight", kernel),
        Entry("params/image/class_token", "visual.class_embedding"),
        Entry("params/image/positions", "visual.positional_embedding"),
        *norm("image/norm_in", "visual.ln_pre"),
        *norm("image/norm_out", "visual.ln_post"),
        Entry("params/image/projection/dense/kernel", "visual.proj"),
        Entry("params/text/embedding/embedding", "token_embedding.weight"),
        Entry("params/text/positions", "positional_embedding"),
        *norm("text/norm_out", "ln_final"),
        Entry(None, "text_projection"),
        Entry(None, "logit_scale"),
    ]
    for i in range(config.vision_depth):
        entries += _block(f"image/block{i}", f"visual.transformer.resblocks.{i}")
    for i in range(config.text_depth):
        entries += _block(f"text/block{i}", f"transformer.resblocks.{i}")
    return entries


def norm(path: str, name: str) -> list[Entry]:
    """Entries of one `nn.LayerNorm`."""
    return [Entry(f"params/{path}/scale", f"{name}.weight"), Entry(f"params/{path}/bias", f"{name}.bias")]


def attention(path: str, name: str) -> list[Entry]:
    """Entries of PyTorch's `MultiheadAttention` in a `TransformerBlock`."""
    return [
        Entry(f"params/{path}/qkv/dense/kernel", f"{name}.in_proj_weight", kernel),
        Entry(f"params/{path}/qkv/dense/bias", f"{name}.in_proj_bias"),
        *linear(f"{path}/out", f"{name}.out_proj"),
    ]


def _block(path: str, name: str) -> list[Entry]:
    return [
        *norm(f"{path}/norm1", f"{name}.ln_1"), *norm(f"{path}/norm2", f"{name}.ln_2"),
        *attention(path, f"{name}.attn"),
        *linear(f"{path}/mlp_in", f"{name}.mlp.c_fc"), *linear(f"{path}/mlp_out", f"{name}.mlp.c_proj"),
    ]
