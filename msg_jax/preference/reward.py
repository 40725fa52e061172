"""The reward: SF-CAVP's cosines and the agreement of sound events, of candidate audio against its video."""

from typing import NamedTuple

import jax

from msg_jax.models.sf_cavp import SFCAVP, Embeddings, RewardWeights, score
from msg_jax.models.sound_events import SoundEvents, embedding
from msg_jax.types import Array, Params


class Reward(NamedTuple):
    """The networks of the reward. In `params`, `sf_cavp` are its parameters and `sound_events` all its variables."""

    sf_cavp: SFCAVP
    sound_events: SoundEvents | None  # None leaves the discrete term out
    weights: RewardWeights


def embed_video(reward: Reward, params: Params, video: Array) -> Embeddings:
    """Embeddings of (B, T, H, W, 3) in [-1, 1], once per video however many candidates there are."""
    return _embed(reward, params, video, "video", "predict")


def embed_audio(reward: Reward, params: Params, log_mel: Array) -> Embeddings:
    """Embeddings of log-mels (B, T, M)."""
    return _embed(reward, params, log_mel, "audio", "detect")


def _embed(reward: Reward, params: Params, x: Array, modality: str, head: str) -> Embeddings:
    cavp = {"params": params["sf_cavp"]}
    embeddings = reward.sf_cavp.apply(cavp, x, method=f"encode_{modality}")
    if reward.sound_events is None:
        return embeddings
    features = reward.sf_cavp.apply(cavp, x, method=f"{modality}_features")  # compiled together, computed once
    logits = reward.sound_events.apply(params["sound_events"], *features, method=head)
    return embeddings.replace(events=embedding(logits))


def score_candidates(reward: Reward, params: Params, video: Embeddings, log_mels: Array) -> dict[str, Array]:
    """Every term and the `reward`, each (B, N), of candidates' log-mels (B, N, T, M) against their video's embeddings."""
    batch, candidates = log_mels.shape[:2]
    audio = embed_audio(reward, params, log_mels.reshape(-1, *log_mels.shape[2:]))
    repeated = jax.tree.map(lambda x: x.repeat(candidates, axis=0), video)
    return {name: value.reshape(batch, candidates) for name, value in score(repeated, audio, reward.weights).items()}
