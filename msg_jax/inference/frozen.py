"""The frozen networks of a system, condition encoders and codec: how they are loaded and applied."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import os
import pathlib
from typing import Any

import jax
import numpy as np

from msg_jax import networks
from msg_jax.clip import ClipSpec
from msg_jax.config.schema import Config
from msg_jax.convert import bundle
from msg_jax.convert.tokenizer import Tokenizer
from msg_jax.errors import UserError
from msg_jax.inference.batching import map_batches
from msg_jax.infra import logging, memory, progress
from msg_jax.models.clip_encoder import CLIP
from msg_jax.models.condition_encoder import embed_text
from msg_jax.models.synchformer import Synchformer, cut_segments
from msg_jax.types import Module, Params

FRAMES_AT_ONCE, SEGMENTS_AT_ONCE = 2, 4  # of CLIP and Synchformer: on a CPU, eight frames took a third longer each

Loaders = dict[str, Callable[[], Params]]
EncodeFrames = Callable[[Params, Any, Any], tuple[Any, Any]]
"""(parameters, uint8 video, uint8 clip_video) -> clip features (B, clip_video_frames, D), sync features (B, sync_tokens, D)."""
EmbedText = Callable[[str], np.ndarray]
"""Text -> (1, text_tokens, D)."""


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
    folder, name = bundle.choose(pathlib.Path(path), variant)
    released = bundle.Bundle(folder, bundle.VARIANTS[name])
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
    """Loaders of a run's "encoders" and "codec", and of "text" where its encoder has weights.

    `load` returns the parameters that a stage exported. `codec_sides` are the sides of a released codec that are needed:
    "encoder", "decoder" or both.
    """
    found: Loaders = {"encoders": lambda: load("encoders"), "codec": lambda: {"params": load("codec")}}
    if config.encoders.kind == "joint":
        found["encoders"] = dict  # the generator holds them
    if released is not None:
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

    return {
        "encoders": lambda: released.stage("encoders"), "text": lambda: released.stage("text")["clip"], "codec": codec,
    }


def encoders(
    config: Config, clip: ClipSpec, released: bundle.Bundle | None, variables: Mapping[str, Params] | LazyWeights
) -> tuple[EncodeFrames, EmbedText]:
    """`encode_frames` and `embed_text` for the encoders that the config names."""
    if config.encoders.kind == "released":
        assert released is not None
        return released_encoders(released, clip, variables)

    @jax.jit
    def encode_frames(params, *frames):
        return networks.encode_frames(config, clip, params, *frames)

    @functools.lru_cache(maxsize=256)
    def embed_caption(caption):
        return embed_text([caption], clip.text_tokens, networks.text_dim(config))

    return encode_frames, embed_caption


def released_encoders(
    released: bundle.Bundle, clip: ClipSpec, variables: Mapping[str, Params] | LazyWeights
) -> tuple[EncodeFrames, EmbedText]:
    """`encode_frames` and `embed_text` of CLIP and Synchformer; the text encoder's weights are `variables["text"]`.

    `encode_frames` takes videos of any length.

    `embed_text` raises UserError if the tokeniser's vocabulary is missing.
    """
    configs = {kind: network.config for kind, network in released.variant.networks.items()}
    dtype = networks.compute_dtype()
    image_model: Module = CLIP(configs["clip"], dtype)
    sync_model: Module = Synchformer(configs["synchformer"], dtype)
    encode_text = jax.jit(functools.partial(image_model.apply, method="encode_text"))

    @jax.jit
    def encode_images(variables, frames):
        return image_model.apply(variables, networks.to_unit(frames), method="encode_image")

    @jax.jit
    def encode_segments(variables, segments):
        return sync_model.apply(variables, networks.to_unit(segments)[:, None])[:, 0]

    def encode_frames(variables, video, clip_video):
        as_long = dataclasses.replace(clip, duration_sec=video.shape[1] / clip.video_hz)
        with progress.part(0, 0.8):
            sync = _per_item(encode_segments, variables["synchformer"], cut_segments(video, as_long), SEGMENTS_AT_ONCE)
        with progress.part(0.8, 1):
            features = _per_item(encode_images, variables["clip"], clip_video, FRAMES_AT_ONCE)
        return features, sync.reshape(len(sync), as_long.sync_tokens, -1)

    @functools.cache
    def tokenizer():
        if released.vocabulary is None:
            raise UserError(
                f"{released.folder} lacks {bundle.VOCABULARY.name} (1.4 MB), which prompts need: {bundle.DOCUMENT} says where "
                "it is published"
            )
        return Tokenizer(released.vocabulary, configs["clip"].vocabulary, clip.text_tokens)

    @functools.lru_cache(maxsize=256)
    def embed_prompt(prompt):
        tokens = tokenizer()(prompt)[None]
        return np.asarray(encode_text(variables["text"], tokens))

    return encode_frames, embed_prompt


def _per_item(network: Callable[[Params, Any], Any], variables: Params, items: Any, size: int) -> np.ndarray:
    """Apply a network to each of (B, N, ...) items, `size` at a time."""
    flat = items.reshape(-1, *items.shape[2:])
    outputs = map_batches(functools.partial(network, variables), size, flat)
    return outputs.reshape(*items.shape[:2], *outputs.shape[1:])
