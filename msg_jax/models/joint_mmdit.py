"""An MM-DiT that generates sound and pictures together, from text; or either for the other.

Its latents are those of both codecs side by side: a token holds sound and picture of the same moment. Inside, each is a stream
with a time of its own. A stream that is known stands at t = 1. Tokens of all streams attend jointly, at rotary positions
that sound and pictures share, and each token is also modulated by the token of the other stream at its moment.
"""

from collections.abc import Sequence
import dataclasses
import functools
from typing import ClassVar, no_type_check

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Float32
import numpy as np

from msg_jax.clip import ClipSpec
from msg_jax.models.attention import Implementation
from msg_jax.models.generator import Generator
from msg_jax.models.layers import Conv, Dense, logical
from msg_jax.models.mmdit import AdaLN, Block, GatedMLP, InputProjection, TimeEmbedding, modulate, rope_angles
from msg_jax.models.stack import run_blocks
from msg_jax.types import STREAMS, AnyArray, Array, JointConditions

_exact = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


@dataclasses.dataclass(frozen=True)
class JointMMDiTConfig:
    """Sizes of one network. `hidden / heads` must be even (rotary pairs)."""

    sound_channels: int
    picture_channels: int
    latent_tokens: int
    text_tokens: int
    strips: int = 1  # of the pictures: each is a token, with an equal part of `picture_channels`
    text_dim: int = 64
    hidden: int = 96
    heads: int = 4
    joint_depth: int = 2
    fused_depth: int = 2
    v2: bool = True
    features: ClassVar = ("text", "given")  # the conditions that it sees

    @classmethod
    def for_clip(cls, clip: ClipSpec, **fields) -> "JointMMDiTConfig":
        """Take the lengths from `clip` and the rest from `fields`."""
        return cls(
            sound_channels=clip.latent_channels, latent_tokens=clip.latent_tokens, text_tokens=clip.text_tokens, **fields
        )

    @property
    def channels(self) -> tuple[int, int]:
        """Latent channels of the two streams."""
        return self.sound_channels, self.picture_channels

    @property
    def latent_channels(self) -> int:
        return sum(self.channels)


@no_type_check
class ProcessedJointConditions(struct.PyTreeNode):
    """What the network computes from the conditions alone."""

    text: Float[Array, "B text_tokens hidden"]
    pooled: Float[Array, "B hidden"]
    given: Float[Array, "B T C"]  # normalised
    known: Bool[Array, "B 2"]
    alone: Bool[Array, " B"]


class JointMMDiT(Generator):
    """The velocity v(x_t, t | conditions) of both streams, as `MMDiT`.

    The velocity of a known stream leads straight to what is given: its flow error is zero, and a solver ends there. That of
    the others is `preconditioned` by the `deviations` of the latents in `channel_basis`, which are `buffers` like their
    statistics.
    """

    config: JointMMDiTConfig
    dtype: DTypeLike = jnp.float32
    attention_implementation: Implementation = None
    remat: bool = False
    scan: bool | None = None
    conditions: ClassVar = JointConditions

    @property
    def streams(self) -> tuple[int, int]:
        return self.config.channels

    def setup(self):
        c, dtype = self.config, self.dtype
        activation = nn.silu if c.v2 else nn.selu
        self.inputs = [InputProjection(c.hidden, 7, 3, activation, dtype) for _ in STREAMS]
        self.aligned = [Dense(c.hidden, dtype=dtype) for _ in STREAMS]
        self.times = [TimeEmbedding(c.hidden, c.v2, dtype) for _ in STREAMS]
        self.text_input = InputProjection(c.hidden, 1, 1, nn.silu if c.v2 else None, dtype)
        self.text_pooled = Dense(c.hidden, dtype=dtype)
        self.pooled_mlp = GatedMLP(c.hidden, dtype=dtype)

        # Neighbours in a row of tokens are neighbours in time only where a moment is one token.
        both, attention = (("sound", 3), ("picture", 3 if c.strips == 1 else 1)), self.attention_implementation
        self.joint = [
            Block(c.hidden, c.heads, (*both, ("text", None if i == c.joint_depth - 1 else 1)), dtype, attention)
            for i in range(c.joint_depth)
        ]
        self.fused = [Block(c.hidden, c.heads, both, dtype, attention) for _ in range(c.fused_depth)]
        self.final_adaln = [AdaLN(2, dtype) for _ in STREAMS]
        self.final = [
            Conv(channels, (7,), axes=("embed", None), dtype=dtype, kernel_init=nn.initializers.zeros_init())
            for channels in (c.sound_channels, c.picture_channels // c.strips)
        ]
        if c.strips > 1:
            places = logical(nn.initializers.normal(0.02), None, "embed")
            self.places = self.param("places", places, (c.strips, 1, c.hidden))
        self.empty_text = self.variable("buffers", "empty_text", jnp.zeros, (c.text_tokens, c.text_dim))
        self.add_latent_statistics(c.latent_channels)
        self.deviations = self.variable("buffers", "deviations", jnp.ones, (c.latent_tokens, c.latent_channels))

    def preprocess(self, conditions: JointConditions) -> ProcessedJointConditions:
        """Do all work that depends on neither x_t nor t, once per clip."""
        text, given = self.text_input(conditions.text), jnp.asarray(self.normalize(conditions.given))
        pooled = self.pooled_mlp(self.text_pooled(text.mean(axis=1)))
        return ProcessedJointConditions(
            text=text, pooled=pooled, given=given, known=conditions.known, alone=conditions.alone
        )

    def velocity(
        self, x_t: Float[AnyArray, "B T C"], t: Float[AnyArray, " B"], processed: ProcessedJointConditions
    ) -> Float32[Array, "B T C"]:
        """Return the velocity of both streams at x_t and t; known streams are replaced by what is given, at t = 1."""
        c, pooled = self.config, processed.pooled[:, None]
        known = jnp.repeat(processed.known, np.array(c.channels), axis=1, total_repeat_length=c.latent_channels)[:, None]
        basis = channel_basis(c)
        turned = _exact(x_t, basis.T)
        guess = _exact(linear_guess(turned, t, self.deviations.value), basis)
        seen, cleaner = (
            jnp.split(jnp.where(known, processed.given, x), [c.sound_channels], axis=-1) for x in (x_t, guess)
        )
        tokens = [self._tokens(i, jnp.concatenate(pair, axis=-1)) for i, pair in enumerate(zip(seen, cleaner))]
        t_of_each = jnp.where(processed.known, 1.0, jnp.asarray(t)[:, None])
        times = [embed(t_of_each[:, i])[:, None] for i, embed in enumerate(self.times)]
        told = [time + align(x).reshape(len(x), -1, c.latent_tokens, c.hidden).mean(axis=1)  # to the other stream
                for time, align, x in zip(times, self.aligned, tokens)]
        alone = processed.alone[:, None, None]
        conditions = [pooled + times[i] + jnp.where(alone, 0.0, told[1 - i]) for i in range(2)]
        conditions[1] = jnp.tile(conditions[1], (1, c.strips, 1))
        angles = rope_angles(c.latent_tokens, c.hidden // c.heads)
        angles = angles, np.tile(angles, (c.strips, 1))
        mask = _mask(processed.alone, [c.latent_tokens, c.strips * c.latent_tokens, c.text_tokens])

        def joint(block, xs):
            return block(xs, (*conditions, pooled), (*angles, None), mask)

        def fused(block, xs):
            return block(xs, conditions, angles, mask)

        xs = (*tokens, processed.text)
        *tokens, _ = run_blocks(self.joint, joint, xs, remat=self.remat, scan=self.scan)
        tokens = run_blocks(self.fused, fused, tuple(tokens), remat=self.remat, scan=self.scan)
        ends = [self._end(i, modulate(x, *self.final_adaln[i](conditions[i]))) for i, x in enumerate(tokens)]
        found = jnp.concatenate(ends, axis=-1).astype(jnp.float32)
        straight = (processed.given - x_t) / jnp.maximum(1 - jnp.asarray(t)[:, None, None], 1e-3)
        velocity = preconditioned(_exact(found, basis.T), turned, t, self.deviations.value)
        return jnp.where(known, straight, _exact(velocity, basis))

    def _tokens(self, stream: int, x: Float[Array, "B T C"]) -> Float[Array, "B _ hidden"]:
        """The tokens of a stream; those of the pictures are all moments of the first strip, then of the next."""
        strips = self.config.strips if stream else 1
        if strips == 1:
            return self.inputs[stream](x)
        batch, length, _ = x.shape
        x = jnp.moveaxis(x.reshape(batch, length, 2, strips, -1), 3, 1)  # of x_t and of the guess, each strip's part
        found = self.inputs[stream](x.reshape(batch * strips, length, -1)).reshape(batch, strips, length, -1)
        return (found + self.places).reshape(batch, strips * length, -1)

    def _end(self, stream: int, x: Float[Array, "B _ hidden"]) -> Float[Array, "B T C"]:
        """What the tokens of a stream have found, for each channel: the inverse of `_tokens`."""
        strips, batch, length = self.config.strips if stream else 1, len(x), self.config.latent_tokens
        found = self.final[stream](x.reshape(batch * strips, length, -1)).reshape(batch, strips, length, -1)
        return jnp.moveaxis(found, 1, 2).reshape(batch, length, -1)

    def error_weights(self, streams: Sequence[str] = STREAMS) -> Float[np.ndarray, " C"]:
        weights = [self.config.latent_channels / channels * (name in streams)
                   for name, channels in zip(STREAMS, self.config.channels)]
        return np.repeat(np.array(weights, np.float32), self.config.channels)

    def null_conditions(self, batch: int, text: Float[AnyArray, "_ N D"] | None = None) -> JointConditions:
        """Conditions for guidance: no text, and each stream alone; `text` is a negative prompt for each item or for all."""
        c = self.config
        text = self.empty_text.value if text is None else text
        nothing = {"latents": jnp.zeros((batch, c.latent_tokens, c.latent_channels)),
                   "text": jnp.broadcast_to(text, (batch, c.text_tokens, c.text_dim))}
        return JointConditions.from_batch(nothing).replace(alone=jnp.ones(batch, bool))


def cosines(tokens: int) -> Float32[np.ndarray, "F T"]:
    """The orthonormal cosine basis over `tokens` (DCT-II): its rows are frequencies, the first one the mean."""
    frequencies = np.arange(tokens)[:, None]
    basis = np.sqrt(2 / tokens) * np.cos(np.pi * frequencies * (np.arange(tokens) + 0.5) / tokens)
    basis[0] /= np.sqrt(2)
    return basis.astype(np.float32)


def channel_basis(config: JointMMDiTConfig) -> Float32[np.ndarray, "C C"]:
    """The orthonormal basis of latent channels that guesses are made in: of pictures, the `cosines` across strips.

    A background has one colour in all strips, which is then one channel.
    """
    across = np.kron(cosines(config.strips), np.eye(config.picture_channels // config.strips, dtype=np.float32))
    return np.block([
        [np.eye(config.sound_channels, dtype=np.float32), np.zeros((config.sound_channels, len(across)), np.float32)],
        [np.zeros((len(across), config.sound_channels), np.float32), across],
    ])


def deviations(latents: Float[np.ndarray, "N T C"]) -> Float32[np.ndarray, "F C"]:
    """The root mean square of latents over clips, at each frequency of `cosines` and in each channel."""
    spectrum = cosines(latents.shape[1]) @ np.asarray(latents, np.float32)
    return np.sqrt(np.square(spectrum).mean(axis=0))


def linear_guess(
    x_t: Float[AnyArray, "B T C"], t: Float[AnyArray, " B"], deviations: Float[AnyArray, "F C"]
) -> Float[Array, "B T C"]:
    """The best linear guess of the data at x_t, frequency by frequency and channel by channel: the filter of Wiener.

    What stands still is told from all tokens, so that a background has its colour while single tokens are mostly noise.
    """
    spread, t = jnp.square(jnp.asarray(deviations)), jnp.asarray(t)[:, None, None]
    basis, variance = cosines(len(spread)), t**2 * spread + (1 - t) ** 2
    return _exact(basis.T, t * spread / variance * _exact(basis, x_t))


def preconditioned(
    found: Float[Array, "B T C"], x_t: Float[AnyArray, "B T C"], t: Float[AnyArray, " B"], deviations: Float[AnyArray, "F C"]
) -> Float[Array, "B T C"]:
    """The velocity of x_t: the best linear guess of it, as `linear_guess`, plus what the network `found`, at unit scale.

    With data of deviation d at a frequency, x_t has the variance s^2 = t^2 d^2 + (1 - t)^2. The linear guess of data - noise
    is (t d^2 - (1 - t)) / s^2 x_t, and its error has the deviation d / s (as the preconditioning of Karras et al., arXiv
    2206.00364). A velocity holds the noise of all channels, which may be more than the tokens' features can carry.
    """
    deviations, t = jnp.asarray(deviations), jnp.asarray(t)[:, None, None]
    basis, variance = cosines(len(deviations)), t**2 * deviations**2 + (1 - t) ** 2
    linear = (t * deviations**2 - (1 - t)) / variance * _exact(basis, x_t)
    return _exact(basis.T, linear + deviations / jnp.sqrt(variance) * _exact(basis, found))


def _mask(alone: Bool[Array, " B"], tokens: Sequence[int]) -> Bool[Array, "B 1 _ _"]:
    """Which token may see which: all see all, except where streams are `alone` and see themselves and the text.

    There the text sees itself only, because it would tell one stream of the other. `tokens` are those of sound, pictures
    and text.
    """
    stream = np.repeat([0, 1, 2], tokens)
    apart = (stream[:, None] == stream) | (stream == 2)
    return jnp.where(alone[:, None, None, None], jnp.asarray(apart), True)
