"""The frozen networks that listen, ready for batches of any size: the codec, the judge and the reward model of a run."""

from collections.abc import Sequence
import functools

import jax
import numpy as np

from msg_jax import networks
from msg_jax.data import mel
from msg_jax.evaluation import detector, events
from msg_jax.preference import reward
from msg_jax.stages.common import Run


def _in_batches(function, batch_size: int, *arrays: np.ndarray):
    """`function` over the leading axis in batches of one shape: the last is filled up and cut again."""
    outputs = []
    for start in range(0, len(arrays[0]), batch_size):
        chunks = [array[start : start + batch_size] for array in arrays]
        rows = len(chunks[0])
        filled = [np.concatenate([chunk, np.repeat(chunk[-1:], batch_size - rows, axis=0)]) for chunk in chunks]
        outputs.append(jax.tree.map(lambda x, rows=rows: np.asarray(x)[:rows], function(*filled)))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *outputs)


class Listener:
    """Batches are `config.evaluate.batch_size` clips, whatever is asked for."""

    def __init__(self, run: Run, class_names: tuple[str, ...]):
        config, clip = run.config, run.clip
        self._run, self._batch = run, config.evaluate.batch_size
        codec, self._codec = networks.codec(config, clip), run.load("codec")
        sf_cavp, self._sf_cavp = networks.reward_model(config, clip), run.load("sf_cavp")
        weights = networks.reward_weights(config)
        self._decode = jax.jit(lambda params, x: codec.apply({"params": params}, x, method="decode"))
        self._encode = jax.jit(lambda params, x: codec.apply({"params": params}, x, method="encode"))
        self._vocode = jax.jit(lambda params, x: codec.apply({"params": params}, x, method="vocode"))
        self._embed_video = jax.jit(lambda params, x: reward.embed_video(sf_cavp, params, networks.to_unit(x)))
        self._embed_audio = jax.jit(lambda params, x: sf_cavp.apply({"params": params}, x, method="encode_audio"))
        self._score = jax.jit(lambda params, video, x: reward.score_candidates(sf_cavp, params, video, x, weights))
        self._class_names = class_names

    @property
    def can_judge(self) -> bool:
        """Whether the run's data had the event truth that a judge is trained with."""
        return bool(self._class_names)

    @functools.cached_property
    def _judge(self):
        judge, params = networks.judge(self._class_names), self._run.load("judge")
        return jax.jit(lambda x: detector.detect(judge, params, x))

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Latents (B, T, C) -> log-mels (B, T, M)."""
        return _in_batches(lambda x: self._decode(self._codec, x), self._batch, latents)

    def encode(self, log_mels: np.ndarray) -> np.ndarray:
        return _in_batches(lambda x: self._encode(self._codec, x), self._batch, log_mels)

    def vocode(self, log_mels: np.ndarray) -> np.ndarray:
        """Log-mels (B, T, M) -> waveforms (B, S)."""
        return _in_batches(lambda x: self._vocode(self._codec, x), 8, log_mels)

    def heard_again(self, latents: np.ndarray) -> np.ndarray:
        """Latents through waveform and back: real audio with every trace that the codec leaves on generated audio."""
        waveforms = self.vocode(self.decode(latents))
        return self.encode(np.stack([mel.log_mel(waveform, self._run.clip.mel) for waveform in waveforms]))

    def embed_video(self, video: np.ndarray):
        """uint8 frames (B, T, H, W, 3) -> SF-CAVP embeddings."""
        return _in_batches(lambda x: self._embed_video(self._sf_cavp, x), self._batch, video)

    def embed_audio(self, log_mels: np.ndarray):
        return _in_batches(lambda x: self._embed_audio(self._sf_cavp, x), self._batch, log_mels)

    def score(self, video, log_mels: np.ndarray) -> dict[str, np.ndarray]:
        """Reward terms (B, N) of candidates (B, N, T, M) against video embeddings of B clips."""
        leaves, structure = jax.tree.flatten(video)
        batch = max(1, self._batch // log_mels.shape[1])

        def score(log_mels, *leaves):
            return self._score(self._sf_cavp, jax.tree.unflatten(structure, leaves), log_mels)

        return _in_batches(score, batch, log_mels, *leaves)

    def detect(self, log_mels: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """The judge's event lists and embeddings (B, D)."""
        section = self._run.config.judge
        probability, embedding = _in_batches(self._judge, self._batch, log_mels)
        found = events.decode_events(probability, self._run.clip.mel.frames_hz, section.threshold, section.min_gap_sec)
        return found, embedding

    def event_f1(self, truth: Sequence[np.ndarray], log_mels: np.ndarray) -> np.ndarray:
        """Class-aware event F1 (B, N) of candidates (B, N, T, M) against the true events of B clips: the oracle."""
        clips, candidates = log_mels.shape[:2]
        found, _ = self.detect(log_mels.reshape(-1, *log_mels.shape[2:]))
        repeated = [events_ for events_ in truth for _ in range(candidates)]
        counts = events.clip_counts(repeated, found, self._run.config.evaluate.tolerance_sec)["event_f1"]
        return np.nan_to_num(events.micro_f1(counts), nan=1.0).reshape(clips, candidates)
