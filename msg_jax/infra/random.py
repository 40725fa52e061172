"""Random keys."""

from typing import Any
import zlib

import jax


def key_for(seed: int, purpose: str, step: int | jax.Array = 0) -> jax.Array:
    """The random key of one purpose at one step: `fold_in(fold_in(key(seed), purpose), step)`."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode())), step)


def host() -> Any:
    """The CPU as a device of JAX; None, its default device, where JAX_PLATFORMS leaves the CPU out."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None
