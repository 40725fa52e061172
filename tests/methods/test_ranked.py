"""The rounds of a ranked method, on scripted candidates and rewards: what is sampled, paired, trained and stopped."""

import types

import jax
import numpy as np
import pytest
import toy_generator as toy

from msg_jax import networks
from msg_jax.config import tree
from msg_jax.data.features import FeatureWriter
from msg_jax.methods import AvpRpo, Oracle, RandomPairs
from msg_jax.methods import rounds as rounds_lib
from msg_jax.methods.candidates import SCORES, CandidatePool
from msg_jax.methods.method import Job
from msg_jax.recipes import presets
from msg_jax.run.run import Run

CLIPS, CANDIDATES, STEPS = 6, 3, toy.CONFIG.latent_tokens
RNG = np.random.default_rng(0)
STEP_REWARDS = RNG.normal(size=(CLIPS, CANDIDATES, STEPS)).astype(np.float32)
STEP_ERRORS = RNG.normal(size=(CLIPS, CANDIDATES, STEPS)).astype(np.float32)
SCORE_TABLE = RNG.normal(size=(CLIPS, CANDIDATES, len(SCORES))).astype(np.float32)
ORDER = np.array([2, 0, 1, 5, 4, 3])  # the clips of every round


class Pool:
    """Candidates of `slope` in every value but the first, which names the candidate; scripted scores."""

    def __init__(self, run, section, seed):
        self.section, self.filled = section, []
        self.codec_and_judge = types.SimpleNamespace(round_trip=lambda latents: latents + 100)

    def clips(self, number):
        return ORDER

    def fill(self, folder, number, variables):
        slope = float(variables["params"]["slope"])
        self.filled.append((number, slope))
        write_candidates(folder, slope)


def write_candidates(folder, slope):
    latents = np.full((CLIPS, CANDIDATES, STEPS, toy.CONFIG.latent_channels), slope, np.float32)
    latents[..., 0] = np.arange(CANDIDATES)[None, :, None]
    tables = {"latents": latents, "scores": SCORE_TABLE, "step_rewards": STEP_REWARDS, "step_errors": STEP_ERRORS}
    writer = FeatureWriter(folder, CLIPS, CLIPS)
    for shard, rows in writer.missing:
        writer.write(shard, [f"clip {i}" for i in ORDER], [{name: x[i] for name, x in tables.items()} for i in rows])
    writer.finish()


class Validation:
    """The reward is the model's slope; real sound has 1.8."""

    def __init__(self, pool):
        pass

    def metrics(self, variables):
        return {"reward": float(variables["params"]["slope"]), "reward_reconstructed": 1.8}


@pytest.fixture
def rounds(tmp_path, monkeypatch):
    """Makes the rounds of a method whose trainings add .7 to the slope, and records them."""
    for name, stand_in in (("CandidatePool", Pool), ("Validation", Validation)):
        monkeypatch.setattr(rounds_lib, name, stand_in)
    monkeypatch.setattr(networks, "generator", lambda *_: toy.Line())
    trained = []

    def fit(self, task, section, folder, *, seed):
        trained.append(task)
        params = jax.tree.map(lambda x: x + 0.7, task.reference["params"])
        return types.SimpleNamespace(params=params, ema_params=None)

    monkeypatch.setattr(Run, "fit", fit)
    features = toy.random_features(CLIPS)
    writer = FeatureWriter(tmp_path / "extract" / "train", CLIPS, CLIPS)
    writer.write(0, [f"clip {i}" for i in range(CLIPS)], [{name: x[i] for name, x in features.items()} for i in range(CLIPS)])
    writer.finish()
    write_candidates(tmp_path / "candidates", 0.5)
    monkeypatch.setattr(Job, "load", lambda self, system: toy.variables())

    def make(method, **preference):
        config = tree.replace(
            presets.get("smoke"), preference=dict(keep_share=1.0, join_cost=0.0, rounds=3, **preference), arms={"arm": method}
        )
        run = Run.create(config, tmp_path)
        return rounds_lib.Rounds(Job(run, "arm", tmp_path / "arm", 0), method), trained

    return make


def test_a_round_samples_trains_and_judges_the_model_of_the_round_before(rounds):
    made, trained = rounds(AvpRpo(), stop_at_real=False)
    tuned = made.tuned()
    # Round 0 uses the candidates of the base, slope .5, which are there already.
    assert made.pool.filled == [(1, pytest.approx(1.2)), (2, pytest.approx(1.9))]
    assert [float(task.reference["params"]["slope"]) for task in trained] == pytest.approx([0.5, 1.2, 1.9])
    assert [task.source[0]["loser"][0, 1] for task in trained] == pytest.approx([0.5, 1.2, 1.9])
    assert float(tuned["params"]["slope"]) == pytest.approx(2.6)


def test_rounds_stop_once_the_reward_reaches_that_of_real_sound(rounds):
    made, trained = rounds(AvpRpo())
    assert float(made.tuned()["params"]["slope"]) == pytest.approx(1.9) and len(trained) == 2


def pairs_of(rounds, method):
    """Candidate of each step of winners and losers, (CLIPS, STEPS), and the pairs with their clips."""
    made, trained = rounds(method, stop_at_real=False)
    made.tuned()
    source = trained[0].source
    items = [source[i] for i in range(len(source))]
    return [np.stack([item[side][:, 0] for item in items]) for side in ("winner", "loser")], items


@pytest.mark.parametrize(("method", "ranked_by"), [
    (AvpRpo(), STEP_REWARDS), (Oracle(), -STEP_ERRORS), (RandomPairs(), np.roll(STEP_REWARDS, 1, axis=0)),
])
def test_stitched_pairs_have_the_best_and_the_worst_moments(rounds, monkeypatch, method, ranked_by):
    (winner, loser), _ = pairs_of(rounds, method)
    np.testing.assert_array_equal(winner, ranked_by.argmax(axis=1))
    np.testing.assert_array_equal(loser, ranked_by.argmin(axis=1))


@pytest.mark.parametrize(("kind", "term"), [(AvpRpo, "reward"), (Oracle, "event_f1")])
def test_whole_candidates_are_ranked_by_their_score(rounds, kind, term):
    (winner, loser), items = pairs_of(rounds, kind(winner="best_of_n"))
    scores = SCORE_TABLE[..., SCORES.index(term)]
    np.testing.assert_array_equal(winner, np.repeat(scores.argmax(axis=1)[:, None], STEPS, axis=1))
    np.testing.assert_array_equal(loser, np.repeat(scores.argmin(axis=1)[:, None], STEPS, axis=1))
    features = toy.random_features(CLIPS)
    for item, clip in zip(items, ORDER):  # candidates and conditions are those of one clip
        assert item["id"] == f"clip {clip}"
        np.testing.assert_array_equal(item["clip"], features["clip"][clip])


@pytest.mark.parametrize(("winner", "added"), [("real", 0), ("real_reconstructed", 100)])
def test_real_sound_wins_over_the_worst_candidate(rounds, winner, added):
    (_, loser), items = pairs_of(rounds, AvpRpo(winner=winner))
    np.testing.assert_allclose([item["winner"] for item in items], toy.random_features(CLIPS)["latents"][ORDER] + added)
    worst = SCORE_TABLE[..., SCORES.index("reward")].argmin(axis=1)
    np.testing.assert_array_equal(loser, np.repeat(worst[:, None], STEPS, axis=1))


def test_random_rankings_differ_by_round_and_say_nothing():
    scores = np.repeat(SCORE_TABLE, 100, axis=0)
    first, second = (RandomPairs().rank_candidates(scores, np.random.default_rng((0, number, 1))) for number in (0, 1))
    best = scores[..., SCORES.index("reward")].argmax(axis=1)
    assert (first != second).all() and abs((first.argmax(axis=1) == best).mean() - 1 / CANDIDATES) < 0.06


def test_each_round_has_other_clips():
    def clips(number, seed=0):
        pool = types.SimpleNamespace(seed=seed, features=range(100), section=types.SimpleNamespace(videos=20))
        return CandidatePool.clips(pool, number).tolist()

    assert len(set(clips(0))) == 20 and clips(0) == clips(0)
    assert len(set(clips(0)) & set(clips(1))) < 12 and clips(0) != clips(0, seed=1)
