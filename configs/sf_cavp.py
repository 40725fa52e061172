"""SF-CAVP alone: contrastive audio-visual pretraining, the reward model.

    python -m msg_jax.main --config=configs/sf_cavp.py    # preset tiny: 4 to 12 minutes on 2 CPU cores
"""

from configs import common


def get_config(preset="tiny"):
    return common.get_config(("sf_cavp",), preset)
