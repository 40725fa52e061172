"""Presets: changes to the default configuration, which is `tiny`.

  smoke       every stage in a minute or two on two CPU cores, nothing learnt. For tests.
  tiny        everything on procedural scenes: 40 minutes to an hour on two CPU cores.
  demo        `tiny` with a third to a half of its training and no student, for a first look: 9 minutes on two quiet CPU cores.
  tiny_study  three seeds and every arm, on encoders that see less than the reward: four hours on two CPU cores.
  small_16k, small_44k, medium_44k, large_44k_v2
              AVP-RPO on MMAudio's released networks, for one GPU of 80 GB. They need `--config.weights=FOLDER`
              (docs/WEIGHTS.md) and your own videos, `--config.data.source=folder:PATH`.
"""

from collections.abc import Callable, Collection
import functools

from msg_jax.config.schema import Arm, Config
from msg_jax.config.tree import replace
from msg_jax.convert.bundle import VARIANTS
from msg_jax.errors import UserError
from msg_jax.methods import AvpRpo, ContinueFlow, Distill, Merge, Oracle, Picked, RandomPairs, SyncDpo

ARMS: dict[str, Arm] = {
    "avp_rpo": AvpRpo(),
    "avp_rpo_midway": Merge(shares={"avp_rpo": 0.5}, label="AVP-RPO, half-way", note="half-way between base and AVP-RPO"),
    "avp_rpo_picked": Picked(label="AVP-RPO, picked", note="round and share that are best by what was not rewarded"),
    "random_pairs": RandomPairs(),
    "continue_cfm": ContinueFlow(),
}
"""AVP-RPO and its controls."""

TRAINED_ON = 2.6  # times the steps of the base; more brings nothing with separate encoders (docs/PREFERENCE.md)
LONGER = dict(batch_size=8, optimizer=dict(learning_rate=1e-3, warmup_steps=50))  # continued training takes four times 8 clips
DISTILLED = dict(steps=300, batch_size=32)


def student_arms(base_steps: int = 0) -> dict[str, Arm]:
    """AVP-RPO, the base trained to its end, and a student of that which takes two passes.

    `base_steps` are those of the base. With 0 it is trained on, and the student distilled, as the section `preference` says.
    """
    longer, distilled = (LONGER | dict(steps=round(TRAINED_ON * base_steps)), DISTILLED) if base_steps else ({}, {})
    return {
        "avp_rpo": ARMS["avp_rpo"],
        "avp_rpo_midway": ARMS["avp_rpo_midway"],
        "longer": ContinueFlow(changes=longer, label="Base, trained on", note="control, and the teacher of the student"),
        "student": Distill(start="longer", solver_steps=2, teacher_steps=6, changes=distilled, label="Student, two passes"),
    }


def study_arms(steps: int) -> dict[str, Arm]:
    """Every arm of the measured comparison; `steps` are those of the `preference` section."""
    both = {"avp_rpo": 0.5, "sync_dpo": 0.5}
    return ARMS | {
        "avp_rpo_whole": AvpRpo(winner="best_of_n", label="AVP-RPO, whole candidates", note="best against worst candidate"),
        "oracle": Oracle(),
        "avp_rpo_two_rounds": AvpRpo(
            changes=dict(rounds=2, steps=steps // 2), label="AVP-RPO, two rounds",
            note="as many steps; the second round samples the first one's model",
        ),
        "sync_dpo": SyncDpo(),
        "sync_dpo_uniform": SyncDpo(
            curriculum="uniform", label="SyncDPO, no curriculum", note="distortions of all levels from the start"
        ),
        "avp_rpo_sync_dpo": SyncDpo(start="avp_rpo", label="AVP-RPO, then SyncDPO", note="twice the steps"),
        "oracle_midway": Merge(shares={"oracle": 0.5}, label="Oracle, half-way", note="half-way between base and oracle"),
        "avp_rpo_and_sync_dpo": Merge(shares=both, label="Half of AVP-RPO and SyncDPO"),
        "soup": Merge(shares=both | {"continue_cfm": 0.5}, label="Half of AVP-RPO, SyncDPO and continued training"),
        "continue_cfm_thrice": ContinueFlow(
            changes=dict(steps=3 * steps), label="Continued training, 3 x", note="control: the training compute of three arms"
        ),
        "longer_avp_rpo": Merge(
            shares={"continue_cfm_thrice": 1.0, "avp_rpo": 0.5}, label="Continued 3 x, with half of AVP-RPO"
        ),
        "longer_both": Merge(shares=both | {"continue_cfm_thrice": 1.0}, label="Continued 3 x, with half of both"),
    }


RESCALED = dict(guidance_rescale=0.85)
"""Without it, guidance doubles the level of the tiny networks' sound (docs/PREFERENCE.md)."""


SEEING = dict(kind="second_sf_cavp")
"""The encoders that see most: with them the base's event F1 is .92 in the place of .85 (docs/PREFERENCE.md)."""


def tiny(config: Config) -> Config:
    return replace(config, arms=student_arms(config.base.steps), encoders=SEEING, sampling=RESCALED)


def demo(config: Config) -> Config:
    return replace(
        config,
        data=dict(train=2048),
        judge=dict(steps=200), second_judge=dict(steps=100), encoders=dict(steps=300), sf_cavp=dict(steps=250),
        sound_events=dict(clips=2048, steps=150),
        base=dict(steps=600),
        preference=dict(videos=512, steps=100),
        evaluate=dict(clips=128, guidance_scales=(1.0, 2.0), reward_clips=64),
        arms={name: ARMS[name] for name in ("avp_rpo", "avp_rpo_midway", "continue_cfm")},
        sampling=RESCALED,
    )


def tiny_study(config: Config) -> Config:
    return replace(
        config, seeds=(0, 1, 2), evaluate=dict(guidance_scales=(1.0, 1.5, 2.0, 2.5), samples=4),
        arms=study_arms(config.preference.steps), sampling=RESCALED,
    )


def smoke(config: Config) -> Config:
    def short(steps: int) -> dict:
        return dict(steps=steps, batch_size=8, optimizer=dict(warmup_steps=2))

    return replace(
        config,
        data=dict(train=96, validation=32, test=32),
        codec=dict(fit_clips=32),
        judge=short(6), second_judge=short(6), sf_cavp=short(6), encoders=short(6),
        sound_events=dict(codes=8, kinds=4, rounds=1, clips=32, **short(4)),
        extract=dict(batch_size=16, shard_clips=32),
        base=dict(hidden=32, heads=2, joint_depth=1, fused_depth=1, depth=1, **short(8)),
        preference=dict(videos=8, candidates=3, candidate_steps=2, rounds=2, **short(4)),
        evaluate=dict(
            clips=8, guidance_scales=(1.0, 2.0), steps=2, batch_size=8, reward_clips=8, reward_candidates=3, bootstrap=100,
            examples=1,
        ),
        every=dict(log=2, checkpoint=3, held_out=4),
        sampling=RESCALED,
        arms=ARMS,
    )


def released(config: Config, variant: str) -> Config:
    """MMAudio's networks unchanged, and AVP-RPO on top of them."""
    chosen = VARIANTS[variant]
    network = chosen.networks["mmdit"].config
    return replace(
        config,
        variant=variant,
        clip=chosen.clip,
        data=dict(source="", train=128, validation=16, test=16),  # a scene of this size takes 60 MB
        codec=dict(kind="released"),
        encoders=dict(kind="released"),
        extract=dict(batch_size=8, shard_clips=64),
        base=dict(
            hidden=network.hidden, heads=network.heads, joint_depth=network.joint_depth, fused_depth=network.fused_depth,
            v2=network.v2, initial="released", steps=0,
            # For those who set steps: MMAudio's optimizer (arXiv 2412.15322) at a tenth of its rate.
            batch_size=64, text_dropout=0.1, ema_decay=0.999,
            optimizer=dict(learning_rate=1e-5, warmup_steps=1000, b2=0.95, weight_decay=1e-6),
        ),
        sf_cavp=dict(
            preset="r50", local_windows=True, steps=30_000, batch_size=64,
            optimizer=dict(learning_rate=3e-4, warmup_steps=1000),
            crop_share=0.5,  # 4 s, as CAVP's windows
        ),
        sound_events=dict(codes=512, kinds=128, clips=4096, steps=3000),  # VGGSound has about 300 classes
        preference=dict(
            videos=1024, candidate_guidance=4.5, candidate_steps=25,
            # beta, rate and batch of V2A-DPO on this network; warm-up and rounds of TangoFlux, whose gain ends at four.
            rounds=4, steps=3000, batch_size=8, optimizer=dict(learning_rate=5e-6, warmup_steps=100), beta=600.0,
            text_dropout=0.1,
        ),
        arms={name: ARMS[name] for name in ("avp_rpo", "avp_rpo_picked")},
        evaluate=dict(
            clips=64, guidance_scales=(1.0, 4.5), steps=25, batch_size=8, reward_clips=64, reward_candidates=5,
            reward_guidance=4.5,
        ),
        every=dict(log=25, checkpoint=500, held_out=500),
    )


PRESETS: dict[str, Callable[[Config], Config]] = {"tiny": tiny, "demo": demo, "tiny_study": tiny_study, "smoke": smoke} | {
    variant: functools.partial(released, variant=variant)
    for variant in ("small_16k", "small_44k", "medium_44k", "large_44k_v2")
}


def get(preset: str, choices: Collection[str] = PRESETS) -> Config:
    """The configuration of a preset, with the arms of AVP-RPO. Raises UserError, naming `choices`, if it is none of them."""
    preset = preset or "tiny"
    if preset not in choices:
        raise UserError(f"There is no preset {preset!r}: choose one of {', '.join(choices)}.")
    return replace(PRESETS[preset](Config()), preset=preset)
