"""Networks and losses that compute in bfloat16 against float32, from the same float32 parameters."""

import dataclasses

from flax import linen as nn
from golden_files import relative_error
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msg_jax.losses.contrastive import sf_cavp_loss
from msg_jax.losses.flow import flow_error
from msg_jax.losses.preference import PairErrors, preference_loss
from msg_jax.models.clip_encoder import CLIPConfig, ImageTower
from msg_jax.models.mmdit import MMDiT, MMDiTConfig, example_inputs
from msg_jax.models.slowfast import SlowFast, SlowFastConfig
from msg_jax.models.synchformer import Synchformer, SynchformerConfig

MMDIT = MMDiTConfig(
    latent_channels=4, latent_tokens=12, clip_tokens=3, sync_tokens=16, text_tokens=4, clip_dim=8, sync_dim=8, text_dim=8,
    hidden=32, heads=2, joint_depth=2, fused_depth=2,
)
SLOWFAST = SlowFastConfig(depths=(1, 1), slow_width=64, factored_stem=True)
draw = np.random.default_rng(0).normal


def random_like(tree, scale=0.2):
    """Weights that open every gate and branch that starts at zero."""
    return jax.tree.map(lambda leaf: (scale * draw(size=leaf.shape)).astype(np.float32), nn.unbox(tree))


def network_error(make, *inputs):
    exact, half = make("float32"), make("bfloat16")
    shapes = jax.eval_shape(exact.init, jax.random.key(0), *inputs)
    assert shapes == jax.eval_shape(half.init, jax.random.key(0), *inputs)
    variables = random_like(shapes)
    return max(
        relative_error(a.astype(jnp.float32), b)
        for a, b in zip(*(jax.tree.leaves(jax.jit(module.apply)(variables, *inputs)) for module in (half, exact)))
    )


NETWORKS = {
    "MM-DiT v1": (lambda dtype: MMDiT(MMDIT, jnp.dtype(dtype)), random_like(example_inputs(MMDIT, 2), 1.0)),
    "MM-DiT v2": (
        lambda dtype: MMDiT(dataclasses.replace(MMDIT, v2=True), jnp.dtype(dtype)), random_like(example_inputs(MMDIT, 2), 1.0)
    ),
    "CLIP": (lambda dtype: ImageTower(CLIPConfig(8, 4, 32, 4, 2), jnp.dtype(dtype)), (draw(size=(2, 8, 8, 3)),)),
    "Synchformer": (
        lambda dtype: Synchformer(SynchformerConfig(32, 4, 2, 8, 4), jnp.dtype(dtype)), (draw(size=(1, 1, 16, 8, 8, 3)),)
    ),
    "SlowFast": (lambda dtype: SlowFast(dataclasses.replace(SLOWFAST, dtype=dtype)), (draw(size=(1, 8, 16, 16, 3)),)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name):
    make, inputs = NETWORKS[name]
    error = network_error(make, *(jax.tree.map(lambda a: np.asarray(a, np.float32), inputs)))
    print(f"{name}: {error:.1e}")
    assert 1e-4 < error < 5e-2


@dataclasses.dataclass
class Heads:
    semantic: jax.Array
    dynamic: jax.Array
    local: jax.Array


def rounded(x):
    return x.astype(jnp.bfloat16).astype(jnp.float32)


def unit(*shape):
    x = jnp.asarray(draw(size=shape), jnp.float32)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def test_losses_of_rounded_outputs():
    """A loss is float32; what it sees comes from layers in bfloat16. Its own arithmetic adds nothing to that rounding."""
    data, noise, output = (jnp.asarray(draw(size=(8, 12, 4)), jnp.float32) for _ in range(3))
    t = jnp.linspace(0.1, 0.9, 8)
    flow = [flow_error(lambda *_, out=out: out, data, noise, t).mean() for out in (rounded(output), output)]
    errors = [jnp.asarray(1 + 0.1 * draw(size=8), jnp.float32) for _ in range(4)]
    preference = [preference_loss(PairErrors(*(f(e) for e in errors)), 10.0)[0] for f in (rounded, lambda e: e)]
    video, audio = (Heads(unit(6, 16), unit(6, 5, 16), unit(6, 3, 16)) for _ in range(2))
    half = [Heads(*(rounded(getattr(side, f.name)) for f in dataclasses.fields(Heads))) for side in (video, audio)]
    terms = ("semantic", "dynamic", "window")
    info_nce = [
        sf_cavp_loss(*sides, dict.fromkeys(terms, 100.0), dict.fromkeys(terms, 1.0), (-1, 1))[0]
        for sides in (half, (video, audio))
    ]
    for name, (a, b) in {"flow": flow, "preference": preference, "InfoNCE at scale 100": info_nce}.items():
        assert a.dtype == b.dtype == jnp.float32
        print(f"{name}: {abs(a / b - 1):.1e}")
        assert abs(a / b - 1) < 2e-2, name
