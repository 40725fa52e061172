"""The neural codec against the reference networks that it consists of."""

from golden_files import load, relative_error, vae_config, vocoder_config, weights
import jax
import numpy as np
import pytest

from msg_jax.clip import ClipSpec
from msg_jax.convert import from_torch
from msg_jax.models.neural_codec import NeuralCodec


@pytest.fixture(scope="module", params=[("vae_16k", "bigvgan_16k"), ("vae_44k", "bigvgan_v2_44k")])
def released(request):
    """The codec of two reference networks, its variables, and the reference tensors of both."""
    (vae, vae_sizes), (vocoder, vocoder_sizes) = map(load, request.param)
    codec = NeuralCodec(ClipSpec(), vae_config(vae_sizes), vocoder_config(vocoder_sizes))
    _, from_vae = from_torch("vae", weights(vae, "raw"), codec.vae_config)
    _, from_vocoder = from_torch("bigvgan", weights(vocoder), codec.vocoder_config)
    variables = {
        "params": {"vae": from_vae["params"], "vocoder": from_vocoder["params"]},
        "buffers": {"vae": from_vae["buffers"]},
    }
    return codec, variables, vae, vocoder


def test_equals_its_two_networks(released):
    codec, variables, vae, vocoder = released
    encoded = codec.apply(variables, vae["out/mel"].swapaxes(1, 2), method="encode")
    assert relative_error(encoded, vae["out/enc_mean"].swapaxes(1, 2)) < 1e-4
    decoded = codec.apply(variables, vae["in/latent"].swapaxes(1, 2), method="decode")
    assert relative_error(decoded, vae["out/decoded_mel"].swapaxes(1, 2)) < 1e-4
    vocoded = codec.apply(variables, vocoder["in/mel"].swapaxes(1, 2), method="vocode")
    assert relative_error(vocoded, vocoder["out/wav"][:, 0]) < 1e-4


def test_context_frames_are_the_reach_of_the_vocoder(released):
    """NaN in one mel frame spreads exactly `context_frames` to either side."""
    codec, variables, *_ = released
    frames, middle, hop = 100, 50, int(np.prod(codec.vocoder_config.upsample_rates))
    log_mel = np.zeros((1, frames, codec.vocoder_config.bands), np.float32)
    log_mel[:, middle] = np.nan
    waveform = jax.jit(codec.apply, static_argnames="method")(variables, log_mel, method="vocode")
    reached = np.flatnonzero(np.isnan(waveform[0])) // hop
    assert (middle - reached[0], reached[-1] - middle) == (codec.context_frames, codec.context_frames)
