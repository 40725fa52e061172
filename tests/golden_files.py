"""Reference tensors of small networks with the released architectures, and their configurations as ours."""

import dataclasses
import json
import pathlib

import numpy as np

from msg_jax.models.clip_encoder import CLIPConfig
from msg_jax.models.mmdit import MMDiTConfig
from msg_jax.models.panns import PRESETS as PANNS
from msg_jax.models.panns import PannsConfig
from msg_jax.models.synchformer import SynchformerConfig
from msg_jax.models.vae import VAEConfig
from msg_jax.models.vggish import VGGishConfig
from msg_jax.models.vjepa2 import VJEPA2Config
from msg_jax.models.vocoder import VocoderConfig

SMALL = pathlib.Path(__file__).parent / "golden"
MMDIT = MMDiTConfig(  # of the file mmdit_v1
    latent_channels=6, latent_tokens=30, clip_tokens=8, sync_tokens=24, text_tokens=5, clip_dim=10, sync_dim=8,
    text_dim=10, hidden=16, heads=2, joint_depth=2, fused_depth=1,
)


def load(name, folder=SMALL):
    """All arrays of `name`.npz and its configuration, a dict."""
    with np.load(folder / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    return arrays, json.loads(str(arrays.pop("config")))


def weights(arrays, prefix="param"):
    """The checkpoint's tensors, by the checkpoint's names."""
    return {key.removeprefix(f"{prefix}/"): array for key, array in arrays.items() if key.startswith(f"{prefix}/")}


def vae_config(config):
    bands = {"16k": 80, "44k": 128}[config["mode"]]
    return VAEConfig(bands=bands, latent_channels=config["embed_dim"], width=config["hidden_dim"])


def vocoder_config(config):
    return VocoderConfig(
        bands=config["num_mels"], upsample_rates=tuple(config["upsample_rates"]),
        v2=not config.get("use_tanh_at_final", True), width=config["upsample_initial_channel"],
    )


def clip_config(config):
    return CLIPConfig(
        image_px=config["image_size"], patch_px=config["patch_size"], vision_width=config["vision_width"],
        vision_depth=config["vision_layers"], vision_heads=config["vision_heads"], text_width=config["text_width"],
        text_depth=config["text_layers"], text_heads=config["text_heads"], vocabulary=config["vocab_size"],
        context_tokens=config["context_length"], features=config["embed_dim"],
    )


def synchformer_config(config):
    return SynchformerConfig(
        width=config["embed_dim"], depth=config["depth"], heads=config["num_heads"], image_px=config["image"],
        patch_px=config["patch"], frames_per_step=config["patch_t"],
    )


def vjepa2_config(config):
    return VJEPA2Config(
        width=config["hidden_size"], depth=config["num_hidden_layers"], heads=config["num_attention_heads"],
        image_px=config["crop_size"], patch_px=config["patch_size"],
    )


def panns():
    """The arrays of the toy CNN14, its tensors and its configuration."""
    arrays, config = load("panns")
    return arrays, weights(arrays), PannsConfig(PANNS["16k"].mel, tuple(config["widths"]), config["classes"])


def vggish():
    arrays, config = load("vggish")
    return arrays, weights(arrays), VGGishConfig(tuple(map(tuple, config["stages"])), tuple(config["dense"]))


def full_synchformer():
    """The visual encoder's file and that of the rest, together one checkpoint."""
    visual, config = load("synchformer_visual")
    arrays, more = load("synchformer_audio")
    return arrays, weights(visual) | weights(arrays), dataclasses.replace(synchformer_config(config), **more)


def relative_error(found, expected):
    """Norm of the difference over the norm of the expected."""
    return np.linalg.norm(np.asarray(found) - expected) / np.linalg.norm(expected)
