"""Measures rewards: how each ranks the base models' candidates for one video, and whether it notices controlled mistakes.

The truth is event F1 by the judge, which no reward ever saw. The mistakes are edits of real sound (data/edits.py). In the
stage's folder, `scores/` holds the scores of every candidate by every reward and the judge, so that a killed study continues;
`reward_study.json` the metrics, with intervals over videos and the value of every seed; `table.txt` the same as text.
"""

from collections.abc import Callable, Sequence
import functools
import json
import math
import statistics
from typing import Any
import zlib

import jax
import numpy as np

from msg_jax import networks, storage
from msg_jax.clip import ClipSpec
from msg_jax.config import tree
from msg_jax.config.schema import Config, RewardStudy, StudiedReward
from msg_jax.data import edits, mel, scenes
from msg_jax.data.features import FeatureSource
from msg_jax.errors import UserError
from msg_jax.evaluation import bootstrap, events, ranking, report
from msg_jax.inference.sampler import Sampler
from msg_jax.inference.scorer import CodecAndJudge, CosineScorer, RewardScorer
from msg_jax.infra import checkpoint, logging, preemption, runtime
from msg_jax.infra.record import read_record
from msg_jax.models.sf_cavp import RewardWeights
from msg_jax.preference.reward import Reward
from msg_jax.run import build
from msg_jax.run.run import Run
from msg_jax.run.stage import text_digest
from msg_jax.storage import Path
from msg_jax.types import Params

JUDGE = "judge"  # a column beside the rewards: event F1 of edited sound
KEEP_SHARES = {"half": 0.5, "quarter": 0.25}  # of the pairs, those with the largest reward difference

Scores = dict[str, np.ndarray]
Measure = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""A reward: frames (B, T, H, W, 3) uint8 and candidates' log-mels (B, N, T, M) -> scores (B, N), higher is better."""


def judged_candidates(
    sampler: Sampler, codec_and_judge: CodecAndJudge, variables: Params, indices: Sequence[int],
    truth: Sequence[np.ndarray], *, tolerance_sec: float, **sampling: Any,
) -> tuple[np.ndarray, Scores]:
    """Log-mels (V, N, T, M) of candidates for clips whose true events are `truth`, and their F1 scores (V, N).

    `sampling` are keyword arguments of `Sampler.latents`.
    """
    mels = codec_and_judge.decode(np.concatenate(list(sampler.latents(variables, indices, **sampling))))
    return mels, codec_and_judge.f1(truth, mels, tolerance_sec)


class Cosines:
    """Makes rewards that are weighted sums of the cosines of SF-CAVP and, where there are any, of sound events.

    Sound events are those of the stage beside an SF-CAVP's folder. Several folders are an ensemble: the mean of their
    scores, each in units of its standard deviation among the candidates of a video.
    """

    def __init__(self, run: Run):
        self._run = run
        self._opened: dict[str, tuple[RewardScorer, str]] = {}
        self._last: dict[tuple[str, str], tuple[np.ndarray, Any]] = {}

    def __call__(self, name: str, entry: StudiedReward) -> Measure | None:
        """The reward `name`; None if all its weights are 0."""
        field = f"config.reward_study.rewards.{name}"
        folders = [folder.strip() for folder in entry.sf_cavp.split(",")]
        weights = {term: weight for term, weight in (entry.weights or self._own_weights()).items() if weight}
        for folder in folders:
            scorer = self._open(field, folder)
            missing = set(weights) - set(scorer.terms)
            if missing:
                term = min(missing)
                raise UserError(f"{field}.weights.{term}={weights[term]:g}, but {folder or 'this run'} has only "
                                f"{', '.join(scorer.terms)}: set it to 0; a reward with no other weight is then left out.")
        if not weights:
            return None

        def measure(frames: np.ndarray, log_mels: np.ndarray) -> np.ndarray:
            members = []
            for folder in folders:
                terms = self._terms(folder, frames, log_mels)
                scores = np.sum([weight * terms[term] for term, weight in weights.items()], axis=0)
                members.append((scores - scores.mean()) / (scores.std(axis=1).mean() or 1.0))
            return np.mean(members, axis=0)

        return measure

    @property
    def digests(self) -> dict[str, str]:
        """The digest of every SF-CAVP in use, by folder."""
        return {folder: digest for folder, (_, digest) in self._opened.items()}

    def _own_weights(self) -> dict[str, float]:
        config = self._run.config
        absent = {"desync", "segments"} if config.sound_events.kinds else {"desync", "segments", "events"}
        return {term: weight for term, weight in tree.to_dict(config.reward).items() if term not in absent}

    def _open(self, field: str, folder: str) -> RewardScorer:
        """The networks in a folder. Raises UserError if there are none, or none for this run's clips."""
        if folder not in self._opened:
            path = storage.path(folder) if folder else self._run.folder("sf_cavp")
            record = read_record(path)
            if record is None or record["stage"] != "sf_cavp" or not record["finished"]:
                raise UserError(f"{field}.sf_cavp={folder} is not the folder of a finished sf_cavp stage: give one, or none.")
            if difference := self._run.clip.difference(ClipSpec.from_dict(record["clip_spec"])):
                raise UserError(f"{field}.sf_cavp={folder} was trained on other clips than this run's: {difference}.")
            params, sound_events = {"sf_cavp": checkpoint.load(path / "params")}, None
            beside = read_record(path.parent / "sound_events")
            if beside and beside["finished"] and beside["upstream"].get("sf_cavp") == record["digest"]:
                sound_events = networks.sound_events(beside["config"]["sound_events"]["kinds"])
                params["sound_events"] = checkpoint.load(path.parent / "sound_events" / "params")
            config = tree.from_dict(Config, record["config"])
            unweighted = RewardWeights(semantic=0.0, dynamic=0.0, window=0.0, events=0.0)  # the terms are scored apart
            reward = Reward(networks.reward_model(config, self._run.clip), sound_events, unweighted)
            cosines = CosineScorer(
                reward, self._run.local(params), self._run.local_mesh, self._run.config.evaluate.batch_size
            )
            self._opened[folder] = RewardScorer(cosines), record["digest"]
        return self._opened[folder][0]

    def _terms(self, folder: str, frames: np.ndarray, log_mels: np.ndarray) -> Scores:
        """Every cosine (B, N). Rewards that differ in weights only share them."""
        scorer, _ = self._opened[folder]
        video = self._once(folder, "video", frames, scorer.embed_video)
        return self._once(folder, "terms", log_mels, functools.partial(scorer.score, video))

    def _once(self, folder: str, what: str, array: np.ndarray, function: Callable) -> Any:
        """`function(array)`, cached for the last array."""
        cached, value = self._last.get((folder, what), (None, None))
        if cached is not array:
            value = function(array)
            self._last[folder, what] = array, value
        return value


class Study:
    """The held-out clips of a split, the rewards, and the networks that sample and judge."""

    def __init__(self, run: Run):
        self.run, self.section = run, run.config.reward_study
        split = self.section.split
        self.features = FeatureSource(run.folder("extract") / split)
        source = run.source(split, self.features.kept)
        if not source.class_names:
            raise UserError(f"A reward study needs event truth, which {run.config.data.source} does not have: use "
                            "config.data.source=scenes, or a data set with events.")
        for kind in self.section.edits:
            if not edits.is_kind(kind):
                raise UserError(f"config.reward_study.edits has {kind!r}: choose from {', '.join(edits.KINDS)}.")
        self.cosines = Cosines(run)
        measures = {name: self._measure(name, entry) for name, entry in self.section.rewards.items()}
        self.rewards = {name: measure for name, measure in measures.items() if measure is not None}
        if self.section.baseline and self.section.baseline not in self.rewards:
            raise UserError(f"config.reward_study.baseline={self.section.baseline} is not one of the rewards: choose from "
                            f"{', '.join(self.rewards)}, or leave it empty.")
        self.codec_and_judge = build.codec_and_judge(run, source.class_names)
        self.sampler = build.sampler(run, self.features)
        self.indices = list(range(min(self.section.clips, len(source))))
        records = [source[i] for i in self.indices]
        self.frames = np.stack([record["video"] for record in records])
        self.events = np.stack([record["events"] for record in records])
        self.truth = events.true_events(self.events)

    def _measure(self, name: str, entry: StudiedReward) -> Measure | None:
        if name == JUDGE:
            raise UserError(f"config.reward_study.rewards.{name} has the name of the judge's column: rename it.")
        return self.cosines(name, entry)

    def candidates(self, seed: int, guidance: float) -> Scores:
        """Scores (V, N) of one base model's candidates, by every reward and by the judge."""
        section = self.section
        mels, truth = judged_candidates(
            self.sampler, self.codec_and_judge, self.run.load("base", seed), self.indices, self.truth, seed=seed,
            purpose="reward", tolerance_sec=section.tolerance_sec, candidates=section.candidates, guidance_scale=guidance,
            steps=section.steps, batch_size=self.run.config.evaluate.batch_size,
        )
        return truth | self._scores(mels)

    def edits(self) -> Scores:
        """Scores (V, 1 + kinds) of real sound, untouched and after each of `config.reward_study.edits`; NaN if impossible.

        Raises UserError if the scenes on disk are not those that this version makes.
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
                # All shifts draw alike, so that they move the same event in the same direction where there is room.
                draw = zlib.crc32(kind.split("_")[0].encode())
                made = edits.edit(recording, kind, np.random.default_rng((self.run.config.seed, index, draw)))
                possible[i, k] = made is not None
                sounds.append(untouched if made is None else made[0])
        mels = mel.log_mel(np.stack(sounds), spec.mel)
        if self.section.through_codec:
            mels = self.codec_and_judge.decode(self.codec_and_judge.encode(mels))
        mels = mels.reshape(*possible.shape, *mels.shape[1:])
        judged = {JUDGE: self.codec_and_judge.f1(self.truth, mels, self.section.tolerance_sec)["event_f1"]}
        return {name: np.where(possible, scores, np.nan) for name, scores in (self._scores(mels) | judged).items()}

    def _scores(self, mels: np.ndarray) -> Scores:
        return {name: np.asarray(measure(self.frames, mels), np.float64) for name, measure in self.rewards.items()}


def make(run: Run, folder: Path, seed: int | None) -> str:
    study = Study(run)
    section, seeds = run.config.reward_study, run.config.seeds
    jobs: dict[str, Callable[[], Scores]] = {f"seed_{seed}-{guidance}": functools.partial(study.candidates, seed, guidance)
            for guidance in section.guidance_scales for seed in seeds}
    no_edits = None if run.config.data.source == "scenes" else f"sound of {run.config.data.source} cannot be edited"
    if not no_edits:
        jobs["edits"] = study.edits
    progress = logging.Progress("reward_study", len(jobs), "set")
    for i, (name, job) in enumerate(progress.over(jobs.items())):
        path = folder / "scores" / f"{name}.json"
        if i % jax.process_count() == jax.process_index() and not path.exists():
            found = {reward: array.tolist() for reward, array in job().items()}
            logging.write_atomically(path, json.dumps(found))
            preemption.exit_if_requested(f"reward_study {name}")
    runtime.barrier(f"reward_study {folder}")
    if jax.process_index():
        return ""  # process 0 writes the results

    def scores(name: str) -> Scores:
        table = json.loads((folder / "scores" / f"{name}.json").read_text())
        return {reward: np.array(rows) for reward, rows in table.items()}

    results = {
        "split": section.split, "clips": len(study.indices), "candidates": section.candidates, "seeds": list(seeds),
        "rewards": tree.to_dict(section.rewards), "networks": study.cosines.digests,
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


def ranking_results(by_seed: dict[int, Scores], rewards: Sequence[str], section: RewardStudy, seed: int) -> dict[str, Any]:
    """Metrics of `rewards`, and their paired differences to the baseline's, from scores (V, N) by seed."""
    options = dict(seed=seed, resamples=section.bootstrap)
    tables = {name: {s: _tables(scores[name], scores) for s, scores in by_seed.items()} for name in rewards}

    def metrics(name: str, baseline: str | None = None) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for metric in next(iter(tables[name].values())):
            parts = {s: each[metric] for s, each in tables[name].items()}
            if baseline:
                parts = {s: np.hstack([part, tables[baseline][s][metric]]) for s, part in parts.items()}
            found |= _metric(metric, parts, **options)
        return found

    truth = {s: scores["event_f1"] for s, scores in by_seed.items()}
    return {
        "event_f1": _metric("value", {s: _of_mean(f1.mean(axis=1)) for s, f1 in truth.items()}, **options)["value"],
        "event_f1_best": _metric("value", {s: _of_mean(f1.max(axis=1)) for s, f1 in truth.items()}, **options)["value"],
        "rewards": {name: metrics(name) for name in tables},
        "baseline": section.baseline,
        "differences": {name: metrics(name, section.baseline) for name in tables if section.baseline not in ("", name)},
    }


def _tables(reward: np.ndarray, scores: Scores) -> dict[str, np.ndarray]:
    """Tables (V, 3) of a reward's metrics (evaluation/ranking.py)."""
    tables = ranking.ranking_tables(reward, scores["event_f1"])
    for name, share in KEEP_SHARES.items():
        tables[f"best_beats_worst_{name}"] = ranking.best_beats_worst_table(reward, scores["event_f1"], share)
    for part in ("onset_f1", "class_f1"):
        tables[f"correlation_{part}"] = ranking.correlation_table(reward, scores[part])
        tables[f"rank_correlation_{part}"] = ranking.correlation_table(reward, scores[part], ranks=True)
    return tables


def _of_mean(values: np.ndarray) -> np.ndarray:
    """The table (V, 3) whose metric is the plain mean."""
    return np.stack([values, np.ones_like(values), np.ones_like(values)], axis=1)


def false_orders(scores: Scores, section: RewardStudy, seed: int) -> dict[str, dict[str, Any]]:
    """How often each reward, and the judge, prefer an edited sound to the untouched one, from scores (V, 1 + kinds)."""
    return {
        name: {
            key: value for k, kind in enumerate(section.edits, 1)
            for key, value in _metric(
                kind, {0: ranking.false_order_table(column[:, 0], column[:, k])}, seed=seed, resamples=section.bootstrap
            ).items()
        }
        for name, column in scores.items()
    }


def _metric(name: str, by_seed: dict[int, np.ndarray], **options: Any) -> dict[str, Any]:
    """{name: value} from the tables (V, 3) of all seeds; for tables (V, 6), the difference between first and second half.

    A value has an interval over videos, each resampled with all its seeds. With several seeds it also has the value of each
    (`seeds`), their `mean` and their standard deviation, `spread`.
    """
    pooled = np.sum(list(by_seed.values()), axis=0)
    used = pooled[pooled.any(axis=1)]
    seeds = {seed: _finite(_statistic(table.sum(axis=0))) for seed, table in by_seed.items()}
    known = [value for value in seeds.values() if value is not None]
    if not known or not math.isfinite(_statistic(used.sum(axis=0))):
        return {name: None, f"{name}_reason": "no video whose candidates differ in truth and in reward"}
    found = bootstrap.interval(used, _statistic, **options)
    metric: dict[str, Any] = {key: value for key, value in found.items() if math.isfinite(value)}
    metric |= {"videos": len(used), "ignored": len(pooled) - len(used)}
    if len(seeds) > 1:
        metric["seeds"] = {str(seed): value for seed, value in seeds.items()}
        metric |= {"mean": statistics.mean(known), "spread": statistics.stdev(known) if len(known) > 1 else None}
    return {name: metric}


def _statistic(sums: np.ndarray) -> np.ndarray:
    first = ranking.metric_of(sums[..., :3])
    return first if sums.shape[-1] == 3 else first - ranking.metric_of(sums[..., 3:])


def _finite(value: np.ndarray) -> float | None:
    return float(value) if np.isfinite(value) else None


def format_results(results: dict[str, Any]) -> str:
    """The metrics as plain text: one column per reward."""
    seeds = ", ".join(map(str, results["seeds"]))
    blocks = [f"{results['clips']} {results['split']} clips, {results['candidates']} candidates each; intervals of 95 % over "
              "videos. Truth: event F1 by the judge."]
    for part in results["ranking"]:
        scale, several = f"Guidance {part['guidance']:g}", len(results["seeds"]) > 1
        blocks += [f"{scale}, seeds {seeds} pooled: mean event F1 {part['event_f1']['value']:.3f}, of the best candidate "
                   f"{part['event_f1_best']['value']:.3f}", report.format_metrics(part["rewards"])]
        if several:
            spread = _over_seeds(part["rewards"])
            blocks += [f"{scale}: mean and standard deviation of seeds {seeds}", report.format_metrics(spread)]
        if part["differences"]:
            blocks += [f"{scale}, seeds {seeds} pooled: minus {part['baseline']}",
                       report.format_metrics(part["differences"])]
    if results["edits"]:
        codec = "all after the codec" if results["edits_through_codec"] else "all as recorded"
        blocks += [f"How often edited sound is preferred to the untouched sound, {codec}; ties count half",
                   report.format_metrics(results["edits"])]
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
