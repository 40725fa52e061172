"""One stage on eight devices in micro-batches against one device; benchmarks/meshes.py compares all stages."""

import pytest

from benchmarks import meshes
from msg_jax.config.tree import replace


@pytest.mark.slow
def test_the_base_model_on_a_mesh_of_three_axes_in_micro_batches(smoke_run, scenes_cache, tmp_path):
    """Three steps on (2, 2, 2) in two micro-batches match one device with the whole batch."""
    config = meshes.settings(3, scenes_cache)
    one = meshes.make("base", meshes.on_mesh(config, smoke_run, (1, 1, 1)), tmp_path / "one")
    micro_batches = replace(config, base=dict(accumulate=2))
    many = meshes.make("base", meshes.on_mesh(micro_batches, smoke_run, (2, 2, 2)), tmp_path / "many")
    worst = max(meshes.differences(many, one).values())
    assert 0 < worst < meshes.LIMIT  # another program, but the same result
