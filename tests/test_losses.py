"""The objective: values against scikit-learn-free arithmetic, masking, weights, schedule, target NLL."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infomask_jax.config import LossConfig
from infomask_jax.losses import (
    BITS,
    LOG_BETA_BOUND,
    LOG_BETA_STEP,
    NLL_DECAY,
    Constraint,
    adapt_beta,
    beta_scale,
    infomask_loss,
    initial_constraint,
    nll,
)


def fabricate(batch: int = 4, findings: int = 2, seed: int = 0):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    out = {
        "kl_z": jnp.abs(normal(batch, 3, 3)),
        "kl_m": jnp.abs(normal(batch, 3, 3, 1)),
        "mask": jax.nn.sigmoid(normal(batch, 3, 3, 1)),
        "auxiliary_logits": normal(batch, findings),
        "hidden_logits": normal(batch, findings),
        "view_difference": jnp.abs(normal(batch)),
    }
    labels = jnp.asarray(rng.integers(0, 2, (batch, findings)), jnp.float32)
    return (
        normal(batch, findings),
        out,
        {"labels": labels, "label_mask": jnp.ones_like(labels), "valid": jnp.ones(batch)},
    )


@pytest.mark.parametrize(
    ("logit", "label", "expected"),
    [
        (0.0, 1.0, np.log(2)),
        (2.0, 1.0, np.log1p(np.exp(-2.0))),
        (2.0, 0.0, 2.0 + np.log1p(np.exp(-2.0))),
        (-200.0, 1.0, 200.0),
    ],
)
def test_nll_table(logit, label, expected):
    ones = jnp.ones((1, 1))
    np.testing.assert_allclose(nll(ones * logit, ones * label, ones, 1.0), [expected], rtol=1e-6)
    np.testing.assert_allclose(nll(ones * logit, ones * label, ones, 3.0), [expected * (3 if label else 1)], rtol=1e-6)


def test_unknown_label_gives_no_loss_and_no_gradient_even_as_nan():
    logits, labels = jnp.array([[0.3, -0.7]]), jnp.array([[1.0, jnp.nan]])
    mask = jnp.array([[1.0, 0.0]])
    loss, gradient = jax.value_and_grad(lambda logits: nll(logits, labels, mask, 1.0).sum())(logits)
    np.testing.assert_allclose(loss, np.log1p(np.exp(-0.3)), rtol=1e-6)
    chex.assert_tree_all_finite(gradient)
    assert gradient[0, 1] == 0


def test_loss_is_the_weighed_sum_of_its_terms():
    logits, out, batch = fabricate()
    config = LossConfig(beta_z=0.3, beta_m=0.7, auxiliary=0.5, hidden=0.2, consistency=0.6)
    loss, metrics = infomask_loss(config, logits, out, batch, jnp.float32(0.4))
    known = batch["labels"], batch["label_mask"], 1.0
    expected = nll(logits, *known).mean() + 0.5 * nll(out["auxiliary_logits"], *known).mean()
    expected += 0.2 * nll(out["hidden_logits"], *known).mean() + 0.6 * out["view_difference"].mean()
    expected += 0.4 * (0.3 * out["kl_z"].sum((1, 2)).mean() + 0.7 * out["kl_m"].sum((1, 2, 3)).mean())
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["rate_z"], out["kl_z"].sum((1, 2)).mean() * BITS, rtol=1e-5)


@pytest.mark.parametrize("term", ["kl_z", "kl_m", "auxiliary_logits", "hidden_logits", "view_difference"])
def test_zero_weight_removes_the_term_exactly(term):
    logits, out, batch = fabricate()
    weights = {"kl_z": "beta_z", "kl_m": "beta_m", "auxiliary_logits": "auxiliary", "hidden_logits": "hidden"}
    config = dataclasses.replace(LossConfig(), **{weights.get(term, "consistency"): 0.0})

    def loss(values):
        return infomask_loss(config, logits, {**out, term: values}, batch, jnp.float32(1.0))[0]

    np.testing.assert_array_equal(jax.grad(loss)(out[term]), 0.0)
    assert np.isfinite(loss(jnp.full_like(out[term], jnp.inf)))  # 0 * inf would be NaN


def test_padding_changes_nothing():
    logits, out, batch = fabricate(6)
    padded = {**batch, "valid": jnp.array([1.0, 1.0, 1.0, 1.0, 0.0, 0.0])}
    expected = infomask_loss(
        LossConfig(),
        logits[:4],
        jax.tree.map(lambda x: x[:4], out),
        jax.tree.map(lambda x: x[:4], batch),
        jnp.float32(1),
    )
    chex.assert_trees_all_close(infomask_loss(LossConfig(), logits, out, padded, jnp.float32(1)), expected, rtol=1e-6)


def test_beta_waits_then_rises_linearly():
    scale = [float(beta_scale(jnp.float32(step), 100, 0.25, 0.5)) for step in (0, 25, 50, 75, 100)]
    np.testing.assert_allclose(scale, [0, 0, 0.5, 1, 1], atol=1e-6)
    assert (
        float(beta_scale(jnp.float32(0), 100, 0.0, 0.0)) == 0.0
        and float(beta_scale(jnp.float32(1), 100, 0.0, 0.0)) == 1.0
    )


def adapted(values, target: float = 0.2, scale: float = 1.0, start: Constraint | None = None) -> list[Constraint]:
    """The constraint after each batch NLL of `values`."""

    def step(constraint, value):
        new = adapt_beta(constraint, target, value, jnp.float32(scale))
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
    uncharged = adapted([0.05] * 100, scale=0.0)[-1]
    assert uncharged.log_beta == 0.0 and uncharged.average_nll == pytest.approx(0.05, abs=0.002)


def test_one_adaptation_is_its_formula():
    start = Constraint(jnp.float32(0.7), jnp.float32(0.3))
    found = adapt_beta(start, 0.2, jnp.float32(0.1), jnp.float32(0.5))
    average = NLL_DECAY * 0.3 + (1 - NLL_DECAY) * 0.1
    np.testing.assert_allclose(found, (0.7 + 0.5 * LOG_BETA_STEP * np.log(0.2 / average), average), rtol=1e-5)


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
