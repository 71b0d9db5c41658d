"""DenseNet-121 (Huang et al. 2017) as torchvision and, with one channel, torchxrayvision have it."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from infomask_jax.model.backbone import Conv, FrozenNorm, dilation, rectified

LAYERS = (6, 12, 24, 16)
GROWTH, BOTTLENECK = 32, 128


class Stage(nn.Module):
    """Stage 0: the stem. Stages 1 to 4: what shrinks, then a dense block; the last ends with norm5 and its ReLU."""

    index: int
    output_stride: int = 32
    pretrained: bool = True
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def conv(x, name, features, side=1, **options):
            return Conv(features, side, **options, pretrained=self.pretrained, dtype=self.dtype, name=name)(x)

        def norm(x, name):
            return rectified(FrozenNorm(self.pretrained, name=name)(x), self.pretrained)

        if not self.index:
            return norm(conv(x, "features.conv0", 64, 7, stride=2), "features.norm0")
        shrink, before, after = dilation(self.index, self.output_stride)
        if self.index == 1:
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        else:
            name = f"features.transition{self.index - 1}."
            x = conv(norm(x, f"{name}norm"), f"{name}conv", x.shape[-1] // 2)
            x = average(x, shrink, before)
        for number in range(1, LAYERS[self.index - 1] + 1):
            name = f"features.denseblock{self.index}.denselayer{number}."
            y = conv(norm(x, f"{name}norm1"), f"{name}conv1", BOTTLENECK)
            y = conv(norm(y, f"{name}norm2"), f"{name}conv2", GROWTH, 3, dilation=after)
            x = jnp.concatenate([x, y], axis=-1)
        return norm(x, "features.norm5") if self.index == len(LAYERS) else x


def average(x: jax.Array, stride: int, dilation: int) -> jax.Array:
    """Means of 2 x 2 cells that lie `dilation` apart; with stride 1 those at the edge repeat it."""
    if stride == 2:
        return nn.avg_pool(x, (2, 2), (2, 2))
    padded = jnp.pad(x, ((0, 0), (0, dilation), (0, dilation), (0, 0)), mode="edge")
    height, width = x.shape[1:3]
    corners = [padded[:, i : i + height, j : j + width] for i in (0, dilation) for j in (0, dilation)]
    return sum(corners) / 4
