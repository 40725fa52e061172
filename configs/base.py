"""The base model: an MM-DiT trained with conditional flow matching, and its report.

    python -m msg_jax.main --config=configs/base.py    # preset tiny: about 12 minutes on 2 CPU cores
"""

from configs import common


def get_config(preset="tiny"):
    config = common.get_config(("base", "evaluate"), preset)
    config.arms = {}
    return config
