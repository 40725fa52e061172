"""Free memory of the device."""

import os
import pathlib

import jax

_CONTAINER_LIMIT = pathlib.Path("/sys/fs/cgroup/memory.max")


def available_bytes() -> int:
    """Free bytes of the first local device; on a CPU those of the system, limited by its container."""
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        statistics = device.memory_stats() or {}
        return statistics.get("bytes_limit", 0) - statistics.get("bytes_in_use", 0)
    free = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    meminfo = pathlib.Path("/proc/meminfo")
    if meminfo.exists():
        free += [int(line.split()[1]) * 1024 for line in meminfo.read_text().splitlines() if line.startswith("MemAvail")]
    if _CONTAINER_LIMIT.exists() and (limit := _CONTAINER_LIMIT.read_text().strip()) != "max":
        free.append(int(limit))
    return min(free)
