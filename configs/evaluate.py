"""A folder of generated sound or video against a folder of references, or evaluations beside each other.

    python -m msg_jax.main --config=configs/evaluate.py --config.generated=out/ --config.reference=videos/ --workdir=runs/mine
    python -m msg_jax.main --config=configs/evaluate.py --config.runs=runs/a,runs/b --workdir=runs/a_and_b

A thousand pairs of eight seconds take a few minutes on 2 CPU cores without released weights. docs/EVALUATION.md says what
each figure is.
"""

from ml_collections import ConfigDict


def get_config(preset="evaluation"):
    if preset not in ("", "evaluation"):
        raise ValueError(f"There is no preset {preset!r} of an evaluation: leave it out.")
    config = ConfigDict()
    config.preset = "evaluation"  # names the default --workdir, runs/evaluation
    config.stages = ("evaluate_folder",)
    # What is evaluated.
    config.generated = ""  # folder of sounds or videos
    config.reference = ""  # folder of sounds or videos, paired with them by file stem; none: figures without reference alone
    config.generated_cache = ""  # folders of features that av-benchmark wrote (.pth), beside or instead of files
    config.reference_cache = ""
    config.ids = ""  # file of clip ids, one a line: the evaluation is of these alone (python -m msg_jax.data.multi_event)
    config.events = ""  # csv of true events, id,class,onset,offset: figures by the number of events too
    config.duration_sec = 8.0  # of each clip from its beginning; less if no generated clip is that long
    # With what.
    config.weights = ""  # folder of released files (docs/WEIGHTS.md): VGGish, PANNs, Synchformer
    config.sf_cavp = ""  # folder of a finished sf_cavp stage
    config.judge = ""  # folder of a finished judge stage
    # How.
    config.seed = 0
    config.bootstrap = 1000
    config.examples = 4  # clips that can be heard in the report
    config.threads = 2  # that read files
    # Instead of all of the above: folders of evaluations, or of runs, that are compared; the first is the baseline.
    config.runs = ""  # a,b,c
    config.names = ""  # what they are called, by default after their folders
    return config
