"""Training adapters instead of the network: gradients by the chain rule, frozen weights, and a whole arm."""

import dataclasses
import re

from flax import linen as nn
from flax import traverse_util
from golden_files import relative_error
import jax
import numpy as np
import pytest

from msg_jax import networks
from msg_jax.config.tree import replace
from msg_jax.errors import UserError
from msg_jax.inference import loading
from msg_jax.infra import checkpoint, logging, mesh, preemption
from msg_jax.infra.record import read_record
from msg_jax.models import lora
from msg_jax.models.mmdit import example_inputs
from msg_jax.programs.plan import plan
from msg_jax.recipes import presets
from msg_jax.run.run import Run
from msg_jax.run.stage import ensure
from msg_jax.tasks.flow import FlowTask
from msg_jax.tasks.preference import PreferenceTask

SCALE = 0.5


def random_like(tree, seed=0):
    draw = np.random.default_rng(seed).normal
    return jax.tree.map(lambda leaf: 0.1 * draw(size=leaf.shape).astype(np.float32), nn.unbox(tree))


def flat(tree):
    return traverse_util.flatten_dict(tree, sep="/")


def only_targets_differ(before, after):
    """Whether exactly the kernels of attention and feed-forward in the blocks differ."""
    before, after = flat(before), flat(after)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    targets = re.compile(r"params/(joint|fused).*(qkv|out|w\d)/(dense|conv)/kernel")
    return changed == {name for name in before if targets.fullmatch(name)}


class Pairs:
    """Sixteen random pairs; serves a FlowTask as its FeatureSource too."""

    split, dims = "train", {"clip": 12, "sync": 10, "text": 6}

    def __init__(self, model):
        x, _, conditions = example_inputs(model.config, 16)
        latents = random_like({"winner": x, "loser": x, "latents": x}, seed=3)
        self.arrays = latents | random_like({name: getattr(conditions, name) for name in self.dims}, seed=4)

    def __len__(self):
        return 16

    def __getitem__(self, i):
        return {name: array[i] for name, array in self.arrays.items()}


@dataclasses.dataclass
class Toy:
    """A random network in a run without stages."""

    run: Run
    variables: dict
    pairs: Pairs

    def section(self, **changes):
        return replace(self.run.config.preference, **changes)

    def task(self, rank):
        return PreferenceTask(
            self.run, self.pairs, self.section(lora_rank=rank), 0, self.variables, self.pairs.dims, "tuned"
        )


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    config = replace(
        presets.get("smoke"), mesh=(2, 2, 2), base=dict(hidden=16, fused_depth=0),
        preference=dict(lora_scale=SCALE, steps=3, optimizer=dict(warmup_steps=0, learning_rate=1e-3)),
    )
    run = Run.create(config, tmp_path_factory.mktemp("toy"))
    model = networks.generator(config, run.clip, Pairs.dims, networks.compute_dtype())
    shapes = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model.config))
    return Toy(run, random_like(shapes), Pairs(model))


def test_gradients_are_those_of_the_merged_weights_by_the_chain_rule(toy):
    """dL/dA = scale dL/dW B^T and dL/dB = scale A^T dL/dW, summed over a convolution's window."""
    adapted, full = toy.task(2), toy.task(0)
    adapters = random_like(jax.eval_shape(adapted.start, jax.random.key(0)), seed=1)
    batch = {name: array[:4] for name, array in toy.pairs.arrays.items()}
    merged = lora.merge(lora.attach(toy.variables, adapters, SCALE))["params"]

    def gradients(adapters, merged, reference):
        rows = adapted.draw(batch, jax.random.key(2), None)
        return [jax.grad(task.loss, has_aux=True)(trained, rows, {"reference": reference})
                for task, trained in ((adapted, adapters), (full, merged))]

    fast = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # to compile
    (ours, metrics), (of_weights, expected_metrics) = jax.jit(gradients, compiler_options=fast)(adapters, merged, toy.variables)
    ours, of_weights = flat(ours), flat(of_weights)
    assert float(metrics["margin"]) == pytest.approx(float(expected_metrics["margin"]), rel=1e-3) != 0
    flat_adapters = flat(adapters)
    assert ours.keys() == flat_adapters.keys()
    of_kernels = {name.rsplit("/", 2)[0]: gradient for name, gradient in of_weights.items() if name.endswith("/kernel")}
    for layer in {name[:-2] for name in ours}:
        a, b, of_w = flat_adapters[f"{layer}/a"], flat_adapters[f"{layer}/b"], of_kernels[layer]
        of_b = SCALE * np.tensordot(a, of_w, axes=(range(a.ndim - 1), range(a.ndim - 1)))
        assert relative_error(ours[f"{layer}/a"], SCALE * of_w @ b.T) < 1e-3, layer
        assert relative_error(ours[f"{layer}/b"], of_b) < 1e-3, layer


def test_the_optimizer_holds_adapters_only(toy):
    task = toy.task(2)
    state = nn.unbox(jax.eval_shape(task.init, jax.random.key(0)))
    count = networks.count(state.params)
    assert task.pretrained is None and state.ema_params is None and count < 0.3 * networks.count(toy.variables["params"])
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim) == 2 * count
    assert task.frozen["reference"] is toy.variables


def test_flow_matching_trains_adapters_too(toy):
    section = toy.section(lora_rank=2, accumulate=2)
    task = FlowTask(toy.run, toy.pairs, section, 0, initial=toy.variables, ema_decay=0.5)
    state = nn.unbox(jax.eval_shape(task.init, jax.random.key(0)))
    after, metrics = jax.eval_shape(task.step, state, toy.pairs.arrays, jax.random.key(0), task.frozen)
    assert jax.tree.structure(after) == jax.tree.structure(state) and metrics["loss"].shape == ()
    assert networks.count(state.params) == networks.count(state.ema_params) < 0.3 * networks.count(toy.variables)


def test_the_ema_of_the_adapters_is_merged(toy):
    section = toy.section(lora_rank=2)
    task = FlowTask(toy.run, toy.pairs, section, 0, initial=toy.variables, ema_decay=0.9)
    state = nn.unbox(jax.eval_shape(task.init, jax.random.key(0)))
    assert jax.tree.map(lambda leaf: leaf.shape, state.ema_params) == jax.tree.map(lambda leaf: leaf.shape, state.params)
    average = random_like(state.params)
    merged = task.result(state.replace(ema_params=average))
    a, b = (average["joint_0"]["latent"]["qkv"][name] for name in "ab")
    kernels = [tree["params"]["joint_0"]["latent"]["qkv"]["dense"]["kernel"] for tree in (merged, toy.variables)]
    np.testing.assert_allclose(kernels[0], kernels[1] + SCALE * a @ b, rtol=1e-5)
    with pytest.raises(UserError, match=r"lora_rank=2 adapts a network, but config\.base\.initial names none"):
        FlowTask(toy.run, toy.pairs, section, 0)


def test_an_arm_with_adapters_resumes_after_a_stop_and_leaves_a_plain_network(smoke_run, tmp_path, monkeypatch):
    for made in smoke_run.iterdir():
        if made.name != "avp_rpo":
            (tmp_path / made.name).symlink_to(made)
    cache = read_record(smoke_run / "base")["config"]["data"]["cache"]
    config = replace(
        presets.get("smoke"), stages=("avp_rpo",), data=dict(cache=cache), preference=dict(lora_rank=2, rounds=1)
    )
    run = dataclasses.replace(Run.create(config, tmp_path), mesh=mesh.make_mesh((1, 1, 1), jax.devices()[:1]))
    stage = plan(config)["avp_rpo"]
    upstream = {name: read_record(run.folder(name))["digest"] for name in stage.needs}
    calls = iter(range(1, 100))
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(preemption, "requested", lambda: next(calls) >= 2)
        ensure(run, stage, 0, upstream)
    training = tmp_path / "avp_rpo/round_0/training"
    assert checkpoint.Checkpoints(training / "checkpoints").latest_step == 2
    digest = ensure(run, stage, 0, upstream)
    assert [row["step"] for row in logging.read_metrics(training / "metrics.jsonl")] == [2, 4]
    base, tuned = (checkpoint.load(tmp_path / stage / "params") for stage in ("base", "avp_rpo"))
    assert jax.tree.structure(base) == jax.tree.structure(tuned) and only_targets_differ(base, tuned)
    loaded = loading.load_checkpoint(tmp_path / "avp_rpo")
    assert loaded.digest == digest == checkpoint.digest(loaded.variables["generator"]) == checkpoint.digest(tuned)
