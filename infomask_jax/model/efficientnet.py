"""EfficientNet-Lite0 (Tan & Le 2019; TensorFlow's Lite variant: no squeeze-and-excitation, ReLU6), layers named as in
its PyTorch port."""

import flax.linen as nn
import jax

from infomask_jax.model.backbone import Conv, FrozenNorm, dilation, rectified

# (kernel, stride, expansion, channels, blocks), by stage of the backbone
BLOCKS = (
    ((3, 1, 1, 16, 1),),
    ((3, 2, 6, 24, 2),),
    ((5, 2, 6, 40, 2),),
    ((3, 2, 6, 80, 3), (5, 1, 6, 112, 3)),
    ((5, 2, 6, 192, 4), (3, 1, 6, 320, 1)),
)
STEM, HEAD = 32, 1280


class Stage(nn.Module):
    """Inverted residuals of one stride; the first begins with the stem, the last ends with the head convolution."""

    index: int
    output_stride: int = 32
    pretrained: bool = True
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def layer(x, conv, norm, features, side=1, act=True, **options):
            common = {"same": True, "pretrained": self.pretrained, "dtype": self.dtype}
            x = Conv(features, side, **options, **common, name=conv)(x)
            x = FrozenNorm(self.pretrained, name=norm)(x)
            return rectified(x, self.pretrained, 6.0) if act else x

        shrink, before, after = dilation(self.index, self.output_stride) if self.index else (1, 1, 1)
        if not self.index:
            x = layer(x, "_conv_stem", "_bn0", STEM, 3, stride=2)
        number = sum(group[-1] for stage in BLOCKS[: self.index] for group in stage)
        for side, stride, expansion, features, blocks in BLOCKS[self.index]:
            for block in range(blocks):
                name, inputs = f"_blocks.{number}.", x
                original = stride if block == 0 else 1
                if expansion > 1:
                    x = layer(x, f"{name}_expand_conv", f"{name}_bn0", x.shape[-1] * expansion)
                spread = {"stride": shrink if original == 2 else 1, "original": original}
                spread |= {"dilation": before if original == 2 else after, "depthwise": True}
                x = layer(x, f"{name}_depthwise_conv", f"{name}_bn1", x.shape[-1], side, **spread)
                skips = original == 1 and inputs.shape[-1] == features
                x = layer(x, f"{name}_project_conv", f"{name}_bn2", features, act=False, gain=float(not skips))
                x = x + inputs if skips else x
                number += 1
        return layer(x, "_conv_head", "_bn1", HEAD) if self.index == len(BLOCKS) - 1 else x
