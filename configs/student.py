"""Students that need no guidance and one or two solver steps, with and without preferences, beside teachers and controls.

    python -m msg_jax.main --config=configs/student.py              # preset tiny
    python -m msg_jax.main --config=configs/student.py:smoke        # every stage in a minute or two, nothing learnt
"""

from msg_jax.recipes import runs

get_config = runs.student
