"""The kind of device that a network is traced for."""

import jax


def platform() -> str:
    """`cpu`, `gpu` or `tpu`: that of the mesh in `jax.set_mesh`, which need not be of this machine, or JAX's default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    found = device.platform if device else jax.default_backend()
    return "gpu" if found in ("cuda", "rocm") else found
