"""AVP-RPO, the main job: preference-tune the base model with SF-CAVP as the reward, beside its controls, and report.

    python -m msg_jax.main --config=configs/avp_rpo.py              # preset tiny, half an hour to three quarters on 2 CPU cores
    python -m msg_jax.main --config=configs/avp_rpo.py:demo         # a third to a half of its training
    python -m msg_jax.main --config=configs/avp_rpo.py:tiny_study   # 3 seeds, all arms, SyncDPO's too: four hours
    python -m msg_jax.main --config=configs/avp_rpo.py:smoke        # every stage in a minute or two, nothing learnt

To expect from tiny_study: event F1 .830 +- .003 at guidance 1, where the base has .784 +- .006 (docs/PREFERENCE.md).
"""

from msg_jax.recipes import runs

get_config = runs.avp_rpo
