"""Settings that contradict each other, refused before anything runs. Choices of single fields are checked by their types."""

import dataclasses
import math

from msg_jax import methods, networks
from msg_jax.clip import ClipSpec
from msg_jax.config.schema import Config
from msg_jax.convert.bundle import DOCUMENT, VARIANTS
from msg_jax.errors import UserError

MMDIT_CONTEXT = {"features": ("clip", "sync", "text"), "positions": True, "pooled_tokens": 0}
"""What an MM-DiT always sees, in the terms of the cross-attention network."""


def check(config: Config) -> None:
    """Raises UserError, naming field and remedy, if the settings of a run contradict each other."""
    methods.check(config)
    _check_released(config)
    _check_generator(config)
    _check_encoders(config)
    if (config.augment.concat or config.augment.speed) and config.arms:
        raise UserError(f"config.augment makes clips without a video of their own, which preference tuning needs: set "
                        f"config.augment.concat and speed to 0, or leave out config.arms ({', '.join(config.arms)}).")
    if not config.data.source:
        raise UserError("config.data.source is not given: --config.data.source=folder:PATH, or tfds:NAME_OR_FOLDER.")


def _check_released(config: Config) -> None:
    used, base = networks.released_fields(config), config.base
    if used:
        if config.variant not in VARIANTS:
            raise UserError(f"config.variant={config.variant!r} is not a released network: choose one of "
                            f"{', '.join(VARIANTS)} ({DOCUMENT}).")
        # Clips may differ from the networks' training clips in duration only.
        wanted = dataclasses.replace(VARIANTS[config.variant].clip, duration_sec=config.clip.duration_sec)
        if difference := config.clip.difference(wanted):
            raise UserError(f"config.clip does not fit the released {config.variant}, which it is used with: {difference}.")
    if base.initial == "released":
        for field in ("codec.kind", "encoders.kind"):
            if field not in used:
                raise UserError(f"config.base.initial=released needs config.{field}=released: the released network knows no "
                                "other features and latents.")
        network = networks.released(config)["mmdit"]
        for name in ("hidden", "heads", "joint_depth", "fused_depth", "v2"):
            if getattr(base, name) != getattr(network, name):
                raise UserError(f"config.base.{name}={getattr(base, name)} differs from the released {config.variant}, which "
                                f"config.base.initial names: set it to {getattr(network, name)}.")
    elif not base.steps:
        raise UserError("config.base.steps=0 uses the network of config.base.initial unchanged, but that is empty: set "
                        "config.base.initial=released, or train.")


def _check_generator(config: Config) -> None:
    base, clip = config.base, config.clip
    if base.objective == "diffusion":
        if base.initial == "released":
            raise UserError("config.base.objective=diffusion does not go with config.base.initial=released, a network trained "
                            "with flow matching: set objective=flow, or leave initial empty.")
        if config.arms:
            raise UserError(f"config.base.objective=diffusion cannot be preference-tuned, because the loss compares flows: set "
                            f"config.base.objective=flow, or leave out config.arms ({', '.join(config.arms)}).")
    if base.network == "mmdit":
        if config.encoders.kind == "joint":
            raise UserError("config.encoders.kind=joint gives frames, which config.base.network=mmdit cannot read: set "
                            "config.base.network=cross_attention.")
        for name, value in MMDIT_CONTEXT.items():
            if getattr(base, name) != value:
                raise UserError(f"config.base.{name}={getattr(base, name)} does not go with config.base.network=mmdit: set it "
                                f"to {value}, or network=cross_attention.")
        return
    if base.initial == "released":
        raise UserError("config.base.initial=released is an MM-DiT: set config.base.network=mmdit, or leave initial empty.")
    if base.lora_rank:
        raise UserError(f"config.base.lora_rank={base.lora_rank} adapts MM-DiTs only: set it to 0, or "
                        "config.base.network=mmdit.")
    if not base.features:
        raise UserError("config.base.features is empty: choose from clip, sync, text, motion.")
    if "motion" in base.features and not config.extract.motion:
        raise UserError("config.base.features names motion, which was not extracted: set config.extract.motion=True.")
    if config.encoders.kind == "joint" and clip.sync_tokens != clip.video_frames:
        raise UserError(f"config.encoders.kind=joint needs one sync token per video frame, and config.clip has "
                        f"{clip.sync_tokens} tokens for {clip.video_frames} frames.")


def _check_encoders(config: Config) -> None:
    clip: ClipSpec = config.clip
    if config.encoders.kind == "separate":
        try:
            networks.encoder(clip)
        except ValueError as error:
            raise UserError(f"config.encoders.kind=separate does not fit config.clip: {error}.") from error
    if config.encoders.kind in networks.SF_CAVP_KINDS:
        video = networks.reward_model(config, clip).config.video
        fast = math.ceil(clip.video_frames / video.fast_stride)
        slow = math.ceil(fast / video.alpha)
        if (slow, fast) != (clip.clip_video_frames, clip.sync_tokens):
            raise UserError(f"config.encoders.kind={config.encoders.kind} does not fit config.clip: SF-CAVP has {slow} slow "
                            f"and {fast} fast steps, and the clip {clip.clip_video_frames} clip frames and "
                            f"{clip.sync_tokens} sync tokens.")
