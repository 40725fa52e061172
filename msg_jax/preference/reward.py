"""SF-CAVP as a reward: scores of candidate audio against its video."""

import jax

from msg_jax.models.sf_cavp import SFCAVP, Embeddings, RewardWeights, score
from msg_jax.types import Array, Params


def embed_video(model: SFCAVP, params: Params, video: Array) -> Embeddings:
    """Embeddings of (B, T, H, W, 3) in [-1, 1], once per video however many candidates there are."""
    return model.apply({"params": params}, video, method="encode_video")


def score_candidates(
    model: SFCAVP, params: Params, video: Embeddings, log_mels: Array, weights: RewardWeights
) -> dict[str, Array]:
    """Every term and the `reward`, each (B, N), of candidates' log-mels (B, N, T, M) against their video's embeddings."""
    batch, candidates = log_mels.shape[:2]
    audio = model.apply({"params": params}, log_mels.reshape(-1, *log_mels.shape[2:]), method="encode_audio")
    repeated = jax.tree.map(lambda x: x.repeat(candidates, axis=0), video)
    return {name: value.reshape(batch, candidates) for name, value in score(repeated, audio, weights).items()}
