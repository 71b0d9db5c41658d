"""Scores against scikit-learn and plain references; conventions; intervals; controls; the whole dict."""

import copy
import json
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from infomask_jax.evaluate import bootstrap, boxes, controls, pixels, ranking
from infomask_jax.evaluate import score as score_all
from infomask_jax.evaluate.frame import prepare_maps, rasterise, resize_mask
from infomask_jax.evaluate.truth import finding_truth, patients_of

SEEDS = st.integers(0, 10**6)


def score(*args, **options):
    """The scores without their per-image rows."""
    return score_all(*args, **options)[0]


def scene(n=40, grid=16, findings=1, seed=0, boxed=True, noise=0.3):
    """A split whose positives have one or two boxes, and maps that are hot in them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (n, findings))
    maps = noise * rng.random((n, grid, grid, findings), dtype=np.float32)
    found = []
    for i in range(n):
        own, finding = [], []
        for k in np.flatnonzero(labels[i]) if boxed else ():
            for _ in range(rng.integers(1, 3)):
                y, x, h, w = *rng.integers(0, grid - 5, 2), *rng.integers(2, 6, 2)
                maps[i, y : y + h, x : x + w, k] += 0.7
                own.append(np.array([y, x, y + h, x + w]) / grid)
                finding.append(k)
        found.append((np.reshape(own, (-1, 4)), np.array(finding, int)))
    data = {
        "image_id": [f"{'' if seed == 0 else f'of {seed} '}image{i}" for i in range(n)],
        "patient_id": [f"patient{i // 2}" for i in range(n)],
        "labels": labels,
        "probabilities": 0.5 * labels + 0.5 * rng.random((n, findings)),
        "boxes": found,
    }
    return data, maps if findings > 1 else maps[..., 0]


def random_case(seed, n=6, size=12):
    """Maps with many ties, and truth, as the pixel scores take them."""
    rng = np.random.default_rng(seed)
    maps = prepare_maps(rng.integers(0, rng.integers(2, 40), (n, size, size)), size)
    return maps, rng.random((n, size, size)) < rng.uniform(0.05, 0.6)


# --- pixels


@settings(max_examples=50, deadline=None)
@given(SEEDS)
def test_pxap_equals_scikit_learn(seed):
    maps, truth = random_case(seed)
    assert pixels.pixel_average_precision(maps, truth) == pytest.approx(
        average_precision_score(truth.ravel(), maps.ravel()), abs=1e-9
    )


def test_pxap_equals_scikit_learn_without_ties():
    rng = np.random.default_rng(1)
    maps, truth = prepare_maps(rng.random((20, 64, 64)), 64), rng.random((20, 64, 64)) < 0.1
    maps[truth] = np.sqrt(maps[truth])
    assert pixels.pixel_average_precision(maps, truth) == pytest.approx(
        average_precision_score(truth.ravel(), maps.ravel()), abs=1e-6
    )


def test_pxap_of_a_constant_map_is_the_true_share():
    truth = np.zeros((2, 10, 10), bool)
    truth[0, :3] = True
    assert pixels.pixel_average_precision(np.zeros((2, 10, 10), np.float32), truth) == pytest.approx(0.15)


def test_unprepared_maps_are_refused():
    truth = np.ones((1, 4, 4), bool)
    for maps in (np.full((1, 4, 4), 2, np.float32), np.full((1, 4, 4), np.nan, np.float32), np.zeros((1, 4, 4))):
        with pytest.raises(ValueError, match="expected"):
            pixels.pixel_average_precision(maps, truth)
    with pytest.raises(ValueError, match="one shape"):
        pixels.pointing_game(np.zeros((1, 5, 5), np.float32), truth)


def test_pointing_game_shares_ties():
    maps, truth = np.zeros((3, 4, 4), np.float32), np.zeros((3, 4, 4), bool)
    truth[:, 0, :2] = True
    maps[0, 0, 1] = 1  # inside
    maps[1, 0, 1] = maps[1, 3, 3] = 1  # one of two inside; map 2 is constant
    np.testing.assert_allclose(pixels.pointing_game(maps, truth), [1, 0.5, 2 / 16])


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_iou_of_all_thresholds_equals_one_at_a_time(seed):
    maps, truth = random_case(seed)
    curve = pixels.iou_curve(maps, truth)
    for t, column in zip(pixels.THRESHOLDS, curve.T, strict=True):
        plain = [(m >= t) & g for m, g in zip(maps, truth, strict=True)]
        union = [(m >= t) | g for m, g in zip(maps, truth, strict=True)]
        np.testing.assert_allclose(column, [a.sum() / max(b.sum(), 1) for a, b in zip(plain, union, strict=True)])
        np.testing.assert_array_equal(column, pixels.region_overlap(maps, truth, float(t))[0])


def test_iou_curve_is_exact_at_the_thresholds_themselves():
    """Scores that sit exactly on a threshold belong to its region."""
    grid = np.r_[0, pixels.THRESHOLDS][:100].reshape(1, 10, 10).astype(np.float32)
    truth = grid >= pixels.THRESHOLDS[49]
    assert pixels.iou_curve(grid, truth)[0].argmax() == 49
    assert pixels.iou_curve(grid, truth)[0, 49] == 1


def test_iou_curve_is_exact_next_to_the_thresholds():
    """The neighbours of every threshold in float32, where s * 100 rounds to either side."""
    below, above = (np.nextafter(pixels.THRESHOLDS, np.float32(end)) for end in (0, 1))
    maps = np.concatenate([below, pixels.THRESHOLDS, above])[None, None]
    truth = np.ones(maps.shape, bool)
    plain = [(maps >= t).mean() for t in pixels.THRESHOLDS]
    np.testing.assert_array_equal(pixels.iou_curve(maps, truth)[0], plain)


def test_tuned_threshold_maximises_mean_iou():
    data, maps = scene()
    positive = np.flatnonzero(data["labels"][:, 0])
    prepared = prepare_maps(maps[positive], 32)
    truth = np.stack([rasterise(data["boxes"][i][0], 32) for i in positive])
    threshold = pixels.tune_threshold(pixels.iou_curve(prepared, truth))
    means = {t: pixels.region_overlap(prepared, truth, t / 100)[0].mean() for t in range(1, 101)}
    assert means[round(threshold * 100)] == pytest.approx(max(means.values()))
    few = pixels.tune_threshold(pixels.iou_curve(prepared, truth), np.linspace(0.2, 0.8, 7, dtype=np.float32))
    assert few in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    assert means[round(few * 100)] == pytest.approx(max(means[t] for t in range(20, 81, 10)))


def test_empty_prediction_counts_zero_and_is_not_dropped():
    maps, truth = np.zeros((2, 4, 4), np.float32), np.zeros((2, 4, 4), bool)
    truth[:, :2, :2] = True
    maps[0, :2, :2] = 1
    np.testing.assert_allclose(pixels.region_overlap(maps, truth, 0.5)[0], [1, 0])


# --- frame


def test_constant_maps_become_zero_and_bad_maps_name_the_image():
    assert not prepare_maps(np.full((1, 3, 3), 7.0), 6).any()
    maps = np.random.default_rng(0).random((3, 4, 4)).astype(np.float16)
    maps[1, 0, 0] = np.float16(np.inf)
    with pytest.raises(ValueError, match="image beta"):
        prepare_maps(maps, 8, ["alpha", "beta", "gamma"])
    with pytest.raises(ValueError, match=r"\[n,h,w\]"):
        prepare_maps(maps[0], 8)


@settings(max_examples=50, deadline=None)
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


def test_exact_masks_keep_place_and_never_vanish():
    mask = np.zeros((64, 64), np.uint8)
    mask[8:24, 40:48] = 255
    np.testing.assert_array_equal(resize_mask(mask, 32), rasterise([[8 / 64, 40 / 64, 24 / 64, 48 / 64]], 32))
    np.testing.assert_array_equal(resize_mask(mask, 64), mask > 0)
    dot = np.zeros((64, 64), bool)
    dot[0, 63] = True
    assert resize_mask(dot, 8)[0, 7] and resize_mask(dot, 8).sum() == 1
    assert not resize_mask(np.zeros((8, 8)), 4).any()
    noise = np.random.default_rng(0).random((63, 63)) < 0.5
    np.testing.assert_array_equal(resize_mask(noise, 21), noise[1::3, 1::3])  # the pixel under the centre


# --- boxes


def plain_overlap(a, b):
    """IoU and IoBB of two boxes, one number at a time."""
    height, width = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(height, 0) * max(width, 0)
    area_a, area_b = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    return both / (area_a + area_b - both), both / area_a


def random_boxes(rng, n):
    corner = rng.uniform(0, 0.6, (n, 2))
    return np.hstack([corner, corner + rng.uniform(0.02, 0.4, (n, 2))])


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_hits_and_false_alarms_equal_a_plain_loop(seed):
    rng = np.random.default_rng(seed)
    predicted = [random_boxes(rng, rng.integers(0, 4)) for _ in range(5)]
    true = [random_boxes(rng, rng.integers(0, 3)) for _ in range(5)]
    flat_p, flat_t, levels = boxes.flatten(predicted), boxes.flatten(true), (0.1, 0.5)
    for j, measure in enumerate(("iou", "iobb")):
        found = boxes.found_per_image(flat_p, flat_t, levels, 5, measure)
        for i in range(5):
            for level, count in zip(levels, found[i], strict=True):
                assert count == sum(any(plain_overlap(p, t)[j] > level for p in predicted[i]) for t in true[i])
    wrong = boxes.false_per_image(flat_p, flat_t, levels, 5)
    best = boxes.best_iou(flat_p, flat_t, 5)
    for i in range(5):
        for level, count in zip(levels, wrong[i], strict=True):
            assert count == sum(all(plain_overlap(p, t)[0] <= level for t in true[i]) for p in predicted[i])
        every = [plain_overlap(p, t)[0] for p in predicted[i] for t in true[i]]
        assert best[i] == pytest.approx(max(every, default=0), abs=1e-6)


# --- classification and intervals


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_auroc_and_auprc_equal_scikit_learn_also_on_repeated_images(seed):
    rng = np.random.default_rng(seed)
    labels, scores = rng.integers(0, 2, 30), rng.integers(0, 8, 30) / 8
    expected = [score(labels, scores) for score in (roc_auc_score, average_precision_score)]
    assert ranking.classification(labels, scores) == pytest.approx(expected)
    weights, index = bootstrap.patient_weights(np.arange(30) // 3, 7, seed)
    auroc, auprc = ranking.resampled_classification(labels, scores, weights, index, chunk=60)
    for row, a, p in zip(weights, auroc, auprc, strict=True):
        drawn = np.repeat(np.arange(30), row[index].astype(int))
        if len(set(labels[drawn])) == 2:
            assert a == pytest.approx(roc_auc_score(labels[drawn], scores[drawn]))
            assert p == pytest.approx(average_precision_score(labels[drawn], scores[drawn]))
        else:
            assert np.isnan(a)


@pytest.mark.parametrize(
    "labels, scores", [([0, 1], [0.5, np.nan]), ([1, 1], [0.1, 0.2]), ([0, -1], [0.1, 0.2]), ([], [])]
)
def test_auroc_of_one_class_or_of_no_number_is_refused(labels, scores):
    with pytest.raises(ValueError, match="both present"):
        ranking.classification(np.array(labels), np.array(scores))


def test_resampled_means_and_pxap_equal_a_plain_loop():
    data, maps = scene(20)
    positive = np.flatnonzero(data["labels"][:, 0])
    prepared = prepare_maps(maps[positive], 24)
    truth = np.stack([rasterise(data["boxes"][i][0], 24) for i in positive])
    weights, index = bootstrap.patient_weights(np.array(data["patient_id"])[positive], 6)
    values = pixels.region_overlap(prepared, truth, 0.5)[0]
    means, areas = (
        bootstrap.estimate(found, weights, index).samples
        for found in (bootstrap.average(values), pixels.pxap(prepared, truth))
    )
    for row, m, a in zip(weights, means, areas, strict=True):
        drawn = np.repeat(np.arange(len(positive)), row[index].astype(int))
        assert m == pytest.approx(values[drawn].mean())
        assert a == pytest.approx(pixels.pixel_average_precision(prepared[drawn], truth[drawn]), abs=2e-3)  # binned


def test_resampled_pxap_of_a_perfect_binary_map_is_one():
    truth = np.random.default_rng(0).random((9, 8, 8)) < 0.3
    found = bootstrap.estimate(pixels.pxap(truth.astype(np.float32), truth), *bootstrap.patient_weights(range(9), 5))
    np.testing.assert_allclose(found.samples, 1)


def test_patients_are_drawn_whole():
    weights, index = bootstrap.patient_weights(["b", "a", "b", "c"], 200)
    assert weights.shape == (200, 3) and index[0] == index[2] != index[1]
    np.testing.assert_array_equal(weights.sum(1), 3)


def test_interval_covers_the_mean_about_95_times_in_100():
    """A percentile interval of 80 patients covers .94; over 1,000 repeats the share has a standard error of .007."""
    rng, covered = np.random.default_rng(0), 0
    for seed in range(1000):
        values = rng.normal(2, 1, 80)
        low, high = bootstrap.as_json(
            bootstrap.estimate(bootstrap.average(values), *bootstrap.patient_weights(range(80), 400, seed))
        )["ci95"]
        covered += low <= 2 <= high
    assert 0.915 <= covered / 1000 <= 0.965, covered / 1000


def test_images_of_one_patient_widen_the_interval():
    """Forty copies are not forty patients."""
    values = np.repeat(np.random.default_rng(0).normal(size=10), 4)
    alone = bootstrap.as_json(bootstrap.estimate(bootstrap.average(values), *bootstrap.patient_weights(range(40))))[
        "ci95"
    ]
    together = bootstrap.as_json(
        bootstrap.estimate(bootstrap.average(values), *bootstrap.patient_weights(np.repeat(range(10), 4)))
    )["ci95"]
    assert np.diff(together) > 1.5 * np.diff(alone)


def test_paired_difference_is_narrower_than_the_parts():
    weights = bootstrap.patient_weights(range(50))
    values = np.random.default_rng(0).random(50)
    a, b = (
        bootstrap.estimate(bootstrap.average(values + 0.1), *weights),
        bootstrap.estimate(bootstrap.average(values), *weights),
    )
    difference = bootstrap.as_json(bootstrap.difference(a, b))
    assert difference["value"] == pytest.approx(0.1)
    assert difference["ci95"] == pytest.approx([0.1, 0.1], abs=1e-6)


def test_undefined_is_null_with_a_reason():
    nothing = bootstrap.as_json(
        bootstrap.estimate(
            bootstrap.PerImage(np.zeros(1), np.zeros(1)), *bootstrap.patient_weights(["p"], 5), "no boxes"
        )
    )
    assert nothing == {"value": None, "ci95": None, "n": 0, "reason": "no boxes"}


# --- controls


def test_mean_boxes_leave_the_image_out():
    reference, owner = np.array([[0, 0.1, 0.2, 0.45], [0.2, 0.1, 0.4, 0.45], [0, 0.6, 1, 1.0]]), np.array([4, 7, 7])
    np.testing.assert_allclose(controls.control_boxes("mean_box", reference, owner, np.array([7]))[0], reference[:1])
    np.testing.assert_allclose(
        controls.control_boxes("mean_box", reference, owner, np.array([1]))[0][0], reference.mean(0)
    )
    both = controls.control_boxes("mean_lung_boxes", reference, owner, np.array([0]))[0]
    np.testing.assert_allclose(both, [[0.1, 0.1, 0.3, 0.45], [0, 0.6, 1, 1]])


def test_controls_never_see_the_image():
    """Other maps and probabilities, with and without validation: the controls' rows stay as they are."""
    data, maps = scene()
    val, val_maps = scene(seed=1)
    other = {**data, "probabilities": 1 - data["probabilities"]}
    for first, second in (
        ({"val": val, "val_maps": {"infomask": val_maps}}, {"val": val, "val_maps": {"infomask": maps[:40]}}),
        ({}, {}),
    ):
        one = score(["mass"], data, {"infomask": maps}, frame=32, resamples=20, **first)["localization"]["mass"]
        two = score(["mass"], other, {"infomask": 1 - maps}, frame=32, resamples=20, **second)["localization"]["mass"]
        blind = [m for m in one if m.startswith("control/")]
        assert {m.removeprefix("control/") for m in blind} == {*controls.MAPS, *controls.BOXES}
        for method in blind:
            assert one[method] == two[method]


def test_brightness_is_the_image_in_cells():
    """Scored as the same map from anybody would be; only where both splits have it."""
    image = np.random.default_rng(0).integers(0, 255, (28, 42), np.uint8)
    cells = image.reshape(14, 2, 14, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(controls.brightness(image), cells, rtol=1e-5)
    (data, maps), (val, val_maps) = scene(), scene(seed=1)
    bright = {**data, "brightness": 1 - maps}, {**val, "brightness": 1 - val_maps}
    options = {"frame": 32, "resamples": 20, "val_maps": {"mine": 1 - val_maps}}
    rows = score(["mass"], bright[0], {"mine": 1 - maps}, val=bright[1], **options)["localization"]["mass"]
    ours = {k: v for k, v in rows["control/brightness"].items() if k not in ("threshold", "protocols")}
    assert ours == {k: rows["mine"][k] for k in ours} and len(ours) > 5
    assert rows["control/brightness"]["threshold"] == rows["mine"]["threshold"]
    one_sided = score(["mass"], bright[0], {"mine": 1 - maps}, val=val, **options)["localization"]["mass"]
    assert set(one_sided) == set(rows) - {"control/brightness"}


def test_accuracy_of_control_boxes_equals_a_plain_loop():
    true = random_boxes(np.random.default_rng(3), 12)
    for name in ("mean_box", "mean_lung_boxes", "lung_boxes"):
        predicted = controls.control_boxes(name, true, np.arange(12), np.arange(12))
        found = boxes.found_per_image(boxes.flatten(predicted), boxes.flatten(list(true[:, None])), (0.1, 0.3), 12)
        for level, share in zip((0.1, 0.3), found.mean(0), strict=True):
            plain = [
                any(plain_overlap(p, t)[0] > level for p in drawn) for drawn, t in zip(predicted, true, strict=True)
            ]
            assert share == pytest.approx(np.mean(plain))


# --- the whole


@pytest.fixture(scope="module")
def result():
    (data, maps), (val, val_maps) = scene(), scene(seed=1)
    methods = {"infomask": maps, "cam": maps.astype(np.float16)[:, ::-1]}
    return score(
        ["mass"], data, methods, val=val, val_maps={"infomask": val_maps, "cam": val_maps}, frame=32, resamples=50,
        dataset="squares",
    )  # fmt: skip


def test_result_has_the_promised_shape(result):
    text = json.dumps(result, allow_nan=False)
    assert json.loads(text) == result
    row = result["localization"]["mass"]["infomask"]
    assert set(row["pxap"]) == {"value", "ci95", "n"}
    assert set(row["acc_iou"]) == {"0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7"} == set(row["afp"])
    assert set(row["acc_iobb"]) == {"0.1", "0.25", "0.5", "0.75", "0.9"}
    assert row["threshold"]["tuned_on"] == "val" and row["max_box_acc_v2"]["tuned_on"] == "oracle"
    assert set(result["classification"]["mass"]) == {*("auroc", "auprc", "ece", "brier", "reliability", "prevalence")}
    assert row["pxap"]["n"] == result["counts"]["mass"]["scored_images"]
    assert row["acc_iou"]["0.1"]["n"] == result["counts"]["mass"]["scored_boxes"]
    low, high = row["mean_iou"]["ci95"]
    assert low < row["mean_iou"]["value"] < high


def test_upside_down_or_mirrored_maps_score_worse():
    (data, maps), (val, val_maps) = scene(80), scene(80, seed=1)
    turned = {
        "right": lambda m: m, "upside_down": lambda m: m[:, ::-1], "mirrored": lambda m: m[:, :, ::-1],
        "transposed": lambda m: m.swapaxes(1, 2),
    }  # fmt: skip
    scored = score(
        ["mass"], data, {k: f(maps) for k, f in turned.items()}, val=val,
        val_maps={k: f(val_maps) for k, f in turned.items()}, frame=32, resamples=10,
    )["localization"]["mass"]  # fmt: skip
    for name in ("upside_down", "mirrored", "transposed"):
        for metric in ("pxap", "pointing_game", "mean_iou", "max_box_acc_v2"):
            assert scored[name][metric]["value"] < scored["right"][metric]["value"] - 0.15, (name, metric)


def test_infomask_is_compared_with_cam_and_the_best_control(result):
    differences, rows = result["differences"]["mass"], result["localization"]["mass"]
    gap = differences["infomask - cam"]["pxap"]["value"]
    assert gap == pytest.approx(rows["infomask"]["pxap"]["value"] - rows["cam"]["pxap"]["value"], abs=2e-6)
    best = differences["infomask - best control"]["acc_iou/0.1"]
    blind = {m: r["acc_iou"]["0.1"]["value"] for m, r in rows.items() if m.startswith("control/")}
    assert blind[best["control"]] == max(blind.values())


def test_score_is_seeded():
    data, maps = scene(20)
    runs = [score(["mass"], data, {"cam": maps}, frame=16, resamples=20, seed=s) for s in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_several_findings_and_findings_without_boxes():
    data, maps = scene(40, findings=3)
    data["boxes"] = [(b[f != 2], f[f != 2]) for b, f in data["boxes"]]
    data["labels"][:5, 0] = -1
    data["labels"][:, 1] = 1
    result = score(["a", "b", "c"], data, {"cam": maps, "one_for_all": maps[..., 0]}, frame=16, resamples=20)
    json.dumps(result, allow_nan=False)
    assert set(result["localization"]) == {"a", "b"}
    assert result["counts"]["c"]["scored_images"] == 0 and "reason" in result["counts"]["c"]
    has = np.array([0 in f for _, f in data["boxes"]])
    assert result["counts"]["a"]["scored_images"] == (has & (data["labels"][:, 0] == 1)).sum()
    assert result["counts"]["a"]["skipped_boxed_not_positive"] == has[:5].sum() > 0
    assert result["classification"]["a"]["auroc"]["n"] == 35
    assert result["classification"]["b"]["auroc"] == {"value": None, "ci95": None, "n": 40, "reason": "one class only"}
    own, other = (result["localization"]["b"][m]["pxap"]["value"] for m in ("cam", "one_for_all"))
    assert own > other + 0.2  # each finding is scored on its own map


def test_without_validation_boxes_threshold_is_fixed_and_means_leave_one_out():
    data, maps = scene()
    val, val_maps = scene(seed=1, boxed=False)
    result = score(["mass"], data, {"cam": maps}, val=val, val_maps={"cam": val_maps}, frame=16, resamples=10)
    assert result["localization"]["mass"]["cam"]["threshold"] == {"value": 0.5, "tuned_on": "fixed"}
    assert result["mean_boxes_from"]["mass"].startswith("leave-one-out")


def test_mean_box_averages_every_validation_box():
    """A single one: nothing is left out, so every image gets it."""
    data, maps = scene()
    val, val_maps = scene(seed=1)
    first = next(i for i, (b, _) in enumerate(val["boxes"]) if len(b) == 1)
    val["boxes"] = [pair if i == first else (pair[0][:0], pair[1][:0]) for i, pair in enumerate(val["boxes"])]
    result = score(["mass"], data, {"cam": maps}, val=val, val_maps={"cam": val_maps}, frame=16, resamples=10)
    assert result["mean_boxes_from"]["mass"] == "val"
    assert result["localization"]["mass"]["control/mean_box"]["boxes_per_image"] == 1


def test_split_without_any_box_or_probability():
    data, maps = scene(boxed=False)
    del data["probabilities"]
    result = score(["mass"], data, {"cam": maps}, frame=16, resamples=10)
    assert result["localization"] == {} and result["n_boxed_images"] == 0
    assert result["classification"]["mass"]["auroc"]["reason"] == "no probabilities"
    json.dumps(result, allow_nan=False)


def test_exact_mask_is_the_truth_of_pixel_scores():
    data, _ = scene(11)
    i = int(np.flatnonzero(data["labels"][:, 0])[0])
    data["labels"][:] = 0
    data["labels"][i] = 1
    mask = np.zeros((64, 64), bool)
    mask[0, 0:8] = mask[60:, 60:] = True
    data["masks"] = [mask if j == i else None for j in range(11)]
    data["boxes"] = [(b, f) if j == i else (b[:0], f[:0]) for j, (b, f) in enumerate(data["boxes"])]
    hot = np.zeros((11, 16, 16), np.float32)
    hot[i, 15, 15] = 1  # in the mask, not in the box
    scored = score(["mass"], data, {"cam": hot}, frame=64, resamples=10)["localization"]["mass"]["cam"]
    assert scored["pointing_game"]["value"] == 1
    assert scored["acc_iou"]["0.1"]["value"] == 0  # box scores keep to the boxes


def test_false_positives_are_counted_on_all_boxed_images():
    """Two boxed images, one of another finding: each draws one box, one of them is right."""
    box = np.array([[0.0, 0.0, 0.5, 0.5]])
    data = {
        "image_id": ["a", "b"], "patient_id": ["p", "q"], "labels": np.eye(2, dtype=int),
        "boxes": [(box, np.array([0])), (box, np.array([1]))],
    }  # fmt: skip
    heat = np.zeros((2, 4, 4), np.float32)
    heat[:, :2, :2] = 1
    rows = score(["mass", "nodule"], data, {"cam": heat}, frame=4, resamples=10)["localization"]["mass"]["cam"]
    assert rows["acc_iou"]["0.7"]["value"] == 1 and rows["afp"]["0.7"] == {**rows["afp"]["0.7"], "value": 0.5, "n": 2}


def broken(change):
    data, maps = scene(12)
    data, maps = copy.deepcopy(data), {"cam": maps.copy()}
    change(data, maps)
    return data, maps


BOXED = int(np.flatnonzero(scene(12)[0]["labels"][:, 0])[0])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d, m: d["image_id"].__setitem__(1, "image0"), "twice: image0"),
        (lambda d, m: d["labels"].__setitem__((2, 0), 3), "labels other than .*image2"),
        (lambda d, m: d["probabilities"].__setitem__((2, 0), np.nan), "not in 0..1: image2"),
        (lambda d, m: d["probabilities"].__setitem__((2, 0), 1.5), "not in 0..1: image2"),
        (lambda d, m: d["boxes"].__setitem__(3, ([[0, 0, 1.2, 1]], [0])), "bad boxes: image3"),
        (lambda d, m: d["boxes"].__setitem__(3, ([[0.5, 0, 0.5, 1]], [0])), "bad boxes: image3"),
        (lambda d, m: d["boxes"].__setitem__(3, ([[0, 0, np.nan, 1]], [0])), "bad boxes: image3"),
        (lambda d, m: d["boxes"].__setitem__(3, ([[0, 0, 1, 1]], [1])), "bad boxes: image3"),
        (lambda d, m: d["boxes"].__setitem__(3, ([[0, 0, 1]], [0])), "bad boxes: image3"),
        (lambda d, m: d["boxes"].__setitem__(3, ([[0, 0, 1, 1]], 0)), "bad boxes: image3"),
        (
            lambda d, m: d.update(masks=[np.zeros((8, 8, 1))] * len(d["image_id"])),
            r"masks that are not \[H, W\]: image0",
        ),
        (lambda d, m: d.update(brightness=[np.zeros((8, 8 + i)) for i in range(len(d["image_id"]))]), "one shape"),
        (lambda d, m: d["patient_id"].pop(), "patient_id"),
        (lambda d, m: m.update(cam=m["cam"][:5]), "cam maps of shape"),
        (lambda d, m: m["cam"].__setitem__(BOXED, np.nan), rf"cam maps with NaN.*: image{BOXED}$"),
        (lambda d, m: m["cam"].__setitem__((BOXED, 0, 0), np.inf), rf"cam maps with NaN.*: image{BOXED}$"),
        (lambda d, m: m.update({"control/random": m["cam"]}), "kept for our controls"),
        (lambda d, m: m.update({"ceiling/8x8": m["cam"]}), "kept for our controls"),
        (lambda d, m: d.update(masks=[np.zeros((8, 8))] * 12), "mask is empty"),
        (lambda d, m: d.update(brightness=np.zeros((5, 8, 8))), "image ids but 5 entries in brightness"),
    ],
)
def test_bad_input_is_refused_by_name(change, message):
    data, maps = broken(change)
    with pytest.raises(ValueError, match=message):
        score(["mass"], data, maps, frame=8, resamples=5)


def test_bootstrap_of_880_images_takes_seconds():
    rng, start = np.random.default_rng(0), time.perf_counter()
    weights, index = bootstrap.patient_weights(rng.integers(0, 700, 880), 1000)
    pixels_hist = rng.random((880, 1000))
    bootstrap.resampled_sum(pixels_hist, weights, index)
    ranking.resampled_classification(rng.integers(0, 2, 880), rng.random(880), weights, index)
    assert time.perf_counter() - start < 10


def test_room_imports_neither_jax_nor_other_rooms_but_localize_and_system():
    code = (
        "import sys, infomask_jax.evaluate\n"
        "bad = [m for m in sys.modules if m in ('jax', 'flax', 'torch', 'tensorflow')\n"
        "       or m.startswith('infomask_jax.') and not m.startswith('infomask_jax.evaluate')\n"
        "       and m not in ('infomask_jax.localize', 'infomask_jax.system')]\n"
        "assert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- the wiring: what is tuned, averaged and resampled on what


def shrunk(maps, power):
    """The same order of pixels, another best cut."""
    return (maps / maps.max((1, 2), keepdims=True)) ** power


def test_thresholds_are_the_best_on_validation_and_not_on_the_scored_split():
    (data, maps), (val, val_maps) = scene(60), scene(60, seed=1)
    given = {"val": val, "val_maps": {"cam": shrunk(val_maps, 4)}}
    row = score(["mass"], data, {"cam": maps}, frame=32, resamples=5, **given)["localization"]["mass"]["cam"]
    positive = np.flatnonzero(val["labels"][:, 0])
    truth = np.stack([rasterise(val["boxes"][i][0], 32) for i in positive])
    best = pixels.tune_threshold(pixels.iou_curve(prepare_maps(shrunk(val_maps, 4)[positive], 32), truth))
    own = np.flatnonzero(data["labels"][:, 0])
    oracle = pixels.tune_threshold(
        pixels.iou_curve(prepare_maps(maps[own], 32), np.stack([rasterise(data["boxes"][i][0], 32) for i in own]))
    )
    assert row["threshold"] == {"value": best, "tuned_on": "val"} and abs(best - oracle) > 0.1
    few = row["protocols"]["chexlocalize"]["threshold"]["value"]["tuned"]
    assert few == pytest.approx(best, abs=0.15) and few != 0.5


def test_images_of_val_cannot_be_scored():
    data, maps = scene(20)
    with pytest.raises(ValueError, match=r"20 images of test are in val, too, for example image0: .*oracle"):
        score(["mass"], data, {"cam": maps}, val=data, val_maps={"cam": maps}, frame=16, resamples=5)
    with pytest.raises(ValueError, match="resamples: expected 1 or more"):
        score(["mass"], data, {"cam": maps}, frame=16, resamples=0)


def test_intervals_of_the_whole_score_are_over_patients():
    """Every image four times, by one patient or by four: four copies of a patient are no new evidence."""
    data, maps = scene(24)
    many = {name: [v for v in data[name] for _ in range(4)] for name in ("boxes", "patient_id")}
    many |= {name: np.repeat(data[name], 4, axis=0) for name in ("labels", "probabilities")}
    many["image_id"] = [f"copy {i}" for i in range(96)]
    widths = []
    for patients in ([f"p{i // 4}" for i in range(96)], [""] * 96):
        result = score(["mass"], {**many, "patient_id": patients}, {"cam": np.repeat(maps, 4, 0)}, frame=16)
        row, known = result["localization"]["mass"]["cam"], result["classification"]["mass"]
        scores = (
            row["mean_iou"],
            row["protocols"]["wang2017"]["afp_iou"]["0.1"],
            row["protocols"]["rsna"]["map"],
            known["brier"],
        )
        widths.append([np.diff(v["ci95"])[0] for v in scores])
    assert (np.array(widths[0]) > 1.5 * np.array(widths[1])).all()


def test_mean_boxes_of_the_whole_score_leave_the_image_out_and_come_from_validation_where_it_has_boxes():
    """Boxes on every third image only, so that positions among the scored and in the split differ."""
    rng, n = np.random.default_rng(6), 30
    corner = rng.uniform(0, 0.6, (n, 2))
    boxes = np.hstack([corner, corner + 0.3])
    data = {
        "image_id": [str(i) for i in range(n)], "patient_id": [""] * n, "labels": (np.arange(n) % 3 == 0)[:, None] * 1,
        "boxes": [(boxes[i : i + 1], np.zeros(1, int)) if i % 3 == 0 else (np.zeros((0, 4)), []) for i in range(n)],
    }  # fmt: skip
    maps = {"cam": rng.random((n, 6, 6))}
    owners = np.arange(0, n, 3)

    def hits(means):
        return np.mean([plain_overlap(m, boxes[i])[0] > 0.3 for m, i in zip(means, owners, strict=True)])

    rows = score(["mass"], data, maps, frame=16, resamples=5)["localization"]["mass"]
    others = [boxes[owners[owners != i]].mean(0) for i in owners]
    misnumbered = [boxes[owners[np.arange(len(owners)) != i]].mean(0) for i in owners]
    assert rows["control/mean_box"]["acc_iou"]["0.3"]["value"] == pytest.approx(hits(others))
    assert hits(others) != hits([boxes[owners].mean(0)] * len(owners)) and hits(others) != hits(misnumbered)
    val = {**data, "image_id": [f"val {i}" for i in range(n)], "boxes": [(b * 0.5, f) for b, f in data["boxes"]]}
    rows = score(["mass"], data, maps, val=val, val_maps=maps, frame=16, resamples=5)["localization"]["mass"]
    assert rows["control/mean_box"]["acc_iou"]["0.3"]["value"] == hits([boxes[owners].mean(0) * 0.5] * len(owners))


def test_random_maps_of_validation_are_others_than_the_scored_ones():
    """Tuned on the scored noise, a threshold could fit it."""
    (data, maps), (val, val_maps) = scene(40), scene(40, seed=1)
    val = {**val, "boxes": data["boxes"], "labels": data["labels"]}
    random = score(["mass"], data, {"cam": maps}, val=val, val_maps={"cam": val_maps}, frame=16, resamples=5)
    noise = prepare_maps(controls.random_maps(40, 0), 16)
    positive = np.flatnonzero(data["labels"][:, 0])
    truth = np.stack([rasterise(data["boxes"][i][0], 16) for i in positive])
    other = prepare_maps(controls.random_maps(40, 1), 16)
    row = random["localization"]["mass"]["control/random"]
    assert row["threshold"]["value"] == pixels.tune_threshold(pixels.iou_curve(other[positive], truth))
    assert row["pxap"]["value"] == pytest.approx(pixels.pixel_average_precision(noise[positive], truth), abs=1e-6)


def test_exact_masks_are_cut_to_the_boxes_of_the_finding():
    """One mask holds a mass and a nodule: each is scored on its own part, also where the other is not scored."""
    mask = np.zeros((32, 32), bool)
    mask[2:10, 2:10] = mask[20:30, 18:30] = True
    boxes = np.array([[2, 2, 10, 10], [20, 18, 30, 30]]) / 32
    heat = mask.astype(np.float32)[None].copy()
    heat[0, 20:30, 18:30] = 0  # the map finds the mass alone
    for findings, at in ((["mass", "nodule"], [0, 1]), (["mass"], [0, -1])):
        data = {
            "image_id": ["a"], "patient_id": [""], "labels": np.ones((1, len(findings)), int), "masks": [mask],
            "boxes": [(boxes, np.array(at))],
        }  # fmt: skip
        rows = score(findings, data, {"cam": heat}, frame=32, resamples=5)["localization"]["mass"]
        assert rows["cam"]["mean_iou"]["value"] == 1


def test_no_exact_mask_of_any_image_is_as_no_masks_at_all():
    data, maps = scene(20)
    coarse = {"cam": maps[:, ::3, ::3]}  # a grid on which boxes have to be snapped
    one = score(["mass"], data, coarse, frame=32, resamples=5)
    assert score(["mass"], {**data, "masks": [None] * 20}, coarse, frame=32, resamples=5) == one
    true = [b for b, _ in data["boxes"] if len(b)]
    drawn, truth = (np.stack([rasterise(b, 32) for b in bs]) for bs in ([controls.snap(b, (6, 6)) for b in true], true))
    overlap = pixels.region_overlap(drawn.astype(np.float32), truth, 0.5)[0].mean()
    assert one["localization"]["mass"]["ceiling/6x6"]["mean_iou"]["value"] == pytest.approx(overlap, abs=1e-6)


def test_boxes_that_are_not_positive_are_nowhere_true():
    data, maps = scene(12)
    boxed = [i for i, (b, _) in enumerate(data["boxes"]) if len(b)]
    data["labels"][boxed[:2], 0] = 0, -1
    result = score(["mass"], data, {"cam": maps}, frame=16, resamples=5)
    scored = result["counts"]["mass"]["scored_boxes"]
    row = result["localization"]["mass"]["cam"]
    assert row["acc_iou"]["0.1"]["n"] == row["protocols"]["wang2017"]["acc_iou"]["0.1"]["n"] == scored
    assert result["counts"]["mass"]["skipped_boxed_not_positive"] == 2
    kept = [i for i in range(12) if i not in boxed[:2]]
    without = {key: [values[i] for i in kept] for key, values in data.items()}
    alone = score(["mass"], without, {"cam": maps[kept]}, frame=16, resamples=5)["localization"]["mass"]["cam"]
    values = [({t: v["value"] for t, v in r["afp"].items()}, r["protocols"]["wang2017"]) for r in (row, alone)]
    assert values[0][0] == values[1][0]
    for name in ("afp_iou", "afp_iobb"):
        assert [v["value"] for v in values[0][1][name].values()] == [v["value"] for v in values[1][1][name].values()]


def test_one_finding_of_an_exact_mask_is_scored_however_small():
    exact = np.zeros((100, 100), bool)
    exact[20:60, 20:60] = exact[80:82, 81:83] = True
    boxes = np.float32([[0.2, 0.2, 0.6, 0.6], [0.80, 0.81, 0.82, 0.83]])
    data = {"image_id": ["a"], "patient_id": [""], "labels": np.ones((1, 2), int), "boxes": [(boxes, np.arange(2))]}
    for frame in (16, 28, 32, 100):
        large, small = (finding_truth({**data, "masks": [exact]}, k, frame).mask[0] for k in range(2))
        assert small.any() and not (small & large).any()
        np.testing.assert_array_equal(large | small if frame == 100 else large, resize_mask(exact, frame))


def test_without_a_patient_an_image_stands_for_itself():
    missing = ["", None, float("nan")]
    found = patients_of({"patient_id": ["p", *missing, *missing, "p"], "image_id": list("abcdefgh")})
    assert found[0] == found[-1] and len(set(found)) == 7


def test_confidence_is_fixed_where_it_cannot_be_tuned_and_each_map_has_its_own_classifier():
    (data, maps), (val, val_maps) = scene(40), scene(40, seed=1)
    del val["probabilities"]
    sure = np.full((40, 1), 0.9)  # of everything: it predicts boxes on healthy images, too
    data["probabilities_of"] = {"other": sure}
    both = {"cam": maps, "other": maps}
    for options in ({}, {"val": val, "val_maps": {"cam": val_maps, "other": val_maps}}):
        rows = score(["mass"], data, both, frame=16, resamples=5, **options)["localization"]["mass"]
        for method, p in (("cam", data["probabilities"]), ("other", sure)):
            block = rows[method]["protocols"]["rsna"]
            assert block["threshold"]["confidence"] == {"value": 0.5, "tuned_on": "fixed"}
            assert block["map"]["n"] == (data["labels"] == 1).sum() + ((data["labels"] == 0) & (p >= 0.5)).sum()
    data["probabilities_of"]["other"] = sure[:3]
    with pytest.raises(ValueError, match=r"expected probabilities of shape \(40, 1\)"):
        score(["mass"], data, both, frame=16, resamples=5)


def test_maps_as_nested_lists_are_maps():
    data, maps = scene(10)
    one, two = (score(["mass"], data, {"cam": m}, frame=16, resamples=5) for m in (maps, maps.tolist()))
    assert one["localization"] == two["localization"]
