"""The objective: values against plain arithmetic, masking, weights, schedule."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infomask_jax.config import LossConfig
from infomask_jax.losses import BITS, RAMP, infomask_loss, kl_charge, nll


def fabricate(batch: int = 4, findings: int = 2):
    rng = np.random.default_rng(0)

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
    whole = jax.tree.map(lambda x: x[:4], (logits, out, batch))
    expected = infomask_loss(LossConfig(), *whole, jnp.float32(1))
    chex.assert_trees_all_close(infomask_loss(LossConfig(), logits, out, padded, jnp.float32(1)), expected, rtol=1e-6)


def test_kls_wait_then_are_charged_linearly():
    steps = jnp.array([0.0, 25.0, 25.0 + 50.0 * RAMP, 25.0 + 100.0 * RAMP, 100.0])
    np.testing.assert_allclose(kl_charge(steps, 100, 0.25), [0, 0, 0.5, 1, 1], atol=1e-6)
    np.testing.assert_allclose(kl_charge(steps, 100, 1.0), 0.0)


def test_samples_of_the_mask_are_averaged_as_losses_not_as_logits():
    logits, out, batch = fabricate()
    samples = jnp.stack([logits - 2.0, logits + 2.0])
    _, metrics = infomask_loss(LossConfig(), logits, out | {"sample_logits": samples}, batch, jnp.float32(1))
    each = [nll(one, batch["labels"], batch["label_mask"], 1.0).mean() for one in samples]
    np.testing.assert_allclose(metrics["nll"], np.mean(each), rtol=1e-5)
