"""A base model's figures by event truth alone: what a sweep of many trainings can afford (stages/evaluate.py tells more)."""

import json
import pathlib
from typing import Any

import numpy as np

from msg_jax.data import mel
from msg_jax.data.features import FeatureSource
from msg_jax.errors import UserError
from msg_jax.evaluation import distribution, events
from msg_jax.infra import logging
from msg_jax.stages.common import Run, text_digest
from msg_jax.stages.generator import Generator
from msg_jax.stages.listening import Hearing

FILE = "figures.json"
TIMING_SEC = 0.04  # the tolerance of the figures that end in 40ms: one frame of 25 fps video


def groups(records: list[dict]) -> dict[str, list[int]]:
    """Which clips are figures of their own: by the number of classes that sound, and those where one source replaces another.

    The latter are told by their caption, "..., then ...", as the scenes write it (data/scenes.py).
    """
    classes = [len(set(record["events"][record["events"][:, 0] >= 0, 0])) for record in records]
    found = {
        "all": list(range(len(records))),
        "transition": [i for i, record in enumerate(records) if ", then " in record["caption"]],
        "1_source": [i for i, count in enumerate(classes) if count == 1],
        "2_sources": [i for i, count in enumerate(classes) if count == 2],
        "3_sources": [i for i, count in enumerate(classes) if count >= 3],
    }
    return {name: chosen for name, chosen in found.items() if chosen}


class Truth:
    """The held-out clips, their true events, and what the judge makes of any sound for them."""

    def __init__(self, run: Run, features: FeatureSource, hearing: Hearing, source: Any, clips: int):
        self._section, self._hearing = run.config.evaluate, hearing
        records = [{name: source[i][name] for name in ("events", "caption", "waveform")} for i in range(clips)]
        self._events = events.true_events(np.stack([record["events"] for record in records]))
        self._groups = groups(records)
        real = mel.log_mel(np.stack([record["waveform"] for record in records]), run.clip.mel)
        self._embeddings = hearing.detect(real)[1]
        self.reconstructed = hearing.decode(features.stack(range(clips), ("latents",))["latents"])

    def figures(self, log_mels: np.ndarray) -> dict[str, Any]:
        """F1 by group, and the judge's Fréchet distance to real sound, of log-mels (clips, T, M)."""
        found, embeddings = self._hearing.detect(log_mels)
        counts = events.clip_counts(self._events, found, self._section.tolerance_sec)
        exact = events.clip_counts(self._events, found, TIMING_SEC)
        counts |= {f"{name}_40ms": exact[name] for name in ("event_f1", "onset_f1")}
        figures = {"fd_judge": float(distribution.frechet_distance(embeddings, self._embeddings))}
        for group, chosen in self._groups.items():
            figures[group] = {"clips": len(chosen)} | {
                name: float(events.micro_f1(table[chosen].sum(axis=0))) for name, table in counts.items()
            }
        return figures


def make(run: Run, folder: pathlib.Path, seed: int | None) -> str:
    """Writes `figures.json`: `rows`, one for each guidance scale, and what the codec alone leaves of real sound."""
    section, features = run.config.evaluate, FeatureSource(run.folder("extract") / run.config.evaluate.split)
    source = run.source(section.split, features.kept)
    if not source.class_names:
        raise UserError(f"{run.config.data.source} has no event truth, without which there are no figures: use "
                        "config.data.source=scenes, or evaluate the base model alone.")
    hearing, clips = Hearing(run, source.class_names), min(section.clips, len(source))
    truth, generator, variables = Truth(run, features, hearing, source, clips), Generator(run, features), run.load("base", seed)
    rows = []
    for scale in section.guidance_scales:
        latents = generator.latents(
            variables, range(clips), seed=seed, purpose="test", guidance_scale=scale, steps=section.steps,
            batch_size=section.batch_size, prompts=section.get("prompts", False),
        )
        log_mels = np.concatenate([hearing.decode(chunk[:, 0]) for chunk in latents])
        rows.append({"guidance": scale} | truth.figures(log_mels))
    text = json.dumps({"rows": rows, "reconstructed": truth.figures(truth.reconstructed)}, indent=1)
    logging.write_atomically(folder / FILE, text + "\n")
    return text_digest(text)
