"""The one forward pass: its maps, rates and shifts, and every image in its place."""

import jax
import numpy as np
import pytest

from infomask_jax import datasets, inference, pipeline
from infomask_jax.explain import finer, heat_maps
from infomask_jax.losses import BITS
from infomask_jax.model import build
from infomask_jax.run import Run


@pytest.fixture(scope="module")
def run(trained) -> Run:
    return Run.open(trained)


def test_maps_are_means_over_shifts_of_single_passes(run):
    """Against a plain loop over shifts that moves the image by hand."""
    config, images = run.config, np.random.default_rng(0).normal(size=(2, 32, 32, 1)).astype(np.float32)
    stride, model, params = config.model.stride, build(config.model, 1), {"params": run.params}
    logits, maps, rates = jax.jit(inference.forward(config.model, 1, 2))(run.params, images)
    once = jax.jit(lambda images: model.apply(params, images, train=False))
    expected_logits, out = once(images)
    np.testing.assert_allclose(logits, expected_logits, atol=1e-6)
    bits = np.stack([out["kl_z"].sum((1, 2)), out["kl_m"].sum((1, 2, 3))], axis=-1) * BITS
    np.testing.assert_allclose(rates, bits, rtol=1e-5)
    expected, padded = 0.0, np.pad(images, ((0, 0), (stride, stride), (stride, stride), (0, 0)), mode="edge")
    for dy in (-1, 1):  # a quarter of the cell of 4 pixels to either side
        for dx in (-1, 1):
            moved = padded[:, stride + dy : stride + dy + 32, stride + dx : stride + dx + 32]
            mask = np.asarray(heat_maps(once(moved)[1], "infomask")["infomask"])[..., 0]
            expected += np.einsum("yi,xj,bij->byx", finer(8, 2, dy / 4), finer(8, 2, dx / 4), mask) / 4
    np.testing.assert_allclose(maps["infomask"][..., 0], expected, atol=1e-6)


def test_every_model_is_compiled_once_and_a_plain_one_has_no_rates(run):
    data, programs = datasets.load("synthetic", run.folder.parent / "data"), []
    for split in ("val", "test"):
        found = inference.predict(run.config, run.params, data.source(split, pipeline.FIELDS), 1)
        assert found.maps["infomask"].shape == (data.splits[split], 16, 16, 1) and found.rates.shape[1] == 2
        programs.append(inference._compiled(inference.forward(run.config.model, 1, 2))._cache_size())
    assert programs[0] == programs[1]
    plain = inference.predict(run.plain.config, run.plain.params, data.source("val"), 1)
    assert np.isnan(plain.rates).all() and set(plain.maps) == {"cam"}
    parts = inference.joined([plain, plain])
    assert len(parts.logits) == len(parts.maps["cam"]) == len(parts.rates) == 2 * data.splits["val"]


def test_images_out_of_order_are_an_error(run, monkeypatch):
    """Not maps of other images: as where devices are not in the order of the processes that feed them."""
    data, fetch = datasets.load("synthetic", run.folder.parent / "data"), inference.parallel.fetch
    monkeypatch.setattr(inference.parallel, "fetch", lambda tree: jax.tree.map(lambda x: x[::-1], fetch(tree)))
    with pytest.raises(RuntimeError, match="out of order"):
        inference.predict(run.config, run.params, data.source("test"), 1)
