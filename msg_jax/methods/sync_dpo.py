"""SyncDPO: preference tuning against rule-made distortions of real sound (arXiv 2605.12179), without candidates or reward.

The winner of a pair is a clip's own sound. The loser is the same sound with its timing distorted on the fly by one of the
rules of `preference/distortions.py`. A curriculum goes from coarse distortions to subtle ones.

In the arm's folder: `pairs.jsonl` has rule and strength of every pair, which are functions of seed and step; `training/` has
metrics per rule (pairs, implicit accuracy, margin); `rules.json` sums up each rule and level, on training clips and on
validation clips.
"""

from collections.abc import Iterator
import dataclasses
import json
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from msg_jax.data.features import FeatureSource
from msg_jax.errors import UserError
from msg_jax.infra import logging
from msg_jax.infra.random import key_for
from msg_jax.losses.preference import PairErrors, margins
from msg_jax.methods.method import Given, Job, Method, at_once
from msg_jax.preference import distortions
from msg_jax.tasks.flow import GeneratorTask
from msg_jax.tasks.preference import PreferenceTask
from msg_jax.types import STREAMS, Array, Params, PreferenceBatch

RULE_METRICS = ("pairs", "accuracy", "margin")
"""Metrics of each rule, NAME/RULE in `metrics.jsonl`: sums and means since the last logged row."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyncDpo(Method):
    """`rounds` x `steps` steps on real clips and their distortions.

    `curriculum`: `linear` goes from coarse to subtle distortions; `uniform` uses all levels from the start.

    Where sound and pictures are generated together, `distorted` is what a loser has out of time: its sound, its pictures, or
    both apart from each other. `scored` are the streams whose errors tell winner and loser apart.
    """

    kind: ClassVar[str] = "sync_dpo"
    title: ClassVar[str] = "SyncDPO"
    summary: ClassVar[str] = "base tuned against rule-made distortions of real sound"
    curriculum: Literal["linear", "uniform"] = "linear"
    distorted: Literal["sound", "picture", "both"] = "sound"
    scored: tuple[Literal["sound", "picture"], ...] = STREAMS

    def check(self, name, config):
        if not self.scored:
            raise UserError(f"config.arms.{name}.scored is empty: choose from {', '.join(STREAMS)}.")
        if config.base.network != "joint" and self.distorted != "sound":
            raise UserError(f"config.arms.{name}.distorted={self.distorted} needs pictures that are generated too: set it to "
                            "sound, or config.base.network=joint.")

    def training(self, preference):
        return at_once(preference)

    def task(self, given):
        return SyncDPOTask(
            given.run, given.source, given.section, given.seed, given.start, given.dims, given.name, self.scored,
            self.curriculum, self.distorted,
        )

    def tune(self, job: Job) -> Params:
        section = self.training(job.preference)
        task = self.task(
            Given(job.run, job.features, section, job.seed, job.load(self.start), job.features.dims, job.name)
        )
        logging.write_jsonl(job.folder / "pairs.jsonl", task.pairs())
        tuned = task.result(job.run.fit(task, section, job.folder / "training", seed=job.seed))
        held_out = task.held_out_margins(FeatureSource(job.run.folder("extract") / "validation"), tuned)
        if jax.process_index() == 0:  # it alone has the metrics
            found = summary(task.rules, logging.read_metrics(job.folder / "training" / "metrics.jsonl"), held_out)
            logging.write_atomically(job.folder / "rules.json", json.dumps(found, indent=1) + "\n")
            for level, metrics in found["levels"].items():
                logging.info("%-13s %-6s rules: accuracy %.3f on held-out pairs", job.name, level,
                             metrics["validation"]["accuracy"])
        return tuned


@dataclasses.dataclass
class SyncDPOTask(PreferenceTask):
    """Pairs of real clips and their distortions; `state.tally` (R, 3) sums each rule's metrics since the last logged row."""

    curriculum: str = "linear"
    distorted: str = "sound"

    def __post_init__(self):
        super().__post_init__()
        self.rules = distortions.make_rules(self.run.clip.duration_sec)

    def init(self, rng):
        return super().init(rng).replace(tally=jnp.zeros((len(self.rules), len(RULE_METRICS))))

    def drawn(self, step: Array) -> tuple[Array, Array]:
        """Rules (B,) and strengths (B,) of a step's pairs."""
        section = self.section
        rule_key, strength_key = jax.random.split(key_for(self.seed, f"{self.name}/rules", step))
        probabilities = distortions.schedule(step, section.steps, self.curriculum, self.rules)
        index = jax.random.choice(rule_key, len(self.rules), (section.batch_size,), p=probabilities)
        return index, distortions.strengths(strength_key, index, self.rules)

    def batch_shapes(self):
        return GeneratorTask.batch_shapes(self)  # the losers are made in the step

    def losers(self, key: Array, latents: Array, index: Array, strength: Array) -> Array:
        """Latents (B, T, C) with the distorted streams out of time. Pictures apart from the sound follow another rule."""
        hz, channels = self.run.clip.latent_hz, self.run.clip.latent_channels
        sound, pictures = latents[..., :channels], latents[..., channels:]
        if self.distorted == "picture":
            pictures = distortions.distort(key, pictures, index, strength, self.rules, hz)
        else:
            sound = distortions.distort(key, sound, index, strength, self.rules, hz)
        if self.distorted == "both":
            strength_key, key = jax.random.split(jax.random.fold_in(key, 1))
            other = jnp.asarray(distortions.another_rule(self.rules))[index]
            strength = distortions.strengths(strength_key, other, self.rules)
            pictures = distortions.distort(key, pictures, other, strength, self.rules, hz)
        return jnp.concatenate([sound, pictures], axis=-1)

    def step(self, state, batch, rng, frozen):
        index, strength = self.drawn(state.step)
        loser_key, rng = jax.random.split(rng)
        real = batch["latents"]
        batch = batch | {"winner": real, "loser": self.losers(loser_key, real, index, strength), "rule": index}
        tuned, metrics = super().step(state, batch, rng, frozen)
        logged_before = state.step % self.run.config.every.log == 0
        tally = jnp.where(logged_before, 0.0, state.tally) + metrics.pop("tally") * len(real)
        pairs, hits, total = tally.T
        for name, values in zip(RULE_METRICS, (pairs, hits / pairs, total / pairs)):
            metrics |= {f"{name}/{rule}": value for rule, value in zip(self.rules, values)}
        return tuned.replace(tally=tally), metrics

    def more_metrics(self, errors, rows):
        inside = margins(errors, self.section.beta)
        each = jnp.stack([jnp.ones_like(inside), inside > 0, inside], axis=1)
        return {"tally": jax.nn.one_hot(rows["rule"], len(self.rules)).T @ each / len(inside)}

    def pairs(self) -> Iterator[dict]:
        """One row per pair of the training."""
        drawn = jax.jit(jax.vmap(self.drawn))(jnp.arange(self.section.steps))
        names = list(self.rules)
        for step, (index, strength) in enumerate(zip(*map(np.asarray, drawn)), 1):
            for item in range(len(index)):
                yield {"step": step, "item": item, "rule": names[index[item]], "strength": round(float(strength[item]), 4)}

    def held_out_margins(self, source: FeatureSource, tuned: Params) -> dict[str, np.ndarray]:
        """Margins (N,) of each rule on held-out clips; noise and distortions are the same for every arm."""
        clips = min(len(source), self.run.config.evaluate.clips)
        size = min(clips, self.run.config.evaluate.batch_size)

        @jax.jit
        def inside(tuned, reference, batch, key, rule):
            loser_key, strength_key, noise_key, time_key = jax.random.split(key, 4)
            real, index = batch["latents"], jnp.full(size, rule)
            losers = self.losers(loser_key, real, index, distortions.strengths(strength_key, index, self.rules))
            pairs = PreferenceBatch(winner=real, loser=losers, real=real, conditions=self.model.conditions.from_batch(batch))
            noise, t = jax.random.normal(noise_key, real.shape), self.times(time_key, size)
            errors = PairErrors(*self.errors(tuned, pairs, noise, t), *self.errors(reference, pairs, noise, t))
            return margins(errors, self.section.beta)

        found = {name: [] for name in self.rules}
        for start in range(0, clips - size + 1, size):  # whole batches only: the rule another_clip uses a batch's next clip
            batch = source.stack(range(start, start + size), tuple(self.batch_shapes()))
            for rule, name in enumerate(self.rules):
                key = jax.random.fold_in(key_for(self.seed, "rules/validation", start), rule)
                found[name].append(np.asarray(inside(tuned, self.reference, batch, key, rule)))
        return {name: np.concatenate(parts) for name, parts in found.items()}


def summary(rules: dict[str, distortions.Rule], rows: list[dict], held_out: dict[str, np.ndarray]) -> dict[str, dict]:
    """Pairs, and accuracy and margin over the last third of the `rows` of metrics, of each rule and level.

    Training pairs prove little, because a network memorises pairs; the metrics of held-out clips stand beside them.
    """
    late = [row for row in rows if 3 * row["step"] > 2 * rows[-1]["step"]]

    def of(names: list[str]) -> dict[str, Any]:
        logged = [[row[f"{metric}/{name}"] for metric in RULE_METRICS] for row in late for name in names]
        logged = np.array([row for row in logged if row[0]]).reshape(-1, len(RULE_METRICS))
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
