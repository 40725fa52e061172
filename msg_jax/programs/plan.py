"""The plan of a run: which stage needs which, and a `Maker` that makes whatever is missing."""

from collections.abc import Callable, Iterable
import dataclasses

from msg_jax import methods, networks
from msg_jax.config.schema import Config
from msg_jax.methods import candidates
from msg_jax.run.run import Run
from msg_jax.run.stage import Stage, ensure
from msg_jax.stages import alignment, base, codec, encoders, extract, judge, prepare, sf_cavp, sound_events
from msg_jax.studies import evaluate, event_metrics, joint, reward_study

JOINT_HAS_NOT = (
    "second_judge", "sf_cavp", "held_out_sf_cavp", "sound_events", "encoders", "alignment", "event_metrics", "candidates",
)
Plan = dict[str, Stage]
Digests = dict[tuple[str, int | None], str]
"""Digests of finished stages, by name and seed."""


def plan(config: Config) -> Plan:
    """Every stage that this config can run, by name. A preference arm is a stage."""
    used = networks.released_fields(config)

    def files(field: str, *kinds: str) -> tuple[str, ...]:
        return kinds if field in used else ()

    encoder_needs = {"separate": ("codec",), "sf_cavp": ("sf_cavp",)}.get(config.encoders.kind, ("prepare",))
    encoder_sections = ("encoders", "sf_cavp") if config.encoders.kind == "second_sf_cavp" else ("encoders",)
    encoder_files = files("encoders.kind", "clip", "synchformer")
    if networks.has_vision_encoder(config):
        encoder_files = (config.encoders.kind,)
    filtered = ("alignment",) if config.base.keep_share < 1 and config.base.keep_by == "alignment" else ()
    # The released MM-DiT's file also holds the features of the empty text, and the latents' mean and standard deviation.
    null_text, statistics = files("encoders.kind", "mmdit"), files("codec.kind", "mmdit")
    reward, reward_files = config.reward_stages, ("synchformer",) if config.reward.of_synchformer else ()
    decisive = tuple(f"preference.{name}" for name in candidates.DECISIVE)
    stages = [
        Stage("prepare", prepare.make, alone=True),
        Stage("codec", codec.make, ("prepare",), ("codec",), weights=files("codec.kind", "vae", "bigvgan")),
        Stage("judge", judge.make, ("prepare",), ("judge",)),
        Stage("second_judge", judge.make_second, ("prepare",), ("second_judge",)),
        Stage("sf_cavp", sf_cavp.make, ("prepare",), ("sf_cavp",)),
        Stage("held_out_sf_cavp", sf_cavp.make_held_out, ("prepare",), ("sf_cavp",)),
        Stage("sound_events", sound_events.make, ("sf_cavp",), ("sound_events",)),
        Stage("encoders", encoders.make, encoder_needs, encoder_sections, weights=encoder_files),
        Stage("extract", extract.make, ("codec", "encoders"), ("extract", "augment"), weights=null_text),
        Stage("alignment", alignment.make, ("sf_cavp", "extract"), ("reward",)),
        Stage("base", base.make, ("extract", *filtered), ("base",), seeded=True, weights=null_text or statistics),
        Stage("event_metrics", event_metrics.make, ("judge", "base"), ("evaluate", "sampling"), seeded=True),
        Stage("candidates", candidates.make, ("base", *reward, "judge"), (*decisive, "reward", "sampling"), seeded=True,
              weights=reward_files),
    ]
    for name in config.arms:
        arm = methods.method(config, name)
        needs = dict.fromkeys(("base", *arm.needs(config), *arm.origins().values()))
        stages.append(Stage(
            name, methods.make(name), tuple(needs), (f"arms.{name}", "sampling", *arm.sections()), seeded=True,
            weights=reward_files if "reward" in arm.sections() else (),
        ))
    systems = ("base", *config.arms)
    if config.base.network == "joint":
        return {stage.name: stage for stage in [*_joint(stages), _joint_evaluation(systems)]}
    stages += [
        Stage("evaluate", evaluate.make, ("judge", "second_judge", *reward, *systems),
              ("evaluate", "sampling", "arms", "reward"), weights=reward_files),
        Stage("reward_study", reward_study.make, ("base", *reward, "judge"), ("reward_study", "sampling", "reward")),
    ]
    return {stage.name: stage for stage in stages}


def _joint(stages: Iterable[Stage]) -> list[Stage]:
    """The stages of a generator of sound and pictures, from those of one of sound: no frame encoders, no reward."""
    kept = {stage.name: stage for stage in stages if stage.name not in JOINT_HAS_NOT}
    changed = {
        "extract": (("codec", "picture_codec"), ("extract",)),
        "base": (("extract",), ("base", "picture_codec", "joint.video_to_audio", "joint.audio_to_video")),
    }
    for name, (needs, sections) in changed.items():
        kept[name] = dataclasses.replace(kept[name], needs=needs, sections=sections)
    more = [
        Stage("picture_codec", codec.make_pictures, ("prepare",), ("picture_codec",)),
        Stage("picture_judge", judge.make_pictures, ("prepare",), ("picture_judge",)),
    ]
    return [*more, *kept.values()]


def _joint_evaluation(systems: tuple[str, ...]) -> Stage:
    return Stage("evaluate", joint.make, ("judge", "picture_judge", *systems), ("evaluate", "sampling", "arms", "joint"))


def needed(stages: Plan, names: Iterable[str]) -> set[str]:
    """The named stages and everything they need."""
    return {each for name in names for each in (name, *needed(stages, stages[name].needs))}


def maker(run: Run, stages: Plan, digests: Digests) -> Callable[[str, int | None], str]:
    """A function that makes a stage for a seed, after everything it needs, and adds to `digests`."""

    def make(name: str, seed: int | None) -> str:
        stage = stages[name]
        if not stage.seeded:
            seed = None
        if (name, seed) not in digests:
            upstream = {}
            for need in stage.needs:
                over_seeds = stages[need].seeded and seed is None
                for each in run.config.seeds if over_seeds else (seed,):
                    upstream[f"seed_{each}/{need}" if over_seeds else need] = make(need, each)
            digests[name, seed] = ensure(run, stage, seed, upstream)
        return digests[name, seed]

    return make
