"""CLIP against open_clip, and its published sizes."""

from golden_files import clip_config, load, relative_error, weights
import jax
import jax.numpy as jnp
import numpy as np

from msg_jax.convert import from_torch
from msg_jax.convert.weights import shapes_of
from msg_jax.models.clip_encoder import CLIP, PIXEL_MEAN, PIXEL_STD, PRESETS, CLIPConfig, TransformerBlock, quick_gelu


def test_equals_open_clip(golden_folder):
    arrays, config = load("clip_openclip", golden_folder)
    model, variables = from_torch("clip", weights(arrays), clip_config(config))
    normalised = np.moveaxis(arrays["in/image"], 1, -1)
    images = 2 * (normalised * np.float32(PIXEL_STD) + np.float32(PIXEL_MEAN)) - 1
    features, text = jax.jit(model.apply)(variables, images, arrays["in/tokens"])
    assert relative_error(features, arrays["out/image_features"]) < 1e-5
    assert relative_error(text, arrays["out/text_hidden_normalized"]) < 1e-5


def test_published_parameter_counts():
    config = PRESETS["vit_h_14"]
    images, tokens = jnp.zeros((1, config.image_px, config.image_px, 3)), jnp.zeros((1, 77), jnp.int32)
    params = shapes_of(CLIP(config), images, tokens)["params"]
    count = {tower: sum(leaf.size for leaf in jax.tree.leaves(params[tower])) for tower in ("image", "text")}
    text_projection, logit_scale = 1024 * 1024, 1  # published with the rest, unused here
    assert round(count["image"] / 1e6, 2) == 632.68
    assert round((count["text"] + text_projection) / 1e6, 2) == 354.03
    assert round((sum(count.values()) + text_projection + logit_scale) / 1e6, 2) == 986.71


def test_a_block_may_compute_its_first_tokens_alone():
    block, x = TransformerBlock(2, quick_gelu), jax.random.normal(jax.random.key(0), (2, 5, 8))
    variables = block.init(jax.random.key(1), x)
    assert np.allclose(block.apply(variables, x, first=2), block.apply(variables, x)[:, :2], atol=1e-6)


def test_384_px_give_the_patches_of_378():
    assert CLIPConfig(image_px=384).patches == CLIPConfig(image_px=378).patches == 27 * 27


def test_frames_are_independent_and_tokens_attend_only_to_their_past():
    arrays, config = load("clip_openclip")
    model, variables = from_torch("clip", weights(arrays), clip_config(config))
    video = jax.random.uniform(jax.random.key(0), (2, 3, 28, 28, 3), minval=-1, maxval=1)
    tokens = jnp.stack([jnp.arange(10), jnp.arange(10).at[6].set(50)])
    features, (before, after) = jax.jit(model.apply)(variables, video, tokens)
    flipped, _ = jax.jit(model.apply)(variables, video[::-1], tokens)
    assert features.shape == (2, 3, config["embed_dim"]) and np.allclose(features[::-1], flipped, atol=1e-5)
    assert np.allclose(before[:6], after[:6], atol=1e-6) and np.abs(before[6:] - after[6:]).max(-1).min() > 1e-3
