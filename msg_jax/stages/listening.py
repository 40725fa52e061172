"""The frozen networks that listen, ready for batches of any size: the codec, the judge and the reward model of a run."""

from collections.abc import Sequence
import functools

import jax
import numpy as np

from msg_jax import networks
from msg_jax.data import mel
from msg_jax.evaluation import detector, events
from msg_jax.infra import mesh as mesh_lib
from msg_jax.models.sf_cavp import TERMS
from msg_jax.preference import reward
from msg_jax.stages.common import Run
from msg_jax.types import Params


def in_batches(run: Run, function, batch_size: int, *arrays: np.ndarray):
    """`function` over the leading axis in batches of one shape, split over this process's devices; a last one is filled up."""
    outputs = []
    for start in range(0, len(arrays[0]), batch_size):
        chunks = [array[start : start + batch_size] for array in arrays]
        rows = len(chunks[0])
        filled = [np.concatenate([chunk, np.repeat(chunk[-1:], batch_size - rows, axis=0)]) for chunk in chunks]
        found = function(*mesh_lib.spread(filled, run.local_mesh))
        outputs.append(jax.tree.map(lambda x, rows=rows: np.asarray(x)[:rows], found))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *outputs)


class RewardModel:
    """A reward (preference/reward.py) and its parameters. Batches are `config.evaluate.batch_size` clips, whatever is asked."""

    def __init__(self, run: Run, cosines: reward.Reward, params: Params):
        self._run, self._batch = run, run.config.evaluate.batch_size
        self._reward = params
        self.terms = (*TERMS, *(("events",) if cosines.sound_events is not None else ()))
        self._embed_video = jax.jit(lambda params, x: reward.embed_video(cosines, params, networks.to_unit(x)))
        self._embed_audio = jax.jit(lambda params, x: reward.embed_audio(cosines, params, x))
        self._score = jax.jit(lambda params, video, x: reward.score_candidates(cosines, params, video, x))

    def embed_video(self, video: np.ndarray):
        """uint8 frames (B, T, H, W, 3) -> embeddings of the reward."""
        return in_batches(self._run, lambda x: self._embed_video(self._reward, x), self._batch, video)

    def embed_audio(self, log_mels: np.ndarray):
        return in_batches(self._run, lambda x: self._embed_audio(self._reward, x), self._batch, log_mels)

    def score(self, video, log_mels: np.ndarray) -> dict[str, np.ndarray]:
        """Reward terms (B, N) of candidates (B, N, T, M) against video embeddings of B clips."""
        return self.score_steps(video, log_mels)[0]

    def score_steps(self, video, log_mels: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The same, and the reward step by step (B, N, steps)."""
        leaves, structure = jax.tree.flatten(video)
        batch = max(1, self._batch // log_mels.shape[1])

        def score(log_mels, *leaves):
            return self._score(self._reward, jax.tree.unflatten(structure, leaves), log_mels)

        return in_batches(self._run, score, batch, log_mels, *leaves)


class Hearing:
    """The run's codec and its judge."""

    def __init__(self, run: Run, class_names: tuple[str, ...]):
        self._run, self._batch, self._class_names = run, run.config.evaluate.batch_size, class_names
        codec, self._codec = networks.codec(run.config, run.clip), run.frozen("encoder", "decoder")["codec"]
        self._decode, self._encode, self._vocode = (
            jax.jit(functools.partial(codec.apply, method=method)) for method in ("decode", "encode", "vocode")
        )

    @property
    def can_judge(self) -> bool:
        """Whether the run's data had the event truth that a judge is trained with."""
        return bool(self._class_names)

    @functools.cached_property
    def _judge(self):
        judge, params = networks.judge(self._class_names), self._run.load("judge")
        return jax.jit(lambda x: detector.detect(judge, params, x))

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Latents (..., T, C) -> log-mels (..., T, M)."""
        flat = latents.reshape(-1, *latents.shape[-2:])
        log_mels = in_batches(self._run, lambda x: self._decode(self._codec, x), self._batch, flat)
        return log_mels.reshape(*latents.shape[:-2], *log_mels.shape[1:])

    def encode(self, log_mels: np.ndarray) -> np.ndarray:
        return in_batches(self._run, lambda x: self._encode(self._codec, x), self._batch, log_mels)

    def vocode(self, log_mels: np.ndarray) -> np.ndarray:
        """Log-mels (B, T, M) -> waveforms (B, S)."""
        return in_batches(self._run, lambda x: self._vocode(self._codec, x), min(8, self._batch), log_mels)

    def heard_again(self, latents: np.ndarray) -> np.ndarray:
        """Latents through waveform and back: real audio with every trace that the codec leaves on generated audio."""
        waveforms = self.vocode(self.decode(latents))
        return self.encode(np.stack([mel.log_mel(waveform, self._run.clip.mel) for waveform in waveforms]))

    def detect(self, log_mels: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """The judge's event lists and embeddings (B, D)."""
        section = self._run.config.judge
        probability, embedding = in_batches(self._run, self._judge, self._batch, log_mels)
        found = events.decode_events(probability, self._run.clip.mel.frames_hz, section.threshold, section.min_gap_sec)
        return found, embedding

    def f1(self, truth: Sequence[np.ndarray], log_mels: np.ndarray, tolerance_sec: float) -> dict[str, np.ndarray]:
        """The scores of `events.clip_counts`, each (B, N), of candidates (B, N, T, M) against the true events of B clips."""
        clips, candidates = log_mels.shape[:2]
        found, _ = self.detect(log_mels.reshape(-1, *log_mels.shape[2:]))
        repeated = [events_ for events_ in truth for _ in range(candidates)]
        counts = events.clip_counts(repeated, found, tolerance_sec)
        return {name: np.nan_to_num(events.micro_f1(each), nan=1.0).reshape(clips, candidates) for name, each in counts.items()}

    def step_errors(self, truth: Sequence[np.ndarray], log_mels: np.ndarray, steps: int) -> np.ndarray:
        """How many events are missed or too many at each of `steps` of candidates (B, N, T, M): (B, N, steps)."""
        clips, candidates = log_mels.shape[:2]
        found, _ = self.detect(log_mels.reshape(-1, *log_mels.shape[2:]))
        counts = np.zeros((clips * candidates, steps), np.float32)
        for row, predicted in enumerate(found):
            wrong = events.errors(truth[row // candidates], predicted, self._run.config.evaluate.tolerance_sec)
            at = np.clip(wrong / self._run.clip.duration_sec * steps, 0, steps - 1).astype(int)
            np.add.at(counts[row], at, 1)
        return counts.reshape(clips, candidates, steps)

    def event_f1(self, truth: Sequence[np.ndarray], log_mels: np.ndarray) -> np.ndarray:
        """Class-aware event F1 (B, N) of candidates (B, N, T, M): the oracle."""
        return self.f1(truth, log_mels, self._run.config.evaluate.tolerance_sec)["event_f1"]


class Listener(Hearing, RewardModel):
    """The run's own reward, its codec and its judge."""

    def __init__(self, run: Run, class_names: tuple[str, ...]):
        Hearing.__init__(self, run, class_names)
        rewarder = networks.reward(run.config, run.clip)
        RewardModel.__init__(self, run, rewarder, {
            name: run.load(name) for name in ("sf_cavp", "sound_events") if getattr(rewarder, name) is not None
        })
