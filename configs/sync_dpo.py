"""SyncDPO: preference-tune against rule-made distortions of real sound, beside AVP-RPO, after it and merged with it.

    python -m msg_jax.main --config=configs/sync_dpo.py              # preset tiny
    python -m msg_jax.main --config=configs/sync_dpo.py:tiny_study   # 3 seeds
    python -m msg_jax.main --config=configs/sync_dpo.py:smoke        # every stage in a minute or two, nothing learnt
"""

from msg_jax.recipes import runs

get_config = runs.sync_dpo
