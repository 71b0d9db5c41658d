"""Two views of an image, the second turned by half with blocks hidden, and what they say of each other. Ours."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from infomask_jax.config import ModelConfig

EMPTY_RANGE = 0.02  # largest difference between two pixels of an empty cell, standard deviations of the image


class Views(NamedTuple):
    """Features of both, the second turned back, [B, h, w, D], and the cells that the second shows, [B, h, w, 1]."""

    first: jax.Array
    second: jax.Array
    shown: jax.Array


def encode(c: ModelConfig, encoder: nn.Module, images: jax.Array, keys: jax.Array | None) -> tuple[jax.Array, Views]:
    """Features of the cells, [B, h, w, D], and the views whose mean they are. keys [B] of hidden blocks, or None."""
    features = encoder(images).astype(jnp.float32)
    shown = has_content(images, encoder.stride) if c.close_empty else jnp.ones((*features.shape[:3], 1))
    first = second = features * shown
    if c.two_views:
        if keys is not None:
            kept = jax.vmap(lambda key: random_blocks(key, shown.shape[1:3]))(keys)
            shown *= kept
            images = images * kept.repeat(encoder.stride, axis=1).repeat(encoder.stride, axis=2)
        second = shown * encoder(images[:, ::-1, ::-1])[:, ::-1, ::-1].astype(jnp.float32)
    return jnp.where(shown > 0, (first + second) / 2, first), Views(first, second, shown)


def view_terms(views: Views, evidence: Callable, pooled: Callable) -> dict[str, jax.Array]:
    """What losses.py makes terms of: hidden_logits [B, K] of the second view alone, and view_difference [B], the mean
    over the cells that both show of the squared difference of their evidence, summed over findings."""
    first, second = views.shown * evidence(views.first), views.shown * evidence(views.second)
    squares, cells = jnp.sum((first - second) ** 2, axis=(1, 2, 3)), jnp.sum(views.shown, axis=(1, 2, 3))
    return {"hidden_logits": pooled(second), "view_difference": squares / jnp.maximum(cells, 1.0)}


def random_blocks(key: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """1 for cells of one image that stay, 0 for those hidden, [h, w, 1]: blocks of 2 x 2 cells, each hidden with a
    probability that is uniform in 0 .. 1 from image to image (as in Hide-and-Seek, Singh & Lee 2017)."""
    key_share, key_block = jax.random.split(key)
    height, width = grid
    kept = jax.random.uniform(key_block, (-(-height // 2), -(-width // 2), 1)) >= jax.random.uniform(key_share)
    return kept.repeat(2, axis=0).repeat(2, axis=1)[:height, :width].astype(jnp.float32)


def has_content(images: jax.Array, stride: int) -> jax.Array:
    """1 for cells whose pixels differ, 0 for empty ones: [B, H, W, 1] -> [B, h, w, 1]."""
    b, height, width, _ = images.shape
    cells = images.reshape(b, height // stride, stride, width // stride, stride)
    return (jnp.ptp(cells, axis=(2, 4))[..., None] > EMPTY_RANGE).astype(jnp.float32)
