"""What a process sets up before its first computation."""

import os

import jax

from msg_jax.infra import logging, preemption


def start() -> None:
    """Terminal, SIGTERM, compile cache, and, when started as one of several processes, JAX's multi-process runtime.

    Several processes are announced by JAX_NUM_PROCESSES with JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID, or found by JAX
    itself when JAX_NUM_PROCESSES=auto (TPU pods, SLURM, GKE). Start-up failures are raised, never swallowed: a pod that
    trains as isolated hosts is worse than one that stops.
    """
    logging.plain_terminal()
    preemption.install()
    processes = os.environ.get("JAX_NUM_PROCESSES")
    if processes == "auto":
        jax.distributed.initialize()
    elif processes:
        jax.distributed.initialize(
            os.environ["JAX_COORDINATOR_ADDRESS"], int(processes), int(os.environ["JAX_PROCESS_ID"])
        )
    use_compile_cache()


def use_compile_cache() -> None:
    """Keeps compiled programs on disk, in JAX_COMPILATION_CACHE_DIR or below the home folder."""
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", os.path.expanduser("~/.cache/msg_jax/xla"))
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
