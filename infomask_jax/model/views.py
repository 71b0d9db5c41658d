"""What the two views of an image show: blocks hidden from the second, empty cells, and the mean of both."""

import jax
import jax.numpy as jnp

EMPTY_RANGE = 0.02  # largest difference between two pixels of an empty cell, standard deviations of the image


def random_blocks(key: jax.Array, grid: tuple[int, int], hide: float) -> jax.Array:
    """1 for cells that stay, 0 for those hidden: [h, w, 1] for a grid (h, w) of one image, in blocks of 2 x 2 cells.

    The share that is hidden is uniform in 0 .. hide; blocks are hidden independently.
    """
    height, width = grid
    key_share, key_block = jax.random.split(key)
    share = jax.random.uniform(key_share, maxval=hide)
    kept = jax.random.uniform(key_block, (-(-height // 2), -(-width // 2), 1)) >= share
    return kept.repeat(2, axis=0).repeat(2, axis=1)[:height, :width].astype(jnp.float32)


def has_content(images: jax.Array, stride: int) -> jax.Array:
    """1 for cells of `stride` x `stride` pixels that show something, 0 for empty ones: [B, H, W, 1] -> [B, h, w, 1]."""
    window = (1, stride, stride, 1)
    highest = jax.lax.reduce_window(images, -jnp.inf, jax.lax.max, window, window, "VALID")
    lowest = jax.lax.reduce_window(images, jnp.inf, jax.lax.min, window, window, "VALID")
    return (highest - lowest > EMPTY_RANGE).astype(jnp.float32)


def mean_view(first: jax.Array, second: jax.Array, shown: jax.Array) -> jax.Array:
    """Mean of two views where the second shows the cell, the first elsewhere: [B, h, w, C] twice, [B, h, w, 1]."""
    return jnp.where(shown > 0, (first + second) / 2, first)
