"""Sampling inside a run: latents for extracted clips, in batches of one shape."""

from collections.abc import Iterator, Sequence
import functools

import jax
import jax.numpy as jnp
import numpy as np

from msg_jax import networks, sampling, train
from msg_jax.data.features import FeatureSource
from msg_jax.infra import mesh as mesh_lib
from msg_jax.stages.base import conditions_of
from msg_jax.stages.common import Run
from msg_jax.types import Params


class Generator:
    """Samples from any variables of the run's generator.

    The noise of a clip is a function of (seed, purpose, clip index): every system meets the same, so that systems are
    compared in pairs.
    """

    def __init__(self, run: Run, source: FeatureSource):
        self._run, self.source = run, source
        self.model = networks.generator(run.config, run.clip, source.dims, run.dtype)

    @functools.cached_property
    def _sample(self):
        @functools.partial(jax.jit, static_argnames=("candidates", "guidance_scale", "steps"))
        def sample(variables, conditions, keys, *, candidates, guidance_scale, steps):
            tokens, channels = self.model.config.latent_tokens, self.model.config.latent_channels
            noise = jax.vmap(lambda key: jax.random.normal(key, (candidates, tokens, channels)))(keys)
            latents = sampling.sample(
                self.model, variables, conditions, noise.reshape(-1, tokens, channels), steps=steps,
                guidance_scale=guidance_scale, **networks.solver(self._run.config),
            )
            latents = self.model.apply(variables, latents, method="unnormalize")
            return latents.reshape(-1, candidates, tokens, channels)

        return sample

    def latents(
        self, variables: Params, indices: Sequence[int], *, seed: int, purpose: str, candidates: int = 1,
        guidance_scale: float, steps: int, batch_size: int, conditional: bool = True, prompts: bool = False,
    ) -> Iterator[np.ndarray]:
        """Codec latents (n, candidates, T, C) of consecutive chunks of clips, n <= batch_size.

        Unless `prompts`, captions are left out: what is heard must come from what is seen.
        """
        root, variables, mesh = train.key_for(seed, purpose), self._run.local(variables), self._run.local_mesh
        for start in range(0, len(indices), batch_size):
            chosen = list(indices[start : start + batch_size])
            filled = chosen + chosen[-1:] * (batch_size - len(chosen))
            names = [name for name in ("clip", "sync", "text", "motion") if name in self.source.dims]
            conditions = conditions_of(self.source.stack(filled, names))
            null = self.model.apply(variables, batch_size, method="null_conditions")
            if not conditional:
                conditions = null
            elif not prompts:
                conditions = conditions.replace(text=null.text)
            keys = jax.vmap(lambda i: jax.random.fold_in(root, i))(jnp.asarray(filled))
            conditions, keys = mesh_lib.spread((conditions, keys), mesh)
            latents = self._sample(
                variables, conditions, keys, candidates=candidates, guidance_scale=guidance_scale, steps=steps
            )
            yield np.asarray(latents)[: len(chosen)]
