"""Regions at all thresholds, the published protocols, the controls' published numbers, calibration, faithfulness."""

import itertools

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score
from test_evaluate import plain_overlap, random_boxes, scene

from infomask_jax.evaluate import (
    bootstrap,
    controls,
    deletion_insertion,
    localization,
    pixels,
    protocols,
    ranking,
    score,
)
from infomask_jax.evaluate.boxes import (
    best_iou,
    false_per_image,
    flatten,
    found_per_image,
    iou_curves,
    overlap,
    overlaps,
)
from infomask_jax.evaluate.frame import prepare_maps, rasterise
from infomask_jax.evaluate.regions import Boxes, range_max, region_boxes, sweep

SEEDS = st.integers(0, 10**6)
# The 120 pneumonia boxes of the public BBox_List_2017.csv: x y w h in tenths of a pixel of the 1024 frame.
PNEUMONIA = """
5740 5749 2298 1661, 6150 5590 2230 1980, 6605 1903 1923 4517, 2088 4031 5723 3925, 5501 4634 1718 2753, 6423 4236
2651 2230, 2031 2097 2446 5336, 2793 3178 6838 3777, 6138 4668 1604 2014, 1200 1471 2537 5962, 5820 1676 2901 4392,
3157 5840 1399 1627, 2020 1607 6042 5302, 6070 5294 2401 1616, 2702 4213 7157 6007, 1894 4406 2185 4107, 5524 4588
1968 1764, 5911 5191 2458 2014, 2065 3997 6918 4585, 1257 2040 7293 6224, 2020 2279 6497 5086, 1018 3143 3072 3641,
1758 2927 1786 2799, 6104 3394 1968 3026, 7037 6170 2185 2492, 6969 3178 910 2355, 6172 4771 2196 1946, 6605 4566 2105
3334, 5911 3883 2446 2719, 5660 2302 2606 5825, 5387 5590 2799 2571, 2509 3485 1445 1115, 5490 2017 1741 1900, 5490
4862 2185 2253, 1849 2165 7145 5916, 2099 3473 7634 4688, 5330 6193 2401 2674, 2634 5920 5860 2970, 6354 4941 1832
1616, 2042 4054 2048 3391, 1576 1255 7111 8215, 5751 3951 2640 3482, 1291 4497 2332 3106, 1951 4657 2708 2788, 1838
2233 6394 3425, 1985 2154 2207 4403, 5262 3860 2537 2276, 5990 1892 3607 5882, 757 1869 7214 6599, 5649 5055 2139
1445, 984 1505 7475 5814, 2725 5692 1001 933, 6286 5123 2412 2162, 5330 3052 2480 2105, 2532 2939 5564 4346, 4534 5920
2674 2002, 6122 3522 2048 2947, 4800 4259 2200 3695, 6177 5830 2557 2048, 2232 5516 2167 2384, 2330 6599 1485 1539,
6447 3088 1853 3543, 6317 4659 1745 1788, 2005 4399 1853 2904, 2720 4269 2178 1636, 1669 5039 2416 1907, 7000 5277
1788 1625, 2135 2557 2015 3771, 6090 5624 1485 1907, 6014 5960 2156 1810, 2330 4757 1712 2861, 2113 5385 1474 1625,
1138 2005 2276 3814, 6285 3587 1875 2330, 2015 6957 1907 1755, 2005 5320 1604 1539, 2676 4930 1550 932, 2850 2850 1875
3565, 1203 5039 2384 2752, 5841 4215 2091 2958, 2384 3413 1441 2330, 1463 5754 2026 2351, 1950 7878 2113 1322, 1701
3272 2601 5104, 6111 5320 2200 3077, 2546 2991 1712 3923, 6209 6610 3327 1950, 2525 5255 2221 3684, 2091 3402 2156
3760, 2048 5624 2124 1051, 3142 3728 1820 2622, 1734 5320 2189 1820, 5916 2644 2872 4833, 2048 5570 1983 1528, 6263
4183 2297 2416, 5548 5786 1755 1940, 1875 3760 2742 3749, 1755 3056 2384 4053, 2232 5006 2395 1235, 3630 4183 1452
2796, 1582 5212 1690 1246, 1365 5689 2308 1755, 5895 4226 1842 2351, 1604 5516 2330 2286, 2059 6946 2373 2156, 401
4356 3088 3663, 5613 1896 2308 4378, 6003 2980 2644 2980, 2276 4508 2471 2081, 5667 5776 2438 2525, 2828 3879 1853
1734, 6978 2416 2427 4562, 1354 2373 2893 3630, 6177 7293 1777 2536, 5689 2601 2666 4237, 5797 2091 2427 3793, 5537
3283 3121 4161, 3110 2427 2211 3608, 2124 6177 2601 1690, 4692 4659 3749 3738
"""


def nih_boxes():
    """True boxes [120,4] in 0..1."""
    x, y, w, h = np.array([box.split() for box in PNEUMONIA.replace("\n", " ").split(",")], float).T / 10 / 1024
    return np.stack([y, x, y + h, x + w], axis=1)


# --- regions


def plain_regions(s, tau):
    """Boxes with pixel counts of the regions {s > tau}: one labelling per threshold."""
    height, width = s.shape
    found, count = ndimage.label(s > tau, np.ones((3, 3)))
    sizes = np.bincount(found.ravel(), minlength=count + 1)[1:]
    slices = ndimage.find_objects(found)
    return [
        (rows.start / height, cols.start / width, rows.stop / height, cols.stop / width, size)
        for (rows, cols), size in zip(slices, sizes, strict=True)
    ]


def hard_map(seed):
    """Maps with plateaus, noise, smooth bumps, few or many levels; not square."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 24, 2)
    kind = rng.integers(4)
    if kind == 0:
        return rng.random((height, width), dtype=np.float32)
    if kind == 1:
        return cv2.resize(rng.random((5, 5), dtype=np.float32), (int(width), int(height)))
    levels = rng.integers(1, 12)
    return (rng.integers(0, levels + 1, (height, width)) / levels).astype(np.float32)


@settings(max_examples=150, deadline=None)
@given(SEEDS)
def test_sweep_equals_one_labelling_per_threshold(seed):
    s, rng = hard_map(seed), np.random.default_rng(seed + 1)
    values = [rng.random(20), np.arange(20) / 20, s.ravel()][rng.integers(3)]
    thresholds = np.unique(rng.choice(values, 9).astype(np.float32))
    found = sweep(s, thresholds)
    for t, tau in enumerate(thresholds):
        alive = (found.first <= t) & (t <= found.last)
        boxes = sorted((*b, p) for b, p in zip(found.boxes[alive].tolist(), found.pixels[alive], strict=True))
        assert boxes == sorted(plain_regions(s, tau))


def test_sweep_of_values_too_fine_for_one_float64_is_exact():
    """Value and position share a float64 where they fit; a large frame takes the other way."""
    s = np.zeros((3000, 3000), np.float32)
    s[5:9, 5:9], s[7, 2000], s[2500:2600, 1000:1400] = 0.9, 1e30, np.float32(0.1)
    found = sweep(s, np.array([0, 0.5, 2], np.float32))
    boxes = {tuple(np.rint(b * 3000).astype(int)) for b in found.boxes}
    assert boxes == {(5, 5, 9, 9), (7, 2000, 8, 2001), (2500, 1000, 2600, 1400)}
    assert [int(((found.first <= t) & (t <= found.last)).sum()) for t in range(3)] == [3, 2, 1]


@settings(max_examples=50, deadline=None)
@given(SEEDS)
def test_range_max_equals_a_plain_loop(seed):
    rng = np.random.default_rng(seed)
    size, n = rng.integers(1, 40), rng.integers(0, 30)
    ends = np.sort(rng.integers(0, size, (n, 2)), axis=1)
    values = rng.random(n)
    plain = [values[(ends[:, 0] <= t) & (t <= ends[:, 1])].max(initial=0) for t in range(size)]
    np.testing.assert_array_equal(range_max(values, ends[:, 0], ends[:, 1], int(size)), plain)


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_regions_of_one_threshold_equal_scipy_labels(seed):
    rng = np.random.default_rng(seed)
    maps = rng.random((5, 9, 7), dtype=np.float32)
    threshold = np.float32(rng.uniform(0, 1))
    expected = set()
    for i, s in enumerate(maps):
        labels = ndimage.label(s >= threshold, np.ones((3, 3)))[0]
        for number, (rows, cols) in enumerate(ndimage.find_objects(labels), 1):
            peak = s[labels == number].max()
            expected.add((i, rows.start / 9, cols.start / 7, rows.stop / 9, cols.stop / 7, float(peak)))
    found, peaks = region_boxes(maps, threshold)
    assert {(i, *b, float(p)) for b, i, p in zip(found.boxes, found.image, peaks, strict=True)} == expected
    assert (np.diff(found.image) >= 0).all()


# --- WSOL


def map_box_pairs(n=200, size=24):
    """Maps that are hot near their boxes, with noise and ties; one or two boxes each."""
    rng = np.random.default_rng(0)
    maps, true = rng.integers(0, 61, (n, size, size)), []
    for s in maps:
        y, x, h, w = *rng.integers(0, size - 14, 2), *rng.integers(5, 12, 2)
        s[y : y + h, x : x + w] += rng.integers(5, 36)
        s[rng.integers(0, size), rng.integers(0, size)] = 100
        own = np.array([[y, x, y + h, x + w]]) + rng.uniform(-1, 2, 4)  # not quite where the map is hot
        true.append(np.vstack([own / size, random_boxes(rng, rng.integers(0, 2))]))
    smooth = [cv2.GaussianBlur(s.astype(np.float32), (0, 0), 1.5) for s in maps[: n // 2]]
    return prepare_maps(np.concatenate([smooth, maps[n // 2 :]]), size), true


def test_max_box_acc_equals_one_connected_components_call_per_threshold(monkeypatch):
    maps, true = map_box_pairs()
    taus = protocols.TAUS[::10]
    best, largest = np.zeros((2, len(maps), len(taus)))
    for i, s in enumerate(maps):
        for t, tau in enumerate(taus):
            regions = plain_regions(s, tau)
            iou = [max(plain_overlap(r, g)[0] for g in true[i]) for r in regions]
            best[i, t] = max(iou, default=0)
            order = sorted(range(len(regions)), key=lambda j: (-regions[j][4], regions[j][0], regions[j][1]))
            largest[i, t] = iou[order[0]] if regions else 0
    found = iou_curves(maps, flatten(true), taus)
    np.testing.assert_allclose(found[0], best, atol=1e-6)
    np.testing.assert_allclose(found[1], largest, atol=1e-6)
    for delta in (0.3, 0.5, 0.7):  # no pair so close to a threshold that rounding decides
        assert np.abs(best - delta).min() > 1e-6

    monkeypatch.setattr(protocols, "TAUS", taus)
    scores, chosen = protocols.wsol(maps, flatten(true))
    assert scores["max_box_acc_v2"].value == np.mean([(best >= d).mean(0).max() for d in (0.3, 0.5, 0.7)])
    assert scores["max_box_acc"].value == (largest >= 0.5).mean(0).max()
    assert (best >= 0.3).mean(0)[np.searchsorted(taus, np.float32(chosen["0.3"]))] == (best >= 0.3).mean(0).max()
    assert 0.2 < scores["max_box_acc"].value < 0.8 and 0.2 < scores["max_box_acc_v2"].value < 0.8

    weights, index = bootstrap.patient_weights(np.arange(len(maps)) // 2, 20)
    draws = [np.repeat(np.arange(len(maps)), times[index].astype(int)) for times in weights]
    cases = {"max_box_acc": [largest >= 0.5], "max_box_acc_v2": [best >= d for d in (0.3, 0.5, 0.7)]}
    for name, hits in cases.items():
        expected = np.zeros(len(draws))
        for hit in hits:
            every, each = hit.mean(0), [hit[rows].mean(0) for rows in draws]
            optimism = np.mean([shares.max() - every[shares.argmax()] for shares in each])
            expected += np.array([shares[every.argmax()] - optimism for shares in each]) / len(hits)
        np.testing.assert_allclose(bootstrap.estimate(scores[name], weights, index).samples, expected)


def test_intervals_of_max_box_acc_cover_the_population_and_those_of_the_maximum_do_not():
    rng = np.random.default_rng(0)
    low, high = np.sort(rng.random((2, 4000, 2)), axis=0)  # an image is hit at thresholds between two of its own
    hits = (low[:, None] < protocols.TAUS[::20, None]) & (protocols.TAUS[::20, None] < high[:, None])
    truth, covered = protocols._mean_of_maxima(hits.mean(0)), {}
    for resampled in (protocols._without_optimism, None):
        held = []
        for seed in range(100):
            own = hits[np.random.default_rng(seed).integers(0, len(hits), 40)]
            score = bootstrap.PerImage(own, np.ones(40), protocols._mean_of_maxima, resampled=resampled)
            found = bootstrap.as_json(bootstrap.estimate(score, *bootstrap.patient_weights(range(40), 200, seed)))
            held.append(found["ci95"][0] <= truth <= found["ci95"][1])
            assert found["value"] == pytest.approx(protocols._mean_of_maxima(own.mean(0)), abs=1e-6)
        covered[resampled] = np.mean(held)
    assert 0.92 <= covered[protocols._without_optimism] <= 0.98 and covered[None] < 0.88


def test_interval_of_a_perfect_score_ends_at_it():
    hits = np.ones((10, 5, 1), bool)
    hits[0, 3:] = False
    score = bootstrap.PerImage(hits, np.ones(10), protocols._mean_of_maxima, resampled=protocols._without_optimism)
    found = bootstrap.as_json(bootstrap.estimate(score, *bootstrap.patient_weights(range(10))))
    assert found["value"] == found["ci95"][1] == 1 and found["ci95"][0] <= 1


def test_pixels_that_touch_at_a_corner_are_one_region():
    s = np.zeros((1, 6, 6), np.float32)
    s[0, 1, 1] = s[0, 2, 2] = 1
    true = flatten([np.array([[1, 1, 3, 3]]) / 6])
    assert protocols.wsol(s, true)[0]["max_box_acc_v2"].value == 1


def test_wsol_takes_boxes_as_they_are():
    true = flatten([np.array([[0, 0, 0.5, 0.5]])] * 2)
    small_hit, large_miss = np.array([[0, 0, 0.5, 0.4]]), np.array([[0.1, 0.1, 1, 1]])
    predicted = flatten([np.vstack([large_miss, small_hit]), np.zeros((0, 4))])
    scores, chosen = protocols.wsol(np.zeros((2, 4, 4), np.float32), true, predicted)
    assert scores["max_box_acc_v2"].value == 0.5 and scores["max_box_acc"].value == 0 and not chosen


# --- Wang, Li, CheXlocalize, pixels


def test_wang_draws_boxes_at_both_thresholds_on_all_boxed_images():
    s = np.zeros((2, 20, 20), np.float32)
    s[0, 2:12, 2:12], s[0, 4:8, 4:8] = 60 / 255, 180 / 255  # both candidates of image 0
    s[0, 19, 19] = 59.9 / 255  # below
    s[1, 0:5, 0:5] = 1  # an image of another finding: one region, found at both thresholds
    true = Boxes(np.array([[4, 4, 8, 8]]) / 20, np.array([0]))
    scores = protocols.wang2017(s, true, boxes_of_all=np.array([1, 2]))
    assert scores["acc_iou/0.7"].value == 1  # the inner box
    assert scores["afp_iou/0.1"].value == pytest.approx(2 / 3)  # two on image 1; IoU of the outer one is .16
    assert scores["afp_iou/0.2"].value == pytest.approx(3 / 3)
    assert scores["afp_iobb/0.1"].value == pytest.approx(2 / 3) and scores["afp_iobb/0.25"].value == pytest.approx(1)
    assert scores["boxes_per_image"].value == 2


def test_li_scores_the_region_and_not_its_box():
    s, mask = np.zeros((3, 10, 10), np.float32), np.zeros((3, 10, 10), bool)
    mask[:, :4, :5] = True  # 20 pixels
    s[0, :8, :5] = 1  # IoU .5, IoR .5
    s[1, np.arange(10), np.arange(10)] = 1  # a diagonal: its box would have IoU .2
    scores = protocols.li2018(s, mask, 0.5)  # image 2 predicts nothing
    assert scores["acc_iou/0.5"].value == pytest.approx(1 / 3) and scores["acc_iou/0.6"].value == 0
    assert scores["acc_iou/0.1"].value == pytest.approx(2 / 3)  # the diagonal: 4 / (10 + 20 - 4) = .15
    assert scores["acc_ior/0.25"].value == pytest.approx(2 / 3) and scores["acc_ior/0.75"].value == 0


def test_otsu_equals_its_definition():
    """The cut with the largest variance between the classes, of 256 levels."""
    rng = np.random.default_rng(0)
    for s in prepare_maps(rng.random((6, 9, 9)) ** rng.uniform(0.3, 4, (6, 1, 1)), 30):
        levels = np.rint(s * 255).astype(int).ravel()
        between = []
        for cut in range(255):
            low, high = levels[levels <= cut], levels[levels > cut]
            spread = len(low) * len(high) * (low.mean() - high.mean()) ** 2 if len(low) and len(high) else 0
            between.append(spread)
        region = s >= pixels.otsu_thresholds(s[None])[0]
        np.testing.assert_array_equal(region.ravel(), levels > int(np.argmax(between)))


def test_chexlocalize_counts_missed_findings_as_zero():
    s, mask = np.zeros((2, 8, 8), np.float32), np.zeros((2, 8, 8), bool)
    mask[:, :2, :2] = True
    s[0, :2, :2] = 1
    scores = protocols.chexlocalize(s, mask, None)
    assert {name: found.value for name, found in scores.items()} == pytest.approx(
        {"mean_iou_otsu": 0.5, "mean_iou_fixed": 0.5, "hit_rate": (1 + 4 / 64) / 2}
    )
    assert protocols.chexlocalize(s, mask, 0.3)["mean_iou_tuned"].value == 0.5


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_pixel_auprc_equals_scikit_learn_pooled_and_per_image(seed):
    rng = np.random.default_rng(seed)
    maps = prepare_maps(rng.integers(0, rng.integers(2, 40), (4, 9, 9)), 9)
    mask = rng.random((4, 9, 9)) < 0.3
    mask[:, 0, 0] = True
    scores = protocols.pixel_auprc(maps, mask)
    assert scores["pooled"].value == pytest.approx(average_precision_score(mask.ravel(), maps.ravel()), abs=1e-9)
    alone = [average_precision_score(m.ravel(), s.ravel()) for m, s in zip(mask, maps, strict=True)]
    np.testing.assert_allclose(scores["per_image"].part, alone, atol=1e-9)


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


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_rsna_equals_a_plain_loop(seed):
    rng = np.random.default_rng(seed)
    true = [random_boxes(rng, rng.integers(0, 4)) for _ in range(6)]
    predicted = [
        np.vstack([t[rng.random(len(t)) < 0.8] + rng.uniform(-0.03, 0.03, 4), random_boxes(rng, rng.integers(0, 2))])
        for t in true
    ]
    flat = flatten(predicted)
    scores = rng.permutation(len(flat.boxes)) / 10
    plain = [plain_rsna(predicted[i], scores[flat.image == i], true[i]) for i in range(6)]
    found = protocols.rsna(flat, scores, flatten(true), 6)["map"]
    assert [v if w else None for v, w in zip(found.part, found.whole, strict=True)] == pytest.approx(plain)
    counted = [v for v in plain if v is not None]
    assert found.value == pytest.approx(np.mean(counted)) if counted else np.isnan(found.value)


def test_rsna_matches_in_the_order_of_the_scores():
    """The confident box takes the true box it fits best, and leaves the other box none."""
    true = flatten([np.array([[0, 0, 0.4, 1], [0.2, 0, 0.6, 1]])])
    boxes = flatten([np.array([[0.08, 0, 0.48, 1], [0, 0, 0.36, 1]])])  # IoU .667 .538 and .9 .267
    confident_first = protocols.rsna(boxes, np.array([0.9, 0.1]), true, 1)["map"].value
    confident_last = protocols.rsna(boxes, np.array([0.1, 0.9]), true, 1)["map"].value
    assert confident_first == pytest.approx((8 * 1 / 3) / 8)  # one hit, one false, one missed, at every level
    assert confident_last == pytest.approx((3 * 1 + 5 * 1 / 3) / 8)  # two hits up to .50
    alone, doubled = flatten([boxes.boxes[1:]]), flatten([np.repeat(boxes.boxes[1:], 2, axis=0)])
    assert protocols.rsna(alone, np.ones(1), true, 1)["map"].value == pytest.approx(1 / 2)
    assert protocols.rsna(doubled, np.ones(2), true, 1)["map"].value == pytest.approx(1 / 3)  # matched once only


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_tuned_confidence_is_the_best_of_all(seed):
    rng = np.random.default_rng(seed)
    true = [random_boxes(rng, rng.integers(0, 2)) for _ in range(12)]
    predicted = [t + rng.uniform(-0.05, 0.05, 4) if len(t) else random_boxes(rng, rng.integers(0, 2)) for t in true]
    probabilities = rng.integers(0, 6, 12) / 5

    def at(cut):
        kept = flatten([b if p >= cut else b[:0] for b, p in zip(predicted, probabilities, strict=True)])
        return np.nan_to_num(protocols.rsna(kept, np.ones(len(kept.boxes)), flatten(true), 12)["map"].value)

    flat = flatten(predicted)
    tuned = protocols.tune_confidence(flat, np.ones(len(flat.boxes)), flatten(true), probabilities)
    assert at(tuned) == pytest.approx(max(at(cut) for cut in np.unique(probabilities)))


def test_rsna_predicts_only_where_the_classifier_is_confident_and_controls_everywhere():
    (data, maps), (val, val_maps) = scene(60), scene(60, seed=1)
    result, rows = score(["mass"], data, {"cam": maps}, val=val, val_maps={"cam": val_maps}, frame=32, resamples=5)
    entry = result["localization"]["mass"]
    cut = entry["cam"]["protocols"]["rsna"]["threshold"]
    assert cut["tuned_on"] == "val" and cut["confidence"]["tuned_on"] == "val"
    assert 0.4 < cut["confidence"]["value"] < 0.7  # probabilities are .5 label + .5 noise
    negative = data["labels"][:, 0] == 0
    expected = (~negative).sum() + (negative & (data["probabilities"][:, 0] >= cut["confidence"]["value"])).sum()
    assert entry["cam"]["protocols"]["rsna"]["map"]["n"] == expected < 60
    assert entry["control/lung_boxes"]["protocols"]["rsna"]["map"]["n"] == 60
    assert entry["control/lung_boxes"]["protocols"]["rsna"]["threshold"]["confidence"] is None
    scored = [r for r in rows if r["method"] == "cam" and r["rsna"] is not None]
    assert np.mean([r["rsna"] for r in scored]) == pytest.approx(
        entry["cam"]["protocols"]["rsna"]["map"]["value"], abs=1e-6
    )


# --- controls: numbers computed from the public box list


@pytest.mark.parametrize(
    "control, iou, iobb",
    [
        ("mean_right_box", ".550 .467 .325 .167 .067 .025 .008", ".558 .525 .267 .167 .083"),
        ("mean_lung_boxes", ".933 .808 .567 .300 .142 .067 .033", ".950 .875 .433 .225 .125"),
        ("lung_boxes", ".958 .675 .383 .175 .083 .050 .017", ".958 .533 .192 .058 .033"),
        ("whole_image", ".242 .125 .083 .050 .008 0 0", ".242 .083 .008 0 0"),
        ("mean_box", ".392 .133 .033 .017 0 0 0", None),
    ],
)
def test_controls_on_the_nih_pneumonia_boxes(control, iou, iobb):
    true = nih_boxes()
    n = len(true)
    assert n == 120
    predicted = flatten(controls.control_boxes(control, true, np.arange(n), np.arange(n)))
    found = found_per_image(predicted, flatten(list(true[:, None])), protocols.IOU_LEVELS, n).mean(0)
    assert [round(v, 3) for v in found] == [float(v) for v in iou.split()]
    if iobb:
        found = found_per_image(predicted, flatten(list(true[:, None])), protocols.IOBB_LEVELS, n, "iobb").mean(0)
        assert [round(v, 3) for v in found] == [float(v) for v in iobb.split()]


@pytest.mark.parametrize(
    "grid, mean, share", [(7, 0.572, 0.19), (8, 0.595, 0.20), (14, 0.746, 0.71), (16, 0.774, 0.81), (32, 0.871, 0.99)]
)
def test_ceiling_of_a_grid_on_the_nih_pneumonia_boxes(grid, mean, share):
    true = nih_boxes()
    iou, _ = overlap(controls.snap(true, (grid, grid)), true)
    assert round(iou.mean(), 3) == mean and round((iou > 0.7).mean(), 2) == share


def test_the_whole_score_gives_the_controls_of_the_nih_pneumonia_boxes():
    """Through `score`: 120 images, a map of 14 x 14 for each, no validation."""
    true, rng = nih_boxes(), np.random.default_rng(0)
    data = {
        "image_id": [f"{i}.png" for i in range(120)], "patient_id": [""] * 120, "labels": np.ones((120, 1), int),
        "boxes": [(box[None], np.zeros(1, int)) for box in true],
    }  # fmt: skip
    result, _ = score(["Pneumonia"], data, {"noise": rng.random((120, 14, 14))}, frame=32, resamples=10)
    rows = result["localization"]["Pneumonia"]
    assert rows["control/mean_lung_boxes"]["acc_iou"]["0.3"]["value"] == pytest.approx(0.567, abs=5e-4)
    assert rows["control/whole_image"]["protocols"]["wang2017"]["acc_iou"]["0.1"]["value"] == pytest.approx(
        29 / 120, abs=1e-6
    )
    assert rows["ceiling/14x14"]["acc_iou"]["0.7"]["value"] == pytest.approx(0.71, abs=5e-3)
    assert rows["ceiling/14x14"]["mean_iou"]["value"] == pytest.approx(0.746, abs=0.02)  # in pixels of a coarse frame
    assert rows["ceiling/14x14"]["acc_iou"]["0.7"]["value"] > rows["control/mean_lung_boxes"]["acc_iou"]["0.7"]["value"]


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(1, 40), st.integers(1, 40))
def test_snapped_boxes_lie_on_the_grid_with_at_least_one_cell(seed, rows, columns):
    true = random_boxes(np.random.default_rng(seed), 5)
    cells = controls.snap(true, (rows, columns)) * [rows, columns, rows, columns]
    np.testing.assert_allclose(cells, np.rint(cells), atol=1e-9)
    assert (cells[:, 2:] - cells[:, :2] >= 1 - 1e-9).all() and cells.min() >= -1e-9
    assert (cells <= np.array([rows, columns] * 2) + 1e-9).all()
    centre = (true[:, :2] + true[:, 2:]) / 2 * [rows, columns]
    assert (cells[:, :2] <= centre + 0.5).all() and (centre - 0.5 <= cells[:, 2:]).all()


# --- place: half-pixel centres and orientation


@pytest.mark.parametrize("grid, cell", [((8, 8), (1, 6)), ((7, 14), (5, 2)), ((14, 7), (0, 6)), ((16, 16), (15, 0))])
def test_one_hot_cell_finds_its_own_box_and_no_mirrored_one(grid, cell):
    """A box of exactly one cell: the region above half of the maximum is that cell, to a pixel, wherever it lies."""
    (rows, columns), (r, c) = grid, cell
    heat = np.zeros((1, rows, columns), np.float32)
    heat[0, r, c] = 1
    box = np.array([[r / rows, c / columns, (r + 1) / rows, (c + 1) / columns]])
    prepared = prepare_maps(heat, 224)
    found = region_boxes(prepared, 0.5)[0]
    np.testing.assert_allclose(found.boxes, box, atol=1.5 / 224)
    assert pixels.pointing_game(prepared, rasterise(box, 224)[None])[0] == 1
    for flipped in (prepared[:, ::-1], prepared[:, :, ::-1]):
        iou = best_iou(region_boxes(np.ascontiguousarray(flipped), 0.5)[0], flatten([box]), 1)
        assert iou[0] < 0.05


def test_resizing_keeps_the_centre_of_mass():
    """Corner-aligned resizing, or a shift by half a cell, would move it by more than a tenth of a pixel."""
    axis = (np.arange(14) + 0.5) / 14
    bump = np.exp(-((axis[:, None] - 0.3) ** 2 + (axis[None] - 0.64) ** 2) / 0.02)
    fine = prepare_maps(bump[None], 224)[0].astype(float)
    at = (np.arange(224) + 0.5) / 224
    assert (fine.sum(1) @ at / fine.sum(), fine.sum(0) @ at / fine.sum()) == pytest.approx((0.3, 0.64), abs=0.1 / 224)


# --- documented outcomes of odd maps and boxes


def odd(maps, boxes=((0.0, 0.0, 0.25, 0.5),)):
    n = len(maps)
    data = {
        "image_id": [f"image{i}" for i in range(n)], "patient_id": [""] * n, "labels": np.ones((n, 1), int),
        "boxes": [(np.array(boxes), np.zeros(len(boxes), int))] * n,
    }  # fmt: skip
    return score(["mass"], data, {"cam": maps}, frame=32, resamples=5)[0]["localization"]["mass"]["cam"]


def test_constant_maps_score_chance_and_predict_nothing():
    entry = odd(np.full((3, 8, 8), 7.0))
    assert entry["pxap"]["value"] == entry["pointing_game"]["value"] == 0.125  # the boxes' share of the image
    assert entry["mean_iou"]["value"] == entry["max_box_acc_v2"]["value"] == entry["boxes_per_image"] == 0
    assert entry["protocols"]["chexlocalize"]["mean_iou_otsu"]["value"] == 0
    assert entry["protocols"]["rsna"]["map"]["value"] == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_maps_that_are_not_finite_are_refused_by_name(value):
    maps = np.random.default_rng(0).random((4, 8, 8)).astype(np.float16)
    maps[2, 1, 1] = value
    with pytest.raises(ValueError, match="cam maps with NaN, infinity or float16 overflow: image2"):
        odd(maps)
    with pytest.raises(ValueError, match=r"cam maps with NaN.*image0, image1"):
        odd(np.full((4, 8, 8), np.nan))


def test_maps_of_extreme_range_or_offset_keep_their_order():
    shape = np.zeros((1, 8, 8))
    shape[0, :2, :4] = 1
    for dtype, low, high in (
        *((np.float32, -3e38, 3e38), (np.float64, -1.7e308, 1.7e308), (np.float64, 1.0, 1 + 1e-12)),
        *((np.float16, -65504, 65504), (np.float32, 0, 1e-44), (np.int64, 2**40, 2**40 + 1)),
    ):
        entry = odd(np.where(shape > 0, dtype(high), dtype(low)).astype(dtype))
        assert entry["mean_iou"]["value"] > 0.85, dtype


def test_boxes_of_one_pixel_and_less_are_scored():
    heat = np.zeros((1, 32, 32), np.float32)
    heat[0, 4, 8] = 1
    entry = odd(heat, boxes=((4 / 32, 8 / 32, 5 / 32, 9 / 32),))
    assert entry["mean_iou"]["value"] == entry["acc_iou"]["0.7"]["value"] == entry["pointing_game"]["value"] == 1
    smaller = odd(
        heat, boxes=((4.2 / 32, 8.2 / 32, 4.4 / 32, 8.4 / 32),)
    )  # in pixels it fills one, as a box it is small
    assert smaller["mean_iou"]["value"] == 1 and smaller["acc_iou"]["0.1"]["value"] == 0


@pytest.mark.parametrize("shape", [(3, 8), (2, 8, 8), (3, 8, 8, 2), (3, 0, 8), (3, 8, 8, 1, 1)])
def test_maps_of_a_wrong_shape_are_refused(shape):
    data = {
        "image_id": list("abc"), "patient_id": [""] * 3, "labels": np.ones((3, 1), int),
        "boxes": [(np.array([[0, 0, 0.5, 0.5]]), np.zeros(1, int))] * 3,
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"expected cam maps of shape \(3, h, w\)"):
        score(["mass"], data, {"cam": np.zeros(shape)}, frame=16, resamples=5)
    with pytest.raises(ValueError, match="expected numbers"):
        score(["mass"], data, {"cam": np.full((3, 4, 4), "x")}, frame=16, resamples=5)


def test_unknown_protocols_are_refused_and_chosen_ones_reported():
    data, maps = scene(20)
    result, rows = score(["mass"], data, {"cam": maps}, frame=16, resamples=5, protocols=("li2018",))
    assert set(result["localization"]["mass"]["cam"]["protocols"]) == {"li2018"} and "rsna" not in rows[0]
    with pytest.raises(ValueError, match=r"expected protocols among wang2017.*found lee2018"):
        score(["mass"], data, {"cam": maps}, frame=16, resamples=5, protocols=("lee2018",))


def test_every_protocol_says_where_its_threshold_is_from():
    (data, maps), (val, val_maps) = scene(30), scene(30, seed=1)
    for options, tuned in (({"val": val, "val_maps": {"cam": val_maps}}, "val"), ({}, "fixed")):
        entry = score(["mass"], data, {"cam": maps}, frame=16, resamples=5, **options)[0]["localization"]["mass"]["cam"]
        sources = {name: block["threshold"]["tuned_on"] for name, block in entry["protocols"].items()}
        assert sources == {
            "wang2017": "fixed", "li2018": tuned, "wsol": "oracle", "chexlocalize": tuned, "rsna": tuned,
            "pixel_auprc": "fixed",
        }  # fmt: skip
        assert ("mean_iou_tuned" in entry["protocols"]["chexlocalize"]) == (tuned == "val")


def test_rows_of_images_average_to_the_scores():
    data, maps = scene(40)
    result, rows = score(["mass"], data, {"cam": maps}, frame=16, resamples=5)
    entry, own = result["localization"]["mass"]["cam"], [r for r in rows if r["method"] == "cam"]
    scored = [r for r in own if r["iou"] is not None]
    assert len(scored) == result["counts"]["mass"]["scored_images"] and len(own) == 40
    assert np.mean([r["iou"] for r in scored]) == pytest.approx(entry["mean_iou"]["value"], abs=1e-5)
    assert np.mean([r["pointing_game"] for r in scored]) == pytest.approx(entry["pointing_game"]["value"], abs=1e-5)
    found = sum(r["boxes_found_iou_0.3"] for r in scored) / sum(r["true_boxes"] for r in scored)
    assert found == pytest.approx(entry["acc_iou"]["0.3"]["value"], abs=1e-5)


# --- calibration


def test_calibration_error_equals_a_plain_loop_and_reliability_equals_scikit_learn():
    rng = np.random.default_rng(0)
    p = rng.random(500)
    y = (rng.random(500) < p**2).astype(int)
    edges, gap = np.linspace(0, 1, 16), 0.0
    for low, high in itertools.pairwise(edges):
        own = (p > low) & (p <= high)
        gap += own.mean() * abs(p[own].mean() - y[own].mean())
    found = ranking.calibration_error(y, p)
    assert found.value == pytest.approx(gap)
    weights, index = bootstrap.patient_weights(np.arange(500) // 4, 5)
    for times, value in zip(weights, bootstrap.estimate(found, weights, index).samples, strict=True):
        drawn = np.repeat(np.arange(500), times[index].astype(int))
        assert value == pytest.approx(ranking.calibration_error(y[drawn], p[drawn]).value)
    share, mean = calibration_curve(y, p, n_bins=15)
    rows = ranking.reliability(y, p)
    np.testing.assert_allclose([r["positive_share"] for r in rows], share, atol=1e-6)
    np.testing.assert_allclose([r["mean_probability"] for r in rows], mean, atol=1e-6)
    assert sum(r["n"] for r in rows) == 500
    edges = ranking.reliability(np.zeros(3, int), np.array([0.0, 1 / 3, 1.0]))  # a bin holds its upper edge
    assert [r["to"] for r in edges] == pytest.approx([1 / 15, 1 / 3, 1], abs=1e-6)


def test_a_calibrated_classifier_has_a_small_error_and_certain_mistakes_a_large_one():
    rng = np.random.default_rng(0)
    p = rng.random(20000)
    assert ranking.calibration_error((rng.random(20000) < p).astype(int), p).value < 0.02
    assert ranking.calibration_error(np.array([0, 1]), np.array([1.0, 0.0])).value == 1


# --- deletion and insertion


def test_deletion_and_insertion_of_a_model_that_reads_one_square():
    """The score is the contrast of one square: the right map deletes it at once, the opposite one last."""
    rng = np.random.default_rng(0)
    images = rng.normal(0, 0.01, (3, 40, 40)).astype(np.float32)
    images[:, 4:12, 20:28] += 1

    def predict(batch):
        return batch[:, 4:12, 20:28].mean((1, 2))

    right, wrong = np.zeros((3, 10, 10)), np.ones((3, 10, 10))
    right[:, 1:3, 5:7], wrong[:, 1:3, 5:7] = 1, 0
    good, curves = deletion_insertion(predict, images, right)
    bad, _ = deletion_insertion(predict, images, wrong)
    assert good["deletion"].value < bad["deletion"].value - 0.2
    assert good["insertion"].value > bad["insertion"].value + 0.2
    blurred = predict(np.stack([cv2.GaussianBlur(x, (0, 0), 2) for x in images]))  # 5% of 40 px
    assert curves["deletion"][0] == curves["insertion"][-1] == pytest.approx(predict(images).mean())
    assert curves["deletion"][-1] == curves["insertion"][0] == pytest.approx(blurred.mean(), abs=1e-6)
    for i in range(3):  # images do not mix
        alone, _ = deletion_insertion(predict, images[i : i + 1], right[i : i + 1])
        assert alone["deletion"].part[0] == pytest.approx(good["deletion"].part[i])


def test_deletion_takes_the_highest_pixels_first():
    image, heat = np.arange(100, dtype=np.float32).reshape(1, 10, 10), np.arange(100).reshape(1, 10, 10)
    seen = []
    deletion_insertion(lambda batch: seen.append(batch.copy()) or np.zeros(1), image, heat)
    changed = seen[2] != image  # deletion at 5%
    assert set(np.flatnonzero(changed.ravel())) <= set(range(95, 100)) and changed.sum() >= 4


def test_a_predict_that_fails_is_refused():
    image = np.zeros((2, 8, 8), np.float32)
    for predict in (lambda b: np.zeros(3), lambda b: np.full(2, np.nan)):
        with pytest.raises(ValueError, match="predict: expected 2 finite scores"):
            deletion_insertion(predict, image, np.zeros((2, 4, 4)))
    with pytest.raises(ValueError, match="as many maps"):
        deletion_insertion(lambda b: np.zeros(2), image, np.zeros((3, 4, 4)))


def test_perfect_one_pixel_box_has_iou_one():
    s = np.zeros((1, 7, 7), np.float32)
    s[0, 6, 6] = 1
    true = flatten([np.array([[6 / 7, 6 / 7, 1, 1]])])
    np.testing.assert_allclose(overlaps(region_boxes(s, 0.5)[0], true)[2], 1)


def test_the_ceiling_of_a_grid_is_the_truth_on_it():
    """With an exact mask, pixel scores are of the mask on the grid; a finer grid is never worse."""
    mask = np.zeros((32, 32), bool)
    mask[3:14, 18:27] = True
    mask[3:8, 18:22] = False
    data = {
        "image_id": ["a", "b"], "patient_id": ["", ""], "labels": np.ones((2, 1), int), "masks": [mask, mask[::-1]],
        "boxes": [(np.array([[3, 18, 14, 27]]) / 32, np.zeros(1, int)), (np.array([[18, 18, 29, 27]]) / 32, [0])],
    }  # fmt: skip
    noise = np.random.default_rng(0)
    maps = {f"of_{g}": noise.random((2, g, g)) for g in (4, 8, 32)}
    rows = score(["mass"], data, maps, frame=32, resamples=5)[0]["localization"]["mass"]
    for metric in ("pxap", "mean_iou"):
        low, middle, full = (rows[f"ceiling/{g}x{g}"][metric]["value"] for g in (4, 8, 32))
        assert low < middle < full == 1, metric
    # Box a becomes rows 4-16 and columns 16-28 of 32 on the 8 x 8 grid, IoU 90 / 153; b mirrors it.
    assert rows["ceiling/8x8"]["acc_iou"]["0.5"]["value"] == 1 and rows["ceiling/8x8"]["acc_iou"]["0.6"]["value"] == 0


@pytest.mark.parametrize("pixels_high, level", [(3, 0.3), (7, 0.7)])
def test_an_overlap_equal_to_a_threshold_is_no_hit_of_wang_and_one_of_wsol(pixels_high, level):
    """3 of 10 rows are an IoU of .3, whatever rounding errors the edges in 0..1 bring."""
    for top in range(20):
        true = flatten([np.array([[top, 0, top + 10, 112]]) / 224])
        predicted = flatten([np.array([[top, 0, top + pixels_high, 112]]) / 224])
        assert found_per_image(predicted, true, [level - 0.1, level], 1).tolist() == [[1, 0]]
        assert false_per_image(predicted, true, [level - 0.1, level], 1).tolist() == [[0, 1]]
        scores, _ = protocols.wsol(np.zeros((1, 4, 4), np.float32), true, predicted)
        assert scores["max_box_acc_v2"].value == pytest.approx({0.3: 1 / 3, 0.7: 1}[level])
        stored = Boxes(true.boxes.astype(np.float32).astype(float), true.image)  # as data sets keep them
        assert found_per_image(predicted, stored, [level - 0.1, level], 1).tolist() == [[1, 0]]
        levels_below = sum(t < level - 1e-9 for t in protocols.RSNA_LEVELS)
        assert protocols.rsna(predicted, np.ones(1), stored, 1)["map"].value == pytest.approx(levels_below / 8)


def test_images_are_visited_in_chunks_without_a_change(monkeypatch):
    data, maps = scene(30)
    whole = score(["mass"], data, {"cam": maps}, frame=16, resamples=5)
    monkeypatch.setattr(localization, "CHUNK", 7)
    assert score(["mass"], data, {"cam": maps}, frame=16, resamples=5) == whole


def test_what_is_counted_by_rsna_and_by_wang():
    """Unknown labels are not healthy images; AFP is per box of any finding, not per image."""
    data, maps = scene(30, findings=2)
    unknown = np.flatnonzero(data["labels"][:, 0] == 0)[:3]
    data["labels"][unknown, 0] = -1
    del data["probabilities"]
    entry = score(["mass", "nodule"], data, {"cam": maps}, frame=16, resamples=5)[0]["localization"]["mass"]["cam"]
    assert entry["protocols"]["rsna"]["map"]["n"] == 27
    boxes = sum(len(b) for b, _ in data["boxes"])
    assert entry["protocols"]["wang2017"]["afp_iou"]["0.1"]["n"] == boxes > sum(len(b) > 0 for b, _ in data["boxes"])
    data["boxes"] = [(b, np.minimum(f, 0) - (f == 1)) for b, f in data["boxes"]]  # nodules become -1: not scored
    data["labels"] = data["labels"][:, :1]
    result = score(["mass"], data, {"cam": maps[..., 0]}, frame=16, resamples=5)[0]
    assert result["localization"]["mass"]["cam"]["protocols"]["wang2017"] == entry["protocols"]["wang2017"]
