"""Evaluates every system of a run on held-out clips: `results.json`, `table.txt` and the report.

Each row is written to `evaluate/rows/` as soon as it is finished, so an interrupted evaluation continues there. Clips are
measured batch by batch: memory holds the pictures and sound of one batch, and of all clips only events, scores and the
judge's embeddings. The reward's embeddings of the videos lie in `evaluate/videos/`.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import json
import math
from typing import Any, NamedTuple

import jax
from jaxtyping import Float
import numpy as np

from msg_jax import methods, networks, storage
from msg_jax.config import tree
from msg_jax.data import mel
from msg_jax.data.features import FeatureSource, FeatureWriter
from msg_jax.evaluation import bootstrap, distribution, event_metrics, events, ranking, report
from msg_jax.evaluation.event_metrics import EVENT_METRICS
from msg_jax.inference.scorer import Embedded
from msg_jax.infra import logging, metering, preemption, runtime
from msg_jax.infra.record import RECORD, read_record
from msg_jax.losses.contrastive import lagged_cosines
from msg_jax.methods import cost
from msg_jax.methods.candidates import SCORES
from msg_jax.run import build
from msg_jax.run.run import Run
from msg_jax.run.stage import text_digest
from msg_jax.storage import Path
from msg_jax.studies.field_metrics import HEADLINE as FIELD_HEADLINE
from msg_jax.studies.field_metrics import Features, FieldMetrics
from msg_jax.studies.reward_study import judged_candidates

OFFSETS = 9  # a clip against itself, shifted by -4 to 4 times OFFSET_SEC
OFFSET_SEC = 0.08
RECALL_GROUP = 64
_OF_SF_CAVP = ("offset_accuracy_9", f"semantic_r1_{RECALL_GROUP}", f"dynamic_r1_{RECALL_GROUP}")
PAIRED_METRICS = ("event_f1", "event_f1_40ms", "event_f1_second_judge")  # also reported as differences to the base
REFERENCES = ("real", "reconstructed", "random_clip")
_SHIFTS = {"real": 0, "random_clip": 1}  # references that were recorded, and how many places before the clip
_OF_REAL_TERMS = {f"{name}_reconstructed" for name in SCORES if name != "reward"}
_KEYS = ("system", "guidance", "passes", "split", "seed")  # of a row


@dataclasses.dataclass(frozen=True)
class RowKey:
    """One row of the table: a system at one guidance scale, from one seed's networks. References have neither."""

    name: str
    guidance: float | None = None
    seed: int | None = None
    steps: int | None = None  # of the solver; None: as many as the evaluation

    @property
    def key(self) -> str:
        parts = (self.name, self.guidance, self.seed, None if self.steps is None else f"{self.steps}_steps")
        return "-".join(str(part) for part in parts if part is not None)


def _stage(system: RowKey) -> str:
    return "base" if system.name == "unconditional" else system.name


class _Measured(NamedTuple):
    """What is kept of B clips of a system with S samples each."""

    scores: dict[str, np.ndarray]  # the reward and its terms (B,), means over the samples
    counts: dict[str, np.ndarray]  # (B, 3) of every F1, sums over the samples; empty without event truth
    embeddings: Float[np.ndarray, "S B D"]  # the judge's
    of_field: list[Features]  # of the first sample; empty with event truth


class Evaluation:
    """The held-out clips of a split, and the frozen networks that measure sound for them.

    Embeds the videos that are not embedded yet; processes share them.
    """

    def __init__(self, run: Run):
        self.run, self.section = run, run.config.evaluate
        split = self.section.split
        self.features = FeatureSource(run.folder("extract") / split)
        self.source = run.source(split, self.features.kept, streams=("video",))
        self._sounds = run.source(split, self.features.kept, streams=())
        self.clips = range(min(self.section.clips, len(self.source)))
        self.ids = self.features.ids[: len(self.clips)]
        self.reward_scorer = build.reward_scorer(run)
        self.codec_and_judge = build.codec_and_judge(run, self.source.class_names)
        self.second_judge = build.second_judge(run, self.source.class_names)
        self.sampler = build.sampler(run, self.features)
        self.no_truth = None if self.codec_and_judge.can_judge else f"{run.config.data.source} has no event truth"
        known = [{name: record[name] for name in ("events", "caption")} for record in map(self._sounds.__getitem__, self.clips)]
        self.truth = events.true_events(np.stack([record["events"] for record in known]))
        self.groups = event_metrics.groups(known)
        self.field = FieldMetrics(run) if self.no_truth else None
        self._videos = self._embed_videos(run.folder("evaluate") / "videos")
        self._variables = functools.lru_cache(maxsize=2)(run.load)
        self._cost = functools.cache(functools.partial(cost.total, run, counted={}))

    def _embed_videos(self, folder: Path) -> FeatureSource:
        """The reward's embeddings of every video, on disk."""
        writer = FeatureWriter(folder, len(self.clips), self.section.batch_size, jax.process_index(), jax.process_count())
        for shard, clips in writer.missing:
            records = [self.source[i] for i in clips]
            arrays = self.reward_scorer.embed_video(np.stack([record["video"] for record in records]))
            items = [{name: values[row] for name, values in arrays.items()} for row in range(len(records))]
            writer.write(shard, [record["id"] for record in records], items)
            preemption.exit_if_requested(f"evaluate videos {shard}")
        runtime.barrier(f"videos {folder}")
        if jax.process_index() == 0:
            writer.finish()
        runtime.barrier(f"all videos {folder}")
        return FeatureSource(folder)

    def batches(self, size: int | None = None) -> list[range]:
        """All clips, in consecutive ranges of at most `size`."""
        size = size or self.section.batch_size
        return [self.clips[start : start + size] for start in self.clips[::size]]

    def video(self, clips: range) -> Embedded:
        """What the reward knows of the videos of these clips."""
        return self._videos.stack(clips, tuple(self._videos.dims))

    def recorded(self, clips: range, shift: int = 0) -> Float[np.ndarray, "B S"]:
        """The waveforms of these clips; with `shift`, of the clips so many places before them."""
        return np.stack([self._sounds[(i - shift) % len(self.clips)]["waveform"] for i in clips])

    def keys(self) -> list[RowKey]:
        config = self.run.config
        rows = [RowKey(name) for name in REFERENCES]
        for seed in config.seeds:
            rows.append(RowKey("unconditional", 1.0, seed))
            for name in ("base", *config.arms):
                rows += [RowKey(name, 1.0, seed, steps) for steps in self.student_steps(name)] or [
                    RowKey(name, scale, seed) for scale in self.section.guidance_scales
                ]
        return rows

    def student_steps(self, name: str) -> tuple[int, ...]:
        """Solver steps of a student, which needs no guidance; empty for other systems."""
        config = self.run.config
        return methods.method(config, name).student_steps(config) if name in config.arms else ()

    def mels(self, system: RowKey, clips: range, samples: int = 1) -> Float[np.ndarray, "B S T M"]:
        """Log-mels of the system's sound for these clips; references have S = 1."""
        if system.name in _SHIFTS:
            return mel.log_mel(self.recorded(clips, _SHIFTS[system.name]), self.run.clip.mel)[:, None]
        if system.name == "reconstructed":
            return self.codec_and_judge.decode(self.features.stack(clips, ("latents",))["latents"][:, None])
        assert system.seed is not None and system.guidance is not None
        latents = self.sampler.latents(
            self._variables(_stage(system), system.seed), clips, seed=system.seed, purpose="test",
            guidance_scale=system.guidance, steps=self.steps(system), batch_size=self.section.batch_size,
            conditional=system.name != "unconditional", candidates=samples, prompts=self.section.prompts,
        )
        return np.concatenate([self.codec_and_judge.decode(chunk) for chunk in latents])

    def waveforms(self, system: RowKey, clips: range, mels: np.ndarray) -> np.ndarray:
        """Waveforms (B, S, samples) of what `mels` returned: recorded where the sound is, otherwise from the vocoder."""
        if system.name in _SHIFTS:
            return self.recorded(clips, _SHIFTS[system.name])[:, None]
        return self.codec_and_judge.vocode(mels.reshape(-1, *mels.shape[2:])).reshape(*mels.shape[:2], -1)

    def steps(self, system: RowKey) -> int:
        """Solver steps of a generator."""
        return system.steps or self.section.steps

    def passes(self, system: RowKey) -> int | None:
        """Passes of the network that a clip takes; None for references."""
        if system.guidance is None:
            return None
        return self.steps(system) * (1 if system.guidance == 1 else 2)

    def row(self, system: RowKey) -> dict[str, Any]:
        """All metrics of a system."""
        row: dict[str, Any] = {
            "system": system.name, "guidance": system.guidance, "split": self.section.split, "seed": system.seed,
            "passes": self.passes(system),
        }
        if system.seed is None:
            row |= {"cost_tflop": None, "cost_tflop_reason": "it is not a generator"}
        else:
            row["cost_tflop"] = self._cost(_stage(system), system.seed) / 1e12
        options = dict(seed=self.run.config.seed, resamples=self.section.bootstrap)
        measured = [self._measure(system, clips) for clips in self.batches()]
        for name in measured[0].scores:
            row[name] = bootstrap.mean_interval(np.concatenate([part.scores[name] for part in measured]), **options)
        if self.field is not None:
            for name in (*EVENT_METRICS, "fd_judge", "event_f1_second_judge"):
                row |= {name: None, f"{name}_reason": self.no_truth}
            return row | self.field.row(self.ids, [each for part in measured for each in part.of_field])
        embeddings = np.concatenate([part.embeddings for part in measured], axis=1)
        row["fd_judge"] = np.mean([distribution.frechet_distance(each, self.real_embeddings) for each in embeddings])
        counts = {name: np.concatenate([part.counts[name] for part in measured]) for name in measured[0].counts}
        row |= {name: bootstrap.f1_interval(table, **options) for name, table in counts.items()}
        row["groups"] = {
            group: bootstrap.f1_interval(counts["event_f1"][chosen], **options) for group, chosen in self.groups.items()
        }
        row["counts"] = {name: counts[name].tolist() for name in PAIRED_METRICS}
        return row

    def _measure(self, system: RowKey, clips: range) -> "_Measured":
        mels, truth = self.mels(system, clips, self.section.samples), self.truth[clips.start : clips.stop]
        scores = {name: value.mean(axis=1) for name, value in self.reward_scorer.score(self.video(clips), mels).items()}
        heard = self.waveforms(system, clips, mels)
        if self.field is not None:
            return _Measured(scores, {}, np.zeros((0, 0, 0)), self._of_field(self.field, clips, heard[:, 0]))
        assert self.second_judge is not None
        detected = [self.codec_and_judge.detect(mels[:, sample]) for sample in range(mels.shape[1])]
        each = [event_metrics.counts(truth, found, self.section.tolerance_sec) for found, _ in detected]
        counts = {name: np.sum([part[name] for part in each], axis=0) for name in EVENT_METRICS}
        again = [self.second_judge.detect(heard[:, sample]) for sample in range(heard.shape[1])]
        counts["event_f1_second_judge"] = np.sum(
            [events.clip_counts(truth, found, self.section.tolerance_sec)["event_f1"] for found in again], axis=0
        )
        return _Measured(scores, counts, np.stack([found for _, found in detected]), [])

    def _of_field(self, field: FieldMetrics, clips: range, sounds: Float[np.ndarray, "B S"]) -> list[Features]:
        return [
            field.features(self.ids[i], sound, recorded, lambda i=i: self.source[i]["video"])
            for i, sound, recorded in zip(clips, sounds, self.recorded(clips))
        ]

    @functools.cached_property
    def real_embeddings(self) -> Float[np.ndarray, "N D"]:
        """The judge's embeddings of the real sound."""
        mels = (self.mels(RowKey("real"), clips)[:, 0] for clips in self.batches())
        return np.concatenate([self.codec_and_judge.detect(each)[1] for each in mels])

    def sf_cavp(self) -> dict[str, Any]:
        """Metrics of SF-CAVP itself on real held-out clips."""
        cosines = self.reward_scorer.cosines
        if cosines is None:
            reasons = {f"{name}_reason": "the reward has no SF-CAVP" for name in _OF_SF_CAVP}
            return dict.fromkeys(_OF_SF_CAVP) | reasons
        step = round(OFFSET_SEC * networks.reward_model(self.run.config, self.run.clip).config.dynamic_hz)
        lags = [step * (i - OFFSETS // 2) for i in range(OFFSETS)]
        lagged, paired = [], {"semantic": [], "dynamic": []}
        for group in self.batches(RECALL_GROUP):
            video, audio = self.video(group), cosines.embed_audio(self.mels(RowKey("real"), group)[:, 0])
            lagged.append(np.asarray(lagged_cosines(video["dynamic"], audio.dynamic, lags)))
            for name in (paired if len(group) == RECALL_GROUP else ()):
                queries, answers = (np.reshape(each, (RECALL_GROUP, -1)) for each in (video[name], getattr(audio, name)))
                paired[name].append(ranking.grouped_cosine(queries, answers, RECALL_GROUP))
        metrics: dict[str, Any] = {"offset_accuracy_9": ranking.offset_accuracy(np.concatenate(lagged), OFFSETS // 2)}
        for name, tables in paired.items():
            key = f"{name}_r1_{RECALL_GROUP}"
            if not tables:
                metrics |= {key: None, f"{key}_reason": f"{len(self.clips)} clips are fewer than a group of {RECALL_GROUP}"}
            else:
                metrics[key] = ranking.recall_at_1(np.concatenate(tables))
        return metrics

    def reward(self) -> dict[str, Any]:
        """How well the reward ranks the base model's candidates for one video, against event F1, which it never saw."""
        if self.no_truth:
            names = ("within_video_correlation", "within_video_rank_correlation", "headroom_share", "best_beats_worst")
            return {name: None for name in names} | {f"{name}_reason": self.no_truth for name in names}
        section = self.section
        indices = self.clips[: section.reward_clips]
        video, truth = self.video(indices), self.truth[: len(indices)]
        rewards, truths = [], []
        for seed in self.run.config.seeds:
            mels, f1 = judged_candidates(
                self.sampler, self.codec_and_judge, self._variables("base", seed), indices, truth, seed=seed, purpose="reward",
                tolerance_sec=section.tolerance_sec, candidates=section.reward_candidates,
                guidance_scale=section.reward_guidance, steps=section.steps, batch_size=section.batch_size,
            )
            rewards.append(self.reward_scorer.score(video, mels))
            truths.append(f1["event_f1"])
        scores = {name: np.concatenate([part[name] for part in rewards]) for name in rewards[0]}
        truth = np.concatenate(truths)
        tables = ranking.ranking_tables(scores["reward"], truth)
        metrics: dict[str, Any] = {name: float(ranking.metric_of(table.sum(axis=0))) for name, table in tables.items()}
        for name in (name for name in scores if name != "reward"):
            table = ranking.correlation_table(scores[name], truth)
            metrics[f"correlation_{name}"] = float(ranking.metric_of(table.sum(axis=0)))
        unusable = [name for name, value in metrics.items() if not math.isfinite(value)]
        metrics |= {name: None for name in unusable}
        return metrics | {f"{name}_reason": "no video whose candidates differ in truth and in reward" for name in unusable}

    def examples(self) -> list[dict[str, Any]]:
        """The first clips with real sound and the sound of the base and of the first arm of each method."""
        config = self.run.config
        arms = [name for name in config.arms if methods.method(config, name).role == "system"]
        tuned = {config.arms[name].kind: name for name in reversed(arms)}
        seed, shown = config.seeds[0], self.clips[: self.section.examples]
        if not shown:
            return []
        guidance = self.section.reward_guidance
        systems = [RowKey("real")] + [
            RowKey(name, 1.0, seed, self.student_steps(name)[0]) if self.student_steps(name) else RowKey(name, guidance, seed)
            for name in ("base", *reversed(tuned.values()))
        ]
        examples = [
            {"id": record["id"], "caption": record["caption"], "frames": record["video"], "events": truth, "tracks": []}
            for record, truth in zip(map(self.source.__getitem__, shown), self.truth)
        ]
        for system in systems:
            mels = self.mels(system, shown)
            waveforms, mels = self.waveforms(system, shown, mels)[:, 0], mels[:, 0]
            found = self.codec_and_judge.detect(mels)[0] if self.codec_and_judge.can_judge else [np.zeros((0, 2))] * len(shown)
            for example, log_mel, waveform, detected in zip(examples, mels, waveforms, found):
                example["tracks"].append(
                    {"name": system.name, "waveform": waveform, "mel": log_mel, "detected": detected}
                )
        return examples


def measured(keys: Sequence[RowKey], row: Callable[[Any], dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """The `row` of each key, kept in `folder`/rows, where an interrupted call continues.

    Processes make rows in turn, and process 0 gets them all; the others get none.
    """
    progress = logging.Progress("evaluate", len(keys), "row")
    paths = [folder / "rows" / f"{key.key}.json" for key in keys]
    for i, key in enumerate(progress.over(keys)):
        if i % jax.process_count() == jax.process_index() and not paths[i].exists():
            logging.write_atomically(paths[i], json.dumps(row(key)))
            preemption.exit_if_requested(f"evaluate {key.key}")
    runtime.barrier(f"rows {folder}")
    return [] if jax.process_index() else [json.loads(path.read_text()) for path in paths]


def make(run: Run, folder: Path, seed: int | None) -> str:
    evaluation = Evaluation(run)
    rows = measured(evaluation.keys(), evaluation.row, folder)
    if jax.process_index():
        return ""  # process 0 writes the results
    results = {
        "rows": [{name: value for name, value in row.items() if name not in ("counts", "groups")} for row in rows],
        "groups": [{name: row[name] for name in _KEYS} | row["groups"] for row in rows if "groups" in row],
        "differences": paired_differences(rows, run),
        "rounds": rounds(run),
        "sf_cavp": evaluation.sf_cavp(),
        "reward": evaluation.reward(),
    }
    systems = {name: methods.method(run.config, name).describe() for name in run.config.arms}
    text = json.dumps(results, indent=1)
    logging.write_atomically(run.root / "results.json", text + "\n")
    logging.write_atomically(run.root / "table.txt", report.format_table(results, systems) + "\n")
    report.write_report(
        run.root, results, run.clip, evaluation.source.class_names, systems=systems, curves=curves(run),
        examples=evaluation.examples(), facts=facts(run), headline=FIELD_HEADLINE if evaluation.field else report.HEADLINE,
    )
    return text_digest(text)


def paired_differences(rows: list[dict], run: Run) -> list[dict]:
    """`PAIRED_METRICS` of each tuned system minus the base's at equal seed, from a bootstrap paired by clip.

    The base has the guidance of the system; against a student it has the guidance at which its event F1 is best.
    """
    bases = [row for row in rows if row["system"] == "base"]

    def baseline(row: dict) -> dict:
        same_seed = [base for base in bases if base["seed"] == row["seed"]]
        if methods.method(run.config, row["system"]).student_steps(run.config):
            return max(same_seed, key=lambda base: base["event_f1"]["value"])
        return next(base for base in same_seed if base["guidance"] == row["guidance"])

    return [
        {"baseline": "base"} | {name: row[name] for name in _KEYS} | {
            name: bootstrap.f1_difference_interval(
                np.array(row["counts"][name]), np.array(baseline(row)["counts"][name]),
                seed=run.config.seed, resamples=run.config.evaluate.bootstrap,
            ) for name in PAIRED_METRICS
        }
        for row in rows if row["system"] in run.config.arms and "counts" in row
    ]


def rounds(run: Run) -> list[dict]:
    """What arms with rounds do on validation clips, by what is rewarded and by what is not (methods/validation.py)."""
    rows = []
    for seed in run.config.seeds:
        for name in run.config.arms:
            folder = run.folder(name, seed)
            found = [{"round": int(path.parent.name.removeprefix("round_")), "share": 1.0} | json.loads(path.read_text())
                     for path in sorted(storage.files_below(folder)) if path.name == "validation.json"]
            found += logging.read_metrics(folder / "validation.jsonl")
            rows += [{"system": name, "split": "validation", "seed": seed} | row for row in found]
    return [{name: value for name, value in row.items() if name not in _OF_REAL_TERMS} for row in rows]


def curves(run: Run) -> dict[str, list[dict]]:
    """The metrics of every training in the run, by its folder."""
    found = {}
    for path in (path for path in storage.files_below(run.root) if path.name == "metrics.jsonl"):
        found[str(path.parent.relative_to(run.root))] = [
            {name: value for name, value in row.items() if name not in metering.FIELDS} for row in logging.read_metrics(path)
        ]
    return found


def facts(run: Run) -> dict[str, Any]:
    """What it takes to repeat the run: config, versions, revision, device, and seconds of each stage."""
    folders = [path.parent for path in storage.files_below(run.root) if path.name == RECORD]
    records = {str(folder.relative_to(run.root)): record for folder in folders if (record := read_record(folder))}
    first = next(iter(records.values()))
    return {
        "config": tree.to_dict(run.config), "versions": first["versions"], "device": first["device"],
        "git_revision": first["git_revision"], "seconds": {name: record["seconds"] for name, record in records.items()},
    }
