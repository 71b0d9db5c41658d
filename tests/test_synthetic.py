"""Properties of the procedural phantom: purity, independence of label and background, exact masks and boxes."""

import cv2
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from infomask_jax.datasets.synthetic import PhantomConfig, render

POSITIVE = PhantomConfig(prevalence=1.0)
NEGATIVE = PhantomConfig(prevalence=0.0)


@pytest.fixture(scope="module")
def positives():
    return [render(3, index, POSITIVE) for index in range(200)]


def same(one, other):
    return one["label"] == other["label"] and all(
        one[name].tobytes() == other[name].tobytes() for name in ("image", "mask", "boxes", "lung")
    )


def test_same_seed_and_index_give_the_same_bytes_in_any_order():
    forward = [render(7, index, PhantomConfig()) for index in range(12)]
    np.random.seed(1)  # global state must not matter
    backward = [render(7, index, PhantomConfig()) for index in reversed(range(12))][::-1]
    assert all(map(same, forward, backward))


def test_seed_and_index_both_change_the_film():
    films = {render(seed, index, NEGATIVE)["image"].tobytes() for seed in range(4) for index in range(4)}
    assert len(films) == 16


def test_counts_and_seed_of_the_set_do_not_touch_a_film():
    assert same(render(0, 5, PhantomConfig()), render(0, 5, PhantomConfig(train=3, val=2, test=1, seed=9)))


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("config", [POSITIVE, NEGATIVE])
def test_shapes_and_types(size, config):
    config = PhantomConfig(size=size, prevalence=config.prevalence)
    for index in range(5):
        example = render(0, index, config)
        assert set(example) == {"image", "mask", "label", "boxes", "lung"}
        for name in ("image", "mask", "lung"):
            assert example[name].shape == (size, size) and example[name].dtype == np.uint8
        assert set(np.unique(example["mask"])) <= {0, 255} and set(np.unique(example["lung"])) == {0, 255}
        assert type(example["label"]) is int and example["label"] == int(config.prevalence)
        assert example["boxes"].dtype == np.float32 and example["boxes"].shape[1:] == (4,)
        assert (len(example["boxes"]) > 0) == example["mask"].any() == bool(example["label"])


def test_background_does_not_know_the_label():
    invisible = PhantomConfig(prevalence=1.0, contrast=0.0)
    for index in range(40):
        negative, hidden = render(5, index, NEGATIVE), render(5, index, invisible)
        assert (negative["image"] == hidden["image"]).all() and (negative["lung"] == hidden["lung"]).all()


def test_contrast_changes_only_the_surroundings_of_the_mask(positives):
    invisible = PhantomConfig(prevalence=1.0, contrast=0.0)
    for index, example in enumerate(positives[:40]):
        hidden = render(3, index, invisible)
        assert (hidden["mask"] == example["mask"]).all() and (hidden["boxes"] == example["boxes"]).all()
        rise = example["image"].astype(int) - hidden["image"]
        reach = cv2.distanceTransform(255 - example["mask"], cv2.DIST_L2, 5)  # pixels to the nearest opacity
        assert (rise[reach > 10] == 0).all()
        assert rise.min() >= 0 and rise[example["mask"] > 0].mean() > 5


def test_boxes_are_tight_around_the_components_of_the_mask(positives):
    for example in positives:
        count, _, stats, _ = cv2.connectedComponentsWithStats(example["mask"])
        x, y, width, height = stats[1:, :4].T
        expected = np.stack([y, x, y + height, x + width], 1) / POSITIVE.size
        assert count - 1 == len(example["boxes"])
        np.testing.assert_array_equal(np.sort(example["boxes"], 0), np.sort(expected.astype(np.float32), 0))
        assert {tuple(box) for box in example["boxes"]} == {tuple(box) for box in expected.astype(np.float32)}


def test_one_to_three_opacities_of_sensible_area_inside_the_lung(positives):
    counts = [len(example["boxes"]) for example in positives]
    assert set(counts) == {1, 2, 3}
    for example in positives:
        inside = example["mask"] > 0
        assert (example["lung"][inside] > 0).mean() >= 0.9
        assert 0.008 < inside.mean() / len(example["boxes"]) < 0.07


def test_lung_field_has_a_plausible_area_and_two_sides(positives):
    for example in positives:
        lung = example["lung"] > 0
        assert 0.1 < lung.mean() < 0.35
        assert min(lung[:, :32].mean(), lung[:, 32:].mean()) > 0.08


@pytest.mark.parametrize("prevalence", [0.2, 0.5])
def test_prevalence_is_within_binomial_bounds(prevalence):
    n = 400
    labels = [render(11, index, PhantomConfig(prevalence=prevalence, size=32))["label"] for index in range(n)]
    assert abs(np.mean(labels) - prevalence) < 3.5 * np.sqrt(prevalence * (1 - prevalence) / n)


def marker_auroc(shortcut):
    """AUROC of the brightness at the marker's fixed place, where no lung is."""
    films = [render(2, index, PhantomConfig(shortcut=shortcut)) for index in range(240)]
    return roc_auc_score([film["label"] for film in films], [film["image"][2:8, 4:9].mean() for film in films])


def test_marker_betrays_the_label_only_as_much_as_shortcut_says():
    assert marker_auroc(1.0) == 1
    assert 0.6 < marker_auroc(0.5) < 0.95
    assert abs(marker_auroc(0.0) - 0.5) < 0.1


def test_brightness_is_not_the_answer():
    films = [render(4, index, PhantomConfig()) for index in range(400)]
    labels = [film["label"] for film in films]
    for statistic in (np.mean, np.max, np.std):
        assert abs(roc_auc_score(labels, [statistic(film["image"]) for film in films]) - 0.5) < 0.15
    assert roc_auc_score(labels, [film["image"][film["lung"] > 0].mean() for film in films]) < 0.7


def test_every_size_shows_the_same_film():
    for index in range(12):
        small, large = (render(6, index, PhantomConfig(size=size, prevalence=1.0)) for size in (64, 128))
        shrunk = cv2.resize(large["image"], (64, 64), interpolation=cv2.INTER_AREA)
        assert np.corrcoef(shrunk.ravel(), small["image"].ravel())[0, 1] > 0.97
        np.testing.assert_allclose(large["boxes"], small["boxes"], atol=0.035)


@pytest.mark.parametrize("bad", [{"size": 8}, {"shortcut": 1.5}, {"prevalence": -0.1}, {"contrast": float("nan")}])
def test_impossible_settings_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        PhantomConfig(**bad)
