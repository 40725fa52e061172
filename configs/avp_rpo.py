"""The main job: tune the base with SF-CAVP as the reward; train the base to its end and distil it; report.

    python -m msg_jax.main --config=configs/avp_rpo.py              # preset tiny, 40 minutes to an hour on 2 CPU cores
    python -m msg_jax.main --config=configs/avp_rpo.py:demo         # a third to a half of its training
    python -m msg_jax.main --config=configs/avp_rpo.py:tiny_study   # 3 seeds, all arms, SyncDPO's too: four hours
    python -m msg_jax.main --config=configs/avp_rpo.py:smoke        # every stage in a minute or two, nothing learnt

To expect from tiny: event F1 .96 of the student in two passes, where the base has .92 in sixteen (docs/PREFERENCE.md).
"""

from msg_jax.recipes import runs

get_config = runs.avp_rpo
