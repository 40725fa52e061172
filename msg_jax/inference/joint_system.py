"""A `JointSystem` makes sound and pictures from text, and sound for a given video, of one network."""

from collections.abc import Iterable, Sequence
import dataclasses
import functools
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from msg_jax import networks
from msg_jax.errors import UserError
from msg_jax.inference.batching import map_batches
from msg_jax.inference.frozen import EmbedText
from msg_jax.inference.system import WINDOWS_AT_ONCE, System
from msg_jax.infra import progress
from msg_jax.models.condition_encoder import words
from msg_jax.types import JointConditions, Module


def refusing_long(embed_text: EmbedText, tokens: int) -> EmbedText:
    """The text encoder, but a text of more than `tokens` words raises UserError: the others would be left out."""

    def embed(text: str) -> np.ndarray:
        if (count := len(words(text))) > tokens:
            raise UserError(f"the prompt {text[:40]!r}... has {count} words, and this checkpoint reads {tokens}: shorten it")
        return embed_text(text)

    return embed


@dataclasses.dataclass(frozen=True, kw_only=True)
class JointSystem(System):
    """`variables` also has the "picture_codec". The latents of a window are those of sound and pictures, side by side."""

    picture_codec: Module  # a models.codec.PictureCodec

    @property
    def latent_channels(self) -> int:
        return self.generator.config.latent_channels

    @property
    def makes_pictures(self) -> bool:
        return True

    def encode(
        self, windows: Iterable[Sequence[np.ndarray]], prompt: str | Sequence[str] = "", count: int = 1,
        cache: pathlib.Path | None = None,
    ) -> JointConditions:
        """Conditions with the pictures of a clip's windows given; as `System.encode`, but nothing is kept in `cache`."""
        found, remaining = [], iter(windows)
        while batch := list(itertools.islice(remaining, WINDOWS_AT_ONCE)):
            found.append(self._encode_pictures(np.stack([window[0] for window in batch])))
            progress.report(len(found) * WINDOWS_AT_ONCE / count)
        pictures = np.concatenate(found)
        given = np.concatenate([np.zeros((*pictures.shape[:2], self.clip.latent_channels), np.float32), pictures], axis=-1)
        return self._conditions(given, prompt).replace(known=jnp.tile(jnp.array([[False, True]]), (len(given), 1)))

    def encode_text_alone(self, prompt: str | Sequence[str], rows: int = 1) -> JointConditions:
        """Conditions of `rows` windows whose sound and pictures are both generated. Raises UserError without a prompt."""
        if not all([prompt] if isinstance(prompt, str) else prompt):
            raise UserError("this checkpoint makes sound and pictures from text: give a --prompt, or a video to make sound for")
        return self._conditions(np.zeros((rows, self.clip.latent_tokens, self.latent_channels), np.float32), prompt)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        return super().decode(latents[:, : self.clip.latent_channels])

    def pictures(self, latents: np.ndarray) -> np.ndarray:
        """The frames (T, H, W, 3), uint8, of latents (N, C)."""
        decode = functools.partial(self._decode_pictures, self.variables["picture_codec"])
        return map_batches(decode, 1, latents[None, :, self.clip.latent_channels :])[0]

    def _conditions(self, given: np.ndarray, prompt: str | Sequence[str]) -> JointConditions:
        return JointConditions.from_batch({"latents": given, "text": self._embed_prompts(prompt, len(given))})

    def _encode_pictures(self, video: np.ndarray) -> np.ndarray:
        return map_batches(
            functools.partial(self._encode_program, self.variables["picture_codec"]), WINDOWS_AT_ONCE, video
        )

    @functools.cached_property
    def _encode_program(self):
        return jax.jit(lambda variables, video: self.picture_codec.apply(variables, networks.to_unit(video), method="encode"))

    @functools.cached_property
    def _decode_pictures(self):
        return jax.jit(lambda variables, x: networks.to_bytes(self.picture_codec.apply(variables, x, method="decode")))
