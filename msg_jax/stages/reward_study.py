"""Measures rewards: how each ranks candidates of the base models for one video, and whether it hears controlled mistakes.

The truth is event F1 by the judge, which no reward ever saw; the mistakes are made by hand in real sound (data/edits.py). In
the stage's folder: `scores/` holds what every reward and the judge say of every candidate, so that a killed study goes on
where it was; `reward_study.json` the figures, with intervals over videos and the value of every seed; `table.txt` the same to
be read.
"""

from collections.abc import Callable, Sequence
import functools
import json
import math
import pathlib
import statistics
from typing import Any
import zlib

import jax
from ml_collections import ConfigDict
import numpy as np

from msg_jax import networks
from msg_jax.clip import ClipSpec
from msg_jax.data import edits, mel, scenes
from msg_jax.data.features import FeatureSource
from msg_jax.errors import UserError
from msg_jax.evaluation import bootstrap, events, ranking, report
from msg_jax.infra import checkpoint, logging, preemption, runtime
from msg_jax.infra.record import read_record
from msg_jax.models.sf_cavp import RewardWeights
from msg_jax.preference.reward import Reward
from msg_jax.stages.common import Run, text_digest
from msg_jax.stages.generator import Generator
from msg_jax.stages.listening import Listener, RewardModel
from msg_jax.types import Params

JUDGE = "judge"  # beside the rewards, where mistakes are to be heard: the event F1 that it gives
KEEP_SHARES = {"half": 0.5, "quarter": 0.25}  # of the pairs, those with the largest difference in reward

Scores = dict[str, np.ndarray]
Measure = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""What is studied: frames (B, T, H, W, 3) uint8 and candidates' log-mels (B, N, T, M) -> scores (B, N), higher is better."""


def judged_candidates(
    generator: Generator, listener: Listener, variables: Params, indices: Sequence[int], truth: Sequence[np.ndarray], *,
    tolerance_sec: float, **sampling: Any,
) -> tuple[np.ndarray, Scores]:
    """Log-mels (V, N, T, M) of candidates for clips whose true events are `truth`, and their `Listener.f1`, each (V, N).

    `sampling` is what `Generator.latents` wants to know.
    """
    mels = listener.decode(np.concatenate(list(generator.latents(variables, indices, **sampling))))
    return mels, listener.f1(truth, mels, tolerance_sec)


class Cosines:
    """Makes rewards that are weighted sums of the cosines of SF-CAVP and, where there are any, of sound events.

    An entry is {"sf_cavp": folders of finished stages with commas between, or "" for the run's own; "weights": {term: weight},
    or {} for the run's own}; with weights of 0 alone it is left out. Sound events are those of the stage beside the folder.
    Several folders are an ensemble: the mean of what each says, in units of its deviation among the candidates of a video.
    """

    def __init__(self, run: Run):
        self._run = run
        self._opened: dict[str, tuple[RewardModel, str]] = {}
        self._last: dict[tuple[str, str], tuple[np.ndarray, Any]] = {}

    def __call__(self, name: str, entry: ConfigDict) -> Measure | None:
        field = f"config.reward_study.rewards.{name}"
        folders = [folder.strip() for folder in entry.sf_cavp.split(",")]
        weights = {term: weight for term, weight in (entry.weights or self._own_weights()).items() if weight}
        for folder in folders:
            model = self._open(field, folder)
            missing = set(weights) - set(model.terms)
            if missing:
                term = min(missing)
                raise UserError(f"{field}.weights.{term}={weights[term]:g}, and {folder or 'this run'} has only "
                                f"{', '.join(model.terms)}: set it to 0, which leaves out a reward of nothing else.")
        if not weights:
            return None

        def measure(frames: np.ndarray, log_mels: np.ndarray) -> np.ndarray:
            said = []
            for folder in folders:
                terms = self._terms(folder, frames, log_mels)
                scores = sum(weight * terms[term] for term, weight in weights.items())
                said.append((scores - scores.mean()) / (scores.std(axis=1).mean() or 1.0))
            return np.mean(said, axis=0)

        return measure

    @property
    def digests(self) -> dict[str, str]:
        """The digest of every SF-CAVP that was asked for, by folder."""
        return {folder: digest for folder, (_, digest) in self._opened.items()}

    def _own_weights(self) -> dict[str, float]:
        config = self._run.config
        return {term: weight for term, weight in config.reward.items() if term != "events" or config.sound_events.kinds}

    def _open(self, field: str, folder: str) -> RewardModel:
        """The networks in a folder. Raises UserError where there are none, or none for this run's clips."""
        if folder not in self._opened:
            path = pathlib.Path(folder) if folder else self._run.folder("sf_cavp")
            record = read_record(path)
            if record is None or record["stage"] != "sf_cavp" or not record["finished"]:
                raise UserError(f"{field}.sf_cavp={folder} is no folder of a finished sf_cavp stage: give one, or none.")
            if difference := self._run.clip.difference(ClipSpec.from_dict(record["clip_spec"])):
                raise UserError(f"{field}.sf_cavp={folder} was trained on other clips than this run's: {difference}.")
            params, found = {"sf_cavp": checkpoint.load(path / "params")}, None
            beside = read_record(path.parent / "sound_events")
            if beside and beside["finished"] and beside["upstream"].get("sf_cavp") == record["digest"]:
                found = networks.sound_events(beside["config"]["sound_events"]["kinds"])
                params["sound_events"] = checkpoint.load(path.parent / "sound_events" / "params")
            unweighted = RewardWeights(semantic=0.0, dynamic=0.0, window=0.0, events=0.0)  # only the cosines are kept
            reward = Reward(networks.reward_model(ConfigDict(record["config"]), self._run.clip), found, unweighted)
            self._opened[folder] = RewardModel(self._run, reward, self._run.local(params)), record["digest"]
        return self._opened[folder][0]

    def _terms(self, folder: str, frames: np.ndarray, log_mels: np.ndarray) -> Scores:
        """Every cosine (B, N); rewards that differ in weights alone ask for the same ones."""
        model, _ = self._opened[folder]
        video = self._once(folder, "video", frames, model.embed_video)
        return self._once(folder, "terms", log_mels, functools.partial(model.score, video))

    def _once(self, folder: str, what: str, array: np.ndarray, function: Callable) -> Any:
        """`function(array)`, computed anew only for another array than the last."""
        if self._last.get((folder, what), (None, None))[0] is not array:
            self._last[folder, what] = array, function(array)
        return self._last[folder, what][1]


KINDS: dict[str, Callable[[Run], Callable[[str, ConfigDict], Measure | None]]] = {"sf_cavp": Cosines}
"""What makes a reward of an entry of `config.reward_study.rewards`, by the field that the entry has."""


class Study:
    """The held-out clips of a split, the rewards, and the networks that sample and judge."""

    def __init__(self, run: Run):
        self.run, self.section = run, run.config.reward_study
        split = self.section.split
        self.features = FeatureSource(run.folder("extract") / split)
        source = run.source(split, self.features.kept)
        if not source.class_names:
            raise UserError(f"A reward is studied by event truth, which {run.config.data.source} does not have: take "
                            "data.source=scenes, or a data set with events.")
        for kind in self.section.edits:
            if not edits.is_kind(kind):
                raise UserError(f"config.reward_study.edits has {kind!r}: choose from {', '.join(edits.KINDS)}.")
        self.makers = {kind: maker(run) for kind, maker in KINDS.items()}
        measures = {name: self._measure(name, entry) for name, entry in self.section.rewards.items()}
        self.rewards = {name: measure for name, measure in measures.items() if measure is not None}
        if self.section.baseline and self.section.baseline not in self.rewards:
            raise UserError(f"config.reward_study.baseline={self.section.baseline} is none of the rewards: choose from "
                            f"{', '.join(self.rewards)}, or leave it empty.")
        self.listener = Listener(run, source.class_names)
        self.generator = Generator(run, self.features)
        self.indices = list(range(min(self.section.clips, len(source))))
        records = [source[i] for i in self.indices]
        self.frames = np.stack([record["video"] for record in records])
        self.events = np.stack([record["events"] for record in records])
        self.truth = events.true_events(self.events)

    def _measure(self, name: str, entry: ConfigDict) -> Measure | None:
        kinds = [kind for kind in KINDS if kind in entry]
        if len(kinds) != 1 or name == JUDGE:
            raise UserError(f"config.reward_study.rewards.{name} is no reward: it needs one of the fields {', '.join(KINDS)}, "
                            f"and another name than {JUDGE}.")
        return self.makers[kinds[0]](name, entry)

    def candidates(self, seed: int, guidance: float) -> Scores:
        """What every reward and the judge say of candidates of one base model, each (V, N)."""
        section = self.section
        mels, truth = judged_candidates(
            self.generator, self.listener, self.run.load("base", seed), self.indices, self.truth, seed=seed, purpose="reward",
            tolerance_sec=section.tolerance_sec, candidates=section.candidates, guidance_scale=guidance, steps=section.steps,
            batch_size=self.run.config.evaluate.batch_size,
        )
        return truth | self._said(mels)

    def edits(self) -> Scores:
        """The same of real sound, untouched first, then each of `config.reward_study.edits`: (V, 1 + kinds), NaN if impossible.

        Raises UserError if the scenes on disk are not those that would be made today.
        """
        kinds, spec, data = list(self.section.edits), self.run.clip, self.run.config.data
        sounds, possible = [], np.ones((len(self.indices), 1 + len(kinds)), bool)
        for i, row in enumerate(self.indices):
            index = self.features.kept[row]
            recording = scenes.record_sound(data.seed, self.section.split, index, spec)
            if not np.array_equal(recording.events(recording.takes), self.events[i]):
                raise UserError(f"The scenes in config.data.cache={data.cache} were made by another version: delete them.")
            untouched = recording.waveform(recording.takes)
            sounds.append(untouched)
            for k, kind in enumerate(kinds, 1):
                # Shifts by any time are drawn alike: of the same event in the same direction, where there is room.
                draw = zlib.crc32(kind.split("_")[0].encode())
                made = edits.edit(recording, kind, np.random.default_rng((self.run.config.seed, index, draw)))
                possible[i, k] = made is not None
                sounds.append(untouched if made is None else made[0])
        mels = mel.log_mel(np.stack(sounds), spec.mel)
        if self.section.through_codec:
            mels = self.listener.decode(self.listener.encode(mels))
        mels = mels.reshape(*possible.shape, *mels.shape[1:])
        judged = {JUDGE: self.listener.f1(self.truth, mels, self.section.tolerance_sec)["event_f1"]}
        return {name: np.where(possible, scores, np.nan) for name, scores in (self._said(mels) | judged).items()}

    def _said(self, mels: np.ndarray) -> Scores:
        return {name: np.asarray(measure(self.frames, mels), np.float64) for name, measure in self.rewards.items()}


def make(run: Run, folder: pathlib.Path, seed: int | None) -> str:
    study = Study(run)
    section, seeds = run.config.reward_study, run.config.seeds
    jobs = {f"seed_{seed}-{guidance}": functools.partial(study.candidates, seed, guidance)
            for guidance in section.guidance_scales for seed in seeds}
    no_edits = None if run.config.data.source == "scenes" else f"sound of {run.config.data.source} cannot be played again"
    if not no_edits:
        jobs["edits"] = study.edits
    progress = logging.Progress("reward_study", len(jobs), "set")
    for i, (name, job) in enumerate(progress.over(jobs.items())):
        path = folder / "scores" / f"{name}.json"
        if i % jax.process_count() == jax.process_index() and not path.exists():
            scores = {said: array.tolist() for said, array in job().items()}
            logging.write_atomically(path, json.dumps(scores))
            preemption.exit_if_requested(f"reward_study {name}")
    runtime.barrier(f"reward_study {folder}")
    if jax.process_index():
        return ""  # process 0 writes what is made of all scores

    def scores(name: str) -> Scores:
        return {said: np.array(rows) for said, rows in json.loads((folder / "scores" / f"{name}.json").read_text()).items()}

    results = {
        "split": section.split, "clips": len(study.indices), "candidates": section.candidates, "seeds": list(seeds),
        "rewards": section.rewards.to_dict(), "networks": study.makers["sf_cavp"].digests,
        "ranking": [
            ranking_results(
                {seed: scores(f"seed_{seed}-{guidance}") for seed in seeds}, list(study.rewards), section, run.config.seed
            )
            | {"guidance": guidance} for guidance in section.guidance_scales
        ],
        "edits": None if no_edits else false_orders(scores("edits"), section, run.config.seed),
        "edits_reason": no_edits, "edits_through_codec": section.through_codec,
    }
    text = json.dumps(results, indent=1)
    table = format_results(results)
    logging.write_atomically(folder / "reward_study.json", text + "\n")
    logging.write_atomically(folder / "table.txt", table + "\n")
    logging.info("%s", table)
    return text_digest(text)


def ranking_results(by_seed: dict[int, Scores], rewards: Sequence[str], section: ConfigDict, seed: int) -> dict[str, Any]:
    """The figures of `rewards` and, paired, minus those of `config.reward_study.baseline`, from scores (V, N) by seed."""
    options = dict(seed=seed, resamples=section.bootstrap)
    tables = {name: {s: _tables(scores[name], scores) for s, scores in by_seed.items()} for name in rewards}

    def figures(name: str, baseline: str | None = None) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for figure in next(iter(tables[name].values())):
            parts = {s: each[figure] for s, each in tables[name].items()}
            if baseline:
                parts = {s: np.hstack([part, tables[baseline][s][figure]]) for s, part in parts.items()}
            found |= _figure(figure, parts, **options)
        return found

    truth = {s: scores["event_f1"] for s, scores in by_seed.items()}
    return {
        "event_f1": _figure("value", {s: _of_mean(f1.mean(axis=1)) for s, f1 in truth.items()}, **options)["value"],
        "event_f1_best": _figure("value", {s: _of_mean(f1.max(axis=1)) for s, f1 in truth.items()}, **options)["value"],
        "rewards": {name: figures(name) for name in tables},
        "baseline": section.baseline,
        "differences": {name: figures(name, section.baseline) for name in tables if section.baseline not in ("", name)},
    }


def _tables(reward: np.ndarray, scores: Scores) -> dict[str, np.ndarray]:
    """Tables (V, 3) of what is told of a reward, by figure."""
    tables = ranking.ranking_tables(reward, scores["event_f1"])
    for name, share in KEEP_SHARES.items():
        tables[f"best_beats_worst_{name}"] = ranking.order_table(reward, scores["event_f1"], share)
    for part in ("onset_f1", "class_f1"):
        tables[f"correlation_{part}"] = ranking.correlation_table(reward, scores[part])
        tables[f"rank_correlation_{part}"] = ranking.correlation_table(reward, scores[part], ranks=True)
    return tables


def _of_mean(values: np.ndarray) -> np.ndarray:
    """The table (V, 3) of a plain mean."""
    return np.stack([values, np.ones_like(values), np.ones_like(values)], axis=1)


def false_orders(scores: Scores, section: ConfigDict, seed: int) -> dict[str, dict[str, Any]]:
    """How often each reward, and the judge, prefer an edited sound to the untouched one, from scores (V, 1 + kinds)."""
    return {
        name: {
            key: value for k, kind in enumerate(section.edits, 1)
            for key, value in _figure(
                kind, {0: ranking.false_order_table(said[:, 0], said[:, k])}, seed=seed, resamples=section.bootstrap
            ).items()
        }
        for name, said in scores.items()
    }


def _figure(name: str, by_seed: dict[int, np.ndarray], **options: Any) -> dict[str, Any]:
    """{name: value} of the tables (V, 3) of all seeds, or of (V, 6) the difference between first and second half.

    A value has an interval over videos, each resampled with all its seeds; of several seeds also the value of each (`seeds`),
    their `mean` and `spread`, the standard deviation.
    """
    pooled = sum(by_seed.values())
    used = pooled[pooled.any(axis=1)]
    seeds = {seed: _finite(_statistic(table.sum(axis=0))) for seed, table in by_seed.items()}
    known = [value for value in seeds.values() if value is not None]
    if not known or not math.isfinite(_statistic(used.sum(axis=0))):
        return {name: None, f"{name}_reason": "no video whose candidates differ as they must for this figure"}
    found = bootstrap.interval(used, _statistic, **options)
    figure: dict[str, Any] = {key: value for key, value in found.items() if math.isfinite(value)}
    figure |= {"videos": len(used), "ignored": len(pooled) - len(used)}
    if len(seeds) > 1:
        figure["seeds"] = {str(seed): value for seed, value in seeds.items()}
        figure |= {"mean": statistics.mean(known), "spread": statistics.stdev(known) if len(known) > 1 else None}
    return {name: figure}


def _statistic(sums: np.ndarray) -> np.ndarray:
    first = ranking.quotient(sums[..., :3])
    return first if sums.shape[-1] == 3 else first - ranking.quotient(sums[..., 3:])


def _finite(value: np.ndarray) -> float | None:
    return float(value) if np.isfinite(value) else None


def format_results(results: dict[str, Any]) -> str:
    """The figures as plain text: rewards across, figures down."""
    seeds = ", ".join(map(str, results["seeds"]))
    blocks = [f"{results['clips']} {results['split']} clips, {results['candidates']} candidates each; intervals of 95 % over "
              "videos. Truth: event F1 by the judge."]
    for part in results["ranking"]:
        scale, several = f"Guidance {part['guidance']:g}", len(results["seeds"]) > 1
        blocks += [f"{scale}, seeds {seeds} together: mean event F1 {part['event_f1']['value']:.3f}, of the best candidate "
                   f"{part['event_f1_best']['value']:.3f}", report.format_figures(part["rewards"])]
        if several:
            spread = _over_seeds(part["rewards"])
            blocks += [f"{scale}: mean and standard deviation of seeds {seeds}", report.format_figures(spread)]
        if part["differences"]:
            blocks += [f"{scale}, seeds {seeds} together: minus {part['baseline']}", report.format_figures(part["differences"])]
    if results["edits"]:
        heard = "all heard through the codec" if results["edits_through_codec"] else "all heard as they are"
        blocks += [f"How often edited sound is preferred to the untouched, {heard}; ties count half",
                   report.format_figures(results["edits"])]
    else:
        blocks.append(f"Edited sound: not computed, {results['edits_reason']}")
    return "\n\n".join(blocks)


def _over_seeds(columns: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        name: {
            key: {"value": value["mean"], "std": value["spread"]} if isinstance(value, dict) and value["spread"] is not None
            else value for key, value in row.items()
        }
        for name, row in columns.items()
    }
