"""When a finished stage is that of this run's settings."""

import pathlib

import pytest

from msg_jax.errors import UserError
from msg_jax.run.stage import _refuse_difference


def test_a_field_that_came_later_is_no_difference_while_it_is_empty():
    def compare(theirs, ours):
        _refuse_difference(pathlib.Path("run"), {"settings": theirs, "upstream": {}}, {"settings": ours, "upstream": {}})

    old = {"sf_cavp": {"preset": "r50"}}
    compare(old, {"sf_cavp": {"preset": "r50", "local_windows": False}})
    for theirs, ours in (
        (old, {"sf_cavp": {"preset": "r50", "local_windows": True}}),
        ({"sf_cavp": {"preset": "r50", "local_windows": True}}, {"sf_cavp": {"preset": "r50", "local_windows": False}}),
        ({"sf_cavp": {"preset": "r50", "local_windows": True}}, old),
    ):
        with pytest.raises(UserError, match=r"run was made with config\.sf_cavp\.local_windows="):
            compare(theirs, ours)
