"""Evaluates generators of sound and pictures on held-out clips: `results.json`, `table.txt` and the report.

Every clip is judged twice: which events are heard in its sound, and which are seen in its pictures. The rows of `split` are the
run's own split, and sets of scenes that training does not have (`data/scene_sets.py`). With the pictures or the sound of a
clip given, the other side is made for it, and judged against the truth.

Each row is written to `evaluate/rows/` as soon as it is finished, so an interrupted evaluation continues there.
"""

from collections.abc import Sequence
import dataclasses
import functools
import json
import re
from typing import Any

import jax
import numpy as np

from msg_jax import methods
from msg_jax.data import scene_sets
from msg_jax.data.scenes import ScenesSource
from msg_jax.errors import UserError
from msg_jax.evaluation import bootstrap, distribution, event_metrics, events, report, sync
from msg_jax.infra import logging
from msg_jax.methods import cost
from msg_jax.run import build
from msg_jax.run.run import Run
from msg_jax.run.stage import text_digest
from msg_jax.storage import Path
from msg_jax.studies.evaluate import RowKey, curves, facts, measured

MODES = {"joint": (False, False), "video_given": (False, True), "sound_given": (True, False)}
"""Which streams are known, sound and pictures."""

HEADLINE = ("sync_f1", "sync_f1_40ms", "heard_caption_f1", "seen_caption_f1", "fd_sound", "fd_picture", "cost_tflop")
_AGAINST_TRUTH = ("event_f1", "event_f1_40ms")
_KEYS = ("system", "guidance", "split", "seed")


@dataclasses.dataclass(frozen=True)
class JointKey(RowKey):
    """One row: a system at one guidance, for the clips of a set, with one of MODES."""

    clips: str = "test"  # the evaluated split, or one of `scene_sets.SETS`
    mode: str = "joint"

    @property
    def key(self) -> str:
        return "-".join((super().key, self.clips, self.mode))

    @property
    def split(self) -> str:
        return self.clips if self.mode == "joint" else f"{self.clips}, {self.mode.replace('_', ' ')}"


@dataclasses.dataclass(frozen=True)
class Clips:
    """The clips of a set in memory, with what is true of them. It is the source of a `Sampler`."""

    records: Sequence[dict]
    features: dict[str, np.ndarray]  # latents, text
    mels: np.ndarray
    truth: Sequence[np.ndarray]
    told: Sequence[set[int]]  # the classes of each caption

    @property
    def video(self) -> np.ndarray:
        return np.stack([record["video"] for record in self.records])

    @property
    def dims(self) -> dict[str, int]:
        return {name: value.shape[-1] for name, value in self.features.items()}

    def stack(self, indices: Sequence[int] | np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        return {name: self.features[name][np.asarray(indices)] for name in names}


@dataclasses.dataclass(frozen=True)
class _Measured:
    """What was measured of one sample of each clip."""

    counts: dict[str, np.ndarray]  # (N, 3) of each metric
    offsets: np.ndarray
    embeddings: tuple[np.ndarray, np.ndarray]  # of sound and pictures


class JointEvaluation:
    """The frozen networks that measure sound and pictures."""

    def __init__(self, run: Run):
        self.run, self.section = run, run.config.evaluate
        self.class_names = run.source(self.section.split).class_names
        if not self.class_names:
            raise UserError(f"config.data.source={run.config.data.source} has no event truth, by which sound with pictures is "
                            "evaluated: leave evaluate out of config.stages.")
        self.sound = build.codec_and_judge(run, self.class_names)
        self.pictures = build.picture_judge(run, self.class_names)
        self.clips = functools.cache(self._clips)
        self._sampler = functools.cache(lambda name: build.sampler(run, self.clips(name)))  # traced once for all rows
        self._variables = functools.lru_cache(maxsize=2)(run.load)
        self._cost = functools.cache(functools.partial(cost.total, run, counted={}))

    def _clips(self, name: str) -> Clips:
        run = self.run
        if name in scene_sets.SETS:
            count = run.config.joint.set_clips
            source = ScenesSource(run.clip, self.section.split, count, run.config.data.seed, scene_sets.SETS[name])
        else:
            source = build.joint_source(run, name)
            count = min(self.section.clips, len(source))
        records = [source[i] for i in range(count)]
        arrays = [run.arrays(record) for record in records]
        features = build.JointExtractor(run)([{"caption": r["caption"]} | a for r, a in zip(records, arrays)])
        told = [{self.class_names.index(word) for word in re.findall(r"\w+", record["caption"]) if word in self.class_names}
                for record in records]
        truth = events.true_events(np.stack([record["events"] for record in records]))
        return Clips(records, features, np.stack([each["mel"] for each in arrays]), truth, told)

    def keys(self) -> list[JointKey]:
        config, section = self.run.config, self.section
        split, usual = section.split, section.reward_guidance
        rows = [JointKey(name, clips=split) for name in ("real", "reconstructed", "random_clip")]
        rows += [JointKey("real", clips=name) for name in config.joint.sets]
        for seed in config.seeds:
            for name in ("base", *config.arms):
                rows += [JointKey(name, scale, seed, clips=split) for scale in section.guidance_scales]
                rows.append(JointKey(name, usual, seed, clips=split, mode="video_given"))
                rows += [JointKey(name, usual, seed, clips=each) for each in config.joint.sets]
            rows.append(JointKey("base", usual, seed, clips=split, mode="sound_given"))
        return rows

    def made(self, row: JointKey, count: int | None = None, samples: int = 1) -> list[tuple[np.ndarray, np.ndarray]]:
        """Log-mels (B, T, M) and frames (B, T, H, W, 3) of each sample of the first `count` clips, by default of all.

        References have one sample.
        """
        clips = self.clips(row.clips)
        if row.name == "real":
            return [(clips.mels[:count], clips.video[:count])]
        if row.name == "random_clip":
            return [(np.roll(clips.mels, 1, axis=0)[:count], clips.video[:count])]
        latents = clips.features["latents"][:count, None]
        if row.name != "reconstructed":
            assert row.seed is not None and row.guidance is not None
            indices = range(len(clips.records))[:count]
            sampled = self._sampler(row.clips).latents(
                self._variables(row.name, row.seed), indices, seed=row.seed, purpose=row.clips,
                guidance_scale=row.guidance, steps=self.section.steps, batch_size=self.section.batch_size, prompts=True,
                known=MODES[row.mode], candidates=samples,
            )
            latents = np.concatenate(list(sampled))
        channels = self.run.clip.latent_channels
        found = []
        for sample in np.moveaxis(latents, 1, 0):
            sound, pictures = self.sound.decode(sample[..., :channels]), self.pictures.decode(sample[..., channels:])
            if row.mode == "video_given":
                pictures = clips.video[:count]
            if row.mode == "sound_given":
                sound = clips.mels[:count]
            found.append((sound, pictures))
        return found

    def row(self, row: JointKey) -> dict[str, Any]:
        samples = [self._measure(row, *made) for made in self.made(row, samples=self.section.samples)]
        counts = {name: np.sum([each.counts[name] for each in samples], axis=0) for name in samples[0].counts}
        late = np.concatenate([each.offsets for each in samples])
        found: dict[str, Any] = {
            "system": row.name, "guidance": row.guidance, "split": row.split, "seed": row.seed,
            "cost_tflop": self._cost(row.name, row.seed) / 1e12 if row.seed is not None else None,
            "cost_tflop_reason": "it is not a generator",
            "offset_ms": 1000 * float(late.mean()) if len(late) else None, "offset_ms_reason": "no event matches",
            "absolute_offset_ms": 1000 * float(np.abs(late).mean()) if len(late) else None,
            "absolute_offset_ms_reason": "no event matches",
        }
        options = dict(seed=self.run.config.seed, resamples=self.section.bootstrap)
        found |= {name: bootstrap.f1_interval(table, **options) for name, table in counts.items()}
        for name in (*_AGAINST_TRUTH, "seen_event_f1"):
            if name not in found:
                found |= {name: None, f"{name}_reason": "what is generated has no other truth than its caption"}
        if row.clips == self.section.split:
            for i, name in enumerate(("fd_sound", "fd_picture")):
                found[name] = np.mean([
                    distribution.frechet_distance(each.embeddings[i], self._real_embeddings[i]) for each in samples
                ])
        else:
            for name in ("fd_sound", "fd_picture"):
                found |= {name: None, f"{name}_reason": "the set has few clips"}
        found["counts"] = {name: counts[name].tolist() for name in sync.SYNC_METRICS}
        return found

    def _measure(self, row: JointKey, sound: np.ndarray, pictures: np.ndarray) -> "_Measured":
        clips, tolerance = self.clips(row.clips), self.section.tolerance_sec
        (heard, heard_as), (seen, seen_as) = self.sound.detect(sound), self.pictures.detect(pictures)
        counts = sync.counts(seen, heard, tolerance)
        counts |= {"heard_caption_f1": sync.agreement(clips.told, heard), "seen_caption_f1": sync.agreement(clips.told, seen)}
        if row.mode != "joint" or row.seed is None:  # the clip's own events are to be heard, or seen
            judged = seen if row.mode == "sound_given" else heard
            against = event_metrics.counts(clips.truth, judged, tolerance)
            counts |= {name: against[name] for name in _AGAINST_TRUTH}
            if row.seed is None:
                counts["seen_event_f1"] = event_metrics.counts(clips.truth, seen, tolerance)["event_f1"]
        return _Measured(counts, sync.offsets(seen, heard, tolerance), (heard_as, seen_as))

    @functools.cached_property
    def _real_embeddings(self) -> tuple[np.ndarray, np.ndarray]:
        clips = self.clips(self.section.split)
        return self.sound.detect(clips.mels)[1], self.pictures.detect(clips.video)[1]

    def examples(self) -> list[dict[str, Any]]:
        """The first clips: real, generated by base and arms from the caption, and the base's sound for the real pictures."""
        config, section = self.run.config, self.section
        clips, seed, guidance = self.clips(section.split), config.seeds[0], section.reward_guidance
        count = min(section.examples, len(clips.records))
        if not count:
            return []
        arms = [name for name in config.arms if methods.method(config, name).role == "system"]
        rows = [JointKey("real", clips=section.split)]
        rows += [JointKey(name, guidance, seed, clips=section.split) for name in ("base", *arms)]
        rows += [JointKey(name, guidance, seed, clips=section.split, mode="video_given") for name in ("base", *arms[:1])]
        examples = [
            {"id": record["id"], "caption": record["caption"], "frames": record["video"], "events": truth, "tracks": []}
            for record, truth in zip(clips.records, clips.truth)
        ][:count]
        for row in rows:
            ((sound, pictures),) = self.made(row, count)
            waveforms = self.sound.vocode(sound)
            if row.name == "real":
                waveforms = np.stack([record["waveform"] for record in clips.records[:count]])
            heard, seen = self.sound.detect(sound)[0], self.pictures.detect(pictures)[0]
            for i, example in enumerate(examples):
                example["tracks"].append({
                    "name": row.name, "waveform": waveforms[i], "mel": sound[i], "detected": heard[i], "frames": pictures[i],
                    "events": example["events"] if row.mode == "video_given" else seen[i],
                    "suffix": ", for the real pictures" if row.mode == "video_given" else "",
                })
        return examples


def make(run: Run, folder: Path, seed: int | None) -> str:
    evaluation = JointEvaluation(run)
    rows = measured(evaluation.keys(), evaluation.row, folder)
    if jax.process_index():
        return ""  # process 0 writes the results
    results = {
        "rows": [{name: value for name, value in row.items() if name != "counts"} for row in rows],
        "differences": differences(rows, run),
    }
    systems = {name: methods.method(run.config, name).describe() for name in run.config.arms}
    text = json.dumps(results, indent=1)
    logging.write_atomically(run.root / "results.json", text + "\n")
    logging.write_atomically(run.root / "table.txt", report.format_table(results, systems) + "\n")
    report.write_report(
        run.root, results, run.clip, evaluation.class_names, systems=systems, curves=curves(run),
        examples=evaluation.examples(), facts=facts(run), title="Sound and pictures, generated together", headline=HEADLINE,
        charted="sync_f1", charted_split=run.config.evaluate.split, scored=(), template="joint.html.j2",
    )
    return text_digest(text)


def differences(rows: list[dict], run: Run) -> list[dict]:
    """`sync.SYNC_METRICS` of each arm minus those of the base at equal seed, guidance and clips, paired by clip."""
    bases = {tuple(row[name] for name in _KEYS[1:]): row for row in rows if row["system"] == "base"}
    options = dict(seed=run.config.seed, resamples=run.config.evaluate.bootstrap)
    return [
        {"baseline": "base"} | {name: row[name] for name in _KEYS} | {
            name: bootstrap.f1_difference_interval(
                np.array(row["counts"][name]), np.array(bases[tuple(row[key] for key in _KEYS[1:])]["counts"][name]), **options
            ) for name in sync.SYNC_METRICS
        }
        for row in rows if row["system"] in run.config.arms
    ]
