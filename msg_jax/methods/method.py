"""What every preference method has: its settings, what it needs, and the function that makes a tuned generator."""

import dataclasses
import functools
from typing import Any, ClassVar, Literal

from msg_jax.config import tree
from msg_jax.config.schema import Arm, Config, Preference
from msg_jax.data.features import FeatureSource
from msg_jax.run.run import Run
from msg_jax.storage import Path
from msg_jax.tasks.flow import GeneratorTask
from msg_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Given:
    """What the training task of an arm is made from."""

    run: Run
    source: Any  # its training data
    section: Preference
    seed: int
    start: Params  # variables of the network that it starts from
    dims: dict[str, int]  # widths of the extracted features
    name: str


@dataclasses.dataclass(frozen=True)
class Job:
    """One arm of a run for one seed, in its folder."""

    run: Run
    name: str
    folder: Path
    seed: int

    @property
    def preference(self) -> Preference:
        """The `preference` section with the arm's changes. Candidates of a student are sampled as it is."""
        config = self.run.config
        section, steps = tree.preference_of(config, self.name), method(config, self.name).student_steps(config)
        if not steps:
            return section
        own = config.arms[self.name].changes.get("candidate_steps", steps[0])
        return tree.replace(section, candidate_guidance=1.0, candidate_steps=own)

    @functools.cached_property
    def features(self) -> FeatureSource:
        """Features of the training clips."""
        return FeatureSource(self.run.folder("extract") / "train")

    def load(self, system: str) -> Params:
        """The variables of `base` or of another arm."""
        return self.run.load(system, self.seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method(Arm):
    """An arm with behaviour. A subclass adds its own settings as fields, and defines `task` or `tune`."""

    title: ClassVar[str]  # the default label
    summary: ClassVar[str]  # the default note
    role: ClassVar[Literal["system", "control", "ceiling"]] = "system"

    def tune(self, job: Job) -> Params:
        """Make the arm's generator variables: by default, train `task` on the training clips.

        May be killed at any moment and is then called again in the same folder.
        """
        section = self.training(job.preference)
        assert section is not None
        start, dims = job.load(self.start), job.features.dims
        task = self.task(Given(job.run, job.features, section, job.seed, start, dims, job.name))
        return task.result(job.run.fit(task, section, job.folder / "training", seed=job.seed))

    def task(self, given: Given) -> GeneratorTask:
        """The training task."""
        raise NotImplementedError

    def origins(self) -> dict[str, str]:
        """The systems that must be there first, by the field that names them."""
        return {f"start={self.start!r}": self.start}

    def ancestors(self) -> tuple[str, ...]:
        """The systems that its parameters come from, and so whose cost it has."""
        return tuple(self.origins().values())

    def needs(self, config: Config) -> tuple[str, ...]:
        """The stages it needs beside its origins."""
        return ()

    def student_steps(self, config: Config) -> tuple[int, ...]:
        """Solver steps that the student is sampled with that it is or starts from, the usual number first.

        Empty for a network that is sampled with guidance.
        """
        return () if self.start == "base" else method(config, self.start).student_steps(config)

    def pools(self, job: Job) -> dict[Path, Preference]:
        """The folders of candidates that it has learnt from, each with the settings that they were sampled with."""
        return {}

    def sections(self) -> tuple[str, ...]:
        """The config sections that decide its result beside its own."""
        return ("preference",)

    def training(self, preference: Preference) -> Preference | None:
        """The settings of its training, from the arm's `preference`; None if it trains nothing."""
        return preference

    def check(self, name: str, config: Config) -> None:
        """Raises UserError if the settings contradict each other."""

    def describe(self) -> dict[str, str]:
        """`label` and `note` for tables and reports."""
        return {"label": self.label or self.title, "note": self.note or ("" if self.label else self.summary)}


def at_once(preference: Preference) -> Preference:
    """The section with the steps of all rounds in one, for methods without rounds."""
    return tree.replace(preference, steps=preference.rounds * preference.steps)


def method(config: Config, name: str) -> Method:
    """The arm `name` of a config."""
    arm = config.arms[name]
    assert isinstance(arm, Method)
    return arm
