"""Pooling: order of the poolings, and noisy-or against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st

from infomask_jax import pipeline
from infomask_jax.model.pooling import noisy_or, pool
from infomask_jax.presets import changed
from infomask_jax.train import create_state, make_train_step


def grid(values) -> jax.Array:
    """Cells of one finding in a row: [..., N] -> [..., 1, N, 1]."""
    return jnp.asarray(values, jnp.float32)[..., None, :, None]


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000), st.floats(0.1, 5))
def test_lse_is_the_log_of_the_mean_and_lies_between_mean_and_max(seed, spread):
    evidence = np.random.default_rng(seed).normal(size=(2, 4, 5, 3)) * spread
    pooled = {name: np.asarray(pool(jnp.asarray(evidence, jnp.float32), name)) for name in ("lse", "mean", "max")}
    np.testing.assert_allclose(pooled["lse"], np.log(np.exp(evidence).mean(axis=(1, 2))), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(pooled["mean"], evidence.mean(axis=(1, 2)), atol=1e-5)
    assert (pooled["mean"] <= pooled["lse"] + 1e-4).all() and (pooled["lse"] <= pooled["max"] + 1e-4).all()


@pytest.mark.parametrize("pooling", ["lse", "max", "topk", "mean", "noisy_or"])
def test_each_finding_is_pooled_over_its_own_cells(pooling):
    cells = jax.random.normal(jax.random.key(0), (4, 2, 6, 5, 3))  # samples, images, rows, columns, findings
    pooled = pool(cells, pooling)
    assert pooled.shape == (4, 2, 3)
    np.testing.assert_allclose(pooled[2, 1, 1], pool(cells[2, 1, :, :, 1:2], pooling)[0], rtol=1e-5)


def test_topk_averages_the_largest_sixteenth():
    assert pool(grid(np.arange(32.0)), "topk")[0] == 30.5
    assert pool(grid(np.arange(16.0)), "topk")[0] == 15.0
    assert pool(grid(np.arange(17.0)), "topk")[0] == 15.5  # begun sixteenths count


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000), st.floats(-12, 6), st.floats(0.1, 6))
def test_noisy_or_is_the_probability_that_some_cell_fires(seed, centre, spread):
    evidence = np.random.default_rng(seed).normal(size=(2, 3, 20)) * spread + centre
    absent = np.sum(-np.logaddexp(0.0, evidence), axis=-1)  # log(1 - p), float64
    exact = np.log(-np.expm1(absent)) - absent
    np.testing.assert_allclose(pool(grid(evidence), "noisy_or")[..., 0], exact, rtol=1e-5, atol=1e-5)


def test_noisy_or_is_exact_and_has_its_gradient_at_the_extremes():
    """d logit / d e_i = p_i / p: one cell alone passes its evidence on, cells that are all sure share nothing."""
    lowest = np.array([[-1e4], [-1e4 - 1.0]])
    np.testing.assert_allclose(noisy_or(jnp.full((7, 1), -1e4)), -1e4 + np.log(7.0), rtol=1e-6)
    np.testing.assert_allclose(pool(grid(lowest), "noisy_or")[:, 0], lowest[:, 0], rtol=1e-6)
    np.testing.assert_allclose(noisy_or(jnp.full((7, 1), 1e4)), 7e4, rtol=1e-6)
    for cells in ([-1e4, -1e4], [-16.0, -14.0], [-15.0, 2.0], [-40.0, 1e4], [1e4, 1e4], [0.3, -0.7]):
        e = np.array(cells)
        p = np.exp(-np.logaddexp(0.0, -e))
        whole = -np.expm1(-np.logaddexp(0.0, e).sum())
        expected = p / whole if whole > 0 else np.exp(e - np.logaddexp.reduce(e))
        gradient = jax.grad(lambda e: noisy_or(e[:, None]).sum())(jnp.asarray(e, jnp.float32))
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)


def test_max_pooling_trains_in_a_compiled_step(tmp_path, examples):
    """Its gradient must not look for the cell that equals the maximum: compiled, the two may differ by rounding."""
    config = changed(tiny_config(tmp_path), {"model.pooling": "max", "data.image_size": 16})
    batch = next(pipeline.train_batches(examples, config.data, seed=0))
    _, metrics = jax.jit(make_train_step(config))(create_state(config, 1), batch)
    assert np.isfinite(metrics["grad_norm"]) and metrics["grad_norm"] > 0
