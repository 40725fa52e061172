"""Keep the best of several sounds: a run's reward scores them against the video."""

from collections.abc import Sequence

import jax
from jaxtyping import Float, UInt8
import numpy as np

from msg_jax.clip import ClipSpec
from msg_jax.data import mel
from msg_jax.inference.scorer import RewardScorer


class Ranker:
    """The reward of whole sounds: the mean over the windows of a clip."""

    def __init__(self, scorer: RewardScorer, clip: ClipSpec):
        self._scorer, self._clip = scorer, clip

    def embed(self, video: UInt8[np.ndarray, "T H W 3"]) -> object:
        """The embeddings of a window's frames."""
        return self._scorer.embed_video(video[None])

    def score(self, embeddings: Sequence[object], starts: Sequence[int], waveform: Float[np.ndarray, " S"]) -> float:
        """The mean reward of a waveform; `embeddings` are those of the windows that begin at the latent tokens `starts`."""
        clip = self._clip
        padded = np.pad(waveform, (0, clip.audio_samples))
        sounds = np.stack([padded[start * clip.latent_samples :][: clip.audio_samples] for start in starts])
        videos = jax.tree.map(lambda *rows: np.concatenate(rows), *embeddings)
        return float(self._scorer.score(videos, mel.log_mel(sounds, clip.mel)[:, None])["reward"].mean())
