"""Fits the discrete part of the reward: a codebook of sound events, and the heads that find them in video and audio.

Works on the frozen features of SF-CAVP for real training clips, without labels. Round 0 learns to predict from the
video the codes that k-means found in the audio; codes that the video cannot tell apart are merged, and in each further
round both heads learn the kinds, whose labels they then refine together (preference/codebook.py).
"""

import dataclasses
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from msg_jax import networks, train
from msg_jax.data import mel, pipeline
from msg_jax.infra import checkpoint, logging
from msg_jax.models.sound_events import statistics
from msg_jax.preference import codebook
from msg_jax.stages.common import Run
from msg_jax.types import Params

STREAMS = ("video_slow", "video_fast", "audio_slow", "audio_fast")
_AT_ONCE = 32


@dataclasses.dataclass
class Clips:
    """Features of real clips and the targets of their events; a record is one clip."""

    features: dict[str, np.ndarray]  # by STREAMS, (B, T, D) float16
    targets: np.ndarray  # (B, T, K)
    buffers: Params  # of the heads

    def __len__(self) -> int:
        return len(self.features["video_fast"])

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {name: value[index] for name, value in self.features.items()} | {"targets": self.targets[index]}


@dataclasses.dataclass
class SoundEventsTask(train.Task):
    """Binary cross-entropy of both heads against the targets of a round. Features are dropped whole, clip by clip."""

    run: Run
    clips: Clips
    name: str

    def __post_init__(self):
        self.section = self.run.config.sound_events
        self.model = networks.sound_events(self.clips.targets.shape[-1])
        self.optimizer = train.make_optimizer(self.section.optimizer, self.section.steps)
        self.accumulate = self.section.accumulate
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


def extract_features(run: Run, clips: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """SF-CAVP's features of the first `clips` training clips, and their log-mels (B, T, M)."""
    source = pipeline.Readable(run.source("train"), run.report_skipped)
    model, params = networks.reward_model(run.config, run.clip), run.load("sf_cavp")

    @jax.jit
    def features(video, log_mel):
        streams = (
            *model.apply({"params": params}, networks.to_unit(video), method="video_features"),
            *model.apply({"params": params}, log_mel, method="audio_features"),
        )
        return dict(zip(STREAMS, (x.astype(jnp.float16) for x in streams)))

    parts, log_mels, count = [], [], min(clips, len(source))
    progress = logging.Progress("features", count, "clip")
    for start in range(0, count, _AT_ONCE):
        records = [source[min(start + i, count - 1)] for i in range(_AT_ONCE)]  # one shape, one compilation
        log_mel = mel.log_mel(np.stack([record["waveform"] for record in records]), run.clip.mel)
        parts.append(jax.tree.map(np.asarray, features(np.stack([record["video"] for record in records]), log_mel)))
        log_mels.append(log_mel)
        progress.update(min(start + _AT_ONCE, count))
    whole = {name: np.concatenate([part[name] for part in parts])[:count] for name in STREAMS}
    return whole, np.concatenate(log_mels)[:count]


def probabilities(variables: Params, features: dict[str, np.ndarray], kinds: int) -> tuple[np.ndarray, np.ndarray]:
    """What the video predicts and what the audio holds, (B, T, kinds) each."""
    model = networks.sound_events(kinds)

    @jax.jit
    def both(video_slow, video_fast, audio_slow, audio_fast):
        logits = model.apply(variables, (video_slow, video_fast), (audio_slow, audio_fast))
        return tuple(jax.nn.sigmoid(each) for each in logits)

    count = len(features["video_fast"])
    parts = []
    for start in range(0, count, _AT_ONCE):
        rows = np.minimum(np.arange(start, start + _AT_ONCE), count - 1)
        parts.append([np.asarray(each) for each in both(*(features[name][rows] for name in STREAMS))])
    seen, heard = (np.concatenate(each)[:count] for each in zip(*parts))
    return seen, heard


def make(run: Run, folder: pathlib.Path, seed: int | None) -> str:
    section, hz = run.config.sound_events, networks.reward_model(run.config, run.clip).config.dynamic_hz
    features, log_mels = extract_features(run, section.clips)
    count, steps = features["video_fast"].shape[:2]
    nats = log_mels * math.log(run.clip.mel.log_base)
    clip, second = codebook.onsets(nats, run.clip.mel.frames_hz, section.onset_threshold)
    audio = features["audio_fast"]
    some = [features[name][:256] for name in STREAMS]
    buffers = statistics(tuple(some[:2]), tuple(some[2:]))
    codes = codebook.heard_codes(audio, audio.shape[1] / run.clip.duration_sec, clip, second, section.codes, run.config.seed)
    labels = codebook.one_hot(codes, section.codes)
    logging.info("%-13s %d onsets in %d clips, %d codes", "sound_events", len(clip), count, len(np.unique(codes)))
    for number in range(section.rounds + 1):
        here = folder / f"round_{number}"
        clips = Clips(features, codebook.targets(clip, second, labels, count, steps, hz), buffers)
        state = train.fit(
            SoundEventsTask(run, clips, f"sound_events {number}"), seed=run.config.seed, **run.fit_options(section, here)
        )
        variables = run.local({"params": state.params, "buffers": buffers})
        seen, heard = (
            codebook.at_onsets(each, hz, clip, second) for each in probabilities(variables, features, labels.shape[1])
        )
        if number == 0:
            labels = codebook.one_hot(codebook.merge(codes, seen, section.kinds), section.kinds)
        elif number < section.rounds:
            labels = codebook.refine(heard, seen, labels)
    return checkpoint.export(folder / "params", variables)
