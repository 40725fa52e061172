"""The codebook finds planted sounds and separates only kinds that look different."""

import numpy as np

from msg_jax.preference import codebook

HZ = 50.0


def _log_mel(bursts, frames=100, bands=8):
    """Log-mel of silence with a decaying burst at each (frame, bands)."""
    log_mel = np.full((frames, bands), -11.0, np.float32)
    for frame, where in bursts:
        tail = np.arange(frames - frame)
        log_mel[frame:, where] = np.maximum(log_mel[frame:, where], -11 + 8 * np.exp(-tail / 5)[:, None])
    return log_mel


def test_onsets_are_at_the_start_of_sounds():
    log_mels = np.stack([_log_mel([(20, slice(0, 4)), (60, slice(4, 8))]), _log_mel([])])
    clip, second = codebook.onsets(log_mels, HZ, 0.35)
    assert clip.tolist() == [0, 0]
    np.testing.assert_allclose(second, [20.5 / HZ, 60.5 / HZ], atol=1.5 / HZ)


def test_heard_codes_cluster_onsets_by_the_features_after_them():
    rng = np.random.default_rng(0)
    kinds = rng.integers(3, size=60)
    fast = rng.normal(0, 0.05, (60, 40, 16)).astype(np.float32)
    second = np.full(60, 0.8)
    for item, kind in enumerate(kinds):
        fast[item, 20:25, 4 * kind : 4 * kind + 4] += 1.0  # 25 Hz: 0.8 s is step 20
    codes = codebook.cluster_onsets(fast, 25.0, np.arange(60), second, 3, seed=0)
    assert len({(code, kind) for code, kind in zip(codes, kinds)}) == 3


def test_heard_codes_of_few_onsets_are_one_code():
    fast = np.random.default_rng(0).normal(size=(2, 40, 4))
    assert set(codebook.cluster_onsets(fast, 25.0, np.zeros(1, int), np.zeros(1), 8, 0)) == {0}
    assert codebook.cluster_onsets(fast, 25.0, np.zeros(0, int), np.zeros(0), 8, 0).shape == (0,)


def test_merge_joins_codes_with_similar_predictions():
    codes = np.repeat([0, 1, 3, 5], 10)  # some codes are unused
    predicted = np.zeros((40, 6))
    predicted[:20, :2] = 0.5  # the video cannot tell codes 0 and 1 apart
    predicted[20:30, 3], predicted[30:, 5] = 0.9, 0.9
    kinds = codebook.merge(codes, predicted, 3)
    assert len(set(kinds[:20])) == 1 and len({kinds[0], kinds[20], kinds[30]}) == 3 and max(kinds) == 2


def test_refine_combines_both_modalities_and_drops_unpredicted_onsets():
    labels = np.full((3, 2), 0.5, np.float32)
    detected = np.array([[0.6, 0.4], [0.4, 0.6], [0.9, 0.1]])
    predicted = np.array([[0.1, 0.9], [0.0, 1.0], [0.0, 0.0]])
    refined = codebook.refine(detected, predicted, labels)
    # (0.6 + .001)(0.1 + .001) against (0.4 + .001)(0.9 + .001): the video decides
    np.testing.assert_allclose(refined[0], np.array([0.060701, 0.361301]) / 0.422002, rtol=1e-4)
    assert refined[1].argmax() == 1 and refined[2].sum() == 0


def test_targets_peak_at_the_onset_with_the_height_of_its_label():
    found = codebook.targets(np.array([1]), np.array([0.42]), np.array([[0.25, 1.0]]), clips=2, steps=20, hz=25.0)
    assert found.shape == (2, 20, 2) and found[0].max() == 0
    assert found[1, :, 1].argmax() == 10  # 0.42 s is the centre of step 10
    np.testing.assert_allclose(found[1, 9:12, 1], np.exp(-0.5 * (np.array([-1, 0, 1]) / 0.8) ** 2), atol=1e-3)
    np.testing.assert_allclose(found[1, :, 0], 0.25 * found[1, :, 1], atol=1e-3)


def test_at_onsets_takes_the_maximum_over_three_steps():
    probability = np.zeros((1, 20, 1))
    probability[0, 11] = 0.7
    at = codebook.probability_at_onsets(probability, 25.0, np.zeros(3, int), np.array([0.42, 0.0, 0.78]))
    assert at[:, 0].tolist() == [0.7, 0.0, 0.0]
