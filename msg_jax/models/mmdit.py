"""MM-DiT: the flow-matching transformer of MMAudio (Cheng et al., arXiv 2412.15322), every size, v1 and v2.

Latent, clip and text tokens attend jointly in the first blocks; the latent alone goes through the fused blocks. Latent
blocks are modulated per token by frame-aligned sync features, which is where the timing comes from.
"""

from collections.abc import Callable
import dataclasses
import math
from typing import Any, ClassVar

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from msg_jax.clip import MMAUDIO_16K, MMAUDIO_44K, SYNC_STEPS_PER_SEGMENT, ClipSpec
from msg_jax.models.layers import Conv, Dense, logical
from msg_jax.types import Array, Conditions

ROPE_THETA = 10_000.0
V1_TIME_WIDTH = 256
_TORCH_CONV_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's own


@dataclasses.dataclass(frozen=True)
class MMDiTConfig:
    """The shape of one MM-DiT. Lengths only size the positions: the same weights serve other lengths.

    `hidden / heads` must be even (rotary pairs); `sync_tokens` is a whole number of segments of 8.
    """

    latent_channels: int
    latent_tokens: int
    clip_tokens: int
    sync_tokens: int
    text_tokens: int
    clip_dim: int = 1024
    sync_dim: int = 768
    text_dim: int = 1024
    hidden: int = 448
    heads: int = 7
    joint_depth: int = 4
    fused_depth: int = 8
    v2: bool = False
    features: ClassVar = ("clip", "sync", "text")  # the conditions that it sees

    @classmethod
    def for_clip(cls, clip: ClipSpec, **fields) -> "MMDiTConfig":
        """The configuration whose lengths are those of `clip`; `fields` are the rest."""
        return cls(
            latent_channels=clip.latent_channels, latent_tokens=clip.latent_tokens, clip_tokens=clip.clip_video_frames,
            sync_tokens=clip.sync_tokens, text_tokens=clip.text_tokens, **fields,
        )


PRESETS = {
    "small_16k": MMDiTConfig.for_clip(MMAUDIO_16K),
    "small_44k": MMDiTConfig.for_clip(MMAUDIO_44K),
    "medium_44k": MMDiTConfig.for_clip(MMAUDIO_44K, hidden=896, heads=14),
    "large_44k": MMDiTConfig.for_clip(MMAUDIO_44K, hidden=896, heads=14, joint_depth=7, fused_depth=14),
    "large_44k_v2": MMDiTConfig.for_clip(MMAUDIO_44K, hidden=896, heads=14, joint_depth=7, fused_depth=14, v2=True),
}


class ProcessedConditions(struct.PyTreeNode):
    """All that the network can compute before it sees x_t and t."""

    clip: Array  # (B, clip_tokens, hidden)
    sync: Array  # (B, latent_tokens, hidden)
    text: Array  # (B, text_tokens, hidden)
    pooled: Array  # (B, hidden)


def example_inputs(config: Any, batch: int = 1) -> tuple[Array, Array, Conditions]:
    """Zeros `(x_t, t, conditions)` of the right shapes, for `init` and `eval_shape` of MM-DiT or a network like it."""
    conditions = Conditions(
        clip=jnp.zeros((batch, config.clip_tokens, config.clip_dim)),
        sync=jnp.zeros((batch, config.sync_tokens, config.sync_dim)),
        text=jnp.zeros((batch, config.text_tokens, config.text_dim)),
        motion=jnp.zeros((batch, config.sync_tokens, 1)) if "motion" in config.features else None,
    )
    return jnp.zeros((batch, config.latent_tokens, config.latent_channels)), jnp.zeros(batch), conditions


def draw_drops(key: Array, batch: int, rate: float, text_rate: float | None = None) -> Array:
    """Which items lose their video and which their text, each on its own: bool (B, 2).

    Video goes with probability `rate`, text with `text_rate` (default: the same), so that the all-null input that guidance
    needs is met in training `rate * text_rate` of the time (as in MMAudio's released trainer).
    """
    rates = jnp.array([rate, rate if text_rate is None else text_rate])[:, None]
    return jax.random.bernoulli(key, rates, (2, batch)).T


def drop_conditions(drops: Array, conditions: Conditions, null: Conditions) -> Conditions:
    """Replaces by `null` what `drops` (B, 2) of `draw_drops` says.

    Clip, sync and motion are views of one video and go together; motion is there if `null` has it.
    """
    drop_video, drop_text = drops[:, 0, None, None], drops[:, 1, None, None]
    return Conditions(
        clip=jnp.where(drop_video, null.clip, conditions.clip),
        sync=jnp.where(drop_video, null.sync, conditions.sync),
        text=jnp.where(drop_text, null.text, conditions.text),
        motion=None if null.motion is None else jnp.where(drop_video, null.motion, conditions.motion),
    )


def mlp_width(features: int) -> int:
    """Hidden width of a gated MLP: two thirds of 4 x `features`, rounded up to a multiple of 256."""
    return 256 * math.ceil(int(2 * 4 * features / 3) / 256)


def rope_angles(length: int, dim: int, scale: float = 1.0) -> np.ndarray:
    """Rotary angles (length, dim / 2), in radians, of positions 0, scale, 2 scale, ..."""
    frequencies = scale / ROPE_THETA ** (np.arange(0, dim, 2) / dim)
    return np.outer(np.arange(length), frequencies).astype(np.float32)


def apply_rope(x: Array, angles: Array) -> Array:
    """Rotates the pairs (0, 1), (2, 3), ... of the last axis of x (B, T, heads, D) by angles (T, D / 2)."""
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    even, odd = x[..., 0::2], x[..., 1::2]
    return jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape)


def nearest_exact(length: int, target: int) -> np.ndarray:
    """Source index of each of `target` steps, in float32 arithmetic as the released networks were trained with."""
    scale = np.float32(length) / np.float32(target)
    return np.floor((np.arange(target, dtype=np.float32) + np.float32(0.5)) * scale).astype(np.int32)


def modulate(x: Array, shift: Array, scale: Array) -> Array:
    """LayerNorm without affine, then x (1 + scale) + shift, in float32."""
    x = x.astype(jnp.float32)
    return jax.nn.standardize(x, variance=jnp.var(x, axis=-1, keepdims=True), epsilon=1e-5) * (1 + scale) + shift


def _projection(kernel: int, features: int, axes: tuple, **fields) -> nn.Module:
    """A linear layer over channels that sees `kernel` neighbouring tokens."""
    if kernel == 1:
        return Dense(features, axes=axes, **fields)
    return Conv(features, (kernel,), axes=axes, kernel_init=_TORCH_CONV_INIT, **fields)


class GatedMLP(nn.Module):
    """w2(silu(w1 x) * w3 x) without biases; convolutions where `kernel` > 1."""

    features: int
    kernel: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        def project(features, axes, name):
            return _projection(self.kernel, features, axes, use_bias=False, dtype=self.dtype, name=name)

        hidden = mlp_width(self.features)
        gate = nn.silu(project(hidden, ("embed", "mlp"), "w1")(x))
        return project(self.features, ("mlp", "embed"), "w2")(gate * project(hidden, ("embed", "mlp"), "w3")(x))


class InputProjection(nn.Module):
    """Features of one modality (B, T, any) -> tokens (B, T, features)."""

    features: int
    kernel: int
    mlp_kernel: int
    activation: Callable[[Array], Array] | None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = _projection(self.kernel, self.features, (None, "embed"), dtype=self.dtype, name="proj")(x)
        if self.activation is not None:
            x = self.activation(x)
        return GatedMLP(self.features, self.mlp_kernel, self.dtype, name="mlp")(x)


class TimeEmbedding(nn.Module):
    """t (B,) in [0, 1] -> (B, features): [cos, sin] of t times the frequencies, then a two-layer MLP.

    v1 has 128 frequencies from 1 down to 1/10000; v2 has features / 2 from 10000 down to 1, which tells nearby times
    apart.
    """

    features: int
    v2: bool
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, t: Array) -> Array:
        width, scale = (self.features, 10_000.0) if self.v2 else (V1_TIME_WIDTH, 1.0)
        # float32 throughout, because at 10000 cycles its rounding is part of what the released v2 weights have learnt
        exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
        frequencies = np.float32(scale) * (np.float32(1) / np.float32(10_000) ** exponents)
        angles = t.astype(jnp.float32)[:, None] * frequencies
        x = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
        init = nn.initializers.normal(0.02)
        x = nn.silu(Dense(self.features, axes=(None, "mlp"), dtype=self.dtype, kernel_init=init, name="in")(x))
        return Dense(self.features, axes=("mlp", "embed"), dtype=self.dtype, kernel_init=init, name="out")(x)


class AdaLN(nn.Module):
    """Condition (B, T or 1, D) -> `chunks` modulations of the same shape, zero at initialisation."""

    chunks: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, condition: Array) -> list[Array]:
        out = Dense(
            self.chunks * condition.shape[-1], axes=("embed", "modulation"), dtype=self.dtype,
            kernel_init=nn.initializers.zeros_init(), name="linear",
        )(nn.silu(condition))
        return jnp.split(out, self.chunks, axis=-1)


class Stream(nn.Module):
    """One modality's part of a block: what comes before the attention and what comes after.

    `kernel` is the width of the output and feed-forward convolutions; None leaves both out, for streams that only
    supply keys and values.
    """

    features: int
    heads: int
    kernel: int | None
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.adaln = AdaLN(2 if self.kernel is None else 6, self.dtype)
        self.qkv = Dense(3 * self.features, axes=("embed", "heads"), dtype=self.dtype)
        norm = dict(epsilon=float(jnp.finfo(jnp.float32).eps), dtype=jnp.float32)
        self.q_norm = nn.RMSNorm(**norm, scale_init=logical(nn.initializers.ones_init(), None))
        self.k_norm = nn.RMSNorm(**norm, scale_init=logical(nn.initializers.ones_init(), None))
        if self.kernel is not None:
            self.out = _projection(self.kernel, self.features, ("heads", "embed"), dtype=self.dtype)
            self.mlp = GatedMLP(self.features, self.kernel, self.dtype)

    def before(self, x: Array, condition: Array, angles: Array | None) -> tuple[tuple[Array, ...], list[Array]]:
        """x (B, T, D) -> (q, k, v), each (B, T, heads, D / heads), and the modulations left for `after`."""
        shift, scale, *rest = self.adaln(condition)
        qkv = self.qkv(modulate(x, shift, scale)).reshape(*x.shape[:2], self.heads, 3, -1)
        q, k, v = (qkv[..., i, :] for i in range(3))
        q, k = self.q_norm(q), self.k_norm(k)
        if angles is not None:
            q, k = apply_rope(q, angles), apply_rope(k, angles)
        return (q.astype(v.dtype), k.astype(v.dtype), v), rest

    def after(self, x: Array, attended: Array, rest: list[Array]) -> Array:
        """Adds the attention's output and the feed-forward, each through its gate, to x (B, T, D)."""
        gate, mlp_shift, mlp_scale, mlp_gate = rest
        x = x + self.out(attended) * gate
        return x + self.mlp(modulate(x, mlp_shift, mlp_scale)) * mlp_gate


def attend(q: Array, k: Array, v: Array, implementation: str | None) -> Array:
    """(B, T, heads, D) three times -> (B, T, heads * D)."""
    out = jax.nn.dot_product_attention(q, k, v, implementation=implementation)
    return out.reshape(*out.shape[:2], -1)


class JointBlock(nn.Module):
    """Attention over [latent, clip, text]. In the last joint block clip and text only supply keys and values."""

    features: int
    heads: int
    last: bool
    dtype: jnp.dtype = jnp.float32
    attention_implementation: str | None = None

    @nn.compact
    def __call__(self, latent, clip, text, pooled, extended, latent_angles, clip_angles):
        def stream(kernel, name):
            return Stream(self.features, self.heads, kernel, self.dtype, name=name)

        streams = [
            stream(3, "latent"), stream(None if self.last else 3, "clip"), stream(None if self.last else 1, "text"),
        ]
        xs = [latent, clip, text]
        conditions, angles = [extended, pooled, pooled], [latent_angles, clip_angles, None]
        qkvs, rests = zip(*(s.before(x, c, a) for s, x, c, a in zip(streams, xs, conditions, angles)))
        q, k, v = (jnp.concatenate(parts, axis=1) for parts in zip(*qkvs))
        if self.last:
            return streams[0].after(latent, attend(qkvs[0][0], k, v, self.attention_implementation), rests[0])
        attended = attend(q, k, v, self.attention_implementation)
        ends = np.cumsum([x.shape[1] for x in xs])[:-1]
        parts = jnp.split(attended, ends, axis=1)
        return tuple(s.after(x, part, rest) for s, x, part, rest in zip(streams, xs, parts, rests))


class FusedBlock(nn.Module):
    """Attention among the latent's own tokens."""

    features: int
    heads: int
    dtype: jnp.dtype = jnp.float32
    attention_implementation: str | None = None

    @nn.compact
    def __call__(self, latent: Array, extended: Array, angles: Array) -> Array:
        stream = Stream(self.features, self.heads, 3, self.dtype, name="latent")
        qkv, rest = stream.before(latent, extended, angles)
        return stream.after(latent, attend(*qkv, self.attention_implementation), rest)


class MMDiT(nn.Module):
    """The velocity network: v(x_t, t | conditions), with t = 0 noise and t = 1 data.

    Trained parameters are the collection `params`, including the learned features that stand for "no clip" and "no
    sync". The collection `buffers` holds what is never trained: the latents' mean and standard deviation and the
    text encoder's features of the empty string.

    `dtype` is that of the matrix products; parameters, normalisations and rotary angles stay in float32.
    `attention_implementation` is passed to `jax.nn.dot_product_attention` ("cudnn" wants bfloat16 on a GPU).
    `remat` recomputes each block in the backward pass, which trades a third more time for activations' memory.
    """

    config: MMDiTConfig
    dtype: jnp.dtype = jnp.float32
    attention_implementation: str | None = None
    remat: bool = False

    def setup(self):
        c, dtype = self.config, self.dtype
        sequence_activation, token_activation = (nn.silu, nn.silu) if c.v2 else (nn.selu, None)
        self.audio_input = InputProjection(c.hidden, 7, 7, sequence_activation, dtype)
        self.clip_input = InputProjection(c.hidden, 1, 3, token_activation, dtype)
        self.sync_input = InputProjection(c.hidden, 7, 3, sequence_activation, dtype)
        self.text_input = InputProjection(c.hidden, 1, 1, token_activation, dtype)
        self.clip_pooled = Dense(c.hidden, dtype=dtype)
        self.text_pooled = Dense(c.hidden, dtype=dtype)
        self.pooled_mlp = GatedMLP(c.hidden, dtype=dtype)
        self.t_embed = TimeEmbedding(c.hidden, c.v2, dtype)

        joint, fused = (nn.remat(JointBlock), nn.remat(FusedBlock)) if self.remat else (JointBlock, FusedBlock)
        block = dict(dtype=dtype, attention_implementation=self.attention_implementation)
        self.joint = [joint(c.hidden, c.heads, i == c.joint_depth - 1, **block) for i in range(c.joint_depth)]
        self.fused = [fused(c.hidden, c.heads, **block) for _ in range(c.fused_depth)]
        self.final_adaln = AdaLN(2, dtype)
        zeros = nn.initializers.zeros_init()
        self.final = Conv(c.latent_channels, (7,), axes=("embed", None), dtype=dtype, kernel_init=zeros)

        self.sync_positions = self.param(
            "sync_positions", logical(zeros, None, None), (SYNC_STEPS_PER_SEGMENT, c.sync_dim)
        )
        self.empty_clip = self.param("empty_clip", logical(zeros, None), (c.clip_dim,))
        self.empty_sync = self.param("empty_sync", logical(zeros, None), (c.sync_dim,))
        self.empty_text = self.variable("buffers", "empty_text", jnp.zeros, (c.text_tokens, c.text_dim))
        self.latent_mean = self.variable("buffers", "latent_mean", jnp.zeros, (c.latent_channels,))
        self.latent_std = self.variable("buffers", "latent_std", jnp.ones, (c.latent_channels,))

    def __call__(self, x_t: Array, t: Array, conditions: Conditions) -> Array:
        """x_t (B, T, C), t (B,), conditions -> velocity (B, T, C) float32."""
        return self.velocity(x_t, t, self.preprocess(conditions))

    def preprocess(self, conditions: Conditions) -> ProcessedConditions:
        """All work that neither x_t nor t enters: once per clip, not once per solver step."""
        c = self.config
        segments = conditions.sync.reshape(conditions.sync.shape[0], -1, SYNC_STEPS_PER_SEGMENT, c.sync_dim)
        sync = self.sync_input((segments + self.sync_positions).reshape(conditions.sync.shape))
        clip, text = self.clip_input(conditions.clip), self.text_input(conditions.text)
        pooled = self.clip_pooled(clip.mean(axis=1)) + self.text_pooled(text.mean(axis=1))
        return ProcessedConditions(
            clip=clip, sync=sync[:, nearest_exact(sync.shape[1], c.latent_tokens)], text=text,
            pooled=self.pooled_mlp(pooled),
        )

    def velocity(self, x_t: Array, t: Array, processed: ProcessedConditions) -> Array:
        """x_t (B, T, C), t (B,) in [0, 1], processed conditions of the same batch -> (B, T, C) float32."""
        c = self.config
        latent, clip, text = self.audio_input(x_t), processed.clip, processed.text
        pooled = (processed.pooled + self.t_embed(t))[:, None]
        extended = pooled + processed.sync
        head_dim = c.hidden // c.heads
        latent_angles = rope_angles(latent.shape[1], head_dim)
        clip_angles = rope_angles(clip.shape[1], head_dim, scale=latent.shape[1] / clip.shape[1])
        for block in self.joint[:-1]:
            latent, clip, text = block(latent, clip, text, pooled, extended, latent_angles, clip_angles)
        latent = self.joint[-1](latent, clip, text, pooled, extended, latent_angles, clip_angles)
        for block in self.fused:
            latent = block(latent, extended, latent_angles)
        return self.final(modulate(latent, *self.final_adaln(pooled))).astype(jnp.float32)

    def null_conditions(self, batch: int, text: Array | None = None) -> Conditions:
        """The learned "nothing given", for guidance; `text` (B or 1, text_tokens, D) is a negative prompt."""
        c = self.config
        text = self.empty_text.value if text is None else text
        return Conditions(
            clip=jnp.broadcast_to(self.empty_clip, (batch, c.clip_tokens, c.clip_dim)),
            sync=jnp.broadcast_to(self.empty_sync, (batch, c.sync_tokens, c.sync_dim)),
            text=jnp.broadcast_to(text, (batch, c.text_tokens, c.text_dim)),
        )

    def normalize(self, latents: Array) -> Array:
        """Codec latents (B, T, C) -> zero mean, unit deviation per channel."""
        return (latents - self.latent_mean.value) / self.latent_std.value

    def unnormalize(self, latents: Array) -> Array:
        """Inverse of `normalize`."""
        return latents * self.latent_std.value + self.latent_mean.value
