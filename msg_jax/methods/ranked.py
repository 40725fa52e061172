"""Preference pairs from ranked candidates: AVP-RPO, its controls and its ceiling.

Beside what methods/rounds.py leaves in `round_k/`, `scores.jsonl` and `pairs.jsonl` say what became winner and loser, and why.
"""

import dataclasses
from typing import Any, Literal

import numpy as np

from msg_jax.data.features import FeatureSource
from msg_jax.errors import UserError
from msg_jax.infra import logging
from msg_jax.methods.candidates import SCORES
from msg_jax.methods.rounds import Round, Sampled
from msg_jax.preference import pairs as pairing
from msg_jax.tasks.preference import PreferenceTask


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranked(Sampled):
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

    def task(self, given):
        return PreferenceTask(given.run, given.source, given.section, given.seed, given.start, given.dims, given.name)

    def data(self, one: Round) -> "PairSource":
        features = one.job.features
        table = one.candidates.stack(range(len(one.candidates)), ("scores", "step_rewards", "step_errors"))
        pairs = self._pairs(table, one)
        self._write(one, table["scores"], pairs)
        rows = np.flatnonzero(pairs.kept)
        if not len(rows):
            raise UserError(f"{one.folder}: all candidates of every video have the same score, so there is no pair to learn "
                            "from; raise config.preference.candidates.")
        clips, reconstructed = one.clips[rows], None
        if self.winner == "real_reconstructed":
            real = features.stack(clips, ("latents",))["latents"]
            reconstructed = one.pool.codec_and_judge.round_trip(real)
        return PairSource(features, one.candidates, clips, rows, pairs, self.winner, reconstructed)

    def _pairs(self, table: dict[str, np.ndarray], one: Round) -> pairing.Pairs:
        section = one.job.preference
        if self.winner == "stitched":
            steps = self.rank_steps(table["step_rewards"], table["step_errors"])
            return pairing.stitch_candidates(steps, section.keep_share, section.join_cost)
        rng = np.random.default_rng((one.job.seed, one.number, 1))
        return pairing.rank_candidates(self.rank_candidates(table["scores"], rng), section.keep_share)

    def _write(self, one: Round, scores: np.ndarray, pairs: pairing.Pairs) -> None:
        ids = one.candidates.ids
        logging.write_jsonl(one.folder / "scores.jsonl", (
            {"id": name, "candidate": n} | {term: _rounded(value) for term, value in zip(SCORES, scores[row, n])}
            for row, name in enumerate(ids) for n in range(scores.shape[1])
        ))
        logging.write_jsonl(one.folder / "pairs.jsonl", (
            {
                "id": name, "winner": self.winner if self.winner.startswith("real") else pairs.best[row].tolist(),
                "loser": pairs.worst[row].tolist(), "gap": _rounded(pairs.gap[row]), "kept": bool(pairs.kept[row]),
            }
            for row, name in enumerate(ids)
        ))


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


def _rounded(value: float) -> float | None:
    return round(float(value), 5) if np.isfinite(value) else None
