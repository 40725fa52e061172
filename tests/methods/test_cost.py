"""What a system cost: operations of trainings and of candidates, by hand and on a finished run."""

import json

import jax
import pytest

from msg_jax import networks, storage
from msg_jax.config.tree import replace
from msg_jax.convert.weights import shapes_of
from msg_jax.data.features import FeatureSource
from msg_jax.infra import operations
from msg_jax.methods import Merge, cost
from msg_jax.models.mmdit import example_inputs
from msg_jax.recipes import presets
from msg_jax.run import operations as run_operations
from msg_jax.run.run import Run


@pytest.fixture
def run(smoke_run):
    both = Merge(shares={"avp_rpo": 0.5, "random_pairs": 0.5})
    arms = dict(presets.get("smoke").arms) | {"both": both}
    return Run.create(replace(presets.get("smoke"), arms=arms, data=dict(cache=str(smoke_run.parent / "scenes"))), smoke_run)


@pytest.mark.parametrize("rate", [4.0, 0.1, 1 / 3, 7.77, 1234.567])
def test_a_training_costs_its_steps_times_the_operations_of_one(tmp_path, rate):
    rows = [{"step": step, "flops_per_sec": rate * 4_395_718_657, "steps_per_sec": rate} for step in (5, 10)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run_operations.of_training(storage.path(tmp_path)) == 43_957_186_570  # whatever the rate, to the last bit


def test_an_arm_has_the_cost_of_its_rounds_and_candidates_and_a_merge_that_of_each_part_once(run):
    own = cost.parts(run, "avp_rpo", 0)
    folders = {str(storage.path(folder).relative_to(run.root)) for folder in own}
    assert folders == {"candidates", "avp_rpo/round_0/training", "avp_rpo/round_1/training", "avp_rpo/round_1/candidates"}
    both = cost.parts(run, "both", 0)
    assert both == {**own, **cost.parts(run, "random_pairs", 0)} and len(both) == 7
    assert cost.total(run, "both", 0) == pytest.approx(sum(both.values()))
    assert cost.parts(run, "base", 0) == {}


def test_candidates_cost_a_pass_for_each_solver_step_and_another_with_guidance(run):
    dims = FeatureSource(run.folder("extract") / "train").dims
    section = replace(run.config.preference, videos=6, candidates=3, candidate_guidance=1.0, candidate_steps=2)
    model = networks.generator(run.config, run.clip, dims, networks.compute_dtype())
    x_t, t, conditions = jax.eval_shape(lambda: example_inputs(model.config))
    variables = shapes_of(model, *example_inputs(model.config))
    processed = jax.eval_shape(lambda v, c: model.apply(v, c, method="preprocess"), variables, conditions)
    one_pass = operations.count(
        jax.make_jaxpr(lambda v, x, t, c: model.apply(v, x, t, c, method="velocity"))(variables, x_t, t, processed)
    )
    short = run_operations.of_candidates(run, section, dims)
    longer = run_operations.of_candidates(run, replace(section, candidate_steps=4), dims)
    assert longer - short == pytest.approx(6 * 3 * 2 * one_pass, rel=1e-6)
    assert run_operations.of_candidates(run, replace(section, videos=12), dims) == 2 * short
    guided = run_operations.of_candidates(run, replace(section, candidate_guidance=2.0), dims)
    assert guided - short == pytest.approx(6 * 3 * 2 * one_pass, rel=0.02)  # and the null conditions, once
