"""PANNs, VGGish and Synchformer's audio encoder against PyTorch, at toy widths with random weights.

`panns.npz` was made with panns_inference's ConvBlock and CNN14's forward, `vggish.npz` with torchvggish's forward without
the last ReLU, `synchformer_audio.npz` with Hugging Face's ASTModel, PyTorch's TransformerEncoderLayer and a minGPT block.
Parameters have the names of the released files. All are random, including batch statistics.
"""

import golden_files
from golden_files import load, relative_error
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msg_jax.convert import from_torch
from msg_jax.convert.weights import shapes_of
from msg_jax.data import frontends
from msg_jax.errors import UserError
from msg_jax.models import panns, synchformer, vggish


def test_panns_equals_the_released_architecture():
    arrays, tensors, config = golden_files.panns()
    model, variables = from_torch("panns", {f"model.{name}": value for name, value in tensors.items()}, config)
    log_mel = frontends.panns_log_mel(arrays["in/waveform"].astype(np.float32), config.mel)
    embedding, logits = jax.jit(model.apply)(variables, log_mel[None])
    assert relative_error(embedding[0], arrays["out/embedding"]) < 1e-5
    assert relative_error(logits[0], arrays["out/logits"]) < 1e-5


def test_vggish_equals_the_released_architecture():
    arrays, tensors, config = golden_files.vggish()
    model, variables = from_torch("vggish", tensors, config)
    examples = frontends.vggish_examples(arrays["in/waveform"].astype(np.float32))
    assert relative_error(jax.jit(model.apply)(variables, examples), arrays["out/embeddings"]) < 1e-5


def test_synchformer_audio_and_offset_equal_the_released_architecture():
    arrays, tensors, config = golden_files.full_synchformer()
    model, variables = from_torch("synchformer_full", tensors | {"optimizer.state": np.zeros(3)}, config)
    waveform = load("panns")[0]["in/waveform"][:15_360].astype(np.float32)
    spectrograms = frontends.synchformer_spectrograms(waveform)[None]
    features = jax.jit(lambda x: model.apply(variables, x, method="encode_audio"))(spectrograms)
    assert relative_error(features[0], arrays["out/audio_features"]) < 1e-5
    parts = (arrays[f"in/{side}_features"].astype(np.float32) for side in ("video", "audio"))
    logits = jax.jit(lambda *x: model.apply(variables, *x, method="offset_logits"))(*parts)
    assert relative_error(logits, arrays["out/offset_logits"]) < 1e-5


def test_visual_encoder_is_the_same_in_both_conversions():
    _, tensors, config = golden_files.full_synchformer()
    alone = from_torch("synchformer", tensors, config)[1]["params"]
    whole = from_torch("synchformer_full", tensors, config)[1]["params"]["visual"]
    assert all(map(np.array_equal, jax.tree.leaves(alone), jax.tree.leaves(whole)))


@pytest.mark.parametrize(("kind", "make", "renamed"), [
    ("panns", golden_files.panns, "conv_block3.bn2.running_var"), ("vggish", golden_files.vggish, "embeddings.2.bias"),
    ("synchformer_full", golden_files.full_synchformer, "transformer.OFF_tok"),
])
def test_missing_and_unknown_tensors_are_named(kind, make, renamed):
    _, tensors, config = make()
    tensors[f"{renamed}_moved"] = tensors.pop(renamed)
    with pytest.raises(UserError, match=f"toy.pth.*{renamed} is missing.*{renamed}_moved is unknown"):
        from_torch(kind, tensors, config, source="toy.pth")
    with pytest.raises(UserError, match=r"toy\.pth is no released network"):
        from_torch(kind, tensors, source="toy.pth")


def test_published_parameter_counts():
    def count(model, *inputs):
        return sum(leaf.size for leaf in jax.tree.leaves(shapes_of(model, *inputs)))

    assert count(panns.Cnn14(panns.PRESETS["16k"]), jnp.zeros((1, 64, 64))) == 80_753_615
    assert count(vggish.VGGish(), jnp.zeros((1, 96, 64))) == 72_141_184
    config = synchformer.PRESETS["released"]
    assert config.audio_grid == (12, 6) and config.sync_tokens == 198
    visual = 122_440_704  # asserted in tests/models/test_synchformer.py
    audio = count(synchformer.SynchformerAudio(config), jnp.zeros((1, 1, 66, 128)))
    offset = count(synchformer.SynchformerOffset(config), jnp.zeros((1, 14, 8, 768)), jnp.zeros((1, 14, 6, 768)))
    assert visual + audio + offset == 237_460_245
    assert 906 < 4 * 237_460_245 / 2**20 + 0.3 < 907  # the released file has 907 MB, including its index


def test_offset_grid_and_windows():
    assert synchformer.offset_grid()[[0, 10, 11, 20]] == pytest.approx([-2, 0, 0.2, 2])
    assert synchformer.window_starts(24) == (0, 10)
