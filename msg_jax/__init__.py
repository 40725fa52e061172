"""msg_jax: video-to-audio generation in multi-event scenes, in JAX and Flax."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from msg_jax.api import LoadedSystem

__version__ = "0.2.0"


def load(source: str | os.PathLike | None = None, variant: str | None = None) -> "LoadedSystem":
    """Load a system from a finished stage's folder, from released weights, or the demo: see `msg_jax.api.load`."""
    from msg_jax import api  # JAX is imported when it is needed

    return api.load(source, variant)
