"""What the released Synchformer hears of sound and pictures: their offset (DeSync), and whether segments belong together."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
from jaxtyping import Float, UInt8
import numpy as np

from msg_jax import networks
from msg_jax.clip import MMAUDIO_16K, SYNC_STEPS_PER_SEGMENT, ClipSpec
from msg_jax.convert import from_torch, weights
from msg_jax.data import frontends
from msg_jax.infra import logging, operations
from msg_jax.models import synchformer
from msg_jax.types import Module, Params

LEAST_SEC = synchformer.WINDOW_SEC
"""The shortest clip that it can judge."""


class DeSync:
    """Encoders of pictures and sound, and the network that compares them, from a released file.

    `config` has its sizes, by default those of the released network. Raises UserError if the file is not that network.
    """

    def __init__(self, path: pathlib.Path, config: synchformer.SynchformerConfig | None = None):
        logging.info("reading %s", path)
        model: Module
        model, variables = from_torch("synchformer_full", weights.read_checkpoint(path), config, source=str(path))
        self._variables: Params = jax.tree.map(jax.numpy.asarray, variables)
        self._offsets = synchformer.offset_grid(model.config.offsets)
        self.video_px = model.config.image_px
        self._encode_audio = jax.jit(functools.partial(model.apply, method="encode_audio"))
        self._logits = jax.jit(functools.partial(model.apply, method="offset_logits"))

        @jax.jit
        def encode_video(variables: Params, frames: jax.Array) -> Any:
            return model.apply(variables, networks.to_unit(frames)[:, None], method="encode_video")[:, 0]

        self._encode_video = encode_video

    def encode_video(self, frames: UInt8[np.ndarray, "T H W 3"]) -> Float[np.ndarray, "S steps D"]:
        """Features of the segments of frames at 25 Hz."""
        clip = dataclasses.replace(MMAUDIO_16K, duration_sec=len(frames) / MMAUDIO_16K.video_hz)
        segments = synchformer.cut_segments(frames[None], clip)[0]
        return np.concatenate([self._encode_video(self._variables, segments[i : i + 2]) for i in range(0, len(segments), 2)])

    def encode_audio(self, waveform: Float[np.ndarray, " samples"]) -> Float[np.ndarray, "S steps D"]:
        """Features of the segments of a waveform at `frontends.SYNCHFORMER_HZ`."""
        return np.asarray(self._encode_audio(self._variables, frontends.synchformer_spectrograms(waveform)[None]))[0]

    def offsets_sec(self, video: Float[np.ndarray, "S _ D"], audio: Float[np.ndarray, "S _ D"]) -> Float[np.ndarray, " 2"]:
        """The likeliest offset in the first and in the last `LEAST_SEC` of a clip."""
        return self._offsets[self._compared(video, audio).argmax(axis=-1)]

    def expected_sec(self, video: Float[np.ndarray, "S _ D"], audio: Float[np.ndarray, "S _ D"]) -> float:
        """The expectation of the absolute offset, over both ends of a clip; finer than the likeliest offsets."""
        probability = jax.nn.softmax(self._compared(video, audio))
        return float(np.mean(np.asarray(probability) @ np.abs(self._offsets)))

    def segment_cosines(self, video: Float[np.ndarray, "V _ D"], audio: Float[np.ndarray, "A _ D"]) -> Float[np.ndarray, " S"]:
        """The cosine of the mean features of each segment.

        The encoders were trained to raise it for pictures and sound of one segment, and to lower it for others: the
        contrastive first stage of arXiv 2401.16423, after which they were frozen.
        """
        segments = min(len(video), len(audio))
        means = (each[:segments].mean(axis=1) for each in (video, audio))
        seen, heard = (mean / np.linalg.norm(mean, axis=1, keepdims=True) for mean in means)
        return np.sum(seen * heard, axis=1)

    def _compared(self, video: np.ndarray, audio: np.ndarray) -> np.ndarray:
        """Logits (2, offsets) for both ends."""
        windows = [slice(start, start + synchformer.WINDOW_SEGMENTS)
                   for start in synchformer.window_starts(min(len(video), len(audio)))]
        ends = (np.stack([features[window] for window in windows]) for features in (video, audio))
        return np.asarray(self._logits(self._variables, *ends))


def operations_of(config: synchformer.SynchformerConfig, clip: ClipSpec, sounds: int) -> int:
    """Floating-point operations of comparing the pictures of a clip with so many sounds, each at both ends of the clip."""
    model, segments = synchformer.FullSynchformer(config), clip.sync_segments
    window = synchformer.WINDOW_SEGMENTS
    pictures = jax.ShapeDtypeStruct((1, segments, config.segment_frames, *[config.image_px] * 2, 3), np.float32)
    sound = jax.ShapeDtypeStruct((1, segments, config.mel_frames, config.bands), np.float32)
    steps = (SYNC_STEPS_PER_SEGMENT, config.audio_grid[1])
    ends = [jax.ShapeDtypeStruct((2, window, each, config.width), np.float32) for each in steps]
    variables = weights.shapes_of(model, *(np.zeros((1, window, *each.shape[2:]), np.float32) for each in (pictures, sound)))

    def of(method: str, *inputs: Any) -> int:
        return operations.count(jax.make_jaxpr(functools.partial(model.apply, method=method))(variables, *inputs).jaxpr)

    return of("encode_video", pictures) + sounds * (of("encode_audio", sound) + of("offset_logits", *ends))
