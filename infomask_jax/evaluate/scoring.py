"""One entry point: plain arrays in, the dict of eval/SPLIT.json out."""

import cv2
import numpy as np

from infomask_jax.evaluate import bootstrap, controls, ranking
from infomask_jax.evaluate.checks import check_maps, check_split
from infomask_jax.evaluate.frame import rasterise
from infomask_jax.evaluate.localization import (
    CONVENTIONS,
    PROTOCOLS,
    Prediction,
    Score,
    Thresholds,
    estimates,
    measure,
    tune,
)
from infomask_jax.evaluate.protocols import WANG_THRESHOLDS
from infomask_jax.evaluate.truth import Truth, finding_truth, patients_of

# Where no validation image has a box of the finding (NIH: every box is in the test list):
FIXED_THRESHOLD = 0.5  # of maps
FIXED_CONFIDENCE = 0.5  # the probability from which boxes are predicted (RSNA)
COMPARED = ("pxap", "pointing_game", "mean_iou", "max_box_acc_v2", "acc_iou/0.1", "acc_iou/0.3", "acc_iou/0.5")


def score(
    findings,
    data,
    maps,
    *,
    frame,
    val=None,
    val_maps=None,
    dataset="",
    split="test",
    seed=0,
    resamples=1000,
    protocols=PROTOCOLS,
) -> tuple[dict, list[dict]]:
    """Classification and localization scores of one split.

    Args:
      findings: K names.
      data: the split, a dict of `image_id` [N] and `patient_id` [N] (text; without a patient an image stands for
        itself), `labels` [N,K] in {1, 0, -1 unknown}, `boxes` [N] pairs (boxes [n,4] as (ymin,xmin,ymax,xmax) in 0..1,
        finding index [n], -1 for one that is not scored: it only counts for Wang's AFP); optionally `probabilities`
        [N,K], `probabilities_of` {method: [N,K]} where a map is another classifier's, and `masks` [N] of [H,W] or None
        (exact truth; intersected with the boxes of the finding where others have boxes, too), and `brightness` [N,h,w]
        (see `controls.brightness`; a control, if `val` has it, too).
      maps: {method: [N,h,w] for all findings, or [N,h,w,K]}, any range, same order as `data`.
      frame: side S of the scoring frame in pixels; the model's input size is the natural choice.
      val, val_maps: the same of the validation split: tunes each method's thresholds and yields the mean boxes. Where
        it has no box of a finding, thresholds are fixed and mean boxes are leave-one-out on the scored split.
      resamples: of the bootstrap; `seed` seeds it and the random control.
      protocols: of PROTOCOLS, what is reported beside the headline scores.

    Returns:
      eval/SPLIT.json (nested, JSON-ready, null for undefined) and the scores of each image, a flat dict an image,
      finding and method, None where a score is not defined.
    """
    if unknown := [name for name in protocols if name not in PROTOCOLS]:
        raise ValueError(f"expected protocols among {', '.join(PROTOCOLS)}; found {', '.join(unknown)}")
    check_split(findings, data, split)
    check_maps(maps, data, findings, split)
    if resamples < 1:
        raise ValueError(f"resamples: expected 1 or more, found {resamples}")
    if val is not None:
        check_split(findings, val, "val")
        check_maps(val_maps or {}, val, findings, "val")
        if set(val_maps or {}) != set(maps):
            raise ValueError(f"validation maps are of {sorted(val_maps or {})}, test maps of {sorted(maps)}")
        if shared := sorted({*map(str, data["image_id"])} & {*map(str, val["image_id"])}):
            what = f"{len(shared)} images of {split} are in val, too, for example {shared[0]}"
            raise ValueError(f"{what}: thresholds tuned on scored images would be an oracle; leave them out of val")
        val_maps = {method: np.asarray(array) for method, array in val_maps.items()}
    maps = {method: np.asarray(array) for method, array in maps.items()}
    patients, labels = patients_of(data), np.asarray(data["labels"])
    out = {
        "dataset": dataset,
        "split": split,
        "n_images": len(labels),
        "n_patients": len(set(patients)),
        "n_boxed_images": int(sum(len(boxes) > 0 for boxes, _ in data["boxes"])),
        "classification": {f: classification_scores(data, k, seed, resamples) for k, f in enumerate(findings)},
        **{name: {} for name in ("localization", "differences", "counts", "mean_boxes_from")},
        "frame": int(frame),
        "bootstrap": {"resamples": resamples, "seed": seed, "unit": "patient"},
        "conventions": CONVENTIONS,
    }
    rows = []
    for k, name in enumerate(findings):
        truth = finding_truth(data, k, frame)
        out["counts"][name] = _counts(data, k, truth)
        if not len(truth.scored):
            continue
        val_truth = finding_truth(val, k, frame) if val is not None else None
        tuned = val_truth is not None and len(val_truth.scored) > 0
        reference = (val, val_truth) if tuned else (None, None)
        weights = {
            over: bootstrap.patient_weights(patients[getattr(truth, over)], resamples, seed)
            for over in ("scored", "boxed", "listed")
        }
        found, entries = {}, {}
        for method, pair in predictions(maps, val_maps if tuned else None, data, k, truth, *reference, seed):
            probabilities, val_probabilities = (
                _gate(split, method, k) if method in maps else None for split in (data, val)
            )
            thresholds = Thresholds(FIXED_THRESHOLD, "fixed", None)
            try:
                if pair[1] is not None:
                    gate = None if probabilities is None else val_probabilities
                    thresholds = tune(pair[1], val_truth, val["image_id"], gate)
                if probabilities is not None and thresholds.confidence is None:
                    thresholds = thresholds._replace(confidence=FIXED_CONFIDENCE)
                scores, taus = measure(pair[0], truth, data["image_id"], thresholds, probabilities, protocols)
            except ValueError as error:
                raise ValueError(f"{method}: {error}") from error
            found[method] = estimates(scores, weights)
            entries[method] = _entry(found[method], thresholds, taus, pair[0].boxes is None, protocols)
            rows += _rows(name, method, data, truth, scores, every=method in maps)
        out["localization"][name] = entries
        out["differences"][name] = _differences(found, list(maps))
        out["mean_boxes_from"][name] = "val" if tuned else "leave-one-out on the split"
    return out, rows


def _gate(split: dict | None, method: str, k: int) -> np.ndarray | None:
    """Probabilities of finding k [N] that decide where the method predicts boxes."""
    if split is None or split.get("probabilities") is None:
        return None
    own = (split.get("probabilities_of") or {}).get(method, split["probabilities"])
    return np.asarray(own, float)[:, k]


def predictions(maps, val_maps, data, k, truth: Truth, val, val_truth: Truth | None, seed):
    """Every method, control and ceiling: (name, (its prediction, that on validation or None)).

    `val`, `val_truth`, `val_maps` are None where nothing can be tuned or averaged on validation.
    """
    n = len(data["image_id"])
    for method, array in maps.items():
        pair = [Prediction(a if np.ndim(a) == 3 else a[..., k]) for a in (array, *([val_maps[method]] if val else []))]
        yield method, (*pair, None)[:2]
    frame = truth.mask.shape[1]
    for name in controls.MAPS:
        pair = [
            Prediction(controls.random_maps(size, seed + i) if name == "random" else controls.center_maps(size, frame))
            for i, size in enumerate([n, len(val["image_id"])] if val else [n])
        ]
        yield f"control/{name}", (*pair, None)[:2]
    pair = [split.get("brightness") for split in ([data, val] if val else [data])]
    if all(array is not None for array in pair):
        yield "control/brightness", (*(Prediction(np.asarray(array)) for array in pair), None)[:2]
    # Boxes that the mean boxes average, and their owners: validation's, else the split's own, leave-one-out.
    if val:
        boxes, owner = val_truth.boxes.boxes, np.full(len(val_truth.boxes.boxes), -1)
    else:
        boxes, owner = truth.boxes.boxes, truth.scored[truth.boxes.image]
    for name in controls.BOXES:
        predicted = controls.control_boxes(name, boxes, owner, np.arange(n))
        yield f"control/{name}", (Prediction(None, predicted), None)
    for rows, columns in sorted({np.shape(a)[1:3] for a in maps.values()}):
        snapped, cells = [np.zeros((0, 4))] * n, None
        for i in truth.boxed:
            own = np.asarray(data["boxes"][i][0], float).reshape(-1, 4)[np.asarray(data["boxes"][i][1]) == k]
            snapped[i] = controls.snap(own, (rows, columns))
        exact = [None] * n if data.get("masks") is None else data["masks"]
        if any(exact[i] is not None for i in truth.scored):
            cells = np.zeros((n, rows, columns), np.float32)
            for i, mask in zip(truth.scored, truth.mask, strict=True):
                drawn = rasterise(snapped[i], frame) if exact[i] is None else mask
                cells[i] = cv2.resize(drawn.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA)
        yield f"ceiling/{rows}x{columns}", (Prediction(cells, snapped), None)


def _entry(found: dict, thresholds: Thresholds, taus: dict, is_map: bool, protocols) -> dict:
    """One method's entry in the JSON: {"acc_iou/0.1": Estimate} -> {"acc_iou": {"0.1": V}}, and its thresholds."""
    out = {}
    for name, estimate in found.items():
        *path, last = name.split("/")
        if path and path[0] in PROTOCOLS:
            path = ["protocols", *path]
        at = out
        for step in path:
            at = at.setdefault(step, {})
        at[last] = round(estimate.value, 4) if last == "boxes_per_image" else bootstrap.as_json(estimate)
    cut = {"value": thresholds.region if is_map else None, "tuned_on": thresholds.tuned_on}
    oracle = {"value": taus or None, "tuned_on": "oracle"}
    confidence = None
    if thresholds.confidence is not None:
        confidence = {"value": thresholds.confidence, "tuned_on": thresholds.confidence_tuned_on}
    out["threshold"] = cut
    out["max_box_acc_v2"] = {**out["max_box_acc_v2"], "tuned_on": "oracle"}
    chex = {"otsu": "of each map", "fixed": FIXED_THRESHOLD, "tuned": thresholds.chexlocalize}
    provenance = {
        "wang2017": {"value": [round(t, 6) for t in WANG_THRESHOLDS] if is_map else None, "tuned_on": "fixed"},
        "li2018": cut,
        "wsol": oracle,
        "chexlocalize": {"value": chex if is_map else None, "tuned_on": thresholds.tuned_on},
        "rsna": {**cut, "confidence": confidence},
        "pixel_auprc": {"value": None, "tuned_on": "fixed"},
    }
    for protocol in protocols:
        out["protocols"][protocol]["threshold"] = provenance[protocol]
    return out


def _rows(finding: str, method: str, data: dict, truth: Truth, scores: dict[str, Score], every: bool) -> list[dict]:
    """Scores of each image with boxes and, if `every`, RSNA's of those without the finding."""
    columns = {
        "true_boxes": scores["acc_iou/0.1"].per_image.whole,
        "predicted_boxes": scores["boxes_per_image"].per_image.part,
        "pointing_game": scores["pointing_game"].per_image.part,
        "iou": scores["mean_iou"].per_image.part,
        **{f"boxes_found_iou_{t}": scores[f"acc_iou/{t}"].per_image.part for t in ("0.1", "0.3", "0.5")},
    }
    if "pixel_auprc/per_image" in scores:
        columns["average_precision"] = scores["pixel_auprc/per_image"].per_image.part
    position = {int(i): row for row, i in enumerate(truth.scored)}
    challenge = scores["rsna/map"].per_image if "rsna/map" in scores else None
    rows = []
    for at, i in enumerate(truth.listed.tolist()):
        own = position.get(i)
        if own is None and not (every and challenge):
            continue
        row = {"finding": finding, "method": method, "image_id": data["image_id"][i]}
        row["patient_id"] = data["patient_id"][i]
        row |= {c: round(float(v[own]), 6) if own is not None else None for c, v in columns.items()}
        if challenge:
            row["rsna"] = round(float(challenge.part[at]), 6) if challenge.whole[at] else None
        rows.append(row)
    return rows


def _differences(found: dict, methods: list[str]) -> dict:
    """Every method minus CAM, and minus the best control of each metric, paired over the same resamples."""
    out, untrained = {}, [m for m in found if m.startswith("control/")]
    best = {m: max(untrained, key=lambda name: np.nan_to_num(found[name][m].value, nan=-1.0)) for m in COMPARED}
    for method in methods:
        own = found[method]
        if "cam" in found and method != "cam":
            pairs = {m: bootstrap.difference(own[m], found["cam"][m]) for m in COMPARED}
            out[f"{method} - cam"] = {m: bootstrap.as_json(e) for m, e in pairs.items()}
        out[f"{method} - best control"] = {
            m: {**bootstrap.as_json(bootstrap.difference(own[m], found[name][m])), "control": name}
            for m, name in best.items()
        }
    return out


def classification_scores(data, k, seed, resamples=1000) -> dict:
    """AUROC, AUPRC, expected calibration error, Brier score, reliability diagram and prevalence of finding k, over
    images with a known label."""
    labels = np.asarray(data["labels"])[:, k]
    known = labels != -1
    y, n = (labels[known] == 1).astype(int), int(known.sum())
    prevalence = round(float(y.mean()), 6) if n else None
    reason = "no known label" if not n else "one class only" if y.min() == y.max() else ""
    if data.get("probabilities") is None:
        reason = "no probabilities"
    if reason:
        missing = {"value": None, "ci95": None, "n": n, "reason": reason}
        scores = {name: dict(missing) for name in ("auroc", "auprc", "ece", "brier")}
        return {**scores, "reliability": [], "prevalence": prevalence}
    p = np.asarray(data["probabilities"], float)[known, k]
    weights, index = bootstrap.patient_weights(patients_of(data)[known], resamples, seed)
    values, samples = ranking.classification(y, p), ranking.resampled_classification(y, p, weights, index)
    auroc, auprc = (bootstrap.as_json(bootstrap.Estimate(v, s, n)) for v, s in zip(values, samples, strict=True))
    calibration = {"ece": ranking.calibration_error(y, p), "brier": bootstrap.average((p - y) ** 2)}
    return {
        "auroc": auroc,
        "auprc": auprc,
        **{name: bootstrap.as_json(bootstrap.estimate(s, weights, index)) for name, s in calibration.items()},
        "reliability": ranking.reliability(y, p),
        "prevalence": prevalence,
    }


def _counts(data, k, truth: Truth) -> dict:
    """How many images and boxes of finding k were scored, and what was left out and why."""
    labels = np.asarray(data["labels"])[:, k]
    n = len(truth.scored)
    return {
        "positive": int((labels == 1).sum()),
        "unknown": int((labels == -1).sum()),
        "scored_images": n,
        "scored_boxes": len(truth.boxes.boxes),
        "skipped_positive_without_box": int((labels == 1).sum()) - n,
        "skipped_boxed_not_positive": truth.not_positive,
        **({} if n else {"reason": "no positive image has a box"}),
    }
