"""Agreement of two maps of event probabilities, by hand, and the rate of the heads."""

import jax
import jax.numpy as jnp
import numpy as np

from msg_jax.models.sound_events import SoundEvents, SoundEventsConfig, embedding


def _logit(p):
    return jnp.log(jnp.asarray(p)) - jnp.log1p(-jnp.asarray(p))


def test_agreement_is_the_cosine_of_root_probabilities():
    a, b = np.array([[0.81, 0.01], [0.04, 0.25]]), np.array([[0.49, 0.09], [0.01, 0.36]])
    by_hand = (0.9 * 0.7 + 0.1 * 0.3 + 0.2 * 0.1 + 0.5 * 0.6) / np.sqrt(1.11 * 0.95)
    agreement = jnp.sum(embedding(_logit(a)[None]) * embedding(_logit(b)[None]))
    np.testing.assert_allclose(agreement, by_hand, rtol=1e-5)
    np.testing.assert_allclose(jnp.sum(embedding(_logit(a)[None]) ** 2), 1.0, rtol=1e-6)


def test_extra_and_missing_events_both_lower_the_agreement():
    quiet, sure = 0.001, 0.9
    predicted = np.full((1, 20, 4), quiet)
    predicted[0, [3, 12], [1, 2]] = sure
    more, fewer, other = predicted.copy(), predicted.copy(), predicted.copy()
    more[0, 17, 0] = sure
    fewer[0, 12, 2] = quiet
    other[0, 12, [2, 3]] = quiet, sure
    same, *edited = (
        float(jnp.sum(embedding(_logit(predicted)) * embedding(_logit(found)))) for found in (predicted, more, fewer, other)
    )
    assert same > 0.9999 and max(edited) < 0.9 and edited[2] < min(edited[:2])


def test_heads_run_at_the_rate_of_the_fast_features():
    model = SoundEvents(SoundEventsConfig(kinds=3, width=8))
    slow, fast = jnp.ones((2, 5, 12)), jnp.ones((2, 20, 4))
    params = model.init(jax.random.key(0), (slow, fast), (slow[..., :6], fast))
    logits = model.apply(params, slow, fast, method="predict")
    assert logits.shape == (2, 20, 3)
    assert float(jax.nn.sigmoid(logits).mean()) < 0.1  # onsets are rare
