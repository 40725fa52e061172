"""A system: condition encoders, generator and codec of one origin, loaded and ready to turn a video into sound.

`generate` works with a `System` and does not ask where it comes from; `load_checkpoint` makes one from a run's stage.
"""

from collections.abc import Callable, Iterable
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
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from msg_jax import networks, sampling
from msg_jax.clip import ClipSpec
from msg_jax.errors import UserError
from msg_jax.infra import checkpoint
from msg_jax.infra.record import RECORD, read_record
from msg_jax.models.condition_encoder import embed_text
from msg_jax.models.mmdit import example_inputs
from msg_jax.types import Array, Conditions, Params

WINDOWS_AT_ONCE = 2  # a ten-second video is two windows of eight seconds: more would only fill up its batch


@dataclasses.dataclass(frozen=True)
class System:
    """Clips of any length, with every compiled program of one shape whatever the length.

    A clip is T >= clip.latent_tokens latent tokens long and seen through windows of clip.latent_tokens, which overlap
    by half or more. Conditions have one row per window.
    """

    clip: ClipSpec
    digest: str  # of the generator's variables: names the system in records
    steps: int  # solver steps and
    guidance_scale: float  # guidance of its own evaluation: the defaults
    encode_frames: Callable[[Params, Array, Array], tuple[Array, Array]]  # video, clip_video in [-1, 1] -> clip, sync
    encoder_params: Params
    embed_text: Callable[[str], np.ndarray]  # -> (1, text_tokens, D)
    generator: nn.Module
    variables: Params
    codec: nn.Module
    codec_params: Params

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
        features, rows, windows = [], 0, iter(windows)
        while batch := list(itertools.islice(windows, WINDOWS_AT_ONCE)):
            rows += len(batch)
            (frames,) = sampling.chunks(tuple(np.stack(stream) for stream in zip(*batch)), WINDOWS_AT_ONCE)
            features.append(jax.tree.map(np.asarray, self._encode(self.encoder_params, *frames)))
        clip, sync = (np.concatenate(parts)[:rows] for parts in zip(*features))
        text = self.embed_text(prompt) if prompt else self._null_text
        return Conditions(clip=clip, sync=sync, text=np.repeat(text, rows, axis=0))

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
        """Normalised latents (T, C) for noise (1, T, C) and the conditions of its windows."""
        return sampling.sample_windows(
            self.generator, self.variables, conditions, noise, self.window_starts(noise.shape[1]), steps=steps,
            guidance_scale=guidance_scale, windows_at_once=WINDOWS_AT_ONCE,
            negative_text=self.embed_text(negative_prompt) if negative_prompt else None,
        )[0]

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Normalised latents (T, C) -> waveform (T * latent_samples,) in [-1, 1]."""
        starts = np.array(self.window_starts(len(latents)))
        windows = latents[starts[:, None] + np.arange(self.clip.latent_tokens)]
        log_mels = [
            self._decode(self.variables, self.codec_params, chunk)
            for chunk in sampling.chunks(windows, WINDOWS_AT_ONCE)
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
            piece = np.asarray(self._vocode(self.codec_params, filled[None, start : start + size]))[0]
            pieces.append(piece[(first - start) * hop : (end - start) * hop])
        return np.concatenate(pieces)[: len(log_mel) * hop]

    @functools.cached_property
    def _null_text(self) -> np.ndarray:
        return np.asarray(self.generator.apply(self.variables, 1, method="null_conditions").text)

    @functools.cached_property
    def _encode(self):
        return jax.jit(lambda params, *frames: self.encode_frames(params, *map(networks.to_unit, frames)))

    @functools.cached_property
    def _decode(self):
        def decode(variables, codec_params, latents):
            latents = self.generator.apply(variables, latents, method="unnormalize")
            return self.codec.apply({"params": codec_params}, latents, method="decode")

        return jax.jit(decode)

    @functools.cached_property
    def _vocode(self):
        return jax.jit(lambda params, log_mel: self.codec.apply({"params": params}, log_mel, method="vocode"))


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
    encoder_params = checkpoint.load(made_from["encoders"] / "params")
    variables = checkpoint.load(folder / "params")
    encode_frames = functools.partial(networks.encode_frames, config, clip)
    frames = (
        jnp.zeros((1, clip.video_frames, clip.video_px, clip.video_px, 3)),
        jnp.zeros((1, clip.clip_video_frames, clip.clip_video_px, clip.clip_video_px, 3)),
    )
    text_dim = networks.text_dim(clip)
    try:
        clip_features, sync_features = jax.eval_shape(encode_frames, encoder_params, *frames)
        widths = {"clip": clip_features.shape[-1], "sync": sync_features.shape[-1], "text": text_dim}
        generator = networks.generator(config, clip, widths, networks.compute_dtype())
        jax.eval_shape(generator.apply, variables, *example_inputs(generator.config))
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
        encoder_params=encoder_params,
        embed_text=lambda text: embed_text([text], clip.text_tokens, text_dim),
        generator=generator,
        variables=variables,
        codec=networks.codec(config, clip),
        codec_params=checkpoint.load(made_from["codec"] / "params"),
    )


def _finished(folder: pathlib.Path) -> dict[str, Any]:
    record = read_record(folder)
    if record is None:
        raise UserError(f"{folder} has no {RECORD}: give the folder of a finished stage, e.g. runs/tiny/avp_rpo.")
    if not record["finished"]:
        raise UserError(f"{folder} is not finished: run its stage to the end first.")
    return record


def _upstream(folder: pathlib.Path, record: dict[str, Any]) -> dict[str, pathlib.Path]:
    """Folders of the stages that `folder` was made from, by name: beside it, or one level up if it is in `seed_K/`."""
    found = {}
    for stage in ("base", "extract", "codec", "encoders"):
        if stage not in record["upstream"]:
            continue
        beside, above = folder.parent / stage, folder.parent.parent / stage
        needed = above if not beside.exists() and above.exists() else beside
        theirs = _finished(needed)
        if theirs["digest"] != record["upstream"][stage]:
            raise UserError(f"{folder} was made from another {stage} than the one in {needed}: run its stage again.")
        found |= {stage: needed} | _upstream(needed, theirs)
    return found
