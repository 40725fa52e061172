"""The tiny preset's own condition encoders: what CLIP and Synchformer are to the full-size model.

They are trained apart from SF-CAVP on purpose: a base model conditioned on the reward's own features leaves the
reward nothing to find. The visual encoders learn to regress the audio latents and the loudness envelope of the same
clip from its frames; the heads that do so are used in pretraining alone. The text encoder has no weights: words are
hashed to fixed random vectors.
"""

from collections.abc import Sequence
import dataclasses
import functools
import re
import zlib

from flax import linen as nn
from flax import struct
import jax.numpy as jnp
import numpy as np

from msg_jax.clip import TINY, ClipSpec
from msg_jax.models.layers import Dense
from msg_jax.models.slowfast import FrameNorm, SpaceConv, TimeConv
from msg_jax.types import Array


@dataclasses.dataclass(frozen=True)
class ConditionEncoderConfig:
    """One sync token per video frame and a whole number of video frames per latent token, or ValueError."""

    clip: ClipSpec = TINY
    clip_dim: int = 64
    sync_dim: int = 64
    text_dim: int = 64
    widths: tuple[int, ...] = (24, 48)  # of both encoders
    strides: tuple[int, ...] = (4, 2)  # in space, before each width
    sync_time_kernels: tuple[int, ...] = (7, 7)  # frames; together they see 13, 0.52 s at 25 Hz
    dtype: str = "float32"

    def __post_init__(self):
        clip = self.clip
        if clip.sync_tokens != clip.video_frames or clip.video_frames % clip.latent_tokens:
            raise ValueError(
                "condition_encoder wants one sync token per video frame and whole frames per latent token, but the "
                f"clip has {clip.sync_tokens} sync tokens, {clip.video_frames} frames and {clip.latent_tokens} latent "
                "tokens"
            )


class VisualFeatures(struct.PyTreeNode):
    clip: Array  # (B, clip_video_frames, clip_dim)
    sync: Array  # (B, sync_tokens, sync_dim)


class PretrainingOutput(struct.PyTreeNode):
    latents: Array  # (B, latent_tokens, C) regressed from sync features
    envelope: Array  # (B, mel_frames) regressed from sync features
    clip_latents: Array  # (B, clip_video_frames, C) regressed from clip features


class ConditionEncoder(nn.Module):
    """Frames to features. `__call__` adds the heads of pretraining; afterwards only `encode` is used."""

    config: ConditionEncoderConfig

    def setup(self):
        c, clip = self.config, self.config.clip
        dtype = jnp.dtype(c.dtype)
        self.clip_encoder = FrameEncoder(c.widths, c.strides, (1,) * len(c.widths), c.clip_dim, dtype)
        self.sync_encoder = FrameEncoder(c.widths, c.strides, c.sync_time_kernels, c.sync_dim, dtype)
        self.latent_head = Dense(clip.latent_channels, axes=("embed", None), dtype=dtype)
        self.envelope_head = Dense(clip.latent_stride, axes=("embed", None), dtype=dtype)
        self.clip_head = Dense(clip.latent_channels, axes=("embed", None), dtype=dtype)

    def encode(self, video: Array, clip_video: Array) -> VisualFeatures:
        """(B, video_frames, H, W, 3) and (B, clip_video_frames, H, W, 3), both in [-1, 1]."""
        return VisualFeatures(clip=self.clip_encoder(clip_video), sync=self.sync_encoder(video))

    def __call__(self, video: Array, clip_video: Array) -> PretrainingOutput:
        features = self.encode(video, clip_video)
        tokens = features.sync.reshape(video.shape[0], self.config.clip.latent_tokens, -1)
        return PretrainingOutput(
            latents=self.latent_head(tokens),
            envelope=self.envelope_head(tokens).reshape(video.shape[0], -1),
            clip_latents=self.clip_head(features.clip),
        )


def pretraining_loss(output: PretrainingOutput, latents: Array, envelope: Array) -> tuple[Array, dict[str, Array]]:
    """Mean squared errors of latents, envelope and what single frames can tell of the latents around them.

    `latents` (B, latent_tokens, C) are normalised; `envelope` (B, mel_frames) is the mean of the log-mel over bands,
    normalised likewise. `latent_r2` is the share of the latents' variance explained.
    """
    frames = output.clip_latents.shape[1]
    around = latents.reshape(latents.shape[0], frames, -1, latents.shape[-1]).mean(axis=2)
    terms = {
        "loss_latents": jnp.mean((output.latents - latents) ** 2),
        "loss_envelope": jnp.mean((output.envelope - envelope) ** 2),
        "loss_clip": jnp.mean((output.clip_latents - around) ** 2),
    }
    r2 = 1 - terms["loss_latents"] / jnp.mean((latents - latents.mean(axis=(0, 1))) ** 2)
    return sum(terms.values()), terms | {"latent_r2": r2}


def embed_text(captions: Sequence[str], tokens: int, dim: int) -> np.ndarray:
    """Captions to (B, tokens, dim) float32: a fixed standard-normal vector per lower-cased word, then zeros.

    The vector depends on the word's CRC-32 alone, so it is the same on every machine. Words beyond `tokens` are
    dropped; an empty caption is all zeros.
    """
    embeddings = np.zeros((len(captions), tokens, dim), np.float32)
    for row, caption in zip(embeddings, captions):
        for slot, word in zip(row, re.findall(r"\w+", caption.lower())):
            slot[:] = _word_vector(word, dim)
    return embeddings


@functools.lru_cache(maxsize=4096)
def _word_vector(word: str, dim: int) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(word.encode())).standard_normal(dim, np.float32)


class FrameEncoder(nn.Module):
    """Factored CNN, one feature vector per frame: (B, T, H, W, 3) -> (B, T, features)."""

    widths: tuple[int, ...]
    strides: tuple[int, ...]
    time_kernels: tuple[int, ...]
    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = x.astype(self.dtype)
        for width, stride, time_kernel in zip(self.widths, self.strides, self.time_kernels):
            x = SpaceConv(width, (stride + 1, stride + 1), (stride, stride), use_bias=True, dtype=self.dtype)(x)
            if time_kernel > 1:
                x = TimeConv(width, time_kernel, use_bias=True, dtype=self.dtype)(nn.relu(x))
            x = nn.relu(FrameNorm(dtype=self.dtype)(x))
        # where on the screen a thing is matters (a bounce is a height), so the last map is flattened, not averaged
        x = x.reshape(*x.shape[:2], -1)
        return Dense(self.features, axes=("conv_in", "embed"), dtype=self.dtype)(x)
