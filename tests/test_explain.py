"""Attribution methods, each held to what defines it: identities, plain loops and closed forms, not shapes alone."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infomask_jax import model as models
from infomask_jax.config import ModelConfig
from infomask_jax.explain import METHODS, attribution, shifted_heat_maps
from infomask_jax.explain import bottleneck as information
from infomask_jax.explain.gradients import pixel_gradients, smoothgrad
from infomask_jax.explain.perturbations import rise_mask
from infomask_jax.explain.readout import classify
from infomask_jax.model import build
from infomask_jax.model.encoder import Encoder
from infomask_jax.model.plain import Unmasked

HEIGHT, WIDTH = 24, 32  # not square: rows and columns cannot be swapped unseen
LINEAR = ModelConfig(  # evidence = w . features + b, its mean the logit
    width=8, kind="plain", pooling="mean", evidence_bound=0.0, two_views=False, close_empty=False
)
LSE = dataclasses.replace(LINEAR, pooling="lse")
CURVED = ModelConfig(width=8, latent_channels=4, mask_per_finding=True, close_empty=False)
BOX = slice(4, 8), slice(20, 24)  # the planted blob, pixels: cell (1, 5) of a 6 x 8 grid
CHEAP = {"rise": {"masks": 300}, "integrated_gradients": {"steps": 8}, "smoothgrad": {"samples": 4}}
PIXELS = ("gradient", "smoothgrad", "integrated_gradients", "occlusion", "rise")


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
    return {
        "params": params,
        "feature_statistics": jax.tree.map(np.float32, statistics),
    }


@cache
def blob_detector() -> dict:
    """LINEAR with its weights set by hand: channel 0 answers to spots much brighter than their surroundings.

    The other channels are 0, the residual branches add nothing; finding 0 reads channel 0, finding 1 its negative.
    """
    params = jax.tree.map(jnp.zeros_like, random_variables(LINEAR)["params"])
    encoder = params["encoder"]
    stem, shortcut = encoder["WSConv_0"], encoder["WSConv_3"]  # the others: residual branches
    encoder["WSConv_0"] = {
        "kernel": stem["kernel"].at[1, 1, :, 0].set(1.0),
        "gain": stem["gain"] + 1.0,
        "bias": stem["bias"].at[0].set(-2.0),
    }
    encoder["WSConv_3"] = {
        **shortcut,
        "kernel": shortcut["kernel"].at[0, 0, 0, 0].set(1.0),
        "gain": shortcut["gain"] + 1.0,
    }
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
    images = jnp.zeros((3, HEIGHT, WIDTH, 1)).at[:, BOX[0], BOX[1]].set(3.0)
    images = images.at[1].set(0.0)  # a neighbour without
    maps = np.asarray(compiled(method)(blob_detector(), images, 0))
    grid = (HEIGHT, WIDTH) if method in PIXELS else (HEIGHT // 4, WIDTH // 4)
    assert maps.shape == (3, *grid) and maps.dtype == np.float32
    top, left = np.unravel_index(maps[0].argmax(), grid)
    pixel = 1 if method in PIXELS else 4
    margin = 2 if method in ("rise", "occlusion") else 0  # blurred by the masks, and by squares 3 px apart
    assert 4 - margin <= top * pixel < 8 + margin and 20 - margin <= left * pixel < 24 + margin
    assert maps[0].max() > 1.2 * np.abs(np.delete(maps[0].ravel(), maps[0].argmax())).mean()
    np.testing.assert_array_equal(maps[2], maps[0])  # the same image elsewhere in the batch


@pytest.mark.parametrize("method", METHODS)
def test_map_depends_on_its_own_image_only(method):
    images, others = random_images(3, 1), random_images(3, 2)
    maps = compiled(method)(random_variables(LINEAR), images, 0)
    moved = compiled(method)(random_variables(LINEAR), jnp.stack([others[0], images[0], others[1]]), 0)
    assert float(jnp.abs(maps[0] - maps[1]).max()) > 0
    np.testing.assert_allclose(moved[1], maps[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_asks_for_its_finding(method):
    """With the columns of the head exchanged, finding 1 gets the map of finding 0; only Eigen-CAM does not ask."""
    variables, images = random_variables(LINEAR), random_images()
    params = variables["params"]
    exchanged = {
        **params,
        "head": {"kernel": params["head"]["kernel"][:, ::-1]},
        "closed_evidence": params["closed_evidence"][::-1],
    }
    first, second = (compiled(method)(variables, images, k) for k in (0, 1))
    np.testing.assert_allclose(compiled(method)({**variables, "params": exchanged}, images, 1), first, atol=1e-6)
    assert np.allclose(first, second) == (method == "eigencam")


@pytest.mark.parametrize("method", METHODS)
def test_constant_images_stay_finite(method):
    still = {"mean": np.zeros((6, 8, 16), np.float32), "std": np.zeros((6, 8, 16), np.float32)}
    for variables in ({**blob_detector(), "feature_statistics": still}, random_variables(LINEAR)):
        for level in (0.0, 2.0):
            maps = compiled(method)(variables, jnp.full((3, HEIGHT, WIDTH, 1), level), 0)
            assert np.isfinite(maps).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "attention_mil", "two_views": False},
        {"kind": "vib", "pooling": "noisy_or", "two_views": False, "dtype": "bfloat16"},
        {"kind": "plain", "pooling": "topk", "close_empty": True},
        {"sampler": "hard_concrete", "pooling": "max"},
        {"mask_per_finding": False, "close_empty": True},
    ],
    ids=str,
)
def test_every_kind_of_model_can_be_explained(changes):
    config = dataclasses.replace(CURVED, **changes)
    variables = random_variables(config)
    for method in ("iba", "integrated_gradients", "rise"):
        maps = jax.eval_shape(attribution(method, config, 2), variables, random_images(), 1)
        assert maps.shape == ((3, HEIGHT, WIDTH) if method in PIXELS else (3, 6, 8)), method
        assert maps.dtype == jnp.float32
    maps = attribution("hirescam", config, 2)(variables, random_images(), 1)
    assert np.isfinite(maps).all() and np.ptp(maps) > 0


def test_evidence_gradcam_and_hirescam_agree_for_a_mean_pooled_linear_head():
    variables, images = random_variables(LINEAR), random_images()
    bias = float(variables["params"]["closed_evidence"][1])
    cam = (np.asarray(compiled("cam")(variables, images, 1)) - bias) / 48
    assert cam.min() < 0 < cam.max()
    gradcam = attribution("gradcam", LINEAR, 2, rectify=False)(variables, images, 1)
    np.testing.assert_allclose(gradcam, cam, atol=1e-6)
    np.testing.assert_allclose(compiled("hirescam")(variables, images, 1), cam, atol=1e-6)
    np.testing.assert_allclose(compiled("gradcam")(variables, images, 1), np.maximum(cam, 0), atol=1e-6)
    np.testing.assert_allclose(cam.sum(axis=(1, 2)), forward(variables, images, LINEAR)[0][:, 1] - bias, atol=1e-5)


def test_cam_family_matches_its_formulas():
    """Log-sum-exp over linear evidence: d logit / dA_ijd = softmax_ij(e) w_d, so that numpy needs no autodiff."""
    variables, images, finding = random_variables(LSE), 3.0 * random_images(), 0
    features = forward(variables, images, LSE)[1]["features"].astype(np.float64)
    w = np.asarray(variables["params"]["head"]["kernel"], np.float64)[:, finding]
    evidence = features @ w
    share = np.exp(evidence) / np.exp(evidence).sum(axis=(1, 2), keepdims=True)
    g = share[..., None] * w

    def relu(x):
        return np.maximum(x, 0.0)

    alpha = g**2 / (2 * g**2 + g**3 * features.sum(axis=(1, 2), keepdims=True))
    weights = (alpha * relu(g)).sum(axis=(1, 2), keepdims=True)
    expected = {
        "gradcam": relu((features * g.mean(axis=(1, 2), keepdims=True)).sum(axis=-1)),
        "gradcam_plus_plus": relu((features * weights).sum(axis=-1)),
        "hirescam": (features * g).sum(axis=-1),
        "layercam": relu((features * relu(g)).sum(axis=-1)),
    }
    for method, maps in expected.items():
        found = np.asarray(compiled(method, LSE)(variables, images, finding))
        np.testing.assert_allclose(found, maps, rtol=1e-3, atol=1e-5 * np.abs(maps).max(), err_msg=method)


def test_eigencam_is_the_first_singular_vector():
    variables, images = random_variables(LINEAR), random_images()
    features = forward(variables, images, LINEAR)[1]["features"]
    maps = np.asarray(compiled("eigencam")(variables, images, 0))
    for image, found in zip(features, maps, strict=True):
        u, s, _ = np.linalg.svd(image.reshape(48, -1).astype(np.float64), full_matrices=False)
        expected = np.abs(u[:, 0] * s[0]).reshape(6, 8)  # features are not negative: neither is it, nor its projection
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_scorecam_matches_a_plain_loop():
    variables, images = random_variables(LINEAR), random_images(1)
    features = forward(variables, images, LINEAR)[1]["features"][0]  # [6, 8, D]
    logits = []
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
    pixels = [np.unravel_index(i, maps.shape) for i in np.argsort(maps.ravel())[:: -maps.size // 12]]
    for image, y, x in pixels:
        ends = np.stack([images[image]] * 3)
        ends[:2, y, x, 0] += (-0.02, 0.02)
        low, high, _ = forward(variables, ends, CURVED)[0][:, 1]
        np.testing.assert_allclose(maps[image, y, x], abs(high - low) / 0.04, rtol=0.1, atol=2e-4)


def test_smoothgrad_is_the_magnitude_of_the_mean_gradient_over_noisy_images():
    variables, model = random_variables(CURVED), build(CURVED, 2)
    images = random_images() * jnp.array([1.0, 5.0, 0.2])[:, None, None, None]
    smoothed = jax.jit(lambda noise: smoothgrad(model, variables, images, 0, noise=noise, samples=2, seed=4))
    signed = jax.jit(lambda x: pixel_gradients(model, variables, x, 0)[..., 0])
    with jax.debug_key_reuse(False):
        np.testing.assert_allclose(smoothed(0.0), np.abs(signed(images)), rtol=1e-5, atol=1e-7)
        found = smoothed(0.3)
    gradients = []
    for key in jax.random.split(jax.random.key(4), 2):
        noise = 0.3 * np.asarray(jax.random.normal(key, (HEIGHT, WIDTH, 1)))
        gradients.append(np.asarray(signed(images + np.ptp(images, axis=(1, 2, 3), keepdims=True) * noise[None])))
    np.testing.assert_allclose(found, np.abs(np.mean(gradients, axis=0)), rtol=1e-3, atol=1e-5)
    assert found.sum() < 0.98 * np.abs(gradients).mean(axis=0).sum()  # signs differ: the order matters


@pytest.mark.parametrize("baseline", ["gray", "image"])
def test_integrated_gradients_are_complete(baseline):
    variables, images = random_variables(CURVED), 2.0 * random_images()
    start = 0.0 if baseline == "gray" else random_images(1, 9)[0]
    maps = attribution("integrated_gradients", CURVED, 2, steps=200, baseline=start)(variables, images, 1)
    ends = np.broadcast_to(start, images.shape)
    gained = forward(variables, images, CURVED)[0][:, 1] - forward(variables, ends, CURVED)[0][:, 1]
    assert np.abs(gained).min() > 0.05
    np.testing.assert_allclose(np.asarray(maps).sum(axis=(1, 2)), gained, rtol=0.03, atol=1e-3)


def test_occlusion_matches_a_plain_loop():
    """Squares that do not tile the image: the last ones end at the border."""
    variables, images = random_variables(CURVED), random_images()
    maps = attribution("occlusion", CURVED, 2, patch=9, step=6, fill=0.5)(variables, images, 0)
    whole = forward(variables, images, CURVED)[0][:, 0]
    total, count = np.zeros((3, HEIGHT, WIDTH)), np.zeros((HEIGHT, WIDTH))
    for top in (0, 6, 12, 15):
        for left in (0, 6, 12, 18, 23):
            hidden = np.array(images)
            hidden[:, top : top + 9, left : left + 9] = 0.5
            fall = whole - forward(variables, hidden, CURVED)[0][:, 0]
            total[:, top : top + 9, left : left + 9] += fall[:, None, None]
            count[top : top + 9, left : left + 9] += 1
    assert count.min() >= 1
    np.testing.assert_allclose(maps, total / count, atol=1e-5)
    with pytest.raises(ValueError, match="found step 12, patch 9"):
        attribution("occlusion", CURVED, 2, patch=9, step=12)(variables, images, 0)


def test_rise_matches_a_plain_loop_over_its_masks():
    variables, images = random_variables(CURVED), random_images()
    maps = attribution("rise", CURVED, 2, masks=5, cells=3, keep=0.4, seed=7)(variables, images, 1)
    expected = 0.0
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
    # Smooth over a cell (6 x 8 px), unrelated two and a half cells away.
    along = [np.corrcoef(masks[:, 2, 2], masks[:, 2, 2 + d])[0, 1] for d in (1, 20)]
    assert along[0] > 0.9 and abs(along[1]) < 0.1
    # Unshifted, a pixel midway between four cells would always be their mean: a quarter of a single cell's variance.
    assert masks.var(axis=0).min() > 0.35 * 0.3 * 0.7


@pytest.mark.parametrize("method", ["smoothgrad", "rise", "iba"])
def test_random_methods_repeat_by_seed(method):
    variables, images = random_variables(LINEAR), random_images()
    again = compiled(method)(variables, images, 0)
    np.testing.assert_array_equal(compiled(method)(variables, images, 0), again)
    other = attribution(method, LINEAR, 2, **CHEAP.get(method, {}), seed=1)(variables, images, 0)
    assert float(jnp.abs(other - again).max()) > 1e-6


def test_feature_statistics_are_those_of_all_images_together():
    variables = random_variables(LINEAR)
    images = random_images(7, 3)
    found = information.feature_statistics(LINEAR, 2, variables, [images[:4], images[4:6], images[6:]])
    features = forward(variables, images, LINEAR)[1]["features"]
    np.testing.assert_allclose(found["mean"], features.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(found["std"], features.std(axis=0), atol=1e-6)
    with pytest.raises(ValueError, match="at least one image"):
        information.feature_statistics(LINEAR, 2, variables, [])


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


def test_closed_bottleneck_shows_the_classifier_noise_of_the_given_statistics():
    variables, features = random_variables(LSE), jnp.ones((2, 6, 8, 16))
    statistics, model = variables["feature_statistics"], build(LSE, 2)
    noise = jax.random.normal(jax.random.key(2), (6, 8, 16))
    settings = {"beta": 0.0, "width": 1.0}
    alpha = jnp.full(features.shape, -50.0)
    found = information.objective(model, variables, features, 1, alpha, noise, statistics, **settings)
    replaced = statistics["mean"] + noise * np.maximum(statistics["std"], information.MIN_STD)
    logit = classify(model, variables, jnp.stack([replaced] * 2), 1)[0]
    np.testing.assert_allclose(found, np.log1p(np.exp(-logit)), rtol=1e-5)
    far = jax.tree.map(lambda moment: 2.0 * moment, statistics)
    assert not np.allclose(found, information.objective(model, variables, features, 1, alpha, noise, far, **settings))


def test_smoothed_bottleneck_keeps_its_level_and_stays_in_place():
    closed = information.closed_share(jnp.full((1, 6, 8, 1), -1.0), 1.0)
    np.testing.assert_allclose(closed, jax.nn.sigmoid(1.0), rtol=1e-6)
    spot = information.closed_share(jnp.full((1, 6, 8, 1), 50.0).at[0, 1, 5, 0].set(-50.0), 1.0)[0, ..., 0]
    assert np.unravel_index(np.asarray(spot).argmax(), (6, 8)) == (1, 5)
    np.testing.assert_allclose(spot[2, 5] / spot[1, 5], np.exp(-0.5), rtol=0.1)


def test_dearer_bottleneck_passes_fewer_bits():
    variables, images = random_variables(LSE), random_images()
    passed = jax.jit(lambda beta: information.iba(build(LSE, 2), variables, images, 0, beta=beta, steps=30))
    bits = np.stack([passed(beta) for beta in (0.01, 1.0, 100.0)])
    assert bits.min() >= 0
    assert (np.diff(bits.sum(axis=(2, 3)), axis=0) < 0).all()


def test_bottleneck_optimisation_lowers_its_objective():
    """Loss of held-out noise, at the start and after the steps that `iba` takes: lower in every image, at any price."""
    variables, images, model = random_variables(LSE), random_images(), build(LSE, 2)
    features, statistics = forward(variables, images, LSE)[1]["features"], variables["feature_statistics"]
    noise = np.random.default_rng(0).standard_normal((20, 6, 8, 16)).astype(np.float32)

    @jax.jit
    def losses(beta, start):
        alpha = information.optimise(model, variables, features, 1, beta=beta, start=start)
        before, after = (
            jax.vmap(
                lambda n, a=a: information.objective(
                    model, variables, features, 1, a, n, statistics, beta=beta, width=1.0
                )
            )(noise).mean(axis=0)
            for a in (jnp.full(features.shape, start), alpha)
        )
        return before, after

    for beta, start in ((10.0, 5.0), (0.0, -2.0)):  # information too dear; information for free, nearly closed
        before, after = losses(beta, start)
        assert (after < 0.9 * before).all()


def test_bottleneck_does_not_open_empty_cells():
    """With everything let through the model says what it says, whatever the noise in cells that show nothing."""
    config = dataclasses.replace(LSE, close_empty=True)
    model, images = build(config, 2), random_images()
    images = images.at[:, :, :8].set(0.5)
    variables = random_variables(config)
    logits, out = forward(variables, images, config)
    features, noise = out["features"], jnp.ones(out["features"].shape[1:])
    assert (features == 0).all(axis=-1).any()
    alpha = jnp.full(features.shape, 40.0)
    settings = {"beta": 0.0, "width": 1.0}
    loss = information.objective(
        model, variables, features, 1, alpha, noise, variables["feature_statistics"], **settings
    )
    np.testing.assert_allclose(loss, -jax.nn.log_sigmoid(logits[:, 1]), rtol=1e-5)


def test_wrong_requests_are_refused():
    with pytest.raises(ValueError, match="unknown attribution method 'lime'; there are cam, gradcam"):
        attribution("lime", LINEAR, 1)
    with pytest.raises(TypeError, match="masks"):
        attribution("gradient", LINEAR, 1, masks=3)
    with pytest.raises(ValueError, match="finding 2: the model has 2"):
        attribution("cam", LINEAR, 2)(random_variables(LINEAR), random_images(), np.int64(2))
    with pytest.raises(ValueError, match="finding 2: the model has 2"):
        compiled("cam")(random_variables(LINEAR), random_images(), 2)
    with pytest.raises(ValueError, match="feature_statistics"):
        compiled("iba")({"params": random_variables(LINEAR)["params"]}, random_images(), 0)


def test_other_findings_and_parameters_do_not_compile_again():
    model_calls = []
    original = Unmasked.apply

    def counted(self, *args, **kwargs):
        model_calls.append(1)
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Unmasked, "apply", counted)
        maps = attribution("hirescam", LINEAR, 2)
        maps(random_variables(LINEAR), random_images(), 0)
        traced = len(model_calls)
        maps(blob_detector(), random_images(3, 8), 1)
    assert 0 < traced == len(model_calls)


# --- shifts of the image


def cell_means(stride):
    """A model that sees its own cell only: {"m": mean of each cell}."""

    def forward(images):
        b, height, width, _ = images.shape
        return {"m": images.reshape(b, height // stride, stride, width // stride, stride, 1).mean(axis=(2, 4))}

    return forward


def test_no_shift_is_the_map_itself():
    images = jnp.asarray(np.random.default_rng(0).random((2, 16, 24, 1)), jnp.float32)
    found = shifted_heat_maps(cell_means(4), images, 4, 1)["m"]
    np.testing.assert_array_equal(found, cell_means(4)(images)["m"])


@pytest.mark.parametrize("stride, shifts", [(4, 2), (4, 4), (8, 2), (2, 2)])
def test_shifted_maps_are_moved_back(stride, shifts):
    """A ramp is its own map: away from the edges, which are repeated, every fine cell has the value at its centre."""
    height, width = 8 * stride, 12 * stride
    ramp = 3.0 * np.arange(height)[:, None] - 2.0 * np.arange(width)[None]  # value at pixel centres
    found = shifted_heat_maps(cell_means(stride), jnp.asarray(ramp[None, ..., None], jnp.float32), stride, shifts)["m"]
    assert found.shape == (1, 8 * shifts, 12 * shifts, 1)
    rows, columns = ((np.arange(n * shifts) + 0.5) * stride / shifts - 0.5 for n in (8, 12))
    expected = 3.0 * rows[:, None] - 2.0 * columns[None]
    edge = 2 * shifts
    inner = np.s_[edge:-edge, edge:-edge]
    np.testing.assert_allclose(found[0, ..., 0][inner], expected[inner], rtol=1e-5, atol=1e-3)


def test_shifts_resolve_what_a_cell_cannot():
    """A square of half a cell, off centre: the finest map peaks where it is, the coarse one at the cell's centre."""
    image = np.zeros((1, 32, 32, 1), np.float32)
    image[0, 12:14, 20:22] = 1  # in the upper left quarter of cell (3, 5) of 4 pixels
    fine = shifted_heat_maps(cell_means(4), jnp.asarray(image), 4, 4)["m"][0, ..., 0]
    at = np.arange(32) + 0.5
    centre = np.asarray([(fine.sum(1) * at).sum(), (fine.sum(0) * at).sum()]) / fine.sum()
    np.testing.assert_allclose(centre, [13, 21], atol=0.3)
