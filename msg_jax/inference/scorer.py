"""Frozen networks that score sound, in batches of one shape: the reward, and the codec with the judge."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import Float, UInt8
import numpy as np
import soxr

from msg_jax import networks
from msg_jax.clip import MMAUDIO_16K, ClipSpec
from msg_jax.config.schema import Judge, Reward
from msg_jax.data import frontends, mel
from msg_jax.evaluation import detector, events
from msg_jax.inference.batching import map_batches
from msg_jax.inference.desync import DeSync
from msg_jax.inference.frozen import codec_program
from msg_jax.models.sf_cavp import TERMS, Embeddings
from msg_jax.preference import reward
from msg_jax.types import Module, Params

_EMBEDDED = tuple(field.name for field in dataclasses.fields(Embeddings))
VOCODER_BATCH = 8  # waveforms and their spectrograms are the largest arrays here


Embedded = dict[str, np.ndarray]
"""What a reward knows of B videos: arrays (B, ...) by name."""

Scores = tuple[dict[str, Float[np.ndarray, "B N"]], Float[np.ndarray, "B N steps"]]
"""The reward and its terms for N candidates of B clips, and the reward of each step."""


class CosineScorer:
    """A reward (preference/reward.py) with its parameters. Every batch has `batch_size` clips."""

    def __init__(self, cosines: reward.Reward, params: Params, mesh: Mesh, batch_size: int):
        self._params, self._mesh, self._batch = params, mesh, batch_size
        self.terms = (*TERMS, *(("events",) if cosines.sound_events is not None else ()))
        self.embed_video_program = jax.jit(lambda params, x: reward.embed_video(cosines, params, networks.to_unit(x)))
        self.embed_audio_program = jax.jit(lambda params, x: reward.embed_audio(cosines, params, x))
        self.score_program = jax.jit(lambda params, video, x: reward.score_candidates(cosines, params, video, x))

    def embed_video(self, video: UInt8[np.ndarray, "B T H W 3"]) -> Embedded:
        """The embeddings of frames."""
        embed = functools.partial(self.embed_video_program, self._params)
        found = map_batches(embed, self._batch, video, mesh=self._mesh)
        fields = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
        return {name: np.asarray(values) for name, values in fields.items() if values is not None}

    def embed_audio(self, log_mels: Float[np.ndarray, "B T M"]) -> Embeddings:
        """The embeddings of log-mels."""
        return map_batches(functools.partial(self.embed_audio_program, self._params), self._batch, log_mels, mesh=self._mesh)

    def score_steps(self, video: Embedded, log_mels: Float[np.ndarray, "B N T M"]) -> Scores:
        """The scores of N candidates per clip, against what `embed_video` found for B clips."""
        size = max(1, self._batch // log_mels.shape[1])
        known: Any = {name: values for name, values in video.items() if name in _EMBEDDED}
        score = functools.partial(self.score_program, self._params)
        return map_batches(score, size, Embeddings(**known), log_mels, mesh=self._mesh)


class SynchformerScorer:
    """A reward by the released Synchformer: minus the offset in seconds that it expects, and the cosines of its features.

    `vocode` makes waveforms of log-mels. One network call per clip and candidate, on one device.
    """

    terms = ("desync", "segments")

    def __init__(self, network: DeSync, vocode: Callable[[np.ndarray], np.ndarray], clip: ClipSpec, weights: Reward):
        self._network, self._vocode, self._clip, self._weights = network, vocode, clip, weights

    def embed_video(self, video: UInt8[np.ndarray, "B T H W 3"]) -> Embedded:
        """The features of the segments of frames at 25 Hz."""
        return {"synchformer": np.stack([self._network.encode_video(frames) for frames in video])}

    def score_steps(self, video: Embedded, log_mels: Float[np.ndarray, "B N T M"]) -> Scores:
        """The scores of N candidates per clip, against what `embed_video` found for B clips.

        A step is half of a segment long. It has the mean cosine of the segments that cover it, and the offset of the clip.
        """
        waveforms, weights = self._vocode(log_mels.reshape(-1, *log_mels.shape[2:])), self._weights
        offsets, steps = np.zeros(log_mels.shape[:2]), []
        for place, waveform in zip(np.ndindex(offsets.shape), waveforms):
            seen = video["synchformer"][place[0]]
            heard = self._network.encode_audio(soxr.resample(waveform, self._clip.audio_hz, frontends.SYNCHFORMER_HZ))
            offsets[place] = -self._network.expected_sec(seen, heard)
            steps.append(self._spread(self._network.segment_cosines(seen, heard)))
        cosines = np.reshape(steps, (*offsets.shape, -1))
        rewards = weights.desync * offsets[..., None] + weights.segments * cosines
        return {"desync": offsets, "segments": cosines.mean(axis=-1), "reward": rewards.mean(axis=-1)}, rewards

    def _spread(self, cosines: Float[np.ndarray, " S"]) -> Float[np.ndarray, " S+1"]:
        """The mean cosine at equal parts of the clip; what is left after the last segment counts as its end."""
        halves = (np.append(cosines[:1], cosines) + np.append(cosines, cosines[-1:])) / 2
        starts_sec = np.arange(len(halves)) * MMAUDIO_16K.sync_segment_stride / MMAUDIO_16K.video_hz
        return stretched(halves, len(halves), np.append(starts_sec / self._clip.duration_sec, 1))


def stretched(
    steps: Float[np.ndarray, "*B S"], length: int, edges: Float[np.ndarray, " S+1"] | None = None
) -> Float[np.ndarray, "*B {length}"]:
    """Values of a clip's steps, averaged over `length` equal parts of it, so that their mean stays the same.

    `edges` are where steps begin and end, from 0 to 1; by default they are equally long.
    """
    edges = np.linspace(0, 1, steps.shape[-1] + 1) if edges is None else edges
    parts = np.linspace(0, 1, length + 1)[:, None]
    overlap = np.minimum(parts[1:], edges[1:]) - np.maximum(parts[:-1], edges[:-1])
    return steps @ (length * np.maximum(overlap, 0)).T


class RewardScorer:
    """The reward of a run: that of SF-CAVP and its sound events, that of the released Synchformer, or their sum."""

    def __init__(self, cosines: CosineScorer | None, synchformer: SynchformerScorer | None = None):
        self.cosines = cosines
        self._parts = [part for part in (cosines, synchformer) if part]
        self.terms = tuple(term for part in self._parts for term in part.terms)

    def embed_video(self, video: UInt8[np.ndarray, "B T H W 3"]) -> Embedded:
        """What the reward knows of frames. Once per video is enough for any number of candidates."""
        return {name: values for part in self._parts for name, values in part.embed_video(video).items()}

    def score(self, video: Embedded, log_mels: Float[np.ndarray, "B N T M"]) -> dict[str, Float[np.ndarray, "B N"]]:
        """The reward and its terms for N candidates per clip, against what `embed_video` found for B clips."""
        return self.score_steps(video, log_mels)[0]

    def score_steps(self, video: Embedded, log_mels: Float[np.ndarray, "B N T M"]) -> Scores:
        """As `score`, and the reward of each step, as many as the part with the most has."""
        found = [part.score_steps(video, log_mels) for part in self._parts]
        if len(found) == 1:
            return found[0]
        scores = {name: values for part, _ in found for name, values in part.items()}
        length = max(steps.shape[-1] for _, steps in found)
        total = np.sum([part["reward"] for part, _ in found], axis=0)
        return scores | {"reward": total}, np.sum([stretched(steps, length) for _, steps in found], axis=0)


class WaveformJudge:
    """The second judge: it detects events in waveforms."""

    def __init__(self, judge: Module, params: Params, section: Judge, clip: ClipSpec, mesh: Mesh, batch_size: int):
        self._section, self._spec, self._mesh, self._batch = section, detector.waveform_mel(clip.mel), mesh, batch_size
        self._judge = jax.jit(lambda x: detector.detect(judge, params, x)[0])

    def detect(self, waveforms: Float[np.ndarray, "B S"]) -> list[np.ndarray]:
        """The event list (n, 2) of each clip."""
        probability = map_batches(self._judge, self._batch, mel.log_mel(waveforms, self._spec), mesh=self._mesh)
        return events.decode_events(probability, self._spec.frames_hz, self._section.threshold, self._section.min_gap_sec)


class PictureCodecAndJudge:
    """A run's codec of pictures, and the judge that detects events in decoded frames."""

    def __init__(
        self, codec: Module, codec_variables: Params, judge: Module, judge_params: Params, section: Judge, clip: ClipSpec,
        mesh: Mesh, batch_size: int,
    ):
        self._section, self._hz, self._mesh, self._batch = section, clip.video_hz, mesh, batch_size
        decode = codec_program(codec, "decode")
        self._decode = lambda latents: networks.to_bytes(decode(codec_variables, latents))
        self._judge = jax.jit(lambda x: detector.detect(judge, judge_params, networks.to_unit(x)))

    def decode(self, latents: Float[np.ndarray, "B N C"]) -> UInt8[np.ndarray, "B T H W 3"]:
        """Latents to frames."""
        return map_batches(self._decode, self._batch, latents, mesh=self._mesh)

    def detect(self, video: UInt8[np.ndarray, "B T H W 3"]) -> tuple[list[np.ndarray], Float[np.ndarray, "B D"]]:
        """The event list (n, 2) of each clip, and the judge's embeddings. A frame shows the moment at its start."""
        probability, embeddings = map_batches(self._judge, self._batch, video, mesh=self._mesh)
        section = self._section
        found = events.decode_events(probability, self._hz, section.threshold, section.min_gap_sec)
        return [each - np.array([0.0, 0.5 / self._hz]) for each in found], embeddings


class CodecAndJudge:
    """A run's codec, and the judge that detects events in decoded sound.

    `judge` maps log-mels to (event probabilities, embeddings); None where the data has no event truth.
    """

    def __init__(
        self, codec: Module, codec_variables: Params, judge: Module | None, judge_params: Params,
        section: Judge, clip: ClipSpec, mesh: Mesh, batch_size: int,
    ):
        self._variables, self._section, self._clip, self._mesh, self._batch = codec_variables, section, clip, mesh, batch_size
        self.can_judge = judge is not None
        self._decode, self._encode, self._vocode = (
            codec_program(codec, method) for method in ("decode", "encode", "vocode")
        )
        if judge is not None:
            self._judge = jax.jit(lambda x: detector.detect(judge, judge_params, x))

    def _with_codec(self, function: Any, array: np.ndarray, size: int) -> np.ndarray:
        return map_batches(functools.partial(function, self._variables), size, array, mesh=self._mesh)

    def decode(self, latents: Float[np.ndarray, "*B T C"]) -> Float[np.ndarray, "*B frames M"]:
        """Latents to log-mels."""
        log_mels = self._with_codec(self._decode, latents.reshape(-1, *latents.shape[-2:]), self._batch)
        return log_mels.reshape(*latents.shape[:-2], *log_mels.shape[1:])

    def encode(self, log_mels: Float[np.ndarray, "B frames M"]) -> Float[np.ndarray, "B T C"]:
        """Log-mels to latents."""
        return self._with_codec(self._encode, log_mels, self._batch)

    def vocode(self, log_mels: Float[np.ndarray, "B frames M"]) -> Float[np.ndarray, "B S"]:
        """Log-mels to waveforms."""
        return self._with_codec(self._vocode, log_mels, min(VOCODER_BATCH, self._batch))

    def round_trip(self, latents: Float[np.ndarray, "B T C"]) -> Float[np.ndarray, "B T C"]:
        """Latents through waveform and back: real audio then has every artefact that generated audio has."""
        waveforms = self.vocode(self.decode(latents))
        return self.encode(np.stack([mel.log_mel(waveform, self._clip.mel) for waveform in waveforms]))

    def detect(self, log_mels: Float[np.ndarray, "B frames M"]) -> tuple[list[np.ndarray], Float[np.ndarray, "B D"]]:
        """The judge's event list (n, 2) of each clip, and its embeddings."""
        probability, embedding = map_batches(self._judge, self._batch, log_mels, mesh=self._mesh)
        found = events.decode_events(
            probability, self._clip.mel.frames_hz, self._section.threshold, self._section.min_gap_sec
        )
        return found, embedding

    def f1(
        self, truth: Sequence[np.ndarray], log_mels: Float[np.ndarray, "B N frames M"], tolerance_sec: float
    ) -> dict[str, Float[np.ndarray, "B N"]]:
        """The F1 scores of `events.clip_counts` for N candidates per clip, against the true events of B clips."""
        clips, candidates = log_mels.shape[:2]
        found, _ = self.detect(log_mels.reshape(-1, *log_mels.shape[2:]))
        repeated = [events_ for events_ in truth for _ in range(candidates)]
        counts = events.clip_counts(repeated, found, tolerance_sec)
        return {name: np.nan_to_num(events.micro_f1(each), nan=1.0).reshape(clips, candidates) for name, each in counts.items()}

    def step_errors(
        self, truth: Sequence[np.ndarray], log_mels: Float[np.ndarray, "B N frames M"], steps: int, tolerance_sec: float
    ) -> Float[np.ndarray, "B N steps"]:
        """Missed and spurious events at each of `steps` of N candidates per clip."""
        clips, candidates = log_mels.shape[:2]
        found, _ = self.detect(log_mels.reshape(-1, *log_mels.shape[2:]))
        counts = np.zeros((clips * candidates, steps), np.float32)
        for row, predicted in enumerate(found):
            wrong = events.unmatched_onsets(truth[row // candidates], predicted, tolerance_sec)
            at = np.clip(wrong / self._clip.duration_sec * steps, 0, steps - 1).astype(int)
            np.add.at(counts[row], at, 1)
        return counts.reshape(clips, candidates, steps)
