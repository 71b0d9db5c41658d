"""Regions at one and at all thresholds, and the published protocols, against plain loops and published numbers."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import average_precision_score

from infomask_jax import localize
from infomask_jax.evaluate import bootstrap, controls, pixels, protocols
from infomask_jax.evaluate.boxes import best_iou, flatten, overlap
from infomask_jax.evaluate.sweep import iou_curves, sweep
from infomask_jax.evaluate.truth import rasterise
from infomask_jax.localize import Boxes, prepare_maps, region_boxes

SEEDS = st.integers(0, 10**6)
# The 120 pneumonia boxes of the public BBox_List_2017.csv, in pixels of the 1024 frame.
X, Y, W, H = np.loadtxt(Path(__file__).with_name("nih_pneumonia.csv"), delimiter=",", skiprows=1).T / 1024
NIH = np.stack([Y, X, Y + H, X + W], axis=1)  # [120,4] in 0..1


def plain_overlap(a, b):
    """IoU and IoBB of two boxes, one number at a time."""
    height, width = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(height, 0) * max(width, 0)
    area_a, area_b = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    return both / (area_a + area_b - both), both / area_a


def random_boxes(rng, n):
    corner = rng.uniform(0, 0.6, (n, 2))
    return np.hstack([corner, corner + rng.uniform(0.02, 0.4, (n, 2))])


# --- regions


def plain_regions(s, inside):
    """(box, pixels, maximum) of each region of a map: one labelling."""
    (height, width), found = s.shape, ndimage.label(inside, np.ones((3, 3)))[0]
    for number, (rows, cols) in enumerate(ndimage.find_objects(found), 1):
        box, values = np.array([rows.start, cols.start, rows.stop, cols.stop]), s[found == number]
        yield tuple(box / [height, width, height, width]), len(values), values.max()


def hard_map(seed):
    """Maps with plateaus, noise, smooth bumps, few or many levels, huge values; not square."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 24, 2)
    kind, levels = rng.integers(4), rng.integers(1, 12)
    if kind == 0:
        return rng.random((height, width), dtype=np.float32)
    if kind == 1:
        return cv2.resize(rng.random((5, 5), dtype=np.float32), (int(width), int(height)))
    steps = (rng.integers(0, levels + 1, (height, width)) / levels).astype(np.float32)
    return steps if kind == 2 else steps * np.float32(3e38)


@settings(max_examples=100, deadline=None)
@given(SEEDS)
def test_sweep_equals_one_labelling_per_threshold(seed):
    s, rng = hard_map(seed), np.random.default_rng(seed + 1)
    values = [rng.random(20), np.arange(20) / 20, s.ravel()][rng.integers(3)]
    thresholds = np.unique(rng.choice(values, 9).astype(np.float32))
    found = sweep(s, thresholds)
    for t, tau in enumerate(thresholds):
        alive = (found.first <= t) & (t <= found.last)
        boxes = [(*b, p) for b, p in zip(found.boxes[alive].tolist(), found.pixels[alive], strict=True)]
        assert sorted(boxes) == sorted((*box, count) for box, count, _ in plain_regions(s, s > tau))


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.sampled_from([1, 100, 1000]))
def test_regions_of_one_threshold_equal_scipy_labels(seed, pixels_at_once):
    rng = np.random.default_rng(seed)
    maps, threshold = rng.random((5, 9, 7), dtype=np.float32), np.float32(rng.uniform(0, 1))
    picked = np.sort(rng.choice(5, rng.integers(0, 6), replace=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(localize, "MOSAIC_PIXELS", pixels_at_once)
        found, peaks = region_boxes(maps, threshold, picked)
    regions = [(at, region) for at, i in enumerate(picked) for region in plain_regions(maps[i], maps[i] >= threshold)]
    plain = {(at, *box, top) for at, (box, _, top) in regions}
    assert {(i, *b, p) for i, b, p in zip(found.image, found.boxes, peaks, strict=True)} == plain
    order = np.lexsort((found.boxes[:, 1], found.boxes[:, 0], found.image))
    np.testing.assert_array_equal(order, np.arange(len(plain)))


# --- pixels and truth


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_pixel_scores_equal_scikit_learn_and_one_threshold_at_a_time(seed):
    """On maps with many ties, and on values at the thresholds and next to them."""
    rng = np.random.default_rng(seed)
    maps = prepare_maps(rng.integers(0, rng.integers(2, 40), (4, 12, 12)), 12)
    near = np.concatenate([np.nextafter(pixels.THRESHOLDS, np.float32(end)) for end in (0, 1)] + [pixels.THRESHOLDS])
    maps[3, 1:] = rng.choice(near, (11, 12)).clip(0, 1)
    truth = rng.random(maps.shape) < rng.uniform(0.05, 0.6)
    truth[:, 0, 0] = True
    scores = protocols.pixel_auprc(maps, truth)
    assert scores["pooled"].value == pytest.approx(average_precision_score(truth.ravel(), maps.ravel()), abs=1e-9)
    alone = [average_precision_score(m.ravel(), s.ravel()) for m, s in zip(truth, maps, strict=True)]
    np.testing.assert_allclose(scores["per_image"].part, alone, atol=1e-9)
    curve = pixels.iou_curve(maps, truth)
    for t, column in zip(pixels.THRESHOLDS, curve.T, strict=True):
        both, either = ((maps >= t) & truth).sum((1, 2)), ((maps >= t) | truth).sum((1, 2))
        np.testing.assert_array_equal(column, both / either)
        np.testing.assert_array_equal(column, pixels.region_overlap(maps, truth, float(t))[0])
    best = pixels.tune_threshold(curve)
    assert curve.mean(0)[round(best * 100) - 1] == curve.mean(0).max()


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(1, 40))
def test_rasterised_pixels_have_their_centre_in_the_box(seed, size):
    y0, x0, h, w = np.random.default_rng(seed).uniform(0.01, 0.49, 4)
    box = np.array([[y0, x0, y0 + h, x0 + w]])
    to_centre = box * size - 0.5
    assume(np.abs(to_centre - np.rint(to_centre)).min() > 1e-4)  # there, float32 edges decide
    centre = (np.arange(size) + 0.5) / size
    rows, cols = (centre >= y0) & (centre < y0 + h), (centre >= x0) & (centre < x0 + w)
    mask = rasterise(box, size)
    if rows.any() and cols.any():
        np.testing.assert_array_equal(mask, rows[:, None] & cols)
    assert mask.any()  # never vanishes


# --- boxes: Acc, AFP, WSOL


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_hits_and_false_alarms_equal_a_plain_loop(seed):
    rng = np.random.default_rng(seed)
    predicted, true = ([random_boxes(rng, rng.integers(0, n)) for _ in range(5)] for n in (4, 3))
    flat_p, flat_t = flatten(predicted), flatten(true)
    scores = protocols.accuracy(flat_p, flat_t, 5) | protocols.false_positives(flat_p, flat_t, np.ones(5))
    for j, (measure, levels) in enumerate((("iou", protocols.IOU_LEVELS), ("iobb", protocols.IOBB_LEVELS))):
        for t in levels:
            for i, (own_p, own_t) in enumerate(zip(predicted, true, strict=True)):
                found = sum(any(plain_overlap(p, g)[j] > t for p in own_p) for g in own_t)
                wrong = sum(all(plain_overlap(p, g)[j] <= t for g in own_t) for p in own_p)
                parts = [scores[f"{name}_{measure}/{t:g}"].part[i] for name in ("acc", "afp")]
                assert parts == [found, wrong]
    pairs = [[(p, g) for p in predicted[i] for g in true[i]] for i in range(5)]
    best = [max((plain_overlap(p, g)[0] for p, g in own), default=0) for own in pairs]
    np.testing.assert_allclose(best_iou(flat_p, flat_t, 5), best, atol=1e-6)


def test_max_box_acc_equals_one_connected_components_call_per_threshold(monkeypatch):
    """Values, thresholds and resamples, on maps that are hot near their one or two boxes, with noise and ties."""
    rng, n, size = np.random.default_rng(0), 80, 24
    maps, true = rng.integers(0, 61, (n, size, size)).astype(np.float32), []
    for s in maps:
        y, x, h, w = *rng.integers(0, size - 14, 2), *rng.integers(5, 12, 2)
        s[y : y + h, x : x + w] += rng.integers(5, 36)
        s[rng.integers(0, size), rng.integers(0, size)] = 100
        own = np.array([[y, x, y + h, x + w]]) + rng.uniform(-1, 2, 4)  # not quite where the map is hot
        true.append(np.vstack([own / size, random_boxes(rng, rng.integers(0, 2))]))
    smooth = [cv2.GaussianBlur(s, (0, 0), 1.5) for s in maps[: n // 2]]
    maps, taus = prepare_maps(np.concatenate([smooth, maps[n // 2 :]]), size), protocols.TAUS[::20]
    best, largest = np.zeros((2, n, len(taus)))
    for i, s in enumerate(maps):
        for t, tau in enumerate(taus):
            regions = [(-count, box) for box, count, _ in plain_regions(s, s > tau)]
            iou = {box: max(plain_overlap(box, g)[0] for g in true[i]) for _, box in regions}
            best[i, t] = max(iou.values(), default=0)
            largest[i, t] = iou[min(regions)[1]] if regions else 0
    np.testing.assert_allclose(iou_curves(maps, flatten(true), taus), [best, largest], atol=1e-6)
    assert all(np.abs(best - d).min() > 1e-6 for d in protocols.DELTAS)  # so close that rounding would decide

    monkeypatch.setattr(protocols, "TAUS", taus)
    scores, chosen = protocols.wsol(maps, flatten(true))
    hits = {"max_box_acc": [largest >= 0.5], "max_box_acc_v2": [best >= d for d in protocols.DELTAS]}
    share = hits["max_box_acc_v2"][0].mean(0)
    assert share[np.searchsorted(taus, np.float32(chosen["0.3"]))] == share.max()
    weights, index = bootstrap.patient_weights(np.arange(n) // 2, 20)
    draws = [np.repeat(np.arange(n), times[index].astype(int)) for times in weights]
    for name, own in hits.items():
        assert scores[name].value == np.mean([hit.mean(0).max() for hit in own]) and 0.2 < scores[name].value < 0.8
        expected = np.zeros(len(draws))
        for hit in own:
            every, each = hit.mean(0), [hit[rows].mean(0) for rows in draws]
            optimism = np.mean([shares.max() - every[shares.argmax()] for shares in each])
            expected += np.array([shares[every.argmax()] - optimism for shares in each]) / len(own)
        np.testing.assert_allclose(bootstrap.estimate(scores[name], weights, index).samples, expected)


def test_intervals_of_max_box_acc_cover_the_population_and_those_of_the_maximum_do_not():
    rng, taus = np.random.default_rng(0), protocols.TAUS[::20, None]
    low, high = np.sort(rng.random((2, 4000, 2)), axis=0)  # an image is hit at thresholds between two of its own
    hits = (low[:, None] < taus) & (taus < high[:, None])
    truth, held = hits.mean(0).max(0).mean(), {True: 0, False: 0}
    _, score = protocols.wsol(np.zeros((1, 2, 2), np.float32), flatten([np.array([[0, 0, 1, 1]])]))[0].values()
    for seed in range(60):
        own = hits[np.random.default_rng(seed).integers(0, len(hits), 40)]
        weights = bootstrap.patient_weights(range(40), 150, seed)
        for ours in held:
            one = score._replace(part=own, whole=np.ones(40), resampled=score.resampled if ours else None)
            found = bootstrap.as_json(bootstrap.estimate(one, *weights))
            assert found["value"] == pytest.approx(own.mean(0).max(0).mean(), abs=1e-6)
            held[ours] += found["ci95"][0] <= truth <= found["ci95"][1]
    assert held[True] >= 51 and held[False] < 45  # 57 are expected, with a standard error of 1.7


@pytest.mark.parametrize("pixels_high, level", [(3, 0.3), (7, 0.7)])
def test_an_overlap_equal_to_a_threshold_is_no_hit_of_wang_and_one_of_wsol(pixels_high, level):
    """3 of 10 rows are an IoU of .3, whatever rounding errors the edges in 0..1 bring, float32 ones, too."""
    for top in range(20):
        true = flatten([np.array([[top, 0, top + 10, 112]]) / 224])
        predicted = flatten([np.array([[top, 0, top + pixels_high, 112]]) / 224])
        stored = Boxes(true.boxes.astype(np.float32).astype(float), true.image)
        for own in (true, stored):
            scores = protocols.accuracy(predicted, own, 1) | protocols.false_positives(predicted, own, np.ones(1))
            values = [scores[f"{name}_iou/{t:g}"].value for name in ("acc", "afp") for t in (level - 0.1, level)]
            assert values == [1, 0, 0, 1]
        scores, _ = protocols.wsol(np.zeros((1, 4, 4), np.float32), true, predicted)
        assert scores["max_box_acc_v2"].value == pytest.approx({0.3: 1 / 3, 0.7: 1}[level])
        below = sum(t < level - 1e-9 for t in protocols.RSNA_LEVELS)
        assert protocols.rsna(predicted, np.ones(1), stored, 1)["map"].value == pytest.approx(below / 8)


# --- Wang, Li, CheXlocalize


def test_wang_draws_boxes_at_both_thresholds_on_all_boxed_images():
    s = np.zeros((2, 20, 20), np.float32)
    s[0, 2:12, 2:12], s[0, 4:8, 4:8] = 60 / 255, 180 / 255  # both candidates of image 0
    s[0, 19, 19] = 59.9 / 255  # below
    s[1, 0:5, 0:5] = 1  # an image of another finding: one region, found at both thresholds
    true = Boxes(np.array([[4, 4, 8, 8]]) / 20, np.array([0]))
    scores = protocols.wang2017(s, true, boxes_of_all=np.array([1, 2]))
    expected = {"acc_iou/0.7": 1, "boxes_per_image": 2}  # the inner box; the IoU of the outer one is .16
    expected |= {"afp_iou/0.1": 2 / 3, "afp_iou/0.2": 3 / 3, "afp_iobb/0.1": 2 / 3, "afp_iobb/0.25": 1}
    assert {name: scores[name].value for name in expected} == pytest.approx(expected)


def test_li_scores_the_region_and_not_its_box():
    s, mask = np.zeros((3, 10, 10), np.float32), np.zeros((3, 10, 10), bool)
    mask[:, :4, :5] = True  # 20 pixels
    s[0, :8, :5], s[1] = 1, np.eye(10)  # IoU .5; 4 / (10 + 20 - 4) = .15, that of its box would be .2; nothing
    scores = protocols.li2018(s, mask, 0.5)
    expected = {"acc_iou/0.1": 2 / 3, "acc_iou/0.2": 1 / 3, "acc_iou/0.6": 0, "acc_ior/0.25": 2 / 3, "acc_ior/0.75": 0}
    assert {name: scores[name].value for name in expected} == pytest.approx(expected)


def test_chexlocalize_cuts_by_otsus_definition_and_counts_missed_findings_as_zero():
    rng = np.random.default_rng(0)
    for s in prepare_maps(rng.random((3, 9, 9)) ** rng.uniform(0.3, 4, (3, 1, 1)), 30):
        levels, between = np.rint(s * 255).astype(int).ravel(), []  # variance between the classes of each cut
        for cut in range(255):
            low, high = levels[levels <= cut], levels[levels > cut]
            between.append(len(low) * len(high) * (low.mean() - high.mean()) ** 2 if len(low) and len(high) else 0)
        region = s >= pixels.otsu_thresholds(s[None])[0]
        np.testing.assert_array_equal(region.ravel(), levels > int(np.argmax(between)))
    s, mask = np.zeros((2, 8, 8), np.float32), np.zeros((2, 8, 8), bool)
    mask[:, :2, :2] = s[0, :2, :2] = 1
    found = {name: score.value for name, score in protocols.chexlocalize(s, mask, 0.3).items()}
    expected = {"mean_iou_otsu": 0.5, "mean_iou_fixed": 0.5, "mean_iou_tuned": 0.5}
    assert found == pytest.approx(expected | {"hit_rate": (1 + 4 / 64) / 2})  # of a constant map, its share


# --- RSNA


def plain_rsna(predicted, scores, true):
    """One image, as the rules of the challenge say it."""
    if not len(predicted) and not len(true):
        return None
    values = []
    for level in np.arange(0.4, 0.76, 0.05):
        free, hits = list(range(len(true))), 0
        for j in sorted(range(len(predicted)), key=lambda j: -scores[j]):
            best = max(free, key=lambda g: plain_overlap(predicted[j], true[g])[0], default=None)
            if best is not None and plain_overlap(predicted[j], true[best])[0] > level:
                free.remove(best)
                hits += 1
        values.append(hits / (hits + (len(predicted) - hits) + len(free)))
    return np.mean(values)


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_rsna_and_its_confidence_equal_a_plain_loop(seed):
    rng = np.random.default_rng(seed)
    true = [random_boxes(rng, rng.integers(0, 4)) for _ in range(6)]
    near = [t[rng.random(len(t)) < 0.8] + rng.uniform(-0.03, 0.03, 4) for t in true]
    predicted = [np.vstack([own, random_boxes(rng, rng.integers(0, 2))]) for own in near]
    flat, probabilities = flatten(predicted), rng.integers(0, 4, 6) / 3
    scores = rng.permutation(len(flat.boxes)) / 10
    plain = [plain_rsna(predicted[i], scores[flat.image == i], true[i]) for i in range(6)]
    found = protocols.rsna(flat, scores, flatten(true), 6)["map"]
    assert [v if w else None for v, w in zip(found.part, found.whole, strict=True)] == pytest.approx(plain)

    missed = [0 if len(boxes) else None for boxes in true]

    def at(cut):
        kept = [plain[i] if probabilities[i] >= cut else missed[i] for i in range(6)]
        return np.mean([v for v in kept if v is not None] or [0])

    tuned = protocols.tune_confidence(flat, scores, flatten(true), probabilities)
    assert at(tuned) == pytest.approx(max(at(cut) for cut in np.unique(probabilities)))


# --- controls and ceilings


@pytest.mark.parametrize(
    "control, iou, iobb",
    [
        ("mean_right_box", ".550 .467 .325 .167 .067 .025 .008", ".558 .525 .267 .167 .083"),
        ("mean_lung_boxes", ".933 .808 .567 .300 .142 .067 .033", ".950 .875 .433 .225 .125"),
        ("lung_boxes", ".958 .675 .383 .175 .083 .050 .017", ".958 .533 .192 .058 .033"),
        ("whole_image", ".242 .125 .083 .050 .008 0 0", ".242 .083 .008 0 0"),
        ("mean_box", ".392 .133 .033 .017 0 0 0", ""),
    ],
)
def test_controls_on_the_nih_pneumonia_boxes(control, iou, iobb):
    """The numbers of docs/evaluation.md, each image's own box left out of the means."""
    predicted = flatten(controls.control_boxes(control, NIH, np.arange(120), np.arange(120)))
    scores = protocols.accuracy(predicted, flatten(list(NIH[:, None])), 120)
    for measure, values in (("iou", iou), ("iobb", iobb)):
        found = [round(score.value, 3) for name, score in scores.items() if name.startswith(f"acc_{measure}/")]
        assert not values or found == [float(v) for v in values.split()]


@pytest.mark.parametrize(
    "grid, mean, share", [(7, 0.572, 0.19), (8, 0.595, 0.20), (14, 0.746, 0.71), (16, 0.774, 0.81), (32, 0.871, 0.99)]
)
def test_ceiling_of_a_grid_on_the_nih_pneumonia_boxes(grid, mean, share):
    iou, _ = overlap(controls.snap(NIH, (grid, grid)), NIH)
    assert round(iou.mean(), 3) == mean and round((iou > 0.7).mean(), 2) == share
