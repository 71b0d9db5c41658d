"""One entry point: plain arrays in, the dict of eval/SPLIT.json out."""

import numpy as np

from infomask_jax.evaluate import bootstrap, controls
from infomask_jax.evaluate.boxes import flatten
from infomask_jax.evaluate.checks import check_maps, check_split
from infomask_jax.evaluate.frame import prepare_maps, rasterise
from infomask_jax.evaluate.localization import (
    CONVENTIONS,
    boxed_images,
    finding_truth,
    localization_estimates,
    patients_of,
)
from infomask_jax.evaluate.pixels import tune_threshold
from infomask_jax.evaluate.ranking import classification, resampled_classification

FIXED_THRESHOLD = 0.5  # where no validation image has a box of the finding (NIH: every box is in the test list)
COMPARED = ("pxap", "pointing_game", "mean_iou", "max_box_acc_v2", "acc_iou/0.1", "acc_iou/0.3", "acc_iou/0.5")


def score(
    findings, data, maps, *, frame, val=None, val_maps=None, dataset="", split="test", seed=0, resamples=1000
) -> dict:
    """Classification and localization scores of one split, as eval/SPLIT.json: nested, JSON-ready, null for undefined.

    Args:
      findings: K names.
      data: the split, a dict of `image_id` [N] and `patient_id` [N] (text; without a patient an image stands for
        itself), `labels` [N,K] in {1, 0, -1 unknown}, `boxes` [N] pairs (boxes [n,4] as (ymin,xmin,ymax,xmax) in 0..1,
        finding index [n]); optionally `probabilities` [N,K] and `masks` [N] of [H,W] or None (exact truth; with several
        findings it is intersected with the boxes of each).
      maps: {method: [N,h,w] for all findings, or [N,h,w,K]}, any range, same order as `data`.
      frame: side S of the scoring frame in pixels; the model's input size is the natural choice.
      val, val_maps: the same of the validation split: tunes each method's threshold and yields the mean boxes. Where it
        has no box of a finding, the threshold is FIXED_THRESHOLD and mean boxes are leave-one-out on the scored split.
      resamples: of the bootstrap; `seed` seeds it and the random control.
    """
    check_split(findings, data, split)
    check_maps(maps, data, findings, split)
    if val is not None:
        check_split(findings, val, "val")
        check_maps(val_maps or {}, val, findings, "val")
        if set(val_maps or {}) != set(maps):
            raise ValueError(f"validation maps are of {sorted(val_maps or {})}, test maps of {sorted(maps)}")
    boxed = boxed_images(data)
    truths = {name: finding_truth(data, k, boxed, frame, seed, resamples) for k, name in enumerate(findings)}
    val_boxed = boxed_images(val) if val is not None else np.zeros(0, int)
    val_truths = {}
    if val is not None:
        val_truths = {name: finding_truth(val, k, val_boxed, frame) for k, name in enumerate(findings)}
    scored = [name for name in findings if len(truths[name]["scored"])]

    estimates = {name: {} for name in scored}
    thresholds = {name: {} for name in scored}
    every = {**maps, "control/random": None, "control/center": None}
    for method in every:
        cache = {}
        for name in scored:
            k = list(findings).index(name)
            test_maps = _prepared(method, maps, data, boxed, k, frame, seed, cache)
            tuned = None
            if _has_boxes(val_truths, name):
                val_prepared = _prepared(method, val_maps, val, val_boxed, k, frame, seed + 1, cache)
                tuned = tune_threshold(val_prepared[val_truths[name]["scored"]], val_truths[name]["mask"])
            threshold = tuned[0] if tuned else FIXED_THRESHOLD
            thresholds[name][method] = {"value": threshold, "tuned_on": "val" if tuned else "fixed"}
            estimates[name][method] = localization_estimates(truths[name], test_maps, threshold)
    for name in scored:
        for control in ("mean_box", "mean_lung_boxes", "lung_boxes"):
            predicted = controls.control_boxes(control, *_reference(name, truths, val_truths), np.arange(len(boxed)))
            drawn = np.stack([rasterise(b, frame) for b in predicted]).astype(np.float32)
            method = f"control/{control}"
            thresholds[name][method] = {"value": FIXED_THRESHOLD, "tuned_on": "fixed"}
            estimates[name][method] = localization_estimates(truths[name], drawn, FIXED_THRESHOLD, flatten(predicted))

    labels = np.asarray(data["labels"])
    localization = {
        name: {m: {**_nested(flat), "threshold": thresholds[name][m]} for m, flat in estimates[name].items()}
        for name in scored
    }
    return {
        "dataset": dataset,
        "split": split,
        "n_images": len(labels),
        "n_patients": len(set(patients_of(data))),
        "n_boxed_images": len(boxed),
        "classification": {f: classification_scores(data, k, seed, resamples) for k, f in enumerate(findings)},
        "localization": localization,
        "differences": {name: _differences(estimates[name]) for name in scored},
        "counts": {name: _counts(data, k, truths[name]) for k, name in enumerate(findings)},
        "mean_boxes_from": {
            name: "val" if _has_boxes(val_truths, name) else "leave-one-out on the split" for name in scored
        },
        "frame": int(frame),
        "bootstrap": {"resamples": resamples, "seed": seed, "unit": "patient"},
        "conventions": CONVENTIONS,
    }


def _prepared(method, maps, data, boxed, k, frame, seed, cache) -> np.ndarray:
    """Maps of the boxed images in the scoring frame [n,S,S]; computed once where all findings share them."""
    shared = method not in maps or np.ndim(maps[method]) == 3
    if not shared or seed not in cache:
        names = [data["image_id"][i] for i in boxed]
        if method == "control/random":
            raw = controls.random_maps(len(boxed), frame, seed)
        elif method == "control/center":
            raw = np.repeat(controls.center_map(frame)[None], len(boxed), 0)
        else:
            raw = maps[method][boxed] if shared else maps[method][boxed, :, :, k]
        try:
            prepared = prepare_maps(raw, frame, names)
        except ValueError as error:
            raise ValueError(f"{method}: {error}") from error
        cache[seed] = prepared
    return cache[seed]


def _nested(flat: dict) -> dict:
    """{"acc_iou/0.1": Estimate} -> {"acc_iou": {"0.1": V}}; boxes_per_image is a plain number."""
    out = {}
    for name, estimate in flat.items():
        metric, _, level = name.partition("/")
        if metric == "boxes_per_image":
            out[metric] = round(estimate.value, 4)
        elif level:
            out.setdefault(metric, {})[level] = bootstrap.as_json(estimate)
        else:
            out[metric] = bootstrap.as_json(estimate)
    out["max_box_acc_v2"]["tuned_on"] = "oracle"
    return out


def _reference(name, truths, val_truths) -> tuple[np.ndarray, np.ndarray]:
    """Boxes that the mean boxes average, and their owners: validation's, else the split's own for leave-one-out."""
    if _has_boxes(val_truths, name):
        boxes = val_truths[name]["boxes"].boxes
        return boxes, np.full(len(boxes), -1)
    return truths[name]["boxes"].boxes, truths[name]["scored"][truths[name]["boxes"].image]


def _has_boxes(truths, name) -> bool:
    return name in truths and len(truths[name]["scored"]) > 0


def _differences(estimates: dict) -> dict:
    """InfoMask minus CAM, and minus the best control of each metric, paired over the same resamples."""
    if "infomask" not in estimates:
        return {}
    own, out = estimates["infomask"], {}
    if "cam" in estimates:
        pairs = {m: bootstrap.difference(own[m], estimates["cam"][m]) for m in COMPARED}
        out["infomask - cam"] = {m: bootstrap.as_json(e) for m, e in pairs.items()}
    blind = [m for m in estimates if m.startswith("control/")]
    best = {m: max(blind, key=lambda name: np.nan_to_num(estimates[name][m].value, nan=-1.0)) for m in COMPARED}
    out["infomask - best control"] = {
        m: {**bootstrap.as_json(bootstrap.difference(own[m], estimates[name][m])), "control": name}
        for m, name in best.items()
    }
    return out


def classification_scores(data, k, seed, resamples=1000) -> dict:
    """AUROC, AUPRC and prevalence of finding k over images with a known label."""
    labels = np.asarray(data["labels"])[:, k]
    known = labels != -1
    y, n = (labels[known] == 1).astype(int), int(known.sum())
    prevalence = round(float(y.mean()), 6) if n else None
    reason = "no known label" if not n else "one class only" if y.min() == y.max() else ""
    if data.get("probabilities") is None:
        reason = "no probabilities"
    if reason:
        missing = {"value": None, "ci95": None, "n": n, "reason": reason}
        return {"auroc": missing, "auprc": dict(missing), "prevalence": prevalence}
    p = np.asarray(data["probabilities"], float)[known, k]
    weights, index = bootstrap.patient_weights(np.array(patients_of(data))[known], resamples, seed)
    values, samples = classification(y, p), resampled_classification(y, p, weights, index)
    auroc, auprc = (bootstrap.as_json(bootstrap.Estimate(v, s, n)) for v, s in zip(values, samples, strict=True))
    return {"auroc": auroc, "auprc": auprc, "prevalence": prevalence}


def _counts(data, k, truth) -> dict:
    """How many images and boxes of finding k were scored, and what was left out and why."""
    labels = np.asarray(data["labels"])[:, k]
    n = len(truth["scored"])
    return {
        "positive": int((labels == 1).sum()),
        "unknown": int((labels == -1).sum()),
        "scored_images": n,
        "scored_boxes": len(truth["boxes"].boxes),
        "skipped_positive_without_box": int((labels == 1).sum()) - n,
        "skipped_boxed_not_positive": truth["boxed_not_positive"],
        **({} if n else {"reason": "no positive image has a box"}),
    }
