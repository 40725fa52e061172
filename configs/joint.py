"""Sound and pictures generated together from text, tuned with SyncDPO (arXiv 2605.12179) beside controls, and judged.

    python -m msg_jax.main --config=configs/joint.py              # preset tiny, 33 minutes on 2 CPU cores
    python -m msg_jax.main --config=configs/joint.py:tiny_study   # 3 seeds, every kind of distortion
    python -m msg_jax.main --config=configs/joint.py:smoke        # every stage, nothing learnt

docs/SYNC_DPO.md has what tiny_study gave.
"""

from msg_jax.recipes import runs

get_config = runs.joint
