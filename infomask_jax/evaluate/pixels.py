"""Pixel scores of prepared maps float32 [n,S,S] in 0..1 against truth bool [n,S,S]: average precision, pointing game,
overlap of the region {s >= threshold}."""

import cv2
import numpy as np

from infomask_jax.evaluate.bootstrap import PerImage
from infomask_jax.evaluate.ranking import average_precision

THRESHOLDS = np.linspace(0.01, 1, 100, dtype=np.float32)


def pixel_average_precision(maps: np.ndarray, truth: np.ndarray) -> float:
    """Average precision over all pixels given, pooled: exact, ties as one step. NaN where no pixel is true.

    Precision only counts where recall rises, so only the distinct scores of true pixels are visited.
    """
    every, true = np.sort(maps, axis=None), np.sort(maps[truth])
    if not len(true):
        return np.nan
    scores, first = np.unique(true, return_index=True)
    hits = len(true) - first  # true pixels at or above each score
    picked = len(every) - np.searchsorted(every, scores)
    return float(np.sum(np.diff(np.r_[first, len(true)]) * (hits / picked)) / len(true))


def pxap(maps: np.ndarray, truth: np.ndarray, bins: int = 1000) -> PerImage:
    """PxAP (WSOL, Choe et al. 2020): average precision over the pixels of all images pooled; the value is exact.

    Resamples come from per-image histograms, whose edges are quantiles of the true pixels' scores: every bin holds an
    equal share of the recall, and the error is about 1/bins of the value.
    """
    exact = pixel_average_precision(maps, truth)
    edges = np.unique(np.quantile(maps[truth], np.linspace(0, 1, bins + 1)[:-1]).astype(np.float32))
    size = len(edges) + 1
    counts = np.zeros((len(maps), size, 2))  # best bin first; true pixels, all pixels
    for i, (s, t) in enumerate(zip(maps, truth, strict=True)):
        bin_of = len(edges) - np.searchsorted(edges, s.ravel(), side="right")
        counts[i, :, 0] = np.bincount(bin_of[t.ravel()], minlength=size)
        counts[i, :, 1] = np.bincount(bin_of, minlength=size)
    return PerImage(counts, np.ones(len(maps)), lambda sums: average_precision(sums[..., 0], sums[..., 1]), exact)


def pointing_game(maps: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """1 where the map's maximum lies in the truth (Zhang et al. 2018, without a tolerance margin); of tied maxima the
    share that does. [n]."""
    top = maps == maps.max(axis=(1, 2), keepdims=True)
    return (top & truth).sum((1, 2)) / top.sum((1, 2))


def region_overlap(maps: np.ndarray, truth: np.ndarray, threshold) -> tuple[np.ndarray, np.ndarray]:
    """IoU of the region with the truth, and IoR = intersection / region, each [n]; 0 of an empty region. `threshold` is
    one number, or [n]."""
    region = maps >= np.asarray(threshold, np.float32).reshape(-1, 1, 1)
    both, size, true = (region & truth).sum((1, 2)), region.sum((1, 2)), truth.sum((1, 2))
    return both / np.maximum(size + true - both, 1), both / np.maximum(size, 1)


def otsu_thresholds(maps: np.ndarray) -> np.ndarray:
    """Otsu's threshold of each map, quantised to 8 bits, float32 [n]."""
    cut = [cv2.threshold(np.rint(s * 255).astype(np.uint8), 0, 1, cv2.THRESH_OTSU)[0] for s in maps]
    return ((np.array(cut) + 0.5) / 255).astype(np.float32)  # pixels above the cut, in steps of 1/255


def iou_curve(maps: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """IoU of the region at each of THRESHOLDS, [n,100], from one histogram per image."""
    curve, size = np.zeros((len(maps), len(THRESHOLDS))), len(THRESHOLDS) + 1
    for i, (s, t) in enumerate(zip(maps, truth, strict=True)):
        passed = np.searchsorted(THRESHOLDS, s.ravel(), side="right")
        outside, inside = np.bincount(passed * 2 + t.ravel(), minlength=2 * size).reshape(size, 2).T
        inside, outside = (np.cumsum(counts[::-1])[::-1][1:] for counts in (inside, outside))  # pixels with s >= t
        curve[i] = inside / np.maximum(t.sum() + outside, 1)
    return curve


def tune_threshold(curve: np.ndarray, among: np.ndarray = THRESHOLDS) -> float:
    """The threshold with the highest mean IoU, of equal ones the lowest: curve [n,100] of `iou_curve`."""
    allowed = np.isin(THRESHOLDS, among)
    return round(float(THRESHOLDS[np.where(allowed, curve.mean(0), -1.0).argmax()]), 2)
