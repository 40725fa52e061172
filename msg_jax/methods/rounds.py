"""Rounds of sampling, scoring and tuning: the loop of every method that learns from its own samples.

Round k, in `round_k/`: `candidates/` are N samples of the current model for each of `videos` training clips with their scores
(round 0 of an arm that starts from the base uses those of the `candidates` stage); `training/` tunes the current model on
them, with itself at the start of the round as reference; `validation.json` says what it does on held-out clips
(methods/validation.py). Their rewards decide whether another round follows.
"""

import abc
import dataclasses
import json
from typing import Any, Literal

import numpy as np

from msg_jax.config.schema import Config
from msg_jax.data.features import FeatureSource
from msg_jax.infra import checkpoint, logging, preemption
from msg_jax.methods.candidates import CandidatePool, needs_own_candidates
from msg_jax.methods.method import Given, Job, Method
from msg_jax.methods.validation import Validation
from msg_jax.storage import Path
from msg_jax.types import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampled(Method):
    """A method that learns from scored samples; a subclass makes the training data of a round from them.

    `sampled`: whose candidates the first round has, those of `start` or those of the base, which all arms share.
    """

    sampled: Literal["start", "base"] = "start"

    @abc.abstractmethod
    def data(self, one: "Round") -> Any:
        """The training data of a round."""

    def samples_itself(self) -> bool:
        """Whether the first round samples candidates of its own, in the place of the base's that all arms share."""
        return needs_own_candidates(self) and self.sampled == "start"

    def tune(self, job: Job) -> Params:
        return Rounds(job, self).tuned()

    def pool(self, job: Job, number: int) -> Path:
        """The folder of round `number`'s candidates."""
        if number > 0 or self.samples_itself():
            return job.folder / f"round_{number}" / "candidates"
        return job.run.folder("candidates", job.seed)  # the base model's, shared by all arms

    def pools(self, job):
        rounds = (n for n in range(job.preference.rounds) if checkpoint.is_complete(job.folder / f"round_{n}" / "params"))
        shared = job.run.folder("candidates", job.seed)
        folders = [self.pool(job, number) for number in rounds]
        return {folder: job.run.config.preference if folder == shared else job.preference for folder in folders}

    def needs(self, config):
        return (*needs_of_rewards(config), *(() if self.samples_itself() else ("candidates",)))

    def sections(self):
        return ("preference", "reward")


def needs_of_rewards(config: Config) -> tuple[str, ...]:
    """The stages that scoring candidates and `Validation` need."""
    held_out = ("held_out_sf_cavp",) if config.preference.held_out_reward else ()
    return ("base", *config.reward_stages, "judge", *held_out)


@dataclasses.dataclass(frozen=True)
class Round:
    """What the training data of a round are made from."""

    job: Job
    number: int
    folder: Path
    pool: CandidatePool
    candidates: FeatureSource

    @property
    def clips(self) -> np.ndarray:
        """The training clip of each row of `candidates`."""
        return self.pool.clips(self.number)


class Rounds:
    """The rounds of one arm for one seed."""

    def __init__(self, job: Job, method: Sampled):
        self.job, self.method, self.section = job, method, job.preference
        self.pool = CandidatePool(job.run, self.section, job.seed)
        self.validation = Validation(self.pool)

    def tuned(self) -> Params:
        """The model of the last round."""
        job, variables = self.job, self.job.load(self.method.start)
        for number in range(self.section.rounds):
            folder = job.folder / f"round_{number}"
            if not checkpoint.is_complete(folder / "params"):
                tuned = self._round(number, folder, variables)
                metrics = self.validation.metrics(tuned)
                logging.write_atomically(folder / "validation.json", json.dumps(metrics, indent=1) + "\n")
                checkpoint.export(folder / "params", tuned)
                preemption.exit_if_requested(f"{job.name} round {number}")
            variables = job.run.local(checkpoint.load(folder / "params"))
            metrics = json.loads((folder / "validation.json").read_text())
            logging.info("%-13s round %d: reward %.3f on validation clips; real sound through the codec %.3f", job.name,
                         number, metrics["reward"], metrics["reward_reconstructed"])
            if self.section.stop_at_real and metrics["reward"] >= metrics["reward_reconstructed"]:
                logging.info("%-13s stops early: its reward has reached that of real sound", job.name)
                break
        return variables

    def _round(self, number: int, folder: Path, variables: Params) -> Params:
        job = self.job
        pool_folder = self.method.pool(job, number)
        if number > 0 or self.method.samples_itself():
            self.pool.fill(pool_folder, number, variables)
        data = self.method.data(Round(job, number, folder, self.pool, FeatureSource(pool_folder)))
        dims, name = job.features.dims, f"{job.name} {number}"
        task = self.method.task(Given(job.run, data, self.section, job.seed, variables, dims, name))
        return task.result(job.run.fit(task, self.section, folder / "training", seed=job.seed))
