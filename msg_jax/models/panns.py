"""PANNs' CNN14 (Kong et al., arXiv 1912.10211), the AudioSet tagger behind FD_PANNs, KL and the Inception Score."""

import dataclasses

from flax import linen as nn
import jax.numpy as jnp
from jaxtyping import Float, Float32

from msg_jax.clip import MelSpec
from msg_jax.models.layers import Conv, Dense
from msg_jax.types import AnyArray, Array


@dataclasses.dataclass(frozen=True)
class PannsConfig:
    """`mel` is the front end of the weights, for `data.frontends.panns_log_mel`."""

    mel: MelSpec
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
    classes: int = 527


PRESETS = {
    "16k": PannsConfig(MelSpec(audio_hz=16_000, n_fft=512, hop_samples=160, bands=64, low_hz=50.0, high_hz=8_000.0)),
    "32k": PannsConfig(MelSpec(audio_hz=32_000, n_fft=1024, hop_samples=320, bands=64, low_hz=50.0, high_hz=14_000.0)),
}


class Affine(nn.Module):
    """A folded batch norm: a scale and a bias per channel."""

    @nn.compact
    def __call__(self, x: Float[Array, "*batch C"]) -> Float[Array, "*batch C"]:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        return x * scale + self.param("bias", nn.initializers.zeros, x.shape[-1:])


class ConvBlock(nn.Module):
    """Two convolutions, each with a folded batch norm and a ReLU."""

    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "B T M C"]) -> Float[Array, "B T M {self.width}"]:
        for i in (1, 2):
            x = Conv(self.width, (3, 3), padding=((1, 1), (1, 1)), use_bias=False, name=f"conv{i}")(x)
            x = nn.relu(Affine(name=f"norm{i}")(x))
        return x


class Cnn14(nn.Module):
    """Log-mel in dB, at least 32 frames -> embedding and class logits."""

    config: PannsConfig

    @nn.compact
    def __call__(
        self, log_mel: Float[AnyArray, "B T M"]
    ) -> tuple[Float[Array, "B D"], Float32[Array, "B {self.config.classes}"]]:
        x = Affine(name="norm")(jnp.asarray(log_mel))[..., None]
        for i, width in enumerate(self.config.widths, 1):
            x = ConvBlock(width, name=f"block{i}")(x)
            if i < len(self.config.widths):
                x = nn.avg_pool(x, (2, 2), (2, 2))
        x = x.mean(axis=2)
        x = x.max(axis=1) + x.mean(axis=1)
        embedding = nn.relu(Dense(x.shape[-1], name="embedding")(x))
        return embedding, Dense(self.config.classes, name="classes")(embedding).astype(jnp.float32)
