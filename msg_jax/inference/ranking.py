"""Keep the best of several sounds: a run's reward, or the released Synchformer, scores them against the video."""

from collections.abc import Sequence
import pathlib
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, UInt8
import numpy as np
import soxr

from msg_jax.clip import ClipSpec
from msg_jax.data import frontends, mel
from msg_jax.data.media import fit_length
from msg_jax.errors import UserError
from msg_jax.inference.desync import LEAST_SEC, DeSync
from msg_jax.inference.scorer import RewardScorer
from msg_jax.models.synchformer import SynchformerConfig


@runtime_checkable
class Ranker(Protocol):
    """Scores whole sounds by the windows of their video; the higher the better."""

    def embed(self, video: UInt8[np.ndarray, "T H W 3"]) -> Any:
        """The embeddings of a window's frames."""
        ...

    def score(self, embeddings: Sequence[Any], starts: Sequence[int], waveform: Float[np.ndarray, " S"]) -> float:
        """The score of a waveform; `embeddings` are those of the windows that begin at the latent tokens `starts`."""
        ...


class RewardRanker:
    """The mean reward of a run over the windows of a clip."""

    def __init__(self, scorer: RewardScorer, clip: ClipSpec):
        self._scorer, self._clip = scorer, clip

    def embed(self, video):
        return self._scorer.embed_video(video[None])

    def score(self, embeddings, starts, waveform):
        clip = self._clip
        padded = np.pad(waveform, (0, clip.audio_samples))
        sounds = np.stack([padded[start * clip.latent_samples :][: clip.audio_samples] for start in starts])
        videos = {name: np.concatenate([each[name] for each in embeddings]) for name in embeddings[0]}
        return float(self._scorer.score(videos, mel.log_mel(sounds, clip.mel)[:, None])["reward"].mean())


class DeSyncRanker:
    """Minus the expected absolute offset in seconds (DeSync), the mean over the windows of a clip."""

    def __init__(self, path: pathlib.Path, clip: ClipSpec, config: SynchformerConfig | None = None):
        self._network, self._clip = DeSync(path, config), clip

    def embed(self, video):
        """Frames at 25 Hz in the encoder's size. Raises UserError for fewer than `LEAST_SEC`."""
        if len(video) < LEAST_SEC * self._clip.video_hz:
            raise UserError(f"--best_of ranks sounds by DeSync, which needs {LEAST_SEC} s, and the video has "
                            f"{len(video) / self._clip.video_hz:.2f} s: leave it out")
        return self._network.encode_video(video), len(video) / self._clip.video_hz

    def score(self, embeddings, starts, waveform):
        scores = []
        for (video, sec), start in zip(embeddings, starts):
            sound = waveform[start * self._clip.latent_samples :]
            sound = soxr.resample(fit_length(sound, round(sec * self._clip.audio_hz)), self._clip.audio_hz,
                                  frontends.SYNCHFORMER_HZ)
            scores.append(-self._network.expected_sec(video, self._network.encode_audio(sound)))
        return float(np.mean(scores))
