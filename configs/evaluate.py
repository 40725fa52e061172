"""Evaluate a folder of generated sound or video against a folder of references, or compare evaluations.

    python -m msg_jax.main --config=configs/evaluate.py --config.generated=out/ --config.reference=videos/ --workdir=runs/mine
    python -m msg_jax.main --config=configs/evaluate.py:compare --config.runs=runs/a,runs/b --workdir=runs/a_and_b

A thousand pairs of eight seconds take a few minutes on 2 CPU cores without released weights. docs/EVALUATION.md defines the
metrics.
"""

from msg_jax.recipes import runs

get_config = runs.evaluate
