"""One of an arm's rounds, and how far to go there, picked by what was not rewarded."""

import dataclasses
from typing import Any, ClassVar

import optax

from msg_jax.errors import UserError
from msg_jax.infra import checkpoint, logging
from msg_jax.methods.candidates import CandidatePool
from msg_jax.methods.method import Job, Method, method
from msg_jax.methods.rounds import Sampled, needs_of_rewards
from msg_jax.methods.validation import Validation, unrewarded
from msg_jax.types import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picked(Method):
    """The best network between the start of the arm `start` and each of its rounds, by what was not rewarded.

    `shares` of the way to each round are tried on held-out clips, and the start itself. `validation.jsonl` has a row of each,
    with the reward beside what was not rewarded (methods/validation.py): a report on reward hacking.
    """

    kind: ClassVar[str] = "picked"
    title: ClassVar[str] = "Picked"
    summary: ClassVar[str] = "the round and the share of the way there that are best by what was not rewarded"
    start: str = "avp_rpo"
    shares: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)

    def tune(self, job: Job) -> Params:
        run, name = job.run, self.start
        arm, origin = Job(run, name, run.folder(name, job.seed), job.seed), job.load(method(run.config, name).start)
        validation = Validation(CandidatePool(run, arm.preference, job.seed))
        rows: list[dict[str, Any]] = [{"round": None, "share": 0.0} | validation.metrics(origin)]
        picked = origin
        numbers = (n for n in range(arm.preference.rounds) if checkpoint.is_complete(arm.folder / f"round_{n}" / "params"))
        for number in numbers:
            change = optax.tree.sub(run.local(checkpoint.load(arm.folder / f"round_{number}" / "params")), origin)
            for share in self.shares:
                tried = optax.tree.add_scale(origin, share, change)
                row = {"round": number, "share": share} | validation.metrics(tried)
                if unrewarded(row) > max(map(unrewarded, rows)):
                    picked = tried
                rows.append(row)
        best = max(rows, key=unrewarded)
        logging.info("%-13s %s of the way to round %s of %s", job.name, best["share"], best["round"], name)
        logging.write_jsonl(job.folder / "validation.jsonl", (row | {"picked": row is best} for row in rows))
        return picked

    def training(self, preference):
        return None

    def needs(self, config):
        return needs_of_rewards(config)

    def sections(self):
        return ("preference", "reward")

    def check(self, name, config):
        where = f"config.arms.{name}"
        if self.start not in config.arms or not isinstance(config.arms[self.start], Sampled):
            raise UserError(f"{where}.start={self.start} has no rounds to pick from: name an arm that samples candidates, such "
                            "as avp_rpo.")
        if not self.shares or not all(0 < share <= 1 for share in self.shares):
            raise UserError(f"{where}.shares={self.shares} must be shares of the way, above 0 and up to 1.")
