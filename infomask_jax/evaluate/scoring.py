"""One entry point: plain arrays in, the dict of eval/SPLIT.json out."""

from collections.abc import Iterator
from itertools import chain

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track

from infomask_jax.evaluate import bootstrap, controls, localization
from infomask_jax.evaluate.bootstrap import Estimate, PerImage
from infomask_jax.evaluate.checks import check_maps, check_split
from infomask_jax.evaluate.localization import FIXED_THRESHOLD, PROTOCOLS, Prediction, Thresholds
from infomask_jax.evaluate.protocols import WANG_THRESHOLDS
from infomask_jax.evaluate.ranking import classification_scores
from infomask_jax.evaluate.truth import Truth, boxes_of, finding_truth, patients_of, rasterise
from infomask_jax.localize import four_axes, of_finding

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
      maps: {method: [N,h,w] or [N,h,w,1] for all findings, or [N,h,w,K]}, any range, same order as `data`.
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
    if resamples < 1:
        raise ValueError(f"resamples: expected 1 or more, found {resamples}")
    for own, its_maps, name in ((data, maps, split), *([(val, val_maps, "val")] if val is not None else ())):
        check_split(findings, own, name)
        check_maps(its_maps, own, findings, name)
    if val is not None:
        if set(val_maps) != set(maps):
            raise ValueError(f"validation maps are of {sorted(val_maps)}, test maps of {sorted(maps)}")
        if shared := sorted({*map(str, data["image_id"])} & {*map(str, val["image_id"])}):
            what = f"{len(shared)} images of {split} are in val, too, for example {shared[0]}"
            raise ValueError(f"{what}: thresholds tuned on scored images would be an oracle; leave them out of val")
    maps, val_maps = ({m: four_axes(array) for m, array in (given or {}).items()} for given in (maps, val_maps))
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
        "conventions": localization.CONVENTIONS,
    }
    rows, console = [], Console(stderr=True)
    for k, name in enumerate(findings):
        truth = finding_truth(data, k, frame)
        out["counts"][name] = _counts(labels[:, k], truth)
        if not len(truth.scored):
            continue
        val_truth = finding_truth(val, k, frame) if val is not None else None
        tuned = val_truth is not None and len(val_truth.scored) > 0
        weights = {
            over: bootstrap.patient_weights(patients[getattr(truth, over)], resamples, seed)
            for over in ("scored", "boxed", "listed")
        }
        found, out["localization"][name] = {}, {}
        pairs = predictions(maps, val_maps, data, k, truth, *((val, val_truth) if tuned else (None, None)), seed)
        grids = sorted({array.shape[1:3] for array in maps.values()})
        bar = {"console": console, "transient": True, "disable": not console.is_terminal}
        every = chain(pairs, ceilings(grids, data, k, truth))
        for method, (own, of_val) in track(every, f"scoring {name}", len(pairs) + len(grids), **bar):
            gate, val_gate = (_gate(examples, method, k) if method in maps else None for examples in (data, val))
            cut = Thresholds(confidence=None if gate is None else localization.FIXED_CONFIDENCE)
            if of_val is not None:
                cut = localization.tune(cut, of_val, val_truth, val["image_id"], val_gate)
            scores, taus = localization.measure(own, truth, data["image_id"], cut, gate, protocols)
            found[method] = localization.estimates(scores, weights)
            out["localization"][name][method] = _entry(found[method], cut, taus, own.boxes is None, protocols)
            rows += _rows(name, method, data, truth, scores, every=method in maps)
        out["differences"][name] = _differences(found, list(maps))
        out["mean_boxes_from"][name] = "val" if tuned else "leave-one-out on the split"
    return out, rows


def _gate(split: dict | None, method: str, k: int) -> np.ndarray | None:
    """Probabilities of finding k [N] that decide where the method predicts boxes."""
    if split is None or split.get("probabilities") is None:
        return None
    own = (split.get("probabilities_of") or {}).get(method, split["probabilities"])
    return np.asarray(own, float)[:, k]


def predictions(
    maps, val_maps, data, k, truth: Truth, val, val_truth: Truth | None, seed
) -> list[tuple[str, tuple[Prediction, Prediction | None]]]:
    """Every method and control: (name, (its prediction, that on validation or None)). Maps are [N,h,w,M]; `val`,
    `val_truth` are None where nothing can be tuned or averaged on validation."""

    def maps_of(split, maps, seed) -> dict[str, np.ndarray]:
        n = len(split["image_id"])
        out = {method: of_finding(array, k) for method, array in maps.items()}
        out["control/random"] = controls.random_maps(n, seed)
        out["control/center"] = controls.center_maps(n, truth.mask.shape[1])
        if split.get("brightness") is not None:
            out["control/brightness"] = np.asarray(split["brightness"])
        return out

    own = maps_of(data, maps, seed)
    if val is None:
        out = [(name, (Prediction(heat), None)) for name, heat in own.items()]
        boxes, owner = truth.boxes.boxes, truth.scored[truth.boxes.image]  # mean boxes leave the image out
    else:
        tuning = maps_of(val, val_maps, seed + 1)
        out = [(name, (Prediction(own[name]), Prediction(tuning[name]))) for name in own if name in tuning]
        boxes, owner = val_truth.boxes.boxes, np.full(len(val_truth.boxes.boxes), -1)
    for name in controls.BOXES:
        predicted = controls.control_boxes(name, boxes, owner, np.arange(len(data["image_id"])))
        out.append((f"control/{name}", (Prediction(None, predicted), None)))
    return out


def ceilings(grids, data, k, truth: Truth) -> Iterator[tuple[str, tuple[Prediction, None]]]:
    """What maps of each grid (rows, columns) can reach at best, as in `predictions`: the truth, drawn on the grid."""
    n, frame = len(data["image_id"]), truth.mask.shape[1]
    exact = [None] * n if data.get("masks") is None else data["masks"]
    for rows, columns in grids:
        snapped, cells = [np.zeros((0, 4))] * n, None
        for i in truth.boxed:
            snapped[i] = controls.snap(boxes_of(data, i, k), (rows, columns))
        if any(exact[i] is not None for i in truth.scored):
            cells = np.zeros((n, rows, columns), np.float32)
            for i, mask in zip(truth.scored, truth.mask, strict=True):
                drawn = rasterise(snapped[i], frame) if exact[i] is None else mask
                cells[i] = cv2.resize(drawn.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA)
        yield f"ceiling/{rows}x{columns}", (Prediction(cells, snapped), None)


def _entry(found: dict[str, Estimate], thresholds: Thresholds, taus: dict, is_map: bool, protocols) -> dict:
    """One method's entry in the JSON: {"acc_iou/0.1": Estimate} -> {"acc_iou": {"0.1": V}}, and its thresholds."""
    out = {}
    for name, estimate in found.items():
        *path, last = name.split("/")
        at = out
        for step in ["protocols", *path] if path and path[0] in PROTOCOLS else path:
            at = at.setdefault(step, {})
        at[last] = round(estimate.value, 4) if last == "boxes_per_image" else bootstrap.as_json(estimate)
    out["threshold"] = cut = {"value": thresholds.region if is_map else None, "tuned_on": thresholds.tuned_on}
    out["max_box_acc_v2"]["tuned_on"] = "oracle"
    confidence = {"value": thresholds.confidence, "tuned_on": thresholds.confidence_tuned_on}
    chexlocalize = {"otsu": "of each map", "fixed": FIXED_THRESHOLD, "tuned": thresholds.chexlocalize}
    provenance = {
        "wang2017": {"value": [round(t, 6) for t in WANG_THRESHOLDS] if is_map else None, "tuned_on": "fixed"},
        "li2018": cut,
        "wsol": {"value": taus or None, "tuned_on": "oracle"},
        "chexlocalize": {"value": chexlocalize if is_map else None, "tuned_on": thresholds.tuned_on},
        "rsna": {**cut, "confidence": None if thresholds.confidence is None else confidence},
        "pixel_auprc": {"value": None, "tuned_on": "fixed"},
    }
    for protocol in protocols:
        out["protocols"][protocol]["threshold"] = provenance[protocol]
    return out


def _rows(finding: str, method: str, data: dict, truth: Truth, scores: dict[str, PerImage], every: bool) -> list[dict]:
    """Scores of each image with boxes and, if `every`, RSNA's of those without the finding."""
    columns = {
        "true_boxes": scores["acc_iou/0.1"].whole,
        "predicted_boxes": scores["boxes_per_image"].part,
        "pointing_game": scores["pointing_game"].part,
        "iou": scores["mean_iou"].part,
        **{f"boxes_found_iou_{t}": scores[f"acc_iou/{t}"].part for t in ("0.1", "0.3", "0.5")},
    }
    if "pixel_auprc/per_image" in scores:
        columns["average_precision"] = scores["pixel_auprc/per_image"].part
    position, challenge, rows = {int(i): row for row, i in enumerate(truth.scored)}, scores.get("rsna/map"), []
    for at, i in enumerate(truth.listed.tolist()):
        own = position.get(i)
        if own is not None or (every and challenge):
            names = {name: data[name][i] for name in ("image_id", "patient_id")}
            row = {"finding": finding, "method": method, **names}
            row |= {c: round(float(v[own]), 6) if own is not None else None for c, v in columns.items()}
            if challenge:
                row["rsna"] = round(float(challenge.part[at]), 6) if challenge.whole[at] else None
            rows.append(row)
    return rows


def _differences(found: dict, methods: list[str]) -> dict:
    """Every method minus CAM, and minus the best control of each metric, paired over the same resamples."""
    out, untrained = {}, [m for m in found if m.startswith("control/")]
    best = {m: max(untrained, key=lambda name: np.nan_to_num(found[name][m].value, nan=-1.0)) for m in COMPARED}

    def minus(method: str, other: str, metric: str) -> dict:
        return bootstrap.as_json(bootstrap.difference(found[method][metric], found[other][metric]))

    for method in methods:
        if "cam" in found and method != "cam":
            out[f"{method} - cam"] = {m: minus(method, "cam", m) for m in COMPARED}
        out[f"{method} - best control"] = {m: {**minus(method, name, m), "control": name} for m, name in best.items()}
    return out


def _counts(labels: np.ndarray, truth: Truth) -> dict:
    """How many images and boxes of a finding with labels [N] were scored, and what was left out and why."""
    n, positive = len(truth.scored), int((labels == 1).sum())
    return {
        "positive": positive,
        "unknown": int((labels == -1).sum()),
        "scored_images": n,
        "scored_boxes": len(truth.boxes.boxes),
        "skipped_positive_without_box": positive - n,
        "skipped_boxed_not_positive": truth.not_positive,
        **({} if n else {"reason": "no positive image has a box"}),
    }
