"""Preference methods and their controls: every kind of arm that a run can have.

A new method is one file with a subclass of `Method`, and its entry in KINDS.
"""

from collections.abc import Mapping
import json

from msg_jax.config import tree
from msg_jax.config.schema import Arm, Config
from msg_jax.errors import UserError
from msg_jax.infra import checkpoint, logging
from msg_jax.infra.record import SAMPLING
from msg_jax.methods.avp_rpo import AvpRpo
from msg_jax.methods.continue_flow import ContinueFlow
from msg_jax.methods.distill import Distill
from msg_jax.methods.merge import Merge
from msg_jax.methods.method import Job, Method, method
from msg_jax.methods.oracle import Oracle
from msg_jax.methods.picked import Picked
from msg_jax.methods.random_pairs import RandomPairs
from msg_jax.methods.sync_dpo import SyncDpo
from msg_jax.methods.weighted import Awm, DiffusionNft
from msg_jax.run.run import Run
from msg_jax.run.stage import Make
from msg_jax.storage import Path

KINDS: dict[str, type[Arm]] = {
    method.kind: method
    for method in (AvpRpo, SyncDpo, ContinueFlow, RandomPairs, Oracle, Merge, Picked, Distill, DiffusionNft, Awm)
}


def make(name: str) -> Make:
    """The stage function of an arm."""

    def make_arm(run: Run, folder: Path, seed: int | None) -> str:
        assert seed is not None
        tuned = method(run.config, name).tune(Job(run, name, folder, seed))
        if steps := method(run.config, name).student_steps(run.config):
            logging.write_atomically(folder / SAMPLING, json.dumps({"steps": steps[0], "guidance_scale": 1.0}) + "\n")
        return checkpoint.export(folder / "params", tuned)

    return make_arm


def check(config: Config) -> None:
    """Raises UserError if an arm's settings contradict each other, or if it is made from a system that does not exist."""
    for name in config.arms:
        tree.preference_of(config, name)
        method(config, name).check(name, config)
    for name in config.arms:
        _check_origins(config.arms, [name])


def _check_origins(arms: Mapping[str, Arm], path: list[str]) -> None:
    """Follow what the last arm of `path` is made from, back to the base model."""
    arm = arms[path[-1]]
    assert isinstance(arm, Method)
    for field, origin in arm.origins().items():
        if origin == "base":
            continue
        if origin not in arms:
            raise UserError(f"config.arms.{path[-1]}.{field} is not a system: choose base or another arm "
                            f"({', '.join(other for other in arms if other != path[-1])}).")
        if origin in path:
            raise UserError(f"config.arms.{path[-1]}.{field} makes a circle ({' <- '.join([*path, origin])}): let "
                            "one of them start from base.")
        _check_origins(arms, [*path, origin])
