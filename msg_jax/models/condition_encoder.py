"""Condition encoders of the tiny preset, in the place of CLIP and Synchformer.

They are trained separately from SF-CAVP: if the base model is conditioned on the reward's features, the reward has
nothing left to correct. The visual encoders learn to regress the audio latents and the loudness envelope of a clip from
its frames, with heads that only pretraining uses. The text encoder has no weights: it hashes words to fixed random
vectors.
"""

from collections.abc import Sequence
import dataclasses
import functools
import re
from typing import no_type_check
import zlib

from flax import linen as nn
from flax import struct
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Float32
import numpy as np

from msg_jax.clip import TINY, ClipSpec
from msg_jax.models.layers import Dense
from msg_jax.models.slowfast import FrameNorm, SpaceConv, TimeConv
from msg_jax.types import AnyArray, Array


@dataclasses.dataclass(frozen=True)
class ConditionEncoderConfig:
    """Raises ValueError unless the clip has one sync token per video frame and whole frames per latent token."""

    clip: ClipSpec = TINY
    clip_dim: int = 64
    sync_dim: int = 64
    text_dim: int = 64
    widths: tuple[int, ...] = (24, 48)  # of both encoders
    strides: tuple[int, ...] = (4, 2)  # in space, of each layer
    sync_time_kernels: tuple[int, ...] = (7, 7)  # frames; the receptive field is 13, 0.52 s at 25 Hz
    dtype: str = "float32"

    def __post_init__(self):
        clip = self.clip
        if clip.sync_tokens != clip.video_frames or clip.video_frames % clip.latent_tokens:
            raise ValueError(
                "condition_encoder needs one sync token per video frame and whole frames per latent token, but the "
                f"clip has {clip.sync_tokens} sync tokens, {clip.video_frames} frames and {clip.latent_tokens} latent "
                "tokens"
            )


@no_type_check
class VisualFeatures(struct.PyTreeNode):
    """Features of a video."""

    clip: Float[Array, "B clip_video_frames clip_dim"]
    sync: Float[Array, "B sync_tokens sync_dim"]


@no_type_check
class PretrainingOutput(struct.PyTreeNode):
    """Predictions of the pretraining heads: `clip_latents` from the clip features, the others from the sync features."""

    latents: Float[Array, "B latent_tokens C"]
    envelope: Float[Array, "B mel_frames"]
    clip_latents: Float[Array, "B clip_video_frames C"]


class ConditionEncoder(nn.Module):
    """Encode frames into features. `__call__` adds the pretraining heads; after pretraining only `encode` is used."""

    config: ConditionEncoderConfig

    def setup(self):
        c, clip = self.config, self.config.clip
        dtype = jnp.dtype(c.dtype)
        self.clip_encoder = FrameEncoder(c.widths, c.strides, (1,) * len(c.widths), c.clip_dim, dtype)
        self.sync_encoder = FrameEncoder(c.widths, c.strides, c.sync_time_kernels, c.sync_dim, dtype)
        self.latent_head = Dense(clip.latent_channels, axes=("embed", None), dtype=dtype)
        self.envelope_head = Dense(clip.latent_stride, axes=("embed", None), dtype=dtype)
        self.clip_head = Dense(clip.latent_channels, axes=("embed", None), dtype=dtype)

    def encode(
        self, video: Float[AnyArray, "B video_frames H W 3"], clip_video: Float[AnyArray, "B clip_video_frames Hc Wc 3"]
    ) -> VisualFeatures:
        """Encode both video streams, in [-1, 1]."""
        return VisualFeatures(clip=self.clip_encoder(clip_video), sync=self.sync_encoder(video))

    def __call__(
        self, video: Float[AnyArray, "B video_frames H W 3"], clip_video: Float[AnyArray, "B clip_video_frames Hc Wc 3"]
    ) -> PretrainingOutput:
        features = self.encode(video, clip_video)
        tokens = features.sync.reshape(video.shape[0], self.config.clip.latent_tokens, -1)
        return PretrainingOutput(
            latents=self.latent_head(tokens),
            envelope=self.envelope_head(tokens).reshape(video.shape[0], -1),
            clip_latents=self.clip_head(features.clip),
        )


def pretraining_loss(
    output: PretrainingOutput, latents: Float[Array, "B latent_tokens C"], envelope: Float[Array, "B mel_frames"]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Sum of the mean squared errors of latents, envelope and the latents averaged around single frames.

    `latents` are normalised. `envelope` is the mean of the log-mel over bands, also normalised. The metric `latent_r2` is
    the explained share of the latents' variance.
    """
    frames = output.clip_latents.shape[1]
    around = latents.reshape(latents.shape[0], frames, -1, latents.shape[-1]).mean(axis=2)
    terms = {
        "loss_latents": jnp.mean((output.latents - latents) ** 2),
        "loss_envelope": jnp.mean((output.envelope - envelope) ** 2),
        "loss_clip": jnp.mean((output.clip_latents - around) ** 2),
    }
    r2 = 1 - terms["loss_latents"] / jnp.mean((latents - latents.mean(axis=(0, 1))) ** 2)
    return jnp.asarray(sum(terms.values())), terms | {"latent_r2": r2}


def embed_text(captions: Sequence[str], tokens: int, dim: int) -> Float32[np.ndarray, "B {tokens} {dim}"]:
    """Embed each lower-cased word as a fixed standard-normal vector; pad with zeros.

    The vector depends on the word's CRC-32 alone, so it is the same on every machine. Words beyond `tokens` are dropped.
    An empty caption is all zeros.
    """
    embeddings = np.zeros((len(captions), tokens, dim), np.float32)
    for row, caption in zip(embeddings, captions):
        for slot, word in zip(row, words(caption)):
            slot[:] = _word_vector(word, dim)
    return embeddings


def words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return re.findall(r"\w+", text.lower())


@functools.lru_cache(maxsize=4096)
def _word_vector(word: str, dim: int) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(word.encode())).standard_normal(dim, np.float32)


class FrameEncoder(nn.Module):
    """Factored CNN with one feature vector per frame."""

    widths: tuple[int, ...]
    strides: tuple[int, ...]
    time_kernels: tuple[int, ...]
    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[AnyArray, "B T H W 3"]) -> Float[Array, "B T {self.features}"]:
        x = jnp.asarray(x, self.dtype)
        for width, stride, time_kernel in zip(self.widths, self.strides, self.time_kernels):
            x = SpaceConv(width, (stride + 1, stride + 1), (stride, stride), use_bias=True, dtype=self.dtype)(x)
            if time_kernel > 1:
                x = TimeConv(width, time_kernel, use_bias=True, dtype=self.dtype)(nn.relu(x))
            x = nn.relu(FrameNorm()(x))
        # Position on the screen matters (a bounce is a height), so the last map is flattened and not averaged.
        x = x.reshape(*x.shape[:2], -1)
        return Dense(self.features, axes=("conv_in", "embed"), dtype=self.dtype)(x)
