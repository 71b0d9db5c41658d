"""What the encoders with trained weights share: PyTorch's names, frozen BatchNorm, stages by stride."""

import flax.linen as nn
import jax
import jax.numpy as jnp

STRIDES = (2, 4, 8, 16, 32)  # of the five stages' outputs, pixels
TOP_DOWN = 64  # channels of the top-down path (ours)
LAYOUT = ("NHWC", "HWIO", "NHWC")
RELU_GAIN = (2.0 / (1.0 - 1.0 / jnp.pi)) ** 0.5  # brings the variance of a standard normal's ReLU back to 1


def standardised(kernel: jax.Array, gain: jax.Array) -> jax.Array:
    """Scaled weight standardisation (Brock et al. 2021) of kernels [k, k, I, O], times gain [O]: filters of mean 0 and
    variance 1 / fan-in keep the variance of the input, without statistics through which cells would see each other."""
    centred = kernel - kernel.mean(axis=(0, 1, 2))
    return gain * centred * jax.lax.rsqrt(kernel[..., 0].size * centred.var(axis=(0, 1, 2)) + 1e-4)


def dilation(stage: int, output_stride: int) -> tuple[int, int, int]:
    """(stride of a stage, dilation before it, dilation after it): beyond `output_stride` a stage does not shrink, and
    its kernels and those after it are spread instead (Yu & Koltun 2016). Every 2nd, 4th cell is what it would be."""
    before = max(1, STRIDES[stage - 1] // output_stride)
    return (1, before, 2 * before) if STRIDES[stage] > output_stride else (2, 1, 1)


class Conv(nn.Module):
    """Convolution [B, h, w, C] -> [B, h', w', features], without bias; weight-standardised if not `pretrained`.

    stride: by which it shrinks; original: by which the source does, where it is dilated instead. Sides divide by it.
    same: pad as TensorFlow does; otherwise as PyTorch, by half a kernel. depthwise: each channel by itself.
    """

    features: int
    side: int = 1
    stride: int = 1
    original: int = 0  # 0: stride
    dilation: int = 1
    same: bool = False
    depthwise: bool = False
    pretrained: bool = True
    gain: float = 1.0  # at first, of one that is not pretrained
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        groups = x.shape[-1] if self.depthwise else 1
        shape = (self.side, self.side, x.shape[-1] // groups, self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        if not self.pretrained:
            gain = self.param("gain", nn.initializers.constant(self.gain), (self.features,))
            kernel = standardised(kernel, gain)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        low = self.dilation * ((self.side - (self.original or self.stride)) // 2 if self.same else self.side // 2)
        pad = low, self.dilation * (self.side - 1) + 1 - self.stride - low
        if self.depthwise and jax.default_backend() == "cpu":
            x = shifted_sum(x, kernel, self.stride, self.dilation, pad)
        else:
            spread = (self.dilation, self.dilation)
            options = {"rhs_dilation": spread, "dimension_numbers": LAYOUT, "feature_group_count": groups}
            x = jax.lax.conv_general_dilated(x, kernel, (self.stride, self.stride), (pad, pad), **options)
        if not self.pretrained:
            x += self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return x


def shifted_sum(x: jax.Array, kernel: jax.Array, stride: int, dilation: int, pad: tuple[int, int]) -> jax.Array:
    """Depthwise convolution as a sum of shifted slices, which XLA's CPU backend computes several times as fast."""
    height, width = (n // stride for n in x.shape[1:3])
    x = jnp.pad(x, ((0, 0), pad, pad, (0, 0)))
    total = 0.0
    for row in range(kernel.shape[0]):
        for column in range(kernel.shape[1]):
            top, left = row * dilation, column * dilation
            bottom, right = top + (height - 1) * stride + 1, left + (width - 1) * stride + 1
            total += x[:, top:bottom:stride, left:right:stride] * kernel[row, column, 0]
    return total


class FrozenNorm(nn.Module):
    """BatchNorm whose statistics and affine part are constants: scale = gamma / sqrt(var + eps), shift = beta - mean
    scale. Nothing where the weights are not pretrained: those convolutions are standardised instead."""

    pretrained: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if not self.pretrained:
            return x
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        shift = self.param("shift", nn.initializers.zeros, (x.shape[-1],))
        scale, shift = jax.lax.stop_gradient((scale.astype(x.dtype), shift.astype(x.dtype)))
        return x * scale + shift


def rectified(x: jax.Array, pretrained: bool, limit: float = jnp.inf) -> jax.Array:
    """ReLU, up to `limit`; from scratch with the gain that keeps the variance."""
    x = jnp.minimum(nn.relu(x), jnp.asarray(limit, x.dtype))
    return x if pretrained else RELU_GAIN * x


class Backbone(nn.Module):
    """Five stages, of strides 2 to 32 or dilated: [B, H, W, C] -> [B, H / stride, W / stride, D].

    top_down: stages up to twice the stride; what is at `stride` and, enlarged, what comes after it are added as 64
    channels (1x1 lateral and upsampling, as in Lin et al. 2017; one step of it, with a ReLU: ours).
    remat: stages are computed anew for the gradient instead of kept.
    """

    stages: tuple[nn.Module, ...]
    stride: int
    top_down: bool = False
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shrink = 2 * self.stride if self.top_down else self.stride
        if x.shape[1] % shrink or x.shape[2] % shrink:
            raise ValueError(f"images of {x.shape[1]} x {x.shape[2]} px do not divide into cells of {shrink} px")
        run = nn.remat(lambda stage, x: stage(x)) if self.remat else lambda stage, x: stage(x)
        at = {}
        for stride, stage in zip(STRIDES, self.stages, strict=True):
            if self.top_down and stride > shrink:
                break
            at[stride] = x = run(stage, x)
        if not self.top_down:
            return x
        lateral = nn.Dense(TOP_DOWN, name="lateral")(at[self.stride].astype(jnp.float32))
        deep = nn.Dense(TOP_DOWN, name="deep")(x.astype(jnp.float32))
        return nn.relu(lateral + jax.image.resize(deep, lateral.shape, "bilinear"))
