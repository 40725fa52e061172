"""A training of the plan on eight devices in micro-batches, against one device; benchmarks/meshes.py has all of them."""

import numpy as np
import pytest

from benchmarks import meshes
from configs import avp_rpo


@pytest.mark.slow
def test_the_base_model_on_a_mesh_of_three_axes_in_micro_batches(tmp_path):
    """Three steps on (2, 2, 2), half a batch at a time, are those of one device with the whole batch."""
    config = avp_rpo.get_config("smoke")
    config.base.update(steps=3, batch_size=8)
    one = meshes.trained("base", (1, 1, 1), 3, config, tmp_path / "one")
    config.base.accumulate = 2
    worst, together = meshes.difference(meshes.trained("base", (2, 2, 2), 3, config, tmp_path / "many"), one)
    assert worst < meshes.LIMIT and together < 1e-5
    assert np.isfinite(together) and together > 0  # not the same program
