"""Students: no guidance, few solver steps, and preferences on top.

    python -m msg_jax.main --config=configs/student.py              # preset tiny
    python -m msg_jax.main --config=configs/student.py:smoke        # every stage in a minute or two, nothing learnt
"""

from msg_jax.recipes import runs

get_config = runs.student
