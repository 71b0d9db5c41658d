"""Two views of an image, the second turned by half with blocks hidden, and what they say of each other. Ours."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from infomask_jax.config import ModelConfig

EMPTY_RANGE = 0.02  # largest difference between two pixels of an empty cell, standard deviations of the image


def encode(c: ModelConfig, encoder: nn.Module, images: jax.Array, keys: jax.Array | None) -> tuple:
    """Features of the cells, [B, h, w, D], and, with two views, whose mean they are, those of the first and of the
    second, turned back, and the cells that the second shows, [B, h, w, 1]; else None. keys [B] of hidden blocks."""
    features, stride = encoder(images).astype(jnp.float32), encoder.stride
    shown = has_content(images, stride) if c.close_empty else jnp.ones((*features.shape[:3], 1))
    first = features * shown
    if not c.two_views:
        return first, None
    if keys is not None:
        kept = jax.vmap(lambda key: random_blocks(key, shown.shape[1:3]))(keys)
        images, shown = images * kept.repeat(stride, axis=1).repeat(stride, axis=2), shown * kept
    second = shown * encoder(images[:, ::-1, ::-1])[:, ::-1, ::-1].astype(jnp.float32)
    return jnp.where(shown > 0, (first + second) / 2, first), (first, second, shown)


def view_terms(views: tuple, evidence: Callable, pooled: Callable) -> dict[str, jax.Array]:
    """What losses.py makes terms of: hidden_logits [B, K] of the second view alone, and view_difference [B], the mean
    over the cells that both show of the squared difference of their evidence, summed over findings."""
    *features, shown = views
    first, second = (shown * evidence(of_view) for of_view in features)
    squares, cells = jnp.sum((first - second) ** 2, axis=(1, 2, 3)), jnp.sum(shown, axis=(1, 2, 3))
    return {"hidden_logits": pooled(second), "view_difference": squares / jnp.maximum(cells, 1.0)}


def random_blocks(key: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """1 for cells of an image that stay, 0 for hidden ones, [h, w, 1]: blocks of 2 x 2 cells, of which a share that is
    uniform in 0 .. 1 is hidden (as in Hide-and-Seek, Singh & Lee 2017)."""
    key_share, key_block = jax.random.split(key)
    height, width = grid
    kept = jax.random.uniform(key_block, (-(-height // 2), -(-width // 2), 1)) >= jax.random.uniform(key_share)
    return kept.repeat(2, axis=0).repeat(2, axis=1)[:height, :width].astype(jnp.float32)


def has_content(images: jax.Array, stride: int) -> jax.Array:
    """1 for cells whose pixels differ, 0 for empty ones: [B, H, W, 1] -> [B, h, w, 1]."""
    b, height, width, _ = images.shape
    cells = images.reshape(b, height // stride, stride, width // stride, stride)
    return (jnp.ptp(cells, axis=(2, 4))[..., None] > EMPTY_RANGE).astype(jnp.float32)
