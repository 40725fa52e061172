"""Which network a config means. The only place where config sections become modules."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from msg_jax.clip import ClipSpec
from msg_jax.evaluation.detector import EventDetector
from msg_jax.models import condition_encoder, sf_cavp
from msg_jax.models.codec import PcaCodec
from msg_jax.models.mmdit import MMDiT, MMDiTConfig
from msg_jax.types import Array, Params


def codec(config: ConfigDict, clip: ClipSpec) -> PcaCodec:
    return PcaCodec(clip, config.codec.vocoder_iterations)


def judge(class_names: tuple[str, ...]) -> EventDetector:
    return EventDetector(classes=len(class_names))


def reward_model(config: ConfigDict, clip: ClipSpec) -> sf_cavp.SFCAVP:
    return sf_cavp.SFCAVP({"tiny": sf_cavp.tiny, "r50": sf_cavp.r50}[config.sf_cavp.preset](clip))


def reward_weights(config: ConfigDict) -> sf_cavp.RewardWeights:
    return sf_cavp.RewardWeights(**config.sf_cavp.reward_weights)


def encoder(clip: ClipSpec) -> condition_encoder.ConditionEncoder:
    return condition_encoder.ConditionEncoder(condition_encoder.ConditionEncoderConfig(clip))


def encode_frames(
    config: ConfigDict, clip: ClipSpec, params: Params, video: Array, clip_video: Array
) -> tuple[Array, Array]:
    """Clip features (B, clip_video_frames, D) and sync features (B, sync_tokens, D) of frames in [-1, 1]."""
    if config.encoders.kind == "sf_cavp":
        slow, fast = reward_model(config, clip).apply({"params": params}, video, method="video_features")
        return slow, fast
    features = encoder(clip).apply({"params": params}, video, clip_video, method="encode")
    return features.clip, features.sync


def text_dim(clip: ClipSpec) -> int:
    return encoder(clip).config.text_dim


def generator(config: ConfigDict, clip: ClipSpec, feature_dims: dict[str, int], dtype: jnp.dtype) -> MMDiT:
    """The MM-DiT of the `base` section; `feature_dims` are the widths of the extracted clip, sync and text features."""
    section = config.base
    return MMDiT(
        MMDiTConfig.for_clip(
            clip, clip_dim=feature_dims["clip"], sync_dim=feature_dims["sync"], text_dim=feature_dims["text"],
            hidden=section.hidden, heads=section.heads, joint_depth=section.joint_depth,
            fused_depth=section.fused_depth, v2=section.v2,
        ),
        dtype=dtype,
    )


def compute_dtype() -> jnp.dtype:
    """bfloat16 where the device has it; on a CPU it is several times slower than float32."""
    return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16


def to_unit(frames: Array) -> Array:
    """uint8 frames -> float32 in [-1, 1]."""
    return frames.astype(jnp.float32) / 127.5 - 1


def count(params: Params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(nn.meta.unbox(params)))
