"""CLIP's image and text towers (Radford et al., arXiv 2103.00020) as in open_clip, with quick-GELU.

MMAudio conditions on DFN5B's ViT-H/14: one unit vector per frame and one per text *token*.
"""

from collections.abc import Callable
import dataclasses

from flax import linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Float32, Int

from msg_jax.models.attention import attend
from msg_jax.models.layers import Conv, Dense, logical
from msg_jax.models.stack import run_blocks
from msg_jax.types import AnyArray, Array

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of RGB in [0, 1]
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """`image_px` need not be a multiple of `patch_px`; the towers then ignore the last pixels of a row or column."""

    image_px: int = 384
    patch_px: int = 14
    vision_width: int = 1280
    vision_depth: int = 32
    vision_heads: int = 16
    text_width: int = 1024
    text_depth: int = 24
    text_heads: int = 16
    vocabulary: int = 49408
    context_tokens: int = 77
    features: int = 1024

    @property
    def patches(self) -> int:
        return (self.image_px // self.patch_px) ** 2


# Published as "384". The weights were trained at 378 px = 27 patches of 14, and 384 px gives the same 27.
PRESETS = {"vit_h_14": CLIPConfig()}


def quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """GELU by a scaled sigmoid, as in the released weights."""
    return x * nn.sigmoid(1.702 * x)


def unit_norm(x: Float[Array, "*batch D"]) -> Float32[Array, "*batch D"]:
    """Scale x to Euclidean norm 1 along the last axis."""
    x = x.astype(jnp.float32)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


class TransformerBlock(nn.Module):
    """Pre-norm self-attention, then a feed-forward layer of four times the width.

    A call with `first` computes the first tokens only, which attend to all. `rotate` is applied to queries and keys
    (B, T, heads, D), for rotary positions.
    """

    heads: int
    activation: Callable[[Array], Array]
    causal: bool = False
    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], first: int | None = None, rotate: Callable[[Array], Array] = lambda heads: heads
    ) -> Float[Array, "B first D"]:
        width = x.shape[-1]

        def dense(features, axes, name):
            return Dense(features, axes=axes, dtype=self.dtype, name=name)

        y = nn.LayerNorm(self.epsilon, dtype=self.dtype, name="norm1")(x)
        qkv = dense(3 * width, ("embed", "heads"), "qkv")(y).reshape(*x.shape[:2], 3, self.heads, -1)
        x = x[:, :first]
        y = attend(rotate(qkv[:, :, 0])[:, :first], rotate(qkv[:, :, 1]), qkv[:, :, 2], causal=self.causal)
        x = x + dense(width, ("heads", "embed"), "out")(y.reshape(x.shape))
        y = nn.LayerNorm(self.epsilon, dtype=self.dtype, name="norm2")(x)
        y = self.activation(dense(4 * width, ("embed", "mlp"), "mlp_in")(y))
        return x + dense(width, ("mlp", "embed"), "mlp_out")(y)


class ImageTower(nn.Module):
    """Images normalised by pixel mean and deviation -> the projected class token."""

    config: CLIPConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B {self.config.features}"]:
        c = self.config
        patch = (c.patch_px, c.patch_px)
        init = nn.initializers.normal(c.vision_width**-0.5)
        x = Conv(
            c.vision_width, patch, strides=patch, padding="VALID", axes=(None, "embed"), use_bias=False,
            dtype=self.dtype, name="patches",
        )(images).reshape(images.shape[0], c.patches, c.vision_width)
        class_token = self.param("class_token", logical(init, "embed"), (c.vision_width,)).astype(x.dtype)
        x = jnp.concatenate([jnp.broadcast_to(class_token, (x.shape[0], 1, c.vision_width)), x], axis=1)
        x = x + self.param("positions", logical(init, None, "embed"), x.shape[1:]).astype(x.dtype)
        x = nn.LayerNorm(1e-5, dtype=self.dtype, name="norm_in")(x)
        blocks = [
            TransformerBlock(c.vision_heads, quick_gelu, dtype=self.dtype, name=f"block{i}") for i in range(c.vision_depth)
        ]
        x = run_blocks(blocks[:-1], TransformerBlock.__call__, x)
        x = nn.LayerNorm(1e-5, dtype=self.dtype, name="norm_out")(blocks[-1](x, first=1)[:, 0])
        return Dense(c.features, axes=("embed", None), use_bias=False, dtype=self.dtype, name="projection")(x)


class TextTower(nn.Module):
    """Token ids, at most `context_tokens` -> states after the final LayerNorm."""

    config: CLIPConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Int[AnyArray, "B T"]) -> Float[Array, "B T {self.config.text_width}"]:
        c = self.config
        x = nn.Embed(
            c.vocabulary, c.text_width, dtype=self.dtype, name="embedding",
            embedding_init=logical(nn.initializers.normal(0.02), None, "embed"),
        )(tokens)
        init = logical(nn.initializers.normal(0.01), None, "embed")
        positions = self.param("positions", init, (c.context_tokens, c.text_width))
        x = x + positions[: tokens.shape[1]].astype(x.dtype)
        blocks = [
            TransformerBlock(c.text_heads, quick_gelu, causal=True, dtype=self.dtype, name=f"block{i}")
            for i in range(c.text_depth)
        ]
        x = run_blocks(blocks, TransformerBlock.__call__, x)
        return nn.LayerNorm(1e-5, dtype=self.dtype, name="norm_out")(x)


class CLIP(nn.Module):
    """Both towers, without the released text projection and logit scale, which nothing here uses."""

    config: CLIPConfig
    dtype: DTypeLike = jnp.float32

    def setup(self):
        self.image = ImageTower(self.config, self.dtype)
        self.text = TextTower(self.config, self.dtype)

    def __call__(
        self, images: Float[AnyArray, "*batch H W 3"], tokens: Int[AnyArray, "B T"]
    ) -> tuple[Float32[Array, "*batch D"], Float32[Array, "B T Dt"]]:
        return self.encode_image(images), self.encode_text(tokens)

    def encode_image(self, images: Float[AnyArray, "*batch H W 3"]) -> Float32[Array, "*batch D"]:
        """Frames in [-1, 1] -> unit-norm features."""
        flat = (jnp.asarray(images).reshape(-1, *images.shape[-3:]) + 1) / 2
        flat = (flat - jnp.asarray(PIXEL_MEAN)) / jnp.asarray(PIXEL_STD)
        return unit_norm(self.image(flat)).reshape(*images.shape[:-3], -1)

    def encode_text(self, tokens: Int[AnyArray, "B T"]) -> Float32[Array, "B T D"]:
        """Token ids -> unit-norm features of every token, without pooling."""
        return unit_norm(self.text(tokens))
