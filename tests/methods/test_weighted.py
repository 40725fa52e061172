"""DiffusionNFT and AWM: what every candidate is weighed by."""

import numpy as np
import pytest
import toy_generator as toy

from msg_jax.methods import Awm, DiffusionNft
from msg_jax.methods.weighted import SampleSource, advantages


def test_advantages_compare_the_candidates_of_one_video():
    rewards = np.array([[1.0, 3.0], [10.0, 10.0]])
    np.testing.assert_allclose(advantages(rewards), np.array([[-1, 1], [0, 0]]) / np.sqrt(0.5))
    np.testing.assert_array_equal(advantages(np.ones((2, 3, 4))), np.zeros((2, 3, 4)))
    steps = np.random.default_rng(0).normal(size=(5, 4, 6))
    found = advantages(steps)
    np.testing.assert_allclose(found.mean(axis=1), 0, atol=1e-12)
    assert found.std() == pytest.approx(1)


def test_nft_s_rewards_lie_in_0_to_1_and_awm_s_advantages_are_unchanged():
    advantage = np.array([-5.0, -0.35, 0.0, 0.7, 5.0])
    np.testing.assert_allclose(DiffusionNft(clip=0.7).weights(advantage), [0, 0.25, 0.5, 1, 1])
    np.testing.assert_array_equal(Awm().weights(advantage), advantage)


def test_every_candidate_is_an_item_with_the_features_of_its_clip():
    features, latents = toy.random_features(4), np.random.default_rng(1).normal(size=(2, 3, 8, 3))
    weights = np.random.default_rng(2).uniform(size=(2, 3, 8))
    source = SampleSource(
        [{name: x[i] for name, x in features.items()} for i in range(4)], [{"latents": each} for each in latents],
        np.array([3, 1]), weights,
    )
    assert len(source) == 6
    for row, clip in enumerate((3, 1)):
        for candidate in range(3):
            item = source[3 * row + candidate]
            np.testing.assert_array_equal(item["sample"], latents[row, candidate])
            np.testing.assert_allclose(item["weight"], weights[row, candidate], rtol=1e-6)
            np.testing.assert_array_equal(item["clip"], features["clip"][clip])
