"""AVP-RPO: rounds of sampling, ranking and preference tuning. Every arm of the study, controls included, is this stage.

Round k, in `round_k/`: `candidates/` are N samples of the current model for each of `videos` training clips with their
scores (round 0 takes the ones that the `candidates` stage made for all arms); `scores.jsonl` and `pairs.jsonl` say which became
winner and loser, of stitched pairs at each step, and why; `training/` tunes the current model on the pairs with itself at the
start of the round as reference; `validation.json` compares rewards on held-out clips.
"""

from collections.abc import Callable
import dataclasses
import json
import pathlib

from ml_collections import ConfigDict
import numpy as np
import optax

from msg_jax import train
from msg_jax.data.features import FeatureSource
from msg_jax.errors import UserError
from msg_jax.infra import checkpoint, logging, preemption
from msg_jax.preference import pairs as pairing
from msg_jax.stages import sync_dpo
from msg_jax.stages.base import FlowTask
from msg_jax.stages.candidates import SCORES, CandidatePool, changes_candidates, section_of
from msg_jax.stages.common import Run
from msg_jax.stages.generator import Generator
from msg_jax.stages.listening import Listener
from msg_jax.stages.preference import PreferenceTask
from msg_jax.types import Params

RANKINGS = (*pairing.RANKINGS, "rules", "none", "merged")


@dataclasses.dataclass
class PairSource:
    """Kept pairs with their clips' features."""

    features: FeatureSource
    candidates: FeatureSource
    indices: np.ndarray  # (P,) clip of each kept pair
    rows: np.ndarray  # (P,) its row among the candidates
    pairs: pairing.Pairs
    winner: str
    reconstructed: np.ndarray | None  # (P, T, C) where the winner is `real_reconstructed`

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        row = self.rows[i]
        item, latents = self.features[self.indices[i]], self.candidates[row]["latents"]
        steps = np.arange(latents.shape[1])
        if self.winner == "real":
            winner = item["latents"]
        elif self.winner == "real_reconstructed":
            winner = self.reconstructed[i]
        else:
            winner = latents[self.pairs.best[row], steps]
        return item | {"winner": winner, "loser": latents[self.pairs.worst[row], steps]}


class Arm:
    """One arm for one seed, in its folder."""

    def __init__(self, run: Run, name: str, folder: pathlib.Path, seed: int):
        self.run, self.name, self.folder, self.seed = run, name, folder, seed
        self.arm = run.config.arms[name]
        self.section = section_of(run.config, name)
        self.features = FeatureSource(run.folder("extract") / "train")

    def tuned(self) -> Params:
        """The arm's model."""
        start = self.run.load(self.arm.start, self.seed)
        if self.arm.ranking == "none":
            return self.continue_flow(start)
        if self.arm.ranking == "rules":
            return sync_dpo.tune(self.run, self.name, self.section, self.seed, self.folder, start)
        if self.arm.ranking == "merged":
            return self.merge(start)
        return self.tune(start)

    def merge(self, start: Params) -> Params:
        """No training: from `start` a share of the way to each of the named arms, in the space of parameters.

        With one arm, linear interpolation towards what it was tuned from (Wortsman et al., arXiv 2109.01903); with several, a
        soup of models tuned for different ends (Rame et al., arXiv 2306.04488).
        """
        merged = start
        for name, share in sorted(self.arm.shares.items()):
            tuned = self.run.load(name, self.seed)
            merged = optax.tree.add_scale(merged, share, optax.tree.sub(tuned, start))
        return merged

    def continue_flow(self, start: Params) -> Params:
        """The control without pairs: as many forward and backward passes spent on flow matching of real audio."""
        # A preference step passes 3 B items forward and backward and 2 B forward: 11 B forward-equivalents of 12 B here.
        section = ConfigDict(self.section.to_dict() | {
            "steps": self.section.rounds * self.section.steps, "batch_size": 4 * self.section.batch_size, "ema_decay": 0.0,
        })
        task = FlowTask(self.run, self.features, section, self.seed, initial=start, name=self.name)
        state = train.fit(task, seed=self.seed, **self.run.fit_options(section, self.folder / "training"))
        return task.result(state)

    def tune(self, variables: Params) -> Params:
        """Rounds of candidates, pairs and preference training; the last round's model."""
        self.pool = CandidatePool(self.run, self.section, self.seed)
        if self.arm.ranking == "oracle" and not self.pool.listener.can_judge:
            raise UserError(f"config.arms.{self.name}.ranking=oracle needs event truth, which {self.run.config.data.source} "
                            "does not have: remove that arm.")
        self.validation = Validation(self.run, self.section, self.seed, self.pool.listener)
        for number in range(self.section.rounds):
            folder = self.folder / f"round_{number}"
            if not (folder / "params").exists():
                tuned = self._round(number, folder, variables)
                figures = self.validation.figures(tuned)
                logging.write_atomically(folder / "validation.json", json.dumps(figures, indent=1) + "\n")
                checkpoint.export(folder / "params", tuned)
                preemption.exit_if_requested(f"{self.name} round {number}")
            variables = self.run.local(checkpoint.load(folder / "params"))
            figures = json.loads((folder / "validation.json").read_text())
            logging.info("%-13s round %d: reward %.3f on validation clips; real audio through the codec %.3f", self.name,
                         number, figures["reward"], figures["reward_reconstructed"])
            if self.section.stop_at_real and figures["reward"] >= figures["reward_reconstructed"]:
                logging.info("%-13s stops: the reward has reached that of real audio, more would only please it", self.name)
                break
        return variables

    def _round(self, number: int, folder: pathlib.Path, variables: Params) -> Params:
        section = self.section
        shared = self.run.folder("candidates", self.seed)  # the base model's, the same for every arm
        if number > 0 or changes_candidates(self.arm):
            shared = folder / "candidates"
            self.pool.fill(shared, number, variables)
        candidates = FeatureSource(shared)
        chosen = self.pool.clips(number)
        said = candidates.stack(range(len(candidates)), ("scores", "step_rewards", "step_errors"))
        pairs = self._ranked(said, number)
        self._write_pairs(folder, candidates.ids, said["scores"], pairs)
        rows = np.flatnonzero(pairs.kept)
        if not len(rows):
            raise UserError(f"{folder}: all candidates of every video have the same score, so there is no pair to learn from; "
                            "raise config.preference.candidates.")
        reconstructed = None
        if self.arm.winner == "real_reconstructed":
            reconstructed = self.pool.listener.heard_again(self.features.stack(chosen[rows], ("latents",))["latents"])
        source = PairSource(self.features, candidates, chosen[rows], rows, pairs, self.arm.winner, reconstructed)
        task = PreferenceTask(
            self.run, source, section, self.seed, variables, self.features.dims, name=f"{self.name} {number}"
        )
        state = train.fit(task, seed=self.seed, **self.run.fit_options(section, folder / "training"))
        return task.result(state)

    def _ranked(self, said: dict[str, np.ndarray], number: int) -> pairing.Pairs:
        """Winner and loser of every video by `scores` (V, N, SCORES), or joined by what is said of each step (V, N, T)."""
        if self.arm.winner == "stitched":
            steps = {
                "reward": said["step_rewards"],
                "oracle": -said["step_errors"],
                "random": np.roll(said["step_rewards"], 1, axis=0),  # those of another video's candidates
            }[self.arm.ranking]
            return pairing.stitch_candidates(steps, self.section.keep_share, self.section.join_cost)
        scores = said["scores"]
        ranking = {
            "reward": scores[..., SCORES.index("reward")],
            "oracle": scores[..., SCORES.index("event_f1")],
            "random": np.random.default_rng((self.seed, number, 1)).random(scores.shape[:2]),
        }[self.arm.ranking]
        return pairing.rank_candidates(ranking, self.section.keep_share)

    def _write_pairs(self, folder: pathlib.Path, ids: list[str], scores: np.ndarray, pairs: pairing.Pairs) -> None:
        logging.write_jsonl(folder / "scores.jsonl", (
            {"id": name, "candidate": n} | {term: _rounded(value) for term, value in zip(SCORES, scores[row, n])}
            for row, name in enumerate(ids) for n in range(scores.shape[1])
        ))
        logging.write_jsonl(folder / "pairs.jsonl", (
            {
                "id": name, "winner": self.arm.winner if self.arm.winner.startswith("real") else pairs.best[row].tolist(),
                "loser": pairs.worst[row].tolist(), "gap": _rounded(pairs.gap[row]), "kept": bool(pairs.kept[row]),
            }
            for row, name in enumerate(ids)
        ))


def _rounded(value: float) -> float | None:
    return round(float(value), 5) if np.isfinite(value) else None


class Validation:
    """What the reward says of a model's sound for held-out clips, beside their real sound heard through the codec."""

    def __init__(self, run: Run, section: ConfigDict, seed: int, listener: Listener):
        self.run, self.section, self.seed, self.listener = run, section, seed, listener
        self.features = FeatureSource(run.folder("extract") / "validation")
        source = run.source("validation", self.features.kept)
        self.indices = list(range(min(len(source), run.config.evaluate.batch_size)))
        self.video = listener.embed_video(np.stack([source[i]["video"] for i in self.indices]))

    def figures(self, variables: Params) -> dict[str, float]:
        (latents,) = Generator(self.run, self.features).latents(
            variables, self.indices, seed=self.seed, purpose="validation", guidance_scale=self.section.candidate_guidance,
            steps=self.section.candidate_steps, batch_size=self.run.config.evaluate.batch_size,
        )
        real = self.features.stack(self.indices, ("latents",))["latents"]
        figures = {}
        for suffix, heard in (("", latents[:, 0]), ("_reconstructed", real)):
            scores = self.listener.score(self.video, self.listener.decode(heard)[:, None])
            figures |= {f"{name}{suffix}": float(value.mean()) for name, value in scores.items()}
        return figures


def arm(name: str) -> Callable[[Run, pathlib.Path, int | None], str]:
    """The stage function of the arm `config.arms[name]`."""

    def make(run: Run, folder: pathlib.Path, seed: int) -> str:
        return checkpoint.export(folder / "params", Arm(run, name, folder, seed).tuned())

    return make


def check_arms(config: ConfigDict) -> None:
    """Raises UserError where an arm is none that there is, or starts from a system that there is not."""
    for name, arm in config.arms.items():
        if arm.ranking not in RANKINGS or arm.winner not in pairing.WINNERS:
            raise UserError(
                f"config.arms.{name} has ranking={arm.ranking!r}, winner={arm.winner!r}: choose a ranking from "
                f"{', '.join(RANKINGS)} and a winner from {', '.join(pairing.WINNERS)}."
            )
        if arm.ranking == "rules":
            sync_dpo.check_arm(name, arm)
        shares = dict(arm.get("shares") or {})
        if (arm.ranking == "merged") != bool(shares):
            raise UserError(f"config.arms.{name} has ranking={arm.ranking!r} and shares={shares}: `merged`, and it alone, "
                            "needs shares of other arms, as shares.avp_rpo=0.5.")
    for name in config.arms:
        _check_origin(config.arms, [name])


def made_from(arm: ConfigDict) -> dict[str, str]:
    """What an arm is made from: the system by the field that names it."""
    return {f"start={arm.start!r}": arm.start} | {f"shares.{name}": name for name in arm.get("shares") or {}}


def _check_origin(arms: ConfigDict, path: list[str]) -> None:
    """Raises UserError where what the last arm of `path` is made from is no system, or is on the path itself."""
    for field, origin in made_from(arms[path[-1]]).items():
        if origin == "base":
            continue
        if origin not in arms:
            raise UserError(f"config.arms.{path[-1]}.{field} is no system: choose base or another arm "
                            f"({', '.join(other for other in arms if other != path[-1])}).")
        if origin in path:
            raise UserError(f"config.arms.{path[-1]}.{field} makes a circle ({' <- '.join([*path, origin])}): let "
                            "one of them start from base.")
        _check_origin(arms, [*path, origin])
