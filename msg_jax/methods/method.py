"""What every preference method has: its settings, what it needs, and the function that makes a tuned generator."""

import dataclasses
import functools
from typing import ClassVar, Literal

from msg_jax.config import tree
from msg_jax.config.schema import Arm, Config, Preference
from msg_jax.data.features import FeatureSource
from msg_jax.run.run import Run
from msg_jax.storage import Path
from msg_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Job:
    """One arm of a run for one seed, in its folder."""

    run: Run
    name: str
    folder: Path
    seed: int

    @property
    def preference(self) -> Preference:
        """The `preference` section with the arm's changes."""
        return tree.preference_of(self.run.config, self.name)

    @functools.cached_property
    def features(self) -> FeatureSource:
        """Features of the training clips."""
        return FeatureSource(self.run.folder("extract") / "train")

    def load(self, system: str) -> Params:
        """The variables of `base` or of another arm."""
        return self.run.load(system, self.seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method(Arm):
    """An arm with behaviour. A subclass adds its own settings as fields, and defines `tune`."""

    title: ClassVar[str]  # the default label
    summary: ClassVar[str]  # the default note
    role: ClassVar[Literal["system", "control", "ceiling"]] = "system"

    def tune(self, job: Job) -> Params:
        """Make the arm's generator variables. May be killed at any moment and is then called again in the same folder."""
        raise NotImplementedError

    def origins(self) -> dict[str, str]:
        """The systems it is made from, by the field that names them."""
        return {f"start={self.start!r}": self.start}

    def needs(self, config: Config) -> tuple[str, ...]:
        """The stages it needs beside its origins."""
        return ()

    def sections(self) -> tuple[str, ...]:
        """The config sections that decide its result beside its own."""
        return ("preference",)

    def check(self, name: str, config: Config) -> None:
        """Raises UserError if the settings contradict each other."""

    def describe(self) -> dict[str, str]:
        """`label` and `note` for tables and reports."""
        return {"label": self.label or self.title, "note": self.note or ("" if self.label else self.summary)}
