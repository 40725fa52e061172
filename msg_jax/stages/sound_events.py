"""Fits the discrete term of the reward: a codebook of sound events, and heads that find them in video and audio.

It needs no labels, only SF-CAVP's frozen features of real training clips. Round 0 learns to predict k-means codes of the
audio from the video. Codes that the video cannot tell apart are then merged into kinds. Each further round trains both heads
on the kinds and lets them refine the labels (preference/codebook.py).
"""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from msg_jax import networks, train
from msg_jax.data import pipeline
from msg_jax.data.features import FeatureSource, FeatureWriter
from msg_jax.inference.batching import chunks, map_batches
from msg_jax.infra import checkpoint, logging, preemption, runtime
from msg_jax.infra import mesh as mesh_lib
from msg_jax.models.sound_events import statistics
from msg_jax.preference import codebook
from msg_jax.run.run import Run
from msg_jax.storage import Path
from msg_jax.types import Params

STREAMS = ("video_slow", "video_fast", "audio_slow", "audio_fast")
_AT_ONCE = 32
_SHARD_CLIPS = 16 * _AT_ONCE


@dataclasses.dataclass
class FeaturesAndTargets:
    """SF-CAVP's features of real clips, and the targets of their events; a record is one clip."""

    features: dict[str, np.ndarray]  # by STREAMS, (B, T, D) float16
    targets: np.ndarray  # (B, T, K)
    buffers: Params  # of the heads

    def __len__(self) -> int:
        return len(self.features["video_fast"])

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {name: value[index] for name, value in self.features.items()} | {"targets": self.targets[index]}


@dataclasses.dataclass
class SoundEventsTask(train.Task):
    """Binary cross-entropy of both heads against the targets of a round. Dropout drops a feature of a clip at all times."""

    run: Run
    clips: FeaturesAndTargets
    name: str

    def __post_init__(self):
        self.section = self.run.config.sound_events
        self.model = networks.sound_events(self.clips.targets.shape[-1])
        self.use(self.section)
        self.frozen = self.clips.buffers

    def init(self, rng):
        video_slow, video_fast, audio_slow, audio_fast = (
            jnp.zeros((1, *self.clips.features[name].shape[1:])) for name in STREAMS
        )
        params = self.model.init(rng, (video_slow, video_fast), (audio_slow, audio_fast))["params"]
        return train.create_state(params, self.optimizer, ema=False)

    def draw(self, batch, rng, frozen):
        kept = 1 - self.section.feature_dropout
        keys = dict(zip(STREAMS, jax.random.split(rng, len(STREAMS))))
        masks = {
            name: jax.random.bernoulli(keys[name], kept, (len(batch[name]), 1, batch[name].shape[-1])) / kept
            for name in STREAMS
        }
        return batch | {name: batch[name].astype(jnp.float32) * masks[name] for name in STREAMS}

    def loss(self, params, rows, frozen):
        video, audio = (tuple(rows[name] for name in each) for each in (STREAMS[:2], STREAMS[2:]))
        logits = self.model.apply({"params": params, "buffers": frozen}, video, audio)
        targets = rows["targets"].astype(jnp.float32)
        losses = [optax.sigmoid_binary_cross_entropy(each, targets).sum(axis=(1, 2)).mean() for each in logits]
        return sum(losses), {"loss_video": losses[0], "loss_audio": losses[1]}

    def batches(self):
        return self.run.batches(self.clips, self.section.batch_size, seed=self.run.config.seed)


def extract_features(run: Run, folder: Path, clips: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """SF-CAVP's features of the first `clips` training clips, and their log-mels (B, T, M).

    Shards of clips are split over the processes, and kept in `folder`.
    """
    source = pipeline.Readable(run.source("train", streams=("video",)), run.report_skipped)
    model, params = networks.reward_model(run.config, run.clip), run.load("sf_cavp")

    @jax.jit
    def features(params, video, log_mel):
        streams = (
            *model.apply({"params": params}, networks.to_unit(video), method="video_features"),
            *model.apply({"params": params}, log_mel, method="audio_features"),
        )
        return dict(zip(STREAMS, (x.astype(jnp.float16) for x in streams)))

    def read(index: int) -> dict:
        record = source[index]
        return {"id": record["id"]} | run.arrays(record)

    count = min(clips, len(source))
    writer = FeatureWriter(folder, count, _SHARD_CLIPS, jax.process_index(), jax.process_count())
    progress, missing = logging.Progress("features", count, "clip"), list(writer.missing)
    threads = pipeline.threads_or_cores(run.config.data.read_threads)
    ahead = pipeline.read_ahead(read, (i for _, rows in missing for i in rows), threads=threads, ahead=_AT_ONCE + threads)
    for shard, rows in missing:
        ids, items = [], []
        for start in range(0, len(rows), _AT_ONCE):
            batch = [clip for _, clip in itertools.islice(ahead, len(rows[start : start + _AT_ONCE]))]
            columns = {name: np.stack([clip[name] for clip in batch]) for name in ("video", "mel")}
            (padded,) = chunks(columns, _AT_ONCE)
            placed = mesh_lib.spread(padded, run.local_mesh)
            found = {name: np.asarray(x) for name, x in features(params, placed["video"], placed["mel"]).items()}
            items += [{name: x[i] for name, x in found.items()} | {"mel": clip["mel"]} for i, clip in enumerate(batch)]
            ids += [clip["id"] for clip in batch]
            progress.update(rows[start] + len(batch))
        writer.write(shard, ids, items)
        preemption.exit_if_requested(f"sound_events features {rows.stop}")
    runtime.barrier(f"features {folder}")
    writer.finish()
    written = FeatureSource(folder)
    whole = written.stack(range(len(written)), (*STREAMS, "mel"))
    return whole, whole.pop("mel")


def probabilities(variables: Params, features: dict[str, np.ndarray], kinds: int) -> tuple[np.ndarray, np.ndarray]:
    """Event probabilities (B, T, kinds) from the video and from the audio."""
    model = networks.sound_events(kinds)

    @jax.jit
    def both(video_slow, video_fast, audio_slow, audio_fast):
        logits = model.apply(variables, (video_slow, video_fast), (audio_slow, audio_fast))
        return tuple(jax.nn.sigmoid(each) for each in logits)

    return map_batches(both, _AT_ONCE, *(features[name] for name in STREAMS))


def make(run: Run, folder: Path, seed: int | None) -> str:
    section, hz = run.config.sound_events, networks.reward_model(run.config, run.clip).config.dynamic_hz
    features, log_mels = extract_features(run, folder / "features", section.clips)
    count, steps = features["video_fast"].shape[:2]
    nats = log_mels * math.log(run.clip.mel.log_base)
    clip, second = codebook.onsets(nats, run.clip.mel.frames_hz, section.onset_threshold)
    audio = features["audio_fast"]
    video_slow, video_fast, audio_slow, audio_fast = (features[name][:256] for name in STREAMS)
    buffers = statistics((video_slow, video_fast), (audio_slow, audio_fast))
    codes = codebook.cluster_onsets(audio, audio.shape[1] / run.clip.duration_sec, clip, second, section.codes, run.config.seed)
    labels = codebook.one_hot(codes, section.codes)
    logging.info("%-13s %d onsets in %d clips, %d codes", "sound_events", len(clip), count, len(np.unique(codes)))
    for number in range(section.rounds + 1):
        here = folder / f"round_{number}"
        clips = FeaturesAndTargets(features, codebook.targets(clip, second, labels, count, steps, hz), buffers)
        task = SoundEventsTask(run, clips, f"sound_events {number}")
        state = run.fit(task, section, here, seed=run.config.seed)
        variables = run.local({"params": state.params, "buffers": buffers})
        maps = probabilities(variables, features, labels.shape[1])
        predicted, detected = (codebook.probability_at_onsets(each, hz, clip, second) for each in maps)
        if number == 0:
            labels = codebook.one_hot(codebook.merge(codes, predicted, section.kinds), section.kinds)
        elif number < section.rounds:
            labels = codebook.refine(detected, predicted, labels)
    return checkpoint.export(folder / "params", variables)
