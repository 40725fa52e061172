"""Event metrics of a base model: the cheap evaluation for sweeps of many trainings (studies/evaluate.py does more)."""

import json
from typing import Any

import numpy as np

from msg_jax.data import mel
from msg_jax.data.features import FeatureSource
from msg_jax.errors import UserError
from msg_jax.evaluation import distribution, event_metrics, events
from msg_jax.inference.scorer import CodecAndJudge
from msg_jax.infra import logging
from msg_jax.run import build
from msg_jax.run.run import Run
from msg_jax.run.stage import text_digest
from msg_jax.storage import Path

FILE = "event_metrics.json"


class Truth:
    """The held-out clips with their true events, against which the judge measures sound."""

    def __init__(self, run: Run, features: FeatureSource, codec_and_judge: CodecAndJudge, source: Any, clips: int):
        self._section, self._judge = run.config.evaluate, codec_and_judge
        records = [{name: source[i][name] for name in ("events", "caption", "waveform")} for i in range(clips)]
        self._events = events.true_events(np.stack([record["events"] for record in records]))
        self._groups = event_metrics.groups(records)
        real = mel.log_mel(np.stack([record["waveform"] for record in records]), run.clip.mel)
        self._embeddings = codec_and_judge.detect(real)[1]
        self.reconstructed = codec_and_judge.decode(features.stack(range(clips), ("latents",))["latents"])

    def metrics(self, log_mels: np.ndarray) -> dict[str, Any]:
        """F1 by group, and the judge's Fréchet distance to real sound, of log-mels (clips, T, M)."""
        found, embeddings = self._judge.detect(log_mels)
        counts = event_metrics.counts(self._events, found, self._section.tolerance_sec)
        metrics: dict[str, Any] = {"fd_judge": float(distribution.frechet_distance(embeddings, self._embeddings))}
        for group, chosen in self._groups.items():
            metrics[group] = {"clips": len(chosen)} | {
                name: float(events.micro_f1(table[chosen].sum(axis=0))) for name, table in counts.items()
            }
        return metrics


def make(run: Run, folder: Path, seed: int | None) -> str:
    """Write `event_metrics.json`: `rows` per guidance scale, and the metrics of real sound after the codec."""
    assert seed is not None
    section, features = run.config.evaluate, FeatureSource(run.folder("extract") / run.config.evaluate.split)
    source = run.source(section.split, features.kept)
    if not source.class_names:
        raise UserError(f"{run.config.data.source} has no event truth, which event metrics need: use "
                        "config.data.source=scenes, or evaluate the base model alone.")
    codec_and_judge, clips = build.codec_and_judge(run, source.class_names), min(section.clips, len(source))
    truth = Truth(run, features, codec_and_judge, source, clips)
    sampler, variables = build.sampler(run, features), run.load("base", seed)
    rows = []
    for scale in section.guidance_scales:
        latents = sampler.latents(
            variables, range(clips), seed=seed, purpose="test", guidance_scale=scale, steps=section.steps,
            batch_size=section.batch_size, prompts=section.prompts,
        )
        log_mels = np.concatenate([codec_and_judge.decode(chunk[:, 0]) for chunk in latents])
        rows.append({"guidance": scale} | truth.metrics(log_mels))
    text = json.dumps({"rows": rows, "reconstructed": truth.metrics(truth.reconstructed)}, indent=1)
    logging.write_atomically(folder / FILE, text + "\n")
    return text_digest(text)
