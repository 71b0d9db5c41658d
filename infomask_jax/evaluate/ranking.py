"""Scores of the classifier: average precision and the area under the ROC curve, with resamples, and calibration. The
first two are functions of counts per distinct score: a tied group enters as one step."""

import numpy as np

from infomask_jax.evaluate.bootstrap import ONE, Estimate, PerImage, as_json, average, estimate, patient_weights
from infomask_jax.evaluate.truth import patients_of

CALIBRATION_BINS = 15


def average_precision(positives: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """sum_g (R_g - R_{g-1}) P_g over groups of equal score, best first, as scikit-learn's. Counts [...,G] -> [...]; NaN
    where there is no positive."""
    hits, picked = np.cumsum(positives, -1), np.cumsum(totals, -1)
    precision = hits / np.maximum(picked, 1e-12)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.sum(positives * precision, -1) / hits[..., -1]


def roc_area(positives: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """P(score of a positive > score of a negative) + P(equal)/2. Counts [...,G], best score first -> [...]; NaN where a
    class is missing."""
    negatives = totals - positives
    not_above = np.cumsum(negatives[..., ::-1], -1)[..., ::-1]  # negatives at or below the group
    won = np.sum(positives * (not_above - negatives / 2), -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return won / (positives.sum(-1) * negatives.sum(-1))


def classification_scores(data: dict, k: int, seed: int, resamples: int = 1000) -> dict:
    """The entry of finding k of a split (see `scoring.score`) in eval/SPLIT.json, over images with a known label."""
    labels = np.asarray(data["labels"])[:, k]
    known, given, views = labels != -1, data.get("probabilities"), data.get("view")
    y = (labels[known] == 1).astype(int)
    weights = patient_weights(patients_of(data)[known], resamples, seed)
    p = None if given is None else np.asarray(given, float)[known, k]
    scores = dict(zip(("auroc", "auprc"), areas(y, p, *weights), strict=True))
    defined = np.isfinite(scores["auroc"].value)
    for name, error in (("ece", calibration_error), ("brier", lambda y, p: average((p - y) ** 2))):
        scores[name] = estimate(error(y, p), *weights) if defined else scores["auroc"]
    if defined and views is not None and len({*(views := np.asarray(views)[known])} - {""}) > 1:
        scores["auroc_within_view"] = within(y, p, views, *weights)
    of_view = {"auroc_of_view": _of_view(y, views)} if "auroc_within_view" in scores else {}
    return {
        **{name: as_json(found) for name, found in scores.items()},
        **of_view,
        "reliability": reliability(y, p) if defined else [],
        "prevalence": round(float(y.mean()), 6) if len(y) else None,
    }


def areas(labels: np.ndarray, scores: np.ndarray | None, weights, index) -> tuple[Estimate, Estimate]:
    """AUROC and AUPRC of labels [n] in {0,1} and finite scores [n], with their resamples; NaN, with the reason, of one
    class and of scores None. `weights`, `index`: of `bootstrap.patient_weights`."""
    n = len(labels)
    reason = "" if len(set(labels.tolist())) == 2 else "one class only" if n else "no known label"
    if reason := "no probabilities" if scores is None else reason:
        return (Estimate(np.nan, np.full(len(weights), np.nan), n, reason),) * 2
    if not np.isfinite(scores).all():
        raise ValueError(f"expected finite scores, found {np.sum(~np.isfinite(scores))} that are not")
    values = resampled_areas(labels, scores, np.ones((1, 1)), np.zeros(n, int))  # one patient, drawn once
    if min(len({*index[labels == label].tolist()}) for label in (0, 1)) < 2:
        return tuple(Estimate(value.item(), np.full(len(weights), np.nan), n, ONE) for value in values)
    samples = resampled_areas(labels, scores, weights, index)
    return tuple(Estimate(value.item(), own, n) for value, own in zip(values, samples, strict=True))


def within(labels: np.ndarray, scores: np.ndarray, groups: np.ndarray, weights, index) -> Estimate:
    """AUROC over the pairs of a positive and a negative of one group (a view): what a model that knew the group alone
    would have, is .5. Arguments as of `areas`; groups [n]."""
    one, once = np.zeros(len(labels), int), np.ones((1, 1))
    found, compared = [], np.isin(groups, [g for g in np.unique(groups) if len({*labels[groups == g].tolist()}) == 2])
    for drawn, at in ((once, one), (weights, index)):
        won = pairs = 0.0
        for group in np.unique(groups):
            own = groups == group
            count = [drawn[:, at[own & (labels == label)]].sum(axis=1) for label in (1, 0)]
            area = resampled_areas(labels[own], scores[own], drawn, at[own])[0]
            won, pairs = won + np.nan_to_num(area) * count[0] * count[1], pairs + count[0] * count[1]
        with np.errstate(invalid="ignore", divide="ignore"):
            found.append(won / pairs)
    value, reason = found[0].item(), "" if compared.any() else "no group has both classes"
    if min(len({*index[compared & (labels == label)].tolist()}) for label in (0, 1)) < 2:
        found[1], reason = np.full(len(weights), np.nan), reason or ONE
    return Estimate(value, found[1], len(labels), reason)


def _of_view(labels: np.ndarray, views: np.ndarray) -> float:
    """AUROC of a model that knows the view alone, and from these very images which one is more often positive."""
    share = {view: labels[views == view].mean() for view in np.unique(views)}
    scores = np.array([share[view] for view in views])
    return round(resampled_areas(labels, scores, np.ones((1, 1)), np.zeros(len(labels), int))[0].item(), 6)


def resampled_areas(labels, scores, weights, index, chunk: int = 4_000_000) -> tuple[np.ndarray, np.ndarray]:
    """(AUROC [R], AUPRC [R]) of every resample at once, arguments as of `areas`: one sort, then cumulative sums of
    weights. `chunk`: elements of the largest intermediate, which bounds the memory."""
    order = np.argsort(-np.asarray(scores, float), kind="stable")
    labels, scores, index = np.asarray(labels)[order], np.asarray(scores)[order], index[order]
    starts = np.flatnonzero(np.r_[True, scores[1:] != scores[:-1]])  # first image of each tied group
    step, found = max(1, chunk // len(labels)), []
    for first in range(0, len(weights), step):
        w = weights[first : first + step, index]  # [r,n]
        totals = np.add.reduceat(w, starts, axis=1)
        positives = np.add.reduceat(w * (labels == 1), starts, axis=1)
        found.append((roc_area(positives, totals), average_precision(positives, totals)))
    return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))


def calibration_error(labels: np.ndarray, probabilities: np.ndarray) -> PerImage:
    """Expected calibration error (Guo et al. 2017): sum over bins of |mean probability - share of positives| * share.
    Labels [n] in {0,1}, probabilities [n]; bins have equal width and hold their upper edge."""
    part = np.zeros((len(labels), CALIBRATION_BINS, 2))
    part[np.arange(len(labels)), _bin(probabilities)] = np.stack([probabilities, labels], axis=1)
    return PerImage(part, np.ones(len(labels)), lambda mean: np.abs(mean[..., 0] - mean[..., 1]).sum(-1))


def reliability(labels: np.ndarray, probabilities: np.ndarray) -> list[dict]:
    """The reliability diagram: {"from", "to", "n", "mean_probability", "positive_share"} of each bin with images."""
    rows, edges = [], np.linspace(0, 1, CALIBRATION_BINS + 1)
    for b in range(CALIBRATION_BINS):
        own = _bin(probabilities) == b
        if own.any():
            means = {"mean_probability": probabilities[own].mean(), "positive_share": labels[own].mean()}
            bounds = {"from": edges[b], "to": edges[b + 1]}
            rows.append({k: round(float(v), 6) for k, v in (bounds | means).items()} | {"n": int(own.sum())})
    return rows


def _bin(probabilities: np.ndarray) -> np.ndarray:
    return np.clip(np.ceil(np.asarray(probabilities) * CALIBRATION_BINS).astype(int) - 1, 0, CALIBRATION_BINS - 1)
