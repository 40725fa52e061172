"""Measures every system of the run on held-out clips and writes `results.json`, `table.txt` and the report.

Each row is written to `evaluate/rows/` as soon as it stands, so an interrupted evaluation goes on where it was.
"""

import dataclasses
import functools
import json
import math
import pathlib
from typing import Any

import jax
import numpy as np

from msg_jax import networks
from msg_jax.data import mel
from msg_jax.data.features import FeatureSource
from msg_jax.evaluation import bootstrap, distribution, events, ranking, report
from msg_jax.infra import logging, metering, preemption, runtime
from msg_jax.losses.contrastive import lagged_cosines
from msg_jax.stages.common import RECORD, Run, read_record, text_digest
from msg_jax.stages.generator import Generator
from msg_jax.stages.listening import Listener
from msg_jax.stages.reward_study import judged_candidates

OFFSETS = 9  # a clip against itself shifted by -4 .. 4 times OFFSET_SEC
OFFSET_SEC = 0.08
RECALL_GROUP = 64
EVENT_FIGURES = ("event_f1", "onset_f1", "class_f1", "event_f1_40ms", "onset_f1_40ms")
PAIRED_FIGURES = ("event_f1", "event_f1_40ms")  # also as differences to the base
TIMING_SEC = 0.04  # the tolerance of the figures that end in 40ms: one frame of 25 fps video
REFERENCES = ("real", "reconstructed", "random_clip")


@dataclasses.dataclass(frozen=True)
class System:
    """One row of the table: `name` at one guidance scale from one seed's networks; references have neither."""

    name: str
    guidance: float | None = None
    seed: int | None = None

    @property
    def key(self) -> str:
        return "-".join(str(part) for part in (self.name, self.guidance, self.seed) if part is not None)


class Evaluation:
    """The held-out clips of a split and what the frozen networks say of their real audio."""

    def __init__(self, run: Run):
        self.run, self.section = run, run.config.evaluate
        split = self.section.split
        self.features = FeatureSource(run.folder("extract") / split)
        self.source = run.source(split, self.features.kept)
        self.indices = list(range(min(self.section.clips, len(self.source))))
        self.listener = Listener(run, self.source.class_names)
        self.generator = Generator(run, self.features)
        self.no_truth = None if self.listener.can_judge else f"{run.config.data.source} has no event truth"
        self.records = [self.source[i] | {"clip_video": None} for i in self.indices]  # nobody looks at these pictures again
        self.truth = events.true_events(np.stack([record["events"] for record in self.records]))
        self.video = self.listener.embed_video(np.stack([record["video"] for record in self.records]))
        self.real_mels = mel.log_mel(np.stack([record["waveform"] for record in self.records]), run.clip.mel)
        self.real_latents = self.features.stack(self.indices, ("latents",))["latents"]
        self._variables = functools.lru_cache(maxsize=2)(run.load)

    def systems(self) -> list[System]:
        config = self.run.config
        rows = [System(name) for name in REFERENCES]
        for seed in config.seeds:
            rows.append(System("unconditional", 1.0, seed))
            rows += [
                System(name, scale, seed) for name in ("base", *config.arms) for scale in self.section.guidance_scales
            ]
        return rows

    def mels(self, system: System, clips: int | None = None, samples: int = 1) -> np.ndarray:
        """What the system lets us hear, as log-mels (B, S, T, M) of the (first `clips`) test clips; of references S is 1."""
        if system.name == "real":
            return self.real_mels[:clips, None]
        if system.name == "reconstructed":
            return self.listener.decode(self.real_latents[:clips, None])
        if system.name == "random_clip":
            return np.roll(self.real_mels, 1, axis=0)[:clips, None]
        stage = "base" if system.name == "unconditional" else system.name
        latents = self.generator.latents(
            self._variables(stage, system.seed), self.indices[:clips], seed=system.seed, purpose="test",
            guidance_scale=system.guidance, steps=self.section.steps, batch_size=self.section.batch_size,
            conditional=system.name != "unconditional", candidates=samples,
        )
        return np.concatenate([self.listener.decode(chunk) for chunk in latents])

    def row(self, system: System) -> dict[str, Any]:
        mels = self.mels(system, samples=self.section.samples)
        row = {"system": system.name, "guidance": system.guidance, "split": self.section.split, "seed": system.seed}
        options = dict(seed=self.run.config.seed, resamples=self.section.bootstrap)
        scores = self.listener.score(self.video, mels)
        row |= {name: bootstrap.mean_interval(value.mean(axis=1), **options) for name, value in scores.items()}
        if self.no_truth:
            for name in (*EVENT_FIGURES, "fd_judge"):
                row |= {name: None, f"{name}_reason": self.no_truth}
            return row
        heard = [self.listener.detect(mels[:, sample]) for sample in range(mels.shape[1])]
        each = [self._counts(found) for found, _ in heard]
        counts = {name: sum(part[name] for part in each) for name in EVENT_FIGURES}  # a clip's samples stay together
        row |= {name: bootstrap.f1_interval(counts[name], **options) for name in EVENT_FIGURES}
        row["fd_judge"] = np.mean([distribution.frechet_distance(found, self.real_embeddings) for _, found in heard])
        row["counts"] = {name: counts[name].tolist() for name in PAIRED_FIGURES}
        return row

    def _counts(self, found: list[np.ndarray]) -> dict[str, np.ndarray]:
        """Counts (B, 3) of every one of EVENT_FIGURES for one sample of each clip."""
        exact = events.clip_counts(self.truth, found, TIMING_SEC)
        counts = events.clip_counts(self.truth, found, self.section.tolerance_sec)
        return counts | {f"{name}_40ms": exact[name] for name in ("event_f1", "onset_f1")}

    @functools.cached_property
    def real_embeddings(self) -> np.ndarray:
        return self.listener.detect(self.real_mels)[1]

    def sf_cavp(self) -> dict[str, Any]:
        """How well the reward model itself was learnt, on real held-out clips."""
        audio = self.listener.embed_audio(self.real_mels)
        step = round(OFFSET_SEC * networks.reward_model(self.run.config, self.run.clip).config.dynamic_hz)
        lags = [step * (i - OFFSETS // 2) for i in range(OFFSETS)]
        cosines = np.asarray(lagged_cosines(self.video.dynamic, audio.dynamic, lags))
        figures = {"offset_accuracy_9": ranking.offset_accuracy(cosines, OFFSETS // 2)}
        for name in ("semantic", "dynamic"):
            video, sound = (getattr(x, name).reshape(len(self.indices), -1) for x in (self.video, audio))
            key = f"{name}_r1_{RECALL_GROUP}"
            if len(video) < RECALL_GROUP:
                figures |= {key: None, f"{key}_reason": f"{len(video)} clips are fewer than a group of {RECALL_GROUP}"}
            else:
                figures[key] = ranking.recall_at_1(ranking.grouped_cosine(video, sound, RECALL_GROUP))
        return figures

    def reward(self) -> dict[str, Any]:
        """How well the reward ranks candidates of the base model for one video: against event F1, which it never saw."""
        if self.no_truth:
            names = ("within_video_correlation", "within_video_rank_correlation", "headroom_share", "best_beats_worst")
            return {name: None for name in names} | {f"{name}_reason": self.no_truth for name in names}
        section = self.section
        indices = self.indices[: section.reward_clips]
        video, truth = jax.tree.map(lambda x: x[: len(indices)], self.video), self.truth[: len(indices)]
        rewards, truths = [], []
        for seed in self.run.config.seeds:
            mels, f1 = judged_candidates(
                self.generator, self.listener, self._variables("base", seed), indices, truth, seed=seed, purpose="reward",
                tolerance_sec=section.tolerance_sec, candidates=section.reward_candidates,
                guidance_scale=section.reward_guidance, steps=section.steps, batch_size=section.batch_size,
            )
            rewards.append(self.listener.score(video, mels))
            truths.append(f1["event_f1"])
        scores = {name: np.concatenate([part[name] for part in rewards]) for name in rewards[0]}
        truth = np.concatenate(truths)
        tables = ranking.ranking_tables(scores["reward"], truth)
        figures: dict[str, Any] = {name: float(ranking.quotient(table.sum(axis=0))) for name, table in tables.items()}
        for name in (name for name in scores if name != "reward"):
            table = ranking.correlation_table(scores[name], truth)
            figures[f"correlation_{name}"] = float(ranking.quotient(table.sum(axis=0)))
        unusable = [name for name, value in figures.items() if not math.isfinite(value)]
        figures |= {name: None for name in unusable}
        return figures | {f"{name}_reason": "no video whose candidates differ in truth and in reward" for name in unusable}

    def examples(self) -> list[dict[str, Any]]:
        """The first clips with the real sound and that of base and tuned model, for ears and eyes."""
        tuned = [name for name in self.run.config.arms if name in ("avp_rpo", "sync_dpo")]
        seed, count = self.run.config.seeds[0], min(self.section.examples, len(self.indices))
        if not count:
            return []
        guidance = self.section.reward_guidance
        systems = [System("real")] + [System(name, guidance, seed) for name in ("base", *tuned)]
        examples = [
            {"id": record["id"], "caption": record["caption"], "frames": record["video"], "events": truth, "tracks": []}
            for record, truth in zip(self.records[:count], self.truth)
        ]
        for system in systems:
            mels = self.mels(system, count)[:, 0]
            waveforms = np.stack([r["waveform"] for r in self.records[:count]])
            if system.name != "real":
                waveforms = self.listener.vocode(mels)
            found = self.listener.detect(mels)[0] if self.listener.can_judge else [np.zeros((0, 2))] * count
            for example, log_mel, waveform, detected in zip(examples, mels, waveforms, found):
                example["tracks"].append(
                    {"name": system.name, "waveform": waveform, "mel": log_mel, "detected": detected}
                )
        return examples


def make(run: Run, folder: pathlib.Path, seed: int | None) -> str:
    evaluation = Evaluation(run)
    systems = evaluation.systems()
    progress = logging.Progress("evaluate", len(systems), "row")
    paths = [folder / "rows" / f"{system.key}.json" for system in systems]
    for i, system in enumerate(progress.over(systems)):
        if i % jax.process_count() == jax.process_index() and not paths[i].exists():
            logging.write_atomically(paths[i], json.dumps(evaluation.row(system)))
            preemption.exit_if_requested(f"evaluate {system.key}")
    runtime.barrier(f"rows {folder}")
    if jax.process_index():
        return ""  # process 0 writes what is made of all rows
    rows = [json.loads(path.read_text()) for path in paths]
    results = {
        "rows": [{name: value for name, value in row.items() if name != "counts"} for row in rows],
        "differences": paired_differences(rows, run),
        "sf_cavp": evaluation.sf_cavp(),
        "reward": evaluation.reward(),
    }
    text = json.dumps(results, indent=1)
    logging.write_atomically(run.root / "results.json", text + "\n")
    logging.write_atomically(run.root / "table.txt", report.format_table(results) + "\n")
    report.write_report(
        run.root, results, run.clip, evaluation.source.class_names, curves=curves(run), examples=evaluation.examples(),
        facts=facts(run),
    )
    return text_digest(text)


def paired_differences(rows: list[dict], run: Run) -> list[dict]:
    """`PAIRED_FIGURES` of every tuned system minus the base's at the same guidance and seed, resampled in pairs of clips."""
    base = {(row["guidance"], row["seed"]): row for row in rows if row["system"] == "base"}
    return [
        {"system": row["system"], "baseline": "base"} | {name: row[name] for name in ("guidance", "split", "seed")} | {
            name: bootstrap.f1_difference_interval(
                np.array(row["counts"][name]), np.array(base[row["guidance"], row["seed"]]["counts"][name]),
                seed=run.config.seed, resamples=run.config.evaluate.bootstrap,
            ) for name in PAIRED_FIGURES
        }
        for row in rows if row["system"] in run.config.arms and "counts" in row
    ]


def curves(run: Run) -> dict[str, list[dict]]:
    """The metrics of every training in the run, by the folder it was made in."""
    found = {}
    for path in sorted(run.root.glob("**/metrics.jsonl")):
        found[str(path.parent.relative_to(run.root))] = [
            {name: value for name, value in row.items() if name not in metering.FIELDS} for row in logging.read_metrics(path)
        ]
    return found


def facts(run: Run) -> dict[str, Any]:
    """What a reader needs to make the run again: config, versions, revision, device, seconds of each stage."""
    records = {
        str(path.parent.relative_to(run.root)): read_record(path.parent) for path in sorted(run.root.glob(f"**/{RECORD}"))
    }
    first = next(iter(records.values()))
    return {
        "config": json.loads(run.config.to_json_best_effort()), "versions": first["versions"], "device": first["device"],
        "git_revision": first["git_revision"], "seconds": {name: record["seconds"] for name, record in records.items()},
    }
