"""Convolutions as matrix products, and the precision of float32 networks."""

from golden_files import relative_error
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from topologies import traced_for_tpu

from msg_jax.clip import MMAUDIO_16K
from msg_jax.evaluation.detector import EventDetector
from msg_jax.models import layers, vocoder
from msg_jax.models.clip_encoder import CLIPConfig, ImageTower
from msg_jax.models.panns import Cnn14, PannsConfig
from msg_jax.models.synchformer import Synchformer, SynchformerConfig
from msg_jax.models.vae import VAE, VAEConfig
from msg_jax.models.vggish import VGGish, VGGishConfig


@pytest.mark.parametrize("window, space, dilation, padding", [
    ((3,), (9,), 1, "SAME"), ((4,), (9,), 1, "SAME"), ((1, 5), (1, 11), 3, "SAME"), ((2,), (9,), 1, [(1, 1)]),
    ((3,), (9,), 1, "VALID"), ((3, 3), (5, 6), 1, "SAME"),
])
def test_a_convolution_as_a_matrix_product(window, space, dilation, padding):
    draw = np.random.default_rng(0).normal
    x, kernel = (jnp.asarray(draw(size=shape), jnp.float32) for shape in ((2, *space, 4), (*window, 4, 6)))
    letters = "HW"[-len(window):]
    options = dict(
        rhs_dilation=(1,) * (len(window) - 1) + (dilation,), precision=jax.lax.Precision.HIGHEST,
        dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
    )
    expected = jax.lax.conv_general_dilated(x, kernel, (1,) * len(window), padding, **options)
    found = layers.unfolded_convolution(x, kernel, (1,) * len(window), padding, **options)
    assert found.shape == expected.shape and relative_error(found, expected) < 1e-6


@pytest.mark.parametrize("window, space, strides, padding", [
    ((7, 7), (8, 12), (2, 2), "SAME"), ((5, 7, 7), (5, 8, 10), (1, 2, 2), "SAME"), ((5, 7, 1), (9, 9, 1), (2, 2, 1), "SAME"),
    ((4, 4), (9, 10), (4, 4), "VALID"), ((6, 6), (13, 12), (4, 4), "VALID"), ((5, 5), (8, 8), (4, 4), "SAME"),
])
def test_a_strided_convolution_over_blocks_of_pixels(window, space, strides, padding):
    """The stems of SlowFast (video R50 and tiny, audio), and patches as in CLIP and the spectrogram transformer."""
    draw = np.random.default_rng(0).normal
    x, kernel = (jnp.asarray(draw(size=shape), jnp.float32) for shape in ((2, *space, 3), (*window, 3, 6)))
    letters = "DHW"[-len(window):]
    numbers = jax.lax.conv_dimension_numbers(x.shape, kernel.shape, (f"N{letters}C", f"{letters}IO", f"N{letters}C"))
    options = dict(dimension_numbers=numbers, precision=jax.lax.Precision.HIGHEST)
    expected = jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)
    found = layers.space_to_depth_convolution(x, kernel, strides, padding, **options)
    assert found.shape == expected.shape and relative_error(found, expected) < 1e-6


def test_bfloat16_is_summed_in_float32_on_a_cpu():
    module, x = layers.Dense(64, dtype=jnp.bfloat16), jax.random.normal(jax.random.key(0), (3, 256), jnp.bfloat16)
    variables = module.init(jax.random.key(1), x)
    kernel = np.asarray(jnp.bfloat16(variables["params"]["dense"]["kernel"].unbox()), np.float64)
    found, exact = module.apply(variables, x), np.asarray(x, np.float64) @ kernel
    assert found.dtype == jnp.bfloat16 and np.array_equal(found, exact.astype(np.float32).astype(jnp.bfloat16))
    assert "preferred_element_type=float32" in str(jax.make_jaxpr(module.apply)(variables, x))
    with traced_for_tpu():
        assert "preferred_element_type=float32" not in str(jax.make_jaxpr(module.apply)(variables, x))


def test_a_stem_for_a_tpu_computes_the_same_and_convolves_no_picture_of_three_channels():
    module, x = layers.Conv(8, (5, 7, 7), (1, 2, 2)), np.random.default_rng(0).normal(size=(1, 5, 8, 8, 3)).astype(np.float32)
    variables = module.init(jax.random.key(0), x)
    expected = module.apply(variables, x)
    with traced_for_tpu():
        lowered = jax.jit(module.apply).lower(variables, x)
        assert relative_error(jax.jit(module.apply)(variables, x), expected) < 1e-6
    assert "x12xf32>" in lowered.as_text()


def test_only_float32_convolutions_for_tpus_are_matrix_products():
    x, module = jnp.zeros((1, 8, 16)), vocoder.TimeConv(16, 3, 2)
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    assert "convolution" in jax.jit(module.apply).lower(variables, x).as_text()
    with traced_for_tpu():
        half = vocoder.TimeConv(16, 3, 2, dtype=jnp.bfloat16)
        assert "convolution" in jax.jit(half.apply).lower(variables, x).as_text()
        text = jax.jit(module.apply).lower(variables, x).as_text()
    assert "convolution" not in text and "dot_general" in text


def test_the_vocoder_computes_the_same_for_a_tpu():
    config = vocoder.VocoderConfig(bands=4, upsample_rates=(4, 2), v2=True, width=8)
    model, mel = vocoder.BigVGAN(config), np.random.default_rng(0).normal(size=(1, 6, 4)).astype(np.float32)
    variables = model.init(jax.random.key(0), mel)
    expected = jax.jit(model.apply)(variables, mel)
    with traced_for_tpu():
        found = jax.jit(model.apply)(variables, mel)
    assert relative_error(found, expected) < 1e-5


JUDGED = {
    "judge": (EventDetector(3), (1, 8, 16)),
    "vae": (VAE(VAEConfig(4, 2, 16)), (1, 8, 4)),
    "bigvgan": (vocoder.BigVGAN(vocoder.VocoderConfig(bands=4, upsample_rates=(2,), v2=False, width=8)), (1, 4, 4)),
    "panns": (Cnn14(PannsConfig(MMAUDIO_16K.mel, widths=(8, 8), classes=3)), (1, 32, 8)),
    "vggish": (VGGish(VGGishConfig(((8,),), (8,))), (1, 96, 64)),
    "clip": (ImageTower(CLIPConfig(8, 4, 16, 2, 2)), (1, 8, 8, 3)),
    "synchformer": (Synchformer(SynchformerConfig(16, 2, 2, 8, 4)), (1, 1, 16, 8, 8, 3)),
}


@pytest.mark.parametrize("name", JUDGED)
def test_networks_that_judge_multiply_float32_exactly(name):
    """Without the attribute a TPU rounds the inputs of every product to bfloat16, and a GPU to 10 bits.

    On TPUs the layers of released ones take three passes of bfloat16 instead of six.
    """
    module, shape = JUDGED[name]
    x = jnp.zeros(shape)
    variables = jax.eval_shape(module.init, jax.random.key(0), x)

    def precisions():
        text = jax.jit(module.apply).lower(variables, x).as_text()
        products = [line for line in text.splitlines() if "stablehlo.dot_general" in line or "stablehlo.convolution" in line]
        return {next((word for word in ("HIGHEST", "HIGH") if word in line), "") for line in products}

    assert precisions() == {"HIGHEST"}
    with traced_for_tpu():
        attention = name in ("vae", "clip", "synchformer")
        assert precisions() == ({"HIGHEST"} if name == "judge" else {"HIGH", "HIGHEST"} if attention else {"HIGH"})
