"""Gradients of the finding's logit with respect to the image: [B, H, W] maps."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from infomask_jax.explain.readout import Readout

COPIES = 8  # perturbed copies of the batch in one pass


def pixel_gradients(model: Readout, images: jax.Array) -> jax.Array:
    """d logit / d image, [B, H, W, 1]: logits per standard deviation of gray."""
    return jax.grad(lambda x: model.logit(x).sum())(images)


def mean_gradient(model: Readout, images: jax.Array, perturb: Callable, values: jax.Array) -> jax.Array:
    """Mean of `pixel_gradients` at perturb(images, v) over values v [V], [B, H, W, 1].

    Passes are written out, not scanned: in a loop, XLA:CPU takes hundreds of times as long over convolutions'
    gradients.
    """
    total = jnp.zeros_like(images)
    for first in range(0, len(values), COPIES):
        copies = jax.vmap(lambda v: perturb(images, v))(values[first : first + COPIES])  # [c, B, H, W, 1]
        found = pixel_gradients(model, copies.reshape(-1, *images.shape[1:]))
        total += found.reshape(copies.shape).sum(axis=0)
    return total / len(values)


def gradient(model: Readout, images: jax.Array) -> jax.Array:
    """Saliency (Simonyan et al. 2014): |d logit / dx|, the largest over the channels."""
    return jnp.abs(pixel_gradients(model, images)).max(axis=-1)


def smoothgrad(
    model: Readout, images: jax.Array, *, samples: int = 16, noise: float = 0.15, seed: int = 0
) -> jax.Array:
    """SmoothGrad (Smilkov et al. 2017): |mean gradient over noisy copies of the image|, the largest over the channels.

    noise: standard deviation, as a share of the image's max - min (paper: 0.1 to 0.2); the same for every image.
    """
    scale = noise * (images.max(axis=(1, 2, 3), keepdims=True) - images.min(axis=(1, 2, 3), keepdims=True))

    def add_noise(images, key):
        return images + scale * jax.random.normal(key, images.shape[1:])[None]

    keys = jax.random.split(jax.random.key(seed), samples)
    return jnp.abs(mean_gradient(model, images, add_noise, keys)).max(axis=-1)


def integrated_gradients(
    model: Readout, images: jax.Array, *, steps: int = 32, baseline: float | jax.Array = 0.0
) -> jax.Array:
    """Integrated gradients (Sundararajan et al. 2017), signed; they sum to logit(image) - logit(baseline), but not with
    `close_empty`, where the logit jumps as soon as the path shows the least contrast.

    steps: midpoints of the straight path from the baseline to the image. baseline: gray value, or [H, W, 1]; 0 is the
    mean of every standardised image (ours).
    """
    start = jnp.broadcast_to(jnp.asarray(baseline, jnp.float32), images.shape[1:])[None]
    shares = (jnp.arange(steps) + 0.5) / steps
    mean = mean_gradient(model, images, lambda x, share: start + share * (x - start), shares)
    return jnp.sum((images - start) * mean, axis=-1)
