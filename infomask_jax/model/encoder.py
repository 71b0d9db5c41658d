"""Residual encoder: radiographs -> features on the latent grid."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def per_cell(product: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """A product [N, C] -> [N, D] on the last axis of x, [..., C] -> [..., D].

    One plain matrix product: XLA:CPU takes three times as long for the weight gradient of a 1x1 convolution, or of the
    same product with the cells on three axes.
    """
    return product(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)


@jax.custom_vjp
def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """x [..., D] + bias [D]. On CPU, where XLA sums slowly, the gradient's sum over the cells is a matrix product."""
    return x + jnp.expand_dims(bias, range(x.ndim - 1))


def _add_bias_backward(_, gradient):
    cells = gradient.reshape(-1, gradient.shape[-1])

    def product(cells):
        return (jnp.ones((1, len(cells)), cells.dtype) @ cells)[0]

    return gradient, jax.lax.platform_dependent(cells, cpu=product, default=partial(jnp.sum, axis=0))


add_bias.defvjp(lambda x, bias: (add_bias(x, bias), None), _add_bias_backward)


class WSConv(nn.Module):
    """3x3 or 1x1 convolution with scaled weight standardisation (Brock et al. 2021), a normaliser without statistics.

    Each filter has zero mean and variance 1/fan-in, times a learned gain, so the layer keeps the variance of its input
    and no cell can see another one through a normaliser.
    """

    features: int
    kernel_size: tuple[int, int]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        gain = self.param("gain", nn.initializers.ones, (self.features,))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        fan_in = kernel[..., 0].size
        centred = kernel - kernel.mean(axis=(0, 1, 2), keepdims=True)
        scale = gain * jax.lax.rsqrt(fan_in * centred.var(axis=(0, 1, 2)) + 1e-4)  # [features]
        x, kernel = x.astype(self.dtype), (centred * scale[None, None, None]).astype(self.dtype)
        if self.kernel_size == (1, 1):
            x = per_cell(lambda cells: cells @ kernel[0, 0], x)
        else:
            x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return add_bias(x, bias.astype(self.dtype))


class Encoder(nn.Module):
    """ResNet (He et al. 2016) in pre-activation form, cut at the wanted output stride.

    The stem folds 2 x 2 pixels into channels (space to depth) before its convolution: the same linear maps as a
    strided convolution on the image, and matrix products of useful size for a single-channel input. With
    `second_kernel` 1 the blocks after the first stage are 3x3 then 1x1: a field of 40 px at stride 4, depth 2, not 56.

    Args: see ModelConfig. Input [B, H, W, 1] with H and W multiples of `stride`; output [B, H/stride, W/stride, D]
    with D = width * 2^(stages - 1).
    """

    width: int
    depth: int
    stride: int
    second_kernel: int
    norm: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        height, width = x.shape[1:3]
        if height % self.stride or width % self.stride:
            raise ValueError(f"images of {height} x {width} px do not divide into cells of {self.stride} px")
        if self.norm == "group":
            conv = partial(nn.Conv, use_bias=False, dtype=self.dtype)
            norm = partial(nn.GroupNorm, num_groups=None, group_size=8, dtype=self.dtype)
        else:
            conv = partial(WSConv, dtype=self.dtype)
            norm = None
        relu_gain = 1.0 if self.norm == "group" else (2.0 / (1.0 - 1.0 / jnp.pi)) ** 0.5

        def activate(x):
            x = nn.relu(norm()(x) if norm else x)
            return x * relu_gain  # brings the variance of a standard normal back to 1

        # Without a norm a block adds the variance of its branch to that of its input, which it doubles: a stage of two
        # blocks has 4 times as much, with this factor one of however many at most e^2 times.
        branch = 1.0 if norm else min(1.0, (2 / self.depth) ** 0.5)
        x = space_to_depth(x.astype(self.dtype), 2)  # [B, H/2, W/2, 4]
        x = conv(self.width, (3, 3))(x)
        stages = self.stride.bit_length() - 1  # one per factor of two
        for stage in range(stages):
            channels = self.width * 2**stage
            for block in range(self.depth):
                y = activate(x)
                if stage and not block:  # shrink by averaging: cells stay aligned with their pixels
                    y = nn.avg_pool(y, (2, 2), (2, 2))
                    x = conv(channels, (1, 1))(y)
                y = conv(channels, (3, 3))(y)
                side = self.second_kernel if stage else 3
                y = conv(channels, (side, side))(activate(y))
                x = x + (y if branch == 1 else branch * y)
        return activate(x)


def space_to_depth(x: jax.Array, size: int) -> jax.Array:
    """[B, H, W, C] -> [B, H/size, W/size, size*size*C]."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // size, size, w // size, size, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h // size, w // size, size * size * c)
