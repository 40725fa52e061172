"""A system: condition encoders, generator and codec of one origin, loaded and ready to turn a video into sound.

`generate` works with a `System` and does not ask where it comes from: `load_checkpoint` makes one from a run's stage,
`load_weights` from the files that were released with MMAudio.
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import functools
import itertools
import math
import os
import pathlib
from typing import Any
import zlib

from flax import linen as nn
from flax.errors import FlaxError
import jax
from ml_collections import ConfigDict
import numpy as np

from msg_jax import networks, sampling
from msg_jax.clip import ClipSpec
from msg_jax.convert import bundle
from msg_jax.convert.tokenizer import Tokenizer
from msg_jax.errors import UserError
from msg_jax.infra import checkpoint, logging, memory
from msg_jax.infra.record import RECORD, read_record
from msg_jax.models.clip_encoder import CLIP
from msg_jax.models.condition_encoder import embed_text
from msg_jax.models.mmdit import MMDiT, example_inputs
from msg_jax.models.motion import motion_energy
from msg_jax.models.neural_codec import NeuralCodec
from msg_jax.models.synchformer import Synchformer, cut_segments
from msg_jax.types import Array, Conditions, Params

WINDOWS_AT_ONCE = 2  # a ten-second video is two windows of eight seconds: more would only fill up its batch
PICTURES_AT_ONCE, SEGMENTS_AT_ONCE = 2, 4  # of the released encoders: eight pictures took a CPU a third longer each


class InTurn:
    """Trees of weights by name, loaded when asked for. Unless they `stay`, asking for another one frees them.

    So the most memory that they take is that of the largest and not of all together: keep no reference to one.
    """

    def __init__(self, loaders: Mapping[str, Callable[[], Params]], stay: bool):
        self._loaders, self._stay, self._loaded = loaders, stay, {}

    def __getitem__(self, name: str) -> Params:
        if name not in self._loaded:
            if not self._stay:
                self._loaded.clear()
            self._loaded[name] = self._loaders[name]()
        return self._loaded[name]


@dataclasses.dataclass(frozen=True)
class System:
    """Clips of any length, with compiled programs of at most two shapes: for clips of one window, and for longer ones.

    A clip is T >= clip.latent_tokens latent tokens long and seen through windows of clip.latent_tokens, which overlap
    by half or more. Conditions have one row per window.
    """

    clip: ClipSpec
    digest: str  # of the generator's variables: names the system in records
    steps: int  # solver steps and
    guidance_scale: float  # guidance of its own evaluation: the defaults
    encode_frames: Callable[[Params, Array, Array], tuple[Array, Array]]  # uint8 video, clip_video -> clip, sync
    embed_text: Callable[[str], np.ndarray]  # -> (1, text_tokens, D); remembers what it was asked
    generator: nn.Module
    codec: nn.Module
    variables: Mapping[str, Params] | InTurn  # of "encoders", "generator" and "codec"
    squashes_clip_video: bool = False  # its pictures are whole, made square, instead of cropped
    solver: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # arguments of `sampling.sample_windows`

    def tokens(self, samples: int) -> int:
        """Latent tokens of a clip of so many waveform samples."""
        return max(self.clip.latent_tokens, math.ceil(samples / self.clip.latent_samples))

    def window_starts(self, tokens: int) -> tuple[int, ...]:
        """First tokens of the windows of a clip."""
        return sampling.window_starts(tokens, self.clip.latent_tokens, self.clip.latent_tokens // 2)

    def encode(self, windows: Iterable[tuple[np.ndarray, np.ndarray]], prompt: str = "") -> Conditions:
        """Conditions of a clip from the frames of its windows, taken as they come so that few are in memory.

        A window is uint8 `(video, clip_video)` in the sizes of the ClipSpec. Without a prompt the text is the
        generator's own "nothing given".
        """
        features, motion, rows, size, windows = [], [], 0, None, iter(windows)
        while batch := list(itertools.islice(windows, WINDOWS_AT_ONCE)):
            rows, size = rows + len(batch), size or len(batch)
            (frames,) = sampling.chunks(tuple(np.stack(stream) for stream in zip(*batch)), size)
            features.append(jax.tree.map(np.asarray, self.encode_frames(self.variables["encoders"], *frames)))
            if "motion" in getattr(self.generator.config, "features", ()):
                motion.append(np.asarray(motion_energy(frames[0], self.clip.sync_tokens)))
        clip, sync = (np.concatenate(parts)[:rows] for parts in zip(*features))
        text = self.embed_text(prompt) if prompt else self._null_text
        return Conditions(
            clip=clip, sync=sync, text=np.repeat(text, rows, axis=0), motion=np.concatenate(motion)[:rows] if motion else None,
        )

    def noise(self, seed: int, name: str, tokens: int) -> np.ndarray:
        """(1, tokens, C) that depends on seed and name, and whose beginning does not depend on the number of tokens."""
        window = self.clip.latent_tokens
        key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
        blocks = [
            jax.random.normal(jax.random.fold_in(key, i), (window, self.clip.latent_channels))
            for i in range(math.ceil(tokens / window))
        ]
        return np.concatenate(blocks)[None, :tokens]

    def sample(
        self, conditions: Conditions, noise: np.ndarray, *, steps: int, guidance_scale: float, negative_prompt: str = ""
    ) -> np.ndarray:
        """The codec's latents (T, C) for noise (1, T, C) and the conditions of its windows."""
        negative_text = self.embed_text(negative_prompt) if negative_prompt else None
        starts, variables = self.window_starts(noise.shape[1]), self.variables["generator"]
        (latents,) = sampling.sample_windows(
            self.generator, variables, conditions, noise, starts, steps=steps, guidance_scale=guidance_scale,
            windows_at_once=min(len(starts), WINDOWS_AT_ONCE), negative_text=negative_text, **self.solver,
        )
        pieces = [self._unnormalize(variables, piece) for piece in sampling.chunks(latents, self.clip.latent_tokens)]
        return np.concatenate(pieces)[: len(latents)]

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """The codec's latents (T, C) -> waveform (T * latent_samples,) in [-1, 1]."""
        starts = np.array(self.window_starts(len(latents)))
        windows = latents[starts[:, None] + np.arange(self.clip.latent_tokens)]
        log_mels = [
            self._decode(self.variables["codec"], chunk)
            for chunk in sampling.chunks(windows, min(len(starts), WINDOWS_AT_ONCE))
        ]
        return self.vocode(sampling.blend(np.concatenate(log_mels)[: len(starts)], starts * self.clip.latent_stride))

    def vocode(self, log_mel: np.ndarray) -> np.ndarray:
        """Log-mel (frames, M) -> waveform (frames * hop_samples,), in pieces of one length and without a seam.

        A vocoder is local: a sample depends on `context_frames` mel frames on either side and on no more. So every
        piece gets that much beyond what is kept of it, and what is kept are the samples that the whole clip in one
        piece would have given, phases included: nothing is left to crossfade. A clip shorter than a piece goes on with
        its last frame.
        """
        context, hop = self.codec.context_frames, self.clip.mel.hop_samples
        size = self.clip.mel_frames + 2 * context
        filled = np.pad(log_mel, ((0, max(0, size - len(log_mel))), (0, 0)), mode="edge")
        starts = sampling.window_starts(len(filled), size, self.clip.mel_frames)
        joins = [0, *(start + context for start in starts[1:]), len(filled)]
        pieces = []
        for start, (first, end) in zip(starts, itertools.pairwise(joins)):
            piece = np.asarray(self._vocode(self.variables["codec"], filled[None, start : start + size]))[0]
            pieces.append(piece[(first - start) * hop : (end - start) * hop])
        return np.concatenate(pieces)[: len(log_mel) * hop]

    @functools.cached_property
    def _null_text(self) -> np.ndarray:
        return np.asarray(self.generator.apply(self.variables["generator"], 1, method="null_conditions").text)

    @functools.cached_property
    def _unnormalize(self):
        return jax.jit(functools.partial(self.generator.apply, method="unnormalize"))

    @functools.cached_property
    def _decode(self):
        return jax.jit(functools.partial(self.codec.apply, method="decode"))

    @functools.cached_property
    def _vocode(self):
        return jax.jit(functools.partial(self.codec.apply, method="vocode"))


def load_checkpoint(folder: str | os.PathLike) -> System:
    """The system whose generator is in `folder`, a finished `base` or preference stage, with its run's other networks.

    Raises UserError if that is not what `folder` is, if a stage it was made from is missing or has been made again
    since, or if its networks are not those of this version of the code.
    """
    folder = pathlib.Path(folder)
    record = _finished(folder)
    config, clip = ConfigDict(record["config"]), ClipSpec.from_dict(record["clip_spec"])
    if record["stage"] not in ("base", *config.arms):
        raise UserError(
            f"{folder} holds the stage {record['stage']}, which makes no sound; give the folder of base or of a "
            "preference arm."
        )
    made_from = _upstream(folder, record)
    released = _released_files(config, made_from)
    loaders = frozen_loaders(config, released, lambda stage: checkpoint.load(made_from[stage] / "params"), "decoder")
    loaders["generator"] = lambda: checkpoint.load(folder / "params")
    variables = InTurn(loaders, stay=released is None or fits(released))
    if released is None:
        for name in loaders:  # what cannot be read is told now
            variables[name]
    encode_frames, embed_text = encoders(config, clip, released, variables)
    try:
        ours = None if networks.is_released(config, "encoders.kind") else variables["encoders"]
        widths = networks.feature_dims(config, clip, ours)
        generator = networks.generator(config, clip, widths, networks.compute_dtype())
        jax.eval_shape(generator.apply, variables["generator"], *example_inputs(generator.config))
    except FlaxError as error:
        raise UserError(
            f"{folder} was made by revision {record['git_revision']}, whose networks are not those of this one: use "
            "that revision, or make the run again."
        ) from error
    return System(
        clip=clip,
        digest=record["digest"],
        steps=config.evaluate.steps,
        guidance_scale=config.evaluate.reward_guidance,
        encode_frames=encode_frames,
        embed_text=embed_text,
        generator=generator,
        codec=networks.codec(config, clip),
        variables=variables,
        squashes_clip_video=networks.is_released(config, "encoders.kind"),
        solver=networks.solver(config),
    )


def _finished(folder: pathlib.Path) -> dict[str, Any]:
    record = read_record(folder)
    if record is None:
        raise UserError(f"{folder} has no {RECORD}: give the folder of a finished stage, e.g. runs/tiny/avp_rpo.")
    if not record["finished"]:
        raise UserError(f"{folder} is not finished: run its stage to the end first.")
    return record


def _upstream(folder: pathlib.Path, record: dict[str, Any]) -> dict[str, pathlib.Path]:
    """Folders of the stages that `folder` was made from, by name: where its record says, or beside it or one level up."""
    found = {}
    for stage in ("base", "extract", "codec", "encoders"):
        if stage not in record["upstream"]:
            continue
        beside, above = folder.parent / stage, folder.parent.parent / stage
        needed = above if not beside.exists() and above.exists() else beside
        if stage in record.get("places", {}):
            needed = folder / record["places"][stage]
        theirs = _finished(needed)
        if theirs["digest"] != record["upstream"][stage]:
            raise UserError(f"{folder} was made from another {stage} than the one in {needed}: run its stage again.")
        found |= {stage: needed} | _upstream(needed, theirs)
    return found


def _released_files(config: ConfigDict, made_from: Mapping[str, pathlib.Path]) -> bundle.Bundle | None:
    """The released files that a run was made with; None if it was made without. UserError if they are others now."""
    used = [stage for stage in ("codec", "encoders") if networks.is_released(config, f"{stage}.kind")]
    if not used:
        return None
    try:
        released = open_weights(config.weights, config.variant)
    except UserError as error:
        raise UserError(f"The run that {made_from['codec']} belongs to was made with released files: {error}") from error
    found = released.checksums(*released.paths)
    for stage in used:
        for name, checksum in read_record(made_from[stage])["settings"]["weights"].items():
            if found[name] != checksum:
                raise UserError(f"{made_from[stage]} was made with another {name} than the one in {released.folder}: put that "
                                "one back, or make the run again.")
    return released


def open_weights(path: str | os.PathLike, variant: str | None = None) -> bundle.Bundle:
    """The released files in a folder as docs/WEIGHTS.md lists them, or beside an MM-DiT file; converted if they are not.

    `variant` is a key of `convert.bundle.VARIANTS`; it may be left out where the files leave no choice. Raises UserError
    if a file is missing or does not fit its network, naming all that is wrong.
    """
    folder, name = bundle.choose(pathlib.Path(path), variant)
    released = bundle.Bundle(folder, bundle.VARIANTS[name])
    for kind in released.paths:
        if not released.is_converted(kind):
            logging.info("Converting %s; this is done once", released.paths[kind])
            released.convert(kind)
    return released


def load_weights(path: str | os.PathLike, variant: str | None = None) -> System:
    """The released system of `open_weights`."""
    return from_bundle(open_weights(path, variant))


def fits(released: bundle.Bundle) -> bool:
    """Whether all networks together take less than a quarter of the memory: if not, each stays as long as it is used."""
    return released.converted_bytes() < memory.available_bytes() / 4


def frozen_loaders(
    config: ConfigDict, released: bundle.Bundle | None, load: Callable[[str], Params], *sides: str
) -> dict[str, Callable[[], Params]]:
    """How to load a run's "encoders" (their "text" side apart where it has weights) and "codec".

    `load` gives the parameters that a stage exported; `sides` are those of the codec that are needed.
    """
    theirs = released_loaders(released, *sides)
    loaders = {"encoders": lambda: load("encoders"), "codec": lambda: {"params": load("codec")}}
    if config.encoders.kind == "joint":
        loaders["encoders"] = dict  # no parameters: what encodes the frames is a part of the generator
    if networks.is_released(config, "encoders.kind"):
        loaders |= {name: theirs[name] for name in ("encoders", "text")}
    if networks.is_released(config, "codec.kind"):
        loaders["codec"] = theirs["codec"]
    return loaders


def released_loaders(released: bundle.Bundle, *sides: str) -> dict[str, Callable[[], Params]]:
    """How to load the released "encoders", their "text" side, and these sides of the "codec", `encoder` or `decoder`.

    With the codec's decoder comes the vocoder.
    """

    def codec():
        vae = released.load("vae", *(f"params/{side}/" for side in sides), "buffers/")
        variables = {"params": {"vae": vae["params"]}, "buffers": {"vae": vae["buffers"]}}
        if "decoder" in sides:
            variables["params"]["vocoder"] = released.load("bigvgan")["params"]
        return variables

    return {
        "encoders": lambda: released.stage("encoders"), "text": lambda: released.stage("text")["clip"], "codec": codec,
    }


def encoders(config: ConfigDict, clip: ClipSpec, released: bundle.Bundle | None, variables: Mapping[str, Params]):
    """`encode_frames` and `embed_text` of a System, for the encoders that a run's config names."""
    if networks.is_released(config, "encoders.kind"):
        return released_encoders(released, clip, variables)

    @jax.jit
    def encode_frames(params, *frames):
        return networks.encode_frames(config, clip, params, *frames)

    @functools.lru_cache(maxsize=256)
    def embed_caption(caption):
        return embed_text([caption], clip.text_tokens, networks.text_dim(config))

    return encode_frames, embed_caption


def released_encoders(released: bundle.Bundle, clip: ClipSpec, variables: Mapping[str, Params]):
    """`encode_frames` and `embed_text` of a System, for CLIP and Synchformer; the latter takes its own `variables`."""
    configs = {kind: network.config for kind, network in released.variant.networks.items()}
    dtype = networks.compute_dtype()
    image_model, sync_model = CLIP(configs["clip"], dtype), Synchformer(configs["synchformer"], dtype)
    encode_text = jax.jit(functools.partial(image_model.apply, method="encode_text"))

    @jax.jit
    def encode_pictures(variables, pictures):
        return image_model.apply(variables, networks.to_unit(pictures), method="encode_image")

    @jax.jit
    def encode_segments(variables, segments):
        return sync_model.apply(variables, networks.to_unit(segments)[:, None])[:, 0]

    def encode_frames(variables, video, clip_video):
        sync = _in_pieces(encode_segments, variables["synchformer"], cut_segments(video, clip), SEGMENTS_AT_ONCE)
        features = _in_pieces(encode_pictures, variables["clip"], clip_video, PICTURES_AT_ONCE)
        return features, sync.reshape(len(sync), clip.sync_tokens, -1)

    @functools.cache
    def tokenizer():
        if released.vocabulary is None:
            raise UserError(
                f"{released.folder} lacks {bundle.VOCABULARY.name} (1.4 MB), without which a prompt cannot be read: "
                f"{bundle.DOCUMENT} says where it is published"
            )
        return Tokenizer(released.vocabulary, configs["clip"].vocabulary, clip.text_tokens)

    @functools.lru_cache(maxsize=256)
    def embed_prompt(prompt):
        tokens = tokenizer()(prompt)[None]
        return np.asarray(encode_text(variables["text"], tokens))

    return encode_frames, embed_prompt


def from_bundle(released: bundle.Bundle) -> System:
    """The system of converted networks. Nothing is loaded yet; see `fits` for how long weights stay."""
    clip = released.variant.clip
    configs = {kind: network.config for kind, network in released.variant.networks.items()}
    loaders = released_loaders(released, "decoder") | {"generator": lambda: released.load("mmdit")}
    variables = InTurn(loaders, stay=fits(released))
    encode_frames, embed_prompt = released_encoders(released, clip, variables)
    return System(
        clip=clip,
        digest=released.sha256("mmdit"),
        steps=25,
        guidance_scale=4.5,
        encode_frames=encode_frames,
        embed_text=embed_prompt,
        generator=MMDiT(configs["mmdit"], networks.compute_dtype()),
        codec=NeuralCodec(clip, configs["vae"], configs["bigvgan"]),
        variables=variables,
        squashes_clip_video=True,
    )


def _in_pieces(network: Callable[[Params, Array], Array], variables: Params, items: np.ndarray, size: int):
    """What a network gives for each of (B, N, ...) items, `size` of them at a time."""
    flat = items.reshape(-1, *items.shape[2:])
    pieces = [np.asarray(network(variables, piece)) for piece in sampling.chunks(flat, size)]
    return np.concatenate(pieces)[: len(flat)].reshape(*items.shape[:2], *pieces[0].shape[1:])
