"""python benchmarks/accelerator.py [--budget=450] [--items=parity:mmdit,...] [--json=FILE] [--small]

Check an accelerator in eight minutes, without data or weights; launch/accelerator_check.sh calls it. Items, in this order:

    parity        relative L2 error of each network of small_16k against the CPU, in float32 at full precision and in the
                  device's compute type. Tests compare the CPU's results with reference tensors
    training      seconds of a step of base, AVP-RPO and SF-CAVP, its share of the device's peak (MFU), the bytes that it
                  needs, and beside them what `msg_jax.compile` predicts for the same program: a lower bound of the seconds
    generate      seconds from a video of 8 s to its sound, warm: 25 steps with guidance
    sampling      latent tokens a second of 25 guided steps, for 1 and for 32 clips
    attention     error and seconds of JAX's own kernel and of XLA's on the attention of large_44k_v2

The items run in a process of their own, one after the other. When the budget is spent, or at SIGTERM, it is ended, and the
table has what there is. An item that fails is a row with its reason. `--small`, the default on a CPU, takes toy sizes.
Exits with code 1 if an item failed or a float32 error exceeds 1e-4.
"""

import argparse
from collections.abc import Callable, Iterator
import dataclasses
import functools
import json
import pathlib
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import inference
from benchmarks.inference import RandomBundle, cases
from msg_jax import compile as compiling
from msg_jax import networks
from msg_jax.clip import MMAUDIO_16K
from msg_jax.config import tree
from msg_jax.config.schema import Config
from msg_jax.convert import bundle
from msg_jax.convert.bundle import VARIANTS, Network, Released, Variant
from msg_jax.infra import devices, operations
from msg_jax.models.clip_encoder import CLIPConfig
from msg_jax.models.mmdit import MMDiTConfig, attend
from msg_jax.models.synchformer import SynchformerConfig
from msg_jax.models.vae import VAEConfig
from msg_jax.models.vocoder import VocoderConfig
from msg_jax.recipes import presets

LIMIT = 1e-4
ATTENTION = (8, 486, 14, 64)  # clips, tokens, heads and width in a joint block of large_44k_v2


def toy() -> Variant:
    """A released system of toy widths; one window is 0.96 s."""
    clip = dataclasses.replace(MMAUDIO_16K, duration_sec=0.96, latent_channels=6, clip_video_px=28, video_px=32)
    sizes = dict(clip_dim=16, sync_dim=24, text_dim=20, hidden=16, heads=2, joint_depth=2, fused_depth=1)
    configs = {
        "mmdit": MMDiTConfig.for_clip(clip, **sizes),
        "clip": CLIPConfig(28, 14, 24, 2, 2, 20, 2, 2, vocabulary=520, features=16),
        "synchformer": SynchformerConfig(24, 2, 2, image_px=32),
        "vae": VAEConfig(80, 6, 8),
        "bigvgan": VocoderConfig(80, (4, 4, 2, 2, 2, 2), False, 64),
    }
    return Variant(clip, {kind: Network(Released(kind, 0), config) for kind, config in configs.items()})


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is measured: released systems, or toys."""

    systems: dict[str, Variant]  # the first one for parity
    trainings: dict[str, tuple[Config, str, int]]  # by name: config, stage, batch
    sampled: tuple[Config, tuple[int, ...]]  # config, and numbers of clips
    attention: tuple[int, int, int, int]


def sizes(small: bool) -> Sizes:
    if small:
        config = presets.get("smoke")
        trainings = {"base": (config, "base", 8), "avp_rpo": (config, "avp_rpo", 4), "sf_cavp": (config, "sf_cavp", 4)}
        return Sizes({"toy": toy()}, trainings, (config, (1, 4)), (1, 48, 2, 16))
    one, large = presets.get("small_16k"), presets.get("large_44k_v2")
    trainings = {
        "base small_16k": (one, "base", 32), "base large_44k_v2": (large, "base", 16), "avp_rpo small_16k": (one, "avp_rpo", 8),
        "sf_cavp r50": (one, "sf_cavp", 8), "avp_rpo large_44k_v2": (large, "avp_rpo", 4),
    }
    systems = {name: VARIANTS[name] for name in ("small_16k", "large_44k_v2")}
    return Sizes(systems, trainings, (one, (1, 32)), ATTENTION)


def parity(name: str, variant: bundle.Variant) -> dict[str, float]:
    """Relative L2 error of a network on the default device against the CPU."""

    def result(device: jax.Device, dtype: Any) -> np.ndarray:
        case = cases(variant, dtype)[name]()
        rng = np.random.default_rng(0)
        inputs = jax.tree.map(lambda leaf: rng.uniform(0, 1, leaf.shape).astype(leaf.dtype), case.inputs)
        weights = RandomBundle(variant).load(case.kind, *case.prefixes)
        with jax.default_matmul_precision("highest" if dtype == jnp.float32 else "default"):
            return np.asarray(jax.jit(case.call)(*jax.device_put((weights, *inputs), device)), np.float64)

    here, reference = jax.devices()[0], result(jax.devices("cpu")[0], jnp.float32)

    def error(dtype) -> float:
        return float(np.linalg.norm(result(here, dtype) - reference) / np.linalg.norm(reference))

    return {"float32": error(jnp.float32), "compute_type": error(networks.compute_dtype())}


def compiled_row(program: compiling.Program) -> tuple[jax.stages.Compiled, dict[str, float]]:
    """Compile for this device; return also compile time, bytes, and the seconds that `msg_jax.compile` predicts."""
    begun = time.monotonic()
    compiled = program.traced.lower().compile()
    row = {"batch": program.batch, "compile_sec": time.monotonic() - begun}
    found = compiling.predict(program, compiled)
    row["peak_gb"] = found["memory"]["peak"] / 1e9
    return compiled, row | {name: found[name] for name in ("predicted_sec", "bottleneck") if name in found}


def example(shapes: Any) -> Any:
    """Arrays of these shapes: small random floats, zeros for counters, random pixels."""
    rng = np.random.default_rng(0)

    def make(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jnp.broadcast_to(jax.random.key(0), leaf.shape)
        if leaf.dtype == jnp.uint8:
            return rng.integers(0, 256, leaf.shape, np.uint8)
        small = rng.uniform(0.01, 0.03, leaf.shape) if jnp.issubdtype(leaf.dtype, jnp.floating) else np.zeros(leaf.shape)
        return small.astype(leaf.dtype)

    return jax.device_put(jax.tree.map(make, shapes), jax.devices()[0])


def rates(program: compiling.Program, seconds: float) -> dict[str, float]:
    """Seconds of a call, with FLOP/s and MFU."""
    flops, device = operations.count(program.traced.jaxpr), devices.find(jax.devices()[0].device_kind)
    row = {"step_sec": seconds, "tflop_per_sec": flops / seconds / 1e12}
    return row | ({"mfu": flops / seconds / device.flops} if device else {})


def training(config: Config, stage: str, batch: int, repeats: int = 5) -> dict[str, float]:
    """Seconds of a step whose batch is on the device already."""
    config = tree.replace(config, mesh=(1, 1, 1))
    program = compiling.Programs(config, jax.devices()[:1], batch).trace(stage)
    step, row = compiled_row(program)
    (shapes, *inputs), _ = program.traced.in_avals
    state, inputs = example(shapes), example(inputs)
    state, metrics = step(state, *inputs)
    jax.block_until_ready(metrics)
    begun = time.perf_counter()
    for _ in range(repeats):
        state, metrics = step(state, *inputs)
    jax.block_until_ready((state, metrics))
    return rates(program, (time.perf_counter() - begun) / repeats) | row | {"loss": float(metrics["loss"])}


def sampled(config: Config, clips: int) -> dict[str, float]:
    """Latent tokens a second of one sample for each of so many clips."""
    config = tree.replace(config, preference=dict(candidates=1))
    program = compiling.Programs(config, jax.devices()[:1], clips).trace("sampler")
    sample, row = compiled_row(program)
    inputs, _ = program.traced.in_avals
    inputs = example(inputs)
    seconds = [inference.best_of(lambda: sample(*inputs), 1) for _ in range(3)]  # the first call also allocates
    tokens = clips * config.clip.latent_tokens
    return rates(program, min(seconds[1:])) | row | {"tokens_per_sec": tokens / min(seconds[1:])}


def generated(variant: Variant) -> dict[str, float]:
    """Seconds of `generate`, warm, and of its parts."""
    row = inference.measure_generate(variant, 2)
    return {"seconds": row.pop("wall_sec"), **row}


def attention(shape: tuple[int, int, int, int]) -> dict[str, float]:
    """The default attention against XLA's: seconds, and errors of both against float32 on the CPU."""
    rng, dtype = np.random.default_rng(0), networks.compute_dtype()
    q, k, v = (jnp.asarray(rng.normal(size=shape), dtype) for _ in range(3))
    exact = np.asarray(attend(*jax.device_put([np.asarray(x, np.float32) for x in (q, k, v)], jax.devices("cpu")[0]), "xla"))
    row: dict[str, float] = {}
    kernels = {"default": None, "xla": "xla"} | ({"cudnn": "cudnn"} if jax.devices()[0].platform == "gpu" else {})
    for name, implementation in kernels.items():
        call = jax.jit(functools.partial(attend, implementation=implementation))
        found = np.asarray(call(q, k, v), np.float32)
        row[f"{name}_error"] = float(np.linalg.norm(found - exact) / np.linalg.norm(exact))
        row[f"{name}_sec"] = inference.best_of(lambda call=call: call(q, k, v), 10)
    return row


def items(chosen: Sizes) -> dict[str, Callable[[], dict[str, Any]]]:
    """Everything that is measured, by name, the most telling first."""
    first, *others = chosen.systems
    base, *trainings = chosen.trainings
    config, clips = chosen.sampled

    def train_item(name: str) -> dict[str, Callable[[], dict[str, Any]]]:
        return {f"training: {name}": lambda: training(*chosen.trainings[name])}

    def parities(*names: str) -> dict[str, Callable[[], dict[str, Any]]]:
        return {f"parity: {name}": lambda name=name: parity(name, chosen.systems[first]) for name in names}

    return (
        parities("mmdit", "vae", "bigvgan") | train_item(base)
        | {f"generate: {first}": lambda: generated(chosen.systems[first])}
        | parities("synchformer", "clip_text", "clip_image")
        | {f"attention: {chosen.attention}": lambda: attention(chosen.attention)}
        | {f"sampling: {count}": lambda count=count: sampled(config, count) for count in clips}
        | {name: call for each in trainings for name, call in train_item(each).items()}
        | {f"generate: {name}": lambda name=name: generated(chosen.systems[name]) for name in others}
    )


def measure(chosen: Sizes, names: list[str]) -> Iterator[dict[str, Any]]:
    """One row for each item; of a failed one, the reason."""
    found = items(chosen)
    for name in names:
        begun = time.monotonic()
        try:
            row = found[name]()
        except Exception as error:  # the others can still be measured
            row = {"failed": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
        yield {"item": name, **row, "took_sec": time.monotonic() - begun}


def in_a_process(arguments: list[str], deadline: float) -> Iterator[dict[str, Any]]:
    """The rows that this script prints when called so, until the deadline."""
    process = subprocess.Popen([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True)
    timer = threading.Timer(max(0.0, deadline - time.monotonic()), process.kill)
    timer.start()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                yield json.loads(line)
    finally:
        timer.cancel()
        process.kill()
        process.wait()


def show(row: dict) -> str:
    """One line: the item, then every number with its name."""
    values = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in row.items() if name != "item"}
    return f"{row['item']:<28} {'   '.join(f'{name} {value}' for name, value in values.items())}"


def failed(row: dict) -> bool:
    return "failed" in row or row.get("float32", 0.0) > LIMIT


def main(argv: list[str] | None = None) -> int:
    flags = argparse.ArgumentParser(usage=__doc__.partition("\n")[0], allow_abbrev=False)
    flags.add_argument("--budget", type=float, default=450.0, help="seconds")
    flags.add_argument("--items", help="names, or beginnings of names, separated by commas (default: all)")
    flags.add_argument("--json", type=pathlib.Path, help="write the rows to this file, after every item")
    flags.add_argument("--small", action="store_true", help="toy sizes")
    flags.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # internal: measure in this process
    args = flags.parse_args(argv)
    deadline = time.monotonic() + args.budget
    if args.here:
        chosen = sizes(args.small or jax.default_backend() == "cpu")
        names = [name for name in items(chosen) if not args.items or name.startswith(tuple(args.items.split(",")))]
        device = f"{len(jax.devices())} x {jax.devices()[0].device_kind}"
        print(json.dumps({"device": device, "items": names}), flush=True)
        for row in measure(chosen, names):
            print(json.dumps(row), flush=True)
        return 0
    return report(args, deadline)


def report(args: argparse.Namespace, deadline: float) -> int:
    """Measure in another process, and print the table."""
    given = [f"--items={args.items}"] if args.items else []
    found: list[dict[str, Any]] = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through `finally`, to the table
    head: dict[str, Any] = {}
    try:
        for row in in_a_process(["--here", *given, *(["--small"] if args.small else [])], deadline):
            if "device" in row:
                head = row
                print(row["device"], flush=True)
                continue
            found.append(row)
            print(show(row), flush=True)
            save(args.json, head, found)
    finally:
        left = head.get("items", [])[len(found) :]
        print(f"\n{head.get('device', 'no device answered')}: {len(found)} items, {len(left)} left")
        print("\n".join(map(show, found)))
        if left:
            print(f"not measured within {args.budget:.0f} s: {', '.join(left)}")
        save(args.json, head, found)
    return int(not found or any(map(failed, found)))


def save(path: pathlib.Path | None, head: dict[str, Any], found: list[dict[str, Any]]) -> None:
    if path:
        path.write_text(json.dumps({"device": head.get("device"), "rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
