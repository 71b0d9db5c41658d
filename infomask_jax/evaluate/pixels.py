"""Pixel scores of prepared maps: PxAP, pointing game, IoU of a thresholded region.

All take maps float32 [n,S,S] in 0..1 (`frame.prepare_maps`) and truth bool [n,S,S] of the same images.
"""

import numpy as np

from infomask_jax.evaluate.bootstrap import Estimate, resampled_sum
from infomask_jax.evaluate.ranking import average_precision

THRESHOLDS = np.linspace(0.01, 1, 100, dtype=np.float32)  # a region is {s >= t}


def check(maps: np.ndarray, truth: np.ndarray) -> None:
    """Raise unless shapes agree and the maps are float32 in 0..1."""
    if maps.shape != truth.shape or maps.ndim != 3:
        raise ValueError(f"expected maps and truth of one shape [n,S,S], found {maps.shape} and {truth.shape}")
    if maps.dtype != np.float32 or truth.dtype != bool:
        raise ValueError(f"expected float32 maps and bool truth, found {maps.dtype} and {truth.dtype}")
    if maps.size and not (maps.min() >= 0 and maps.max() <= 1):
        raise ValueError("expected prepared maps in 0..1")


def pxap(maps: np.ndarray, truth: np.ndarray) -> float:
    """Average precision over the pixels of all images pooled (WSOL, Choe et al. 2020); exact, ties as one step.

    Non-negative floats sort like their bits, and 1.0 needs 30 of them: score and truth share one 32-bit key, so a
    single in-place integer sort does the work. NaN where no pixel is true.
    """
    check(maps, truth)
    key = (maps.ravel() + np.float32(0)).view(np.uint32)  # + 0 turns -0.0 into 0.0, and copies
    key <<= 1
    key |= truth.ravel()
    key.sort()
    key = key[::-1]
    score = key >> 1
    last = np.r_[np.flatnonzero(score[1:] != score[:-1]), len(key) - 1]  # last pixel of each tied group
    del score
    hits = np.cumsum(key & 1, dtype=np.int64)[last]
    return float(average_precision(np.diff(hits, prepend=0), np.diff(last, prepend=-1)))


def resampled_pxap(maps, truth, weights, index, bins: int = 1000) -> np.ndarray:
    """PxAP of every resample [R], from per-image histograms of scores. Only here are scores binned.

    Bin edges are quantiles of the true pixels' scores, so that every bin holds an equal share of the recall and the
    binning error is bounded evenly (about 1/bins of the value, far below the width of the interval).
    """
    check(maps, truth)
    if not truth.any():
        return np.full(len(weights), np.nan)
    edges = np.unique(np.quantile(maps[truth], np.linspace(0, 1, bins + 1)[:-1]).astype(np.float32))
    positives, totals = (np.zeros((len(maps), len(edges) + 1)) for _ in range(2))
    for i, (s, t) in enumerate(zip(maps, truth, strict=True)):
        bin_of = np.searchsorted(edges, s.ravel(), side="right")
        totals[i] = np.bincount(bin_of, minlength=len(edges) + 1)
        positives[i] = np.bincount(bin_of[t.ravel()], minlength=len(edges) + 1)
    return average_precision(
        resampled_sum(positives[:, ::-1], weights, index), resampled_sum(totals[:, ::-1], weights, index)
    )


def pxap_estimate(maps, truth, weights, index) -> Estimate:
    """PxAP (exact) with its resamples (binned), over n images."""
    reason = "" if truth.any() else "no true pixel"
    return Estimate(pxap(maps, truth), resampled_pxap(maps, truth, weights, index), len(maps), reason)


def pointing_game(maps: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """1 where the map's maximum lies in the truth (Zhang et al. 2018, without a tolerance margin). [n].

    Tied maxima score the share of them that is true: a constant map gets its chance level, the true share of the area.
    """
    check(maps, truth)
    top = maps == maps.max(axis=(1, 2), keepdims=True)
    return (top & truth).sum((1, 2)) / top.sum((1, 2))


def region_iou(maps: np.ndarray, truth: np.ndarray, threshold: float) -> np.ndarray:
    """IoU of {s >= threshold} with the truth, per image [n]. An empty region scores 0, it is never dropped."""
    check(maps, truth)
    region = maps >= np.float32(threshold)
    union = (region | truth).sum((1, 2))
    return (region & truth).sum((1, 2)) / np.maximum(union, 1)


def iou_curve(maps: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """`region_iou` at each of THRESHOLDS, [n,100], from one histogram per image."""
    check(maps, truth)
    curve = np.zeros((len(maps), len(THRESHOLDS)))
    for i, (s, t) in enumerate(zip(maps, truth, strict=True)):
        passed = _thresholds_passed(s.ravel())
        size = len(THRESHOLDS) + 1
        inside, outside = np.bincount(passed * 2 + t.ravel(), minlength=2 * size).reshape(size, 2).T[::-1]
        inside, outside = (np.cumsum(counts[::-1])[::-1][1:] for counts in (inside, outside))  # pixels with s >= t
        curve[i] = inside / np.maximum(t.sum() + outside, 1)
    return curve


def _thresholds_passed(s: np.ndarray) -> np.ndarray:
    """How many THRESHOLDS are <= s: a multiplication, then an exact correction by at most one."""
    edges = np.r_[np.float32(0), THRESHOLDS, np.float32(np.inf)]
    guess = (s * np.float32(100)).astype(np.intp)
    guess += edges[guess + 1] <= s
    guess -= edges[guess] > s
    return guess


def tune_threshold(maps: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """The threshold in .01, .02 ... 1 with the highest mean IoU, the lowest such, and that mean IoU."""
    if not len(maps):
        raise ValueError("no images to tune the threshold on")
    curve = iou_curve(maps, truth).mean(0)
    best = int(curve.argmax())
    return round(float(THRESHOLDS[best]), 2), float(curve[best])
