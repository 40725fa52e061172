"""python -m benchmarks.inference [--variant=small_16k] [--networks=clip_image,mmdit,...] [--json=FILE]

Time each network of a released variant on one clip of eight seconds, and all of `generate` (25 steps, guidance 4.5).

Weights are random; the time does not depend on them. Each row is measured in its own process, so that its peak memory is its
own. Columns:

    wall      seconds per clip without compilation: the best of a few calls, times the calls per clip
    compile   seconds
    GFLOP     operations of matrix products and convolutions
    GFLOP/s   the rate
    share     that rate as a share of what a large matrix product reaches on this device in the same process
    weights   GB of the network's weights
    working   GB that the compiled program uses beside weights and inputs
    peak      GB of resident memory of the whole process (host memory only)

The row of `generate` ends with the seconds of its parts: encode, sample, decode.
"""

import argparse
from collections.abc import Callable
import contextlib
import functools
import json
import math
import pathlib
import tempfile
import time
from typing import Any, NamedTuple
from unittest import mock

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import rows
from msg_jax import networks
from msg_jax.convert import bundle
from msg_jax.convert.weights import shapes_of
from msg_jax.data import media_writer
from msg_jax.inference import frozen, generate, loading, sampling
from msg_jax.inference.system import System
from msg_jax.infra import operations
from msg_jax.models.clip_encoder import CLIP
from msg_jax.models.mmdit import MMDiT, example_inputs
from msg_jax.models.synchformer import Synchformer
from msg_jax.models.vae import VAE
from msg_jax.models.vocoder import BigVGAN
from msg_jax.types import Array, Params

STEPS, GUIDANCE = 25, 4.5
PARTS = ("encode", "sample", "decode")  # methods of System that `measure_generate` times


class RandomBundle(bundle.Bundle):
    """The networks of a variant, with random weights instead of files."""

    vocabulary = None

    def __init__(self, variant: bundle.Variant):
        self.variant = variant
        self._shapes = {kind: bundle.shapes(kind, network.config) for kind, network in variant.networks.items()}

    def load(self, kind: str, *prefixes: str) -> Params:
        rng = np.random.default_rng(0)
        return traverse_util.unflatten_dict({
            name: jnp.ones(leaf.shape) if name.endswith("_std")  # networks divide by these
            else jnp.asarray(rng.uniform(-0.03, 0.03, leaf.shape).astype(np.float32))
            for name, leaf in self._shapes[kind].items() if name.startswith(prefixes or "")
        }, sep="/")

    def sha256(self, kind: str) -> str:
        return "random"

    def converted_bytes(self) -> int:
        return sum(4 * leaf.size for shapes in self._shapes.values() for leaf in shapes.values())


class Case(NamedTuple):
    """One call of a network."""

    kind: str  # of the network in its bundle
    prefixes: tuple[str, ...]  # of the variables that the call needs; empty: all
    call: Callable[..., Array]  # (variables, *inputs) -> output
    inputs: tuple[Array, ...]
    calls: int  # per clip


def cases(variant: bundle.Variant, dtype: Any = None) -> dict[str, Callable[[], Case]]:
    """The calls that `generate` makes for a clip of one window, by name; `dtype` replaces the device's compute type."""
    clip, dtype = variant.clip, dtype or networks.compute_dtype()
    config = {kind: network.config for kind, network in variant.networks.items()}
    frames_at_once, segments_at_once = frozen.items_at_once()

    def frames(count, px):
        return np.zeros((count, px, px, 3), np.float32)

    def clip_image():
        apply = functools.partial(CLIP(config["clip"], dtype).apply, method="encode_image")
        calls = math.ceil(clip.clip_video_frames / frames_at_once)
        return Case("clip", ("params/image/",), apply, (frames(frames_at_once, clip.clip_video_px),), calls)

    def clip_text():
        apply = functools.partial(CLIP(config["clip"], dtype).apply, method="encode_text")
        return Case("clip", ("params/text/",), apply, (np.zeros((1, clip.text_tokens), np.int32),), 1)

    def synchformer():
        segments = frames(segments_at_once * clip.sync_segment_frames, clip.video_px)
        segments = segments.reshape(segments_at_once, 1, clip.sync_segment_frames, *segments.shape[1:])
        calls = math.ceil(clip.sync_segments / segments_at_once)
        return Case("synchformer", (), Synchformer(config["synchformer"], dtype).apply, (segments,), calls)

    def mmdit():
        model = MMDiT(config["mmdit"], dtype)
        x, t, conditions = example_inputs(config["mmdit"])
        preprocess = functools.partial(model.apply, conditions=conditions, method="preprocess")
        shapes = jax.eval_shape(preprocess, shapes_of(model, x, t, conditions))
        processed = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)

        def guided_step(variables, x, t, cond, null):
            velocity = functools.partial(model.apply, variables, method="velocity")
            return sampling.guided(velocity, cond, null, GUIDANCE)(x, t)

        return Case("mmdit", (), guided_step, (x, t, processed, processed), STEPS)

    def vae():
        apply = functools.partial(VAE(config["vae"]).apply, method="decode")
        latents = np.zeros((1, clip.latent_tokens, clip.latent_channels), np.float32)
        return Case("vae", ("params/decoder/", "buffers/"), apply, (latents,), 1)

    def bigvgan():
        mel_frames = clip.mel_frames + 2 * config["bigvgan"].context_frames
        log_mel = np.zeros((1, mel_frames, clip.mel.bands), np.float32)
        return Case("bigvgan", (), BigVGAN(config["bigvgan"]).apply, (log_mel,), 1)

    return {"clip_image": clip_image, "clip_text": clip_text, "synchformer": synchformer, "mmdit": mmdit, "vae": vae,
            "bigvgan": bigvgan}


def best_of(call: Callable[[], Array], repeats: int) -> float:
    """Seconds of the fastest of `repeats` calls."""
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def matmul_rate(size: int = 2048) -> float:
    """FLOP/s of a square matrix product in the compute type of the networks."""
    a = jnp.ones((size, size), networks.compute_dtype())
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    return 2 * size**3 / best_of(lambda: product(a, a), 5)


def measure_network(case: Case, variables: Params, repeats: int) -> dict[str, float]:
    """The row of one network."""
    program = jax.jit(case.call).trace(variables, *case.inputs)
    lowered = program.lower()
    begun = time.perf_counter()
    compiled = lowered.compile()
    compile_sec = time.perf_counter() - begun
    jax.block_until_ready(compiled(variables, *case.inputs))
    wall = case.calls * best_of(lambda: compiled(variables, *case.inputs), repeats)
    flops = case.calls * operations.count(program.jaxpr)
    return {
        "compile_sec": compile_sec, "wall_sec": wall, "gflop": flops / 1e9, "gflop_per_sec": flops / wall / 1e9,
        "share_of_matmul": flops / wall / matmul_rate(),
        "weights_gb": sum(leaf.nbytes for leaf in jax.tree.leaves(variables)) / 1e9,
        "working_gb": compiled.memory_analysis().temp_size_in_bytes / 1e9,
    }


def measure_generate(variant: bundle.Variant, repeats: int) -> dict[str, float]:
    """The row of `generate`: from the video file of one clip to its waveform, weights loaded each time.

    The first call compiles. The seconds of the parts are those of the last call.
    """
    system, parts = loading.from_bundle(RandomBundle(variant)), {}

    def timed(name: str) -> Callable[..., Any]:
        method = getattr(System, name)

        def call(*args, **options):
            begun = time.perf_counter()
            result = jax.block_until_ready(method(*args, **options))
            parts[f"{name}_sec"] = time.perf_counter() - begun
            return result

        return call

    frames = np.random.default_rng(0).integers(0, 256, (variant.clip.video_frames, 240, 320, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "clip.mp4"
        silence = np.zeros(variant.clip.audio_samples, np.float32)
        path.write_bytes(media_writer.encode_video(frames, variant.clip.video_hz, silence, variant.clip.audio_hz))
        video, settings = generate.Video(path, path.name), generate.Settings(STEPS, GUIDANCE)

        def make_sound():
            return next(generate.takes_for(system, video, settings)).waveform

        with contextlib.ExitStack() as stack:
            for name in PARTS:
                stack.enter_context(mock.patch.object(System, name, timed(name)))
            first, rest = best_of(make_sound, 1), best_of(make_sound, repeats)
    return {"compile_sec": first - rest, "wall_sec": rest} | parts


def measure(name: str, variant: bundle.Variant, repeats: int) -> dict[str, float]:
    """One row, measured in this process; its peak memory is that of the process so far."""
    if name == "generate":
        row = measure_generate(variant, repeats)
    else:
        case = cases(variant)[name]()
        row = measure_network(case, RandomBundle(variant).load(case.kind, *case.prefixes), repeats)
    return {"network": name, **row, "peak_gb": rows.peak_gb()}


COLUMNS = {
    "wall_sec": "wall s", "compile_sec": "compile s", "gflop": "GFLOP", "gflop_per_sec": "GFLOP/s",
    "share_of_matmul": "share", "weights_gb": "weights", "working_gb": "working", "peak_gb": "peak",
}


def show(row: dict) -> str:
    cells = [f"{row[name]:>9.3g}" if name in row else " " * 9 for name in COLUMNS]
    parts = [f"{name} {row[f'{name}_sec']:.3g}" for name in PARTS if f"{name}_sec" in row]
    return " ".join([f"{row['network']:<12}", *cells, *parts])


def main(argv: list[str] | None = None) -> None:
    flags = argparse.ArgumentParser(usage=__doc__.partition("\n")[0], allow_abbrev=False)
    flags.add_argument("--variant", default="small_16k", choices=bundle.VARIANTS)
    flags.add_argument("--networks", default="clip_image,clip_text,synchformer,mmdit,vae,bigvgan,generate")
    flags.add_argument("--repeats", type=int, default=3)
    flags.add_argument("--json", type=pathlib.Path, help="also write the rows to this file")
    flags.add_argument("--here", help=argparse.SUPPRESS)  # internal: print the row of this network
    args = flags.parse_args(argv)
    if args.here:
        print(json.dumps(measure(args.here, bundle.VARIANTS[args.variant], args.repeats)))
        return
    print(" ".join([f"{'network':<12}", *(f"{title:>9}" for title in COLUMNS.values())]))
    measured = []
    for name in args.networks.split(","):
        flags_of_row = (f"--variant={args.variant}", f"--repeats={args.repeats}", f"--here={name}")
        measured.append(rows.measure_in_subprocess("benchmarks.inference", *flags_of_row))
        print(show(measured[-1]), flush=True)
    rows.save(args.json, args.variant, measured)


if __name__ == "__main__":
    main()
