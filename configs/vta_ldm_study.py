"""VTA-LDM's study: vision encoders, auxiliary embeddings and augmentation, one change to the baseline at a time, in one table.

    python -m msg_jax.main --config=configs/vta_ldm_study.py          # preset tiny: 3 seeds, about 90 minutes on one CPU core
    python -m msg_jax.main --config=configs/vta_ldm_study.py:smoke    # every cell, nothing learnt

The table is runs/PRESET/table.md, the same in numbers results.json beside it. A stopped sweep continues with the same command.
Cells are lines of this file; docs/VTA_LDM.md says what each of them asks.
"""

from ml_collections import ConfigDict

from configs import vta_ldm

VISION = dict(
    separate_clip=dict(base=dict(features=("clip",))),
    separate_sync=dict(base=dict(features=("sync",))),
    joint_clip=dict(encoders=dict(kind="joint"), base=dict(features=("clip",))),  # beside separate_clip
    sf_cavp_slow=dict(encoders=dict(kind="sf_cavp"), base=dict(features=("clip",))),
    sf_cavp_fast=dict(encoders=dict(kind="sf_cavp"), base=dict(features=("sync",))),
    sf_cavp_both=dict(encoders=dict(kind="sf_cavp")),
    clip_wise=dict(base=dict(pooled_tokens=1)),
    sf_cavp_clip_wise=dict(encoders=dict(kind="sf_cavp"), base=dict(pooled_tokens=1)),
)
AUXILIARY = dict(
    text=dict(base=dict(features=("clip", "sync", "text")), evaluate=dict(prompts=True)),
    no_positions=dict(base=dict(positions=False)),
    motion=dict(base=dict(features=("clip", "sync", "motion"))),
)
AUGMENTATION = dict(
    concat=dict(augment=dict(concat=0.5)),
    speed=dict(augment=dict(speed=0.5)),
    filtered=dict(base=dict(keep_share=0.5)),
    filtered_at_random=dict(base=dict(keep_share=0.5, keep_by="random")),
)
OBJECTIVE = dict(
    flow=dict(base=dict(objective="flow")),
)


def get_config(preset="tiny"):
    config = vta_ldm.get_config(preset)
    config.stages = ("sweep",)
    config.sweep = ConfigDict(dict(cells=dict(
        vision=VISION, auxiliary=AUXILIARY, augmentation=AUGMENTATION, objective=OBJECTIVE,
    )))
    config.sound_events.kinds = 0
    config.reward.events = 0.0
    config.evaluate.guidance_scales = (2.0,)
    if config.preset == "tiny":
        config.seeds = (0, 1, 2)
        config.base.update(hidden=96, steps=400, batch_size=16)
        config.base.optimizer.warmup_steps = 40
        config.evaluate.steps = 10
    return config
