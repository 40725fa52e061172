"""The benchmark measures the step of an arm on the released network."""

from flax import linen as nn
import jax
import pytest

from benchmarks import lora
from msg_jax.convert.bundle import VARIANTS


@pytest.mark.parametrize(("rank", "trained"), [
    (0, 1_030_575_608 - 2 * 40 - 77 * 1024),  # all but the buffers
    # rank x (inputs x window + outputs) of 896 wide streams with 2560 wide feed-forwards: 7 + 14 of latents and 6 of clips with
    # windows of 3, 6 of texts without, and in the last joint block queries, keys and values of clip and text alone
    (16, 16 * (29 * (896 + 2688) + 27 * (2688 + 896 + 2 * (2688 + 2560) + 7680 + 896)
               + 6 * (896 + 896 + 3 * (896 + 2560)) + 6 * (896 + 2688))),
])
def test_parameters_of_the_largest_network(tmp_path, rank, trained):
    task = lora.task_for("large_44k_v2", rank, str(tmp_path))
    assert task.model.config == VARIANTS["large_44k_v2"].networks["mmdit"].config and task.model.remat
    row = lora.sizes(task, nn.unbox(jax.eval_shape(task.init, jax.random.key(0))))
    assert (row["network"], row["trained"]) == (1_030_575_608, trained)
    assert row["optimiser_gb"] == pytest.approx(2 * 4 * trained / 1e9, abs=1e-7)
    batch = lora.batch_for(task, 3)
    assert batch["winner"].shape == (3, 345, 40) and batch["sync"].shape == (3, 192, 768)
    assert lora.show({"rank": rank, **row}).startswith(f"lora {rank} " if rank else "full ")
