"""A stage of the plan on eight devices in micro-batches, against one device; benchmarks/meshes.py has all of them."""

import pytest

from benchmarks import meshes
from msg_jax.config import tree


@pytest.mark.slow
def test_the_base_model_on_a_mesh_of_three_axes_in_micro_batches(smoke_run, scenes_cache, tmp_path):
    """Three steps on (2, 2, 2), half a batch at a time, are those of one device with the whole batch."""
    config = meshes.settings(3, scenes_cache)
    one = meshes.make("base", meshes.on_mesh(config, smoke_run, (1, 1, 1)), tmp_path / "one")
    config = tree.replace(config, base=dict(accumulate=2))
    many = meshes.make("base", meshes.on_mesh(config, smoke_run, (2, 2, 2)), tmp_path / "many")
    worst = max(meshes.differences(many, one).values())
    assert 0 < worst < meshes.LIMIT  # not the same program, and the same result
