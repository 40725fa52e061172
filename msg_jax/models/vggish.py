"""VGGish (Hershey et al., arXiv 1609.09430), the embedding of FD_VGG, the original Fréchet audio distance."""

import dataclasses

from flax import linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from msg_jax.models.layers import Conv, Dense
from msg_jax.types import AnyArray, Array


@dataclasses.dataclass(frozen=True)
class VGGishConfig:
    """Widths of the convolutions in each stage, which ends in pooling, and of the dense layers."""

    stages: tuple[tuple[int, ...], ...] = ((64,), (128,), (256, 256), (512, 512))
    dense: tuple[int, ...] = (4096, 4096, 128)


PRESETS = {"released": VGGishConfig()}


class VGGish(nn.Module):
    """Examples from `data.frontends.vggish_examples` -> embeddings.

    As is usual for the Fréchet audio distance, it omits the last ReLU and the PCA of AudioSet's released embeddings.
    """

    config: VGGishConfig = VGGishConfig()

    @nn.compact
    def __call__(self, examples: Float[AnyArray, "B 96 64"]) -> Float[Array, "B D"]:
        x, layer = jnp.asarray(examples)[..., None], 0
        for widths in self.config.stages:
            for width in widths:
                x = nn.relu(Conv(width, (3, 3), padding=((1, 1), (1, 1)), name=f"conv{layer}")(x))
                layer += 1
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(len(x), -1)
        for i, width in enumerate(self.config.dense):
            x = Dense(width, name=f"dense{i}")(nn.relu(x) if i else x)
        return x
