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


WEIGHTS = RewardWeights(0.5, 1.5, 3.0, 2.0)


@pytest.mark.parametrize("weights", [WEIGHTS, RewardWeights(0.0, 0.0, 1.0, 0.0)])
@pytest.mark.parametrize("steps", [20, 22])  # with 22, the last window ends before the clip
def test_step_rewards_average_to_the_reward(weights, steps):
    config = tiny()
    video, audio = (random_embeddings(seed, config, steps) for seed in (0, 1))
    found = step_rewards(Reward(SFCAVP(config), None, weights), video, audio)
    assert found.shape == (2, steps)
    np.testing.assert_allclose(found.mean(axis=1), score(video, audio, weights)["reward"], atol=1e-5)


def test_the_reward_is_the_weighted_sum_of_the_cosines():
    video, audio = (random_embeddings(seed, tiny()) for seed in (0, 1))
    found = jax.tree.map(lambda x: x[0], score(video, audio, WEIGHTS))
    products = {name: np.asarray(getattr(video, name) * getattr(audio, name))[0] for name in ("semantic", "dynamic", "local")}
    terms = {
        "semantic": products["semantic"].sum(), "dynamic": products["dynamic"].sum(axis=-1).mean(),
        "window": products["local"].sum(axis=-1).mean(), "events": float((video.events * audio.events)[0].sum()),
    }
    total = 0.5 * terms["semantic"] + 1.5 * terms["dynamic"] + 3.0 * terms["window"] + 2.0 * terms["events"]
    assert {name: float(value) for name, value in found.items()} == pytest.approx(terms | {"reward": total}, abs=1e-5)


def test_a_window_spreads_its_cosine_over_its_steps():
    config = tiny()  # windows of 8 steps every 4
    video, audio = (random_embeddings(seed, config) for seed in (0, 1))
    (steps, _) = step_rewards(Reward(SFCAVP(config), None, RewardWeights(0.0, 0.0, 1.0, 0.0)), video, audio)
    first, second, third, fourth = (video.local * audio.local).sum(axis=-1)[0]
    share = 20 / (4 * 8)  # steps of the clip to those of the four windows
    want = np.repeat([first, first + second, second + third, third + fourth, fourth], 4) * share
    np.testing.assert_allclose(steps, want, atol=1e-6)
