"""The whole score: what is tuned, averaged and resampled on what, controls, odd and bad input; intervals."""

import copy
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, roc_auc_score

from infomask_jax import localize
from infomask_jax.evaluate import bootstrap, controls, deletion_insertion, pixels, protocols, ranking
from infomask_jax.evaluate import score as score_all
from infomask_jax.evaluate.boxes import overlap
from infomask_jax.evaluate.truth import finding_truth, rasterise, resize_mask
from infomask_jax.localize import prepare_maps

BLIND = {f"control/{name}" for name in ("random", "center", *controls.BOXES)}


@pytest.fixture(autouse=True, scope="module")
def few_thresholds():
    """Fifty of WSOL's thousand, for speed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocols, "TAUS", protocols.TAUS[::20])
        yield


def score(*args, **options):
    """The scores without their per-image rows."""
    return score_all(*args, **{"frame": 16, "resamples": 5, **options})[0]


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


def positives(boxes, kinds=None, **more):
    """A split of images that are positive for every finding; `kinds`: of each image's boxes."""
    n, kinds = len(boxes), kinds or [np.zeros(len(b), int) for b in boxes]
    pairs = [(np.array(b, float).reshape(-1, 4), np.array(own)) for b, own in zip(boxes, kinds, strict=True)]
    ids = [f"image{i}" for i in range(n)]
    return {"image_id": ids, "patient_id": [""] * n, "labels": np.ones((n, 1), int), "boxes": pairs, **more}


def tuned_on(data, maps, size):
    """The threshold that is best on the positive images of a split."""
    own = np.flatnonzero(data["labels"][:, 0] == 1)
    truth = np.stack([rasterise(data["boxes"][i][0], size) for i in own])
    return pixels.tune_threshold(pixels.iou_curve(prepare_maps(maps[own], size), truth))


@pytest.fixture(scope="module")
def result():
    (data, maps), (val, val_maps) = scene(), scene(seed=1)
    methods = {"infomask": maps, "cam": maps.astype(np.float16)[:, ::-1]}
    options = {"val": val, "val_maps": {"infomask": val_maps, "cam": val_maps}, "frame": 32, "resamples": 50}
    return score_all(["mass"], data, methods, **options, dataset="squares")


# --- the contract of the JSON and of the rows


def test_result_has_the_promised_shape(result):
    result, rows = result
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    row, counts = result["localization"]["mass"]["infomask"], result["counts"]["mass"]
    assert set(row["acc_iou"]) == {"0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7"} == set(row["afp"])
    assert set(row["acc_iobb"]) == {"0.1", "0.25", "0.5", "0.75", "0.9"}
    assert row["threshold"]["tuned_on"] == "val" and row["max_box_acc_v2"]["tuned_on"] == "oracle"
    assert set(result["classification"]["mass"]) == {*("auroc", "auprc", "ece", "brier", "reliability", "prevalence")}
    assert (row["pxap"]["n"], row["acc_iou"]["0.1"]["n"]) == (counts["scored_images"], counts["scored_boxes"])
    differences, methods = result["differences"]["mass"], result["localization"]["mass"]
    gap = row["pxap"]["value"] - methods["cam"]["pxap"]["value"]
    assert differences["infomask - cam"]["pxap"]["value"] == pytest.approx(gap, abs=2e-6)
    best = differences["infomask - best control"]["acc_iou/0.1"]["control"]
    assert methods[best]["acc_iou"]["0.1"]["value"] == max(methods[m]["acc_iou"]["0.1"]["value"] for m in BLIND)
    entry, own = methods["cam"], [r for r in rows if r["method"] == "cam"]  # rows of images average to the scores
    scored = [r for r in own if r["iou"] is not None]
    assert len(scored) == counts["scored_images"] and len(own) == 40
    assert np.mean([r["iou"] for r in scored]) == pytest.approx(entry["mean_iou"]["value"], abs=1e-5)
    challenge = [r["rsna"] for r in own if r["rsna"] is not None]
    assert np.mean(challenge) == pytest.approx(entry["protocols"]["rsna"]["map"]["value"], abs=1e-5)


def test_score_is_seeded_and_takes_every_shape_of_maps():
    data, maps = scene(12)
    runs = [score(["mass"], data, {"cam": maps}, seed=s) for s in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]
    for same in (maps.tolist(), maps[..., None]):
        assert score(["mass"], data, {"cam": same}) == runs[0]
    few, rows = score_all(["mass"], data, {"cam": maps}, frame=16, resamples=5, protocols=("li2018",))
    assert set(few["localization"]["mass"]["cam"]["protocols"]) == {"li2018"} and "rsna" not in rows[0]


# --- what is tuned and averaged on what


def test_every_protocol_says_where_its_threshold_is_from():
    (data, maps), (val, val_maps), (empty, _) = scene(30), scene(30, seed=1), scene(30, seed=1, boxed=False)
    fixed = {"wang2017": "fixed", "wsol": "oracle", "pixel_auprc": "fixed"}
    for of_val, tuned in ((val, "val"), (empty, "fixed"), (None, "fixed")):
        result = score(["mass"], data, {"cam": maps}, val=of_val, val_maps=of_val and {"cam": val_maps})
        entry = result["localization"]["mass"]["cam"]
        sources = {name: block["threshold"]["tuned_on"] for name, block in entry["protocols"].items()}
        assert sources == {**dict.fromkeys(("li2018", "chexlocalize", "rsna"), tuned), **fixed}
        assert ("mean_iou_tuned" in entry["protocols"]["chexlocalize"]) == (tuned == "val")
        assert entry["threshold"]["tuned_on"] == tuned and (tuned == "val" or entry["threshold"]["value"] == 0.5)
        assert result["mean_boxes_from"]["mass"] == ("val" if tuned == "val" else "leave-one-out on the split")


def test_thresholds_are_the_best_on_validation_and_random_maps_of_it_are_others():
    """Tuned on the scored noise, a threshold could fit it."""
    (data, maps), (val, val_maps) = scene(60), scene(60, seed=1)
    val_maps = (val_maps / val_maps.max((1, 2), keepdims=True)) ** 4  # the same order of pixels, another best cut
    options = {"val": val, "val_maps": {"cam": val_maps}, "frame": 32, "protocols": ("chexlocalize",)}
    rows = score(["mass"], data, {"cam": maps}, **options)["localization"]["mass"]
    row, best = rows["cam"], tuned_on(val, val_maps, 32)
    assert row["threshold"] == {"value": best, "tuned_on": "val"} and abs(best - tuned_on(data, maps, 32)) > 0.1
    few = row["protocols"]["chexlocalize"]["threshold"]["value"]["tuned"]
    assert few == pytest.approx(best, abs=0.15) and few != 0.5
    assert rows["control/random"]["threshold"]["value"] == tuned_on(val, controls.random_maps(60, 1), 32)
    own = np.flatnonzero(data["labels"][:, 0])
    noise = prepare_maps(controls.random_maps(60, 0)[own], 32)
    truth = np.stack([rasterise(data["boxes"][i][0], 32) for i in own])
    reference = average_precision_score(truth.ravel(), noise.ravel())
    assert rows["control/random"]["pxap"]["value"] == pytest.approx(reference, abs=1e-6)


def test_rsna_predicts_where_the_classifier_of_the_map_is_confident_and_controls_everywhere():
    (data, maps), (val, val_maps) = scene(60), scene(60, seed=1)
    sure = np.full((60, 1), 0.9)  # of everything: it predicts boxes on healthy images, too
    data["probabilities_of"], both = {"other": sure}, {"cam": maps, "other": maps}
    unsure = {name: values for name, values in val.items() if name != "probabilities"}
    for of_val, source in ((val, "val"), (unsure, "fixed"), (None, "fixed")):
        given = of_val and {"cam": val_maps, "other": val_maps}
        rows = score(["mass"], data, both, val=of_val, val_maps=given, protocols=("rsna",))["localization"]["mass"]
        for method, p in (("cam", data["probabilities"]), ("other", sure)):
            block = rows[method]["protocols"]["rsna"]
            cut = block["threshold"]["confidence"]
            assert cut["tuned_on"] == source and (cut["value"] == 0.5 if source == "fixed" else 0.3 < cut["value"] < 1)
            healthy = (data["labels"] == 0) & (p >= cut["value"])
            assert block["map"]["n"] == (data["labels"] == 1).sum() + healthy.sum()
        everywhere = rows["control/lung_boxes"]["protocols"]["rsna"]
        assert everywhere["map"]["n"] == 60 and everywhere["threshold"]["confidence"] is None


def test_mean_boxes_leave_the_image_out_and_come_from_validation_where_it_has_boxes():
    """Boxes on every third image only, so that positions among the scored and in the split differ."""
    rng, n = np.random.default_rng(6), 30
    corner = rng.uniform(0, 0.6, (n, 2))
    boxes, owners = np.hstack([corner, corner + 0.3]), np.arange(0, n, 3)
    data = positives([boxes[i : i + 1] if i % 3 == 0 else [] for i in range(n)])
    data["labels"] = (np.arange(n) % 3 == 0)[:, None] * 1
    maps = {"cam": rng.random((n, 6, 6))}

    def hits(means):
        return np.mean([overlap(m, boxes[i])[0] > 0.3 for m, i in zip(means, owners, strict=True)])

    def found(**options):
        row = score(["mass"], data, maps, protocols=(), **options)["localization"]["mass"]["control/mean_box"]
        return row["acc_iou"]["0.3"]["value"]

    others, every = [boxes[owners[owners != i]].mean(0) for i in owners], boxes[owners].mean(0)
    assert found() == pytest.approx(hits(others)) and hits(others) != hits([every] * 10)
    val = {**data, "image_id": [f"val {i}" for i in range(n)], "boxes": [(b * 0.5, f) for b, f in data["boxes"]]}
    assert found(val=val, val_maps=maps) == hits([every * 0.5] * 10)


def test_controls_never_see_the_image_but_brightness_which_is_a_map_where_both_splits_have_it():
    """Other maps and probabilities: the controls' rows stay as they are."""
    (data, maps), (val, val_maps) = scene(20), scene(20, seed=1)
    other = {**data, "probabilities": 1 - data["probabilities"]}
    one, two = (
        score(["mass"], d, {"cam": m}, val=val, val_maps={"cam": m_val})["localization"]["mass"]
        for d, m, m_val in ((data, maps, val_maps), (other, 1 - maps, maps))
    )
    assert {m for m in one if m.startswith("control/")} == BLIND
    assert all(one[method] == two[method] for method in BLIND) and one["cam"] != two["cam"]
    image = np.random.default_rng(0).integers(0, 255, (28, 42), np.uint8)
    np.testing.assert_allclose(controls.brightness(image), image.reshape(14, 2, 14, 3).mean(axis=(1, 3)), rtol=1e-5)
    bright = {**data, "brightness": 1 - maps}, {**val, "brightness": 1 - val_maps}
    options = {"val_maps": {"mine": 1 - val_maps}, "protocols": ("wang2017",)}
    rows = score(["mass"], bright[0], {"mine": 1 - maps}, val=bright[1], **options)["localization"]["mass"]
    assert rows["control/brightness"] == rows["mine"]
    one_sided = score(["mass"], bright[0], {"mine": 1 - maps}, val=val, **options)["localization"]["mass"]
    assert set(one_sided) == set(rows) - {"control/brightness"}


# --- which images and boxes count


def test_several_findings_and_findings_without_boxes():
    data, maps = scene(40, findings=3)
    data["boxes"] = [(b[f != 2], f[f != 2]) for b, f in data["boxes"]]
    data["labels"][:5, 0], data["labels"][:, 1] = -1, 1
    given = {"cam": maps, "one_for_all": maps[..., 0]}
    result = score(["a", "b", "c"], data, given, protocols=())
    json.dumps(result, allow_nan=False)
    counts, known = result["counts"], result["classification"]
    assert set(result["localization"]) == {"a", "b"}
    assert counts["c"]["scored_images"] == 0 and "reason" in counts["c"]
    has = np.array([0 in f for _, f in data["boxes"]])
    assert counts["a"]["scored_images"] == (has & (data["labels"][:, 0] == 1)).sum()
    assert counts["a"]["skipped_boxed_not_positive"] == has[:5].sum() > 0 and known["a"]["auroc"]["n"] == 35
    assert known["b"]["auroc"] == {"value": None, "ci95": None, "n": 40, "reason": "one class only"}
    own, other = (result["localization"]["b"][m]["pxap"]["value"] for m in ("cam", "one_for_all"))
    assert own > other + 0.2  # each finding is scored on its own map
    bare = {**data, "boxes": [(b[:0], f[:0]) for b, f in data["boxes"]], "probabilities": None}
    empty = score(["a", "b", "c"], bare, given)
    assert empty["localization"] == {} and empty["classification"]["a"]["auroc"]["reason"] == "no probabilities"


def test_what_is_counted_by_rsna_and_by_wang():
    """Unknown labels are not healthy images; AFP is per box of any finding, the headline's per image."""
    data, maps = scene(30, findings=2)
    data["labels"][np.flatnonzero(data["labels"][:, 0] == 0)[:3], 0] = -1
    del data["probabilities"]
    entry = score(["mass", "nodule"], data, {"cam": maps})["localization"]["mass"]["cam"]
    assert entry["protocols"]["rsna"]["map"]["n"] == 27
    boxes, boxed = sum(len(b) for b, _ in data["boxes"]), sum(len(b) > 0 for b, _ in data["boxes"])
    assert entry["protocols"]["wang2017"]["afp_iou"]["0.1"]["n"] == boxes > boxed == entry["afp"]["0.1"]["n"]
    data["boxes"] = [(b, np.minimum(f, 0) - (f == 1)) for b, f in data["boxes"]]  # nodules become -1: not scored
    data["labels"] = data["labels"][:, :1]
    alone = score(["mass"], data, {"cam": maps[..., 0]})["localization"]["mass"]["cam"]
    assert alone["protocols"]["wang2017"] == entry["protocols"]["wang2017"]


def test_exact_masks_are_the_truth_in_pixels_and_cut_to_the_boxes_of_the_finding():
    """One mask holds a mass and a nodule: each is scored on its own part, also where the other is not scored."""
    mask = np.zeros((32, 32), bool)
    mask[2:10, 2:10] = mask[20:30, 18:30] = True
    mask[2:6, 2:6] = False  # in the box, not in the mask
    boxes = np.array([[2, 2, 10, 10], [20, 18, 30, 30]]) / 32
    heat = mask[None].astype(np.float32)
    heat[0, 20:30, 18:30] = 0  # the map finds the mass alone
    for findings, at in ((["mass", "nodule"], [0, 1]), (["mass"], [0, -1])):
        data = positives([boxes], [at], masks=[mask]) | {"labels": np.ones((1, len(findings)), int)}
        row = score(findings, data, {"cam": heat}, frame=32, protocols=())["localization"]["mass"]["cam"]
        assert row["mean_iou"]["value"] == row["pxap"]["value"] == row["acc_iou"]["0.7"]["value"] == 1
    exact = np.zeros((100, 100), bool)
    exact[20:60, 20:60] = exact[80:82, 81:83] = True
    boxes = np.float32([[0.2, 0.2, 0.6, 0.6], [0.80, 0.81, 0.82, 0.83]])
    data = positives([boxes], [[0, 1]], masks=[exact]) | {"labels": np.ones((1, 2), int)}
    large, small = (finding_truth(data, k, 16).mask[0] for k in range(2))
    assert small.any() and not (small & large).any()  # scored however small
    np.testing.assert_array_equal(large, resize_mask(exact, 16))


def test_the_ceiling_of_a_grid_is_the_truth_on_it():
    """With an exact mask, pixel scores are of the mask on the grid; a finer grid is never worse. No exact mask of any
    image is as no masks at all: boxes with snapped edges."""
    mask = np.zeros((32, 32), bool)
    mask[3:14, 18:27] = True
    mask[3:8, 18:22] = False
    data = positives([[[3 / 32, 18 / 32, 14 / 32, 27 / 32]], [[18 / 32, 18 / 32, 29 / 32, 27 / 32]]])
    maps = {f"of_{g}": np.random.default_rng(0).random((2, g, g)) for g in (4, 8, 32)}
    rows = score(["mass"], data | {"masks": [mask, mask[::-1]]}, maps, frame=32, protocols=())["localization"]["mass"]
    for metric in ("pxap", "mean_iou"):
        low, middle, full = (rows[f"ceiling/{g}x{g}"][metric]["value"] for g in (4, 8, 32))
        assert low < middle < full == 1, metric
    # Box a becomes rows 4-16 and columns 16-28 of 32 on the 8 x 8 grid, IoU 90 / 153; b mirrors it.
    assert rows["ceiling/8x8"]["acc_iou"]["0.5"]["value"] == 1 and rows["ceiling/8x8"]["acc_iou"]["0.6"]["value"] == 0
    plain = score(["mass"], data | {"masks": [None] * 2}, maps, frame=32, protocols=())
    found = plain["localization"]["mass"]["ceiling/8x8"]["mean_iou"]["value"]
    assert found == pytest.approx(90 / 153, abs=1e-6)  # frame pixels lie on the grid: as the boxes


# --- odd and bad input


def test_constant_maps_score_chance_predict_nothing_and_extreme_ones_keep_their_order():
    data, shape = positives([[[0.0, 0.0, 0.25, 0.5]]] * 3), np.zeros((3, 8, 8))
    shape[:, :2, :4] = 1
    maps = {"constant": np.full((3, 8, 8), 7.0), "float16": np.where(shape, np.float16(65504), np.float16(-65504))}
    maps |= {"float64": np.where(shape, 1.7e308, -1.7e308), "int64": 2**40 + shape.astype(int)}
    rows = score(["mass"], data, maps, frame=32)["localization"]["mass"]
    assert all(rows[name]["mean_iou"]["value"] > 0.85 for name in ("float16", "float64", "int64"))
    entry = rows["constant"]
    assert entry["pxap"]["value"] == entry["pointing_game"]["value"] == 0.125  # the boxes' share of the image
    assert entry["mean_iou"]["value"] == entry["max_box_acc_v2"]["value"] == entry["boxes_per_image"] == 0
    assert entry["protocols"]["chexlocalize"]["mean_iou_otsu"]["value"] == 0
    assert entry["protocols"]["rsna"]["map"]["value"] == 0


def put(name, at, value):
    """A change of the split: one entry."""
    return lambda d, m: d[name].__setitem__(at, value)


@pytest.mark.parametrize(
    "change, words",
    [
        (put("image_id", 1, "image0"), "twice: image0$"),
        (put("labels", (2, 0), 3), "labels other.*image2"),
        (lambda d, m: d.update(labels=d["labels"][:, [0, 0]]), r"labels of shape \(12, 1\)"),
        (put("probabilities", (2, 0), np.nan), r"not in 0\.\.1: image2"),
        (put("boxes", 3, ([[0, 0, 1.2, 1]], [0])), "bad boxes: image3"),
        (put("boxes", 3, ([[0, 0, np.nan, 1]], [0])), "bad boxes: image3"),
        (put("boxes", 3, ([[0, 0, 1, 1]], [1])), "bad boxes: image3"),
        (lambda d, m: d.update(masks=[np.zeros((8, 8, 1))] * 12), r"masks that are not \[H, W\]: image0"),
        (lambda d, m: d.update(masks=[np.zeros((8, 8))] * 12), "mask is empty"),
        (lambda d, m: m["cam"].__setitem__((4, 0, 0), np.inf), r"cam maps with NaN.*: image4$"),
        (lambda d, m: m.update(cam=np.zeros((12, 8, 8, 2))), r"cam maps of shape \(12, h, w\)"),
        (lambda d, m: m.update(cam=np.full((12, 4, 4), "x")), "expected numbers"),
        (lambda d, m: m.update({"ceiling/8x8": m["cam"]}), "kept for our"),
    ],
)
def test_bad_input_is_refused_by_name(change, words):
    data, maps = copy.deepcopy(scene(12))
    maps = {"cam": maps}
    change(data, maps)
    with pytest.raises(ValueError, match=words):
        score(["mass"], data, maps, frame=8)


def test_bad_options_are_refused():
    (data, maps), (val, _) = scene(20), scene(20, seed=1)
    for options, words in (
        ({"val": data, "val_maps": {"cam": maps}}, r"20 images of test are in val, too, for example image0: .*oracle"),
        ({"val": val, "val_maps": {}}, r"validation maps are of \[\], test maps of \['cam'\]"),
        ({"resamples": 0}, "resamples: expected 1 or more"),
        ({"protocols": ("lee2018",)}, r"expected protocols among wang2017.*found lee2018"),
    ):
        with pytest.raises(ValueError, match=words):
            score(["mass"], data, {"cam": maps}, **options)


def test_room_imports_neither_jax_nor_other_rooms_but_localize():
    for path in [*Path(protocols.__file__).parent.glob("*.py"), Path(localize.__file__)]:
        named = set(re.findall(r"^ *(?:from|import) (infomask_jax[.\w]*|jax|flax)", path.read_text(), re.M))
        assert all(re.match(r"infomask_jax\.(evaluate|localize)\b", name) for name in named), path


# --- the classifier


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_auroc_and_auprc_equal_scikit_learn_also_on_repeated_images(seed):
    rng = np.random.default_rng(seed)
    labels, scores = rng.permutation(np.arange(30) % 3 // 2), rng.integers(0, 8, 30) / 8
    weights, index = bootstrap.patient_weights(np.arange(30) // 3, 7, seed)
    found = ranking.areas(labels, scores, weights, index)
    drawn = [np.repeat(np.arange(30), row[index].astype(int)) for row in weights]
    chunked = ranking.resampled_areas(labels, scores, weights, index, chunk=60)
    for own, reference, samples in zip(found, (roc_auc_score, average_precision_score), chunked, strict=True):
        assert own.value == pytest.approx(reference(labels, scores))
        expected = [reference(labels[d], scores[d]) if len(set(labels[d])) == 2 else np.nan for d in drawn]
        both = [len(set(labels[d])) == 2 for d in drawn]
        np.testing.assert_allclose(own.samples[both], np.array(expected)[both])
        np.testing.assert_array_equal(samples, own.samples)
    with pytest.raises(ValueError, match="expected finite scores, found 1"):
        ranking.areas(labels, np.r_[np.nan, scores[1:]], weights, index)


def test_calibration_error_equals_a_plain_loop_and_reliability_equals_scikit_learn():
    rng = np.random.default_rng(0)
    p = rng.random(500)
    y = (rng.random(500) < p**2).astype(int)

    def plain(y, p):
        bins = [(p > b / 15) & (p <= (b + 1) / 15) for b in range(15)]
        return sum(own.mean() * abs(p[own].mean() - y[own].mean()) for own in bins if own.any())

    found = ranking.calibration_error(y, p)
    assert found.value == pytest.approx(plain(y, p))
    weights, index = bootstrap.patient_weights(np.arange(500) // 4, 5)
    for times, value in zip(weights, bootstrap.estimate(found, weights, index).samples, strict=True):
        drawn = np.repeat(np.arange(500), times[index].astype(int))
        assert value == pytest.approx(plain(y[drawn], p[drawn]))
    rows = ranking.reliability(y, p)
    for name, values in zip(("positive_share", "mean_probability"), calibration_curve(y, p, n_bins=15), strict=True):
        np.testing.assert_allclose([r[name] for r in rows], values, atol=1e-6)


# --- intervals


def interval(values, patients, resamples=1000, seed=0):
    weights = bootstrap.patient_weights(patients, resamples, seed)
    return bootstrap.as_json(bootstrap.estimate(bootstrap.average(values), *weights))["ci95"]


def test_resampled_means_and_pxap_equal_a_plain_loop():
    rng = np.random.default_rng(0)
    prepared, truth = prepare_maps(rng.random((12, 24, 24)), 24), rng.random((12, 24, 24)) < 0.2
    prepared[truth] = np.sqrt(prepared[truth])
    weights, index = bootstrap.patient_weights(np.arange(12) // 2, 6)
    values = rng.random(12)
    means, areas = (
        bootstrap.estimate(found, weights, index).samples
        for found in (bootstrap.average(values), pixels.pxap(prepared, truth))
    )
    for row, mean, area in zip(weights, means, areas, strict=True):
        drawn = np.repeat(np.arange(12), row[index].astype(int))
        assert mean == pytest.approx(values[drawn].mean())
        plain = average_precision_score(truth[drawn].ravel(), prepared[drawn].ravel())
        assert area == pytest.approx(plain, abs=2e-3)  # binned


def test_intervals_are_over_patients_who_are_drawn_whole():
    """Every image four times, by one patient or by four; an image without a patient stands for itself."""
    weights, index = bootstrap.patient_weights(["b", "a", "b", "c"], 200)
    assert weights.shape == (200, 3) and index[0] == index[2] != index[1]
    np.testing.assert_array_equal(weights.sum(1), 3)
    data, maps = scene(24)
    many = {"image_id": [f"copy {i}" for i in range(96)], "boxes": [pair for pair in data["boxes"] for _ in range(4)]}
    many |= {name: np.repeat(data[name], 4, axis=0) for name in ("labels", "probabilities")}
    widths = []
    for patients in ([f"p{i // 4}" for i in range(96)], [("", None, float("nan"))[i % 3] for i in range(96)]):
        options = {"frame": 8, "resamples": 300, "protocols": ("wang2017", "rsna")}
        result = score(["mass"], {**many, "patient_id": patients}, {"cam": np.repeat(maps, 4, 0)}, **options)
        row, known = result["localization"]["mass"]["cam"], result["classification"]["mass"]
        afp = row["protocols"]["wang2017"]["afp_iou"]["0.1"]
        scores = row["mean_iou"], afp, row["protocols"]["rsna"]["map"], known["brier"]
        widths.append([np.diff(v["ci95"])[0] for v in scores])
    assert (np.array(widths[0]) > 1.5 * np.array(widths[1])).all()


def test_interval_covers_the_mean_about_95_times_in_100():
    """A percentile interval of 80 patients covers .94; over 400 repeats the share has a standard error of .012."""
    values = np.random.default_rng(0).normal(2, 1, (400, 80))
    bounds = np.array([interval(own, range(80), 200, seed) for seed, own in enumerate(values)])
    assert 0.9 <= ((bounds[:, 0] <= 2) & (bounds[:, 1] >= 2)).mean() <= 0.98


def test_differences_are_paired_and_what_is_undefined_is_null_with_a_reason():
    weights, values = bootstrap.patient_weights(range(50)), np.random.default_rng(0).random(50)
    a, b = (bootstrap.estimate(bootstrap.average(v), *weights) for v in (values + 0.1, values))
    found = bootstrap.as_json(bootstrap.difference(a, b))
    assert [found["value"], *found["ci95"]] == pytest.approx([0.1] * 3, abs=1e-6)
    nothing = bootstrap.estimate(bootstrap.PerImage(np.zeros(50), np.zeros(50)), *weights, "no boxes")
    assert bootstrap.as_json(nothing) == {"value": None, "ci95": None, "n": 0, "reason": "no boxes"}


# --- deletion and insertion


def test_deletion_and_insertion_of_a_model_that_reads_one_square():
    """The score is the contrast of one square: the right map deletes it at once, the opposite one last."""
    rng = np.random.default_rng(0)
    images = rng.normal(0, 0.01, (3, 40, 40)).astype(np.float32)
    images[:, 4:12, 20:28] += 1

    def predict(batch):
        return batch[:, 4:12, 20:28].mean((1, 2))

    right = np.zeros((3, 10, 10))
    right[:, 1:3, 5:7] = 1
    (good, curves), (bad, _) = (deletion_insertion(predict, images, heat) for heat in (right, 1 - right))
    assert good["deletion"].value < bad["deletion"].value - 0.2
    assert good["insertion"].value > bad["insertion"].value + 0.2
    blurred = predict(np.stack([cv2.GaussianBlur(x, (0, 0), 2) for x in images]))  # 5% of 40 px
    assert curves["deletion"][0] == curves["insertion"][-1] == pytest.approx(predict(images).mean())
    assert curves["deletion"][-1] == curves["insertion"][0] == pytest.approx(blurred.mean(), abs=1e-6)
    with pytest.raises(ValueError, match="predict: expected 3 finite scores"):
        deletion_insertion(lambda batch: np.full(3, np.nan), images, right)
    alone, _ = deletion_insertion(predict, images[2:], right[2:])  # images do not mix
    assert alone["deletion"].part[0] == pytest.approx(good["deletion"].part[2])
