"""python -m msg_jax.compile --config=RECIPE[:PRESET] --topology=NAME [--stage=NAME,...] [--mesh=DATA,FSDP,TENSOR] [--batch=N]
                              [--json=FILE] [--config.FIELD=VALUE ...]

Compile what a run executes for machines that are not here, from shapes alone: no data, no weights, no accelerator. For each
program it says whether it fits, the bytes of one device, the collectives, and the seconds that the hardware's limits allow.

Topologies are those of XLA: v5e:4x4, v6e:16x16, v5p:4x4x4, 2*v5e:16x16 for two slices, cuda:1x1x8 for H100s (processes x
hosts x GPUs), or cpu:8. TPUs need `pip install 'msg_jax[tpu]'`, GPUs `pip install 'msg_jax[cuda]'`. On GPUs the generator is
compiled with XLA's attention, which writes its logits to memory: cuDNN's cannot be compiled without a GPU.

Stages are trainings (base, sf_cavp, preference arms), on the mesh of the run, and programs that run on one host or device:
sampler, clip_image, clip_text, synchformer, codec_encode, codec_decode, vocoder, reward_video, reward_audio. Without --stage,
all that the config has.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import json
import pathlib
import sys
import time
import types
from typing import Any, NamedTuple

from absl import app
from absl import flags as absl_flags
from flax.core import meta
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from msg_jax import methods, networks, train
from msg_jax.config import tree
from msg_jax.config.schema import Config
from msg_jax.convert import bundle
from msg_jax.convert.weights import shapes_of
from msg_jax.errors import UserError, fail
from msg_jax.inference import frozen
from msg_jax.inference.sampler import sample_program
from msg_jax.inference.scorer import VOCODER_BATCH, CosineScorer
from msg_jax.infra import devices as known_devices
from msg_jax.infra import explain, hlo, operations, runtime, topology
from msg_jax.infra import mesh as mesh_lib
from msg_jax.methods.method import Given
from msg_jax.programs import checks
from msg_jax.recipes import flags
from msg_jax.run.run import Run
from msg_jax.stages.sf_cavp import SFCAVPTask
from msg_jax.tasks.flow import FlowTask

_TOPOLOGY = absl_flags.DEFINE_string("topology", None, f"the machine: {topology.FORMS}")
_STAGE = absl_flags.DEFINE_list("stage", None, "trainings and programs to compile (default: all)")
_MESH = absl_flags.DEFINE_list("mesh", None, "data,fsdp,tensor of the trainings; replaces config.mesh")
_BATCH = absl_flags.DEFINE_integer("batch", None, "replaces the batch size of each stage", lower_bound=1)
_JSON = absl_flags.DEFINE_string("json", None, "also write the results to this file")


class Program(NamedTuple):
    """A program, traced, with what it is compiled for."""

    traced: jax.stages.Traced
    mesh: Mesh
    batch: int
    state: train.TrainState | None = None  # shapes with shardings; None unless it trains


@dataclasses.dataclass(frozen=True)
class Programs:
    """The programs of a configuration, as `train.fit`, `Sampler`, `System` and the scorers make them."""

    config: Config
    devices: list[Any]
    batch: int | None = None

    def names(self) -> list[str]:
        """Trainings first."""
        return [*self._trainings, *self._inference]

    def trace(self, name: str) -> Program:
        """Raises UserError if the config has no such program, or if its mesh does not split the batch."""
        found = self._trainings | self._inference
        if name not in found:
            raise UserError(f"--stage={name} is not a stage to compile: choose from {', '.join(found)}.")
        return found[name]()

    @property
    def _trainings(self) -> dict[str, Callable[[], Program]]:
        arms = {name: methods.method(self.config, name) for name in self.config.arms}
        trained = [name for name, arm in arms.items() if arm.training(self.config.preference)]
        alone = () if self._joint else ("sf_cavp",)
        found = {name: lambda name=name: self._training(name) for name in (*alone, *trained)}
        return {"base": lambda: self._training("base")} | found

    @property
    def _inference(self) -> dict[str, Callable[[], Program]]:
        found: dict[str, Callable[[], Program]] = {"sampler": self._sampler}
        if self.config.encoders.kind == "released":
            found |= {name: lambda name=name: self._encoder(name) for name in ("clip_image", "clip_text", "synchformer")}
        if self.config.codec.kind == "released":  # the default one is a matrix
            for name, method in (("codec_encode", "encode"), ("codec_decode", "decode"), ("vocoder", "vocode")):
                found[name] = lambda method=method: self._codec(method)
        rewards = () if self._joint else ("reward_video", "reward_audio")
        return found | {name: lambda name=name: self._reward(name) for name in rewards}

    @property
    def _joint(self) -> bool:
        """Whether sound and pictures are generated together, without a reward."""
        return self.config.base.network == "joint"

    # Trainings, on the mesh of the run

    def _training(self, stage: str) -> Program:
        config = self.config
        if self.batch:
            sections: dict[str, Any] = {"preference" if stage in config.arms else stage: dict(batch_size=self.batch)}
            config = tree.replace(config, **sections)
        if stage == "base":  # as trained, even where a run takes the released network as it is
            config = tree.replace(config, base=dict(steps=config.base.steps or 1))
        mesh = mesh_lib.make_mesh(config.mesh, self.devices)
        checks.check_batches(config, [stage], mesh)
        task = self._task(Run(pathlib.Path("compiled"), config, mesh), stage)
        key = jax.eval_shape(lambda: jax.random.key(0))
        with jax.set_mesh(mesh):
            abstract = jax.eval_shape(task.init, key)
            layout = mesh_lib.shardings(abstract, mesh)
            state = jax.tree.map(_placed, meta.unbox(abstract), layout)
            frozen_ = jax.tree.map(_placed, meta.unbox(task.frozen), mesh_lib.shardings(task.frozen, mesh))
            batch = _spread(task.batch_shapes(), mesh)
            traced = train.trace_step(task, layout, state, batch, key, frozen_)
        return Program(traced, mesh, len(jax.tree.leaves(batch)[0]), state)

    def _task(self, run: Run, stage: str) -> train.Task:
        config = run.config
        if stage == "sf_cavp":
            return SFCAVPTask(run)
        dims = self._dims()
        source: Any = types.SimpleNamespace(dims=dims)
        if stage == "base":
            section = config.base
            return FlowTask(run, source, section, 0, initial=self._generator(), ema_decay=section.ema_decay)
        arm, preference = methods.method(config, stage), tree.preference_of(config, stage)
        section = arm.training(preference)
        assert section is not None
        return arm.task(Given(run, source, section, 0, self._generator(), dims, stage))

    # Programs of one host, or of one device

    def _sampler(self) -> Program:
        config, mesh = self.config, self._mesh(one_host=True)
        section, clips = config.preference, self.batch or config.evaluate.batch_size
        model = self._model()
        variables, conditions = networks.generator_shapes(model, clips)
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), clips))
        with jax.set_mesh(mesh):
            traced = sample_program(model, networks.solver(config)).trace(
                _whole(variables, mesh), *_spread((conditions, keys), mesh),
                candidates=section.candidates, guidance_scale=section.candidate_guidance, steps=section.candidate_steps,
            )
        return Program(traced, mesh, clips)

    def _encoder(self, name: str) -> Program:
        """The released encoders run on one device."""
        variant, clip, mesh = bundle.VARIANTS[self.config.variant], self.config.clip, self._mesh()
        programs = frozen.encoder_programs(variant)
        with jax.set_mesh(mesh):
            at_once = frozen.items_at_once()
        frames, px = clip.sync_segment_frames, clip.video_px
        program, kind, prefix, size, shape, dtype = {
            "clip_image": (programs.images, "clip", "params/image/", at_once[0],
                           (clip.clip_video_px, clip.clip_video_px, 3), jnp.uint8),
            "clip_text": (programs.text, "clip", "params/text/", 1, (clip.text_tokens,), jnp.int32),
            "synchformer": (programs.segments, "synchformer", "", at_once[1], (frames, px, px, 3), jnp.uint8),
        }[name]
        size = self.batch or size
        variables = bundle.tree_of_shapes(kind, variant.networks[kind].config, prefix)
        inputs = jax.ShapeDtypeStruct((size, *shape), dtype)
        return Program(_trace_on(program, mesh, variables, inputs), mesh, size)

    def _codec(self, method: str) -> Program:
        """The codec runs on the devices of a host, the vocoder in smaller batches."""
        config, clip = self.config, self.config.clip
        codec, mesh = networks.codec(config, clip), self._mesh(one_host=True)
        size = {"encode": config.extract.batch_size, "decode": config.evaluate.batch_size}.get(
            method, min(VOCODER_BATCH, config.evaluate.batch_size)
        )
        size = self.batch or size
        log_mel = jax.ShapeDtypeStruct((size, clip.mel_frames, clip.mel.bands), jnp.float32)
        latents = jax.ShapeDtypeStruct((size, clip.latent_tokens, clip.latent_channels), jnp.float32)
        variables = shapes_of(codec, np.zeros((1, *log_mel.shape[1:]), np.float32))
        inputs = latents if method == "decode" else log_mel
        return Program(_trace_on(frozen.codec_program(codec, method), mesh, variables, inputs), mesh, size)

    def _reward(self, name: str) -> Program:
        config, clip, mesh = self.config, self.config.clip, self._mesh(one_host=True)
        reward, size = networks.reward(config, clip), self.batch or config.evaluate.batch_size
        video = jax.ShapeDtypeStruct((size, clip.video_frames, clip.video_px, clip.video_px, 3), jnp.uint8)
        log_mel = jax.ShapeDtypeStruct((size, clip.mel_frames, clip.mel.bands), jnp.float32)
        params = networks.reward_shapes(config, clip)
        scorer = CosineScorer(reward, params, mesh, size)
        program, inputs = (
            (scorer.embed_video_program, video) if name == "reward_video" else (scorer.embed_audio_program, log_mel)
        )
        return Program(_trace_on(program, mesh, params, inputs), mesh, size)

    def _mesh(self, one_host: bool = False) -> Mesh:
        first = self.devices[0]
        devices = [device for device in self.devices if device.process_index == first.process_index]
        return mesh_lib.make_mesh(devices=devices if one_host else [first])

    def _dims(self) -> dict[str, int]:
        config, clip = self.config, self.config.clip
        return networks.feature_dims(config, clip, networks.encoder_shapes(config, clip))

    def _model(self) -> Any:
        return networks.generator(self.config, self.config.clip, self._dims(), networks.compute_dtype())

    def _generator(self) -> Any:
        """Shapes of the generator's variables."""
        return networks.generator_shapes(self._model())[0]


def _placed(shape: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def _whole(shapes: Any, mesh: Mesh) -> Any:
    return jax.tree.map(lambda x: _placed(x, NamedSharding(mesh, PartitionSpec())), shapes)


def _spread(shapes: Any, mesh: Mesh) -> Any:
    """As `mesh.spread` places arrays."""
    def place(x):
        spec = mesh_lib.BATCH if x.shape[0] % mesh_lib.batch_devices(mesh) == 0 else mesh_lib.REPLICATED
        return _placed(x, NamedSharding(mesh, spec))

    return jax.tree.map(place, shapes)


def _trace_on(program: Any, mesh: Mesh, variables: Any, inputs: Any) -> jax.stages.Traced:
    with jax.set_mesh(mesh):
        return program.trace(_whole(variables, mesh), _spread(inputs, mesh))


def measure(name: str, program: Program) -> dict[str, Any]:
    """Compile a program and return its row: numbers of one device and one call, bytes and seconds."""
    mesh = program.mesh
    row: dict[str, Any] = {
        "stage": name, "device": mesh.devices.flat[0].device_kind, "devices": mesh.size, "mesh": list(mesh.shape.values()),
        "batch": program.batch, "operations": operations.count(program.traced.jaxpr),
    }
    begun, begun_cores = time.monotonic(), time.process_time()

    def spent() -> dict[str, float]:
        return {"compile_sec": time.monotonic() - begun, "compile_core_sec": time.process_time() - begun_cores}

    try:
        compiled = program.traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "out of memory" not in str(error):
            raise
        reason = next((line for line in str(error).splitlines() if "hbm" in line or "memory" in line), str(error))
        return row | {"fits": False, "reason": reason.strip()} | spent()
    return row | spent() | predict(program, compiled)


def predict(program: Program, compiled: jax.stages.Compiled) -> dict[str, Any]:
    """What the text of a compiled program says: memory, traffic, collectives, and seconds by the limits of the device."""
    mesh, limits = program.mesh, known_devices.find(program.mesh.devices.flat[0].device_kind)
    module = hlo.parse(compiled.as_text() or "", mesh.size)
    found = module.collectives()
    traffic, padding = module.traffic()
    shown = operations.count(program.traced.jaxpr, kernels=False)
    row: dict[str, Any] = {
        "memory": _memory(compiled, program.state), "traffic": traffic, "padding": padding,
        "repeated": module.operations() * mesh.size / max(shown, 1), "products": module.operations(),
        "collectives": {kind: counts for kind, counts in explain.collectives(found).items() if counts[0]},
        "wire": sum(each.wire * each.times for each in found), "tensors": explain.tensors(found),
        "float32": _largest_first(module.products("f32")), "padded": _largest_first(module.padded()),
    }
    if limits:
        peak = row["memory"]["peak"]
        row |= {"fits": peak <= limits.memory, "share_of_memory": peak / limits.memory}
        exact = module.exact_products()
        usual = operations.count(program.traced.jaxpr) / mesh.size - sum(exact.values())
        compute = (usual + 3 * exact.get("high", 0)) / limits.flops + exact.get("highest", 0) / limits.float32
        seconds = {
            "compute": compute, "memory": traffic / limits.bandwidth,
            "interconnect": row["wire"] / limits.interconnect,
        }
        bottleneck = max(seconds, key=lambda each: seconds[each])
        row |= {"seconds": seconds, "predicted_sec": seconds[bottleneck], "bottleneck": bottleneck}
        row["predicted_mfu"] = operations.count(program.traced.jaxpr) / mesh.size / limits.flops / seconds[bottleneck]
    return row


def _largest_first(sizes: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(sizes.items(), key=lambda item: -item[1])


def _memory(compiled: jax.stages.Compiled, state: train.TrainState | None) -> dict[str, int]:
    """Bytes of one device; the state's are among the arguments."""
    found = compiled.memory_analysis()
    assert found is not None
    arguments, working = found.argument_size_in_bytes, found.temp_size_in_bytes
    peak = arguments + found.output_size_in_bytes - found.alias_size_in_bytes + working
    return {
        "state": explain.device_bytes(state) if state is not None else 0, "arguments": arguments, "working": working,
        "peak": peak,
    }


def show(row: dict[str, Any]) -> Iterator[str]:
    """The lines of a row."""
    mesh = ", ".join(f"{axis} {size}" for axis, size in zip(mesh_lib.AXES, row["mesh"]))
    yield f"{row['stage']} on {row['devices']} x {row['device']} ({mesh}), batch {row['batch']}"
    yield (f"  compiled in {row['compile_sec']:.0f} s ({row['compile_core_sec']:.0f} core-seconds); "
           f"{row['operations'] / 1e12:.4g} T operations")
    if "memory" not in row:
        yield f"  does not fit: {row['reason']}"
        return
    memory = row["memory"]
    limit = ""
    if "fits" in row:
        limit = f", {row['share_of_memory']:.0%} of its memory: {'fits' if row['fits'] else 'does not fit'}"
    yield (f"  bytes of one device: {memory['arguments']:,} of arguments ({memory['state']:,} of state), "
           f"{memory['working']:,} working, {memory['peak']:,} at the peak{limit}")
    yield f"  all devices together compute {row['repeated']:.2f} times the operations"
    yield f"  memory traffic {row['traffic']:,} bytes, {row['padding'] / max(row['traffic'], 1):.1%} of it padding"
    for what, found, whole in (
        ("traffic is of arrays that tiles more than double", row["padded"], row["traffic"]),
        ("operations are products of float32", row["float32"], row["products"]),
    ):
        if found:
            names = ", ".join(f"{tensor} {size / max(whole, 1):.1%}" for tensor, size in found[: explain.LARGEST])
            yield f"  {sum(size for _, size in found) / max(whole, 1):.1%} of the {what}: {names}"
    if "seconds" in row:
        parts = ", ".join(f"{name} {seconds:.3g}" for name, seconds in row["seconds"].items())
        yield (f"  at least {row['predicted_sec']:.3g} s ({parts}), bound by {row['bottleneck']}; "
               f"MFU at most {row['predicted_mfu']:.2f}")
    yield "  collectives:" if row["collectives"] else "  no collectives"
    for kind, (count, size) in row["collectives"].items():
        yield f"    {kind:<20} {count:>6} {size:>16,} bytes"
    for kind, tensor, count, size in row["tensors"][: explain.LARGEST]:
        yield f"      {kind} of {tensor}: {count} x, {size:,} bytes"


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        fail(f"{argv[1]!r} is not a flag; settings are given as --config.FIELD=VALUE.")
    config = flags.config()
    if not isinstance(config, Config):
        fail("--config must be that of a run, for example avp_rpo:small_16k.")
    if _TOPOLOGY.value is None:
        fail(f"--topology is required: {topology.FORMS}.")
    with runtime.user_errors():
        topology.prepare(_TOPOLOGY.value)
        if _MESH.value:
            config = tree.replace(config, mesh=_shape(_MESH.value))
        # Nothing is read, so a preset of released networks needs no data.
        checks.check(tree.replace(config, data=dict(source=config.data.source or "folder:none")))
        devices = topology.devices(_TOPOLOGY.value)
        if devices[0].platform == "gpu" and not config.base.attention_implementation:
            config = tree.replace(config, base=dict(attention_implementation="xla"))  # cuDNN's needs a GPU to compile it
        with networks.compiling_for(devices[0].platform):
            programs, rows = Programs(config, devices, _BATCH.value), []
            for name in _STAGE.value or programs.names():
                rows.append({"arguments": sys.argv[1:], "topology": _TOPOLOGY.value} | measure(name, programs.trace(name)))
                print("\n".join(show(rows[-1])), flush=True)
                if _JSON.value:
                    pathlib.Path(_JSON.value).write_text(json.dumps(rows, indent=1) + "\n")


def _shape(sizes: list[str]) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in sizes)
    except ValueError as error:
        raise UserError(f"--mesh={','.join(sizes)} is not three numbers: give data,fsdp,tensor, for example 1,16,1.") from error


def command(argv: list[str] | None = None) -> None:
    """The command line of `python -m msg_jax.compile` and of `msg-jax compile`."""
    app.run(main, argv, flags_parser=flags.parse)


if __name__ == "__main__":
    command(sys.argv)
