"""What accelerators can do, from the vendors' data sheets: the one table for MFU and for predictions."""

from typing import NamedTuple


class Device(NamedTuple):
    """The limits of one device."""

    flops: float  # dense bfloat16 FLOP/s
    float32: float  # FLOP/s of exact float32 products, on a TPU six passes of bfloat16
    memory: float  # bytes
    bandwidth: float  # of the memory, bytes/s
    interconnect: float  # to the other devices of a slice or a host over all links, bytes/s each way


TABLE = {
    "TPU v4": Device(275e12, 275e12 / 6, 32e9, 1228e9, 300e9),
    "TPU v5 lite": Device(197e12, 197e12 / 6, 16e9, 819e9, 200e9),
    "TPU v5": Device(459e12, 459e12 / 6, 95e9, 2765e9, 600e9),
    "TPU v6 lite": Device(918e12, 918e12 / 6, 32e9, 1640e9, 448e9),
    "NVIDIA A100": Device(312e12, 19.5e12, 80e9, 2039e9, 300e9),
    "NVIDIA H100": Device(989e12, 67e12, 80e9, 3350e9, 450e9),
    "NVIDIA H100 PCIe": Device(756e12, 51e12, 80e9, 2000e9, 64e9),
    "NVIDIA H200": Device(989e12, 67e12, 141e9, 4800e9, 450e9),
    "NVIDIA L4": Device(121e12, 30.3e12, 24e9, 300e9, 32e9),
    "NVIDIA L40S": Device(362e12, 91.6e12, 48e9, 864e9, 32e9),
    "NVIDIA B200": Device(2250e12, 75e12, 180e9, 7700e9, 900e9),
    "NVIDIA GB200": Device(2450e12, 80e12, 186e9, 8000e9, 900e9),
}
"""By prefix of JAX's `device_kind`. JAX calls a v5e "TPU v5 lite", a v5p "TPU v5" and a v6e "TPU v6 lite"."""

_ALIASES = {"TPU v5e": "TPU v5 lite", "TPU v5p": "TPU v5", "TPU v6e": "TPU v6 lite"}


def find(kind: str) -> Device | None:
    """The device of a `device_kind`, by the longest prefix that the table has; None if it has none."""
    for alias, name in _ALIASES.items():
        kind = kind.replace(alias, name)
    known = [prefix for prefix in TABLE if kind.startswith(prefix)]
    return TABLE[max(known, key=len)] if known else None
