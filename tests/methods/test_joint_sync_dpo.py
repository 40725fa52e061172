"""SyncDPO where sound and pictures are generated together: which stream of a loser is out of time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msg_jax.config.tree import replace
from msg_jax.errors import UserError
from msg_jax.methods import SyncDpo
from msg_jax.methods.sync_dpo import SyncDPOTask
from msg_jax.preference import distortions
from msg_jax.programs import checks
from msg_jax.recipes import runs
from msg_jax.run.run import Run
from msg_jax.tasks.flow import flow_draws

RULES = list(distortions.make_rules(3.2))


def losers(tmp_path, distorted, rule):
    """Two clips, and their losers under one rule."""
    run = Run.create(runs.joint("smoke"), tmp_path)
    task = SyncDPOTask(run, None, run.config.preference, 0, {}, {"text": 64}, "tuned", distorted=distorted)
    latents = jnp.asarray(np.random.default_rng(0).normal(size=(2, 40, 32 + 18)).astype(np.float32))
    index = jnp.full(2, RULES.index(rule))
    made = task.losers(jax.random.key(0), latents, index, distortions.strengths(jax.random.key(1), index, task.rules))
    assert made.shape == latents.shape
    return [np.asarray(each)[..., channels] for each in (latents, made) for channels in (slice(32), slice(32, None))]


def test_the_streams_that_are_distorted(tmp_path):
    sound, pictures, out_of_time, same = losers(tmp_path, "sound", "reversal")
    np.testing.assert_array_equal(out_of_time, sound[:, ::-1])
    np.testing.assert_array_equal(same, pictures)
    sound, pictures, same, out_of_time = losers(tmp_path, "picture", "reversal")
    np.testing.assert_array_equal(same, sound)
    np.testing.assert_array_equal(out_of_time, pictures[:, ::-1])
    # Apart from each other: the same rule would leave them in time.
    sound, pictures, swapped, reversed_ = losers(tmp_path, "both", "another_clip")
    np.testing.assert_array_equal(swapped, sound[::-1])
    np.testing.assert_array_equal(reversed_, pictures[:, ::-1])


def test_another_rule_is_of_the_same_level():
    rules = distortions.make_rules(3.2)
    assert [RULES[i] for i in distortions.another_rule(rules)] == [
        "reversal", "coarse_shift", "another_clip", "medium_shift", "speed", "shuffle",
        "time_warp", "moved_event", "fine_shift",
    ]


def test_pairs_are_compared_by_the_streams_that_are_scored(tmp_path):
    run = Run.create(runs.joint("smoke"), tmp_path)
    task = SyncDPOTask(run, None, run.config.preference, 0, {}, {"text": 64}, "tuned", scored=("picture",))
    np.testing.assert_allclose(task.model.error_weights(task.scored), [0] * 32 + [50 / 18] * 18)


def test_settings_that_contradict_each_other_are_refused():
    smoke = runs.joint("smoke")
    checks.check(smoke)
    for config, words in (
        (replace(runs.sync_dpo("smoke"), arms={"sync_dpo": SyncDpo(distorted="both")}), "distorted=both"),
        (replace(smoke, arms={"sync_dpo": SyncDpo(scored=())}), "scored is empty"),
        (replace(smoke, arms=runs.avp_rpo("smoke").arms), "avp_rpo learns from a reward"),
        (replace(smoke, joint=dict(video_to_audio=0.7, audio_to_video=0.4)), "at most 1"),
        (replace(smoke, augment=dict(concat=0.5), arms={}), "config.augment"),
        (replace(smoke, joint=dict(sets=("speech",))), "'speech'"),
        (replace(smoke, base=dict(objective="diffusion"), arms={}), "config.base.objective=flow"),
        (replace(smoke, clip=dict(duration_sec=3.3)), "whole frames"),
    ):
        with pytest.raises(UserError, match=words) as raised:
            checks.check(config)
        assert "\n" not in str(raised.value)


def test_trainings_draw_times_nearer_to_noise(tmp_path):
    config = runs.joint("smoke")
    task = SyncDPOTask(Run.create(config, tmp_path), None, config.preference, 0, {}, {"text": 64}, "tuned")
    for t in (task.times(jax.random.key(0), 4000), task.flow_draws(jax.random.key(0), jnp.zeros((4000, 2, 3)))["t"]):
        assert float(jnp.log(t / (1 - t)).mean()) == pytest.approx(-0.5, abs=0.05)  # the recipe's base.time_shift


def test_the_mixture_of_what_is_known():
    section, latents = runs.joint("smoke").base, jnp.zeros((4000, 2, 3))
    draws = flow_draws(jax.random.key(0), latents, section, known_shares=(0.15, 0.25))
    plain = flow_draws(jax.random.key(0), latents, section)
    known = np.asarray(draws.pop("known"))
    np.testing.assert_allclose(known.mean(axis=0), [0.15, 0.25], atol=0.02)
    assert not known.all(axis=1).any()
    jax.tree.map(np.testing.assert_array_equal, draws, plain)  # the other random numbers stay
