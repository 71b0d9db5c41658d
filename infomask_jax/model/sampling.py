"""Samplers of z and m, their KL terms, and the prior of m. Samplers and prior are ours: the paper's are not public."""

from collections import namedtuple

import flax.linen as nn
import jax
import jax.numpy as jnp

GAMMA, ZETA = -0.1, 1.1  # interval to which the hard concrete distribution is stretched (Louizos et al. 2018)
TEMPERATURE = 0.5  # of the relaxed samplers; standard deviation of the Gaussian gate's noise
Keys = namedtuple("Keys", "hide z mask", defaults=(None, None, None))  # [B] each: of the draws of each image


def image_keys(module: nn.Module, images, features, positions) -> Keys:
    """Keys from the rng stream `sample` for images (or their features) at `positions` of the global batch."""
    positions = jnp.arange(len(images if features is None else features)) if positions is None else positions
    keys = jax.vmap(jax.random.fold_in, (None, 0))(module.make_rng("sample"), positions)
    return Keys(*jax.vmap(lambda key: tuple(jax.random.split(key, 3)))(keys))


def sample_normal(keys: jax.Array, mu: jax.Array, log_sigma: jax.Array) -> jax.Array:
    """z = mu + sigma * eps, eps ~ N(0, I) (Kingma & Welling 2014). keys [B], the others [B, ..., C]."""
    eps = jax.vmap(lambda key: jax.random.normal(key, mu.shape[1:]))(keys)
    return mu + jnp.exp(log_sigma) * eps


def kl_normal(mu: jax.Array, log_sigma: jax.Array) -> jax.Array:
    """KL(N(mu, sigma^2) || N(0, I)) in nats, summed over channels: [..., C] -> [...]."""
    return jnp.sum(0.5 * (mu**2 + jnp.exp(2 * log_sigma) - 1.0) - log_sigma, axis=-1)


def sample_mask(keys: jax.Array, logits: jax.Array, samples: int, sampler: str) -> jax.Array:
    """Reparameterized draws of the mask, in 0 .. 1: keys [B], logits [B, ...] -> [samples, B, ...].

    concrete: Maddison et al. 2017; hard_concrete: Louizos et al. 2018; straight_through: a hard draw with the gradient
    of the concrete one, Bengio et al. 2013; gaussian_gate: Yamada et al. 2020; sigmoid: no noise."""
    if sampler == "sigmoid":
        return jnp.broadcast_to(jax.nn.sigmoid(logits), (samples, *logits.shape))
    draw = jax.random.normal if sampler == "gaussian_gate" else jax.random.logistic  # the difference of two Gumbels
    shape = (samples + 1) // 2, *logits.shape[1:]
    half = jax.vmap(lambda key: draw(key, shape), out_axes=1)(keys)
    noise = jnp.concatenate([half, -half[: samples // 2]])  # antithetic pairs
    soft = jax.nn.sigmoid((logits + noise) / TEMPERATURE)
    if sampler == "concrete":
        return soft
    if sampler == "hard_concrete":
        return jnp.clip(soft * (ZETA - GAMMA) + GAMMA, 0.0, 1.0)
    if sampler == "straight_through":
        hard = (soft > 0.5).astype(soft.dtype)  # exactly Bernoulli(pi)
        return hard + soft - jax.lax.stop_gradient(soft)
    if sampler == "gaussian_gate":
        return jnp.clip(jax.nn.sigmoid(logits) + TEMPERATURE * noise, 0.0, 1.0)
    raise ValueError(f"unknown sampler {sampler!r}")


def mean_mask(logits: jax.Array, sampler: str) -> jax.Array:
    """The mask in evaluation, the same shape: pi, or Louizos' stretched and clipped gate for hard_concrete."""
    pi = jax.nn.sigmoid(logits)
    return jnp.clip(pi * (ZETA - GAMMA) + GAMMA, 0.0, 1.0) if sampler == "hard_concrete" else pi


def kl_bernoulli(logits: jax.Array, prior_logits: jax.Array) -> jax.Array:
    """KL(Bern(sigmoid(logits)) || Bern(sigmoid(prior_logits))) in nats, elementwise; finite for finite logits."""
    return jax.nn.sigmoid(logits) * (logits - prior_logits) + jax.nn.softplus(prior_logits) - jax.nn.softplus(logits)


def mask_prior_logits(pi: jax.Array, logit: float | jax.Array, coupling: float | jax.Array) -> jax.Array:
    """Prior logit of each cell, logit + coupling * (mean pi of the up to eight cells around it): [B, h, w, M] -> same.

    The conditional of an Ising prior with the neighbours at their means (ours): a cell among open ones is cheap to
    open. KL_m against it is a price, no longer a bound. logit and coupling are numbers or [M]."""

    def total(x):  # over the 3 x 3 cells around each
        return jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")

    neighbours = total(jnp.ones((1, *pi.shape[1:3], 1))) - 1.0
    return logit + coupling * (total(pi) - pi) / jnp.maximum(neighbours, 1.0)
