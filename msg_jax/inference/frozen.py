"""The frozen networks of a system, condition encoders and codec: how they are loaded and applied."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import hashlib
import os
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from msg_jax import networks, storage
from msg_jax.clip import ClipSpec
from msg_jax.config.schema import Config
from msg_jax.convert import bundle
from msg_jax.convert.tokenizer import Tokenizer
from msg_jax.errors import UserError
from msg_jax.inference.batching import map_batches
from msg_jax.infra import logging, memory, progress
from msg_jax.models import device
from msg_jax.models.clip_encoder import CLIP
from msg_jax.models.condition_encoder import embed_text
from msg_jax.models.mmdit import nearest_exact
from msg_jax.models.synchformer import Synchformer, cut_segments
from msg_jax.models.vjepa2 import VJEPA2, cut_phases, join_phases
from msg_jax.types import Module, Params

Loaders = dict[str, Callable[[], Params]]
EncodeFrames = Callable[[Params, Any, Any], tuple[Any, Any]]
"""(parameters, uint8 video, uint8 clip_video) -> clip features (B, clip_video_frames, D), sync features (B, sync_tokens, D)."""
EmbedText = Callable[[str], np.ndarray]
"""Text -> (1, text_tokens, D)."""


def items_at_once() -> tuple[int, int]:
    """Frames for CLIP and segments for Synchformer on each device; a CPU's caches hold the values of one only."""
    return (1, 1) if device.platform() == "cpu" else (2, 4)


class LazyWeights:
    """Named weights, loaded on first use. Unless `keep_all`, at most one entry stays loaded.

    Peak memory is then that of the largest entry, provided that callers keep no reference to one.
    """

    def __init__(self, loaders: Mapping[str, Callable[[], Params]], keep_all: bool):
        self._loaders, self._keep_all, self._loaded = loaders, keep_all, {}

    def __getitem__(self, name: str) -> Params:
        if name not in self._loaded:
            if not self._keep_all:
                self._loaded.clear()
            self._loaded[name] = self._loaders[name]()
        return self._loaded[name]


def open_weights(path: str | os.PathLike, variant: str | None = None) -> bundle.Bundle:
    """Open the released files in a folder, or beside an MM-DiT file, and convert those that are not converted yet.

    `variant` is a key of `convert.bundle.VARIANTS`; None takes the only one that the files allow. docs/WEIGHTS.md lists the
    files. Raises UserError, naming every missing or misfitting file.
    """
    _refuse_bucket(path)
    folder, name = bundle.choose(pathlib.Path(path), variant)
    return _converted(bundle.Bundle(folder, bundle.VARIANTS[name]))


def open_weights_of(config: Config) -> bundle.Bundle:
    """Open the released files that a run uses, as `open_weights` does."""
    if not networks.has_vision_encoder(config):
        return open_weights(config.weights, config.variant)
    _refuse_bucket(config.weights)
    return _converted(bundle.Bundle(pathlib.Path(config.weights), networks.with_vision_encoder(config)))


def _refuse_bucket(path: str | os.PathLike) -> None:
    if storage.in_bucket(storage.path(path)):
        raise UserError(f"{path} is in a bucket, but released weights are read from a disk: copy them there, or mount "
                        "the bucket.")


def _converted(released: bundle.Bundle) -> bundle.Bundle:
    for kind in released.paths:
        if not released.is_converted(kind):
            logging.info("Converting %s; this is done once", released.paths[kind])
            released.convert(kind)
    return released


def fits_in_memory(released: bundle.Bundle) -> bool:
    """Whether all networks together take less than a quarter of the free memory, so that all can stay loaded."""
    return released.converted_bytes() < memory.available_bytes() / 4


def loaders(
    config: Config, released: bundle.Bundle | None, load: Callable[[str], Params], *codec_sides: str
) -> Loaders:
    """Loaders of a run's "encoders" and "codec", and of "text" where its encoder has weights; or of both codecs of a joint run.

    `load` returns the parameters that a stage exported. `codec_sides` are the sides of a released codec that are needed:
    "encoder", "decoder" or both.
    """
    found: Loaders = {"encoders": lambda: load("encoders"), "codec": lambda: {"params": load("codec")}}
    if config.encoders.kind == "joint":
        found["encoders"] = dict  # the generator holds them
    if config.base.network == "joint":
        found = {"codec": found["codec"], "picture_codec": lambda: {"params": load("picture_codec")}}
    if released is not None and networks.has_vision_encoder(config):
        dtype = networks.compute_dtype()
        found["encoders"] = lambda: rounded(released.load(config.encoders.kind), dtype)
    if released is not None and networks.released_fields(config):
        theirs = released_loaders(released, *codec_sides)
        if config.encoders.kind == "released":
            found |= {name: theirs[name] for name in ("encoders", "text")}
        if config.codec.kind == "released":
            found["codec"] = theirs["codec"]
    return found


def released_loaders(released: bundle.Bundle, *codec_sides: str) -> Loaders:
    """Loaders of the released "encoders", "text" encoder and "codec"; the codec's decoder comes with the vocoder."""

    def codec():
        vae = released.load("vae", *(f"params/{side}/" for side in codec_sides), "buffers/")
        variables = {"params": {"vae": vae["params"]}, "buffers": {"vae": vae["buffers"]}}
        if "decoder" in codec_sides:
            variables["params"]["vocoder"] = released.load("bigvgan")["params"]
        return variables

    dtype = networks.compute_dtype()

    def encoders():
        return {kind: rounded(variables, dtype) for kind, variables in released.stage("encoders").items()}

    return {
        "encoders": encoders, "text": lambda: released.stage("text")["clip"], "codec": codec,
    }


def rounded(variables: Params, dtype: Any) -> Params:
    """Weights of matrices in the type that a CPU computes in; to convert them in every call takes a tenth of its time."""
    if device.platform() != "cpu":
        return variables
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.ndim > 1 else leaf, variables)


def encoders(
    config: Config, clip: ClipSpec, released: bundle.Bundle | None, variables: Mapping[str, Params] | LazyWeights,
    mesh: Mesh | None = None,
) -> tuple[EncodeFrames, EmbedText]:
    """`encode_frames` and `embed_text` for the encoders that the config names.

    With a `mesh`, released encoders spread their work over its devices; their variables must be on all of them.
    """
    if config.encoders.kind == "released":
        assert released is not None
        return released_encoders(released, clip, variables, mesh)
    if networks.has_vision_encoder(config):
        return vjepa2_encoder(clip, mesh), caption_encoder(config, clip)

    @jax.jit
    def encode_frames(params, *frames):
        return networks.encode_frames(config, clip, params, *frames)

    return encode_frames, caption_encoder(config, clip)


def no_features(params: Params, video: Any, clip_video: Any) -> tuple[Any, Any]:
    """The `EncodeFrames` of a network that sees the latents of pictures."""
    raise NotImplementedError


def caption_encoder(config: Config, clip: ClipSpec) -> EmbedText:
    """The text encoder without weights."""

    @functools.lru_cache(maxsize=1024)
    def embed_caption(caption):
        return embed_text([caption], clip.text_tokens, networks.text_dim(config))

    return embed_caption


def joint_encoder(config: Config, clip: ClipSpec) -> Any:
    """The jitted (variables of both codecs, log-mels, uint8 frames) -> latents (B, N, C) of sound and pictures side by side."""
    codec, pictures = networks.codec(config, clip), networks.picture_codec(config, clip)

    @jax.jit
    def encode(codec_variables, picture_variables, log_mels, video):
        return jnp.concatenate([
            codec.apply(codec_variables, log_mels, method="encode"),
            pictures.apply(picture_variables, networks.to_unit(video), method="encode"),
        ], axis=-1)

    return encode


class EncoderPrograms(NamedTuple):
    """The released encoders as jitted functions of their variables and of an input."""

    images: Any  # uint8 frames (B, px, px, 3) -> (B, D)
    segments: Any  # uint8 segments (B, frames, px, px, 3) -> (B, steps, D)
    text: Any  # tokens (B, text_tokens) -> (B, text_tokens, D)


def encoder_programs(variant: bundle.Variant) -> EncoderPrograms:
    """CLIP and Synchformer of a released system, in the device's compute type."""
    dtype = networks.compute_dtype()
    image_model: Module = CLIP(variant.networks["clip"].config, dtype)
    sync_model: Module = Synchformer(variant.networks["synchformer"].config, dtype)

    @jax.jit
    def encode_images(variables, frames):
        return image_model.apply(variables, networks.to_unit(frames), method="encode_image")

    @jax.jit
    def encode_segments(variables, segments):
        return sync_model.apply(variables, networks.to_unit(segments)[:, None])[:, 0]

    return EncoderPrograms(
        encode_images, encode_segments, jax.jit(functools.partial(image_model.apply, method="encode_text"))
    )


def codec_program(codec: Module, method: str) -> Any:
    """A method of a `models.codec.Codec` (encode, decode or vocode) as a jitted function of its variables and of an input."""
    return jax.jit(functools.partial(codec.apply, method=method))


def released_encoders(
    released: bundle.Bundle, clip: ClipSpec, variables: Mapping[str, Params] | LazyWeights, mesh: Mesh | None = None
) -> tuple[EncodeFrames, EmbedText]:
    """`encode_frames` and `embed_text` of CLIP and Synchformer; the text encoder's weights are `variables["text"]`.

    With a `mesh`, frames and segments are spread over its devices. `encode_frames` takes videos of any length.

    `embed_text` raises UserError if the tokeniser's vocabulary is missing.
    """
    programs = encoder_programs(released.variant)
    frames_at_once, segments_at_once = items_at_once()

    def encode_frames(variables, video, clip_video):
        as_long = dataclasses.replace(clip, duration_sec=video.shape[1] / clip.video_hz)
        with progress.part(0, 0.8):
            segments = cut_segments(video, as_long)
            sync = _per_item(programs.segments, variables["synchformer"], segments, segments_at_once, mesh)
        with progress.part(0.8, 1):
            features = _per_item(programs.images, variables["clip"], clip_video, frames_at_once, mesh)
        return features, sync.reshape(len(sync), as_long.sync_tokens, -1)

    @functools.cache
    def tokenizer():
        if released.vocabulary is None:
            raise UserError(
                f"{released.folder} lacks {bundle.VOCABULARY.name} (1.4 MB), which prompts need: {bundle.DOCUMENT} says where "
                "it is published"
            )
        return Tokenizer(released.vocabulary, released.variant.networks["clip"].config.vocabulary, clip.text_tokens)

    @functools.lru_cache(maxsize=1024)
    def embed_prompt(prompt):
        tokens = tokenizer()(prompt)[None]
        return np.asarray(programs.text(variables["text"], tokens))

    return encode_frames, embed_prompt


def vjepa2_encoder(clip: ClipSpec, mesh: Mesh | None = None) -> EncodeFrames:
    """`encode_frames` of V-JEPA 2: one vector for each frame of `clip_video`, and for each frame of `video` at a sync token.

    With a `mesh`, the work is spread over its devices.
    """
    model: Module = VJEPA2(bundle.VISION["vjepa2"].config, networks.compute_dtype())

    @jax.jit
    def encode(variables, frames):
        return model.apply(variables, networks.to_unit(frames))

    def features(variables, frames, hz):
        phases = cut_phases(frames, hz)
        return join_phases(_per_item(encode, variables, phases, 1, mesh), frames.shape[1])

    def encode_frames(variables, video, clip_video):
        with progress.part(0, 0.25):
            semantic = features(variables, clip_video, clip.clip_video_hz)
        with progress.part(0.25, 1):
            dense = features(variables, video, clip.video_hz)
        return semantic, dense[:, nearest_exact(clip.video_frames, clip.sync_tokens)]

    return encode_frames


def _per_item(
    network: Callable[[Params, Any], Any], variables: Params, items: Any, size: int, mesh: Mesh | None
) -> np.ndarray:
    """Apply a network to each of (B, N, ...) items, `size` at a time on each device, and to equal ones once."""
    flat = items.reshape(-1, *items.shape[2:])
    digests = [hashlib.sha256(np.ascontiguousarray(item).data).digest() for item in flat]
    first = {digest: i for i, digest in reversed(list(enumerate(digests)))}
    distinct = sorted(first.values())
    place = {digest: distinct.index(i) for digest, i in first.items()}
    at_once = size if mesh is None else size * mesh.size
    outputs = map_batches(functools.partial(network, variables), at_once, flat[distinct], mesh=mesh)
    outputs = outputs[[place[digest] for digest in digests]]
    return outputs.reshape(*items.shape[:2], *outputs.shape[1:])
