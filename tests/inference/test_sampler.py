"""Samples of a network that is one line: their noise, conditions, order and scale."""

import jax
import numpy as np
import pytest
import toy_generator as toy

from msg_jax.data.features import FeatureSource
from msg_jax.inference import sampling
from msg_jax.inference.sampler import Sampler
from msg_jax.infra import mesh as mesh_lib
from msg_jax.infra.random import key_for

CLIPS, CANDIDATES, STEPS, GUIDANCE = 5, 2, 3, 2.0
FEATURES = toy.random_features(CLIPS)
VARIABLES = toy.variables(slope=0.9, bias=0.3, null=0.4)


class Source(FeatureSource):
    """The features of FEATURES, from memory."""

    dims = toy.DIMS

    def __init__(self):
        pass

    def stack(self, indices, names):
        return {name: FEATURES[name][indices] for name in names}


def samples(indices, **options):
    mesh = mesh_lib.make_mesh((1, 1, 1), jax.devices()[:1])
    options = dict(seed=0, purpose="a test", guidance_scale=GUIDANCE, steps=STEPS, batch_size=4) | options
    return np.concatenate(list(Sampler(toy.Line(), Source(), mesh, {}).latents(VARIABLES, indices, **options)))


def expected(clip, guidance, prompt):
    """Euler's method in the codec's units, for the candidates (CANDIDATES, T, C) of one clip."""
    c = toy.CONFIG
    key = jax.random.fold_in(key_for(0, "a test"), clip)
    x = np.asarray(jax.random.normal(key, (CANDIDATES, c.latent_tokens, c.latent_channels)), np.float64)
    null = float(VARIABLES["params"]["null"])
    condition = FEATURES["clip"][clip].mean() + 2 * (FEATURES["text"][clip].mean() if prompt else 3 * null)
    for step in range(STEPS):
        t = np.full(CANDIDATES, step / STEPS)
        towards, away = (toy.velocity(VARIABLES, x, t, each) for each in (condition, toy.null_condition(VARIABLES)))
        x = x + (guidance * towards + (1 - guidance) * away) / STEPS
    return x * toy.STD + toy.MEAN


@pytest.mark.parametrize("prompts", [False, True])
def test_samples_are_the_guided_integral_of_each_clip_s_own_noise(prompts):
    chosen = [3, 0, 4, 1, 2]
    found = samples(chosen, candidates=CANDIDATES, prompts=prompts)
    want = [expected(clip, GUIDANCE, prompts) for clip in chosen]
    assert found.shape == (CLIPS, CANDIDATES, toy.CONFIG.latent_tokens, toy.CONFIG.latent_channels)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)


def test_guidance_is_rescaled_as_the_run_says(monkeypatch):
    given, guided = [], sampling.guided
    monkeypatch.setattr(sampling, "guided", lambda *args, **how: given.append((args[3:], how)) or guided(*args, **how))
    mesh = mesh_lib.make_mesh((1, 1, 1), jax.devices()[:1])
    sampler = Sampler(toy.Line(), Source(), mesh, {"guidance_rescale": 0.6, "guidance_projection": 0.3})
    list(sampler.latents(VARIABLES, [0], seed=0, purpose="a test", guidance_scale=GUIDANCE, steps=STEPS, batch_size=1))
    assert given == [((GUIDANCE, 0.6, None), dict(projection=0.3, streams=()))]


def test_the_noise_of_a_clip_does_not_depend_on_its_batch_but_on_seed_and_purpose():
    alone, among = samples([2])[0], samples([0, 1, 2])[2]
    np.testing.assert_allclose(alone, among, rtol=1e-5)
    for other in (dict(seed=1), dict(purpose="another")):
        assert np.abs(samples([2], **other)[0] - alone).max() > 0.1


def test_unconditional_samples_ignore_the_video():
    mean = samples([0, 1], conditional=False).mean(axis=(1, 2, 3)) - samples([0, 1]).mean(axis=(1, 2, 3))
    null, guided = toy.null_condition(VARIABLES), FEATURES["clip"][:2].mean(axis=(1, 2)) + 6 * 0.4
    growth = toy.STD / STEPS * sum((1 + 0.9 / STEPS) ** k for k in range(STEPS))  # of a constant velocity
    np.testing.assert_allclose(mean, growth * GUIDANCE * (null - guided), rtol=1e-4)
