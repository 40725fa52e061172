"""The reward: SF-CAVP's cosines and the agreement of sound events, of candidate audio against its video."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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


def score_candidates(
    reward: Reward, params: Params, video: Embeddings, log_mels: Array
) -> tuple[dict[str, Array], Array]:
    """Every term and the `reward`, each (B, N), of candidates' log-mels (B, N, T, M) against their video's embeddings.

    And the `step_rewards` (B, N, steps).
    """
    batch, candidates = log_mels.shape[:2]
    audio = embed_audio(reward, params, log_mels.reshape(-1, *log_mels.shape[2:]))
    repeated = jax.tree.map(lambda x: x.repeat(candidates, axis=0), video)
    terms, steps = score(repeated, audio, reward.weights), step_rewards(reward, repeated, audio)
    return {name: x.reshape(batch, candidates) for name, x in terms.items()}, steps.reshape(batch, candidates, -1)


def step_rewards(reward: Reward, video: Embeddings, audio: Embeddings) -> Array:
    """Where in the clip the reward comes from, (B, T) at `dynamic_hz`: its mean over time is the reward, up to a constant.

    A step has its dynamic cosine, the mean of the windows around it and, less the constant, its part in the agreement of
    the maps of events: of unit vectors, 1 - |a - b|^2 / 2 is the cosine. The semantic term belongs to no step.
    """
    weights, config = reward.weights, reward.sf_cavp.config
    dynamic, windows = (jnp.sum(getattr(video, name) * getattr(audio, name), axis=-1) for name in ("dynamic", "local"))
    steps = dynamic.shape[1]
    starts = np.arange(windows.shape[1])[:, None] * config.window_stride
    inside = (starts <= np.arange(steps)) & (np.arange(steps) < starts + config.window_steps)
    inside[-1] |= ~inside.any(axis=0)  # what is left at the end
    found = weights.dynamic * dynamic + weights.window * windows @ (inside / inside.sum(axis=0))
    if video.events is not None:
        found -= weights.events * steps / 2 * jnp.sum((video.events - audio.events) ** 2, axis=-1)
    return found
