"""Sample latents for extracted clips, in batches of one shape."""

from collections.abc import Iterator, Mapping, Sequence
import functools
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Float
import numpy as np

from msg_jax.inference import sampling
from msg_jax.inference.batching import chunks
from msg_jax.infra import mesh as mesh_lib
from msg_jax.infra.random import key_for
from msg_jax.types import Params


def sample_program(model: Any, solver: Mapping[str, Any]) -> Any:
    """The jitted (variables, conditions of B clips, their keys, candidates=N, guidance_scale=, steps=) -> (B, N, T, C)."""

    @functools.partial(jax.jit, static_argnames=("candidates", "guidance_scale", "steps"))
    def sample(variables, conditions, keys, *, candidates, guidance_scale, steps):
        tokens, channels = model.config.latent_tokens, model.config.latent_channels
        noise = jax.vmap(lambda key: jax.random.normal(key, (candidates, tokens, channels)))(keys)
        latents = sampling.sample(
            model, variables, conditions, noise.reshape(-1, tokens, channels), steps=steps,
            guidance_scale=guidance_scale, **solver,
        )
        latents = model.apply(variables, latents, method="unnormalize")
        return latents.reshape(-1, candidates, tokens, channels)

    return sample


@runtime_checkable
class Conditioned(Protocol):
    """Clips with the features that networks see, as a `data.features.FeatureSource`."""

    @property
    def dims(self) -> Mapping[str, int]:
        """Width of each feature."""
        ...

    def stack(self, indices: Sequence[int] | np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """The named features of some clips."""
        ...


class Sampler:
    """Samples from any variables of one generator network.

    The noise of a clip is a function of (seed, purpose, clip index), so that systems are compared on the same noise.
    `mesh` holds this process's devices; `solver` are keyword arguments of `sampling.sample`.
    """

    def __init__(self, model: Any, source: Conditioned, mesh: Mesh, solver: Mapping[str, Any]):
        self.model, self.source, self._mesh, self._solver = model, source, mesh, solver

    @functools.cached_property
    def _program(self):
        return sample_program(self.model, self._solver)

    def latents(
        self, variables: Params, indices: Sequence[int] | np.ndarray, *, seed: int, purpose: str, candidates: int = 1,
        guidance_scale: float, steps: int, batch_size: int, conditional: bool = True, prompts: bool = False,
        known: tuple[bool, bool] | None = None,
    ) -> Iterator[Float[np.ndarray, "B N T C"]]:
        """Yield the codec's latents of N = `candidates` samples for consecutive chunks of at most `batch_size` clips.

        Captions are left out unless `prompts`: the sound must follow from the video. A network of sound and pictures is given
        the clips' own streams that are `known`.
        """
        root, variables = key_for(seed, purpose), mesh_lib.replicate(variables, self._mesh)
        null = self.model.apply(variables, batch_size, method="null_conditions")
        wanted = ("latents", "text") if known else ("clip", "sync", "text", "motion")
        names = [name for name in wanted if name in self.source.dims]
        done = 0
        for chosen in chunks(np.asarray(indices), batch_size):
            conditions = null
            if conditional:
                conditions = self.model.conditions.from_batch(self.source.stack(chosen, names))
                if known:
                    conditions = conditions.replace(known=jnp.broadcast_to(np.array(known), (batch_size, 2)))
                conditions = conditions if prompts else conditions.replace(text=null.text)
            keys = jax.vmap(lambda i: jax.random.fold_in(root, i))(jnp.asarray(chosen))
            latents = self._program(
                variables, *mesh_lib.spread((conditions, keys), self._mesh), candidates=candidates,
                guidance_scale=guidance_scale, steps=steps,
            )
            yield np.asarray(latents)[: len(indices) - done]
            done += batch_size
