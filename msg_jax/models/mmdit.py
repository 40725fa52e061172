"""MM-DiT: the flow-matching transformer of MMAudio (Cheng et al., arXiv 2412.15322), all sizes, v1 and v2.

Latent, clip and text tokens attend jointly in the first blocks; only latent tokens pass through the fused blocks.
Frame-aligned sync features modulate the latent tokens one by one and so carry the timing.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math
from typing import Any, ClassVar, no_type_check

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Float32, Int32, Key
import numpy as np

from msg_jax.clip import MMAUDIO_16K, MMAUDIO_44K, SYNC_STEPS_PER_SEGMENT, ClipSpec
from msg_jax.models.attention import Implementation, attend
from msg_jax.models.device import keep_rows
from msg_jax.models.generator import Generator
from msg_jax.models.layers import Conv, Dense, logical
from msg_jax.models.stack import run_blocks
from msg_jax.types import AnyArray, Array, Conditions, JointConditions

ROPE_THETA = 10_000.0
V1_TIME_WIDTH = 256
_TORCH_CONV_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default

Heads = Float[Array, "B T heads D"]
Modulation = Float[Array, " B #T D"]  # the leading space hides the "#" from the linter


@dataclasses.dataclass(frozen=True)
class MMDiTConfig:
    """Sizes of one MM-DiT. Lengths only set the positions: the same weights work at other lengths.

    `hidden / heads` must be even (rotary pairs). `sync_tokens` must be a multiple of 8, the steps of a segment.
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
        """Take the lengths from `clip` and the rest from `fields`."""
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


@no_type_check
class ProcessedConditions(struct.PyTreeNode):
    """Everything that the network computes from the conditions alone, before it sees x_t and t."""

    clip: Float[Array, "B clip_tokens hidden"]
    sync: Float[Array, "B latent_tokens hidden"]
    text: Float[Array, "B text_tokens hidden"]
    pooled: Float[Array, "B hidden"]


def example_inputs(
    config: Any, batch: int = 1
) -> tuple[Float[Array, "{batch} T C"], Float[Array, " {batch}"], Any]:
    """Zeros `(x_t, t, conditions)` for `init` and `eval_shape`; `config` is that of MM-DiT or a network with its interface."""
    x_t, t = jnp.zeros((batch, config.latent_tokens, config.latent_channels)), jnp.zeros(batch)
    if "given" in config.features:
        text = jnp.zeros((batch, config.text_tokens, config.text_dim))
        return x_t, t, JointConditions.from_batch({"latents": x_t, "text": text})
    conditions = Conditions(
        clip=jnp.zeros((batch, config.clip_tokens, config.clip_dim)),
        sync=jnp.zeros((batch, config.sync_tokens, config.sync_dim)),
        text=jnp.zeros((batch, config.text_tokens, config.text_dim)),
        motion=jnp.zeros((batch, *config.shape("motion"))) if "motion" in config.features else None,
    )
    return x_t, t, conditions


def draw_drops(key: Key[Array, ""], batch: int, rate: float, text_rate: float | None = None) -> Bool[Array, "{batch} 2"]:
    """Draw independently which items lose their video (column 0) and which their text (column 1).

    Video is dropped with probability `rate`, text with `text_rate` (default: the same). Guidance needs the all-null input,
    which training then sees `rate * text_rate` of the time (as in MMAudio's released trainer).
    """
    rates = jnp.array([rate, rate if text_rate is None else text_rate])[:, None]
    return jax.random.bernoulli(key, rates, (2, batch)).T


def drop_conditions(drops: Bool[Array, "B 2"], conditions: Any, null: Any) -> Any:
    """Replace the conditions that `draw_drops` chose by `null`.

    Clip, sync and motion are views of one video and are dropped together. The result has motion if `null` has it. Where sound
    and pictures are generated together, each stream loses the other one instead.
    """
    drop_video, drop_text = drops[:, 0, None, None], drops[:, 1, None, None]
    if isinstance(conditions, JointConditions):
        text = jnp.where(drop_text, null.text, conditions.text)
        return conditions.replace(text=text, alone=conditions.alone | drops[:, 0])

    def replaced(name: str, drop: Array) -> Array:
        return jnp.where(drop, getattr(null, name), getattr(conditions, name))

    return Conditions(
        clip=replaced("clip", drop_video), sync=replaced("sync", drop_video), text=replaced("text", drop_text),
        motion=None if null.motion is None else replaced("motion", drop_video),
    )


def mlp_width(features: int) -> int:
    """Hidden width of the gated MLP: two thirds of 4 x `features`, rounded up to a multiple of 256."""
    return 256 * math.ceil(int(2 * 4 * features / 3) / 256)


def rope_angles(length: int, dim: int, scale: float = 1.0) -> Float32[np.ndarray, "{length} {dim}//2"]:
    """Rotary angles in radians of the positions 0, scale, 2 scale, ..."""
    frequencies = scale / ROPE_THETA ** (np.arange(0, dim, 2) / dim)
    return np.outer(np.arange(length), frequencies).astype(np.float32)


def apply_rope(x: Heads, angles: Float[AnyArray, "T D//2"]) -> Heads:
    """Rotate the pairs (0, 1), (2, 3), ... of the last axis of x by the angles."""
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    even, odd = x[..., 0::2], x[..., 1::2]
    return jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape)


def nearest_exact(length: int, target: int) -> Int32[np.ndarray, " {target}"]:
    """Source index of each of `target` steps, in the float32 arithmetic that the released networks were trained with."""
    scale = np.float32(length) / np.float32(target)
    return np.floor((np.arange(target, dtype=np.float32) + np.float32(0.5)) * scale).astype(np.int32)


def modulate(
    x: Float[Array, "B T D"], shift: Modulation | float, scale: Modulation | float
) -> Float32[Array, "B T D"]:
    """LayerNorm without learned scale and bias, then x (1 + scale) + shift, in float32."""
    x = x.astype(jnp.float32)
    return jax.nn.standardize(x, variance=jnp.var(x, axis=-1, keepdims=True), epsilon=1e-5) * (1 + scale) + shift


def _projection(kernel: int, features: int, axes: tuple[str | None, str | None], **fields) -> Dense | Conv:
    """Linear layer over channels and `kernel` neighbouring tokens."""
    if kernel == 1:
        return Dense(features, axes=axes, **fields)
    return Conv(features, (kernel,), axes=axes, kernel_init=_TORCH_CONV_INIT, **fields)


class GatedMLP(nn.Module):
    """w2(silu(w1 x) * w3 x) without biases; the layers are convolutions if `kernel` > 1."""

    features: int
    kernel: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B *T {self.features}"]) -> Float[Array, "B *T {self.features}"]:
        def project(features, axes, name):
            return _projection(self.kernel, features, axes, use_bias=False, dtype=self.dtype, name=name)

        hidden = mlp_width(self.features)
        gate = nn.silu(project(hidden, ("embed", "mlp"), "w1")(x))
        return project(self.features, ("mlp", "embed"), "w2")(gate * project(hidden, ("embed", "mlp"), "w3")(x))


class InputProjection(nn.Module):
    """Project the features of one modality to tokens."""

    features: int
    kernel: int
    mlp_kernel: int
    activation: Callable[[Array], Array] | None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[AnyArray, "B T D"]) -> Float[Array, "B T {self.features}"]:
        x = _projection(self.kernel, self.features, (None, "embed"), dtype=self.dtype, name="proj")(x)
        if self.activation is not None:
            x = self.activation(x)
        return GatedMLP(self.features, self.mlp_kernel, self.dtype, name="mlp")(x)


class TimeEmbedding(nn.Module):
    """Embed t in [0, 1]: [cos, sin] of t times the frequencies, then a two-layer MLP.

    v1 has 128 frequencies from 1 down to 1/10000. v2 has features / 2 from 10000 down to 1, which separates nearby times.
    """

    features: int
    v2: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, t: Float[AnyArray, " B"]) -> Float[Array, "B {self.features}"]:
        width, scale = (self.features, 10_000.0) if self.v2 else (V1_TIME_WIDTH, 1.0)
        # Exactly this float32 arithmetic: at a frequency of 10000 the released v2 weights depend on its rounding.
        exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
        frequencies = np.float32(scale) * (np.float32(1) / np.float32(10_000) ** exponents)
        angles = jnp.asarray(t, jnp.float32)[:, None] * frequencies
        x = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
        init = nn.initializers.normal(0.02)
        x = nn.silu(Dense(self.features, axes=(None, "mlp"), dtype=self.dtype, kernel_init=init, name="in")(x))
        return Dense(self.features, axes=("mlp", "embed"), dtype=self.dtype, kernel_init=init, name="out")(x)


class AdaLN(nn.Module):
    """Compute `chunks` modulations from the condition (T may be 1), all zero at initialisation."""

    chunks: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, condition: Float[Array, "B T D"]) -> list[Float[Array, "B T D"]]:
        out = Dense(
            self.chunks * condition.shape[-1], axes=("embed", "modulation"), dtype=self.dtype,
            kernel_init=nn.initializers.zeros_init(), name="linear",
        )(nn.silu(condition))
        return jnp.split(keep_rows(out), self.chunks, axis=-1)


class Stream(nn.Module):
    """One modality's part of a block, before and after the attention.

    `kernel` is the width of the output and feed-forward convolutions. None omits both, for streams that only supply keys
    and values.
    """

    features: int
    heads: int
    kernel: int | None
    dtype: DTypeLike = jnp.float32

    def setup(self):
        self.adaln = AdaLN(2 if self.kernel is None else 6, self.dtype)
        self.qkv = Dense(3 * self.features, axes=("embed", "heads"), dtype=self.dtype)
        norm = functools.partial(
            nn.RMSNorm, epsilon=float(jnp.finfo(jnp.float32).eps), dtype=jnp.float32,
            scale_init=logical(nn.initializers.ones_init(), None),
        )
        self.q_norm, self.k_norm = norm(), norm()
        if self.kernel is not None:
            self.out = _projection(self.kernel, self.features, ("heads", "embed"), dtype=self.dtype)
            self.mlp = GatedMLP(self.features, self.kernel, self.dtype)

    def before(
        self, x: Float[Array, "B T hidden"], condition: Float[Array, "B _ hidden"], angles: Float[AnyArray, "T _"] | None
    ) -> tuple[tuple[Heads, Heads, Heads], list[Float[Array, "B _ hidden"]]]:
        """Return (q, k, v), and the modulations that `after` takes."""
        shift, scale, *rest = self.adaln(condition)
        qkv = self.qkv(modulate(x, shift, scale)).reshape(*x.shape[:2], self.heads, 3, -1)
        q, k, v = (qkv[..., i, :] for i in range(3))
        q, k = self.q_norm(q), self.k_norm(k)
        if angles is not None:
            q, k = apply_rope(q, angles), apply_rope(k, angles)
        return (q.astype(v.dtype), k.astype(v.dtype), v), rest

    def after(
        self, x: Float[Array, "B T D"], attended: Float[Array, "B T D"], rest: list[Modulation]
    ) -> Float[Array, "B T D"]:
        """Add the attention's output and the feed-forward to x, each through its gate."""
        gate, mlp_shift, mlp_scale, mlp_gate = rest
        x = x + keep_rows(self.out(attended)) * gate
        return x + keep_rows(self.mlp(modulate(x, mlp_shift, mlp_scale))) * mlp_gate


def merge_heads(x: Heads) -> Float[Array, "B T heads*D"]:
    return x.reshape(*x.shape[:2], -1)


class Block(nn.Module):
    """Attention over the tokens of several streams, in the order of `streams`: (name, kernel of `Stream`).

    Streams without a kernel come last. They only supply keys and values, and are returned unchanged.
    """

    features: int
    heads: int
    streams: tuple[tuple[str, int | None], ...]
    dtype: DTypeLike = jnp.float32
    attention_implementation: Implementation = None

    @nn.compact
    def __call__(
        self, xs: Sequence[Float[Array, "B _ D"]], conditions: Sequence[Float[Array, "B _ D"]],
        angles: Sequence[Float[AnyArray, "_ half"] | None], mask: Bool[Array, "B 1 _ _"] | None = None,
    ) -> tuple[Float[Array, "B _ D"], ...]:
        """`mask` says which token may see which, over the tokens of these streams and of others that follow them."""
        streams = [Stream(self.features, self.heads, kernel, self.dtype, name=name) for name, kernel in self.streams]
        updated = sum(kernel is not None for _, kernel in self.streams)
        qkvs, rests = zip(*(s.before(x, c, a) for s, x, c, a in zip(streams, xs, conditions, angles)))
        q, k, v = (jnp.concatenate([qkv[i] for qkv in part], axis=1) for i, part in enumerate((qkvs[:updated], qkvs, qkvs)))
        if mask is not None:
            mask = mask[:, :, : q.shape[1], : k.shape[1]]
        attended = merge_heads(attend(q, k, v, mask=mask, implementation=self.attention_implementation))
        parts = jnp.split(attended, np.cumsum([x.shape[1] for x in xs[:updated]])[:-1], axis=1)
        new = (s.after(x, part, rest) for s, x, part, rest in zip(streams, xs, parts, rests))
        return (*new, *xs[updated:])


class MMDiT(Generator):
    """The velocity network v(x_t, t | conditions), with t = 0 noise and t = 1 data.

    The collection `params` is trained and includes the null features for a dropped clip and sync. The collection `buffers`
    is never trained: the latents' mean and standard deviation, and the text encoder's features of the empty string.

    `dtype` applies to the matrix products; parameters, normalisations and rotary angles stay in float32.
    `attention_implementation` selects the kernel of every attention (models/attention.py). `remat` recomputes each block in
    the backward pass: a third more time for less activation memory. `scan` is that of `run_blocks`.
    """

    config: MMDiTConfig
    dtype: DTypeLike = jnp.float32
    attention_implementation: Implementation = None
    remat: bool = False
    scan: bool | None = None

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

        attention = self.attention_implementation
        joint, last = (("latent", 3), ("clip", 3), ("text", 1)), (("latent", 3), ("clip", None), ("text", None))
        self.joint = [
            Block(c.hidden, c.heads, last if i == c.joint_depth - 1 else joint, dtype, attention) for i in range(c.joint_depth)
        ]
        self.fused = [Block(c.hidden, c.heads, joint[:1], dtype, attention) for _ in range(c.fused_depth)]
        self.final_adaln = AdaLN(2, dtype)
        zeros = nn.initializers.zeros_init()
        self.final = Conv(c.latent_channels, (7,), axes=("embed", None), dtype=dtype, kernel_init=zeros)

        self.sync_positions = self.param(
            "sync_positions", logical(zeros, None, None), (SYNC_STEPS_PER_SEGMENT, c.sync_dim)
        )
        self.empty_clip = self.param("empty_clip", logical(zeros, None), (c.clip_dim,))
        self.empty_sync = self.param("empty_sync", logical(zeros, None), (c.sync_dim,))
        self.empty_text = self.variable("buffers", "empty_text", jnp.zeros, (c.text_tokens, c.text_dim))
        self.add_latent_statistics(c.latent_channels)

    def preprocess(self, conditions: Conditions) -> ProcessedConditions:
        """Do all work that depends on neither x_t nor t, once per clip instead of once per solver step."""
        c = self.config
        segments = conditions.sync.reshape(conditions.sync.shape[0], -1, SYNC_STEPS_PER_SEGMENT, c.sync_dim)
        sync = self.sync_input((segments + self.sync_positions).reshape(conditions.sync.shape))
        clip, text = keep_rows(self.clip_input(conditions.clip)), keep_rows(self.text_input(conditions.text))
        pooled = self.clip_pooled(keep_rows(clip.mean(axis=1))) + self.text_pooled(keep_rows(text.mean(axis=1)))
        return ProcessedConditions(
            clip=clip, sync=sync[:, nearest_exact(sync.shape[1], c.latent_tokens)], text=text,
            pooled=keep_rows(self.pooled_mlp(keep_rows(pooled))),
        )

    def velocity(
        self, x_t: Float[AnyArray, "B T C"], t: Float[AnyArray, " B"], processed: ProcessedConditions
    ) -> Float32[Array, "B T C"]:
        """Return the velocity at x_t and t in [0, 1], given the processed conditions of the same batch."""
        c = self.config
        latent, clip, text = self.audio_input(x_t), processed.clip, processed.text
        pooled = (processed.pooled + keep_rows(self.t_embed(t)))[:, None]
        extended = pooled + processed.sync
        head_dim = c.hidden // c.heads
        latent_angles = rope_angles(latent.shape[1], head_dim)
        clip_angles = rope_angles(clip.shape[1], head_dim, scale=latent.shape[1] / clip.shape[1])

        def joint(block, tokens):
            return block(tokens, (extended, pooled, pooled), (latent_angles, clip_angles, None))

        def fused(block, tokens):
            return block(tokens, (extended,), (latent_angles,))

        latent, _, _ = run_blocks(self.joint, joint, (latent, clip, text), remat=self.remat, scan=self.scan)
        (latent,) = run_blocks(self.fused, fused, (latent,), remat=self.remat, scan=self.scan)
        return self.final(modulate(latent, *self.final_adaln(pooled))).astype(jnp.float32)

    def null_conditions(self, batch: int, text: Float[AnyArray, "_ N D"] | None = None) -> Conditions:
        """Return the learned null conditions for guidance; `text` is a negative prompt for each item or for all."""
        c = self.config
        text = self.empty_text.value if text is None else text
        return Conditions(
            clip=jnp.broadcast_to(self.empty_clip, (batch, c.clip_tokens, c.clip_dim)),
            sync=jnp.broadcast_to(self.empty_sync, (batch, c.sync_tokens, c.sync_dim)),
            text=jnp.broadcast_to(text, (batch, c.text_tokens, c.text_dim)),
        )
