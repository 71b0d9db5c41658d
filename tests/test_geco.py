"""A target NLL: which way the betas move, how far, and where they end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infomask_jax.geco import LOG_BETA_BOUND, LOG_BETA_STEP, Constraint, adapt_beta, initial_constraint


def adapted(values, target: float = 0.2, charge: float = 1.0, start: Constraint | None = None) -> list[Constraint]:
    """The constraint after each batch NLL of `values`."""

    def step(constraint, value):
        new = adapt_beta(constraint, target, value, jnp.float32(charge))
        return new, new

    states = jax.lax.scan(step, start or initial_constraint(target), jnp.asarray(values, jnp.float32))[1]
    return [Constraint(*pair) for pair in zip(*(np.asarray(leaf) for leaf in states), strict=True)]


@pytest.mark.parametrize(("value", "sign"), [(0.1, 1), (0.4, -1)])
def test_beta_rises_under_the_target_and_falls_above_it(value, sign):
    factors = [0.0, *(constraint.log_beta for constraint in adapted([value] * 50))]
    assert (sign * np.diff(factors) > 0).all()
    assert abs(factors[-1] - factors[-2]) == pytest.approx(LOG_BETA_STEP * np.log(2), rel=0.15)


def test_beta_rests_on_the_target_and_until_the_rates_are_charged():
    np.testing.assert_allclose(adapted([0.2] * 100)[-1], (0.0, 0.2), atol=1e-6)
    uncharged = adapted([0.05] * 100, charge=0.0)[-1]
    assert uncharged.log_beta == 0.0 and uncharged.average_nll == pytest.approx(0.05, abs=0.002)


@pytest.mark.parametrize(("value", "sign"), [(0.0, 1), (1e30, -1)])
def test_beta_is_bounded_and_turns_back_at_once(value, sign):
    factors = [constraint.log_beta for constraint in adapted([value] * 3000)]
    assert np.abs(np.diff([0.0, *factors])).max() <= LOG_BETA_STEP * 1.001
    assert factors[-1] == np.float32(sign * LOG_BETA_BOUND)
    start = Constraint(jnp.float32(factors[-1]), jnp.float32(0.2))
    turned = adapted([0.2 * (4.0 if sign > 0 else 0.25)], start=start)[0].log_beta
    assert abs(turned) < LOG_BETA_BOUND


@pytest.mark.parametrize("target", [0.05, 0.2, 0.5])
def test_constrained_toy_pays_the_target_whatever_its_beta(target):
    """NLL exp(-r) at a rate of r nats, seen with noise: gradient steps on r end at r = -log(target)."""

    def step(carry, noise):
        rate, constraint = carry
        paid = jnp.exp(-rate)
        gradient = jax.grad(lambda r: jnp.exp(-r) + jnp.exp(constraint.log_beta) * 0.02 * r)(rate)
        constraint = adapt_beta(constraint, target, paid * jnp.exp(0.5 * noise - 0.125), jnp.float32(1.0))
        return (rate - 0.2 * gradient, constraint), paid

    start = jnp.float32(1.0), initial_constraint(target)
    paid = jax.lax.scan(step, start, jax.random.normal(jax.random.key(0), (2000,)))[1]
    assert np.mean(paid[-500:]) == pytest.approx(target, rel=0.15)
