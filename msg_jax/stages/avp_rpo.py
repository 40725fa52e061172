"""AVP-RPO: rounds of sampling, ranking and preference tuning. Every arm of the study, controls included, is this stage.

Round k, in `round_k/`: `candidates/` are N samples of the current model for each of `videos` training clips with their
scores; `scores.jsonl` and `pairs.jsonl` say which became winner and loser, and why; `training/` tunes the current model on
the pairs with itself at the start of the round as reference; `validation.json` compares rewards on held-out clips.
"""

from collections.abc import Callable
import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from msg_jax import networks, train
from msg_jax.data.features import FeatureSource, FeatureWriter
from msg_jax.errors import UserError
from msg_jax.evaluation import events
from msg_jax.infra import checkpoint, logging, preemption
from msg_jax.losses import flow
from msg_jax.losses.preference import PairErrors, preference_loss
from msg_jax.preference import pairs as pairing
from msg_jax.stages.base import FlowTask, conditions_of, flow_loss
from msg_jax.stages.common import Run
from msg_jax.stages.generator import Generator
from msg_jax.stages.listening import Listener
from msg_jax.types import Params, PreferenceBatch

TERMS = ("semantic", "dynamic", "window", "reward")


@dataclasses.dataclass
class PreferenceTask(train.Task):
    """The DPO loss over policy and frozen reference, and the two flow-matching anchors, each with its weight."""

    run: Run
    source: Any
    section: ConfigDict
    seed: int
    reference: Params
    dims: dict[str, int]
    name: str

    def __post_init__(self):
        self.model = networks.generator(self.run.config, self.run.clip, self.dims, self.run.dtype)
        self.optimizer = train.make_optimizer(self.section.optimizer, self.section.steps)
        self.frozen = {"reference": self.reference}

    def init(self, rng):
        from msg_jax.models.mmdit import example_inputs

        params = self.model.init(rng, *example_inputs(self.model.config))["params"]
        return train.create_state(train.boxed_like(params, self.reference["params"]), self.optimizer, ema=False)

    def step(self, state, batch, rng, frozen):
        section, buffers = self.section, frozen["reference"]["buffers"]
        batch = PreferenceBatch(
            winner=batch["winner"], loser=batch["loser"], real=batch["latents"], conditions=conditions_of(batch)
        )
        noise_key, time_key, real_key = jax.random.split(rng, 3)
        # The same noise and the same t for both sides: only what is compared may differ.
        noise = jax.random.normal(noise_key, batch.winner.shape)
        t = flow.sample_t(time_key, len(batch.winner))
        sides = jnp.concatenate([batch.winner, batch.loser])

        def side_errors(variables):
            processed = self.model.apply(variables, batch.conditions, method="preprocess")
            processed = jax.tree.map(lambda x: jnp.concatenate([x, x]), processed)
            errors = flow.flow_error(
                lambda x_t, t: self.model.apply(variables, x_t, t, processed, method="velocity"),
                self.model.apply(variables, sides, method="normalize"),
                jnp.concatenate([noise, noise]), jnp.concatenate([t, t]),
            )
            return jnp.split(errors, 2)

        reference_errors = side_errors(frozen["reference"])

        def loss_fn(params):
            variables = {"params": params, "buffers": buffers}
            errors = PairErrors(*side_errors(variables), *reference_errors)
            dpo, metrics = preference_loss(errors, section.beta)
            real = flow_loss(
                self.model, variables, batch.real, batch.conditions, real_key, section.condition_dropout,
                section.text_dropout,
            )
            loss = (
                section.dpo_weight * dpo + section.winner_weight * errors.policy_winner.mean() + section.real_weight * real
            )
            return loss, {"dpo": dpo, "error_real": real} | metrics

        (loss, metrics), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        return train.apply_gradients(state, gradients, self.optimizer), {"loss": loss} | metrics

    def batches(self):
        return self.run.batches(self.source, self.section.batch_size, seed=self.seed)


@dataclasses.dataclass
class PairSource:
    """Kept pairs with their clips' features."""

    features: FeatureSource
    candidates: FeatureSource
    indices: np.ndarray  # (P,) clip of each kept pair
    rows: np.ndarray  # (P,) its row among the candidates
    pairs: pairing.Pairs
    winner: str

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        row = self.rows[i]
        item, candidates = self.features[self.indices[i]], self.candidates[row]
        winner = {
            "best_of_n": lambda: candidates["latents"][self.pairs.best[row]],
            "real": lambda: item["latents"],
            "real_reconstructed": lambda: candidates["reconstructed"],
        }[self.winner]()
        return item | {"winner": winner, "loser": candidates["latents"][self.pairs.worst[row]]}


class Arm:
    """One arm for one seed, in its folder."""

    def __init__(self, run: Run, name: str, folder: pathlib.Path, seed: int):
        self.run, self.name, self.folder, self.seed = run, name, folder, seed
        self.arm = run.config.arms[name]
        changes = {key: value for key, value in self.arm.items() if key not in ("ranking", "winner")}
        self.section = ConfigDict(run.config.preference.to_dict() | changes)
        if self.arm.ranking not in (*pairing.RANKINGS, "none") or self.arm.winner not in pairing.WINNERS:
            raise UserError(
                f"config.arms.{name} has ranking={self.arm.ranking!r}, winner={self.arm.winner!r}: choose a ranking from "
                f"{', '.join((*pairing.RANKINGS, 'none'))} and a winner from {', '.join(pairing.WINNERS)}."
            )
        self.features = FeatureSource(run.folder("extract") / "train")

    def continue_flow(self) -> Params:
        """The control without pairs: as many forward and backward passes spent on flow matching of real audio."""
        # A preference step passes 3 B items forward and backward and 2 B forward: 11 B forward-equivalents of 12 B here.
        section = ConfigDict(self.section.to_dict() | {
            "steps": self.section.rounds * self.section.steps, "batch_size": 4 * self.section.batch_size, "ema_decay": 0.0,
        })
        base = self.run.load("base", self.seed)
        task = FlowTask(self.run, self.features, section, self.seed, initial=base, name=self.name)
        state = train.fit(task, seed=self.seed, **self.run.fit_options(section, self.folder / "training"))
        return {"params": state.params, "buffers": base["buffers"]}

    def rounds(self) -> Params:
        variables = self.run.load("base", self.seed)
        source = self.run.source("train")
        self.source = source
        self.listener = Listener(self.run, source.class_names)
        if self.arm.ranking == "oracle" and not self.listener.can_judge:
            raise UserError(f"config.arms.{self.name}.ranking=oracle needs event truth, which {self.run.config.data.source} "
                            "does not have: remove that arm.")
        self.generator = Generator(self.run, self.features)
        self.validation = self._validation_clips()
        for number in range(self.section.rounds):
            folder = self.folder / f"round_{number}"
            if not (folder / "params").exists():
                tuned = self._round(number, folder, variables)
                self._validate(folder, tuned)
                checkpoint.export(folder / "params", tuned)
                preemption.exit_if_requested(f"{self.name} round {number}")
            variables = checkpoint.load(folder / "params")
            figures = json.loads((folder / "validation.json").read_text())
            logging.info("%-13s round %d: reward %.3f on validation clips; real audio through the codec %.3f", self.name,
                         number, figures["reward"], figures["reward_reconstructed"])
            if self.section.stop_at_real and figures["reward"] >= figures["reward_reconstructed"]:
                logging.info("%-13s stops: the reward has reached that of real audio, more would only please it", self.name)
                break
        return variables

    def _round(self, number: int, folder: pathlib.Path, variables: Params) -> Params:
        section = self.section
        chosen = np.random.default_rng((self.seed, number)).permutation(len(self.features))[: section.videos]
        candidates = self._candidates(number, folder / "candidates", variables, chosen)
        scores = np.stack([candidates[row]["scores"] for row in range(len(candidates))])  # (V, N, terms)
        ranking = {
            "reward": scores[..., TERMS.index("reward")],
            "oracle": scores[..., -1],
            "random": np.random.default_rng((self.seed, number, 1)).random(scores.shape[:2]),
        }[self.arm.ranking]
        pairs = pairing.rank_candidates(ranking, section.keep_share)
        self._write_pairs(folder, candidates.ids, scores, pairs)
        rows = np.flatnonzero(pairs.kept)
        if not len(rows):
            raise UserError(f"{folder}: all candidates of every video have the same score, so there is no pair to learn from; "
                            "raise config.preference.candidates.")
        task = PreferenceTask(
            self.run, PairSource(self.features, candidates, chosen[rows], rows, pairs, self.arm.winner), section,
            self.seed, variables, self.features.dims, name=f"{self.name} {number}",
        )
        state = train.fit(task, seed=self.seed, **self.run.fit_options(section, folder / "training"))
        return {"params": state.params, "buffers": variables["buffers"]}

    def _candidates(self, number: int, folder: pathlib.Path, variables: Params, chosen: np.ndarray) -> FeatureSource:
        """N candidates of each chosen clip: latents (N, T, C), scores (N, terms + truth), and the winner's reconstruction."""
        section, batch = self.section, self.run.config.evaluate.batch_size
        writer = FeatureWriter(folder, len(chosen), batch)
        progress = logging.Progress(f"{self.name} {number}", len(chosen), "video")
        for shard, rows in writer.missing:
            indices = chosen[rows.start : rows.stop]
            (latents,) = self.generator.latents(
                variables, indices, seed=self.seed, purpose=f"candidates/{number}", candidates=section.candidates,
                guidance_scale=section.candidate_guidance, steps=section.candidate_steps, batch_size=batch,
            )
            records = [self.source[int(i)] for i in indices]
            mels = self.listener.decode(latents.reshape(-1, *latents.shape[2:]))
            mels = mels.reshape(*latents.shape[:2], *mels.shape[1:])
            terms = self.listener.score(self.listener.embed_video(np.stack([r["video"] for r in records])), mels)
            truth = np.full(latents.shape[:2], np.nan)
            if self.arm.ranking == "oracle":
                truth = self.listener.event_f1(events.true_events(np.stack([r["events"] for r in records])), mels)
            scores = np.stack([*(terms[name] for name in TERMS), truth], axis=-1).astype(np.float32)
            items = [{"latents": latents[i], "scores": scores[i]} for i in range(len(records))]
            if self.arm.winner == "real_reconstructed":
                real = self.listener.heard_again(self.features.stack(indices, ("latents",))["latents"])
                items = [item | {"reconstructed": real[i]} for i, item in enumerate(items)]
            writer.write(shard, [r["id"] for r in records], items)
            progress.update(rows.stop)
            preemption.exit_if_requested(f"{self.name} round {number}, candidates {rows.stop}")
        writer.finish()
        return FeatureSource(folder)

    def _write_pairs(self, folder: pathlib.Path, ids: list[str], scores: np.ndarray, pairs: pairing.Pairs) -> None:
        logging.write_jsonl(folder / "scores.jsonl", (
            {"id": name, "candidate": n} | {term: round(float(value), 5) for term, value in zip(TERMS, scores[row, n])}
            for row, name in enumerate(ids) for n in range(scores.shape[1])
        ))
        logging.write_jsonl(folder / "pairs.jsonl", (
            {
                "id": name, "winner": int(pairs.best[row]) if self.arm.winner == "best_of_n" else self.arm.winner,
                "loser": int(pairs.worst[row]), "gap": round(float(pairs.gap[row]), 5), "kept": bool(pairs.kept[row]),
            }
            for row, name in enumerate(ids)
        ))

    def _validation_clips(self) -> dict[str, Any]:
        """Held-out clips, their video embeddings, and what the reward says of their real audio heard through the codec."""
        source = self.run.source("validation")
        features = FeatureSource(self.run.folder("extract") / "validation")
        indices = list(range(min(len(source), self.run.config.evaluate.batch_size)))
        video = self.listener.embed_video(np.stack([source[i]["video"] for i in indices]))
        mels = self.listener.decode(features.stack(indices, ("latents",))["latents"])
        real = self.listener.score(video, mels[:, None])
        return {"features": features, "indices": indices, "video": video, "real": real}

    def _validate(self, folder: pathlib.Path, variables: Params) -> None:
        clips, section = self.validation, self.section
        generator = Generator(self.run, clips["features"])
        latents = np.concatenate(list(generator.latents(
            variables, clips["indices"], seed=self.seed, purpose="validation", guidance_scale=section.candidate_guidance,
            steps=section.candidate_steps, batch_size=self.run.config.evaluate.batch_size,
        )))
        mels = self.listener.decode(latents[:, 0])
        scores = self.listener.score(clips["video"], mels[:, None])
        figures = {name: float(value.mean()) for name, value in scores.items()}
        figures |= {f"{name}_reconstructed": float(value.mean()) for name, value in clips["real"].items()}
        logging.write_atomically(folder / "validation.json", json.dumps(figures, indent=1) + "\n")


def arm(name: str) -> Callable[[Run, pathlib.Path, int | None], str]:
    """The stage function of the arm `config.arms[name]`."""

    def make(run: Run, folder: pathlib.Path, seed: int) -> str:
        this = Arm(run, name, folder, seed)
        tuned = this.continue_flow() if this.arm.ranking == "none" else this.rounds()
        return checkpoint.export(folder / "params", tuned)

    return make
