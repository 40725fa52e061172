"""python benchmarks/sharding.py [--variant=large_44k_v2] [--stage=base] [--mesh=1,8,1] [--batch=64] [--json=FILE]
                                  [--accumulate=1] [--remat] [--bfloat16]

Measure the memory per device of one training step of a released MM-DiT on a mesh: flow matching (`base`) or preference tuning
(`avp_rpo`). The step is compiled from shapes alone, on virtual CPU devices, so this machine need not hold the network.

XLA's numbers are compared with arithmetic. With N parameters, `base` takes 16 N bytes (weights, two moments, EMA) and `avp_rpo`
12 N, divided by the number of devices that parameters are split over. The reference policy of `avp_rpo` is another 4 N bytes,
whole on every device. Exits with code 1 if XLA's arguments differ from the arithmetic by more than 10 %.
"""

import argparse
import json
import math
import os
import pathlib
import sys
import time

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

from flax.core import meta
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from msg_jax.config import tree
from msg_jax.config.schema import Base, Preference
from msg_jax.infra import explain, metering
from msg_jax.infra import mesh as mesh_lib
from msg_jax.models.mmdit import PRESETS, MMDiT, example_inputs
from msg_jax.recipes import presets
from msg_jax.tasks.flow import FlowTask, GeneratorTask
from msg_jax.tasks.preference import PreferenceTask
from msg_jax.types import TrainState


class _ShapesOnly:
    """Initialises the task of a model that has shapes but no parameters, without a run."""

    def __init__(self, model: MMDiT, section: Base | Preference, accumulate: int):
        self.model, self.section, self.base = model, section, {}
        self.ema_decay = section.ema_decay if isinstance(section, Base) else 0.0
        self.use(tree.replace(section, accumulate=accumulate))


class FlowShapes(_ShapesOnly, FlowTask):
    name = "base"


class PreferenceShapes(_ShapesOnly, PreferenceTask):
    name = "avp_rpo"


def make_task(stage: str, model: MMDiT, accumulate: int) -> GeneratorTask:
    config = presets.get("tiny")  # its rates do not change shapes
    if stage == "base":
        return FlowShapes(model, config.base, accumulate)
    return PreferenceShapes(model, config.preference, accumulate)


def compiled_step(
    task: GeneratorTask, mesh: jax.sharding.Mesh, batch: int
) -> tuple[jax.stages.Lowered, jax.stages.Compiled, TrainState]:
    """Compile the step for a batch size; return it lowered and compiled, and the shapes of the state."""
    config = task.model.config

    def placed(tree, spec):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec)), tree)

    latents, _, conditions = jax.eval_shape(lambda: example_inputs(config, batch))
    inputs = {"latents": latents, "clip": conditions.clip, "sync": conditions.sync, "text": conditions.text}
    with jax.set_mesh(mesh):
        abstract = jax.eval_shape(task.init, jax.random.key(0))
        layout = mesh_lib.shardings(abstract, mesh)
        state = jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), meta.unbox(abstract), layout
        )
        frozen = {"buffers": jax.eval_shape(lambda: task.model.init(jax.random.key(0), *example_inputs(config))["buffers"])}
        if task.name == "avp_rpo":
            inputs |= {"winner": latents, "loser": latents}
            frozen = {"reference": frozen | {"params": state.params}}
        step = jax.jit(task.step, donate_argnums=0, out_shardings=(layout, None))
        inputs, frozen = placed(inputs, mesh_lib.BATCH), placed(frozen, mesh_lib.REPLICATED)
        lowered = step.lower(state, inputs, jax.random.key(0), frozen)
        return lowered, lowered.compile(), state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=sorted(PRESETS), default="large_44k_v2")
    parser.add_argument("--stage", choices=("base", "avp_rpo"), default="base")
    parser.add_argument("--mesh", default="1,8,1")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--remat", action="store_true")
    parser.add_argument("--bfloat16", action="store_true", help="compute in bfloat16, as accelerators do")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    shape = tuple(int(size) for size in arguments.mesh.split(","))
    mesh = mesh_lib.make_mesh(shape, jax.devices()[: math.prod(shape)])
    dtype = jnp.bfloat16 if arguments.bfloat16 else jnp.float32
    model = MMDiT(PRESETS[arguments.variant], dtype=dtype, remat=arguments.remat)
    begun = time.monotonic()
    lowered, compiled, state = compiled_step(make_task(arguments.stage, model, arguments.accumulate), mesh, arguments.batch)
    print(explain.describe(f"{arguments.variant}, {arguments.stage}", compiled, state, mesh))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    flops = metering.step_flops(lowered, arguments.accumulate)
    split = parameters / shape[1] / shape[2]
    arithmetic = 16 * split if arguments.stage == "base" else 12 * split + 4 * parameters
    taken = compiled.memory_analysis().argument_size_in_bytes
    print(f"\nparameters                 {parameters:>18,}\n"
          f"arithmetic                 {arithmetic:>18,.0f} bytes per device\n"
          f"XLA's arguments            {taken:>18,} bytes per device\n"
          f"operations per step        {flops:>18,.0f}, {flops / arguments.batch / 1e12:.3f} T per clip\n"
          f"compiled in {time.monotonic() - begun:.0f} s")
    if arguments.json:
        sizes = explain.device_memory(compiled, state) | {"parameters_count": parameters, "flops": flops, "taken": taken}
        pathlib.Path(arguments.json).write_text(json.dumps(sizes | vars(arguments), indent=1))
    sys.exit(abs(taken / arithmetic - 1) > 0.1)


if __name__ == "__main__":
    main()
