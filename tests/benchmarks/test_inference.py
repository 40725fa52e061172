"""benchmarks/inference.py measures what `generate` runs."""

import jax
import numpy as np
import pytest
from released_files import toy_tensors

from benchmarks import inference

VARIANT = toy_tensors()[1]


def test_calls_and_weights_are_those_of_one_clip():
    """A clip of 0.96 s: 7 frames and 2 segments, one per call on a CPU; 25 solver steps."""
    cases = {name: make() for name, make in inference.cases(VARIANT).items()}
    assert {name: case.calls for name, case in cases.items()} == {
        "clip_image": 7, "clip_text": 1, "synchformer": 2, "mmdit": 25, "vae": 1, "bigvgan": 1,
    }
    random = inference.RandomBundle(VARIANT)
    loaded = random.load("vae", "params/decoder/", "buffers/")
    assert loaded["params"].keys() == {"decoder"} and loaded["buffers"].keys() == {"mel_mean", "mel_std"}
    count = sum(leaf.size for kind in VARIANT.networks for leaf in jax.tree.leaves(random.load(kind)))
    assert random.converted_bytes() == 4 * count


def test_flops_of_a_matrix_product():
    rng = np.random.default_rng(0)
    weights, x = (rng.normal(size=(256, 256)).astype(np.float32) for _ in range(2))
    case = inference.Case("product", (), lambda variables, x: x @ variables, (x,), 3)
    row = inference.measure_network(case, weights, repeats=1)
    assert row["gflop"] == pytest.approx(3 * 2 * 256**3 / 1e9)
    assert row["gflop_per_sec"] == pytest.approx(row["gflop"] / row["wall_sec"])
    assert row["weights_gb"] == 256 * 256 * 4 / 1e9


def test_rows_of_a_network_and_of_generate():
    for name in ("mmdit", "generate"):
        row = inference.measure(name, VARIANT, repeats=1)
        assert row["wall_sec"] > 0 and 0.05 < row["peak_gb"] < 100
        assert inference.show(row).split()[0] == name
    assert all(row[f"{part}_sec"] > 0 for part in inference.PARTS)  # the row of `generate`
    assert sum(row[f"{part}_sec"] for part in inference.PARTS) < row["wall_sec"]
