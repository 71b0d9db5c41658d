"""InfoMask's forward pass: shapes, what closed cells pass, what evaluation needs."""

import dataclasses
from functools import cache, partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infomask_jax.config import ModelConfig
from infomask_jax.explain import heat_maps
from infomask_jax.model import build as build_model
from infomask_jax.model import infomask, views
from infomask_jax.model.encoder import Encoder
from infomask_jax.model.infomask import ABSENT, LOGIT_BOUND, MASK_LOGIT
from infomask_jax.model.views import has_content, random_blocks

TINY = ModelConfig(width=8, stride=4, latent_channels=5)
KINDS = ("infomask", "vib", "plain")  # with two views


def of(config: ModelConfig, findings: int):
    """The model with one block a stage, which compiles in half of the time."""
    return build_model(config, findings, Encoder(config.width, config.stride, config.dtype, depth=1))


def build(findings: int = 3, size: int = 16, **changes):
    model = of(dataclasses.replace(TINY, **changes), findings)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, size, size, 1)), jnp.float32)
    return model, jax.tree.map(lambda x: x, parameters(model)), images  # a dictionary that a test may change


@cache
def parameters(model) -> dict:
    key = jax.random.key(0, impl="rbg")  # whose draws compile at once
    return jax.jit(partial(model.init, train=False))(key, jnp.zeros((1, 32, 32, 1)))["params"]


@partial(jax.jit, static_argnums=(0, 3))
def _run(model, params, images, seed, options):
    options |= {"train": False} if seed is None else {"train": True, "rngs": {"sample": jax.random.key(seed)}}
    return model.apply({"params": params}, images, **options)


def run(model, params, images, seed=None, **options):
    """Logits and `out`, in training with a seed; compiled once a model."""
    return _run(model, params, images, seed, options)


@pytest.fixture
def patched(monkeypatch):
    """`monkeypatch`, of what compiled programs have inside."""
    _run.clear_cache()
    yield monkeypatch
    _run.clear_cache()


@pytest.mark.parametrize(
    ("kind", "per_finding", "dtype"),
    [(kind, False, "float32") for kind in (*KINDS, "attention_mil")]
    + [("infomask", True, "bfloat16"), ("plain", True, "bfloat16")],
)
def test_contract_of_outputs(kind, per_finding, dtype):
    two_views = kind != "attention_mil"
    model = of(dataclasses.replace(TINY, kind=kind, mask_per_finding=per_finding, dtype=dtype, two_views=two_views), 3)

    def whole(key):
        images = jnp.zeros((2, 16, 16, 1))
        params = model.init(key, images, train=False)
        logits, out = model.apply(params, images, train=True, rngs={"sample": key})
        return logits, out, heat_maps(out, kind)

    with jax.debug_key_reuse(False):
        logits, out, maps = jax.eval_shape(whole, jax.random.key(0))
    count = 3 if per_finding and kind == "infomask" else 1
    channels = 5 if kind in ("infomask", "vib") else 16
    chex.assert_shape(logits, (2, 3))
    chex.assert_shape([out["mask"], out["mask_logits"], out["kl_m"]], (2, 4, 4, count))
    chex.assert_shape([out["mu"], out["log_sigma"]], (2, 4, 4, channels))
    chex.assert_shape(out["kl_z"], (2, 4, 4))
    chex.assert_shape(out["features"], (2, 4, 4, 16))
    assert {x.dtype for x in (logits, *out.values())} == {jnp.dtype("float32")}
    assert ("auxiliary_logits" in out) == ("sample_logits" in out) == (kind == "infomask")
    assert ("hidden_logits" in out) == ("view_difference" in out) == two_views
    if kind == "infomask":
        chex.assert_shape(out["sample_logits"], (4, 2, 3))
    for name, found in maps.items():
        chex.assert_shape(found, (2, 4, 4, 3 if name.endswith(("cam", "evidence", "attention")) else count))


def test_evidence_is_that_of_a_drawn_z():
    bound = 6.0
    options = {"two_views": False, "close_empty": False, "teach_through_mask": True}
    model, params, images = build(sampler="sigmoid", mask_samples=1, evidence_bound=bound, **options)
    params["log_sigma"]["bias"] = jnp.zeros_like(params["log_sigma"]["bias"])
    keys, features = jax.random.split(jax.random.key(3), 4000), run(model, params, images)[1]["features"]

    def forward(key):
        return model.apply({"params": params}, None, train=True, rngs={"sample": key}, features=features)[1]

    drawn = jax.jit(jax.vmap(lambda key: forward(key)["evidence"]))(keys)
    out = jax.jit(forward)(keys[0])
    noise = np.random.default_rng(1).normal(size=(4000, *out["mu"].shape))
    z = np.asarray(out["mu"]) + np.exp(out["log_sigma"]) * noise  # every channel for itself
    evidence = z @ np.asarray(params["head"]["kernel"])
    evidence = bound * np.tanh(evidence / bound)
    expected = np.asarray(out["mask"]) * evidence + np.asarray(params["closed_evidence"])
    deviation = expected.std(axis=0)
    np.testing.assert_allclose((drawn.mean(axis=0) - expected.mean(axis=0)) / deviation, 0.0, atol=0.1)
    np.testing.assert_allclose(drawn.std(axis=0) / deviation, 1.0, atol=0.1)


def test_closed_cell_passes_no_gradient(patched):
    """Where the mask is exactly 0, neither the encoder nor the representation gets a gradient from the logits."""
    patched.setattr(infomask, "LOGIT_BOUND", 200.0)
    model, params, images = build(sampler="hard_concrete", teach_through_mask=True)
    params["mask"] = {"kernel": jnp.zeros((16, 1)), "bias": jnp.full(1, -100.0)}

    def logit_sum(params):
        logits, out = run(model, params, images, 1)
        return logits.sum(), out

    gradient, out = jax.jit(jax.grad(logit_sum, has_aux=True))(params)
    np.testing.assert_array_equal(out["mask"], 0.0)
    for name in ("encoder", "mu", "log_sigma", "mask"):
        chex.assert_trees_all_equal(gradient[name], jax.tree.map(jnp.zeros_like, gradient[name]))
    assert float(jnp.abs(gradient["closed_evidence"]).sum()) > 0


def test_representation_rate_is_weighed_by_the_probability_of_an_open_cell():
    model, params, images = build()
    params["mask"]["kernel"] = jnp.zeros_like(params["mask"]["kernel"])
    rates = {}
    for bias in (-100.0, 100.0):  # pi at its bounds
        params["mask"]["bias"] = jnp.full(1, bias)
        rates[bias] = float(run(model, params, images)[1]["kl_z"].sum())
    model, vib, _ = build(kind="vib")
    full = run(model, {k: params[k] for k in vib}, images)[1]["kl_z"]
    closed = float(jax.nn.sigmoid(-LOGIT_BOUND))
    np.testing.assert_allclose(rates[-100.0], closed * float(full.sum()), rtol=1e-4)
    np.testing.assert_allclose(rates[100.0], (1 - closed) * float(full.sum()), rtol=1e-4)


@pytest.mark.parametrize("per_finding", [False, True])
def test_evidence_adds_to_the_mask_logits(per_finding):
    """Of the posterior mean, before masking, in training; the largest where findings share the mask."""
    model, params, images = build(mask_evidence=0.7, mask_per_finding=per_finding, evidence_bound=3.0)
    _, out = run(model, params, images, 1)
    evidence = 3.0 * np.tanh(np.asarray(out["mu"]) @ np.asarray(params["head"]["kernel"]) / 3.0)
    added = evidence if per_finding else evidence.max(axis=-1, keepdims=True)
    expected = LOGIT_BOUND * np.tanh((MASK_LOGIT + 0.7 * added) / LOGIT_BOUND)
    np.testing.assert_allclose(out["mask_logits"], expected, rtol=1e-4)


def test_what_teaches_what():
    """In training the masked likelihood teaches the mask alone (and, through its logits, the encoder), and the mask
    does not teach the evidence that it reads. In evaluation gradients are of the whole function, as attributions need
    them, as they are with `teach_through_mask`."""
    classifier, names = {"head", "mu", "log_sigma"}, ("logits", "auxiliary_logits", "mask")

    def slopes(seed, **changes):
        """The largest gradient of each part of the parameters, by output."""
        model, params, images = build(mask_evidence=0.7, **changes)
        params["mask"]["kernel"] = jnp.ones_like(params["mask"]["kernel"])  # zero at first

        def sums(params):
            logits, out = run(model, params, images, seed)
            out |= {"logits": logits}
            return jnp.stack([out[name].sum() for name in names if name in out])

        largest = {}
        for part, tree in jax.jit(jax.jacrev(sums))(params).items():
            largest[part] = np.max([np.abs(x).reshape(len(x), -1).max(axis=1) for x in jax.tree.leaves(tree)], axis=0)
        return [dict(zip(largest, values, strict=True)) for values in zip(*largest.values(), strict=True)]

    logits, auxiliary, mask = slopes(3)
    assert all(logits[part] == mask[part] == 0 < auxiliary[part] for part in classifier)
    assert all(logits[part] > 0 for part in ("mask", "encoder", "closed_evidence")) and mask["mask"] > 0
    assert all(slopes(3, teach_through_mask=True)[0][part] > 0 for part in classifier)
    assert slopes(None)[-1]["head"] > 0


def test_gradient_is_the_slope_of_the_loss():
    """Where nothing is stopped: along one direction against a finite difference."""
    model, params, images = build(findings=1, teach_through_mask=True, mask_evidence=0.0)
    direction = jax.tree.map(lambda p: 3e-4 * jnp.cos(jnp.arange(p.size, dtype=jnp.float32)).reshape(p.shape), params)

    def total(params):
        logits, out = run(model, params, images, 2)
        return (logits**2).sum() + out["kl_z"].mean() + out["kl_m"].sum()

    slope = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, jax.jit(jax.grad(total))(params), direction)))
    up, down = (total(jax.tree.map(lambda p, d, s=s: p + s * d, params, direction)) for s in (1, -1))
    np.testing.assert_allclose((up - down) / 2, slope, rtol=0.03)


def test_an_encoder_of_ones_own():
    """Any module [B, H, W, 1] -> [B, h, w, D] with a stride: here the pixels of a cell, as they are."""

    class Pixels(nn.Module):
        stride: int = 8

        def __call__(self, x):
            b, height, width, _ = x.shape
            cells = x.reshape(b, height // 8, 8, width // 8, 8).swapaxes(2, 3)
            return cells.reshape(b, height // 8, width // 8, 64)

    model, images = build_model(TINY, 2, Pixels()), build(size=32)[2]
    logits, out = model.init_with_output(jax.random.key(0), images, train=False)[0]
    chex.assert_shape([logits, out["mask"][..., 0]], [(2, 2), (2, 4, 4)])
    np.testing.assert_allclose(out["features"][0, 1, 2, 9], (images[0, 9, 17, 0] + images[0, 14, 22, 0]) / 2, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_given_features_and_a_given_mask_take_the_place_of_the_models(kind):
    model, params, images = build(kind=kind)
    logits, out = run(model, params, images)
    features = out["features"]
    np.testing.assert_allclose(run(model, params, None, features=features)[0], logits, rtol=1e-6)
    np.testing.assert_allclose(run(model, params, None, features=features[::-1])[0], logits[::-1], rtol=1e-5)
    if kind == "infomask":
        own = run(model, params, None, features=features, mask=out["mask"])[0]
        np.testing.assert_allclose(own, logits, rtol=1e-5)
        closed = run(model, params, images, mask=jnp.zeros_like(out["mask"]))[0]
        np.testing.assert_allclose(closed, jnp.broadcast_to(params["closed_evidence"], closed.shape), rtol=1e-5)


def test_mean_pooled_evidence_is_the_class_activation_map():
    model, params, images = build(kind="plain", pooling="mean", evidence_bound=0.0)
    logits, out = run(model, params, images)
    cam = np.asarray(out["features"]) @ np.asarray(params["head"]["kernel"]) + np.asarray(params["closed_evidence"])
    np.testing.assert_allclose(heat_maps(out, "plain")["cam"], cam, atol=1e-5)
    np.testing.assert_allclose(cam.mean(axis=(1, 2)), logits, atol=1e-5)


def test_attention_pools_features_by_gated_weights():
    """The definition of Ilse et al. 2018 in numpy: softmax over cells of w . (tanh(V z) * sigmoid(U z)), one bag."""
    model, params, images = build(kind="attention_mil", two_views=False, evidence_bound=0.0)
    params["closed_evidence"] = jnp.full(3, 0.5)
    params["weights"]["kernel"] *= 5.0
    logits, out = run(model, params, images)
    z = np.asarray(out["features"], np.float64).reshape(2, 16, 16)
    v, u, w = (np.asarray(params[name]["kernel"], np.float64) for name in ("tanh", "gate", "weights"))
    scores = (np.tanh(z @ v) / (1 + np.exp(-(z @ u)))) @ w  # [B, cells, K]
    weights = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    assert np.ptp(weights) > 0.01
    np.testing.assert_allclose(np.asarray(out["attention"]).reshape(2, 16, 3), weights, rtol=1e-4)
    bags = np.einsum("bnk,bnd->bkd", weights, z)
    expected = np.einsum("bkd,dk->bk", bags, np.asarray(params["head"]["kernel"])) + 0.5
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-6)
    maps = heat_maps(out, "attention_mil")
    assert set(maps) == {"cam", "attention"}
    np.testing.assert_array_equal(maps["attention"], out["attention"])


def test_two_views_make_maps_turn_with_the_image():
    model, params, images = build()
    maps, turned = (heat_maps(run(model, params, x)[1], "infomask") for x in (images, images[:, ::-1, ::-1]))
    for name in maps:
        np.testing.assert_allclose(turned[name], maps[name][:, ::-1, ::-1], atol=1e-5)


def test_bits_of_a_finding_are_those_under_its_own_mask_and_sum_to_the_rate():
    """A cell that only the other finding's mask opens costs the finding next to nothing."""
    model, params, images = build(findings=2, mask_per_finding=True, mask_coupling=0.0)
    out = run(model, params, images)[1]
    logits = jnp.full_like(out["mask_logits"], -6.0).at[:, 0, 0, 0].set(6.0).at[:, 3, 3, 1].set(6.0)
    open_to_any = 1 - jnp.prod(1 - jax.nn.sigmoid(logits), axis=-1)
    by_hand = {**out, "mask_logits": logits, "kl_z": 10.0 * open_to_any, "kl_m": jnp.zeros_like(out["kl_m"])}
    bits = heat_maps(by_hand, "infomask")["infomask_bits"]
    np.testing.assert_allclose(bits, 10.0 / np.log(2) * jax.nn.sigmoid(logits), rtol=1e-5)
    rate = heat_maps({**out, "kl_m": out["kl_m"][..., :1]}, "infomask")["infomask_bits"].sum()
    np.testing.assert_allclose(rate, (out["kl_z"].sum() + out["kl_m"][..., 0].sum()) / np.log(2), rtol=1e-5)


def test_a_cell_sees_no_further_than_its_receptive_field():
    """Which lies around it. Two blocks at strides 2 and 4: stem 6 px, +16 at stride 2, +2 for the average, +8 for each
    3 x 3 at stride 4."""
    model = build_model(dataclasses.replace(TINY, two_views=False), 1)
    params = parameters(model)
    image = jnp.asarray(np.random.default_rng(1).normal(size=(1, 96, 96, 1)), jnp.float32)
    seen = jax.jit(jax.grad(lambda x: run(model, params, x)[1]["features"][0, 8, 14].sum()))(image)
    for pixels, cell in zip(np.nonzero(np.asarray(seen)[0, ..., 0]), (8, 14), strict=True):
        assert np.ptp(pixels) + 1 == 40 and abs((pixels.min() + pixels.max()) / 2 - 4 * cell - 1.5) <= 2
    with pytest.raises(ValueError, match="18 x 18 px do not divide into cells of 4 px"):
        model.init(jax.random.key(0), jnp.zeros((1, 18, 18, 1)), train=False)


@pytest.mark.parametrize(("kind", "seed"), [("infomask", 1), ("vib", None)])
def test_empty_cells_hold_nothing(kind, seed):
    """Although the encoder sees the inside from the border, nothing reaches evidence, mask or rates there."""
    images = np.full((2, 32, 32, 1), -0.8, np.float32)
    images[:, 8:24, 8:24] = np.random.default_rng(0).normal(size=(2, 16, 16, 1))
    border = np.ones((8, 8), bool)
    border[2:-2, 2:-2] = False
    np.testing.assert_array_equal(has_content(images, 4)[..., 0], np.stack([~border] * 2).astype(np.float32))
    noisy = images + np.array([0.019, 0.021]).reshape(2, 1, 1, 1) * (np.arange(32) == 3)[:, None]
    assert has_content(noisy, 4)[:, 0, 0, 0].tolist() == [0, 1]  # film noise is no content, anything more is
    model, params, _ = build(size=32, kind=kind)
    if kind == "infomask":
        params["mask"]["bias"] = jnp.full(1, 5.0)
    _, out = run(model, params, images, seed)
    _, free = run(of(dataclasses.replace(model.config, close_empty=False), 3), params, images, seed)
    closed = np.broadcast_to(params["closed_evidence"], (2, border.sum(), 3))
    np.testing.assert_array_equal(out["evidence"][:, border], closed)
    assert np.abs(free["evidence"][:, border] - closed).min() > 0
    np.testing.assert_array_equal(out["kl_z"][:, border], 0)
    assert (out["kl_z"][:, ~border] > 0).all() and (free["kl_z"][:, border] > 0).all()
    if kind == "infomask":
        np.testing.assert_array_equal(out["mask"][:, border], 0)
        np.testing.assert_array_equal(out["kl_m"][:, border], 0)
        np.testing.assert_array_equal(out["mask_logits"][:, border], -LOGIT_BOUND)
        assert (out["mask"][:, ~border] > 0.1).all() and (free["mask"][:, border] > 0.1).all()
        logits, out = run(model, params, np.zeros_like(images), seed)  # without any content: absent
        np.testing.assert_allclose(logits, ABSENT, rtol=1e-6)
        chex.assert_tree_all_finite(out)


def test_hidden_blocks():
    kept = np.asarray(jax.vmap(lambda key: random_blocks(key, (5, 4)))(jax.random.split(jax.random.key(0), 4000)))
    chex.assert_shape(kept, (4000, 5, 4, 1))
    assert set(np.unique(kept)) == {0.0, 1.0}
    np.testing.assert_array_equal(kept[:, 0:2, 2:4], kept[:, :1, 2:3] * np.ones((1, 2, 2, 1)))  # blocks of 2 x 2
    corners = kept[:, [0, 0, 2, 4], [0, 2, 0, 2], 0]  # one cell of four blocks
    hidden = 1 - corners.mean(axis=1)
    assert abs(hidden.mean() - 0.5) < 0.015  # the mean of a share uniform in 0 .. 1
    expected = 1 / 12 + (1 / 2 - 1 / 3) / 4  # variance of the share, and of four draws given it
    assert abs(hidden.var() - expected) < 0.005


def test_random_draws_belong_to_the_place_in_the_batch():
    """Two halves of a batch, told their places, draw what the whole batch draws; no two places draw the same."""
    model, params, images = build(size=16, mask_samples=2)
    images = jnp.concatenate([images, images])
    logits, out = run(model, params, images, 3)
    halves = [run(model, params, images[i], 3, positions=i)[1] for i in (jnp.arange(0, 4, 2), jnp.arange(1, 4, 2))]
    for name, axis in (("mask", 0), ("sample_logits", 1), ("hidden_logits", 0)):
        joined = jnp.stack([half[name] for half in halves], axis=axis + 1).reshape(out[name].shape)
        np.testing.assert_allclose(joined, out[name], atol=1e-5)
    assert np.abs(out["mask"][0] - out["mask"][2]).max() > 0.1  # the same image, at another place
    assert np.abs(out["mask"] - run(model, params, images, 4)[1]["mask"]).max() > 0.1  # or another key
    np.testing.assert_allclose(out["sample_logits"].mean(axis=0), logits, rtol=1e-6)


def test_second_view_is_turned_and_partly_hidden(patched):
    """Its logits, and the mean over the cells that both show of the squared difference of their evidence."""
    kept = np.ones((8, 8, 1), np.float32)
    kept[2:4, 4:6] = kept[6:, :2] = 0
    patched.setattr(views, "random_blocks", lambda key, grid: jnp.asarray(kept))
    model, params, images = build(size=32, kind="vib", close_empty=False)
    params["mu"]["bias"] = jnp.linspace(-1.0, 1.0, 5)
    params["closed_evidence"] = jnp.array([0.5, -1.0, 0.0])
    alone = of(dataclasses.replace(model.config, two_views=False), 3)
    seen = (images * kept.repeat(4, axis=0).repeat(4, axis=1))[:, ::-1, ::-1]
    first, second = (run(alone, params, x)[1]["evidence"] - params["closed_evidence"] for x in (images, seen))
    second = second[:, ::-1, ::-1]
    _, out = run(model, params, images, 5)
    differences = (kept * (first - second) ** 2).sum(axis=(1, 2, 3)) / kept.sum()
    np.testing.assert_allclose(out["view_difference"], differences, rtol=1e-4)
    logits = jax.nn.logsumexp(kept * second + params["closed_evidence"], axis=(1, 2)) - np.log(64)
    np.testing.assert_allclose(out["hidden_logits"], logits, rtol=1e-4)
