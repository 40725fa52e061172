"""Measure rewards: how they rank candidates against event truth, and which controlled mistakes they notice.

    python -m msg_jax.main --config=configs/reward_study.py --workdir=runs/tiny    # a finished base: minutes on 2 CPU cores

Another SF-CAVP, or an ensemble, instead of the run's own:
    --config.reward_study.rewards.reward.sf_cavp=runs/a/sf_cavp,runs/b/sf_cavp
Rewards with other names or weights: return `replace(config, reward_study=dict(rewards={...}))` from a file like this one.
"""

from msg_jax.recipes import runs

get_config = runs.reward_study
