import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msg_jax.models.sf_cavp import SFCAVP, Embeddings, RewardWeights, score, tiny
from msg_jax.preference.reward import Reward, step_rewards


def random_embeddings(seed, config, steps=20):
    """Random unit vectors for two clips, with the window count of `config`; event maps have unit norm over the clip."""
    keys = jax.random.split(jax.random.key(seed), 4)
    windows = (steps - config.window_steps) // config.window_stride + 1
    shapes = [(2, 4), (2, steps, 4), (2, windows, 4)]
    unit = [x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in map(jax.random.normal, keys, shapes)]
    maps = jax.random.uniform(keys[3], (2, steps, 3))
    return Embeddings(*unit, maps / jnp.sqrt((maps**2).sum(axis=(1, 2), keepdims=True)))


@pytest.mark.parametrize(("weights", "constant"), [
    (RewardWeights(0.0, 1.5, 0.0, 0.0), 0.0), (RewardWeights(0.0, 0.0, 0.0, 2.0), 2.0),
    (RewardWeights(0.0, 1.0, 0.0, 1.0), 1.0),
])
def test_step_rewards_average_to_the_reward_less_a_constant(weights, constant):
    config = tiny()
    video, audio = (random_embeddings(seed, config) for seed in (0, 1))
    steps = step_rewards(Reward(SFCAVP(config), None, weights), video, audio)
    np.testing.assert_allclose(steps.mean(axis=1), score(video, audio, weights)["reward"] - constant, atol=1e-5)


def test_step_rewards_average_the_windows_that_contain_the_step():
    config = tiny()  # windows of 8 steps every 4
    video, audio = (random_embeddings(seed, config) for seed in (0, 1))
    (steps, _) = step_rewards(Reward(SFCAVP(config), None, RewardWeights(0.0, 0.0, 1.0, 0.0)), video, audio)
    first, second, third, fourth = (video.local * audio.local).sum(axis=-1)[0]
    want = np.repeat([first, (first + second) / 2, (second + third) / 2, (third + fourth) / 2, fourth], 4)
    np.testing.assert_allclose(steps, want, atol=1e-6)
