import chex
from golden_files import MMDIT, clip_config, load, synchformer_config, vae_config, vjepa2_config, vocoder_config, weights
import numpy as np
import pytest

from msg_jax.convert import from_torch
from msg_jax.errors import UserError

# Kind, reference file, prefix of its weights, configuration; one tensor each to rename, to drop and to transpose; tensors to
# give another rank, which a transform or the choice of a preset would index, fold or compare.
NETWORKS = [
    ("vae", "vae_16k", "raw", vae_config,
     "encoder.down.1.block.0.conv2.weight", "decoder.conv_in.weight", "decoder.up.0.block.0.conv1.weight",
     ("data_mean", "data_std", "encoder.conv_in.weight", "decoder.conv_out.weight")),
    ("bigvgan", "bigvgan_16k", "param", vocoder_config,
     "resblocks.3.activations.1.act.beta", "ups.2.0.bias", "conv_pre.parametrizations.weight.original1",
     ("ups.0.0.parametrizations.weight.original0", "ups.1.0.parametrizations.weight.original1", "conv_pre.bias",
      "activation_post.act.alpha")),
    ("clip", "clip_openclip", "param", clip_config,
     "visual.ln_post.weight", "transformer.resblocks.1.attn.in_proj_bias", "transformer.resblocks.0.mlp.c_fc.weight",
     ("visual.conv1.weight", "transformer.resblocks.0.attn.in_proj_weight", "positional_embedding")),
    ("synchformer", "synchformer_visual", "param", synchformer_config,
     "vfeat_extractor.temp_embed", "vfeat_extractor.norm.bias", "vfeat_extractor.blocks.0.timeattn.qkv.weight",
     ("vfeat_extractor.patch_embed_3d.proj.weight", "vfeat_extractor.cls_token", "vfeat_extractor.pos_embed")),
    ("vjepa2", "vjepa2", "param", vjepa2_config,
     "encoder.layer.1.mlp.fc1.bias", "encoder.layer.0.attention.key.weight", "encoder.layer.1.mlp.fc2.weight",
     ("encoder.embeddings.patch_embeddings.proj.weight", "encoder.layer.0.norm1.weight",
      "encoder.layer.1.attention.query.bias")),
    ("mmdit", "mmdit_v1", "param", lambda config: MMDIT,
     "latent_mean", "final_layer.conv.bias", "t_embed.mlp.0.weight",
     ("joint_blocks.0.latent_block.attn.qkv.weight", "joint_blocks.0.clip_block.attn.qkv.bias", "sync_pos_emb",
      "empty_clip_feat", "latent_std", "audio_input_proj.0.weight", "t_embed.mlp.2.weight")),
]
RANKS = {  # ways to break a shape
    "a number": lambda a: np.asarray(a).ravel()[0].reshape(()),
    "flat": np.ravel,
    "an extra axis": lambda a: np.asarray(a)[None],
    "doubled": lambda a: np.stack([a, a], axis=-1).reshape(2 * len(a), *np.shape(a)[1:]),
}


def network(kind):
    _, file, prefix, to_config, *_ = next(row for row in NETWORKS if row[0] == kind)
    arrays, config = load(file)
    return weights(arrays, prefix), to_config(config)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("kind, renamed, dropped, transposed, misshaped", [(row[0], *row[4:]) for row in NETWORKS])
def test_every_misfit_is_named(kind, renamed, dropped, transposed, misshaped, rank):
    tensors, config = network(kind)
    tensors[f"{renamed}_moved"] = tensors.pop(renamed)
    del tensors[dropped]
    tensors[transposed] = tensors[transposed].swapaxes(0, 1)
    changed = {name: RANKS[rank](tensors[name]) for name in misshaped}
    changed = {name: array for name, array in changed.items() if array.shape != tensors[name].shape}
    assert changed
    with pytest.raises(UserError) as error:
        from_torch(kind, tensors | changed, config, source="toy.pth")
    sentence = str(error.value)
    for name in (f"{renamed}_moved is unknown", f"{renamed} is missing", f"{dropped} is missing"):
        assert name in sentence
    for name in ("toy.pth", transposed, *changed):
        assert name in sentence


@pytest.mark.parametrize("kind", [row[0] for row in NETWORKS if row[0] != "mmdit"])
def test_toy_tensors_fit_no_preset(kind):
    tensors, _ = network(kind)
    with pytest.raises(UserError, match=r"toy\.pth is no released network"):
        from_torch(kind, tensors, source="toy.pth")
    with pytest.raises(UserError, match="unknown preset 'huge'"):
        from_torch(kind, tensors, "huge")


def test_vae_kernels_are_equal_raw_or_folded():
    tensors, config = network("vae")

    def fold(weight):
        weight = weight.astype(np.float32)
        root = np.sqrt(weight[0].size)
        return weight / (1e-4 + np.sqrt((weight**2).sum((1, 2), keepdims=True)) / root) / root

    folded = {name: fold(tensor) if name.endswith(".weight") else tensor for name, tensor in tensors.items()}
    chex.assert_trees_all_close(from_torch("vae", tensors, config)[1], from_torch("vae", folded, config)[1], rtol=1e-6)


def test_weight_norm_is_folded_under_every_name():
    tensors, config = network("bigvgan")
    magnitude, direction = "parametrizations.weight.original0", "parametrizations.weight.original1"
    old = {
        "generator." + name.replace(magnitude, "weight_g").replace(direction, "weight_v"): tensor
        for name, tensor in tensors.items()
    }
    plain = {}
    for name, tensor in tensors.items():
        if name.endswith(direction):
            v = tensor.astype(np.float32)
            norm = np.linalg.norm(v.reshape(len(v), -1), axis=1).reshape(-1, 1, 1)
            plain[name.replace(direction, "weight")] = v / norm * tensors[name.replace(direction, magnitude)]
        elif not name.endswith(magnitude):
            plain[name] = tensor
    expected = from_torch("bigvgan", tensors, config)[1]
    chex.assert_trees_all_equal(from_torch("bigvgan", old, config)[1], expected)
    chex.assert_trees_all_close(from_torch("bigvgan", plain, config)[1], expected, rtol=1e-6)


def test_a_vocoder_with_other_filters_is_rejected():
    tensors, config = network("bigvgan")
    tensors["activation_post.upsample.filter"] = np.full((1, 1, 12), 1 / 12, np.float32)
    with pytest.raises(UserError, match=r"activation_post\.upsample\.filter"):
        from_torch("bigvgan", tensors, config)


def test_synchformer_ignores_the_audio_side():
    tensors, config = network("synchformer")
    whole = {**tensors, "afeat_extractor.norm.weight": np.ones(3), "transformer.off_head.bias": np.ones(21)}
    expected = from_torch("synchformer", tensors, config)[1]
    chex.assert_trees_all_equal(from_torch("synchformer", whole, config)[1], expected)
