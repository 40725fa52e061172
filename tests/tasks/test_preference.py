"""The preference step: the loss by hand on known errors, and its work shared out over devices."""

from flax.core import meta
import jax
import numpy as np
import pytest
from tasks.test_lora import Pairs, random_like

from msg_jax import networks
from msg_jax.config import tree
from msg_jax.infra import explain, hlo
from msg_jax.infra import mesh as mesh_lib
from msg_jax.models.mmdit import example_inputs
from msg_jax.recipes import presets
from msg_jax.run.run import Run
from msg_jax.tasks.preference import PreferenceTask
from msg_jax.types import Conditions, PreferenceBatch

BATCH = 16


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    config = tree.replace(
        presets.get("smoke"), arms={}, base=dict(hidden=16, fused_depth=0), preference=dict(batch_size=BATCH)
    )
    run = Run.create(config, tmp_path_factory.mktemp("preference"))
    model = networks.generator(config, run.clip, Pairs.dims, networks.compute_dtype())
    shapes = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model.config))
    return PreferenceTask(run, Pairs(model), config.preference, 0, random_like(shapes), Pairs.dims, "tuned")


def test_errors_are_those_of_each_side_alone(task):
    """Winners and losers share a batch, and guidance doubles it; each row is still its own clip's."""
    batch = {name: array[:4] for name, array in task.source.arrays.items()}
    conditions = Conditions.from_batch(batch)
    noise = np.random.default_rng(0).normal(size=batch["winner"].shape).astype(np.float32)
    t = np.linspace(0.1, 0.9, 4, dtype=np.float32)

    def errors(winner, loser):
        pairs = PreferenceBatch(winner=winner, loser=loser, real=winner, conditions=conditions)
        return jax.jit(lambda: task.errors(task.reference, pairs, noise, t, 2.0))()

    winner, loser = errors(batch["winner"], batch["loser"])
    swapped_loser, swapped_winner = errors(batch["loser"], batch["winner"])
    np.testing.assert_allclose(winner, swapped_winner, rtol=1e-5)
    np.testing.assert_allclose(loser, swapped_loser, rtol=1e-5)
    assert np.abs(winner - loser).min() > 1e-3

    model, data = task.model, np.asarray(task.model.apply(task.reference, batch["winner"], method="normalize"))
    x_t = (1 - t)[:, None, None] * noise + t[:, None, None] * data
    null = model.apply(task.reference, 4, method="null_conditions")
    seen = conditions.replace(text=null.text)  # candidates are sampled without captions
    towards, away = (model.apply(task.reference, x_t, t, each) for each in (seen, null))
    expected = np.square(2 * towards - away - (data - noise)).mean(axis=(1, 2))
    np.testing.assert_allclose(winner, expected, rtol=1e-4)


def test_every_device_does_its_share_of_the_step(task):
    """XLA counts an eighth of one device's operations on (4, 2, 1), and hardly any row moves.

    With winners and losers one after the other it counts three eighths, and 50 all-to-alls.
    """

    def compiled(shape):
        mesh = mesh_lib.make_mesh(shape, jax.devices()[: int(np.prod(shape))])
        with jax.set_mesh(mesh):
            abstract = jax.eval_shape(task.init, jax.random.key(0))
            layout = mesh_lib.shardings(abstract, mesh)
            state = jax.jit(lambda key: meta.unbox(task.init(key)), out_shardings=layout)(jax.random.key(0))
            frozen = mesh_lib.put(task.frozen, mesh_lib.shardings(task.frozen, mesh))
            batch = mesh_lib.put_batch(task.source.arrays, mesh)
            step = jax.jit(task.step, out_shardings=(layout, None))
            return step.lower(state, batch, jax.random.key(1), frozen).compile()

    whole, share = compiled((1, 1, 1)), compiled((4, 2, 1))
    assert share.cost_analysis()["flops"] < 1.25 * whole.cost_analysis()["flops"] / 8
    assert explain.collectives(hlo.parse(share.as_text(), 8).collectives())["all-to-all"][0] <= 12
