"""ResNet-18, -34 and -50 (He et al. 2016) as torchvision has them: the stride of a bottleneck is in its 3x3 kernel."""

import flax.linen as nn
import jax

from infomask_jax.model.backbone import Conv, FrozenNorm, dilation, rectified
from infomask_jax.model.encoder import RELU_GAIN

BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}


class Stage(nn.Module):
    """Stage 0: the stem. Stages 1 to 4: torchvision's layer1 to layer4, the first after the max pooling."""

    architecture: str
    index: int
    output_stride: int = 32
    pretrained: bool = True
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def layer(x, conv, norm, features, side=1, act=True, **options):
            x = Conv(features, side, **options, pretrained=self.pretrained, dtype=self.dtype, name=conv)(x)
            x = FrozenNorm(self.pretrained, name=norm)(x)
            return rectified(x, self.pretrained) if act else x

        if not self.index:
            return layer(x, "conv1", "bn1", 64, 7, stride=2)
        shrink, before, after = dilation(self.index, self.output_stride)
        if self.index == 1:  # the pooling shrinks
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
            shrink = 1
        channels, bottleneck = 64 * 2 ** (self.index - 1), self.architecture == "resnet50"
        for block in range(BLOCKS[self.architecture][self.index - 1]):
            name, stride = f"layer{self.index}.{block}.", 1 if block else shrink
            first = {"stride": stride, "dilation": after if block else before}
            if bottleneck:
                features = 4 * channels
                y = layer(x, f"{name}conv1", f"{name}bn1", channels)
                y = layer(y, f"{name}conv2", f"{name}bn2", channels, 3, **first)
                y = layer(y, f"{name}conv3", f"{name}bn3", features, act=False, gain=0.0)
            else:
                features = channels
                y = layer(x, f"{name}conv1", f"{name}bn1", features, 3, **first)
                y = layer(y, f"{name}conv2", f"{name}bn2", features, 3, act=False, gain=0.0, dilation=after)
            if not block and (self.index > 1 or bottleneck):
                x = x if self.pretrained else RELU_GAIN * x
                x = layer(x, f"{name}downsample.0", f"{name}downsample.1", features, act=False, stride=stride)
            x = nn.relu(x + y)
        return x
