"""Attribution methods, each held to what defines it: identities, plain loops and closed forms, not shapes alone."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infomask_jax import model as models
from infomask_jax.config import ModelConfig
from infomask_jax.explain import METHODS, ON_PIXELS, attribution, shifted_heat_maps
from infomask_jax.explain import bottleneck as information
from infomask_jax.explain.gradients import pixel_gradients, smoothgrad
from infomask_jax.explain.perturbations import rise_mask
from infomask_jax.explain.readout import Readout
from infomask_jax.model import build
from infomask_jax.model.encoder import Encoder
from infomask_jax.model.plain import Unmasked

HEIGHT, WIDTH = 24, 32  # not square: rows and columns cannot be swapped unseen
LINEAR = ModelConfig(  # evidence = w . features + b, its mean the logit
    width=8, kind="plain", pooling="mean", evidence_bound=0.0, two_views=False, close_empty=False
)
LSE = dataclasses.replace(LINEAR, pooling="lse")
CURVED = ModelConfig(width=8, latent_channels=4, mask_per_finding=True, close_empty=False, two_views=False)
CHEAP = {"rise": {"masks": 300}, "integrated_gradients": {"steps": 8}, "smoothgrad": {"samples": 4}}
PIXELS = [method.__name__ for method in ON_PIXELS]


@pytest.fixture(scope="module", autouse=True)
def shallow():
    """One block in each stage: what is compared with loops and differences then rounds little."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "Encoder", partial(Encoder, depth=1))
        yield


@cache
def compiled(method: str, config: ModelConfig = LINEAR):
    return attribution(method, config, 2, **CHEAP.get(method, {}))


def random_images(count: int = 3, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(count, HEIGHT, WIDTH, 1)), jnp.float32)


@cache
def random_variables(config: ModelConfig) -> dict:
    """Parameters drawn at random, none zero, and made-up statistics of the features."""
    rng, images = np.random.default_rng(1), jnp.zeros((3, HEIGHT, WIDTH, 1))
    shapes = jax.eval_shape(lambda key: build(config, 2).init(key, images, train=False), jax.random.key(0))

    def draw(path, leaf):
        return jnp.asarray((path[-1].key == "gain") + 0.5 * rng.normal(size=leaf.shape), jnp.float32)

    params = jax.tree.map_with_path(draw, shapes["params"])
    params["head"]["kernel"] -= params["head"]["kernel"].mean(axis=0, keepdims=True)  # evidence of both signs
    statistics = {"mean": 0.5 + 0.1 * rng.normal(size=(6, 8, 16)), "std": 0.8 + 0.4 * rng.random((6, 8, 16))}
    return {"params": params, "feature_statistics": jax.tree.map(np.float32, statistics)}


@cache
def blob_detector() -> dict:
    """LINEAR with its weights set by hand: channel 0 answers to spots much brighter than their surroundings.

    The other channels are 0, the residual branches add nothing; finding 0 reads channel 0, finding 1 its negative.
    """
    params = jax.tree.map(jnp.zeros_like, random_variables(LINEAR)["params"])
    stem, shortcut = params["encoder"]["WSConv_0"], params["encoder"]["WSConv_3"]  # the others: residual branches
    stem |= {"kernel": stem["kernel"].at[1, 1, :, 0].set(1.0), "gain": stem["gain"] + 1.0}
    stem["bias"] = stem["bias"].at[0].set(-2.0)
    shortcut |= {"kernel": shortcut["kernel"].at[0, 0, 0, 0].set(1.0), "gain": shortcut["gain"] + 1.0}
    params["head"]["kernel"] = params["head"]["kernel"].at[0].set(jnp.array([100.0, -100.0]))
    params["closed_evidence"] = params["closed_evidence"] - 4.0
    return {**random_variables(LINEAR), "params": params}


@partial(jax.jit, static_argnums=2)
def applied(variables: dict, images: jax.Array, config: ModelConfig):
    return build(config, 2).apply(variables, images, train=False)


def forward(variables: dict, images, config: ModelConfig) -> tuple[np.ndarray, dict]:
    return jax.device_get(applied(variables, jnp.asarray(images), config))


@pytest.mark.parametrize("method", METHODS)
def test_finds_a_planted_blob(method):
    """A bright spot on a model whose answer to it is known: the largest value lies there, rows and columns in place."""
    images = jnp.zeros((3, HEIGHT, WIDTH, 1)).at[:, 4:8, 20:24].set(3.0)  # cell (1, 5) of a 6 x 8 grid
    images = images.at[1].set(0.0)  # a neighbour without
    maps = np.asarray(compiled(method)(blob_detector(), images, 0))
    pixel = 1 if method in PIXELS else 4
    assert maps.shape == (3, HEIGHT // pixel, WIDTH // pixel) and maps.dtype == np.float32
    top, left = np.unravel_index(maps[0].argmax(), maps.shape[1:])
    margin = 2 if method in ("rise", "occlusion") else 0  # blurred by the masks, and by squares 3 px apart
    assert 4 - margin <= top * pixel < 8 + margin and 20 - margin <= left * pixel < 24 + margin
    assert maps[0].max() > 1.2 * np.abs(np.delete(maps[0].ravel(), maps[0].argmax())).mean()
    np.testing.assert_array_equal(maps[2], maps[0])  # the same image elsewhere in the batch


@pytest.mark.parametrize("method", METHODS)
def test_map_is_of_its_image_and_finding(method):
    """Whatever else is in the batch; with the columns of the head exchanged, finding 1 gets the map of finding 0. Only
    Eigen-CAM does not ask for the finding. Of constant images, and of features that never vary, maps are finite."""
    variables, images, others = random_variables(LINEAR), random_images(3, 1), random_images(3, 2)
    first, second = (compiled(method)(variables, images, k) for k in (0, 1))
    moved = compiled(method)(variables, jnp.stack([others[0], images[0], others[1]]), 0)
    assert float(jnp.abs(first[0] - first[1]).max()) > 0
    np.testing.assert_allclose(moved[1], first[0], rtol=1e-4, atol=1e-5)
    params = variables["params"]
    exchanged = {"head": {"kernel": params["head"]["kernel"][:, ::-1]}}
    exchanged["closed_evidence"] = params["closed_evidence"][::-1]
    found = compiled(method)({**variables, "params": params | exchanged}, images, 1)
    np.testing.assert_allclose(found, first, atol=1e-6)
    assert np.allclose(first, second) == (method == "eigencam")
    still = jax.tree.map(np.zeros_like, variables["feature_statistics"])
    constant = jnp.stack([jnp.full((HEIGHT, WIDTH, 1), level) for level in (0.0, 2.0, -1.0)])
    for known in (variables, {**blob_detector(), "feature_statistics": still}):
        assert np.isfinite(compiled(method)(known, constant, 0)).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "attention_mil", "dtype": "bfloat16"},
        {"sampler": "hard_concrete", "pooling": "max", "two_views": True},
    ],
    ids=str,
)
def test_every_kind_of_model_can_be_explained(changes):
    config = dataclasses.replace(CURVED, **changes)
    variables = random_variables(config)
    maps = attribution("hirescam", config, 2)(variables, random_images(), 1)
    assert np.isfinite(maps).all() and np.ptp(maps) > 0


def test_cam_family_matches_its_formulas():
    """Log-sum-exp over linear evidence: d logit / dA_ijd = softmax_ij(e) w_d, so that numpy needs no autodiff."""
    variables, images = random_variables(LSE), 3.0 * random_images()
    features, relu = forward(variables, images, LSE)[1]["features"].astype(np.float64), partial(np.maximum, 0.0)
    w = np.asarray(variables["params"]["head"]["kernel"], np.float64)[:, 0]
    e = np.exp(features @ w)
    g = (e / e.sum(axis=(1, 2), keepdims=True))[..., None] * w
    alpha = g**2 / (2 * g**2 + g**3 * features.sum(axis=(1, 2), keepdims=True))
    singular = np.linalg.svd(features.reshape(3, 48, -1), full_matrices=False)
    expected = {
        "cam": features @ w + float(variables["params"]["closed_evidence"][0]),
        "gradcam": relu((features * g.mean(axis=(1, 2), keepdims=True)).sum(axis=-1)),
        "gradcam_plus_plus": relu((features * (alpha * relu(g)).sum(axis=(1, 2), keepdims=True)).sum(axis=-1)),
        "hirescam": (features * g).sum(axis=-1),
        "layercam": relu((features * relu(g)).sum(axis=-1)),
        "eigencam": np.abs(singular.U[..., 0] * singular.S[:, :1]).reshape(3, 6, 8),  # no feature is negative
    }
    for method, maps in expected.items():
        found = np.asarray(compiled(method, LSE)(variables, images, 0))
        np.testing.assert_allclose(found, maps, rtol=1e-3, atol=1e-5 * np.abs(maps).max(), err_msg=method)


def test_scorecam_matches_a_plain_loop():
    variables, images, logits = random_variables(LINEAR), random_images(1), []
    features = forward(variables, images, LINEAR)[1]["features"][0]  # [6, 8, D]
    for d in range(features.shape[-1]):
        mask = np.asarray(jax.image.resize(features[..., d], (HEIGHT, WIDTH), "bilinear"))
        mask = (mask - mask.min()) / max(mask.max() - mask.min(), 1e-12)  # a dead channel hides everything
        logits.append(forward(variables, images * mask[None, :, :, None], LINEAR)[0][0, 1])
    weights = np.exp(logits) / np.exp(logits).sum()
    found = compiled("scorecam")(variables, jnp.tile(images, (3, 1, 1, 1)), 1)[0]
    np.testing.assert_allclose(found, np.maximum(features @ weights, 0), rtol=1e-4)
    assert np.ptp(weights) > 1e-3


def test_gradient_matches_finite_differences():
    variables, images = random_variables(CURVED), random_images()
    maps = np.asarray(compiled("gradient", CURVED)(variables, images, 1))
    for i in np.argsort(maps.ravel())[:: -maps.size // 12]:
        image, y, x = np.unravel_index(i, maps.shape)
        ends = np.stack([images[image]] * 3)
        ends[:2, y, x, 0] += (-0.02, 0.02)
        low, high, _ = forward(variables, ends, CURVED)[0][:, 1]
        np.testing.assert_allclose(maps[image, y, x], abs(high - low) / 0.04, rtol=0.1, atol=2e-4)


def test_smoothgrad_is_the_magnitude_of_the_mean_gradient_over_noisy_images():
    model, images = Readout(build(CURVED, 2), random_variables(CURVED), 0), random_images()
    images = images * jnp.array([1.0, 5.0, 0.2])[:, None, None, None]
    smoothed = jax.jit(lambda noise: smoothgrad(model, images, noise=noise, samples=2, seed=4))
    signed = jax.jit(lambda x: pixel_gradients(model, x)[..., 0])
    with jax.debug_key_reuse(False):
        np.testing.assert_allclose(smoothed(0.0), np.abs(signed(images)), rtol=1e-5, atol=1e-7)
        found, gradients = smoothed(0.3), []
    for key in jax.random.split(jax.random.key(4), 2):
        noise = 0.3 * np.asarray(jax.random.normal(key, (HEIGHT, WIDTH, 1)))
        gradients.append(np.asarray(signed(images + np.ptp(images, axis=(1, 2, 3), keepdims=True) * noise[None])))
    np.testing.assert_allclose(found, np.abs(np.mean(gradients, axis=0)), rtol=1e-3, atol=1e-5)
    assert found.sum() < 0.98 * np.abs(gradients).mean(axis=0).sum()  # signs differ: the order matters


def test_integrated_gradients_are_complete():
    variables, images, start = random_variables(CURVED), 2.0 * random_images(), random_images(1, 9)[0]
    maps = attribution("integrated_gradients", CURVED, 2, steps=64, baseline=start)(variables, images, 1)
    ends = np.broadcast_to(start, images.shape)
    gained = forward(variables, images, CURVED)[0][:, 1] - forward(variables, ends, CURVED)[0][:, 1]
    assert np.abs(gained).min() > 0.05
    np.testing.assert_allclose(np.asarray(maps).sum(axis=(1, 2)), gained, rtol=0.05, atol=1e-3)


def test_occlusion_and_rise_match_plain_loops():
    """Squares that do not tile the image: the last ones end at the border."""
    variables, images = random_variables(CURVED), random_images()
    maps = attribution("occlusion", CURVED, 2, patch=9, step=6, fill=0.5)(variables, images, 0)
    whole = forward(variables, images, CURVED)[0][:, 0]
    total, count = np.zeros((3, HEIGHT, WIDTH)), np.zeros((HEIGHT, WIDTH))
    for square in (np.s_[top : top + 9, left : left + 9] for top in (0, 6, 12, 15) for left in (0, 6, 12, 18, 23)):
        hidden = np.array(images)
        hidden[:, *square] = 0.5
        total[:, *square] += (whole - forward(variables, hidden, CURVED)[0][:, 0])[:, None, None]
        count[square] += 1
    np.testing.assert_allclose(maps, total / count, atol=1e-5)
    maps, expected = attribution("rise", CURVED, 2, masks=5, cells=3, keep=0.4, seed=7)(variables, images, 1), 0.0
    for key in jax.random.split(jax.random.key(7), 5):
        mask = np.asarray(rise_mask(key, (HEIGHT, WIDTH), 3, 0.4))
        logit = forward(variables, images * mask[None, :, :, None], CURVED)[0][:, 1]
        expected = expected + (1 / (1 + np.exp(-logit)))[:, None, None] * mask
    np.testing.assert_allclose(maps, expected / (5 * 0.4), rtol=1e-5)


def test_rise_masks_show_every_pixel_equally_often():
    keys = jax.random.split(jax.random.key(1), 4000)
    masks = np.asarray(jax.jit(jax.vmap(lambda key: rise_mask(key, (HEIGHT, WIDTH), 4, 0.3)))(keys))
    assert masks.shape == (4000, HEIGHT, WIDTH) and masks.min() == 0.0 and 1.0 <= masks.max() < 1.0 + 1e-6
    np.testing.assert_allclose(masks.mean(axis=0), 0.3, atol=0.04)
    # Unshifted, a pixel midway between four cells would always be their mean: a quarter of a single cell's variance.
    assert masks.var(axis=0).min() > 0.35 * 0.3 * 0.7


def test_feature_statistics_are_those_of_all_images_together():
    variables, images = random_variables(LINEAR), random_images(6, 3)
    found = information.feature_statistics(LINEAR, 2, variables, [images[:2], images[2:4], images[4:]])
    features = forward(variables, images, LINEAR)[1]["features"]
    np.testing.assert_allclose(found["mean"], features.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(found["std"], features.std(axis=0), atol=1e-6)


def test_bottleneck_capacity_is_the_kl_divergence():
    """Against Monte Carlo for one element; nothing passes a closed element, however far its feature from the mean."""
    r, mean, std, closed = 2.0, 0.5, 0.8, 0.3
    centre, spread = 0.7 * r + 0.3 * mean, closed * std
    x = centre + spread * np.random.default_rng(0).standard_normal(400_000)
    ratio = np.log(std / spread) - 0.5 * ((x - centre) / spread) ** 2 + 0.5 * ((x - mean) / std) ** 2
    statistics = {"mean": jnp.full((1, 1, 1), mean), "std": jnp.full((1, 1, 1), std)}
    features = jnp.full((1, 1, 1, 1), r)
    found = information.capacity(features, jnp.full((1, 1, 1, 1), closed), statistics)
    np.testing.assert_allclose(found.item(), ratio.mean(), atol=5 * ratio.std() / 400_000**0.5)
    np.testing.assert_allclose(information.capacity(features, jnp.ones((1, 1, 1, 1)), statistics), 0.0, atol=1e-6)
    level = information.closed_share(jnp.full((1, 6, 8, 1), -1.0), 1.0)  # smoothed, borders keep it
    np.testing.assert_allclose(level, 1 / (1 + np.exp(-1)), rtol=1e-6)


@partial(jax.jit, static_argnums=3)
def unpriced(variables: dict, features: jax.Array, alpha: float, config: ModelConfig) -> jax.Array:
    """-log p of finding 1 after a bottleneck that is open alike everywhere, with noise of 1 everywhere."""
    model, everywhere = Readout(build(config, 2), variables, 1), jnp.full(features.shape, alpha)
    return information.objective(model, features, everywhere, jnp.ones(features.shape[1:]), beta=0.0, width=1.0)


def test_closed_bottleneck_shows_noise_and_an_open_one_the_features():
    """Noise has the given statistics; with everything let through, empty cells stay empty, whatever the noise there."""
    variables, features = random_variables(LSE), jnp.ones((2, 6, 8, 16))
    statistics = variables["feature_statistics"]
    found = unpriced(variables, features, -50.0, LSE)
    replaced = statistics["mean"] + np.maximum(statistics["std"], information.MIN_STD)
    shown = Readout(build(LSE, 2), variables, 1).classify(jnp.stack([replaced] * 2))[0]
    np.testing.assert_allclose(found, np.log1p(np.exp(-shown)), rtol=1e-5)
    config = dataclasses.replace(LSE, close_empty=True)
    logits, out = forward(variables, random_images().at[:, :, :8].set(0.5), config)
    assert (out["features"] == 0).all(axis=-1).any()
    found = unpriced(variables, out["features"], 40.0, config)
    np.testing.assert_allclose(found, -jax.nn.log_sigmoid(logits[:, 1]), rtol=1e-5)


def test_bottleneck_optimisation_lowers_its_objective():
    """Loss of held-out noise, at the start and after the steps that `iba` takes: lower in every image, whether
    information is too dear or, nearly closed, for free. A dearer bottleneck passes fewer bits."""
    variables, images = random_variables(LSE), random_images()
    model, features = Readout(build(LSE, 2), variables, 1), forward(variables, images, LSE)[1]["features"]
    noise = np.random.default_rng(0).standard_normal((20, 6, 8, 16)).astype(np.float32)

    @jax.jit
    def optimised(beta, start):
        def loss(alpha):
            def held_out(n):
                return information.objective(model, features, alpha, n, beta=beta, width=1.0)

            return jax.lax.map(held_out, noise).mean(axis=0)

        alpha = information.optimise(model, features, beta=beta, start=start)
        bits = information.capacity(features, information.closed_share(alpha, 1.0), variables["feature_statistics"])
        return loss(jnp.full(features.shape, start)), loss(alpha), bits.sum(axis=(1, 2, 3))

    (before, after, dear), (free_before, free_after, _) = optimised(10.0, 5.0), optimised(0.0, -2.0)
    assert (after < 0.9 * before).all() and (free_after < 0.9 * free_before).all()
    assert (dear >= 0).all() and (optimised(0.01, 5.0)[2] > 2 * dear).all()


def test_other_findings_and_parameters_do_not_compile_again(monkeypatch):
    calls, original = [], Unmasked.apply
    monkeypatch.setattr(Unmasked, "apply", lambda self, *a, **options: calls.append(1) or original(self, *a, **options))
    maps = attribution("hirescam", LINEAR, 2)
    maps(random_variables(LINEAR), random_images(), 0)
    traced = len(calls)
    maps(blob_detector(), random_images(3, 8), 1)
    assert 0 < traced == len(calls)
    with pytest.raises(ValueError, match="finding 2: the model has 2"):
        maps(blob_detector(), random_images(3, 8), np.int64(2))


# --- shifts of the image


def cell_means(stride):
    """A model that sees its own cell only: what it says of the image as it is, and {"m": mean of each cell}."""

    def forward(images):
        b, height, width, _ = images.shape
        cells = images.reshape(b, height // stride, stride, width // stride, stride, 1)
        return images[:, 0, 0, 0], {"m": cells.mean(axis=(2, 4))}

    return forward


@pytest.mark.parametrize("stride, shifts", [(4, 1), (4, 4), (8, 2)])
def test_shifted_maps_are_moved_back(stride, shifts):
    """A ramp is its own map: away from the edges, which are repeated, every fine cell has the value at its centre.
    What else the model says is of the image as it is."""
    ramp = 3.0 * np.arange(8 * stride)[:, None] - 2.0 * np.arange(12 * stride)[None] + 7  # value at pixel centres
    images = jnp.asarray(ramp[None, ..., None], jnp.float32)
    as_is, found = shifted_heat_maps(cell_means(stride), images, stride, shifts)
    assert as_is == 7 and found["m"].shape == (1, 8 * shifts, 12 * shifts, 1)
    if shifts == 1:
        np.testing.assert_array_equal(found["m"], cell_means(stride)(images)[1]["m"])
    rows, columns = ((np.arange(n * shifts) + 0.5) * stride / shifts - 0.5 for n in (8, 12))
    inner = np.s_[2 * shifts : -2 * shifts, 2 * shifts : -2 * shifts]
    expected = 3.0 * rows[:, None] - 2.0 * columns[None] + 7
    np.testing.assert_allclose(found["m"][0, ..., 0][inner], expected[inner], rtol=1e-5, atol=1e-3)


def test_shifts_resolve_what_a_cell_cannot():
    """A square of half a cell, off centre: the finest map peaks where it is, the coarse one at the cell's centre."""
    image = np.zeros((1, 32, 32, 1), np.float32)
    image[0, 12:14, 20:22] = 1  # in the upper left quarter of cell (3, 5) of 4 pixels
    fine = shifted_heat_maps(cell_means(4), jnp.asarray(image), 4, 4)[1]["m"][0, ..., 0]
    at, share = np.arange(32) + 0.5, np.stack([fine.sum(1), fine.sum(0)]) / fine.sum()
    centre = share @ at
    np.testing.assert_allclose(centre, [13, 21], atol=0.3)
    spread = (share * (at - centre[:, None]) ** 2).sum(axis=1)  # of a square, the mean of a cell and its interpolation
    np.testing.assert_allclose(spread, 2**2 / 12 + 4**2 / 12 + 4**2 / 6, rtol=0.1)
