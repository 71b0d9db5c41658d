"""Properties of the procedural phantom: purity, independence of label and background, exact masks and boxes."""

import cv2
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from infomask_jax.datasets.synthetic import PhantomConfig, render

POSITIVE, NEGATIVE = PhantomConfig(prevalence=1.0), PhantomConfig(prevalence=0.0)
INVISIBLE = PhantomConfig(prevalence=1.0, contrast=0.0)


@pytest.fixture(scope="module")
def positives():
    return [render(3, index, POSITIVE) for index in range(40)]


@pytest.fixture(scope="module")
def films():
    return [render(4, index, PhantomConfig()) for index in range(160)]


def same(one, other):
    arrays = ("image", "mask", "boxes", "lung")
    return one["label"] == other["label"] and all(one[name].tobytes() == other[name].tobytes() for name in arrays)


def test_a_film_is_a_function_of_seed_and_index_alone(films):
    np.random.seed(1)  # global state must not matter, nor counts and seed of the set
    other = PhantomConfig(train=3, val=2, test=1, seed=9)
    assert all(same(films[index], render(4, index, other)) for index in reversed(range(8)))
    assert len({render(seed, index, NEGATIVE)["image"].tobytes() for seed in range(3) for index in range(3)}) == 9


def test_masks_and_boxes_go_with_the_label(films):
    for example in films:
        assert {*np.unique(example["mask"])} <= {0, 255} and {*np.unique(example["lung"])} == {0, 255}
        assert (len(example["boxes"]) > 0) == example["mask"].any() == bool(example["label"])


def test_background_does_not_know_the_label_and_contrast_changes_only_the_surroundings_of_the_mask(positives):
    for index, example in enumerate(positives[:20]):
        negative, hidden = render(3, index, NEGATIVE), render(3, index, INVISIBLE)
        assert (negative["image"] == hidden["image"]).all() and (negative["lung"] == hidden["lung"]).all()
        assert (hidden["mask"] == example["mask"]).all() and (hidden["boxes"] == example["boxes"]).all()
        rise = example["image"].astype(int) - hidden["image"]
        reach = cv2.distanceTransform(255 - example["mask"], cv2.DIST_L2, 5)  # pixels to the nearest opacity
        assert (rise[reach > 10] == 0).all()
        assert rise.min() >= 0 and rise[example["mask"] > 0].mean() > 5


def test_boxes_are_tight_around_one_to_three_opacities_of_sensible_area_inside_the_lung(positives):
    assert {len(example["boxes"]) for example in positives} == {1, 2, 3}
    for example in positives:
        count, _, stats, _ = cv2.connectedComponentsWithStats(example["mask"])
        x, y, width, height = stats[1:, :4].T
        expected = (np.stack([y, x, y + height, x + width], 1) / POSITIVE.size).astype(np.float32)
        assert count - 1 == len(example["boxes"])
        assert {tuple(box) for box in example["boxes"]} == {tuple(box) for box in expected}
        inside, lung = example["mask"] > 0, example["lung"] > 0
        assert lung[inside].mean() >= 0.9
        assert 0.008 < inside.mean() / len(example["boxes"]) < 0.07
        assert 0.1 < lung.mean() < 0.35 and min(lung[:, :32].mean(), lung[:, 32:].mean()) > 0.08


def test_brightness_is_not_the_answer_and_prevalence_is_as_asked(films):
    labels = [film["label"] for film in films]
    assert abs(np.mean(labels) - 0.5) < 3.5 * 0.5 / len(films) ** 0.5
    for statistic in (np.mean, np.max, np.std):
        assert abs(roc_auc_score(labels, [statistic(film["image"]) for film in films]) - 0.5) < 0.2
    assert roc_auc_score(labels, [film["image"][film["lung"] > 0].mean() for film in films]) < 0.75


@pytest.mark.parametrize(("shortcut", "low", "high"), [(1.0, 1, 1), (0.5, 0.6, 0.95), (0.0, 0.35, 0.65)])
def test_marker_betrays_the_label_only_as_much_as_shortcut_says(shortcut, low, high, films):
    """AUROC of the brightness at the marker's fixed place, where no lung is."""
    drawn = [render(2, index, PhantomConfig(shortcut=shortcut)) for index in range(80)] if shortcut else films
    auroc = roc_auc_score([film["label"] for film in drawn], [film["image"][2:8, 4:9].mean() for film in drawn])
    assert low <= auroc <= high


def test_every_size_shows_the_same_film():
    for index in range(6):
        small, large = (render(6, index, PhantomConfig(size=size, prevalence=1.0)) for size in (64, 128))
        shrunk = cv2.resize(large["image"], (64, 64), interpolation=cv2.INTER_AREA)
        assert np.corrcoef(shrunk.ravel(), small["image"].ravel())[0, 1] > 0.97
        np.testing.assert_allclose(large["boxes"], small["boxes"], atol=0.035)


@pytest.mark.parametrize("bad", [{"size": 8}, {"shortcut": 1.5}, {"prevalence": -0.1}, {"contrast": float("nan")}])
def test_impossible_settings_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        PhantomConfig(**bad)
