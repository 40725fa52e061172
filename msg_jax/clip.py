"""ClipSpec: durations and rates in, every derived length out. All lengths come from here.

Names carry their unit: `_sec` seconds, `_hz` per second, `_samples` waveform samples, `_px` pixels. Counts have no suffix.
"""

from collections.abc import Iterator
import dataclasses
import math
from typing import Any

SYNC_STEPS_PER_SEGMENT = 8  # Synchformer's feature steps per segment, and the rows of the MM-DiT's `sync_pos_emb`


@dataclasses.dataclass(frozen=True)
class MelSpec:
    """A log-mel front end: uncentred STFT, reflect-padded by (n_fft - hop) / 2 on each side, with Slaney filters.

    `log_base` is 10.0 or e. Magnitudes are clamped at `floor` before the logarithm.
    """

    audio_hz: int = 16_000
    n_fft: int = 1024
    hop_samples: int = 320
    bands: int = 40
    low_hz: float = 0.0
    high_hz: float = 8_000.0
    log_base: float = math.e
    floor: float = 1e-5

    @property
    def frames_hz(self) -> float:
        return self.audio_hz / self.hop_samples


@dataclasses.dataclass(frozen=True)
class ClipSpec:
    """Duration of a clip and the rates of its streams.

    The video has two streams, as in MMAudio: `video` (25 fps, for the synchronisation encoder and SF-CAVP) and
    `clip_video` (a few frames per second, for the semantic image encoder). Lengths follow MMAudio's rules: whole frames
    and segments that fit into the duration, and latent tokens that cover it.
    """

    duration_sec: float = 3.2
    video_hz: float = 25.0
    video_px: int = 24
    clip_video_hz: float = 6.25
    clip_video_px: int = 24
    sync_segment_frames: int = 8
    sync_segment_stride: int = 8
    latent_stride: int = 4  # mel frames per latent token
    latent_channels: int = 32
    text_tokens: int = 8
    mel: MelSpec = MelSpec()

    @property
    def video_frames(self) -> int:
        return math.floor(round(self.duration_sec * self.video_hz, 6))

    @property
    def clip_video_frames(self) -> int:
        return math.floor(round(self.duration_sec * self.clip_video_hz, 6))

    @property
    def sync_segment_sec(self) -> float:
        return self.sync_segment_frames / self.video_hz

    @property
    def sync_segments(self) -> int:
        return (self.video_frames - self.sync_segment_frames) // self.sync_segment_stride + 1

    @property
    def sync_tokens(self) -> int:
        return self.sync_segments * SYNC_STEPS_PER_SEGMENT

    @property
    def audio_hz(self) -> int:
        return self.mel.audio_hz

    @property
    def latent_samples(self) -> int:
        """Waveform samples per latent token."""
        return self.mel.hop_samples * self.latent_stride

    @property
    def latent_tokens(self) -> int:
        return math.ceil(round(self.duration_sec * self.audio_hz, 6) / self.latent_samples)

    @property
    def latent_hz(self) -> float:
        return self.audio_hz / self.latent_samples

    @property
    def mel_frames(self) -> int:
        return self.latent_tokens * self.latent_stride

    @property
    def audio_samples(self) -> int:
        """Samples that the codec encodes: a whole number of latent tokens, at least `duration_sec`."""
        return self.latent_tokens * self.latent_samples

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict) -> "ClipSpec":
        """Invert `to_dict`. Raises TypeError on an unknown field."""
        fields = dict(fields)
        mel = MelSpec(**fields.pop("mel", {}))
        return cls(mel=mel, **fields)

    def difference(self, other: "ClipSpec") -> str | None:
        """Describe the first differing field, e.g. `video_hz is 25.0 here, 8.0 there`; None if all are equal."""
        for name, ours, theirs in _walk(self.to_dict(), other.to_dict()):
            if ours != theirs:
                return f"{name} is {ours} here, {theirs} there"
        return None


def _walk(ours: dict, theirs: dict, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for name in ours:
        if isinstance(ours[name], dict):
            yield from _walk(ours[name], theirs[name], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", ours[name], theirs[name]


TINY = ClipSpec()

_MEL_16K = MelSpec(audio_hz=16_000, n_fft=1024, hop_samples=256, bands=80, high_hz=8_000.0, log_base=10.0)
_MEL_44K = MelSpec(audio_hz=44_100, n_fft=2048, hop_samples=512, bands=128, high_hz=22_050.0, log_base=math.e)
MMAUDIO_16K = ClipSpec(
    duration_sec=8.0, video_px=224, clip_video_hz=8.0, clip_video_px=384, sync_segment_frames=16, sync_segment_stride=8,
    latent_stride=2, latent_channels=20, text_tokens=77, mel=_MEL_16K,
)
MMAUDIO_44K = dataclasses.replace(MMAUDIO_16K, latent_channels=40, mel=_MEL_44K)
