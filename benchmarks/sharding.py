"""python benchmarks/sharding.py [--variant=large_44k_v2] [--mesh=1,8,1] [--batch=64] [--accumulate=1] [--remat] [--json=FILE]

What one training step of a released MM-DiT's shape needs of each device of a mesh, without the memory for it: the step is
compiled from shapes alone, on virtual CPU devices. Beside XLA's figures stands the arithmetic: N parameters, their gradients'
two moments and the moving average are 16 N bytes, over as many devices as parameters are split. Exits with code 1 if what XLA
takes as arguments is off by more than a tenth.
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

from configs.common import optimizer
from msg_jax import train
from msg_jax.infra import explain, metering
from msg_jax.infra import mesh as mesh_lib
from msg_jax.models.mmdit import PRESETS, MMDiT, example_inputs
from msg_jax.stages.base import FlowTask


class Shapes(FlowTask):
    """Flow matching of an MM-DiT of which nothing but shapes exists."""

    def __init__(self, model: MMDiT, accumulate: int):
        self.model, self.accumulate, self.ema_decay, self.name = model, accumulate, 0.999, "base"
        self.section = ConfigDict(dict(condition_dropout=0.1, text_dropout=0.1, lora_rank=0, ema_decay=0.999))
        self.optimizer = train.make_optimizer(optimizer(1e-4, 1000), 300_000)
        self.base = {}


def compiled_step(
    task: Shapes, mesh: jax.sharding.Mesh, batch: int
) -> tuple[jax.stages.Lowered, jax.stages.Compiled, train.TrainState]:
    """The step of a batch, and the state's shapes."""
    config = task.model.config
    latents, _, conditions = jax.eval_shape(lambda: example_inputs(config, batch))
    rows = NamedSharding(mesh, mesh_lib.BATCH)
    inputs = {"latents": latents, "clip": conditions.clip, "sync": conditions.sync, "text": conditions.text}
    inputs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), inputs)
    with jax.set_mesh(mesh):
        abstract = jax.eval_shape(task.init, jax.random.key(0))
        layout = mesh_lib.shardings(abstract, mesh)
        state = jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), meta.unbox(abstract), layout
        )
        buffers = jax.eval_shape(lambda: task.model.init(jax.random.key(0), *example_inputs(config))["buffers"])
        frozen = {"buffers": jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, mesh_lib.REPLICATED)), buffers
        )}
        step = jax.jit(task.step, donate_argnums=0, out_shardings=(layout, None))
        lowered = step.lower(state, inputs, jax.random.key(0), frozen)
        return lowered, lowered.compile(), state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=sorted(PRESETS), default="large_44k_v2")
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
    task = Shapes(MMDiT(PRESETS[arguments.variant], dtype=dtype, remat=arguments.remat), arguments.accumulate)
    begun = time.monotonic()
    lowered, compiled, state = compiled_step(task, mesh, arguments.batch)
    print(explain.describe(arguments.variant, compiled, state, mesh))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    flops = metering.step_flops(lowered, arguments.accumulate)
    arithmetic = 16 * parameters / shape[1] / shape[2]
    taken = compiled.memory_analysis().argument_size_in_bytes
    print(f"\nparameters                 {parameters:>18,}\n"
          f"state by arithmetic        {arithmetic:>18,.0f} bytes of one device\n"
          f"arguments of XLA's program {taken:>18,} bytes of one device\n"
          f"operations of one step     {flops:>18,.0f}, {flops / arguments.batch / 1e12:.3f} T for each clip\n"
          f"compiled in {time.monotonic() - begun:.0f} s")
    if arguments.json:
        figures = explain.figures(compiled, state) | {"parameters_count": parameters, "flops": flops, "taken": taken}
        pathlib.Path(arguments.json).write_text(json.dumps(figures | vars(arguments), indent=1))
    sys.exit(abs(taken / arithmetic - 1) > 0.1)


if __name__ == "__main__":
    main()
