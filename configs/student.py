"""Students that need no guidance and one or two solver steps, beside their teacher and a control at equal total cost.

    python -m msg_jax.main --config=configs/student.py              # preset tiny
    python -m msg_jax.main --config=configs/student.py:smoke        # every stage in a minute or two, nothing learnt
"""

from msg_jax.recipes import runs

get_config = runs.student
