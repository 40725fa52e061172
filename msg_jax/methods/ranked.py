"""Rounds of sampling, ranking and preference tuning: the loop of AVP-RPO, its controls and its ceiling.

Round k, in `round_k/`: `candidates/` are N samples of the current model for each of `videos` training clips with their scores
(round 0 of an arm that starts from the base uses those of the `candidates` stage); `scores.jsonl` and `pairs.jsonl` say what
became winner and loser, and why; `training/` tunes the current model on the pairs, with itself at the start of the round as
reference; `validation.json` has its rewards on held-out clips.
"""

import dataclasses
import json
from typing import Any, Literal

import numpy as np

from msg_jax.data.features import FeatureSource
from msg_jax.errors import UserError
from msg_jax.infra import checkpoint, logging, preemption
from msg_jax.methods.candidates import SCORES, CandidatePool, needs_own_candidates
from msg_jax.methods.method import Job, Method
from msg_jax.preference import pairs as pairing
from msg_jax.run import build
from msg_jax.storage import Path
from msg_jax.tasks.preference import PreferenceTask
from msg_jax.types import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranked(Method):
    """A method that ranks candidates; a subclass says by what.

    `winner`: `stitched` joins winner and loser from the best and the worst moments of all candidates; `best_of_n` takes the
    best and the worst candidate; `real` sets real sound against the worst candidate; `real_reconstructed` the same after a
    round trip through the codec.
    """

    winner: Literal["stitched", "best_of_n", "real", "real_reconstructed"] = "stitched"

    def rank_steps(self, step_rewards: np.ndarray, step_errors: np.ndarray) -> np.ndarray:
        """What to rank the steps of candidates by, higher is better: all arrays are (V, N, T)."""
        raise NotImplementedError

    def rank_candidates(self, scores: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """What to rank whole candidates by, higher is better: scores (V, N, SCORES) -> (V, N)."""
        raise NotImplementedError

    def tune(self, job: Job) -> Params:
        return Rounds(job, self).tuned()

    def needs(self, config):
        reward = ("sf_cavp", "sound_events") if config.sound_events.kinds else ("sf_cavp",)
        own = ("candidates",) if not needs_own_candidates(self) else ()
        return ("base", *reward, "judge", *own)

    def sections(self):
        return ("preference", "reward")


@dataclasses.dataclass
class PairSource:
    """Kept pairs with the features of their clips."""

    features: FeatureSource
    candidates: FeatureSource
    indices: np.ndarray  # (P,) clip of each kept pair
    rows: np.ndarray  # (P,) its row among the candidates
    pairs: pairing.Pairs
    winner: str
    reconstructed: np.ndarray | None  # (P, T, C) winners after the round trip, for `real_reconstructed`

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> dict[str, Any]:
        row = self.rows[i]
        item, latents = self.features[self.indices[i]], self.candidates[row]["latents"]
        steps = np.arange(latents.shape[1])
        if self.winner == "real":
            winner = item["latents"]
        elif self.reconstructed is not None:
            winner = self.reconstructed[i]
        else:
            winner = latents[self.pairs.best[row], steps]
        return item | {"winner": winner, "loser": latents[self.pairs.worst[row], steps]}


class Rounds:
    """The rounds of one arm for one seed."""

    def __init__(self, job: Job, method: Ranked):
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
        job, section, winner = self.job, self.section, self.method.winner
        pool_folder = job.run.folder("candidates", job.seed)  # the base model's, shared by all arms
        if number > 0 or needs_own_candidates(self.method):
            pool_folder = folder / "candidates"
            self.pool.fill(pool_folder, number, variables)
        candidates, chosen = FeatureSource(pool_folder), self.pool.clips(number)
        table = candidates.stack(range(len(candidates)), ("scores", "step_rewards", "step_errors"))
        pairs = self._ranked(table, number)
        self._write_pairs(folder, candidates.ids, table["scores"], pairs)
        rows = np.flatnonzero(pairs.kept)
        if not len(rows):
            raise UserError(f"{folder}: all candidates of every video have the same score, so there is no pair to learn from; "
                            "raise config.preference.candidates.")
        reconstructed = None
        if winner == "real_reconstructed":
            real = job.features.stack(chosen[rows], ("latents",))["latents"]
            reconstructed = self.pool.codec_and_judge.round_trip(real)
        source = PairSource(job.features, candidates, chosen[rows], rows, pairs, winner, reconstructed)
        task = PreferenceTask(
            job.run, source, section, job.seed, variables, job.features.dims, name=f"{job.name} {number}"
        )
        return task.result(job.run.fit(task, section, folder / "training", seed=job.seed))

    def _ranked(self, table: dict[str, np.ndarray], number: int) -> pairing.Pairs:
        section = self.section
        if self.method.winner == "stitched":
            steps = self.method.rank_steps(table["step_rewards"], table["step_errors"])
            return pairing.stitch_candidates(steps, section.keep_share, section.join_cost)
        rng = np.random.default_rng((self.job.seed, number, 1))
        return pairing.rank_candidates(self.method.rank_candidates(table["scores"], rng), section.keep_share)

    def _write_pairs(self, folder: Path, ids: list[str], scores: np.ndarray, pairs: pairing.Pairs) -> None:
        winner = self.method.winner
        logging.write_jsonl(folder / "scores.jsonl", (
            {"id": name, "candidate": n} | {term: _rounded(value) for term, value in zip(SCORES, scores[row, n])}
            for row, name in enumerate(ids) for n in range(scores.shape[1])
        ))
        logging.write_jsonl(folder / "pairs.jsonl", (
            {
                "id": name, "winner": winner if winner.startswith("real") else pairs.best[row].tolist(),
                "loser": pairs.worst[row].tolist(), "gap": _rounded(pairs.gap[row]), "kept": bool(pairs.kept[row]),
            }
            for row, name in enumerate(ids)
        ))


def _rounded(value: float) -> float | None:
    return round(float(value), 5) if np.isfinite(value) else None


class Validation:
    """Rewards of a model's samples for held-out clips, beside those of real sound after the codec."""

    def __init__(self, pool: CandidatePool):
        run = pool.run
        self.pool, self.batch_size = pool, run.config.evaluate.batch_size
        self.features = FeatureSource(run.folder("extract") / "validation")
        source = run.source("validation", self.features.kept, ("video",))
        self.indices = list(range(min(len(source), self.batch_size)))
        self.video = pool.reward.embed_video(np.stack([source[i]["video"] for i in self.indices]))

    def metrics(self, variables: Params) -> dict[str, float]:
        """The mean of each reward term, with the suffix `_reconstructed` for real sound."""
        pool, section = self.pool, self.pool.section
        (latents,) = build.sampler(pool.run, self.features).latents(
            variables, self.indices, seed=pool.seed, purpose="validation", guidance_scale=section.candidate_guidance,
            steps=section.candidate_steps, batch_size=self.batch_size,
        )
        real = self.features.stack(self.indices, ("latents",))["latents"]
        found = {}
        for suffix, each in (("", latents[:, 0]), ("_reconstructed", real)):
            scores = pool.reward.score(self.video, pool.codec_and_judge.decode(each)[:, None])
            found |= {f"{name}{suffix}": float(value.mean()) for name, value in scores.items()}
        return found
