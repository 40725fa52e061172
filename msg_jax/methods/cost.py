"""What it costs to make a system from the base, in floating-point operations.

Counted are all trainings behind it, and sampling, decoding and scoring of the candidates that they learnt from. The networks
that all systems of a run share, such as the reward's, are not.
"""

from collections.abc import Mapping

from msg_jax import storage
from msg_jax.methods.method import Job, method
from msg_jax.run import operations
from msg_jax.run.run import Run


def total(run: Run, system: str, seed: int, counted: dict[str, float] | None = None) -> float:
    """Operations beyond those of the base. Calls with one `counted` count each folder once."""
    return sum(parts(run, system, seed, counted).values())


def parts(run: Run, system: str, seed: int, counted: dict[str, float] | None = None) -> Mapping[str, float]:
    """Operations by folder of a finished training or of candidates, so that what two ancestors share counts once."""
    if system == "base":
        return {}
    counted = {} if counted is None else counted
    arm, job = method(run.config, system), Job(run, system, run.folder(system, seed), seed)
    found: dict[str, float] = {}
    for ancestor in arm.ancestors():
        found |= parts(run, ancestor, seed, counted)
    for path in storage.files_below(job.folder):
        if path.name == "metrics.jsonl":
            found[str(path.parent)] = operations.of_training(path.parent)
    for folder, section in arm.pools(job).items():
        if str(folder) not in counted:
            counted[str(folder)] = operations.of_candidates(run, section, job.features.dims)
        found[str(folder)] = counted[str(folder)]
    return found
