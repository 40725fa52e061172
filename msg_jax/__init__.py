"""msg_jax: video-to-audio generation in multi-event scenes, in JAX and Flax."""

__version__ = "0.2.0"
