"""How good a reward is, measured: its ranking of candidates against event truth, and whether it hears controlled mistakes.

    python -m msg_jax.main --config=configs/reward_study.py --workdir=runs/tiny    # a finished base: minutes on 2 CPU cores

Another SF-CAVP, or an ensemble, in the place of the run's own:
    --config.reward_study.rewards.reward.sf_cavp=runs/a/sf_cavp,runs/b/sf_cavp
Rewards of another name, or of other weights, are lines of this file.
"""

from ml_collections import ConfigDict

from configs import common
from msg_jax.data import edits


def reward(sf_cavp="", **weights):
    """Of the run's SF-CAVP, or those in these folders (commas between), with the run's weights unless some are given."""
    return ConfigDict(dict(sf_cavp=sf_cavp, weights=weights))


def get_config(preset="tiny"):
    config = common.get_config(("reward_study",), preset)
    config.arms = {}
    scales = config.evaluate.guidance_scales
    config.reward_study = ConfigDict(dict(
        split="validation", clips=config.evaluate.reward_clips, candidates=config.evaluate.reward_candidates,
        guidance_scales=tuple(scale for scale in scales if scale != 1.0),
        steps=config.evaluate.steps, tolerance_sec=config.evaluate.tolerance_sec, bootstrap=config.evaluate.bootstrap,
        rewards=dict(
            semantic=reward(semantic=1.0), dynamic=reward(dynamic=1.0), window=reward(window=1.0), reward=reward(),
        ),
        baseline="reward",  # the others are also shown as differences to it; "" for none
        edits=edits.KINDS,
        through_codec=True,  # what is compared is heard as candidates are; or real and edited sound as they are
    ))
    if config.sound_events.kinds:
        config.reward_study.rewards.events = reward(events=1.0)
    return config
