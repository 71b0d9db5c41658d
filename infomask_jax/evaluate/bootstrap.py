"""Percentile bootstrap over patients, as matrix products.

`weights` [R,P] says how often each patient was drawn in each resample. A score is a function of sums over images, so
`weights @ per-patient sums` gives it for all resamples at once. Methods share the weights: differences are paired.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

ONE = "films of one patient: no interval"


class PerImage(NamedTuple):
    """A score before its images are put together: finish(sum of part / sum of whole)."""

    part: np.ndarray  # [n,...]
    whole: np.ndarray  # [n], the number of things that each image contributes
    finish: Callable[[np.ndarray], np.ndarray] = lambda ratio: ratio  # [...,*shape of a part] -> [...]
    exact: float | None = None  # the value, where `part` is binned and good enough for resamples only
    resampled: Callable | None = None  # (means of resamples [R,*shape of a part], of all) -> [R]; else `finish`

    @property
    def value(self) -> float:
        """The score of all images; NaN where there is nothing to average."""
        if self.exact is not None:
            return self.exact
        total = np.sum(self.whole)
        return float(self.finish(np.sum(self.part, axis=0) / total)) if total else np.nan


class Estimate(NamedTuple):
    """A score, its resamples and the number of things it averages; `value` NaN comes with a `reason`."""

    value: float
    samples: np.ndarray  # [R]
    n: int
    reason: str = ""


def average(values) -> PerImage:
    """Mean over images of values [n]."""
    return PerImage(np.asarray(values, float), np.ones(len(values)))


def patient_weights(patients, resamples: int = 1000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Patient ids [n] -> weights float64 [R,P] (rows sum to P) and index int [n] of each image's patient."""
    names, index = np.unique(np.asarray(patients), return_inverse=True)
    if not len(names):
        return np.zeros((resamples, 0)), index
    draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    return draws.astype(float), index


def estimate(score: PerImage, weights: np.ndarray, index: np.ndarray, reason: str = "nothing to average") -> Estimate:
    """The score of all images and of every resample; NaN, with the reason, where there is nothing to average."""
    total, shape = np.sum(score.whole), np.shape(score.part)
    if total == 0:
        return Estimate(np.nan, np.full(len(weights), np.nan), 0, reason)
    of_images = np.column_stack([score.whole, np.reshape(score.part, (shape[0], -1))]).astype(float)
    of_patients = np.zeros((weights.shape[1], of_images.shape[1]))
    np.add.at(of_patients, index, of_images)
    if np.count_nonzero(of_patients[:, 0]) < 2:
        why = ONE if np.isfinite(score.value) else reason
        return Estimate(score.value, np.full(len(weights), np.nan), int(total), why)
    sums = weights @ of_patients  # [R, 1 + elements of a part]
    with np.errstate(invalid="ignore", divide="ignore"):
        means = (sums[:, 1:] / sums[:, :1]).reshape(-1, *shape[1:])
        if score.resampled is None:
            samples = score.finish(means)
        else:
            samples = score.resampled(means, np.sum(score.part, axis=0) / total)
    return Estimate(score.value, samples, int(total))


def difference(a: Estimate, b: Estimate) -> Estimate:
    """a - b on the same resamples (both must come from the same `weights`)."""
    return Estimate(a.value - b.value, a.samples - b.samples, min(a.n, b.n), a.reason or b.reason)


def as_json(estimate: Estimate) -> dict:
    """{"value", "ci95": [lo, hi], "n"}: 95% percentile interval; null, never NaN, with a "reason" where undefined.

    Resamples that leave the score undefined (one class only, no box) are left out. An interval beside the value (of
    `protocols.wsol`, on few images) is widened up to it.
    """
    value, samples, n, reason = estimate
    out = {"value": round(float(value), 6) if np.isfinite(value) else None, "ci95": None, "n": int(n)}
    samples = samples[np.isfinite(samples)]
    if out["value"] is None:
        out["reason"] = reason or "undefined"
    elif not len(samples):
        out["reason"] = reason or "no resample defines it"
    else:
        low, high = np.percentile(samples, [2.5, 97.5])
        out["ci95"] = [round(float(v), 6) for v in (min(low, value), max(high, value))]
    return out
