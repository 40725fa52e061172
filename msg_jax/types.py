"""The contracts between rooms.

Legend of dimensions (arrays are time-major per item, channels last):
  B batch   S waveform samples   T time steps   H, W pixels   M mel bands   C latent channels   D features   E events

  video     (B, T, H, W, 3) float32 in [-1, 1]      waveform (B, S) float32 in [-1, 1]
  log-mel   (B, T, M) float32                       latents  (B, T, C) float32, normalised by the codec
  events    (B, E, 3) float32: class index, onset_sec, offset_sec; class -1 marks an unused row
"""

from collections.abc import Mapping
from typing import Any

from flax import struct
import jax

Array = jax.Array
Params = Any  # a nested dict of arrays


class AVBatch(struct.PyTreeNode):
    """A batch of audio-visual clips."""

    video: Array  # (B, T, H, W, 3)
    mel: Array  # (B, T, M)


class Conditions(struct.PyTreeNode):
    """Encoder features of a batch, computed once per clip; the solver never re-encodes them."""

    clip: Array  # (B, clip_video_frames, D)  semantic features of single frames
    sync: Array  # (B, sync_tokens, D)  frame-aligned features
    text: Array  # (B, text_tokens, D)
    motion: Array | None = None  # (B, sync_tokens, 1)  energy of the change between frames, for networks that look at it

    @classmethod
    def from_batch(cls, batch: Mapping[str, Array]) -> "Conditions":
        """The condition features among the arrays of a batch."""
        return cls(clip=batch["clip"], sync=batch["sync"], text=batch["text"], motion=batch.get("motion"))


class PreferenceBatch(struct.PyTreeNode):
    """Pairs of latents for the same conditions; `real` anchors the model to recorded audio."""

    winner: Array  # (B, T, C)
    loser: Array  # (B, T, C)
    real: Array  # (B, T, C)
    conditions: Conditions


class TrainState(struct.PyTreeNode):
    """What one optimiser step changes. Frozen networks travel beside it."""

    step: Array  # () int32
    params: Params
    opt_state: Any
    ema_params: Params | None
    tally: Any = None  # sums that a task logs over several steps
