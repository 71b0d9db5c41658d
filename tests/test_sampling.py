"""Samplers, KL terms and prior: closed forms against Monte Carlo, gradients against finite differences."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from infomask_jax.model import sampling

LOW = float(np.log(0.05 / 0.95))  # the logit of a probability of 0.05
SAMPLERS = ("concrete", "hard_concrete", "straight_through", "gaussian_gate", "sigmoid")


def draws_of(logit: float, count: int, sampler: str, key: int) -> jax.Array:
    """`count` samples of the mask of one cell."""
    return sampling.sample_mask(one_key(key), jnp.full((1, 1, 1, 1), logit), count, sampler)


def one_key(number: int) -> jax.Array:
    """[1]: of the draws of one image."""
    return jax.random.split(jax.random.key(number), 1)


@pytest.mark.parametrize("logit", [-2.0, 0.0, 1.5])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sample_mean_is_pi_in_the_limit(sampler, logit, monkeypatch):
    # Relaxations are unbiased as the temperature falls; the hard draw at any temperature, the sigmoid always.
    monkeypatch.setattr(sampling, "TEMPERATURE", 0.7 if sampler == "straight_through" else 0.01)
    draws = draws_of(logit, 40_000, sampler, 1)
    assert float(draws.min()) >= 0.0 and float(draws.max()) <= 1.0
    np.testing.assert_allclose(draws.mean(), jax.nn.sigmoid(logit), atol=0.012)
    if sampler in ("hard_concrete", "straight_through"):  # reach both ends exactly
        assert (draws == 0).any() and (draws == 1).any()


@pytest.mark.parametrize(("sampler", "samples"), [("concrete", 1), ("concrete", 4), ("gaussian_gate", 5)])
def test_samples_come_in_antithetic_pairs(sampler, samples, monkeypatch):
    """At pi = 1/2 the two of a pair are mirror images; each sample is distributed as alone, the middle one is alone."""
    monkeypatch.setattr(sampling, "TEMPERATURE", 0.1)
    draws = np.asarray(sampling.sample_mask(one_key(8), jnp.zeros((1, 20_000)), samples, sampler)[:, 0])
    half = samples // 2
    np.testing.assert_allclose(draws[:half], 1.0 - draws[samples - half :], atol=1e-6)
    quantiles = np.quantile(draws, [0.1, 0.5, 0.9], axis=1)
    np.testing.assert_allclose(quantiles, quantiles[:, :1] * np.ones(samples), atol=0.15)
    assert np.ptp(draws, axis=0).min() > 0 or samples == 1  # no two samples are the same


@pytest.mark.parametrize("sampler", ["concrete", "hard_concrete", "gaussian_gate", "sigmoid"])
def test_pathwise_gradient_matches_finite_difference(sampler):
    def total(logit):
        # One key for every evaluation is the point: the same noise on both sides of the difference.
        return draws_of(logit, 64, sampler, 3).astype(jnp.float32).sum()

    with jax.debug_key_reuse(False):
        gradient = jax.grad(total)(0.3)
        numeric = (total(0.3 + 1e-2) - total(0.3 - 1e-2)) / 2e-2
    np.testing.assert_allclose(gradient, numeric, rtol=0.02)


def test_hard_draw_has_the_gradient_of_the_concrete_one_and_the_mean_gate_closes():
    def total(sampler):
        return lambda logits: sampling.sample_mask(one_key(4), logits[None], 1, sampler).sum()

    with jax.debug_key_reuse(False):
        logits = jnp.linspace(-2, 2, 16).reshape(16, 1, 1, 1)
        hard, soft = jax.grad(total("straight_through"))(logits), jax.grad(total("concrete"))(logits)
    np.testing.assert_array_equal(hard, soft)
    assert float(jnp.abs(soft).sum()) > 0
    assert sampling.mean_mask(jnp.float32(-4.0), "hard_concrete") == 0.0 < sampling.mean_mask(-4.0, "concrete")


def test_representation_sample_has_posterior_moments():
    mu, log_sigma = jnp.full((20_000, 1, 1, 2), 0.7), jnp.full((20_000, 1, 1, 2), -1.0)
    z = sampling.sample_normal(jax.random.split(jax.random.key(5), 20_000), mu, log_sigma)
    np.testing.assert_allclose(z.mean(), 0.7, atol=0.01)
    np.testing.assert_allclose(z.std(), np.exp(-1.0), atol=0.01)


@settings(deadline=None, max_examples=20)
@given(st.floats(-2, 2), st.floats(-2, 1))
def test_kl_normal_matches_monte_carlo(mu, log_sigma):
    eps = np.random.default_rng(0).standard_normal(200_000)
    z = mu + np.exp(log_sigma) * eps
    ratio = (-0.5 * eps**2 - log_sigma) - (-0.5 * z**2)  # log q(z) - log r(z), constants cancel
    exact = sampling.kl_normal(jnp.full((1, 1, 1, 1), mu), jnp.full((1, 1, 1, 1), log_sigma))[0, 0, 0]
    np.testing.assert_allclose(exact, ratio.mean(), atol=5 * ratio.std() / 200_000**0.5 + 1e-4)


@settings(deadline=None, max_examples=20)
@given(st.floats(-6, 6), st.floats(0.01, 0.99))
def test_kl_bernoulli_matches_monte_carlo(logit, prior):
    pi = 1 / (1 + np.exp(-logit))
    m = np.random.default_rng(0).random(200_000) < pi
    ratio = np.where(m, np.log(pi / prior), np.log((1 - pi) / (1 - prior)))
    exact = sampling.kl_bernoulli(jnp.float32(logit), np.log(prior / (1 - prior)))
    np.testing.assert_allclose(exact, ratio.mean(), atol=5 * ratio.std() / 200_000**0.5 + 1e-4)


def test_kls_are_zero_at_the_prior_and_finite_at_the_extremes():
    np.testing.assert_array_equal(sampling.kl_normal(jnp.zeros((2, 3)), jnp.zeros((2, 3))), 0.0)
    np.testing.assert_allclose(sampling.kl_bernoulli(jnp.float32(LOW), LOW), 0.0, atol=1e-6)
    extremes = jnp.array([-1e4, -100.0, 100.0, 1e4])
    of_logit = jax.vmap(jax.value_and_grad(lambda logit: sampling.kl_bernoulli(logit, LOW)))
    chex.assert_tree_all_finite(of_logit(extremes))


def test_coupled_prior():
    pi = np.random.default_rng(0).uniform(size=(2, 4, 5, 3)).astype(np.float32)
    np.testing.assert_allclose(jax.nn.sigmoid(sampling.mask_prior_logits(pi, LOW, 0.0)), 0.05, rtol=1e-5)
    kernel = np.ones((1, 3, 3, 1))
    kernel[0, 1, 1, 0] = 0
    around, cells = (ndimage.convolve(x, kernel, mode="constant") for x in (pi, np.ones_like(pi)))
    expected = LOW + 3.0 * around / cells
    found = sampling.mask_prior_logits(pi, LOW, 3.0)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    logits, couplings = jnp.array([LOW, 0.0, 1.0]), jnp.array([3.0, 0.0, -2.0])  # of each mask
    own = sampling.mask_prior_logits(pi, logits, couplings)
    np.testing.assert_allclose(own[..., 0], found[..., 0], atol=1e-5)
    np.testing.assert_allclose(own[..., 1], 0.0, atol=1e-6)
    np.testing.assert_allclose(own[..., 2], 1.0 - 2.0 * (expected[..., 2] - LOW) / 3.0, atol=1e-5)
