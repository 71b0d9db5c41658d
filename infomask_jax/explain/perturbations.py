"""Methods that hide parts of the image and watch the logit: one pass over the batch at a time, in a scan.

What is hidden becomes 0, the mean gray of a standardised image.
"""

import jax
import jax.numpy as jnp

from infomask_jax.explain.readout import Readout


def occlusion(
    model: Readout, images: jax.Array, *, patch: int | None = None, step: int | None = None, fill: float = 0.0
) -> jax.Array:
    """Occlusion (Zeiler & Fergus 2014): by how much the logit falls under a gray square; [B, H, W].

    A pixel holds the mean over the squares that cover it (ours; the paper plots one value per square).

    patch: side of the square, pixels; by default a quarter of the image's shorter side (ours). step: pixels from one
    square to the next, by default half a side; the last one ends at the border. fill: gray value of the square.
    """
    height, width = images.shape[1:3]
    patch = min(height, width) // 4 if patch is None else patch
    step = max(1, patch // 2) if step is None else step
    tops, lefts = ([*range(0, side - patch, step), side - patch] for side in (height, width))
    corners = jnp.array([(top, left) for top in tops for left in lefts])
    rows, columns = jnp.arange(height), jnp.arange(width)
    whole = model.logit(images)

    def add(totals, corner):
        falls, covers = totals
        in_rows = (rows >= corner[0]) & (rows < corner[0] + patch)
        in_columns = (columns >= corner[1]) & (columns < corner[1] + patch)
        square = in_rows[:, None] & in_columns[None, :]  # [H, W]
        fall = whole - model.logit(jnp.where(square[None, :, :, None], fill, images))
        return (falls + fall[:, None, None] * square[None], covers + square), None

    zeros = jnp.zeros(images.shape[:3]), jnp.zeros((height, width))
    (falls, covers), _ = jax.lax.scan(add, zeros, corners)
    return falls / covers[None]


def rise(
    model: Readout, images: jax.Array, *, masks: int = 512, cells: int = 8, keep: float = 0.5, seed: int = 0
) -> jax.Array:
    """RISE (Petsiuk et al. 2018): mean of random masks, each weighed by the probability it leaves; [B, H, W].

    sum_i p(x * m_i) m_i / (masks * keep): the expected probability of the finding given that the pixel is seen. Masks
    are shared by the images of the batch; cells, keep: see `rise_mask`.
    """

    def add(total, key):
        mask = rise_mask(key, images.shape[1:3], cells, keep)
        probability = jax.nn.sigmoid(model.logit(images * mask[None, :, :, None]))
        return total + probability[:, None, None] * mask[None], None

    keys = jax.random.split(jax.random.key(seed), masks)
    return jax.lax.scan(add, jnp.zeros(images.shape[:3]), keys)[0] / (masks * keep)


def rise_mask(key: jax.Array, shape: tuple[int, int], cells: int, keep: float) -> jax.Array:
    """One mask [H, W] in 0 .. 1: a random cells x cells grid, each seen with probability `keep`, enlarged bilinearly to
    one cell more than the image and cut out at a random place within that cell (Petsiuk et al. 2018, section 3.2)."""
    key_grid, key_top, key_left = jax.random.split(key, 3)
    cell = [-(-side // cells) for side in shape]
    grid = jax.random.bernoulli(key_grid, keep, (cells, cells)).astype(jnp.float32)
    large = jax.image.resize(grid, [(cells + 1) * side for side in cell], "linear")
    corner = [jax.random.randint(k, (), 0, side) for k, side in zip((key_top, key_left), cell, strict=True)]
    return jax.lax.dynamic_slice(large, corner, shape)


def scorecam(model: Readout, images: jax.Array) -> jax.Array:
    """Score-CAM (Wang et al. 2020): relu(sum_d w_d A_d), w = softmax over channels of the logit each leaves; [B, h, w].

    Channel d of the features, enlarged and scaled to 0 .. 1 per image, multiplies the image; a constant one hides it.
    """
    features = model.encode(images)

    def leave(_, channel):  # [B, h, w] -> logit [B]
        mask = jax.image.resize(channel, images.shape[:3], "linear")
        low, high = mask.min(axis=(1, 2), keepdims=True), mask.max(axis=(1, 2), keepdims=True)
        mask = (mask - low) / jnp.maximum(high - low, 1e-12)
        return None, model.logit(images * mask[..., None])

    logits = jax.lax.scan(leave, None, jnp.moveaxis(features, -1, 0))[1]  # [D, B]
    return jax.nn.relu(jnp.einsum("bijd,db->bij", features, jax.nn.softmax(logits, axis=0)))
