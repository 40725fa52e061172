"""Which network a config means. The only place where config sections become modules."""

from collections.abc import Iterable, Mapping
import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from msg_jax import sampling
from msg_jax.clip import ClipSpec
from msg_jax.convert.bundle import DOCUMENT, VARIANTS
from msg_jax.errors import UserError
from msg_jax.evaluation.detector import EventDetector
from msg_jax.losses.diffusion import PREDICTIONS, SCHEDULES, Diffusion
from msg_jax.models import condition_encoder, cross_attention, sf_cavp
from msg_jax.models.codec import Codec, PcaCodec
from msg_jax.models.mmdit import MMDiT, MMDiTConfig
from msg_jax.models.neural_codec import NeuralCodec
from msg_jax.models.sound_events import SoundEvents, SoundEventsConfig
from msg_jax.preference.reward import Reward
from msg_jax.types import Array, Params

MMDIT_CONTEXT = {"features": ("clip", "sync", "text"), "positions": True, "pooled_tokens": 0}
"""What an MM-DiT always sees, in the terms of the cross-attention network."""
KINDS = {
    "codec.kind": ("pca", "released"), "encoders.kind": ("separate", "sf_cavp", "second_sf_cavp", "joint", "released"),
    "base.initial": ("", "released"), "sf_cavp.preset": ("tiny", "r50"),
}
"""Fields that choose a network; "released" is one of the files in `config.weights`, for `config.variant`."""


SF_CAVP_KINDS = ("sf_cavp", "second_sf_cavp")
"""Values of `encoders.kind` that condition the generator on the features of an SF-CAVP: the reward's, or one of its own."""

NETWORKS = {"network": ("mmdit", "cross_attention"), "objective": ("flow", "diffusion")}
"""Fields of the `base` section that choose among generators; a config without them means the first of each."""


def choice(config: ConfigDict, field: str) -> str:
    """What a field of `NETWORKS` chooses."""
    return config.base.get(field, NETWORKS[field][0])


def is_released(config: ConfigDict, field: str) -> bool:
    """Whether the network that a field of `KINDS` chooses is a released one."""
    section, name = field.split(".")
    return config[section].get(name, "") == "released"  # older runs, which can still be generated from, lack the field


def released(config: ConfigDict) -> Mapping[str, Any]:
    """Configurations of the released networks of `config.variant`, by kind."""
    return {kind: network.config for kind, network in VARIANTS[config.variant].networks.items()}


def check(config: ConfigDict, clip: ClipSpec) -> None:
    """Raises UserError, naming field and remedy, if the networks that a config names do not fit together."""
    chosen = {field: is_released(config, field) for field in KINDS}
    for field, known in KINDS.items():
        section, name = field.split(".")
        _choose(field, config[section][name], known)
    if any(chosen.values()):
        if config.variant not in VARIANTS:
            raise UserError(f"config.variant={config.variant!r} is no released network: choose one of "
                            f"{', '.join(VARIANTS)} ({DOCUMENT}).")
        # Clips may be shorter or longer than those that the networks were trained with, and nothing else.
        wanted = dataclasses.replace(VARIANTS[config.variant].clip, duration_sec=clip.duration_sec)
        if difference := clip.difference(wanted):
            raise UserError(f"config.clip does not fit the released {config.variant}, which it is used with: {difference}.")
    if chosen["base.initial"]:
        for field in ("codec.kind", "encoders.kind"):
            if not chosen[field]:
                raise UserError(f"config.base.initial=released needs config.{field}=released: the released network knows no "
                                "other features and latents.")
        network = released(config)["mmdit"]
        for name in ("hidden", "heads", "joint_depth", "fused_depth", "v2"):
            if config.base[name] != getattr(network, name):
                raise UserError(f"config.base.{name}={config.base[name]} is not that of the released {config.variant}, which "
                                f"config.base.initial names: {name} is {getattr(network, name)} there.")
    elif not config.base.steps:
        raise UserError("config.base.steps=0 takes the network of config.base.initial as it is, and that names none: set "
                        "config.base.initial=released, or train.")
    _check_generator(config, clip)
    augment = config.get("augment")
    if augment is not None and (augment.concat or augment.speed) and config.arms:
        raise UserError(f"config.augment makes clips that have no film of their own, and preference tuning wants one: set "
                        f"config.augment.concat and speed to 0, or leave out config.arms ({', '.join(config.arms)}).")
    if config.encoders.kind == "separate":
        try:
            encoder(clip)
        except ValueError as error:
            raise UserError(f"config.encoders.kind=separate does not fit config.clip: {error}.") from error
    if config.encoders.kind in SF_CAVP_KINDS:
        video = reward_model(config, clip).config.video
        fast = math.ceil(clip.video_frames / video.fast_stride)
        slow = math.ceil(fast / video.alpha)
        if (slow, fast) != (clip.clip_video_frames, clip.sync_tokens):
            raise UserError(f"config.encoders.kind={config.encoders.kind} does not fit config.clip: SF-CAVP has {slow} slow "
                            f"and {fast} fast steps, and the clip {clip.clip_video_frames} clip frames and "
                            f"{clip.sync_tokens} sync tokens.")


def _check_generator(config: ConfigDict, clip: ClipSpec) -> None:
    """As `check`, of network and objective of the `base` section."""
    section = config.base
    for field, known in NETWORKS.items():
        _choose(f"base.{field}", choice(config, field), known)
    if choice(config, "objective") == "diffusion":
        chosen = section.diffusion
        for field, known in (("prediction", PREDICTIONS), ("schedule", SCHEDULES), ("solver", sampling.DIFFUSION_SOLVERS)):
            _choose(f"base.diffusion.{field}", chosen[field], known)
        if is_released(config, "base.initial"):
            raise UserError("config.base.objective=diffusion does not go with config.base.initial=released: that network was "
                            "trained with flow matching; set objective=flow, or initial to nothing.")
        if config.arms:
            raise UserError(f"config.base.objective=diffusion cannot be preference-tuned, whose loss compares flows: set "
                            f"config.base.objective=flow, or leave out config.arms ({', '.join(config.arms)}).")
    if choice(config, "network") == "mmdit":
        if config.encoders.kind == "joint":
            raise UserError("config.encoders.kind=joint gives frames, which config.base.network=mmdit cannot read: set "
                            "config.base.network=cross_attention.")
        other = [name for name, value in MMDIT_CONTEXT.items() if section.get(name, value) != value]
        if other:
            raise UserError(f"config.base.{other[0]}={section[other[0]]} does not go with config.base.network=mmdit, which "
                            f"knows {other[0]}={MMDIT_CONTEXT[other[0]]} only: set that, or network=cross_attention.")
        return
    if is_released(config, "base.initial"):
        raise UserError("config.base.initial=released is an MM-DiT: set config.base.network=mmdit, or initial to nothing.")
    if section.lora_rank:
        raise UserError(f"config.base.lora_rank={section.lora_rank} adapts MM-DiTs alone: set it to 0, or "
                        "config.base.network=mmdit.")
    for name in section.features:
        _choose("base.features", name, cross_attention.FEATURES)
    if not section.features:
        raise UserError(f"config.base.features is empty: choose from {', '.join(cross_attention.FEATURES)}.")
    if "motion" in section.features and not config.extract.get("motion", False):
        raise UserError("config.base.features names motion, which was not extracted: set config.extract.motion=True.")
    if config.encoders.kind == "joint" and clip.sync_tokens != clip.video_frames:
        raise UserError(f"config.encoders.kind=joint wants a sync token for each video frame, and config.clip has "
                        f"{clip.sync_tokens} tokens for {clip.video_frames} frames.")


def _choose(field: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise UserError(f"config.{field}={value!r} is not known: choose one of {', '.join(repr(name) for name in known)}.")


def codec(config: ConfigDict, clip: ClipSpec) -> Codec:
    if is_released(config, "codec.kind"):
        networks = released(config)
        return NeuralCodec(clip, networks["vae"], networks["bigvgan"])
    return PcaCodec(clip, config.codec.vocoder_iterations)


def judge(class_names: tuple[str, ...]) -> EventDetector:
    return EventDetector(classes=len(class_names))


def reward_model(config: ConfigDict, clip: ClipSpec) -> sf_cavp.SFCAVP:
    if config.sf_cavp.preset == "r50":
        return sf_cavp.SFCAVP(sf_cavp.r50(clip, jnp.dtype(compute_dtype()).name))
    return sf_cavp.SFCAVP(sf_cavp.tiny(clip))


def sound_events(kinds: int) -> SoundEvents:
    return SoundEvents(SoundEventsConfig(kinds=kinds))


def reward(config: ConfigDict, clip: ClipSpec) -> Reward:
    """Every term is measured, also those of weight zero; `events` where `config.sound_events.kinds` > 0."""
    events = sound_events(config.sound_events.kinds) if config.sound_events.kinds else None
    return Reward(reward_model(config, clip), events, sf_cavp.RewardWeights(**config.reward))


def encoder(clip: ClipSpec) -> condition_encoder.ConditionEncoder:
    return condition_encoder.ConditionEncoder(condition_encoder.ConditionEncoderConfig(clip))


def encode_frames(
    config: ConfigDict, clip: ClipSpec, params: Params, video: Array, clip_video: Array
) -> tuple[Array, Array]:
    """Clip features (B, clip_video_frames, D) and sync features (B, sync_tokens, D) of uint8 frames.

    With joint encoders they are the frames themselves, as uint8: what encodes them is a part of the generator.
    """
    if config.encoders.kind == "joint":
        return tuple(frames.reshape(*frames.shape[:2], -1) for frames in (clip_video, video))
    video, clip_video = to_unit(video), to_unit(clip_video)
    if config.encoders.kind in SF_CAVP_KINDS:
        slow, fast = reward_model(config, clip).apply({"params": params}, video, method="video_features")
        return slow, fast
    features = encoder(clip).apply({"params": params}, video, clip_video, method="encode")
    return features.clip, features.sync


def feature_dims(config: ConfigDict, clip: ClipSpec, encoder_params: Params | None = None) -> dict[str, int]:
    """Widths of the clip, sync and text features; `encoder_params` are only needed where the encoders are our own."""
    if is_released(config, "encoders.kind"):
        networks = released(config)
        return {"clip": networks["clip"].features, "sync": networks["synchformer"].width, "text": text_dim(config)}
    video = jax.ShapeDtypeStruct((1, clip.video_frames, clip.video_px, clip.video_px, 3), jnp.uint8)
    clip_video = jax.ShapeDtypeStruct((1, clip.clip_video_frames, clip.clip_video_px, clip.clip_video_px, 3), jnp.uint8)
    features = jax.eval_shape(functools.partial(encode_frames, config, clip), encoder_params, video, clip_video)
    return {"clip": features[0].shape[-1], "sync": features[1].shape[-1], "text": text_dim(config)}


def text_dim(config: ConfigDict) -> int:
    if is_released(config, "encoders.kind"):
        return released(config)["clip"].text_width
    return condition_encoder.ConditionEncoderConfig.text_dim


def generator(
    config: ConfigDict, clip: ClipSpec, feature_dims: dict[str, int], dtype: jnp.dtype
) -> MMDiT | cross_attention.CrossAttentionTransformer:
    """The network of the `base` section; `feature_dims` are the widths of the extracted clip, sync and text features."""
    section = config.base
    dims = {f"{name}_dim": feature_dims[name] for name in ("clip", "sync", "text")}
    remat = section.get("remat", False)  # older runs, which can still be generated from, lack it
    if choice(config, "network") == "cross_attention":
        return cross_attention.CrossAttentionTransformer(
            cross_attention.CrossAttentionConfig.for_clip(
                clip, **dims, hidden=section.hidden, heads=section.heads, depth=section.depth,
                features=tuple(section.features), positions=section.positions, pooled_tokens=section.pooled_tokens,
                frame_encoder=config.encoders.kind == "joint",
            ),
            dtype=dtype, remat=remat,
        )
    return MMDiT(
        MMDiTConfig.for_clip(
            clip, **dims, hidden=section.hidden, heads=section.heads, joint_depth=section.joint_depth,
            fused_depth=section.fused_depth, v2=section.v2,
        ),
        dtype=dtype, remat=remat,
    )


def diffusion(config: ConfigDict) -> Diffusion | None:
    """What the generator is trained for, unless it is flow matching."""
    if choice(config, "objective") == "flow":
        return None
    return Diffusion(**{field.name: config.base.diffusion[field.name] for field in dataclasses.fields(Diffusion)})


def solver(config: ConfigDict) -> dict[str, Any]:
    """How the generator is sampled: the arguments of `sampling.sample` that follow from its objective."""
    objective = diffusion(config)
    return {"diffusion": objective, "solver": config.base.diffusion.solver} if objective else {}


def compute_dtype() -> jnp.dtype:
    """bfloat16 where the device has it; on a CPU it is several times slower than float32."""
    return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16


def to_unit(frames: Array) -> Array:
    """uint8 frames -> float32 in [-1, 1]."""
    return frames.astype(jnp.float32) / 127.5 - 1


def count(params: Params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(nn.meta.unbox(params)))
