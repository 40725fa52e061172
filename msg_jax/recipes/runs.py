"""The recipes: what each `--config=NAME:PRESET` runs. `configs/NAME.py` gives command, time and result to expect."""

import dataclasses

from msg_jax.clip import TINY
from msg_jax.config.schema import Arm, Config, FolderEvaluation
from msg_jax.config.tree import replace
from msg_jax.errors import UserError
from msg_jax.methods import AvpRpo, ContinueFlow, Merge, SyncDpo
from msg_jax.recipes import presets

VTA_LDM_PRESETS = ("tiny", "smoke")
JOINT_PRESETS = ("tiny", "tiny_study", "smoke")
JOINT_CLIP = dataclasses.replace(TINY, text_tokens=20)  # the words of a scene's sentence


def avp_rpo(preset: str = "tiny") -> Config:
    """Everything: base, AVP-RPO, a student of two passes, evaluation and report."""
    config = presets.get(preset)
    return replace(config, stages=(*config.arms, "evaluate"))


def base(preset: str = "tiny") -> Config:
    """The base model and its report."""
    return replace(presets.get(preset), arms={}, stages=("base", "evaluate"))


def sf_cavp(preset: str = "tiny") -> Config:
    """SF-CAVP alone."""
    return replace(presets.get(preset), stages=("sf_cavp",))


def sync_dpo(preset: str = "tiny") -> Config:
    """SyncDPO with and without curriculum, beside AVP-RPO, after it and merged with it."""
    both = {"avp_rpo": 0.5, "sync_dpo": 0.5}
    arms: dict[str, Arm] = {
        "sync_dpo": SyncDpo(),
        "sync_dpo_uniform": SyncDpo(curriculum="uniform", label="SyncDPO, no curriculum"),
        "avp_rpo": AvpRpo(),
        "avp_rpo_sync_dpo": SyncDpo(start="avp_rpo", label="AVP-RPO, then SyncDPO"),
        "continue_cfm": ContinueFlow(),
        "avp_rpo_and_sync_dpo": Merge(shares=both, label="Half of AVP-RPO and SyncDPO"),
        "soup": Merge(shares=both | {"continue_cfm": 0.5}, label="Half of AVP-RPO, SyncDPO and continued training"),
    }
    return replace(presets.get(preset), arms=arms, stages=(*arms, "evaluate"))


def student(preset: str = "tiny") -> Config:
    """Students of two passes and of one, with and without preferences, beside their teachers and controls."""
    config = presets.get(preset)
    learns = not config.variant and config.preset != "smoke"
    arms = presets.student_arms(config.base.steps if learns else 0)
    arms |= {
        "student_base": dataclasses.replace(arms["student"], start="base", label="Student of the base, two passes"),
        "continue_avp_rpo": ContinueFlow(
            changes=arms["longer"].changes, matches="avp_rpo", label="Base, trained on, AVP-RPO's total cost",
            note="control: AVP-RPO's operations in further training",
        ),
        "student_one": dataclasses.replace(
            arms["student"], solver_steps=1, changes=presets.DISTILLED | dict(steps=200) if learns else {},
            label="Student, one pass",
        ),
        "longer_avp_rpo": AvpRpo(start="longer", label="Base, trained on, then AVP-RPO"),
        "longer_avp_rpo_midway": Merge(
            start="longer", shares={"longer_avp_rpo": 0.5}, label="Base, trained on, then half of AVP-RPO"
        ),
        "student_avp_rpo": dataclasses.replace(
            arms["student"], start="longer_avp_rpo_midway", label="Student of two passes, half of AVP-RPO"
        ),
        "continue_equal": ContinueFlow(
            start="longer", changes=arms["longer"].changes, matches="longer_avp_rpo",
            label="Base, trained on, equal total cost",
            note="control: AVP-RPO's operations in further training",
        ),
    }
    return replace(config, arms=arms, stages=(*arms, "evaluate"))


def joint(preset: str = "tiny") -> Config:
    """Sound and pictures generated together from text, SyncDPO on top, and its controls."""
    config = presets.get(preset, JOINT_PRESETS)
    arms: dict[str, Arm] = {
        "sync_dpo": SyncDpo(distorted="both"),
        "sync_dpo_half": Merge(shares={"sync_dpo": 0.5}, label="SyncDPO, half-way"),
        "continue_equal": ContinueFlow(matches="sync_dpo", label="Continued training, equal total cost"),
    }
    if config.preset == "tiny_study":
        arms |= {
            "sync_dpo_sound": SyncDpo(label="SyncDPO, sound distorted"),
            "sync_dpo_picture": SyncDpo(distorted="picture", label="SyncDPO, pictures distorted"),
            "sync_dpo_uniform": SyncDpo(distorted="both", curriculum="uniform", label="SyncDPO, no curriculum"),
        }
    smoke = config.preset == "smoke"

    def long(steps: int) -> dict:
        return {} if smoke else dict(steps=steps, batch_size=24)

    return replace(
        config, arms=arms, stages=(*arms, "evaluate"), clip=JOINT_CLIP,
        preset="joint" if config.preset == "tiny" else f"joint_{config.preset}",  # its own default folder
        base=dict(
            network="joint", text_dropout=0.2, condition_dropout=0.2, time_shift=-0.5, optimizer=dict(learning_rate=3e-3)
        ) | long(1600),
        picture_codec=dict(strips=3, motion=3.0) | (dict(channels=18, fit_clips=16) if smoke else dict(channels=144)),
        picture_judge=dict(steps=6, batch_size=8, optimizer=dict(warmup_steps=2)) if smoke else long(800),
        preference=dict(prompts=True, text_dropout=0.2, condition_dropout=0.2),
        evaluate=dict(prompts=True, guidance_scales=(2.0,) if smoke else (3.0, 4.0, 5.0), reward_guidance=2.0 if smoke else 3.0,
                      **({} if smoke else dict(steps=12, samples=1, clips=128))),
        joint=dict(sets=("ood",), set_clips=8) if smoke else {},
        sampling=dict(guidance_rescale=0.0, guidance_projection=1.0, time_shift=-1.4),
    )


def reward_study(preset: str = "tiny") -> Config:
    """How well rewards rank candidates, and which mistakes they notice; needs data with event times."""
    config = presets.get(preset)
    evaluate, rewards = config.evaluate, config.reward_study.rewards
    if not config.sound_events.kinds:
        rewards = {name: reward for name, reward in rewards.items() if "events" not in reward.weights}
    return replace(
        config, arms={}, stages=("reward_study",),
        reward_study=dict(
            clips=evaluate.reward_clips, candidates=evaluate.reward_candidates, steps=evaluate.steps,
            guidance_scales=tuple(scale for scale in evaluate.guidance_scales if scale != 1.0), rewards=rewards,
            tolerance_sec=evaluate.tolerance_sec, bootstrap=evaluate.bootstrap,
        ),
    )


def vta_ldm(preset: str = "tiny") -> Config:
    """VTA-LDM: latent diffusion by cross-attention, and its report."""
    config = presets.get(preset, VTA_LDM_PRESETS)
    network = dict(
        network="cross_attention", objective="diffusion", features=("clip", "sync"),
        hidden=176, depth=4,  # as many operations per step as the MM-DiT of `base`
    )
    if config.preset == "smoke":
        network |= dict(hidden=32, depth=1)
    return replace(
        config, arms={}, stages=("base", "evaluate"), extract=dict(motion=True), base=network,
        encoders=dict(kind="separate"), sampling=dict(guidance_rescale=0.0),  # as its study was made
        evaluate=dict(steps=2 if config.preset == "smoke" else 20),
    )


VTA_LDM_STUDY = {
    "vision": {
        "separate_clip": dict(base=dict(features=("clip",))),
        "separate_sync": dict(base=dict(features=("sync",))),
        "joint_clip": dict(encoders=dict(kind="joint"), base=dict(features=("clip",))),  # compare with separate_clip
        "sf_cavp_slow": dict(encoders=dict(kind="sf_cavp"), base=dict(features=("clip",))),
        "sf_cavp_fast": dict(encoders=dict(kind="sf_cavp"), base=dict(features=("sync",))),
        "sf_cavp_both": dict(encoders=dict(kind="sf_cavp")),
        "clip_wise": dict(base=dict(pooled_tokens=1)),
        "sf_cavp_clip_wise": dict(encoders=dict(kind="sf_cavp"), base=dict(pooled_tokens=1)),
    },
    "auxiliary": {
        "text": dict(base=dict(features=("clip", "sync", "text")), evaluate=dict(prompts=True)),
        "no_positions": dict(base=dict(positions=False)),
        "learnt_positions": dict(base=dict(position_kind="learnt")),
        "sinusoidal_positions": dict(base=dict(position_kind="sinusoidal")),
        "motion": dict(base=dict(features=("clip", "sync", "motion"))),
        "modality_tokens": dict(base=dict(modality_tokens=4)),
    },
    "augmentation": {
        "concat": dict(augment=dict(concat=0.5)),
        "speed": dict(augment=dict(speed=0.5)),
        "speed_range": dict(augment=dict(speed=0.5, speed_range=(0.8, 1.25))),
        "speed_same_pitch": dict(augment=dict(speed=0.5, speed_range=(0.8, 1.25), keep_pitch=True)),
        "crop": dict(augment=dict(crop=0.5)),
        "filtered": dict(base=dict(keep_share=0.5)),
        "filtered_at_random": dict(base=dict(keep_share=0.5, keep_by="random")),
    },
    "objective": {"flow": dict(base=dict(objective="flow"))},
}
"""One change to the baseline each; docs/VTA_LDM.md says what each of them asks."""


def vta_ldm_study(preset: str = "tiny") -> Config:
    """VTA-LDM's study: twenty-three trainings with one change each, three seeds, one table."""
    config = replace(
        vta_ldm(preset), program="sweep", stages=(), sweep=dict(cells=VTA_LDM_STUDY),
        sound_events=dict(kinds=0), reward=dict(events=0.0), evaluate=dict(guidance_scales=(2.0,)),
    )
    if config.preset == "smoke":
        return config
    return replace(
        config, seeds=(0, 1, 2), evaluate=dict(steps=10),
        base=dict(hidden=96, steps=400, batch_size=16, optimizer=dict(warmup_steps=40)),
    )


def evaluate(preset: str = "") -> FolderEvaluation:
    """Metrics of a folder of generated sound against a folder of real sound; preset `compare`: evaluations side by side."""
    if preset in ("", "evaluation"):
        return FolderEvaluation()
    if preset == "compare":
        return FolderEvaluation(program="compare", preset="compare")
    raise UserError(f"There is no preset {preset!r} of an evaluation: use compare, or leave it out.")


RECIPES = {
    recipe.__name__: recipe
    for recipe in (avp_rpo, base, sf_cavp, sync_dpo, student, joint, reward_study, vta_ldm, vta_ldm_study, evaluate)
}
