"""Devices of machines that are not here: topologies that XLA compiles for, from their names."""

import importlib.util
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from msg_jax.errors import UserError

FORMS = "v5e:4x4, v6e:16x16, v5p:4x4x4, 2*v5e:16x16 (two slices), cuda:1x1x8 (H100s of processes x hosts x GPUs) or cpu:8"

_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84929347584 shared_memory_per_block_optin: 232448 cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 7 } runtime_version { major: 13 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
TPU_ENVIRONMENT = {  # libtpu is to ask no server which machine this is, and leave a TPU that is here to others
    "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
}
_CUDA_FLAGS = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"  # there is no GPU to time kernels on


def prepare(name: str) -> None:
    """Set up this process to compile for a topology, before JAX is used: it computes on the CPU, whatever the machine has.

    Raises UserError if the name is of no known form, or if what compiles for it is not installed.
    """
    _, platform, sizes = _parts(name)
    jax.config.update("jax_platforms", "cpu")
    if platform == "cpu":
        jax.config.update("jax_num_cpu_devices", int(sizes))
    elif platform == "cuda":
        if not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
            raise UserError(f"--topology={name} needs JAX's CUDA plugin: pip install 'msg_jax[cuda]'.")
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_CUDA_FLAGS}"
    else:
        if importlib.util.find_spec("libtpu") is None:
            raise UserError(f"--topology={name} needs libtpu: pip install 'msg_jax[tpu]'.")
        os.environ |= TPU_ENVIRONMENT


def devices(name: str) -> list[Any]:
    """The devices of a topology, after `prepare`. Raises UserError if there is no such topology."""
    slices, platform, sizes = _parts(name)
    if platform == "cpu":
        found = jax.devices("cpu")
        if len(found) < int(sizes):
            raise UserError(f"--topology={name}: this process has only {len(found)} virtual CPU devices.")
        return found[: int(sizes)]
    try:
        if platform == "cuda":
            return list(topologies.get_topology_desc("", "cuda", target_config=_H100, topology=sizes).devices)
        options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
        if platform == "v4":
            options["chip_config_name"] = "megacore"  # one device a chip, as JAX has it on the hardware
        return list(topologies.get_topology_desc(platform="tpu", topology_name=f"{platform}:{sizes}", **options).devices)
    except Exception as error:  # the plugins raise what they like
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"--topology={name} cannot be made ({reason}): use one like {FORMS}.") from error


def _parts(name: str) -> tuple[int, str, str]:
    """Number of slices, platform and sizes."""
    found = re.fullmatch(r"(?:(\d+)\*)?(v\d\w*):(\d+(?:x\d+)*)|(cuda):(\d+x\d+x\d+)|(cpu):(\d+)", name)
    if not found:
        raise UserError(f"--topology={name} is none: use one like {FORMS}.")
    slices, tpu, sizes, cuda, gpus, cpu, count = found.groups()
    return int(slices or 1), tpu or cuda or cpu, sizes or gpus or count
