"""Systems from a run's checkpoint, and from released files."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import functools
import os
from typing import Any

from flax.errors import FlaxError
import jax
import jax.numpy as jnp

from msg_jax import networks, storage
from msg_jax.clip import ClipSpec
from msg_jax.config import tree
from msg_jax.config.schema import Config
from msg_jax.convert import bundle
from msg_jax.errors import UserError
from msg_jax.inference import frozen
from msg_jax.inference.frozen import LazyWeights
from msg_jax.inference.joint_system import JointSystem, refusing_long
from msg_jax.inference.ranking import DeSyncRanker, Ranker, RewardRanker
from msg_jax.inference.scorer import CosineScorer, RewardScorer
from msg_jax.inference.system import WINDOWS_AT_ONCE, System
from msg_jax.infra import checkpoint
from msg_jax.infra.mesh import make_mesh
from msg_jax.infra.record import RECORD, read_record, read_sampling
from msg_jax.models.mmdit import MMDiT, example_inputs
from msg_jax.models.neural_codec import NeuralCodec
from msg_jax.storage import Path
from msg_jax.types import Module, Params


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a system of a run is made from."""

    place: str  # where it was read, for messages
    config: Config
    clip: ClipSpec
    sampling: Mapping[str, Any]  # `steps` and `guidance_scale`
    digest: str
    variables: Mapping[str, Params] | LazyWeights  # of "encoders", "generator" and "codec"
    released: bundle.Bundle | None = None
    load_ranker: Callable[[], Ranker] | None = None


def load_checkpoint(folder: str | os.PathLike, precision: str | None = None) -> System:
    """Load the system whose generator is in `folder`, a finished `base` or preference arm, with its run's other networks.

    `precision` is that of `networks.computing_in`, for generator and released encoders. Raises UserError if `folder` is not
    such a stage, if an upstream stage is missing or was made again since, or if this version of the code has other networks.
    """
    with networks.computing_in(precision):
        return assemble(read_checkpoint(folder))


def read_checkpoint(folder: str | os.PathLike) -> Parts:
    """The parts of the system of `load_checkpoint`."""
    folder = storage.path(folder)
    record = _finished(folder)
    config, clip = tree.from_dict(Config, record["config"]), ClipSpec.from_dict(record["clip_spec"])
    if record["stage"] not in ("base", *record["config"]["arms"]):
        raise UserError(
            f"{folder} holds the stage {record['stage']}, which is not a generator; give the folder of base or of a "
            "preference arm."
        )
    sampling = {"steps": config.evaluate.steps, "guidance_scale": config.evaluate.reward_guidance} | read_sampling(folder)
    upstream = _upstream(folder, record)
    released = _released_files(config, upstream)
    loaders = frozen.loaders(config, released, lambda stage: checkpoint.load(upstream[stage] / "params"), "decoder")
    loaders["generator"] = lambda: checkpoint.load(folder / "params")
    variables = LazyWeights(loaders, keep_all=released is None or frozen.fits_in_memory(released))
    if released is None:
        for name in loaders:  # report unreadable files now
            variables[name]
    place = f"{folder}, made by revision {record['git_revision']},"
    return Parts(
        place, config, clip, sampling, record["digest"], variables, released, _ranker_loader(folder, config, clip, released)
    )


def assemble(parts: Parts) -> System:
    """The system of these parts. Raises UserError if this version of the code has other networks."""
    config, clip, variables = parts.config, parts.clip, parts.variables
    if config.base.network == "joint":
        return _assemble_joint(parts)
    encode_frames, embed_text = frozen.encoders(config, clip, parts.released, variables)
    with _of_this_version(parts):
        kind = config.encoders.kind
        of_files = kind == "released" or networks.has_vision_encoder(config)
        widths = networks.feature_dims(config, clip, None if of_files else variables["encoders"])
        generator = _generator(parts, widths)
    return System(
        clip=clip,
        digest=parts.digest,
        **parts.sampling,
        encode_frames=encode_frames,
        encoders=_encoders_of(parts.released, kind) if of_files else parts.digest,
        embed_text=embed_text,
        generator=generator,
        codec=networks.codec(config, clip),
        variables=variables,
        squashes_clip_video=config.encoders.kind == "released",
        any_length=config.encoders.kind == config.codec.kind == "released" and isinstance(generator, MMDiT),
        frame_choice=config.data.frame_choice,
        solver=networks.solver(config),
        load_ranker=parts.load_ranker,
    )


@contextlib.contextmanager
def _of_this_version(parts: Parts) -> Iterator[None]:
    try:
        yield
    except FlaxError as error:
        raise UserError(
            f"{parts.place} has networks that differ from this version's: use the version that made it, or make the run again."
        ) from error


def _generator(parts: Parts, widths: Mapping[str, int]) -> Module:
    """The generator, whose variables are checked."""
    generator = networks.generator(parts.config, parts.clip, widths, networks.compute_dtype())
    jax.eval_shape(generator.apply, parts.variables["generator"], *example_inputs(generator.config))
    return generator


def _assemble_joint(parts: Parts) -> JointSystem:
    config, clip = parts.config, parts.clip
    with _of_this_version(parts):
        generator = _generator(parts, {"text": networks.text_dim(config)})
    return JointSystem(
        clip=clip,
        digest=parts.digest,
        **parts.sampling,
        encode_frames=frozen.no_features,
        encoders=parts.digest,
        embed_text=refusing_long(frozen.caption_encoder(config, clip), clip.text_tokens),
        generator=generator,
        codec=networks.codec(config, clip),
        variables=parts.variables,
        frame_choice=config.data.frame_choice,
        solver=networks.solver(config),
        picture_codec=networks.picture_codec(config, clip),
    )


def load_weights(path: str | os.PathLike, variant: str | None = None, precision: str | None = None) -> System:
    """Load a released system; `path` and `variant` are those of `frozen.open_weights`, `precision` of `load_checkpoint`."""
    with networks.computing_in(precision):
        return from_bundle(frozen.open_weights(path, variant))


def from_bundle(released: bundle.Bundle) -> System:
    """The system of converted networks. Weights are loaded on first use."""
    clip = released.variant.clip
    configs = {kind: network.config for kind, network in released.variant.networks.items()}
    loaders = frozen.released_loaders(released, "decoder") | {"generator": lambda: released.load("mmdit")}
    variables = LazyWeights(loaders, keep_all=frozen.fits_in_memory(released))
    encode_frames, embed_prompt = frozen.released_encoders(released, clip, variables)
    return System(
        clip=clip,
        digest=released.sha256("mmdit"),
        steps=25,
        guidance_scale=4.5,
        encode_frames=encode_frames,
        encoders=_encoders_of(released, "released"),
        embed_text=embed_prompt,
        generator=MMDiT(configs["mmdit"], networks.compute_dtype()),
        codec=NeuralCodec(clip, configs["vae"], configs["bigvgan"]),
        variables=variables,
        squashes_clip_video=True,
        any_length=True,
        load_ranker=functools.cache(lambda: DeSyncRanker(released.paths["synchformer"], clip)),
    )


def _encoders_of(released: bundle.Bundle | None, kind: str) -> str:
    """The digests of the files of `config.encoders.kind`, and the type that the encoders compute in."""
    assert released is not None
    files = ("clip", "synchformer") if kind == "released" else (kind,)
    return " ".join([*map(released.sha256, files), jnp.dtype(networks.compute_dtype()).name])


def _finished(folder: Path) -> dict[str, Any]:
    record = read_record(folder)
    if record is None:
        raise UserError(f"{folder} has no {RECORD}: give the folder of a finished stage, e.g. runs/tiny/avp_rpo.")
    if not record["finished"]:
        raise UserError(f"{folder} is not finished: run its stage to the end first.")
    return record


def _upstream(folder: Path, record: dict[str, Any]) -> dict[str, Path]:
    """Folders of the upstream stages by name: where the record says, else beside `folder` or one level up."""
    found = {}
    for stage in ("base", "extract", "codec", "picture_codec", "encoders"):
        if stage not in record["upstream"]:
            continue
        beside, above = folder.parent / stage, folder.parent.parent / stage
        needed = above if not beside.exists() and above.exists() else beside
        if stage in record["places"]:
            needed = storage.absolute(folder / record["places"][stage])
        theirs = _finished(needed)
        if theirs["digest"] != record["upstream"][stage]:
            raise UserError(f"{folder} was made from another {stage} than the one in {needed}: run its stage again.")
        found |= {stage: needed} | _upstream(needed, theirs)
    return found


def _ranker_loader(
    folder: Path, config: Config, clip: ClipSpec, released: bundle.Bundle | None
) -> Callable[[], Ranker] | None:
    """A function that loads the reward of the run that `folder` belongs to: SF-CAVP's, or DeSync where there is no other.

    None if its stages are not finished.
    """
    stages: dict[str, Path] = {}
    if not config.reward.uses_sf_cavp and released is not None:
        sizes = networks.released(config)["synchformer"]
        return functools.cache(lambda: DeSyncRanker(released.paths["synchformer"], clip, sizes))
    for name in config.reward_stages:
        places = [place for place in (folder.parent / name, folder.parent.parent / name) if read_record(place)]
        if not places or not _finished(places[0]):
            return None
        stages[name] = places[0]

    def load() -> Ranker:
        params = {name: checkpoint.load(place / "params") for name, place in stages.items()}
        mesh = make_mesh(devices=jax.local_devices()[:1])
        cosines = CosineScorer(networks.reward(config, clip), params, mesh, WINDOWS_AT_ONCE)
        return RewardRanker(RewardScorer(cosines), clip)

    return functools.cache(load)


def _released_files(config: Config, upstream: Mapping[str, Path]) -> bundle.Bundle | None:
    """The released files that a run used, if any. Raises UserError if they have changed."""
    used = [stage for stage in ("codec", "encoders") if getattr(config, stage).kind in ("released", *bundle.VISION)]
    if not used:
        return None
    try:
        released = frozen.open_weights_of(config)
    except UserError as error:
        raise UserError(f"The run of {upstream['codec']} was made with released files: {error}") from error
    found = released.checksums(*released.paths)
    for stage in used:
        record = read_record(upstream[stage])
        assert record is not None
        for name, checksum in record["settings"]["weights"].items():
            if found[name] != checksum:
                raise UserError(f"{upstream[stage]} was made with another {name} than the one in {released.folder}: put that "
                                "one back, or make the run again.")
    return released
