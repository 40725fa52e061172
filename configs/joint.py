"""Sound and pictures generated together from text, tuned with SyncDPO (arXiv 2605.12179) beside controls, and judged.

    python -m msg_jax.main --config=configs/joint.py              # preset tiny, by its parts 40 minutes on 2 CPU cores
    python -m msg_jax.main --config=configs/joint.py:tiny_study   # 3 seeds, every kind of distortion
    python -m msg_jax.main --config=configs/joint.py:smoke        # every stage, nothing learnt

docs/SYNC_DPO.md has what the preset tiny gave with three seeds. The other distortions of tiny_study have not been trained.
"""

from msg_jax.recipes import runs

get_config = runs.joint
