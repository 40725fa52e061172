"""Shared types: array aliases and the PyTrees that pass between rooms.

Legend of dimensions (arrays are time-major per item, channels last):
  B batch   S waveform samples   T time steps   N tokens   H, W pixels
  M mel bands   C channels of a latent or a feature map   D features   E events

  video     (B, T, H, W, 3) float32 in [-1, 1]      waveform (B, S) float32 in [-1, 1]
  log-mel   (B, T, M) float32                       latents  (B, T, C) float32, normalised by the codec
  events    (B, E, 3) float32: class index, onset_sec, offset_sec; class -1 marks an unused row

Shapes are jaxtyping annotations, and the tests check them at every call. PyTrees of checked packages carry
`@no_type_check`: JAX rebuilds them with shapes, shardings and None in place of arrays.
"""

from collections.abc import Mapping
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Num
import numpy as np

Array = jax.Array
AnyArray = Array | np.ndarray  # inputs that a caller outside `jit` may also give as numpy
Scalar = Float[Array, ""] | float
Params = Any  # a nested dict of arrays
Module = Any  # a flax.linen.Module; Flax types the result of `apply` as a union with tuples, which no caller can use


STREAMS = ("sound", "picture")
"""Of a network that generates both, in the order of their latents."""


class AVBatch(struct.PyTreeNode):
    """A batch of audio-visual clips."""

    video: Float[Array, "B T H W 3"]
    mel: Float[Array, "B T M"]


class Conditions(struct.PyTreeNode):
    """Encoder features of a batch, computed once per clip; the solver never re-encodes them.

    For a network with its own frame encoder, `clip` and `sync` are flattened pixels in 0..255, uint8 or float.
    """

    clip: Num[Array, "B clip_video_frames D"]  # semantic features of single frames
    sync: Num[Array, "B sync_tokens D"]  # frame-aligned features
    text: Float[Array, "B text_tokens D"]
    motion: Float[Array, "B sync_tokens _"] | None = None  # frame-difference energy, optical flow; for networks that read it

    @classmethod
    def from_batch(cls, batch: Mapping[str, Any]) -> "Conditions":
        """The condition features among the arrays of a batch."""
        return cls(clip=batch["clip"], sync=batch["sync"], text=batch["text"], motion=batch.get("motion"))


class JointConditions(struct.PyTreeNode):
    """Conditions of a network that generates sound and pictures together.

    A stream that is `known` is not generated: the network sees its `given` latents, clean, and generates the other stream for
    it. With `alone`, each stream is generated as if there were no other one.
    """

    text: Float[Array, "B text_tokens D"]
    given: Float[Array, "B T C"]  # latents of the codecs, those of sound and pictures side by side
    known: Bool[Array, "B 2"]  # sound, pictures
    alone: Bool[Array, " B"]

    @classmethod
    def from_batch(cls, batch: Mapping[str, Any]) -> "JointConditions":
        """Both streams are generated; `given` are the clips' own latents, for those who set `known`."""
        latents = batch["latents"]
        rows = len(latents)
        return cls(
            text=batch["text"], given=latents, known=jnp.zeros((rows, 2), bool), alone=jnp.zeros(rows, bool)
        )


class PreferenceBatch(struct.PyTreeNode):
    """Pairs of latents for the same conditions; `real` anchors the model to recorded audio."""

    winner: Float[Array, "B T C"]
    loser: Float[Array, "B T C"]
    real: Float[Array, "B T C"]
    conditions: Conditions | JointConditions


class TrainState(struct.PyTreeNode):
    """What one optimiser step changes. Frozen networks travel beside it."""

    step: Int[Array, ""]
    params: Params
    opt_state: Any
    ema_params: Params | None
    tally: Any = None  # sums that a task accumulates over several steps and logs together
