"""VTA-LDM's study: vision encoders, auxiliary embeddings and augmentation, one change at a time, in one table.

    python -m msg_jax.main --config=configs/vta_ldm_study.py          # preset tiny: 3 seeds, about 90 minutes on one CPU core
    python -m msg_jax.main --config=configs/vta_ldm_study.py:smoke    # every cell, nothing learnt

The table is runs/PRESET/table.md, with the numbers in results.json beside it. A stopped sweep continues with the same command.
The cells are msg_jax.recipes.runs.VTA_LDM_STUDY; docs/VTA_LDM.md says what each of them asks.
"""

from msg_jax.recipes import runs

get_config = runs.vta_ldm_study
