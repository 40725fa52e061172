"""SyncDPO: preference-tunes against rule-made distortions of real sound, beside AVP-RPO, after it and merged with it.

    python -m msg_jax.main --config=configs/sync_dpo.py              # preset tiny
    python -m msg_jax.main --config=configs/sync_dpo.py:tiny_study   # 3 seeds
    python -m msg_jax.main --config=configs/sync_dpo.py:smoke        # every stage in a minute or two, nothing learnt
"""

from ml_collections import ConfigDict

from configs import common


def get_config(preset="tiny"):
    config = common.get_config((), preset)
    config.arms = ConfigDict(dict(
        sync_dpo=common.sync_dpo("linear"),
        sync_dpo_uniform=common.sync_dpo("uniform"),
        avp_rpo=common.arm("reward"),
        avp_rpo_sync_dpo=common.sync_dpo("linear", start="avp_rpo"),
        continue_cfm=common.arm("none"),
        avp_rpo_and_sync_dpo=common.merged(avp_rpo=0.5, sync_dpo=0.5),
        soup=common.merged(avp_rpo=0.5, sync_dpo=0.5, continue_cfm=0.5),
    ))
    config.stages = (*config.arms, "evaluate")
    return config
