"""msg_jax: video-to-audio generation in multi-event scenes, in JAX and Flax."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from msg_jax.api import LoadedSystem

__version__ = "0.2.0"


def load(source: str | os.PathLike, variant: str | None = None) -> "LoadedSystem":
    """Load a system from the folder of a finished stage, or from a folder of released weights: see `msg_jax.api.load`."""
    from msg_jax import api  # JAX is imported when it is needed

    return api.load(source, variant)
