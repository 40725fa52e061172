"""A generator whose velocity is one line, so that losses, samples and guidance can be computed by hand."""

from flax import linen as nn
import jax.numpy as jnp
import numpy as np

from msg_jax.models.generator import Generator
from msg_jax.models.mmdit import MMDiTConfig
from msg_jax.types import Conditions

CONFIG = MMDiTConfig(
    latent_channels=3, latent_tokens=8, clip_tokens=2, sync_tokens=8, text_tokens=2, clip_dim=4, sync_dim=4, text_dim=4
)
DIMS = {"clip": 4, "sync": 4, "text": 4}
MEAN, STD = 1.0, 2.0  # of the codec's latents


class Line(Generator):
    """velocity = slope x_t + t + c + bias, where c is the mean of the clip features plus twice that of the text."""

    config: MMDiTConfig = CONFIG

    def setup(self):
        self.slope = self.param("slope", nn.initializers.constant(0.5), ())
        self.bias = self.param("bias", nn.initializers.zeros_init(), (self.config.latent_channels,))
        self.null = self.param("null", nn.initializers.constant(-0.25), ())
        self.add_latent_statistics(self.config.latent_channels)

    def preprocess(self, conditions):
        return conditions.clip.mean(axis=(1, 2)) + 2 * conditions.text.mean(axis=(1, 2))

    def velocity(self, x_t, t, processed):
        return self.slope * x_t + (t + processed)[:, None, None] + self.bias

    def null_conditions(self, batch, negative_text=None):
        c = self.config
        return Conditions(
            clip=jnp.full((batch, c.clip_tokens, c.clip_dim), self.null),
            sync=jnp.zeros((batch, c.sync_tokens, c.sync_dim)),
            text=jnp.full((batch, c.text_tokens, c.text_dim), 3 * self.null),
        )


def variables(slope=0.5, bias=0.0, null=-0.25):
    """Variables of `Line`, with latents of MEAN and STD."""
    channels = CONFIG.latent_channels
    return {
        "params": {"slope": jnp.float32(slope), "bias": jnp.full(channels, bias, jnp.float32), "null": jnp.float32(null)},
        "buffers": {"latent_mean": jnp.full(channels, MEAN), "latent_std": jnp.full(channels, STD)},
    }


def velocity(variables, x_t, t, condition):
    """The velocity of `Line` in numpy; `condition` (B,) is c of each row."""
    params = {name: np.asarray(value, np.float64) for name, value in variables["params"].items()}
    return params["slope"] * x_t + (t + condition)[:, None, None] + params["bias"]


def condition(clip, text):
    """c (B,) of `Line`."""
    return clip.mean(axis=(1, 2)) + 2 * text.mean(axis=(1, 2))


def null_condition(variables):
    return 7 * float(variables["params"]["null"])


def flow_errors(variables, latents, noise, t, condition):
    """Flow-matching errors (B,) of codec latents (B, T, C), in numpy."""
    data = (latents - MEAN) / STD
    t_ = t[:, None, None]
    predicted = velocity(variables, (1 - t_) * noise + t_ * data, t, condition)
    return np.square(predicted - (data - noise)).mean(axis=(1, 2))


def random_features(clips, seed=0):
    """Latents and condition features of `clips` clips."""
    rng, c = np.random.default_rng(seed), CONFIG
    shapes = {
        "latents": (c.latent_tokens, c.latent_channels), "clip": (c.clip_tokens, c.clip_dim),
        "sync": (c.sync_tokens, c.sync_dim), "text": (c.text_tokens, c.text_dim),
    }
    return {name: rng.normal(size=(clips, *shape)).astype(np.float32) for name, shape in shapes.items()}
