"""SyncDPO: preference tuning against rule-made distortions of real sound (arXiv 2605.12179). No candidates and no reward.

The winner of a pair is a clip's own sound, the loser the same sound with its timing distorted on the fly, by one of the rules
of `preference/distortions.py`; a curriculum goes from coarse distortions to fine ones.

In the arm's folder: `pairs.jsonl` (rule and strength of every pair, which are functions of seed and step), `training/`, whose
metrics have the pairs of each rule, their implicit accuracy and margin since the row before, and `rules.json`, which says what
was learnt of each rule and level, on training clips and on validation clips.
"""

from collections.abc import Iterator
import json
import pathlib

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from msg_jax import train
from msg_jax.data.features import FeatureSource
from msg_jax.errors import UserError
from msg_jax.infra import logging
from msg_jax.losses import flow
from msg_jax.losses.preference import PairErrors, margins
from msg_jax.preference import distortions
from msg_jax.stages.base import conditions_of
from msg_jax.stages.common import Run
from msg_jax.stages.preference import PreferenceTask
from msg_jax.types import Array, Params, PreferenceBatch

FIGURES = ("pairs", "accuracy", "margin")  # of each rule, in metrics as FIGURE/RULE


class SyncDPOTask(PreferenceTask):
    """Pairs of real clips and their distortions; `state.tally` (R, 3) has the sums of each rule since the last logged row."""

    def __post_init__(self):
        super().__post_init__()
        self.rules = distortions.make_rules(self.run.clip.duration_sec)

    def init(self, rng):
        return super().init(rng).replace(tally=jnp.zeros((len(self.rules), len(FIGURES))))

    def drawn(self, step: Array) -> tuple[Array, Array]:
        """Rules (B,) and strengths (B,) of a step's pairs."""
        section = self.section
        rule_key, strength_key = jax.random.split(train.key_for(self.seed, f"{self.name}/rules", step))
        probabilities = distortions.schedule(step, section.steps, section.curriculum, self.rules)
        index = jax.random.choice(rule_key, len(self.rules), (section.batch_size,), p=probabilities)
        return index, distortions.strengths(strength_key, index, self.rules)

    def losers(self, key: Array, latents: Array, index: Array, strength: Array) -> Array:
        return distortions.distort(key, latents, index, strength, self.rules, self.run.clip.latent_hz)

    def step(self, state, batch, rng, frozen):
        index, strength = self.drawn(state.step)
        loser_key, rng = jax.random.split(rng)
        real = batch["latents"]
        batch = batch | {"winner": real, "loser": self.losers(loser_key, real, index, strength), "rule": index}
        tuned, metrics = super().step(state, batch, rng, frozen)
        logged_before = state.step % self.run.config.every.log == 0
        tally = jnp.where(logged_before, 0.0, state.tally) + metrics.pop("tally") * len(real)
        pairs, hits, total = tally.T
        for figure, values in zip(FIGURES, (pairs, hits / pairs, total / pairs)):
            metrics |= {f"{figure}/{rule}": value for rule, value in zip(self.rules, values)}
        return tuned.replace(tally=tally), metrics

    def more_metrics(self, errors, batch):
        inside = margins(errors, self.section.beta)
        each = jnp.stack([jnp.ones_like(inside), inside > 0, inside], axis=1)
        return {"tally": jax.nn.one_hot(batch["rule"], len(self.rules)).T @ each / len(inside)}

    def pairs(self) -> Iterator[dict]:
        """One row for every pair of the training."""
        drawn = jax.jit(jax.vmap(self.drawn))(jnp.arange(self.section.steps))
        names = list(self.rules)
        for step, (index, strength) in enumerate(zip(*map(np.asarray, drawn)), 1):
            for item in range(len(index)):
                yield {"step": step, "item": item, "rule": names[index[item]], "strength": round(float(strength[item]), 4)}

    def held_out(self, source: FeatureSource, tuned: Params) -> dict[str, np.ndarray]:
        """Margins (N,) of every rule on held-out clips; noise and distortions are the same for every arm."""
        clips = min(len(source), self.run.config.evaluate.clips)
        size = min(clips, self.run.config.evaluate.batch_size)

        @jax.jit
        def inside(tuned, reference, batch, key, rule):
            loser_key, strength_key, noise_key, time_key = jax.random.split(key, 4)
            real, index = batch["latents"], jnp.full(size, rule)
            losers = self.losers(loser_key, real, index, distortions.strengths(strength_key, index, self.rules))
            pairs = PreferenceBatch(winner=real, loser=losers, real=real, conditions=conditions_of(batch))
            noise, t = jax.random.normal(noise_key, real.shape), flow.sample_t(time_key, size)
            errors = PairErrors(*self.errors(tuned, pairs, noise, t), *self.errors(reference, pairs, noise, t))
            return margins(errors, self.section.beta)

        found = {name: [] for name in self.rules}
        for start in range(0, clips - size + 1, size):  # whole batches: the next clip of a filled-up one is no other clip
            batch = source.stack(range(start, start + size), ("latents", "clip", "sync", "text"))
            for rule, name in enumerate(self.rules):
                key = jax.random.fold_in(train.key_for(self.seed, "rules/validation", start), rule)
                found[name].append(np.asarray(inside(tuned, self.reference, batch, key, rule)))
        return {name: np.concatenate(parts) for name, parts in found.items()}


def summary(rules: dict[str, distortions.Rule], rows: list[dict], held_out: dict[str, np.ndarray]) -> dict[str, dict]:
    """What was learnt of each rule and level: pairs seen in `rows` of metrics, and accuracy and margin in their last third.

    On training pairs they prove little, for a network remembers pairs; those of held-out clips stand beside them.
    """
    late = [row for row in rows if 3 * row["step"] > 2 * rows[-1]["step"]]

    def of(names):
        logged = [[row[f"{figure}/{name}"] for figure in FIGURES] for row in late for name in names]
        logged = np.array([row for row in logged if row[0]]).reshape(-1, len(FIGURES))
        pairs, unseen = logged[:, :1], np.concatenate([held_out[name] for name in names])
        accuracy, margin = (pairs * logged[:, 1:]).sum(0) / pairs.sum() if len(logged) else (None, None)
        return {
            "pairs": round(sum(row[f"pairs/{name}"] for row in rows for name in names)),
            "training": {"pairs": round(pairs.sum()), "accuracy": accuracy, "margin": margin},
            "validation": {
                "pairs": len(unseen), "accuracy": float((unseen > 0).mean()), "margin": float(unseen.mean()),
            },
        }

    levels = {level: [name for name, rule in rules.items() if rule.level == level] for level in distortions.LEVELS}
    return {
        "levels": {level: of(names) for level, names in levels.items()},
        "rules": {name: {"level": rule.level, "unit": rule.unit} | of([name]) for name, rule in rules.items()},
    }


def check_arm(name: str, arm: ConfigDict) -> None:
    """Raises UserError if the settings of an arm with rules contradict each other."""
    if arm.get("curriculum") not in distortions.CURRICULA or arm.winner != "real":
        raise UserError(
            f"config.arms.{name} has curriculum={arm.get('curriculum')!r}, winner={arm.winner!r}: rules need a curriculum from "
            f"{', '.join(distortions.CURRICULA)} and the winner real."
        )


def tune(run: Run, name: str, section: ConfigDict, seed: int, folder: pathlib.Path, start: Params) -> Params:
    """The variables `start` tuned against distortions, for as many steps as all rounds of another arm have together."""
    section = ConfigDict(section.to_dict() | {"steps": section.rounds * section.steps})
    features = FeatureSource(run.folder("extract") / "train")
    task = SyncDPOTask(run, features, section, seed, start, features.dims, name=name)
    logging.write_jsonl(folder / "pairs.jsonl", task.pairs())
    state = train.fit(task, seed=seed, **run.fit_options(section, folder / "training"))
    tuned = task.result(state)
    held_out = task.held_out(FeatureSource(run.folder("extract") / "validation"), tuned)
    if jax.process_index() == 0:  # which has the metrics
        found = summary(task.rules, logging.read_metrics(folder / "training" / "metrics.jsonl"), held_out)
        logging.write_atomically(folder / "rules.json", json.dumps(found, indent=1) + "\n")
        for level, figures in found["levels"].items():
            logging.info("%-13s %-6s rules: %.3f of held-out pairs told apart", name, level, figures["validation"]["accuracy"])
    return tuned
