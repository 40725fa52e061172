"""What every stage's config shares. A preset mutates the base; nothing is copied.

Presets:
  smoke       a minute or two on two CPU cores: every stage runs, nothing is learnt. For tests.
  tiny        the demo: procedural scenes, about twenty minutes on two CPU cores.
  tiny_study  `tiny` with three seeds and every arm: the measured comparison, an hour or more on two CPU cores.
"""

import dataclasses

from ml_collections import ConfigDict

from msg_jax import clip as clip_lib


def optimizer(learning_rate: float, warmup_steps: int, **changes) -> ConfigDict:
    defaults = dict(
        learning_rate=learning_rate, warmup_steps=warmup_steps, final_scale=0.02, b1=0.9, b2=0.98, weight_decay=1e-2,
        clip_norm=1.0,
    )
    return ConfigDict(defaults | changes)


def arm(ranking: str, winner: str = "best_of_n", **changes) -> ConfigDict:
    """One preference-tuned system. `ranking`: reward | random | oracle | none (continued flow matching, no pairs)."""
    return ConfigDict(dict(ranking=ranking, winner=winner) | changes)


def base(stages: tuple[str, ...]) -> ConfigDict:
    """The `tiny` preset."""
    config = ConfigDict()
    config.preset = "tiny"
    config.stages = stages  # the targets; what they need runs first
    config.seed = 0  # of the data and of the networks that all systems share
    config.seeds = (0,)  # one base model and one run of every arm for each
    config.mesh = (-1, 1, 1)  # data, fsdp, tensor
    config.clip = ConfigDict(dataclasses.asdict(clip_lib.TINY))

    config.data = ConfigDict(dict(
        source="scenes",  # scenes | folder:PATH | tfds:NAME_OR_FOLDER
        cache="runs/data",  # where the scenes are written once
        seed=0,
        train=4096, validation=256, test=256,  # scenes of each split
        windows_per_video=4,  # folder sources
        read_threads=2,
    ))
    config.codec = ConfigDict(dict(fit_clips=512, vocoder_iterations=32))
    config.judge = ConfigDict(dict(steps=400, batch_size=64, threshold=0.4, min_gap_sec=0.08, optimizer=optimizer(3e-3, 30)))
    config.sf_cavp = ConfigDict(dict(
        preset="tiny", steps=700, batch_size=64, optimizer=optimizer(3e-3, 30),
        crop_share=0.8,  # both modalities are cut to this share of the clip at a random place
        lags=(-16, -12, -8, -6, -4, -2, 2, 4, 6, 8, 12, 16),  # steps of 40 ms at which a clip is its own negative
        loss_weights=ConfigDict(dict(semantic=1.0, dynamic=1.0, window=1.0)),
        reward_weights=ConfigDict(dict(semantic=0.5, dynamic=0.5, window=2.0)),
    ))
    config.encoders = ConfigDict(dict(
        kind="separate",  # separate | sf_cavp: the reward model's features also condition the base model
        steps=600, batch_size=32, optimizer=optimizer(2e-3, 50),
    ))
    config.extract = ConfigDict(dict(batch_size=64, shard_clips=512))
    config.base = ConfigDict(dict(
        hidden=96, heads=4, joint_depth=2, fused_depth=2, v2=True,
        condition_dropout=0.1, text_dropout=0.5, ema_decay=0.995, steps=1500, batch_size=32, optimizer=optimizer(1.5e-3, 100),
    ))
    config.preference = ConfigDict(dict(
        videos=512, candidates=5, candidate_guidance=1.5, candidate_steps=8,
        keep_share=0.5,  # of the pairs, those with the largest score difference
        rounds=2, steps=100, batch_size=16, optimizer=optimizer(3e-4, 10),
        beta=20.0, dpo_weight=1.0, winner_weight=1.0, real_weight=1.0, condition_dropout=0.1, text_dropout=0.5,
        stop_at_real=True,  # no further round once the reward passes that of real audio heard through the codec
    ))
    config.arms = ConfigDict(dict(
        avp_rpo=arm("reward"), random_pairs=arm("random"), continue_cfm=arm("none"),
    ))
    config.evaluate = ConfigDict(dict(
        split="test", clips=256, guidance_scales=(1.0, 1.5, 2.0), steps=8, batch_size=64, tolerance_sec=0.08,
        reward_clips=128, reward_candidates=6, reward_guidance=1.5, bootstrap=1000, examples=3,
    ))
    config.every = ConfigDict(dict(log=25, checkpoint=200))
    return config


def tiny_study(config: ConfigDict) -> None:
    config.seeds = (0, 1, 2)
    config.arms.avp_rpo_real = arm("reward", winner="real")
    config.arms.avp_rpo_real_reconstructed = arm("reward", winner="real_reconstructed")
    config.arms.oracle = arm("oracle")


def smoke(config: ConfigDict) -> None:
    config.data.update(train=96, validation=32, test=32)
    config.codec.fit_clips = 32
    for section, steps in (("judge", 6), ("sf_cavp", 6), ("encoders", 6), ("base", 8), ("preference", 4)):
        config[section].update(steps=steps, batch_size=8)
        config[section].optimizer.warmup_steps = 2
    config.extract.update(batch_size=16, shard_clips=32)
    config.base.update(hidden=32, heads=2, joint_depth=1, fused_depth=1)
    config.preference.update(videos=8, candidates=3, candidate_steps=2)
    config.evaluate.update(clips=16, guidance_scales=(1.0, 2.0), steps=2, batch_size=16, reward_clips=8,
                           reward_candidates=3, bootstrap=100, examples=1)
    config.every.update(log=2, checkpoint=3)


PRESETS = {"tiny": lambda config: None, "tiny_study": tiny_study, "smoke": smoke}


def get_config(stages: tuple[str, ...], preset: str) -> ConfigDict:
    """Raises ValueError naming the presets if there is no such one."""
    preset = preset or "tiny"
    if preset not in PRESETS:
        raise ValueError(f"There is no preset {preset!r}: choose one of {', '.join(PRESETS)}.")
    config = base(stages)
    config.preset = preset
    PRESETS[preset](config)
    return config
