"""VGGish (Hershey et al., arXiv 1609.09430): the embedding of FD_VGG, the original Fréchet audio distance."""

import dataclasses

from flax import linen as nn

from msg_jax.models.layers import Conv, Dense
from msg_jax.types import Array


@dataclasses.dataclass(frozen=True)
class VGGishConfig:
    """Widths of the convolutions of each stage, a stage ending in a pooling, and of the dense layers."""

    stages: tuple[tuple[int, ...], ...] = ((64,), (128,), (256, 256), (512, 512))
    dense: tuple[int, ...] = (4096, 4096, 128)


PRESETS = {"released": VGGishConfig()}


class VGGish(nn.Module):
    """Examples (B, 96, 64) of `data.frontends.vggish_examples` -> embeddings (B, 128).

    The last layer's ReLU and the PCA that AudioSet's released embeddings went through are left out, as the Fréchet audio
    distance is computed in the field.
    """

    config: VGGishConfig = VGGishConfig()

    @nn.compact
    def __call__(self, examples: Array) -> Array:
        x, layer = examples[..., None], 0
        for widths in self.config.stages:
            for width in widths:
                x = nn.relu(Conv(width, (3, 3), padding=((1, 1), (1, 1)), name=f"conv{layer}")(x))
                layer += 1
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(len(x), -1)
        for i, width in enumerate(self.config.dense):
            x = Dense(width, name=f"dense{i}")(nn.relu(x) if i else x)
        return x
