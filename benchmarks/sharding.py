"""python benchmarks/sharding.py [--variant=large_44k_v2] [--stage=base] [--mesh=1,8,1] [--batch=64] [--json=FILE]
                                  [--accumulate=1] [--remat] [--bfloat16]

What one training step of a released MM-DiT's shape, flow matching (`base`) or preference tuning (`avp_rpo`), needs of each
device of a mesh, without the memory for it: the step is compiled from shapes alone, on virtual CPU devices. Beside XLA's
figures stands the arithmetic: N parameters, their two moments and, of `base`, the moving average are 16 N or 12 N bytes, over
as many devices as parameters are split; the reference policy of `avp_rpo` is 4 N bytes more, whole on every device. Exits with
code 1 if what XLA takes as arguments is off by more than a tenth.
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
from ml_collections import ConfigDict

from configs import common
from msg_jax import train
from msg_jax.infra import explain, metering
from msg_jax.infra import mesh as mesh_lib
from msg_jax.models.mmdit import PRESETS, MMDiT, example_inputs
from msg_jax.stages.base import FlowTask, GeneratorTask
from msg_jax.stages.preference import PreferenceTask


class OfShapes:
    """A training of an MM-DiT of which nothing but shapes exists."""

    def __init__(self, model: MMDiT, section: ConfigDict, accumulate: int):
        self.model, self.section, self.accumulate, self.base = model, section, accumulate, {}
        self.ema_decay = section.get("ema_decay", 0.0)
        self.optimizer = train.make_optimizer(section.optimizer, section.steps)


class Flow(OfShapes, FlowTask):
    name = "base"


class Preference(OfShapes, PreferenceTask):
    name = "avp_rpo"


def make_task(stage: str, model: MMDiT, accumulate: int) -> GeneratorTask:
    config = common.get_config((), "tiny")  # whose rates change no shape
    return Flow(model, config.base, accumulate) if stage == "base" else Preference(model, config.preference, accumulate)


def compiled_step(
    task: GeneratorTask, mesh: jax.sharding.Mesh, batch: int
) -> tuple[jax.stages.Lowered, jax.stages.Compiled, train.TrainState]:
    """The step of a batch, and the state's shapes."""
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
    parser.add_argument("--bfloat16", action="store_true", help="compute as accelerators do")
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
          f"arithmetic                 {arithmetic:>18,.0f} bytes of one device\n"
          f"arguments of XLA's program {taken:>18,} bytes of one device\n"
          f"operations of one step     {flops:>18,.0f}, {flops / arguments.batch / 1e12:.3f} T for each clip\n"
          f"compiled in {time.monotonic() - begun:.0f} s")
    if arguments.json:
        figures = explain.figures(compiled, state) | {"parameters_count": parameters, "flops": flops, "taken": taken}
        pathlib.Path(arguments.json).write_text(json.dumps(figures | vars(arguments), indent=1))
    sys.exit(abs(taken / arithmetic - 1) > 0.1)


if __name__ == "__main__":
    main()
