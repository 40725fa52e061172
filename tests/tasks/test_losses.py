"""The training losses of the generator, computed by hand for a network that is one line."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_generator as toy

from msg_jax import networks, train
from msg_jax.config import tree
from msg_jax.inference import sampling
from msg_jax.methods.sync_dpo import SyncDPOTask
from msg_jax.recipes import presets
from msg_jax.run.run import Run
from msg_jax.tasks.advantage import AdvantageTask
from msg_jax.tasks.flow import FlowTask, flow_draws
from msg_jax.tasks.preference import PreferenceTask
from msg_jax.tasks.student import StudentTask

CLIPS, GUIDANCE, BETA = 6, 2.0, 3.0
REFERENCE, POLICY = toy.variables(), toy.variables(slope=0.9, bias=0.3, null=0.4)


PREFERENCE = dict(
    dpo_guidance=GUIDANCE, beta=BETA, dpo_weight=0.5, winner_weight=0.25, real_weight=2.0, condition_dropout=0.5
)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(networks, "generator", lambda *_: toy.Line())
    config = tree.replace(presets.get("smoke"), arms={}, preference=PREFERENCE)
    return Run.create(config, tmp_path)


@pytest.fixture
def batch():
    features = toy.random_features(CLIPS)
    return features | {"winner": features["latents"] + 0.5, "loser": toy.random_features(CLIPS, seed=1)["latents"]}


def preference_task(run, **changes):
    section = tree.replace(run.config.preference, **changes)
    return PreferenceTask(run, None, section, 0, REFERENCE, toy.DIMS, "tuned")


def numpy(tree):
    return jax.tree.map(np.asarray, tree)


def dropped(rows, variables):
    """c (B,) of each row after its conditions were dropped."""
    null = float(variables["params"]["null"])
    video, text = rows["flow"]["drops"].T
    clip = np.where(video, null, rows["clip"].mean(axis=(1, 2)))
    return clip + 2 * np.where(text, 3 * null, rows["text"].mean(axis=(1, 2)))


@pytest.mark.parametrize("guidance", [1.0, GUIDANCE])
def test_the_preference_loss_and_its_parts(run, batch, guidance):
    """Winner and loser, policy and reference share noise and t; the reference is the frozen network."""
    task = preference_task(run, dpo_guidance=guidance)
    rows = task.draw(batch, jax.random.key(1), None)
    loss, metrics = jax.jit(task.loss)(POLICY["params"], rows, {"reference": REFERENCE})
    rows = numpy(rows)
    noise, t = rows["noise"], rows["t"]

    def clips(variables):  # without captions
        return rows["clip"].mean(axis=(1, 2)) + 6 * float(variables["params"]["null"])

    def guided_error(variables, latents):
        data, t_ = (latents - toy.MEAN) / toy.STD, t[:, None, None]
        x_t = (1 - t_) * noise + t_ * data
        towards = toy.velocity(variables, x_t, t, clips(variables))
        away = toy.velocity(variables, x_t, t, np.full(CLIPS, toy.null_condition(variables)))
        return np.square(guidance * towards + (1 - guidance) * away - (data - noise)).mean(axis=(1, 2))

    change = {
        side: guided_error(POLICY, rows[side]) - guided_error(REFERENCE, rows[side]) for side in ("winner", "loser")
    }
    inside = -BETA / 2 * (change["winner"] - change["loser"])
    dpo = np.log1p(np.exp(-inside)).mean()
    assert float(metrics["dpo"]) == pytest.approx(dpo, rel=1e-4)
    assert float(metrics["margin"]) == pytest.approx(inside.mean(), rel=1e-4)
    assert float(metrics["error_policy_winner"]) == pytest.approx(guided_error(POLICY, rows["winner"]).mean(), rel=1e-4)
    assert float(metrics["error_reference_loser"]) == pytest.approx(guided_error(REFERENCE, rows["loser"]).mean(), rel=1e-4)

    winner = toy.flow_errors(POLICY, rows["winner"], noise, t, clips(POLICY)).mean()
    flow = rows["flow"]
    real = toy.flow_errors(POLICY, rows["latents"], flow["noise"], flow["t"], dropped(rows, POLICY)).mean()
    assert float(metrics["error_real"]) == pytest.approx(real, rel=1e-4)
    assert float(loss) == pytest.approx(0.5 * dpo + 0.25 * winner + 2.0 * real, rel=1e-4)


def test_a_preference_step_favours_the_winner(run, batch):
    """From the reference, one step of the preference loss alone makes the margin positive; equal sides give none."""
    optimizer = dict(learning_rate=1e-2, warmup_steps=0)
    task = preference_task(run, winner_weight=0.0, real_weight=0.0, dpo_weight=1.0, optimizer=optimizer)
    frozen, key = {"reference": REFERENCE}, jax.random.key(1)
    state = train.create_state(REFERENCE["params"], task.optimizer, ema=False)
    step = jax.jit(task.step)
    tuned, before = step(state.replace(step=1), batch, key, frozen)
    assert float(before["dpo"]) == pytest.approx(np.log(2)) and float(before["margin"]) == 0
    _, after = step(tuned, batch, key, frozen)
    change = {side: float(after[f"error_policy_{side}"] - after[f"error_reference_{side}"]) for side in ("winner", "loser")}
    assert change["winner"] < change["loser"] and float(after["margin"]) > 0

    equal = batch | {"loser": batch["winner"]}
    _, metrics = step(tuned, equal, key, frozen)
    assert float(metrics["margin"]) == 0 and float(metrics["grad_norm"]) < 1e-5 < float(before["grad_norm"])


def test_captions_count_in_the_preference_loss_only_where_asked(run, batch):
    other = batch | {"text": batch["text"] + 1}
    for prompts in (False, True):
        task = preference_task(run, prompts=prompts, real_weight=0.0)
        losses = [
            float(task.loss(POLICY["params"], task.draw(each, jax.random.key(1), None), {"reference": REFERENCE})[0])
            for each in (batch, other)
        ]
        assert (losses[0] == losses[1]) != prompts


def flow_task(run, **fields):
    source = types.SimpleNamespace(dims=toy.DIMS)
    return FlowTask(run, source, run.config.preference, 0, initial=REFERENCE, **fields)


def test_the_flow_loss_drops_conditions_and_so_trains_the_null(run, batch):
    task = flow_task(run)
    rows = task.draw(batch, jax.random.key(2), None)
    drops = np.asarray(rows["flow"]["drops"])
    assert drops.any(axis=0).all() and not drops.all(axis=0).any()  # either side of each column is there
    (loss, _), gradient = jax.jit(jax.value_and_grad(task.loss, has_aux=True))(POLICY["params"], rows, task.frozen)
    assert abs(float(gradient["null"])) > 1e-3
    undropped = rows | {"flow": rows["flow"] | {"drops": jnp.zeros_like(drops)}}
    assert float(jax.grad(task.loss, has_aux=True)(POLICY["params"], undropped, task.frozen)[0]["null"]) == 0
    rows = numpy(rows)
    flow = rows["flow"]
    expected = toy.flow_errors(POLICY, rows["latents"], flow["noise"], flow["t"], dropped(rows, POLICY)).mean()
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_the_result_is_the_moving_average(run):
    averaged = toy.variables(slope=0.1)["params"]
    for ema, expected in ((averaged, averaged), (None, POLICY["params"])):
        task = flow_task(run, ema_decay=0.9 if ema else 0.0)
        state = train.create_state(POLICY["params"], task.optimizer, ema=False).replace(ema_params=ema)
        result = task.result(state)
        jax.tree.map(np.testing.assert_array_equal, result["params"], expected)
        np.testing.assert_array_equal(result["buffers"]["latent_std"], REFERENCE["buffers"]["latent_std"])


def test_the_moving_average_follows_slowly(run):
    """At step 19 its decay is min(.9, 20 / 29)."""
    task = flow_task(run, ema_decay=0.9)
    state = train.create_state(REFERENCE["params"], task.optimizer, ema=True).replace(step=19)
    moved = state.replace(params=jax.tree.map(lambda x: x + 1.0, state.params))
    still = jax.tree.map(np.zeros_like, state.params)
    after = train.apply_gradients(moved, still, task.optimizer, 0.9)
    change = jax.tree.map(lambda new, old: float(np.mean(new - old)), after.ema_params, REFERENCE["params"])
    assert change["slope"] == pytest.approx(9 / 29, rel=1e-2)


def test_sync_dpo_sets_the_clip_s_own_sound_against_its_distortion(run, batch, monkeypatch):
    steps = []

    def step(self, state, batch, rng, frozen):
        steps.append(batch)
        return state, {"tally": np.zeros((len(self.rules), 3))}

    monkeypatch.setattr(train.Task, "step", step)
    section = tree.replace(run.config.preference, batch_size=CLIPS)
    task = SyncDPOTask(run, None, section, 0, REFERENCE, toy.DIMS, "sync_dpo")
    state = train.create_state(REFERENCE["params"], task.optimizer, ema=False).replace(tally=jnp.zeros((len(task.rules), 3)))
    task.step(state, {name: jnp.asarray(x) for name, x in batch.items()}, jax.random.key(3), None)
    (seen,) = steps
    np.testing.assert_array_equal(seen["winner"], batch["latents"])
    assert (np.abs(np.asarray(seen["loser"]) - batch["latents"]).max(axis=(1, 2)) > 0.1).all()
    coarse = {list(task.rules).index(name) for name, rule in task.rules.items() if rule.level == "coarse"}
    assert set(np.asarray(seen["rule"]).tolist()) <= coarse  # the first step


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_student_learns_the_mean_velocity_of_its_teacher_s_steps(run, batch, steps):
    """By hand: four guided Euler steps of the teacher, in `steps` parts, without the video ever dropped."""
    section = tree.replace(run.config.preference, text_dropout=0.5)
    source = types.SimpleNamespace(dims=toy.DIMS)
    task = StudentTask(run, source, section, 0, REFERENCE, GUIDANCE, steps, 4, "student")
    rows = task.draw(batch, jax.random.key(6), None)
    loss, _ = jax.jit(task.loss)(POLICY["params"], rows, task.frozen)
    rows = numpy(rows)
    drops = rows["drops"][:, 0, 0]
    assert drops.any() and not drops.all()
    text = np.where(drops, 3 * float(REFERENCE["params"]["null"]), rows["text"].mean(axis=(1, 2)))
    clips = rows["clip"].mean(axis=(1, 2)) + 2 * text
    null = np.full(CLIPS, toy.null_condition(REFERENCE))
    path = [rows["noise"].astype(np.float64)]
    for step in range(4):
        t = np.full(CLIPS, step / 4)
        towards, away = (toy.velocity(REFERENCE, path[-1], t, each) for each in (clips, null))
        path.append(path[-1] + (GUIDANCE * towards + (1 - GUIDANCE) * away) / 4)
    path = path[:: 4 // steps]
    errors = [
        np.square(toy.velocity(POLICY, path[k], np.full(CLIPS, k / steps), clips) - steps * (path[k + 1] - path[k])).mean()
        for k in range(steps)
    ]
    assert float(loss) == pytest.approx(np.mean(errors), rel=1e-4)


def test_a_student_s_teacher_is_sampled_as_the_run_says(run, batch, monkeypatch):
    sampled = dict(guidance_rescale=0.7, guidance_projection=0.2)
    run = dataclasses.replace(run, config=tree.replace(run.config, sampling=sampled))
    given, guided = [], sampling.guided
    monkeypatch.setattr(sampling, "guided", lambda *args, **how: given.append((args[3:], how)) or guided(*args, **how))
    task = StudentTask(
        run, types.SimpleNamespace(dims=toy.DIMS), run.config.preference, 0, REFERENCE, GUIDANCE, 0, 4, "student"
    )
    task.loss(POLICY["params"], task.draw(batch, jax.random.key(5), None), task.frozen)
    assert given == [((GUIDANCE, 0.7), dict(projection=0.2, streams=()))]


def test_a_student_of_any_number_of_steps_learns_the_guided_velocity(run, batch):
    source = types.SimpleNamespace(dims=toy.DIMS)
    section = tree.replace(run.config.preference, text_dropout=0.0)
    task = StudentTask(run, source, section, 0, REFERENCE, GUIDANCE, 0, 4, "student")
    rows = task.draw(batch, jax.random.key(5), None)
    loss, _ = task.loss(POLICY["params"], rows, task.frozen)
    rows = numpy(rows)
    t, data = rows["t"], (rows["latents"] - toy.MEAN) / toy.STD
    x_t = (1 - t)[:, None, None] * rows["noise"] + t[:, None, None] * data
    clips = toy.condition(rows["clip"], rows["text"])
    towards, away = (toy.velocity(REFERENCE, x_t, t, each) for each in (clips, toy.null_condition(REFERENCE)))
    expected = np.square(toy.velocity(POLICY, x_t, t, clips) - GUIDANCE * towards - (1 - GUIDANCE) * away).mean()
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_nft_and_awm_train_on_weighted_samples_and_on_real_sound(run, batch):
    weight = np.random.default_rng(4).uniform(size=(CLIPS, toy.CONFIG.latent_tokens)).astype(np.float32)
    batch = batch | {"sample": batch["winner"], "weight": weight}
    seen = {}

    def objective(velocity, old, target, weight):
        seen.update(velocity=velocity, old=old, target=target, weight=weight)
        return jnp.float32(3.0)

    task = AdvantageTask(run, None, run.config.preference, 0, REFERENCE, toy.DIMS, "nft", objective)
    rows = task.draw(batch, jax.random.key(1), None)
    loss, metrics = task.loss(POLICY["params"], rows, task.frozen)
    rows = numpy(rows)
    data, t = (rows["sample"] - toy.MEAN) / toy.STD, rows["t"]
    x_t = (1 - t)[:, None, None] * rows["noise"] + t[:, None, None] * data
    for name, variables in (("velocity", POLICY), ("old", REFERENCE)):
        clips = rows["clip"].mean(axis=(1, 2)) + 6 * float(variables["params"]["null"])
        np.testing.assert_allclose(seen[name], toy.velocity(variables, x_t, t, clips), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(seen["target"], data - rows["noise"], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(seen["weight"], weight)
    assert float(loss) == pytest.approx(3.0 + 2.0 * float(metrics["error_real"]), rel=1e-5)


def test_video_and_text_are_dropped_with_their_own_probabilities(run):
    section = tree.replace(run.config.preference, condition_dropout=0.2, text_dropout=0.7)
    drops = flow_draws(jax.random.key(0), jnp.zeros((4000, 1, 1)), section)["drops"]
    np.testing.assert_allclose(drops.mean(axis=0), [0.2, 0.7], atol=0.03)
