"""Percentile bootstrap over patients, as matrix products.

A resample draws P patients with replacement; `weights` [R,P] says how often each was drawn. Every score that is a ratio
of sums over images is then `weights @ per-patient sums`, for all resamples at once. Two methods share the weights, so
that the interval of their difference is paired.
"""

from typing import NamedTuple

import numpy as np


class Estimate(NamedTuple):
    """A score, its resamples and the number of things it averages; `value` NaN comes with a `reason`."""

    value: float
    samples: np.ndarray  # [R]
    n: int
    reason: str = ""


def patient_weights(patients, resamples: int = 1000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Patient ids [n] -> weights float64 [R,P] (rows sum to P) and index int [n] of each image's patient."""
    names, index = np.unique(np.asarray(patients), return_inverse=True)
    if not len(names):
        return np.zeros((resamples, 0)), index
    draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    return draws.astype(float), index


def resampled_sum(values: np.ndarray, weights: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Per-image values [n,...] -> their sum in every resample [R,...]."""
    values = np.asarray(values, float)
    sums = np.zeros((weights.shape[1], *values.shape[1:]))
    np.add.at(sums, index, values)
    return np.tensordot(weights, sums, axes=1)


def ratio(numerator, denominator, weights, index, reason: str = "nothing to average") -> Estimate:
    """sum(numerator)/sum(denominator) over images, both [n]; NaN, with the reason, where the denominator is 0."""
    top, bottom = np.sum(numerator), np.sum(denominator)
    if bottom == 0:
        return Estimate(np.nan, np.full(len(weights), np.nan), 0, reason)
    with np.errstate(invalid="ignore", divide="ignore"):
        samples = resampled_sum(numerator, weights, index) / resampled_sum(denominator, weights, index)
    return Estimate(float(top / bottom), samples, int(bottom))


def mean(values, weights, index) -> Estimate:
    """Mean over images of values [n]."""
    return ratio(values, np.ones(len(values)), weights, index)


def difference(a: Estimate, b: Estimate) -> Estimate:
    """a - b on the same resamples (both must come from the same `weights`)."""
    return Estimate(a.value - b.value, a.samples - b.samples, min(a.n, b.n), a.reason or b.reason)


def as_json(estimate: Estimate, digits: int = 6) -> dict:
    """{"value", "ci95": [lo, hi], "n"}: 95% percentile interval; null, never NaN, with a "reason" where undefined.

    Resamples in which the score is undefined (one class only, no box) are left out of the percentiles.
    """
    value, samples, n, reason = estimate
    out = {"value": round(float(value), digits) if np.isfinite(value) else None, "ci95": None, "n": int(n)}
    samples = samples[np.isfinite(samples)]
    if out["value"] is None:
        out["reason"] = reason or "undefined"
    elif not len(samples):
        out["reason"] = reason or "no resample defines it"
    else:
        out["ci95"] = [round(float(v), digits) for v in np.percentile(samples, [2.5, 97.5])]
    return out
