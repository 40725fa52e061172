"""AVP-RPO: the main job. Preference-tunes the base model with SF-CAVP as the reward, beside its controls, and reports.

    python -m msg_jax.main --config=configs/avp_rpo.py              # preset tiny, 20 to 35 minutes on 2 CPU cores
    python -m msg_jax.main --config=configs/avp_rpo.py:tiny_study   # 3 seeds, all arms, SyncDPO's too: four hours
    python -m msg_jax.main --config=configs/avp_rpo.py:smoke        # every stage in a minute or two, nothing learnt
"""

from configs import common


def get_config(preset="tiny"):
    config = common.get_config(("avp_rpo", "evaluate"), preset)
    config.stages = (*config.arms, "evaluate")
    return config
