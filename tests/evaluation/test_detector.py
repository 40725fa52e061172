import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from msg_jax.evaluation import bootstrap, detector, events

HZ, FRAMES, BANDS, CLASSES = 50.0, 64, 12, 3


def _toy_clips(clips: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Log-mels of noise with three events each; class k is a decaying tone in band 3 k + 1."""
    rng = np.random.default_rng(seed)
    mel = rng.normal(-9, 0.3, (clips, FRAMES, BANDS)).astype(np.float32)
    truth = np.full((clips, 3, 3), -1, np.float32)
    seconds = (np.arange(FRAMES) + 0.5) / HZ
    for clip in range(clips):
        for row in range(3):
            label, onset = rng.integers(CLASSES), rng.uniform(0.05, 1.1)
            truth[clip, row] = label, onset, onset + 0.2
            tone = -2 - 12 * (seconds - onset)
            band = mel[clip, :, 3 * label + 1]
            mel[clip, :, 3 * label + 1] = np.where(seconds >= onset, np.maximum(tone, band), band)
    return mel, truth


@pytest.mark.parametrize(("model", "width"), [
    (detector.EventDetector(CLASSES, width=24, blocks=1), 24),
    (detector.RecurrentDetector(CLASSES, widths=(16,), pools=(2,), recurrent=16), 32),
], ids=["convolutional", "recurrent"])
def test_detector_learns_class_and_onset(model, width):
    optimiser = optax.adam(5e-3)

    @jax.jit
    def step(params, state, key, mel, targets):
        def loss(params):
            return detector.detector_loss(model.apply({"params": params}, detector.augment(key, mel))[0], targets)

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimiser.update(grads, state)
        return optax.apply_updates(params, updates), state, value

    mel, truth = _toy_clips(512, seed=0)
    targets = events.frame_targets(truth, FRAMES, HZ, CLASSES)
    params = model.init(jax.random.key(0), mel[:1])["params"]
    state = optimiser.init(params)
    for index in range(140):
        rows = slice(32 * (index % 16), 32 * (index % 16) + 32)
        params, state, _ = step(params, state, jax.random.key(index), mel[rows], targets[rows])

    held_out, truth = _toy_clips(64, seed=1)
    probability, embedding = detector.detect(model, params, held_out)
    found = events.decode_events(np.asarray(probability), HZ, threshold=0.4, min_gap_sec=0.08)
    counts = events.clip_counts(events.true_events(truth), found)
    assert bootstrap.f1_interval(counts["event_f1"])["value"] > 0.9
    # The events of other clips score near chance: the score depends on onsets, not only on classes.
    shuffled = events.clip_counts(events.true_events(truth), found[1:] + found[:1])
    assert bootstrap.f1_interval(shuffled["event_f1"])["value"] < 0.35
    assert embedding.shape == (64, width)


def test_detector_ignores_batch_level_and_log_base():
    model = detector.EventDetector(CLASSES)
    mel, _ = _toy_clips(3, seed=2)
    params = model.init(jax.random.key(0), mel)["params"]
    logits, _ = model.apply({"params": params}, mel)
    np.testing.assert_allclose(model.apply({"params": params}, mel[1:2])[0][0], logits[1], atol=1e-4)
    decibels = model.apply({"params": params}, 20 / np.log(10) * mel + 30)[0]
    np.testing.assert_allclose(decibels, logits, atol=2e-2)


def test_detector_is_finite_for_silence():
    model = detector.EventDetector(CLASSES)
    silence = jnp.full((1, FRAMES, BANDS), -11.5)
    logits, embedding = model.init_with_output(jax.random.key(0), silence)[0]
    assert np.isfinite(logits).all() and np.isfinite(embedding).all()


def test_detector_has_about_160_000_parameters():
    shapes = jax.eval_shape(detector.EventDetector(8).init, jax.random.key(0), jnp.zeros((1, 160, 40)))
    assert 140_000 < sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) < 180_000


def test_detector_loss_by_hand():
    logits, targets = jnp.zeros((1, 1, 2)), jnp.array([[[1.0, 0.0]]])
    assert float(detector.detector_loss(logits, targets, positive_weight=4.0)) == pytest.approx(2.5 * np.log(2))


def test_augment_is_a_function_of_the_key_and_differs_between_clips():
    mel = jnp.asarray(np.repeat(_toy_clips(1, seed=3)[0], 2, axis=0))
    one, again, other = (detector.augment(jax.random.key(seed), mel) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other) and not np.allclose(one[0], one[1])
    # The change stays small compared with the 7 log units of an event.
    assert float(jnp.abs(one - mel).mean()) < 2
