"""Evidence of cells -> one logit per finding."""

import math

import jax
import jax.numpy as jnp

TOP_SHARE = 0.0625  # of the cells, averaged by topk


def pool(cells: jax.Array, pooling: str) -> jax.Array:
    """[..., h, w, K] -> logits [..., K].

    lse: log mean exp (Pinheiro & Collobert 2015, r = 1), between mean and max. topk: mean of the largest cells.
    noisy_or: logit of p = 1 - prod_n (1 - sigmoid(cell n)) (Li et al. 2018).
    """
    *lead, height, width, findings = cells.shape
    cells = cells.reshape(*lead, height * width, findings)
    if pooling == "lse":
        return jax.nn.logsumexp(cells, axis=-2) - math.log(height * width)
    if pooling == "mean":
        return cells.mean(axis=-2)
    if pooling in ("max", "topk"):
        # max too: the gradient of jnp.max looks for cells that equal it, and in a compiled step none need be equal
        count = 1 if pooling == "max" else math.ceil(TOP_SHARE * height * width)
        return jax.lax.top_k(cells.swapaxes(-1, -2), count)[0].mean(axis=-1)
    if pooling == "noisy_or":
        return noisy_or(cells)
    raise ValueError(f"unknown pooling {pooling!r}")


def noisy_or(cells: jax.Array) -> jax.Array:
    """[..., N, K] -> [..., K]: log(exp(s) - 1) with s = sum_n softplus(e_n) = -log(1 - p), exact in float32: below -15,
    softplus(e) = exp(e) and log(exp(s) - 1) = log s."""
    low = -15.0
    log_terms = jnp.where(cells < low, cells, jnp.log(jax.nn.softplus(jnp.maximum(cells, low))))
    log_s = jax.nn.logsumexp(log_terms, axis=-2)
    s = jnp.exp(jnp.maximum(log_s, low))
    return jnp.where(log_s < low, log_s, s + jnp.log(-jnp.expm1(-s)))
