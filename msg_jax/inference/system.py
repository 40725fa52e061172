"""A `System` turns a video into sound: condition encoders, generator and codec of one origin.

`loading.py` makes one from a run's checkpoint or from released files. `generate` works with either alike.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import functools
import itertools
import math
import pathlib
from typing import Any
import zlib

import jax
import numpy as np

from msg_jax.clip import ClipSpec
from msg_jax.data.frame_grid import FrameChoice
from msg_jax.inference import sampling
from msg_jax.inference.batching import chunks, map_batches
from msg_jax.inference.feature_cache import FeatureCache, Features
from msg_jax.inference.frozen import EmbedText, EncodeFrames, LazyWeights, codec_program
from msg_jax.inference.motion import motion
from msg_jax.inference.ranking import Ranker
from msg_jax.infra import progress, runtime
from msg_jax.types import Conditions, Module, Params

FADE_SEC = 0.1  # on either side of a cue's edge
WINDOWS_AT_ONCE = 2  # ten seconds are two windows of eight: a larger batch would mostly be padding


@dataclasses.dataclass(frozen=True)
class System:
    """Encoders, generator and codec, for clips of any length.

    A clip has T >= clip.latent_tokens latent tokens. The generator sees windows of clip.latent_tokens that overlap by half
    or more; conditions have one row per window. Programs are compiled for two shapes at most: one window, and several.

    With `any_length`, the networks also work at other lengths: `of_length` gives the system whose window is that long. Its
    programs are compiled for that length.
    """

    clip: ClipSpec
    digest: str  # of the generator's variables; identifies the system in records
    steps: int  # default solver steps
    guidance_scale: float  # default guidance
    encode_frames: EncodeFrames
    encoders: str  # identifies what `encode_frames` computes: digests of its weights, and its precision
    embed_text: EmbedText
    generator: Module  # with MMDiT's methods
    codec: Module  # a models.codec.Codec
    variables: Mapping[str, Params] | LazyWeights  # of "encoders", "generator" and "codec"
    squashes_clip_video: bool = False  # resize whole frames to a square instead of cropping them
    any_length: bool = False
    frame_choice: FrameChoice = "training"  # that of the frames the generator was trained on
    solver: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # keyword arguments of `sampling.sample_windows`
    load_ranker: Callable[[], Ranker] | None = None  # the reward of the run that it comes from, if it has one

    @property
    def latent_channels(self) -> int:
        """Channels of the latents that the generator makes."""
        return self.clip.latent_channels

    @property
    def makes_pictures(self) -> bool:
        """Whether `pictures` has any."""
        return False

    def of_length(self, duration_sec: float) -> "System":
        """The system with windows of `duration_sec`, at least one segment of the synchronisation encoder; kept for next time.

        Only with `any_length`.
        """
        clip = dataclasses.replace(self.clip, duration_sec=max(duration_sec, self.clip.sync_segment_sec))
        lengths = {
            "latent_tokens": clip.latent_tokens, "clip_tokens": clip.clip_video_frames, "sync_tokens": clip.sync_tokens,
        }
        if clip.duration_sec not in self._of_length:
            generator = self.generator.clone(config=dataclasses.replace(self.generator.config, **lengths))
            codec = self.codec.clone(clip=clip)
            self._of_length[clip.duration_sec] = dataclasses.replace(self, clip=clip, generator=generator, codec=codec)
        return self._of_length[clip.duration_sec]

    def tokens(self, samples: int) -> int:
        """Latent tokens of a clip with this number of waveform samples."""
        return max(self.clip.latent_tokens, math.ceil(samples / self.clip.latent_samples))

    @property
    def rescale(self) -> float:
        """Default `guidance_rescale` of `sampling.guided`."""
        return self.solver.get("guidance_rescale", 0.0)

    def window_starts(self, tokens: int) -> tuple[int, ...]:
        """First tokens of the windows of a clip."""
        return sampling.window_starts(tokens, self.clip.latent_tokens, self.clip.latent_tokens // 2)

    def encode(
        self, windows: Iterable[Sequence[np.ndarray]], prompt: str | Sequence[str] = "", count: int = 1,
        cache: pathlib.Path | None = None,
    ) -> Any:
        """Encode the frames of a clip's windows; they are read lazily, so that few are in memory.

        A window is a pair of uint8 arrays, `video` and `clip_video` in the sizes of the ClipSpec. `prompt` is one text, or one
        for each window; without a prompt the text condition is the generator's null text. The progress that is reported takes
        the windows to be `count`. Features of frames are kept in the folder `cache` and taken from there.
        """
        inputs = self.generator.config.features
        features, moving, rows, size, remaining = [], [], 0, None, iter(windows)
        while batch := list(itertools.islice(remaining, WINDOWS_AT_ONCE)):
            rows, size = rows + len(batch), size or len(batch)
            (frames,) = chunks(tuple(np.stack(stream) for stream in zip(*batch)), size)
            with progress.part((rows - len(batch)) / count, rows / count):
                features += self._encode(batch, frames, cache)
            progress.report(rows / count)
            if "motion" in inputs:
                moving.append(motion(frames[0], self.clip.sync_tokens, self.generator.config.flow_grid))
        clip, sync = (np.stack(parts) for parts in zip(*features))
        found = {"clip": clip, "sync": sync, "text": self._embed_prompts(prompt, rows)}
        return Conditions.from_batch(found | ({"motion": np.concatenate(moving)[:rows]} if moving else {}))

    def _encode(
        self, batch: Sequence[Sequence[np.ndarray]], frames: Sequence[np.ndarray], cache: pathlib.Path | None
    ) -> list[Features]:
        """The features of each window of a batch; `frames` are theirs, padded to the batches' shape."""
        kept = FeatureCache(cache, self.encoders) if cache else None
        keys = [kept.key(window) for window in batch] if kept else []
        found = [kept.read(key) for key in keys] if kept else [None]
        if not any(each is None for each in found):
            return [each for each in found if each is not None]
        encoded = jax.tree.map(np.asarray, self.encode_frames(self.variables["encoders"], *frames))
        features = list(zip(*encoded))[: len(batch)]
        for key, each in zip(keys, features):
            assert kept is not None
            kept.write(key, each)
        return features

    def encode_text_alone(self, prompt: str | Sequence[str], rows: int = 1) -> Any:
        """Conditions of `rows` windows without a video: the generator's null conditions, with the text of the prompt(s)."""
        text = self._embed_prompts(prompt, rows)
        return self.generator.apply(self.variables["generator"], rows, text, method="null_conditions")

    def noise(self, seed: int, name: str, tokens: int) -> np.ndarray:
        """Noise (1, tokens, C) for a seed and a clip's name. Longer noise begins with the shorter one's values."""
        window = self.clip.latent_tokens
        key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode(errors="surrogateescape")))
        blocks = [
            jax.random.normal(jax.random.fold_in(key, i), (window, self.latent_channels))
            for i in range(math.ceil(tokens / window))
        ]
        return np.concatenate(blocks)[None, :tokens]

    def sample(
        self, conditions: Any, noise: np.ndarray, *, steps: int, guidance_scale: float,
        guidance_rescale: float | None = None, negative_prompt: str | Sequence[str] = "",
        windows: Sequence[sampling.Window] | None = None,
    ) -> np.ndarray:
        """Sample the codec's latents (T, C) from noise (1, T, C) and the conditions of its windows.

        `windows` are by default those of `window_starts`, `guidance_rescale` that of the system. `negative_prompt` is one
        text, or one for each window.
        """
        solver = self.solver if guidance_rescale is None else {**self.solver, "guidance_rescale": guidance_rescale}
        starts, weights, variables = self.window_starts(noise.shape[1]), None, self.variables["generator"]
        if windows is not None:
            starts = [window.start for window in windows]
            weights = sampling.window_weights(windows, self.clip.latent_tokens, self.fade_tokens)
        negative_text = self._embed_prompts(negative_prompt, len(starts)) if any(negative_prompt) else None
        (latents,) = sampling.sample_windows(
            self.generator, variables, conditions, noise, starts, steps=steps, guidance_scale=guidance_scale,
            windows_at_once=min(len(starts), WINDOWS_AT_ONCE), negative_text=negative_text, weights=weights, **solver,
        )
        return map_batches(functools.partial(self._unnormalize, variables), self.clip.latent_tokens, latents)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Decode the codec's latents (T, C) to a waveform (T * latent_samples,) in [-1, 1]."""
        with progress.part(0, 0.1):
            log_mel = self._log_mel(latents)
        runtime.trim_heap()
        with progress.part(0.1, 1):
            return self.vocode(log_mel)

    def _log_mel(self, latents: np.ndarray) -> np.ndarray:
        starts = np.array(self.window_starts(len(latents)))
        windows = latents[starts[:, None] + np.arange(self.clip.latent_tokens)]
        decode = functools.partial(self._decode, self.variables["codec"])
        log_mels = map_batches(decode, min(len(starts), WINDOWS_AT_ONCE), windows)
        return sampling.blend(log_mels, starts * self.clip.latent_stride)

    def pictures(self, latents: np.ndarray) -> np.ndarray | None:
        """The frames (T, H, W, 3), uint8, that were generated with the sound; None if only sound is."""
        return None

    def vocode(self, log_mel: np.ndarray) -> np.ndarray:
        """Turn a log-mel (frames, M) into a waveform (frames * hop_samples,), in pieces of one length, without seams.

        A vocoder is local: a sample depends on `context_frames` mel frames on either side only. Each piece is computed with
        that much context and cropped, which gives the samples of the whole clip in one piece, phases included.

        A piece has the mel frames of a window, so one window is one piece, and begins and ends as the vocoder itself pads
        it. Where a window is shorter than twice the context, pieces of longer clips are longer, and such a clip that is
        shorter than a piece is padded with its last frame.
        """
        context, hop, size = self.codec.context_frames, self.clip.mel.hop_samples, self.clip.mel_frames
        if len(log_mel) > size and size <= 2 * context:
            size += 2 * context
        filled = np.pad(log_mel, ((0, max(0, size - len(log_mel))), (0, 0)), mode="edge")
        starts = sampling.window_starts(len(filled), size, max(1, size - 2 * context))
        joins = [0, *(start + context for start in starts[1:]), len(filled)]
        waveform = np.empty(len(filled) * hop, np.float32)
        for done, (start, (first, end)) in enumerate(zip(starts, itertools.pairwise(joins)), 1):
            piece = np.asarray(self._vocode(self.variables["codec"], filled[None, start : start + size]))[0]
            waveform[first * hop : end * hop] = piece[(first - start) * hop : (end - start) * hop]
            progress.report(done / len(starts))
        return waveform[: len(log_mel) * hop]

    @property
    def fade_tokens(self) -> int:
        """Latent tokens on either side of a cue's edge over which it is cross-faded."""
        return max(1, round(FADE_SEC * self.clip.latent_hz))

    def _embed_prompts(self, prompts: str | Sequence[str], rows: int) -> np.ndarray:
        """Text conditions (rows, text_tokens, D) of one prompt, or of one for each row."""
        each = [prompts] * rows if isinstance(prompts, str) else prompts
        return np.concatenate([self.embed_text(prompt) if prompt else self._null_text for prompt in each])

    @functools.cached_property
    def _of_length(self) -> dict[float, "System"]:
        return {}

    @functools.cached_property
    def _null_text(self) -> np.ndarray:
        return np.asarray(self.generator.apply(self.variables["generator"], 1, method="null_conditions").text)

    @functools.cached_property
    def _unnormalize(self):
        return jax.jit(functools.partial(self.generator.apply, method="unnormalize"))

    @functools.cached_property
    def _decode(self):
        return codec_program(self.codec, "decode")

    @functools.cached_property
    def _vocode(self):
        return codec_program(self.codec, "vocode")
