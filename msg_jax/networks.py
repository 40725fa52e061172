"""Networks from the configuration: the only place where config sections become modules."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import contextvars
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from msg_jax.clip import ClipSpec
from msg_jax.config.schema import Config
from msg_jax.convert.bundle import VARIANTS, VISION, Variant
from msg_jax.evaluation.detector import EventDetector, PictureDetector, RecurrentDetector
from msg_jax.losses.diffusion import Diffusion
from msg_jax.models import condition_encoder, cross_attention, sf_cavp, synchformer, vjepa2
from msg_jax.models.codec import PcaCodec, PictureCodec
from msg_jax.models.joint_mmdit import JointMMDiT, JointMMDiTConfig
from msg_jax.models.mmdit import MMDiT, MMDiTConfig, example_inputs
from msg_jax.models.neural_codec import NeuralCodec
from msg_jax.models.sound_events import SoundEvents, SoundEventsConfig
from msg_jax.preference.reward import Reward
from msg_jax.types import Array, AVBatch, Module, Params

SF_CAVP_KINDS = ("sf_cavp", "second_sf_cavp")
"""Values of `encoders.kind` that condition the generator on features of an SF-CAVP."""

DESYNC_LEAST_SEC = synchformer.WINDOW_SEC
"""The shortest clips that DeSync judges."""

VJEPA2_MOST_SEC = vjepa2.MOST_FRAMES / vjepa2.FRAMES_HZ
"""The longest clips that V-JEPA 2 was trained with."""

_SCAN = {"": None, "loop": True, "unrolled": False}  # base.blocks -> scan of models.stack.run_blocks


def released_fields(config: Config) -> list[str]:
    """The fields that choose a released network, from the files in `config.weights` for `config.variant`."""
    chosen = {"codec.kind": config.codec.kind, "encoders.kind": config.encoders.kind, "base.initial": config.base.initial}
    used = [field for field, value in chosen.items() if value == "released"]
    return used + [f"reward.{name}" for name in config.reward.of_synchformer]


def has_vision_encoder(config: Config) -> bool:
    """Whether the condition encoder is one of `convert.bundle.VISION`, from a file in `config.weights`."""
    return config.encoders.kind in VISION


def with_vision_encoder(config: Config) -> Variant:
    """The vision encoder, and the networks of `config.variant` if the run uses any."""
    kind = config.encoders.kind
    others = VARIANTS[config.variant].networks if released_fields(config) else {}
    return Variant(config.clip, {kind: VISION[kind], **others})


def released(config: Config) -> Mapping[str, Any]:
    """Configurations of the released networks of `config.variant`, by kind."""
    return {kind: network.config for kind, network in VARIANTS[config.variant].networks.items()}


def codec(config: Config, clip: ClipSpec) -> Module:
    """A `models.codec.Codec`."""
    if config.codec.kind == "released":
        networks = released(config)
        return NeuralCodec(clip, networks["vae"], networks["bigvgan"])
    return PcaCodec(clip, config.codec.vocoder_iterations)


def picture_codec(config: Config, clip: ClipSpec) -> Module:
    """A `models.codec.PictureCodec`."""
    section = config.picture_codec
    return PictureCodec(clip, section.channels, section.strips, section.motion)


def picture_judge(class_names: Sequence[str]) -> Module:
    """An `evaluation.detector.PictureDetector`."""
    return PictureDetector(classes=len(class_names))


def judge(class_names: Sequence[str]) -> Module:
    """An `evaluation.detector.EventDetector`."""
    return EventDetector(classes=len(class_names))


def second_judge(class_names: Sequence[str]) -> Module:
    """An `evaluation.detector.RecurrentDetector`."""
    return RecurrentDetector(classes=len(class_names))


def reward_model(config: Config, clip: ClipSpec) -> Module:
    """A `models.sf_cavp.SFCAVP`."""
    if config.sf_cavp.preset == "r50":
        section, dtype = config.sf_cavp, jnp.dtype(compute_dtype()).name
        return sf_cavp.SFCAVP(sf_cavp.r50(clip, dtype, section.remat, section.local_windows))
    return sf_cavp.SFCAVP(sf_cavp.tiny(clip))


def sound_events(kinds: int) -> Module:
    """A `models.sound_events.SoundEvents`."""
    return SoundEvents(SoundEventsConfig(kinds=kinds))


def reward(config: Config, clip: ClipSpec) -> Reward:
    """The reward. Terms of weight zero are computed too; `events` where `config.sound_events.kinds` > 0."""
    events = sound_events(config.sound_events.kinds) if config.sound_events.kinds else None
    return Reward(reward_model(config, clip), events, reward_weights(config))


def held_out_reward(config: Config, clip: ClipSpec) -> Reward:
    """The window term of an SF-CAVP without sound events: the term that ranks (docs/PREFERENCE.md)."""
    return Reward(reward_model(config, clip), None, sf_cavp.RewardWeights(semantic=0.0, dynamic=0.0, window=1.0, events=0.0))


def reward_weights(config: Config) -> sf_cavp.RewardWeights:
    weights = config.reward
    return sf_cavp.RewardWeights(
        semantic=weights.semantic, dynamic=weights.dynamic, window=weights.window, events=weights.events
    )


def generator_shapes(model: Module, clips: int = 1) -> tuple[Params, Any]:
    """Shapes of a generator's variables, and of the conditions of `clips`, from which a program is traced without any."""
    _, _, conditions = jax.eval_shape(lambda: example_inputs(model.config, clips))
    return _shapes(model, *example_inputs(model.config)), conditions


def reward_shapes(config: Config, clip: ClipSpec) -> Params:
    """Shapes of the `params` of `preference.reward`, from which a program is compiled without any."""
    cavp, events = reward_model(config, clip), sound_events(config.sound_events.kinds)
    found = {"sf_cavp": _shapes(cavp, AVBatch(_frames(clip), _log_mel(clip)))["params"]}
    if config.sound_events.kinds:
        def streams(modality, x):
            apply = functools.partial(cavp.apply, method=f"{modality}_features")
            return jax.eval_shape(apply, {"params": found["sf_cavp"]}, x)

        found["sound_events"] = _shapes(events, streams("video", _frames(clip)), streams("audio", _log_mel(clip)))
    return found


def encoder_shapes(config: Config, clip: ClipSpec) -> Params | None:
    """Shapes of the parameters of the condition encoders that `feature_dims` reads; None if it reads none."""
    if config.encoders.kind == "separate":
        video = _frames(clip)
        clip_video = jax.ShapeDtypeStruct((1, clip.clip_video_frames, clip.clip_video_px, clip.clip_video_px, 3), jnp.float32)
        return _shapes(encoder(clip), video, clip_video)["params"]
    return reward_shapes(config, clip)["sf_cavp"] if config.encoders.kind in SF_CAVP_KINDS else None


def _shapes(module: Module, *inputs: Any) -> Params:
    return nn.unbox(jax.eval_shape(module.init, jax.eval_shape(lambda: jax.random.key(0)), *inputs))


def _frames(clip: ClipSpec) -> Any:
    return jax.ShapeDtypeStruct((1, clip.video_frames, clip.video_px, clip.video_px, 3), jnp.float32)


def _log_mel(clip: ClipSpec) -> Any:
    return jax.ShapeDtypeStruct((1, clip.mel_frames, clip.mel.bands), jnp.float32)


def encoder(clip: ClipSpec) -> Module:
    """A `models.condition_encoder.ConditionEncoder`."""
    return condition_encoder.ConditionEncoder(condition_encoder.ConditionEncoderConfig(clip))


def encode_frames(
    config: Config, clip: ClipSpec, params: Params, video: Array, clip_video: Array
) -> tuple[Array, Array]:
    """Clip features (B, clip_video_frames, D) and sync features (B, sync_tokens, D) of uint8 frames.

    Joint encoders are part of the generator, so their "features" are the frames themselves, as uint8.
    """
    if config.encoders.kind == "joint":
        return clip_video.reshape(*clip_video.shape[:2], -1), video.reshape(*video.shape[:2], -1)
    video, clip_video = to_unit(video), to_unit(clip_video)
    if config.encoders.kind in SF_CAVP_KINDS:
        slow, fast = reward_model(config, clip).apply({"params": params}, video, method="video_features")
        return slow, fast
    features = encoder(clip).apply({"params": params}, video, clip_video, method="encode")
    return features.clip, features.sync


def used_encoder_params(config: Config, params: Params) -> Params:
    """The part of the encoders' parameters that `encode_frames` reads."""
    if config.encoders.kind not in SF_CAVP_KINDS:
        return params
    scales = {name: leaf for name, leaf in params.items() if name.startswith("log_scale")}  # made by `setup`
    return scales | {"video_encoder": {"slowfast": params["video_encoder"]["slowfast"]}}


def feature_dims(config: Config, clip: ClipSpec, encoder_params: Params | None = None) -> dict[str, int]:
    """Widths of the clip, sync and text features. Encoders that are not released need `encoder_params`."""
    if has_vision_encoder(config):
        width = VISION[config.encoders.kind].config.width
        return {"clip": width, "sync": width, "text": text_dim(config)}
    if config.encoders.kind == "released":
        networks = released(config)
        return {"clip": networks["clip"].features, "sync": networks["synchformer"].width, "text": text_dim(config)}
    video = jax.ShapeDtypeStruct((1, clip.video_frames, clip.video_px, clip.video_px, 3), jnp.uint8)
    clip_video = jax.ShapeDtypeStruct((1, clip.clip_video_frames, clip.clip_video_px, clip.clip_video_px, 3), jnp.uint8)
    features = jax.eval_shape(functools.partial(encode_frames, config, clip), encoder_params, video, clip_video)
    return {"clip": features[0].shape[-1], "sync": features[1].shape[-1], "text": text_dim(config)}


def text_dim(config: Config) -> int:
    if config.encoders.kind == "released":
        return released(config)["clip"].text_width
    return condition_encoder.ConditionEncoderConfig.text_dim


def generator(
    config: Config, clip: ClipSpec, feature_dims: Mapping[str, int], dtype: Any
) -> Module:
    """The network of the `base` section, an `MMDiT`, a `CrossAttentionTransformer` or a `JointMMDiT`.

    `feature_dims` are the widths of the extracted features.
    """
    section = config.base
    if section.network == "joint":
        return JointMMDiT(
            JointMMDiTConfig.for_clip(
                clip, picture_channels=config.picture_codec.channels, strips=config.picture_codec.strips,
                text_dim=feature_dims["text"], hidden=section.hidden, heads=section.heads,
                joint_depth=section.joint_depth, fused_depth=section.fused_depth, v2=section.v2,
            ),
            dtype=dtype, remat=section.remat, scan=_SCAN[section.blocks],
            attention_implementation=section.attention_implementation or None,
        )
    dims = {f"{name}_dim": feature_dims[name] for name in ("clip", "sync", "text")}
    if section.network == "cross_attention":
        positions = (section.position_kind or "rotary") if section.positions else "none"
        return cross_attention.CrossAttentionTransformer(
            cross_attention.CrossAttentionConfig.for_clip(
                clip, **dims, hidden=section.hidden, heads=section.heads, depth=section.depth,
                features=section.features, positions=positions, pooled_tokens=section.pooled_tokens,
                modality_tokens=section.modality_tokens, flow_grid=config.extract.flow_grid,
                frame_encoder=config.encoders.kind == "joint",
            ),
            dtype=dtype, remat=section.remat, scan=_SCAN[section.blocks],
        )
    return MMDiT(
        MMDiTConfig.for_clip(
            clip, **dims, hidden=section.hidden, heads=section.heads, joint_depth=section.joint_depth,
            fused_depth=section.fused_depth, v2=section.v2,
        ),
        dtype=dtype, remat=section.remat, scan=_SCAN[section.blocks],
        attention_implementation=section.attention_implementation or None,
    )


def known_shares(config: Config) -> tuple[float, float] | None:
    """Shares of training items whose sound or whose pictures are known; None where the generator makes sound alone."""
    if config.base.network != "joint":
        return None
    return config.joint.audio_to_video, config.joint.video_to_audio


def diffusion(config: Config) -> Diffusion | None:
    """The diffusion objective of the `base` section; None for flow matching."""
    if config.base.objective == "flow":
        return None
    section = config.base.diffusion
    return Diffusion(section.prediction, section.schedule, section.min_snr_gamma)


def solver(config: Config) -> dict[str, Any]:
    """Keyword arguments of `sampling.sample` that are the same for all networks of a run."""
    objective = diffusion(config)
    flow_or_diffusion = {"diffusion": objective, "solver": config.base.diffusion.solver} if objective else {}
    sampling = config.sampling
    return flow_or_diffusion | {
        "guidance_rescale": sampling.guidance_rescale, "guidance_projection": sampling.guidance_projection,
        "time_shift": sampling.time_shift,
    }


_target: contextvars.ContextVar[str | None] = contextvars.ContextVar("target", default=None)


@contextlib.contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """Context in which networks are made for devices of another platform than this machine's."""
    token = _target.set(platform)
    try:
        yield
    finally:
        _target.reset(token)


_precision: contextvars.ContextVar[str | None] = contextvars.ContextVar("precision", default=None)


@contextlib.contextmanager
def computing_in(precision: str | None) -> Iterator[None]:
    """Context in which networks are made that compute in `precision`, `float32` or `bfloat16`; None: the device's own."""
    token = _precision.set(precision)
    try:
        yield
    finally:
        _precision.reset(token)


def compute_dtype() -> Any:
    """That of `computing_in`, else bfloat16 on accelerators and float32 on a CPU."""
    own = "float32" if (_target.get() or jax.default_backend()) == "cpu" else "bfloat16"
    return jnp.dtype(_precision.get() or own).type


def to_unit(frames: Array | np.ndarray) -> Array:
    """Convert uint8 frames to float32 in [-1, 1]."""
    return jnp.asarray(frames).astype(jnp.float32) / 127.5 - 1


def to_bytes(frames: Array | np.ndarray) -> Array:
    """Invert `to_unit`: to uint8, rounded."""
    return jnp.round((frames + 1) * 127.5).astype(jnp.uint8)


def count(params: Params) -> int:
    """Number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(nn.meta.unbox(params)))
