"""A folder as docs/WEIGHTS.md describes it, with files of the published names and structure at toy widths."""

import dataclasses
import gzip

from golden_files import clip_config, full_synchformer, load, vae_config, vocoder_config, weights
import numpy as np
from torch_files import write_state

from msg_jax.clip import MMAUDIO_16K
from msg_jax.convert.bundle import VOCABULARY, Network, Released, Variant
from msg_jax.models.mmdit import MMDiTConfig

CLIP = dataclasses.replace(  # one window is 0.96 s: 30 latent tokens
    MMAUDIO_16K, duration_sec=0.96, latent_channels=6, clip_video_px=28, video_px=32
)
MERGES = ["d o", "g</w> s", "do g</w>", "c a", "ca t</w>", "x y"]  # of them "dog" and "cat" are made
VOCABULARY_SIZE = 512 + len(MERGES) + 2


def toy_spec():
    """Clips of the released length and frame sizes, for networks of toy widths."""
    return dataclasses.replace(MMAUDIO_16K, latent_channels=CLIP.latent_channels)


def toy_tensors(spec=CLIP):
    """File name -> tensors by the checkpoint's names, and the variant that they are, for clips of `spec`."""
    rng = np.random.default_rng(0)

    def random(*shape):
        return rng.normal(size=shape).astype(np.float32)

    networks, tensors = {}, {}

    def add(kind, name, config, state):
        networks[kind], tensors[name] = Network(Released(name, 0), config), state

    arrays, sizes = load("clip_openclip")
    clip = dataclasses.replace(clip_config(sizes), vocabulary=VOCABULARY_SIZE, image_px=spec.clip_video_px)
    state = weights(arrays) | {"token_embedding.weight": random(VOCABULARY_SIZE, clip.text_width)}
    if spec.clip_video_px != sizes["image_size"]:
        state["visual.positional_embedding"] = random(1 + clip.patches, clip.vision_width)
    add("clip", "open_clip_pytorch_model.bin", clip, state)
    _, state, sync = full_synchformer()
    sync = dataclasses.replace(sync, image_px=spec.video_px)
    positions = state["vfeat_extractor.pos_embed"][:, : 1 + sync.positions]
    add("synchformer", "synchformer_state_dict.pth", sync, state | {"vfeat_extractor.pos_embed": positions})
    arrays, sizes = load("mmdit_v1")
    generator = MMDiTConfig.for_clip(
        spec, clip_dim=clip.features, sync_dim=sync.width, text_dim=clip.text_width, hidden=sizes["hidden_dim"],
        heads=sizes["num_heads"], joint_depth=sizes["depth"] - sizes["fused_depth"], fused_depth=sizes["fused_depth"],
    )
    add("mmdit", "mmaudio_toy_16k.pth", generator, weights(arrays) | {
        "clip_input_proj.0.weight": random(generator.hidden, generator.clip_dim),
        "text_input_proj.0.weight": random(generator.hidden, generator.text_dim),
        "sync_input_proj.0.weight": random(generator.hidden, generator.sync_dim, 7),
        "sync_pos_emb": random(1, 1, 8, generator.sync_dim),
        "empty_clip_feat": random(1, generator.clip_dim),
        "empty_sync_feat": random(1, generator.sync_dim),
        "empty_string_feat": random(generator.text_tokens, generator.text_dim),
    })
    arrays, sizes = load("vae_16k")
    add("vae", "v1-16.pth", vae_config(sizes), weights(arrays, "raw"))
    arrays, sizes = load("bigvgan_16k")
    add("bigvgan", "best_netG.pt", vocoder_config(sizes), {f"generator.{k}": v for k, v in weights(arrays).items()})
    return tensors, Variant(spec, networks)


def write_vocabulary(folder, merges=tuple(MERGES)):
    text = "\n".join(["#version", *merges, "not read", ""])
    (folder / VOCABULARY.name).write_bytes(gzip.compress(text.encode()))
    return folder / VOCABULARY.name


def write_released(folder, spec=CLIP):
    """Writes all files; returns their variant."""
    tensors, variant = toy_tensors(spec)
    for name, state in tensors.items():
        write_state(folder / name, state)
    write_vocabulary(folder)
    return variant
