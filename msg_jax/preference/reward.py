"""The reward of candidate audio for a video: SF-CAVP's cosines plus the agreement of sound events."""

from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from msg_jax.models.sf_cavp import SFCAVP, Embeddings, RewardWeights, score
from msg_jax.models.sound_events import SoundEvents, embedding
from msg_jax.types import Array, Params


class Reward(NamedTuple):
    """The reward's networks and weights.

    The `params` of the functions below have the parameters of SF-CAVP under `sf_cavp`, and all variables of the
    sound-event network under `sound_events`.
    """

    sf_cavp: SFCAVP
    sound_events: SoundEvents | None  # None disables the `events` term
    weights: RewardWeights


def embed_video(reward: Reward, params: Params, video: Float[Array, "B T H W 3"]) -> Embeddings:
    """Embed videos (B, T, H, W, 3) in [-1, 1]. Once per video is enough for any number of candidates."""
    return _embed(reward, params, video, "video", "predict")


def embed_audio(reward: Reward, params: Params, log_mel: Float[Array, "B T M"]) -> Embeddings:
    """Embed log-mels (B, T, M)."""
    return _embed(reward, params, log_mel, "audio", "detect")


def _embed(reward: Reward, params: Params, x: Array, modality: str, head: str) -> Embeddings:
    cavp = {"params": params["sf_cavp"]}
    embeddings = cast(Embeddings, reward.sf_cavp.apply(cavp, x, method=f"encode_{modality}"))
    if reward.sound_events is None:
        return embeddings
    features = reward.sf_cavp.apply(cavp, x, method=f"{modality}_features")  # under jit, XLA computes these once
    logits = cast(Array, reward.sound_events.apply(params["sound_events"], *features, method=head))
    return embeddings.replace(events=embedding(logits))


def score_candidates(
    reward: Reward, params: Params, video: Embeddings, log_mels: Float[Array, "B N T M"]
) -> tuple[dict[str, Float[Array, "B N"]], Float[Array, "B N steps"]]:
    """Score N candidates of each of B videos, from their log-mels (B, N, T, M) and the videos' embeddings.

    Returns every term and the `reward`, each (B, N), and the `step_rewards` (B, N, steps).
    """
    batch, candidates = log_mels.shape[:2]
    audio = embed_audio(reward, params, log_mels.reshape(-1, *log_mels.shape[2:]))
    repeated = jax.tree.map(lambda x: x.repeat(candidates, axis=0), video)
    terms, steps = score(repeated, audio, reward.weights), step_rewards(reward, repeated, audio)
    return {name: x.reshape(batch, candidates) for name, x in terms.items()}, steps.reshape(batch, candidates, -1)


def step_rewards(reward: Reward, video: Embeddings, audio: Embeddings) -> Float[Array, "B T"]:
    """Reward of each step of the clip, (B, T) at `dynamic_hz`. The mean over time is the reward.

    A step's reward is the weighted sum of
    - its dynamic cosine,
    - its share of the cosines of the windows that contain it: a window spreads its own over its steps,
    - its share of the event agreement: for unit vectors the cosine is 1 - |a - b|^2 / 2,
    - the semantic cosine, the same at every step.
    """
    weights, config = reward.weights, reward.sf_cavp.config
    semantic, dynamic, windows = (
        jnp.sum(getattr(video, name) * getattr(audio, name), axis=-1) for name in ("semantic", "dynamic", "local")
    )
    steps = dynamic.shape[1]
    starts = np.arange(windows.shape[1])[:, None] * config.window_stride
    in_window = (starts <= np.arange(steps)) & (np.arange(steps) < starts + config.window_steps)
    in_window[-1] |= ~in_window.any(axis=0)  # steps after the last window count as part of it
    spread = in_window / in_window.mean(axis=1, keepdims=True) / len(in_window)
    rewards = weights.semantic * semantic[:, None] + weights.dynamic * dynamic + weights.window * windows @ spread
    if video.events is not None and audio.events is not None:
        rewards += weights.events * (1 - steps / 2 * jnp.sum((video.events - audio.events) ** 2, axis=-1))
    return rewards
