"""The stochastic pieces as pure functions: samplers of mask and representation, their KL terms, and pooling.

Shapes: B images, h x w cells of the latent grid, C latent channels, K findings, M masks (1, or K: one per finding).
All of this is float32. The samplers and priors are our reconstruction: the paper's are not public to us.
"""

import math

import jax
import jax.numpy as jnp

GAMMA, ZETA = -0.1, 1.1  # interval to which the hard concrete distribution is stretched (Louizos et al. 2018)


def sample_mask(key: jax.Array, logits: jax.Array, sampler: str, temperature: float) -> jax.Array:
    """Reparameterized draws of the mask, differentiable in the logits: S samples in antithetic pairs.

    The noise of the second half is minus that of the first: half as many random numbers are drawn. Each sample is
    distributed as if it were the only one; the mean of a pair varies less than that of two independent samples.

    Args:
      key: typed PRNG key; unused by `sigmoid`.
      logits: [S, ...] posterior logits of each sample, pi = sigmoid(logits).
      sampler: `concrete` (Maddison et al. 2017), `hard_concrete` (Louizos et al. 2018), `straight_through` (Bengio et
        al. 2013: hard draw forward, gradient of the concrete draw backward), `gaussian_gate` (Yamada et al. 2020) or
        `sigmoid` (no noise).
      temperature: tau of the concrete family, or the standard deviation of the Gaussian gate's noise.

    Returns:
      The same shape, in [0, 1].
    """
    if sampler == "sigmoid":
        return jax.nn.sigmoid(logits)

    def noise(draw):
        samples, *shape = logits.shape
        half = draw(key, ((samples + 1) // 2, *shape))
        return jnp.concatenate([half, -half[: samples // 2]])

    if sampler == "gaussian_gate":
        return jnp.clip(jax.nn.sigmoid(logits) + temperature * noise(jax.random.normal), 0.0, 1.0)
    # Logistic noise is the difference of two Gumbels: sigmoid((logit + noise) / tau) is binary Gumbel-softmax.
    soft = jax.nn.sigmoid((logits + noise(jax.random.logistic)) / temperature)
    if sampler == "concrete":
        return soft
    if sampler == "hard_concrete":
        return jnp.clip(soft * (ZETA - GAMMA) + GAMMA, 0.0, 1.0)
    if sampler == "straight_through":
        hard = (soft > 0.5).astype(soft.dtype)  # exactly Bernoulli(pi)
        return hard + soft - jax.lax.stop_gradient(soft)
    raise ValueError(f"unknown sampler {sampler!r}")


def mean_mask(logits: jax.Array, sampler: str) -> jax.Array:
    """The mask used in evaluation, [B, h, w, M]: pi, or Louizos' stretched and clipped gate for `hard_concrete`."""
    pi = jax.nn.sigmoid(logits)
    return jnp.clip(pi * (ZETA - GAMMA) + GAMMA, 0.0, 1.0) if sampler == "hard_concrete" else pi


def sample_normal(key: jax.Array, mu: jax.Array, log_sigma: jax.Array) -> jax.Array:
    """z = mu + sigma * eps, eps ~ N(0, I) (Kingma & Welling 2014). Shapes [..., C]."""
    return mu + jnp.exp(log_sigma) * jax.random.normal(key, mu.shape)


def kl_normal(mu: jax.Array, log_sigma: jax.Array) -> jax.Array:
    """KL(N(mu, sigma^2) || N(0, I)) in nats, summed over channels: [B, h, w, C] -> [B, h, w]."""
    terms = 0.5 * (mu**2 + jnp.exp(2 * log_sigma) - 1.0) - log_sigma
    # A sum as a product, for XLA:CPU takes several times as long over a short axis; in full precision on accelerators.
    return jnp.matmul(terms, jnp.ones(mu.shape[-1]), precision="highest")


def kl_bernoulli(logits: jax.Array, prior_logits: jax.Array) -> jax.Array:
    """KL(Bern(sigmoid(logits)) || Bern(sigmoid(prior_logits))) in nats, elementwise; finite for finite logits."""

    def softplus(x):  # to 1e-7 nats, with log and not log1p, which takes XLA:CPU eight times as long
        return jnp.maximum(x, 0.0) + jnp.log(1.0 + jnp.exp(-jnp.abs(x)))

    # With log pi = l - softplus(l), log(1 - pi) = -softplus(l), the two logarithms of each side meet.
    return jax.nn.sigmoid(logits) * (logits - prior_logits) + softplus(prior_logits) - softplus(logits)


def mask_prior_logits(pi: jax.Array, logit: float | jax.Array, coupling: float | jax.Array) -> jax.Array:
    """Prior logit of each cell, logit + coupling * (mean pi of the cells around it): [B, h, w, M] -> the same.

    With a coupling, a cell among open ones is cheap to open and a lone one is not: findings are connected. This is the
    conditional of an Ising prior with the neighbours at their means; KL_m against it is no longer the KL of a joint
    prior (pseudo-likelihood). Ours. The neighbours are the eight around a cell, at the edge those that exist.

    Args:
      logit: log(rho / (1 - rho)) of the rate rho at which cells among closed ones are open, a number or [M].
      coupling: a number or [M].
    """

    def total(x):  # sum over the 3 x 3 cells around each
        return jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")

    neighbours = total(jnp.ones((1, *pi.shape[1:3], 1))) - 1.0  # XLA folds it: a batch's would take a second
    around = (total(pi) - pi) / jnp.maximum(neighbours, 1.0)
    shape = (1, 1, 1, -1)
    return jnp.reshape(logit, shape) + jnp.reshape(coupling, shape) * around


def cells_last(x: jax.Array) -> jax.Array:
    """[..., h, w, K] -> [..., K, h*w]: the long axis last, where vector units work on it. With one finding, free."""
    *lead, height, width, findings = x.shape
    return jnp.moveaxis(x, -1, -3).reshape(*lead, findings, height * width)


def pool(cells: jax.Array, pooling: str, sharpness: float, topk: float, weights: jax.Array | None = None) -> jax.Array:
    """Class evidence of N cells [..., K, N] -> logits [..., K].

    lse: (1/r) log mean_n exp(r e_n) (Pinheiro & Collobert 2015), between mean (r -> 0) and max (r -> infinity).
    topk: mean of the ceil(topk * N) largest cells. noisy_or: see there. attention: sum_n a_n e_n, with `weights` a
    [..., K, N], summing to 1 over the cells; for a linear head the same as Ilse et al. 2018, who pool features.
    """
    if pooling == "lse":
        return jax.nn.logsumexp(sharpness * cells, axis=-1, b=1.0 / cells.shape[-1]) / sharpness
    if pooling == "max":
        return cells.max(axis=-1)
    if pooling == "mean":
        return cells.mean(axis=-1)
    if pooling == "topk":
        count = max(1, math.ceil(round(topk * cells.shape[-1], 6)))
        return jax.lax.top_k(cells, count)[0].mean(axis=-1)
    if pooling == "noisy_or":
        return noisy_or(cells)
    if pooling == "attention":
        return jnp.sum(weights * cells, axis=-1)
    raise ValueError(f"unknown pooling {pooling!r}")


def noisy_or(cells: jax.Array) -> jax.Array:
    """Logit of p = 1 - prod_n (1 - p_n) with p_n = sigmoid(cell n): [..., N] -> [...] (MIL of Li et al. 2018).

    In log space, for float32 has no room for a product of hundreds of factors: with s = sum_n softplus(e_n) =
    -log(1 - p), the logit is log(exp(s) - 1). Both ends stay exact, to e_n = -1e4 and beyond: log s is its own sum.
    """
    low = -15.0  # below it softplus(e) = exp(e) to float32
    log_terms = jnp.where(cells < low, cells, jnp.log(jax.nn.softplus(jnp.maximum(cells, low))))
    log_s = jax.nn.logsumexp(log_terms, axis=-1)
    s = jnp.exp(jnp.maximum(log_s, low))
    return jnp.where(log_s < low, log_s, s + jnp.log(-jnp.expm1(-s)))
