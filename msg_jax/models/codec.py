"""Audio codecs: log-mel <-> latents <-> waveform.

`Codec` is the interface. `PcaCodec` is the default and needs no gradient training: a linear code of mel patches, and
Griffin-Lim as vocoder.
"""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, UInt8
import numpy as np

from msg_jax.clip import ClipSpec, MelSpec
from msg_jax.types import AnyArray, Array, Params

_exact = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


class Codec(nn.Module):
    """Interface of the audio codecs; every method is a pure function of the variables."""

    clip: ClipSpec

    @property
    def context_frames(self) -> int:
        """Mel frames of context on either side of a sample of `vocode`; a cut beyond them leaves the sample unchanged."""
        raise NotImplementedError

    def encode(self, log_mel: Float[AnyArray, "B T M"]) -> Float[AnyArray, "B N C"]:
        """Encode T frames into T / latent_stride tokens."""
        raise NotImplementedError

    def decode(self, latents: Float[AnyArray, "B N C"]) -> Float[AnyArray, "B T M"]:
        """Decode latents into a log-mel."""
        raise NotImplementedError

    def vocode(self, log_mel: Float[AnyArray, "B T M"]) -> Float[Array, "B S"]:
        """Synthesise the waveform in [-1, 1], S = T * hop_samples."""
        raise NotImplementedError


class PictureCodec(nn.Module):
    """Frames <-> latents at the rate of the audio codec: `PcaCodec` for pictures.

    Frames are cut into `strips` from left to right. A patch is one strip of the frames of one token, and has
    `channels / strips` components, which are the same for all strips: a thing looks alike wherever it is. What changes
    between the frames of a token tells the events, but has few pixels: it is multiplied by `motion`, so that components
    hold it. `fit_pictures` computes the parameters.
    """

    clip: ClipSpec
    channels: int
    strips: int = 1
    motion: float = 1.0

    @property
    def frames(self) -> int:
        """Frames of a token."""
        return self.clip.video_frames // self.clip.latent_tokens

    def setup(self):
        patch, channels = self.frames * self.clip.video_px**2 * 3 // self.strips, self.channels // self.strips
        zeros = nn.initializers.zeros_init()
        self.mean = self.param("mean", zeros, (patch,))
        self.components = self.param("components", zeros, (patch, channels))
        self.scale = self.param("scale", nn.initializers.ones_init(), (channels,))

    def encode(self, video: Float[AnyArray, "B T H W 3"]) -> Float[AnyArray, "B N C"]:
        """Encode frames in [-1, 1]."""
        patches = _weigh_motion(_patches(video, self.frames, self.strips) - self.mean, self.frames, self.motion)
        latents = _exact(patches, self.components) / self.scale
        return latents.reshape(*latents.shape[:2], self.channels)

    def decode(self, latents: Float[AnyArray, "B N C"]) -> Float[AnyArray, "B T H W 3"]:
        """Decode to frames in [-1, 1]."""
        of_strips = latents.reshape(*latents.shape[:2], self.strips, -1)
        patches = _exact(of_strips * self.scale, self.components.T)
        patches = _weigh_motion(patches, self.frames, 1 / self.motion) + self.mean
        batch, tokens, px = *latents.shape[:2], self.clip.video_px
        patches = jnp.clip(patches, -1.0, 1.0).reshape(batch, tokens, self.strips, self.frames, px, -1, 3)
        return jnp.moveaxis(patches, 2, 4).reshape(batch, -1, px, px, 3)


class PcaCodec(Codec):
    """Project patches of `latent_stride` log-mel frames on their first `latent_channels` principal components.

    One number scales all components, to latents of unit root mean square. Whitening them instead would weigh the
    generator's errors on inaudible components like those on loud ones, which costs several points of event F1. `fit_pca`
    computes the parameters.
    """

    vocoder_iterations: int = 32

    def setup(self):
        bands, channels = self.clip.mel.bands, self.clip.latent_channels
        patch = self.clip.latent_stride * bands
        zeros = nn.initializers.zeros_init()
        self.mean = self.param("mean", zeros, (patch,))
        self.components = self.param("components", zeros, (patch, channels))
        self.scale = self.param("scale", nn.initializers.ones_init(), ())
        self.mel_basis = self.param("mel_basis", zeros, (bands, self.clip.mel.n_fft // 2 + 1))

    @property
    def context_frames(self) -> int:
        """Each Griffin-Lim iteration propagates phases over the frames that overlap."""
        overlapping = -(-self.clip.mel.n_fft // self.clip.mel.hop_samples)
        return (overlapping - 1) * self.vocoder_iterations + overlapping

    def encode(self, log_mel: Float[AnyArray, "B T M"]) -> Float[AnyArray, "B N C"]:
        batch, frames, bands = log_mel.shape
        patches = log_mel.reshape(batch, frames // self.clip.latent_stride, self.clip.latent_stride * bands)
        return _exact(patches - self.mean, self.components) / self.scale

    def decode(self, latents: Float[AnyArray, "B N C"]) -> Float[AnyArray, "B T M"]:
        patches = _exact(latents * self.scale, self.components.T) + self.mean
        return patches.reshape(latents.shape[0], -1, self.clip.mel.bands)

    def vocode(self, log_mel: Float[AnyArray, "B T M"]) -> Float[Array, "B S"]:
        return griffin_lim(log_mel, self.mel_basis, self.clip.mel, self.vocoder_iterations)


def fit_pca(
    log_mels: Float[np.ndarray, "clips T M"], mel_basis: Float[np.ndarray, "M frequencies"], clip: ClipSpec
) -> tuple[Params, float]:
    """Fit the parameters of `PcaCodec` to log-mels; also return the share of variance that the channels keep."""
    patches = np.asarray(log_mels, np.float64).reshape(-1, clip.latent_stride * clip.mel.bands)
    mean, components, variances = _principal(patches, clip.latent_channels)
    kept = variances[: clip.latent_channels].sum()
    params = {
        "mean": mean, "components": components, "scale": np.sqrt(kept / clip.latent_channels), "mel_basis": mel_basis,
    }
    return {name: np.asarray(value, np.float32) for name, value in params.items()}, float(kept / variances.sum())


def fit_pictures(
    videos: UInt8[np.ndarray, "clips T H W 3"], clip: ClipSpec, channels: int, whitening: float, strips: int = 1,
    motion: float = 1.0,
) -> tuple[Params, float]:
    """Fit the parameters of `PictureCodec` to uint8 frames; also return the share of variance that the channels keep.

    Variances are those after the weight of `motion`. `whitening` goes from 0, one scale for all channels, to 1, every
    channel of unit deviation.
    """
    frames, channels = clip.video_frames // clip.latent_tokens, channels // strips
    patches = np.asarray(_patches(videos.astype(np.float32) / 127.5 - 1, frames, strips))
    patches = patches.reshape(-1, patches.shape[-1])
    mean = patches.mean(0)
    _, components, variances = _principal(np.asarray(_weigh_motion(patches - mean, frames, motion)), channels)
    deviations = np.sqrt(variances[:channels]) ** whitening
    scale = deviations * np.sqrt(np.mean(variances[:channels] / deviations**2))
    params = {"mean": mean, "components": components, "scale": scale}
    kept = variances[:channels].sum() / variances.sum()
    return {name: np.asarray(value, np.float32) for name, value in params.items()}, float(kept)


def _patches(video: Float[AnyArray, "B T H W 3"], frames: int, strips: int) -> Float[AnyArray, "B N S D"]:
    """The pixels of each strip in each `frames` frames."""
    batch, _, height, width, _ = video.shape
    cut = video.reshape(batch, -1, frames, height, strips, width // strips, 3)
    return cut.transpose(0, 1, 4, 2, 3, 5, 6).reshape(batch, cut.shape[1], strips, -1)


def _weigh_motion(patches: Float[AnyArray, "*batch D"], frames: int, weight: float) -> Float[AnyArray, "*batch D"]:
    """Multiply what each of the `frames` in a patch differs from their mean by `weight`."""
    each = patches.reshape(*patches.shape[:-1], frames, -1)
    mean = each.mean(axis=-2, keepdims=True)
    return (mean + weight * (each - mean)).reshape(patches.shape)


def _principal(patches: np.ndarray, channels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean (D,) and first principal components (D, channels) of patches (N, D), and all variances (D,) in falling order."""
    variances, vectors = np.linalg.eigh(np.cov(patches, rowvar=False))
    components = vectors[:, ::-1][:, :channels]
    components = components * np.sign(components[np.abs(components).argmax(0), np.arange(components.shape[1])])
    return patches.mean(0), components, variances[::-1]


def griffin_lim(
    log_mel: Float[AnyArray, "B T M"], mel_basis: Float[AnyArray, "M frequencies"], spec: MelSpec, iterations: int,
    momentum: float = 0.99,
) -> Float[Array, "B T*{spec.hop_samples}"]:
    """Synthesise a waveform in [-1, 1] whose log-mel approximates the given one.

    Multiplicative non-negative least squares gives the magnitudes, fast Griffin-Lim (Perraudin et al. 2013) the phases,
    with the framing of `MelSpec`. Phases start from zero, so the result depends on the log-mel alone.
    """
    mel = jnp.power(spec.log_base, log_mel)
    target = _exact(mel, mel_basis)
    magnitude = jnp.maximum(target, 1e-8)
    gram = _exact(mel_basis.T, mel_basis)
    magnitude = jax.lax.fori_loop(
        0, 30, lambda _, guess: guess * target / jnp.maximum(_exact(guess, gram), 1e-8), magnitude
    )
    window = jnp.asarray(np.hanning(spec.n_fft + 1)[:-1], jnp.float32)
    frames = log_mel.shape[1]

    def refine(_, carry):
        phases, previous = carry
        rebuilt = _stft(_istft(magnitude * phases, window, spec), window, spec, frames)
        ahead = rebuilt + momentum * (rebuilt - previous)
        return ahead / jnp.maximum(jnp.abs(ahead), 1e-8), rebuilt

    start = jnp.ones_like(magnitude, dtype=jnp.complex64)
    phases, _ = jax.lax.fori_loop(0, iterations, refine, (start, jnp.zeros_like(start)))
    return jnp.clip(_istft(magnitude * phases, window, spec), -1.0, 1.0)


def _padding(spec: MelSpec) -> int:
    return (spec.n_fft - spec.hop_samples) // 2


def _stft(waveform: Array, window: Array, spec: MelSpec, frames: int) -> Array:
    padded = jnp.pad(waveform, ((0, 0), (_padding(spec), spec.n_fft)))
    starts = np.arange(frames)[:, None] * spec.hop_samples + np.arange(spec.n_fft)
    return jnp.fft.rfft(padded[:, starts] * window)


def _istft(spectrum: Array, window: Array, spec: MelSpec) -> Array:
    """Weighted overlap-add. Frames are padded to whole hops, so the sum is a few shifted additions."""
    batch, frames, _ = spectrum.shape
    hop = spec.hop_samples
    blocks = -(-spec.n_fft // hop)
    pad = blocks * hop - spec.n_fft
    chunks = jnp.pad(jnp.fft.irfft(spectrum, n=spec.n_fft) * window, ((0, 0), (0, 0), (0, pad)))
    weights = jnp.pad(window**2, (0, pad)).reshape(blocks, hop)
    chunks = chunks.reshape(batch, frames, blocks, hop)
    signal = sum(jnp.pad(chunks[:, :, i], ((0, 0), (i, blocks - 1 - i), (0, 0))) for i in range(blocks))
    norm = sum(jnp.pad(jnp.broadcast_to(weights[i], (frames, hop)), ((i, blocks - 1 - i), (0, 0))) for i in range(blocks))
    signal = (signal / jnp.maximum(norm, 1e-3)).reshape(batch, -1)
    start = _padding(spec)
    return signal[:, start : start + frames * hop]
