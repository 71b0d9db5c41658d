"""Residual encoder: radiographs -> features of each cell of the latent grid."""

from functools import partial

import flax.linen as nn
import jax

from infomask_jax.model.backbone import RELU_GAIN, Conv


class WSConv(Conv):
    """Weight-standardised, with a gain and a bias; its name is that of its parameters."""

    pretrained: bool = False


class Encoder(nn.Module):
    """ResNet (He et al. 2016) in pre-activation form, cut at the wanted stride: [B, H, W, 1] -> [B, h, w, D].

    H and W are multiples of `stride`, h = H / stride, D = width * 2^(stages - 1). The stem folds 2 x 2 pixels into
    channels. After the first stage the second kernel of a block is 1x1 (ours): a field of 40 px at stride 4, not 56.
    """

    width: int
    stride: int
    dtype: str = "float32"
    depth: int = 2  # blocks in each stage

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        height, width = x.shape[1:3]
        if height % self.stride or width % self.stride:
            raise ValueError(f"images of {height} x {width} px do not divide into cells of {self.stride} px")
        conv = partial(WSConv, dtype=self.dtype)
        x = x.reshape(-1, height // 2, 2, width // 2, 2).swapaxes(2, 3).reshape(-1, height // 2, width // 2, 4)
        x = conv(self.width, 3)(x)
        for stage in range(self.stride.bit_length() - 1):  # one per factor of two
            channels = self.width * 2**stage
            for block in range(self.depth):
                y = RELU_GAIN * nn.relu(x)
                if stage and not block:  # shrink by averaging: cells stay aligned with their pixels
                    y = nn.avg_pool(y, (2, 2), (2, 2))
                    x = conv(channels, 1)(y)
                y = conv(channels, 3)(y)
                x += conv(channels, 1 if stage else 3)(RELU_GAIN * nn.relu(y))
        return RELU_GAIN * nn.relu(x)
