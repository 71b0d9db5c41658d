"""Gradients of the finding's logit with respect to the image: [B, H, W] maps."""

import jax
import jax.numpy as jnp

from infomask_jax.explain.readout import image_logit
from infomask_jax.model.infomask import InfoMask


def pixel_gradients(model: InfoMask, variables: dict, images: jax.Array, finding: int) -> jax.Array:
    """d logit / d image, [B, H, W, 1]: logits per standard deviation of gray."""
    return jax.grad(lambda x: image_logit(model, variables, x, finding).sum())(images)


def gradient(model: InfoMask, variables: dict, images: jax.Array, finding: int) -> jax.Array:
    """Saliency (Simonyan et al. 2014): |d logit / dx|, the largest over the channels."""
    return jnp.abs(pixel_gradients(model, variables, images, finding)).max(axis=-1)


def smoothgrad(
    model: InfoMask,
    variables: dict,
    images: jax.Array,
    finding: int,
    *,
    samples: int = 16,
    noise: float = 0.15,
    seed: int = 0,
) -> jax.Array:
    """SmoothGrad (Smilkov et al. 2017): |mean gradient over noisy copies of the image|, the largest over the channels.

    Args:
      samples: noisy copies.
      noise: standard deviation of the Gaussian noise as a share of the image's range, max - min (paper: 0.1 to 0.2).
      seed: of the noise, which is the same for every image of the batch.
    """
    scale = noise * (images.max(axis=(1, 2, 3), keepdims=True) - images.min(axis=(1, 2, 3), keepdims=True))

    def add(total, key):
        noisy = images + scale * jax.random.normal(key, images.shape[1:])[None]
        return total + pixel_gradients(model, variables, noisy, finding), None

    keys = jax.random.split(jax.random.key(seed), samples)
    return jnp.abs(jax.lax.scan(add, jnp.zeros_like(images), keys)[0] / samples).max(axis=-1)


def integrated_gradients(
    model: InfoMask, variables: dict, images: jax.Array, finding: int, *, steps: int = 32, baseline: float = 0.0
) -> jax.Array:
    """Integrated gradients (Sundararajan et al. 2017), signed; they sum to logit(image) - logit(baseline).

    Args:
      steps: midpoints of the straight path from the baseline to the image.
      baseline: gray value, or an array [H, W, 1]. The default, 0, is the mean of every standardised image, and the
        whole image where it has no contrast (ours).
    """
    start = jnp.broadcast_to(jnp.asarray(baseline, jnp.float32), images.shape[1:])[None]

    def add(total, share):
        point = start + share * (images - start)
        return total + pixel_gradients(model, variables, point, finding), None

    shares = (jnp.arange(steps) + 0.5) / steps
    mean = jax.lax.scan(add, jnp.zeros_like(images), shares)[0] / steps
    return jnp.sum((images - start) * mean, axis=-1)
