"""Settings that contradict each other, refused before anything runs. Choices of single fields are checked by their types."""

from collections.abc import Iterable, Iterator
import dataclasses
import importlib.util
import math

from jax.sharding import Mesh

from msg_jax import methods, networks
from msg_jax.clip import ClipSpec
from msg_jax.config import tree
from msg_jax.config.schema import Config, Training
from msg_jax.convert.bundle import DOCUMENT, VARIANTS
from msg_jax.data import scene_sets
from msg_jax.errors import UserError
from msg_jax.infra import mesh as mesh_lib

MMDIT_CONTEXT = {
    "features": ("clip", "sync", "text"), "positions": True, "position_kind": "", "pooled_tokens": 0, "modality_tokens": 0,
}
"""What an MM-DiT always sees, in the terms of the cross-attention network."""


def check(config: Config) -> None:
    """Raises UserError, naming field and remedy, if the settings of a run contradict each other."""
    methods.check(config)
    _check_released(config)
    _check_generator(config)
    _check_sampling(config)
    _check_reward(config)
    _check_encoders(config)
    if _augments(config) and config.arms:
        raise UserError(f"config.augment makes clips without a video of their own, which preference tuning needs: set "
                        f"config.augment.concat, speed and crop to 0, or leave out config.arms ({', '.join(config.arms)}).")
    if not config.data.source:
        raise UserError("config.data.source is not given: --config.data.source=folder:PATH, or tfds:NAME_OR_FOLDER.")


def _augments(config: Config) -> bool:
    return bool(config.augment.concat or config.augment.speed or config.augment.crop)


def check_batches(config: Config, stages: Iterable[str], mesh: Mesh) -> None:
    """Raises UserError if the mesh cannot split the batch of one of these stages, or a device its rows into micro-batches."""
    ways = mesh_lib.batch_devices(mesh)
    for where, given, section in _trainings(config, set(stages)):
        pieces = ways * section.accumulate
        if section.batch_size % pieces:
            micro_batches = f", in accumulate={section.accumulate} micro-batches" if section.accumulate > 1 else ""
            unit = pieces // math.gcd(pieces, section.batch_size // given.batch_size)
            raise UserError(f"config.{where}.batch_size={given.batch_size} cannot be split over {ways} devices, data x fsdp of "
                            f"config.mesh={tuple(mesh.shape.values())}{micro_batches}: make it a multiple of {unit}.")


def _trainings(config: Config, stages: set[str]) -> Iterator[tuple[str, Training, Training]]:
    """Of each training among the stages: where its section is in the config, that section, and what the stage makes of it."""
    names = stages & {"sf_cavp", "sound_events", "base", "judge", "second_judge", "picture_judge", "encoders"}
    if config.data.source != "scenes":  # without event truth it is not trained
        names -= {"judge", "second_judge", "picture_judge"}
    if config.encoders.kind == "second_sf_cavp":
        names |= {"sf_cavp"} if "encoders" in names else set()
    if config.encoders.kind != "separate":
        names -= {"encoders"}
    for name in sorted(names):
        section = getattr(config, name)
        if section.steps:
            yield name, section, section
    for name in sorted(stages & config.arms.keys()):
        preference = tree.preference_of(config, name)
        if section := methods.method(config, name).training(preference):
            changed = "batch_size" in config.arms[name].changes
            yield f"arms.{name}.changes" if changed else "preference", preference, section


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


def _check_sampling(config: Config) -> None:
    for name in ("guidance_rescale", "guidance_projection"):
        if not 0 <= (share := getattr(config.sampling, name)) <= 1:
            raise UserError(f"config.sampling.{name}={share} is not a share from 0 to 1.")


def _check_reward(config: Config) -> None:
    reward, clip = config.reward, config.clip
    for name, weight in tree.to_dict(reward).items():
        if weight < 0:
            raise UserError(f"config.reward.{name}={weight:g} rewards what is worse: make it 0 or more.")
    if not (reward.uses_sf_cavp or reward.of_synchformer):
        raise UserError("config.reward has no weight above 0: set config.reward.window=2, or another.")
    least_sec = networks.DESYNC_LEAST_SEC
    for name in reward.of_synchformer:
        if clip.duration_sec < least_sec:
            raise UserError(f"config.reward.{name}={getattr(reward, name):g} compares {least_sec} s of pictures and sound, and "
                            f"clips have config.clip.duration_sec={clip.duration_sec:g}: make them longer, or set it to 0.")


def _check_generator(config: Config) -> None:
    base, clip = config.base, config.clip
    if base.objective == "diffusion":
        if base.initial == "released":
            raise UserError("config.base.objective=diffusion does not go with config.base.initial=released, a network trained "
                            "with flow matching: set objective=flow, or leave initial empty.")
        if config.arms:
            raise UserError(f"config.base.objective=diffusion cannot be preference-tuned, because the loss compares flows: set "
                            f"config.base.objective=flow, or leave out config.arms ({', '.join(config.arms)}).")
    if base.network == "joint":
        _check_joint(config)
        return
    if base.network == "mmdit":
        if config.encoders.kind == "joint":
            raise UserError("config.encoders.kind=joint gives frames, which config.base.network=mmdit cannot read: set "
                            "config.base.network=cross_attention.")
        for name, value in MMDIT_CONTEXT.items():
            if getattr(base, name) != value:
                raise UserError(f"config.base.{name}={getattr(base, name)!r} does not go with config.base.network=mmdit: set "
                                f"it to {value!r}, or network=cross_attention.")
        return
    if base.initial == "released":
        raise UserError("config.base.initial=released is an MM-DiT: set config.base.network=mmdit, or leave initial empty.")
    if base.lora_rank:
        raise UserError(f"config.base.lora_rank={base.lora_rank} adapts MM-DiTs only: set it to 0, or "
                        "config.base.network=mmdit.")
    if not base.features:
        raise UserError("config.base.features is empty: choose from clip, sync, text, motion.")
    if base.modality_tokens < 0:
        raise UserError(f"config.base.modality_tokens={base.modality_tokens} is not a number of learnt tokens: give 0 or more.")
    if "motion" in base.features and not config.extract.motion:
        raise UserError("config.base.features names motion, which was not extracted: set config.extract.motion=True.")
    if config.extract.flow_grid < 0 or (config.extract.flow_grid and not config.extract.motion):
        raise UserError(f"config.extract.flow_grid={config.extract.flow_grid} is no number of cells of the motion: give 0 or "
                        "more, with config.extract.motion=True.")
    if config.extract.flow_grid and importlib.util.find_spec("cv2") is None:
        raise UserError("config.extract.flow_grid needs OpenCV: pip install 'msg_jax[flow]', or set it to 0.")
    if config.encoders.kind == "joint" and clip.sync_tokens != clip.video_frames:
        raise UserError(f"config.encoders.kind=joint needs one sync token per video frame, and config.clip has "
                        f"{clip.sync_tokens} tokens for {clip.video_frames} frames.")


def _check_joint(config: Config) -> None:
    base, clip, section = config.base, config.clip, config.joint
    if base.initial == "released" or base.objective == "diffusion":
        raise UserError("config.base.network=joint is trained from scratch with flow matching: leave config.base.initial "
                        "empty, and set config.base.objective=flow.")
    if _augments(config):
        raise UserError("config.augment makes clips for video-to-audio alone: set config.augment.concat, speed and crop to 0, "
                        "or config.base.network to another.")
    for name in config.joint.sets:
        if name not in scene_sets.SETS:
            raise UserError(f"config.joint.sets names {name!r}, which is not a set of scenes: choose from "
                            f"{', '.join(scene_sets.SETS)}.")
    if clip.video_frames % clip.latent_tokens:
        raise UserError(f"config.base.network=joint needs whole frames for each latent token, and config.clip has "
                        f"{clip.video_frames} frames for {clip.latent_tokens} tokens.")
    strips, channels = config.picture_codec.strips, config.picture_codec.channels
    if strips < 1 or channels % strips or clip.video_px % strips:
        raise UserError(f"config.picture_codec.strips={strips} does not divide config.picture_codec.channels={channels} and "
                        f"config.clip.video_px={clip.video_px}: choose a number that divides both.")
    if config.picture_codec.motion <= 0:
        raise UserError(f"config.picture_codec.motion={config.picture_codec.motion} is the weight of what changes between "
                        "frames: make it greater than 0.")
    if min(section.video_to_audio, section.audio_to_video) < 0 or section.video_to_audio + section.audio_to_video > 1:
        raise UserError(f"config.joint.video_to_audio={section.video_to_audio} and audio_to_video={section.audio_to_video} "
                        "are shares of the training items: make them 0 or more, with a sum of at most 1.")
    for name in config.arms:
        if "reward" in methods.method(config, name).sections():
            raise UserError(f"config.arms.{name} learns from a reward for given videos, which config.base.network=joint does "
                            "not have: leave it out, or choose a method that learns from real clips.")


def _check_encoders(config: Config) -> None:
    clip: ClipSpec = config.clip
    if config.base.network == "joint":  # it has none
        return
    if config.encoders.kind == "separate":
        try:
            networks.encoder(clip)
        except ValueError as error:
            raise UserError(f"config.encoders.kind=separate does not fit config.clip: {error}.") from error
    if config.encoders.kind == "vjepa2" and clip.duration_sec > networks.VJEPA2_MOST_SEC:
        raise UserError(f"config.clip.duration_sec={clip.duration_sec:g} is longer than the {networks.VJEPA2_MOST_SEC:g} s "
                        "that config.encoders.kind=vjepa2 sees: make it shorter, or choose another encoder.")
    if config.encoders.kind in networks.SF_CAVP_KINDS:
        video = networks.reward_model(config, clip).config.video
        fast = math.ceil(clip.video_frames / video.fast_stride)
        slow = math.ceil(fast / video.alpha)
        if (slow, fast) != (clip.clip_video_frames, clip.sync_tokens):
            raise UserError(f"config.encoders.kind={config.encoders.kind} does not fit config.clip: SF-CAVP has {slow} slow "
                            f"and {fast} fast steps, and the clip {clip.clip_video_frames} clip frames and "
                            f"{clip.sync_tokens} sync tokens.")
