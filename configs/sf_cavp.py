"""SF-CAVP alone: contrastive audio-visual pretraining, the reward model.

    python -m msg_jax.main --config=configs/sf_cavp.py    # preset tiny: 4 to 12 minutes on 2 CPU cores
"""

from msg_jax.recipes import runs

get_config = runs.sf_cavp
