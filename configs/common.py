"""What every stage's config shares. A preset mutates the base; nothing is copied.

Presets:
  smoke       a minute or two on two CPU cores: every stage runs, nothing is learnt. For tests.
  tiny        the demo: procedural scenes, 20 to 35 minutes on two CPU cores.
  tiny_study  `tiny` with three seeds and every arm: the measured comparison, four hours on two CPU cores.
  small_16k, small_44k, medium_44k, large_44k_v2
              full size: AVP-RPO on MMAudio's released networks, with `--config.weights=FOLDER` of their files
              (docs/WEIGHTS.md) and `--config.data.source=` videos of yours. For a GPU.
"""

import dataclasses
import functools

from ml_collections import ConfigDict

from msg_jax import clip as clip_lib

LORA = dict(
    lora_rank=0,  # more than 0: low-rank adapters are trained, and nothing else (models/lora.py)
    lora_scale=1.0,  # alpha / rank
    lora_targets="^(joint|fused)_.*/(qkv|out|w[123])$",  # attention and feed-forward of every block
)


def optimizer(learning_rate: float, warmup_steps: int, **changes) -> ConfigDict:
    defaults = dict(
        learning_rate=learning_rate, warmup_steps=warmup_steps, final_scale=0.02, b1=0.9, b2=0.98, weight_decay=1e-2,
        clip_norm=1.0,
    )
    return ConfigDict(defaults | changes)


def arm(ranking: str, winner: str = "stitched", start: str = "base", **changes) -> ConfigDict:
    """One preference-tuned system, which starts from `base` or another arm; `changes` are of the `preference` section.

    `ranking`: reward | random | oracle | rules (SyncDPO) | none (continued flow matching, no pairs) | merged (see `merged`).
    `winner`: stitched (winner and loser are joined of the best and of the worst moments of all candidates) | best_of_n (the
    best and the worst candidate) | real | real_reconstructed (through the codec).
    """
    return ConfigDict(dict(ranking=ranking, winner=winner, start=start) | changes)


def sync_dpo(curriculum: str = "linear", **changes) -> ConfigDict:
    """An arm whose losers are made by rule; its only round has the steps of all rounds of another arm."""
    return arm("rules", "real", curriculum=curriculum, **changes)


def merged(start: str = "base", **shares: float) -> ConfigDict:
    """An arm without training: `start`, moved by these shares of the way to other arms; `merged(avp_rpo=0.5)` is half-way."""
    return arm("merged", start=start, shares=ConfigDict(shares))


def base(stages: tuple[str, ...]) -> ConfigDict:
    """The `tiny` preset."""
    config = ConfigDict()
    config.preset = "tiny"
    config.stages = stages  # the targets; what they need runs first
    config.seed = 0  # of the data and of the networks that all systems share
    config.seeds = (0,)  # one base model and one run of every arm for each
    config.mesh = (-1, 1, 1)  # data, fsdp, tensor
    config.weights = ""  # folder of released files: where networks whose kind is `released` come from
    config.variant = ""  # which of the released systems
    config.clip = ConfigDict(dataclasses.asdict(clip_lib.TINY))

    config.data = ConfigDict(dict(
        source="scenes",  # scenes | folder:PATH | tfds:NAME_OR_FOLDER
        cache="runs/data",  # where the scenes are written once
        seed=0,
        train=4096, validation=256, test=256,  # scenes of each split
        windows_per_video=4,  # folder sources
        read_threads=2,
    ))
    config.codec = ConfigDict(dict(
        kind="pca",  # pca | released: MMAudio's VAE and BigVGAN
        fit_clips=512, vocoder_iterations=32,
    ))
    config.judge = ConfigDict(dict(
        steps=400, batch_size=64, accumulate=1, threshold=0.4, min_gap_sec=0.08, optimizer=optimizer(3e-3, 30),
    ))
    config.sf_cavp = ConfigDict(dict(
        preset="tiny", steps=700, batch_size=64, accumulate=1, optimizer=optimizer(3e-3, 30),
        crop_share=0.8,  # both modalities are cut to this share of the clip at a random place
        lags=(-16, -12, -8, -6, -4, -2, 2, 4, 6, 8, 12, 16),  # steps of 40 ms at which a clip is its own negative
        loss_weights=ConfigDict(dict(semantic=1.0, dynamic=1.0, window=1.0)),
    ))
    config.sound_events = ConfigDict(dict(
        codes=64,  # of the sounds that follow an onset, by k-means; of them
        kinds=16,  # are left once those are joined that the video cannot tell apart. 0: no discrete reward
        rounds=2,  # in which both modalities refine each other's labels
        clips=4096,  # training clips at most: their features are held in memory, 140 kB each
        onset_threshold=0.35,  # mean rise of the log-mel, in nats
        steps=300, batch_size=48, accumulate=1, feature_dropout=0.3, optimizer=optimizer(2e-3, 30, weight_decay=3e-2),
    ))
    config.reward = ConfigDict(dict(semantic=0.0, dynamic=0.0, window=2.0, events=1.0))  # weights of the cosines
    config.encoders = ConfigDict(dict(
        # separate: trained to predict latents | sf_cavp: the reward's features also condition the base model
        # second_sf_cavp: those of an SF-CAVP of its own, by the section `sf_cavp` | released: CLIP and Synchformer
        kind="separate",
        steps=600, batch_size=32, accumulate=1, optimizer=optimizer(2e-3, 50),
    ))
    config.extract = ConfigDict(dict(batch_size=64, shard_clips=512))
    config.base = ConfigDict(dict(
        initial="",  # released: starts from MMAudio's network; with steps=0 it is the base model as it is
        hidden=96, heads=4, joint_depth=2, fused_depth=2, v2=True,
        remat=False,  # recompute each block in the backward pass: a third more time, a fraction of the memory
        condition_dropout=0.1, text_dropout=0.5, ema_decay=0.995, steps=1500, batch_size=32,
        accumulate=1,  # micro-batches of a step, one after the other: less memory, up to rounding the same result
        optimizer=optimizer(1.5e-3, 100),
        **LORA,
    ))
    config.preference = ConfigDict(dict(
        videos=1024, candidates=5, candidate_guidance=2.0, candidate_steps=8,
        keep_share=0.5,  # of the pairs, those with the largest score difference
        join_cost=0.005,  # what a join of `stitched` pairs must gain in the clip's reward
        rounds=1, steps=150, batch_size=16, accumulate=1, optimizer=optimizer(3e-4, 10),
        dpo_guidance=1.0,  # the preference loss compares the velocities that sampling at this guidance scale follows
        beta=20.0, dpo_weight=1.0, winner_weight=1.0, real_weight=1.0, condition_dropout=0.1, text_dropout=0.5,
        **LORA,
        stop_at_real=True,  # no further round once the reward passes that of real audio heard through the codec
    ))
    config.arms = ConfigDict(dict(
        avp_rpo=arm("reward"), avp_rpo_midway=merged(avp_rpo=0.5), random_pairs=arm("random"), continue_cfm=arm("none"),
    ))
    config.evaluate = ConfigDict(dict(
        split="test", clips=256, guidance_scales=(1.0, 1.5, 2.0), steps=8, batch_size=64, tolerance_sec=0.08,
        samples=1,  # of every clip by every system: four halve what chance does to a comparison
        reward_clips=128, reward_candidates=6, reward_guidance=1.5, bootstrap=1000, examples=3,
    ))
    config.every = ConfigDict(dict(log=25, checkpoint=200))
    config.guard = ConfigDict(dict(
        spike=20.0,  # a loss of more than so many times the running median stops the training; 0: only one that is not finite
        window=100,  # losses in that median
        data_timeout_sec=600.0,  # for one batch
    ))
    config.log = ConfigDict(dict(
        tensorboard=False, wandb="",  # the project's name
        profile_steps="", explain_sharding=False,  # the flags of these names set them
    ))
    return config


def tiny_study(config: ConfigDict) -> None:
    config.seeds = (0, 1, 2)
    config.evaluate.update(guidance_scales=(1.0, 1.5, 2.0, 2.5), samples=4)
    config.arms.update(
        avp_rpo_whole=arm("reward", winner="best_of_n"), oracle=arm("oracle"),
        avp_rpo_two_rounds=arm("reward", rounds=2, steps=config.preference.steps // 2),
        sync_dpo=sync_dpo("linear"), sync_dpo_uniform=sync_dpo("uniform"),
        avp_rpo_sync_dpo=sync_dpo("linear", start="avp_rpo"),
        oracle_midway=merged(oracle=0.5),
        avp_rpo_and_sync_dpo=merged(avp_rpo=0.5, sync_dpo=0.5),
        soup=merged(avp_rpo=0.5, sync_dpo=0.5, continue_cfm=0.5),
        continue_cfm_thrice=arm("none", steps=3 * config.preference.steps),  # the soup's compute
        longer_avp_rpo=merged(continue_cfm_thrice=1.0, avp_rpo=0.5),
        longer_both=merged(continue_cfm_thrice=1.0, avp_rpo=0.5, sync_dpo=0.5),
    )


def smoke(config: ConfigDict) -> None:
    config.data.update(train=96, validation=32, test=32)
    config.codec.fit_clips = 32
    config.sound_events.update(codes=8, kinds=4, rounds=1, clips=32)
    for section, steps in (("judge", 6), ("sf_cavp", 6), ("sound_events", 4), ("encoders", 6), ("base", 8), ("preference", 4)):
        config[section].update(steps=steps, batch_size=8)
        config[section].optimizer.warmup_steps = 2
    config.extract.update(batch_size=16, shard_clips=32)
    config.base.update(hidden=32, heads=2, joint_depth=1, fused_depth=1)
    config.preference.update(videos=8, candidates=3, candidate_steps=2, rounds=2)
    config.evaluate.update(clips=16, guidance_scales=(1.0, 2.0), steps=2, batch_size=16, reward_clips=8,
                           reward_candidates=3, bootstrap=100, examples=1)
    config.every.update(log=2, checkpoint=3)


def released(config: ConfigDict, variant: str) -> None:
    """MMAudio's networks as they are, and AVP-RPO on top of them. Steps, rates and batches are for one GPU of 80 GB."""
    from msg_jax.convert.bundle import VARIANTS  # loads jax, which other presets do without

    chosen = VARIANTS[variant]
    config.variant = variant
    config.clip = ConfigDict(dataclasses.asdict(chosen.clip))
    config.data.update(source="", train=128, validation=16, test=16)  # a scene of this size takes 60 MB
    config.codec.kind = config.encoders.kind = "released"
    config.extract.update(batch_size=8, shard_clips=64)
    network = chosen.networks["mmdit"].config
    config.base.update(
        {name: getattr(network, name) for name in ("hidden", "heads", "joint_depth", "fused_depth", "v2")},
        # Steps are for fine-tuning, with MMAudio's optimiser (arXiv 2412.15322) at a tenth of its rate.
        initial="released", steps=0, batch_size=64, text_dropout=0.1, ema_decay=0.999,
        optimizer=optimizer(1e-5, 1000, b2=0.95, weight_decay=1e-6),
    )
    config.sf_cavp.update(
        preset="r50", steps=30_000, batch_size=64, optimizer=optimizer(3e-4, 1000), crop_share=0.5,  # 4 s, as CAVP's windows
    )
    config.sound_events.update(codes=512, kinds=128, clips=4096, steps=3000)  # VGGSound has about 300 classes
    config.preference.update(
        videos=1024, candidate_guidance=4.5, candidate_steps=25,
        # beta, rate and batch of V2A-DPO on this network, warm-up and rounds of TangoFlux: four are where its gain ends.
        rounds=4, steps=3000, batch_size=8, optimizer=optimizer(5e-6, 100), beta=600.0, text_dropout=0.1,
    )
    config.arms = ConfigDict(dict(avp_rpo=arm("reward")))
    config.evaluate.update(
        clips=64, guidance_scales=(1.0, 4.5), steps=25, batch_size=8, reward_clips=64, reward_candidates=5,
        reward_guidance=4.5,
    )
    config.every.update(log=25, checkpoint=500)


PRESETS = {"tiny": lambda config: None, "tiny_study": tiny_study, "smoke": smoke} | {
    variant: functools.partial(released, variant=variant)
    for variant in ("small_16k", "small_44k", "medium_44k", "large_44k_v2")
}


def get_config(stages: tuple[str, ...], preset: str) -> ConfigDict:
    """Raises ValueError naming the presets if there is no such one."""
    preset = preset or "tiny"
    if preset not in PRESETS:
        raise ValueError(f"There is no preset {preset!r}: choose one of {', '.join(PRESETS)}.")
    config = base(stages)
    config.preset = preset
    PRESETS[preset](config)
    return config
