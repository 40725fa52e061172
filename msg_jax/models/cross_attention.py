"""A transformer over latent tokens that attends to the video by cross-attention (VTA-LDM, arXiv 2407.07464).

Each of the chosen `features` is projected to the network's width. Concatenated, they are the context of every block. Learnt
tokens may stand before those of each feature. Time enters through AdaLN. The network has MM-DiT's methods, so either network
works with either objective: `velocity` returns whatever the objective predicts.
"""

import dataclasses
import functools
import math

from flax import linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Float32, Num
import numpy as np

from msg_jax.clip import ClipSpec
from msg_jax.models.attention import attend
from msg_jax.models.condition_encoder import ConditionEncoderConfig, FrameEncoder
from msg_jax.models.generator import Generator
from msg_jax.models.layers import Dense, logical
from msg_jax.models.mmdit import AdaLN, GatedMLP, TimeEmbedding, apply_rope, merge_heads, modulate, rope_angles
from msg_jax.models.stack import run_blocks
from msg_jax.types import AnyArray, Array, Conditions

POSITIONS = ("rotary", "learnt", "sinusoidal", "none")
"""How context tokens say when they are: rotated keys, embeddings added to them and to the latent tokens, or nothing."""

FEATURES = ("clip", "sync", "text", "motion")  # fields of Conditions


@dataclasses.dataclass(frozen=True)
class CrossAttentionConfig:
    """Sizes of one network. `hidden / heads` must be even (rotary pairs)."""

    latent_channels: int
    latent_tokens: int
    clip_tokens: int
    sync_tokens: int
    text_tokens: int
    clip_dim: int
    sync_dim: int
    text_dim: int
    hidden: int = 448
    heads: int = 7
    depth: int = 12
    features: tuple[str, ...] = ("clip", "sync")  # of FEATURES, in the order of the context
    positions: str = "rotary"  # of context tokens, one of POSITIONS
    flow_grid: int = 0  # cells a side of the optical flow that the feature motion has beside its energy
    pooled_tokens: int = 0  # average each visual feature to this many tokens; 0 disables pooling
    modality_tokens: int = 0  # learnt tokens before those of each feature, the same for every clip
    frame_encoder: bool = False  # clip and sync are pixels in 0..255, (B, T, px * px * 3), encoded by a CNN in the network

    @classmethod
    def for_clip(cls, clip: ClipSpec, **fields) -> "CrossAttentionConfig":
        """Take the lengths from `clip` and the rest from `fields`."""
        return cls(
            latent_channels=clip.latent_channels, latent_tokens=clip.latent_tokens, clip_tokens=clip.clip_video_frames,
            sync_tokens=clip.sync_tokens, text_tokens=clip.text_tokens, **fields,
        )

    def shape(self, name: str) -> tuple[int, int]:
        """Number of tokens and width of one of FEATURES."""
        return {
            "clip": (self.clip_tokens, self.clip_dim), "sync": (self.sync_tokens, self.sync_dim),
            "text": (self.text_tokens, self.text_dim), "motion": (self.sync_tokens, 1 + 2 * self.flow_grid**2),
        }[name]


class Attention(nn.Module):
    """Attention of x over `context`, with the RoPE angles of both; None disables RoPE."""

    features: int
    heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], context: Float[Array, "B N D"],
        angles: tuple[Float[np.ndarray, "T half"], Float[np.ndarray, "N half"]] | None,
    ) -> Float[Array, "B T D"]:
        def project(inputs, chunks, name):
            out = Dense(chunks * self.features, axes=("embed", "heads"), dtype=self.dtype, name=name)(inputs)
            return jnp.split(out.reshape(*out.shape[:2], self.heads, -1), chunks, axis=-1)

        def norm(name):
            return nn.RMSNorm(dtype=jnp.float32, scale_init=logical(nn.initializers.ones_init(), None), name=name)

        (q,), (k, v) = project(x, 1, "q"), project(context, 2, "kv")
        q, k = norm("q_norm")(q), norm("k_norm")(k)
        if angles is not None:
            q, k = apply_rope(q, angles[0]), apply_rope(k, angles[1])
        attended = attend(q.astype(v.dtype), k.astype(v.dtype), v)
        return Dense(self.features, axes=("heads", "embed"), dtype=self.dtype, name="out")(merge_heads(attended))


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward; time modulates and gates the first and the last (zero at start)."""

    features: int
    heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], time: Float[Array, "B 1 D"], context: Float[Array, "B N D"],
        angles: Float[np.ndarray, "T half"], context_angles: Float[np.ndarray, "N half"] | None,
    ) -> Float[Array, "B T D"]:
        attention = functools.partial(Attention, self.features, self.heads, self.dtype)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = AdaLN(6, self.dtype, name="adaln")(time)
        modulated = modulate(x, shift, scale)
        x = x + gate * attention(name="self")(modulated, modulated, (angles, angles))
        both = None if context_angles is None else (angles, context_angles)
        x = x + attention(name="cross")(modulate(x, 0.0, 0.0), context, both)
        return x + mlp_gate * GatedMLP(self.features, dtype=self.dtype, name="mlp")(modulate(x, mlp_shift, mlp_scale))


class CrossAttentionTransformer(Generator):
    """The network; the collections `params` and `buffers`, `remat` and `scan` are as in `mmdit.MMDiT`.

    Every used feature has a learned null feature of its own width. Unused features have no parameters. `modality_tokens` stand
    in the context of clips and of null conditions alike: they tell the features apart, not whether a clip has them.
    """

    config: CrossAttentionConfig
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    scan: bool | None = None

    def setup(self):
        c, dtype, zeros = self.config, self.dtype, nn.initializers.zeros_init()
        self.latent_input = Dense(c.hidden, axes=(None, "embed"), dtype=dtype)
        self.t_embed = TimeEmbedding(c.hidden, v2=True, dtype=dtype)
        self.projections = {name: Dense(c.hidden, axes=(None, "embed"), dtype=dtype) for name in c.features}
        if c.frame_encoder:
            sizes = ConditionEncoderConfig  # its defaults
            kernels = {"clip": (1,) * len(sizes.widths), "sync": sizes.sync_time_kernels}
            self.frame_encoders = {
                name: FrameEncoder(sizes.widths, sizes.strides, kernels[name], sizes.sync_dim, dtype)
                for name in kernels if name in c.features
            }
        if c.positions == "learnt":
            places = {"latents": c.latent_tokens} | {name: self._length(name) for name in c.features if name != "text"}
            self.learnt = {
                name: self.param(f"positions_{name}", logical(nn.initializers.normal(0.02), None, None), (tokens, c.hidden))
                for name, tokens in places.items()
            }
        if c.modality_tokens:
            init = logical(nn.initializers.normal(0.02), None, None)
            self.modalities = {
                name: self.param(f"modality_{name}", init, (c.modality_tokens, c.hidden)) for name in c.features
            }
        self.blocks = [Block(c.hidden, c.heads, dtype) for _ in range(c.depth)]
        self.final_adaln = AdaLN(2, dtype)
        self.final = Dense(c.latent_channels, axes=("embed", None), dtype=dtype, kernel_init=zeros)
        self.empty = {
            name: self.param(f"empty_{name}", logical(nn.initializers.normal(0.02), None), (c.shape(name)[1],))
            for name in c.features
        }
        self.add_latent_statistics(c.latent_channels)

    def preprocess(self, conditions: Conditions) -> Float[Array, "B N {self.config.hidden}"]:
        """Compute the context, once per clip."""
        return jnp.concatenate([self._tokens(name, getattr(conditions, name)) for name in self.config.features], axis=1)

    def _tokens(
        self, name: str, values: Num[AnyArray, "B T D"]
    ) -> Float[Array, "B tokens {self.config.hidden}"]:
        """Context tokens of one of the features: `modality_tokens` learnt ones, then the projected feature."""
        c = self.config
        if c.frame_encoder and name in self.frame_encoders:
            px = math.isqrt(values.shape[-1] // 3)
            values = self.frame_encoders[name](values.reshape(*values.shape[:2], px, px, 3) / 127.5 - 1)
        tokens = self.projections[name](values)
        if name != "text":
            if c.pooled_tokens:
                tokens = jnp.stack([part.mean(axis=1) for part in jnp.array_split(tokens, c.pooled_tokens, axis=1)], axis=1)
            tokens = self._placed(name, tokens)
        if c.modality_tokens:  # a vector added to the tokens would only repeat the bias of their projection
            learnt = jnp.broadcast_to(self.modalities[name].astype(tokens.dtype), (len(tokens), c.modality_tokens, c.hidden))
            tokens = jnp.concatenate([learnt, tokens], axis=1)
        return tokens

    def _length(self, name: str) -> int:
        """Context tokens that are made of one of the features."""
        c = self.config
        return c.shape(name)[0] if name == "text" or not c.pooled_tokens else c.pooled_tokens

    def _placed(self, name: str, tokens: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        """The tokens of a feature, or of the "latents", with the embeddings of their positions, if those are added."""
        c = self.config
        if c.positions == "learnt":
            return tokens + self.learnt[name].astype(tokens.dtype)
        if c.positions == "sinusoidal":
            angles = rope_angles(tokens.shape[1], c.hidden, scale=c.latent_tokens / tokens.shape[1])
            return tokens + jnp.asarray(np.concatenate([np.sin(angles), np.cos(angles)], axis=1), tokens.dtype)
        return tokens

    def _context_angles(self) -> np.ndarray | None:
        """RoPE angles (N, hidden / heads / 2): equal angles in latent and context mean equal times. Text tokens and learnt ones
        have none."""
        c = self.config
        if c.positions != "rotary":
            return None
        angles = []
        for name in c.features:
            tokens = self._length(name)
            angles.append(rope_angles(c.modality_tokens, c.hidden // c.heads, scale=0.0))
            angles.append(rope_angles(tokens, c.hidden // c.heads, scale=0.0 if name == "text" else c.latent_tokens / tokens))
        return np.concatenate(angles)

    def velocity(
        self, x_t: Float[AnyArray, "B T C"], t: Float[AnyArray, " B"], context: Float[Array, "B N hidden"]
    ) -> Float32[Array, "B T C"]:
        """Return the network's output at x_t and t in [0, 1], given the context of the same batch."""
        c, time = self.config, self.t_embed(t)[:, None]
        angles, context_angles = rope_angles(x_t.shape[1], c.hidden // c.heads), self._context_angles()

        def step(block, x):
            return block(x, time, context, angles, context_angles)

        x = run_blocks(self.blocks, step, self._placed("latents", self.latent_input(x_t)), remat=self.remat, scan=self.scan)
        return self.final(modulate(x, *self.final_adaln(time))).astype(jnp.float32)

    def null_conditions(self, batch: int, text: Float[AnyArray, "_ N D"] | None = None) -> Conditions:
        """Return the learned null conditions for guidance; `text` is a negative prompt for each item or for all.

        Features that the network does not use are zero.
        """
        c = self.config

        def null(name):
            if name == "text" and text is not None:
                return jnp.broadcast_to(text, (batch, *c.shape(name)))
            empty = self.empty[name] if name in c.features else jnp.zeros(c.shape(name)[1])
            if c.frame_encoder and name in ("clip", "sync"):
                empty = (1 + empty) * 127.5
            return jnp.broadcast_to(empty, (batch, *c.shape(name)))

        return Conditions(**{name: null(name) for name in FEATURES if name != "motion" or name in c.features})
