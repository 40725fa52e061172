"""Weight interpolation: a system between others, without training."""

from collections.abc import Mapping
import dataclasses
from typing import ClassVar

import optax

from msg_jax.errors import UserError
from msg_jax.methods.method import Job, Method
from msg_jax.types import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Merge(Method):
    """`start` plus a share of what each of the named arms changed.

    With one arm, linear interpolation (Wortsman et al., arXiv 2109.01903); with several, a soup of models tuned for
    different goals (Rame et al., arXiv 2306.04488).
    """

    kind: ClassVar[str] = "merge"
    title: ClassVar[str] = "Merged"
    summary: ClassVar[str] = "weight interpolation: no training of its own"
    shares: Mapping[str, float] = dataclasses.field(default_factory=dict)  # by arm

    def tune(self, job: Job) -> Params:
        start = merged = job.load(self.start)
        for name, share in sorted(self.shares.items()):
            merged = optax.tree.add_scale(merged, share, optax.tree.sub(job.load(name), start))
        return merged

    def training(self, preference):
        return None

    def origins(self):
        return super().origins() | {f"shares.{name}": name for name in self.shares}

    def sections(self):
        return ()

    def check(self, name, config):
        if not self.shares:
            raise UserError(f"config.arms.{name}.shares is empty: give shares of other arms, such as shares.avp_rpo=0.5.")
