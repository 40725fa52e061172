"""benchmarks/lora.py measures the preference step of the released network."""

from flax import linen as nn
import jax
import pytest

from benchmarks import lora
from msg_jax.convert.bundle import VARIANTS


@pytest.mark.parametrize(("rank", "trained"), [
    (0, 1_030_575_608 - 2 * 40 - 77 * 1024),  # all parameters but no buffers
    # An adapter has rank * (inputs * kernel + outputs) parameters. Streams are 896 wide, feed-forwards 2560. 7 joint and 14
    # fused blocks have a latent stream and 6 a clip stream, both with kernels of 3; 6 have a text stream, without. The last
    # joint block has only queries, keys and values of clip and text.
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
