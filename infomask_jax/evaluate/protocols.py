"""The published protocols, each a pure function; docs/evaluation.md has formula, source and weakness of each.

Maps are prepared (float32 [n,S,S] in 0..1), `mask` bool [n,S,S] is the truth in pixels, `true` the true boxes. Every
function returns {"metric" or "metric/level": PerImage}. `predicted` replaces the boxes of regions where a prediction is
boxes already (the controls); the maps are then those boxes, drawn."""

import numpy as np

from infomask_jax.evaluate import pixels
from infomask_jax.evaluate.bootstrap import PerImage, average
from infomask_jax.evaluate.boxes import best_iou, best_overlaps, overlap
from infomask_jax.evaluate.sweep import iou_curves
from infomask_jax.localize import Boxes, region_boxes

IOU_LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
IOBB_LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9)
LEVELS = {"iou": IOU_LEVELS, "iobb": IOBB_LEVELS}
WANG_THRESHOLDS = (60 / 255, 180 / 255)
TAUS = np.linspace(0, 0.999, 1000, dtype=np.float32)
DELTAS = (0.3, 0.5, 0.7)
CHEXLOCALIZE_THRESHOLDS = np.linspace(0.2, 0.8, 7, dtype=np.float32)
RSNA_LEVELS = np.linspace(0.4, 0.75, 8)


def accuracy(boxes: Boxes, true: Boxes, n: int) -> dict[str, PerImage]:
    """Acc(T) = true boxes hit / true boxes, hit: some predicted box has IoU > T (acc_iou) or IoBB > T (acc_iobb)."""
    best, whole = best_overlaps(boxes, true)[0], np.bincount(true.image, minlength=n)
    return {
        f"acc_{measure}/{t:g}": PerImage(np.bincount(true.image, best[measure] > t, n), whole)
        for measure, levels in LEVELS.items()
        for t in levels
    }


def false_positives(boxes: Boxes, true: Boxes, whole) -> dict[str, PerImage]:
    """AFP(T) = predicted boxes with no IoU > T (afp_iou; afp_iobb: no IoBB > T) / whole [n], a number of each image."""
    best = best_overlaps(boxes, true)[1]
    return {
        f"afp_{measure}/{t:g}": PerImage(np.bincount(boxes.image, best[measure] <= t, len(whole)), whole)
        for measure, levels in LEVELS.items()
        for t in levels
    }


def wang2017(maps, true: Boxes, boxes_of_all, predicted: Boxes | None = None) -> dict[str, PerImage]:
    """ChestX-ray8 (Wang et al. 2017): `accuracy` and `false_positives` of the boxes of all regions s >= 60/255 and of
    all s >= 180/255.

    Args:
      maps: of all images with a box of any finding. boxes_of_all: [n], how many boxes of any finding each has.
    """
    n = len(maps)
    if predicted is None:
        low, high = (region_boxes(maps, t)[0] for t in WANG_THRESHOLDS)
        order = np.argsort(np.r_[low.image, high.image], kind="stable")
        predicted = Boxes(np.r_[low.boxes, high.boxes][order], np.r_[low.image, high.image][order])
    return {
        **accuracy(predicted, true, n),
        **false_positives(predicted, true, boxes_of_all),
        "boxes_per_image": average(np.bincount(predicted.image, minlength=n)),
    }


def li2018(maps, mask, threshold: float) -> dict[str, PerImage]:
    """Li et al. 2018: share of images whose region s >= threshold has IoU >= T with the mask, or IoR >= T."""
    iou, ior = pixels.region_overlap(maps, mask, threshold)
    out = {f"acc_iou/{t:g}": average(iou >= t) for t in IOU_LEVELS}
    return out | {f"acc_ior/{t:g}": average(ior >= t) for t in IOBB_LEVELS}


def wsol(maps, true: Boxes, predicted: Boxes | None = None):
    """MaxBoxAcc and MaxBoxAccV2 (Choe et al. 2020). Both choose tau on the scored images (an oracle), which
    `_without_optimism` takes out of the intervals.

    Returns: the scores, and the best tau {"max_box_acc": tau, "0.3": tau, ...}, empty for `predicted` boxes.
    """
    n = len(maps)
    if predicted is None:
        best, largest = iou_curves(maps, true, TAUS)
    else:
        best, largest = best_iou(predicted, true, n)[:, None], _largest_box_iou(predicted, true, n)[:, None]
    v1, v2 = largest[..., None] >= 0.5, np.stack([best >= delta for delta in DELTAS], axis=-1)  # [n,T,1], [n,T,3]
    scores = {
        name: PerImage(hits, np.ones(n), lambda shares: shares.max(-2).mean(-1), resampled=_without_optimism)
        for name, hits in (("max_box_acc", v1), ("max_box_acc_v2", v2))
    }
    if predicted is not None:
        return scores, {}
    chosen = {"max_box_acc": v1.mean((0, 2)).argmax(), **dict(zip(map(str, DELTAS), v2.mean(0).argmax(0), strict=True))}
    return scores, {name: round(float(TAUS[at]), 6) for name, at in chosen.items()}


def _without_optimism(shares: np.ndarray, of_all: np.ndarray) -> np.ndarray:
    """Resamples [R,T,D] and all images [T,D] -> [R] at the tau that is best on all images, less what choosing it gains:
    the mean over resamples of how far the maximum of one exceeds what its own tau reaches on all images (the optimism
    of Efron 1983). A maximum over noisy shares is too high, that of a resample doubly so."""
    own = shares.argmax(1)[:, None]  # [R,1,D]
    optimism = np.take_along_axis(shares, own, 1) - np.take_along_axis(of_all[None], own, 1)
    kept = np.take_along_axis(shares, of_all.argmax(0)[None, None], 1)
    return np.maximum(kept - optimism.mean(0), 0).mean((1, 2))


def _largest_box_iou(predicted: Boxes, true: Boxes, n: int) -> np.ndarray:
    """The best IoU of each image's largest predicted box, the first of equal ones; 0 without a prediction. [n]."""
    area = (predicted.boxes[:, 2:] - predicted.boxes[:, :2]).prod(1)
    order = np.lexsort((-area, predicted.image))
    image, first = np.unique(predicted.image[order], return_index=True)
    return best_iou(Boxes(predicted.boxes[order[first]], image), true, n)


def chexlocalize(maps, mask, tuned: float | None) -> dict[str, PerImage]:
    """CheXlocalize (Saporta et al. 2022): mean IoU of a region at Otsu's threshold, at .5, at the one of .2 .3 ... .8
    that was best on validation (None: left out); hit rate. An empty region counts 0; the published code drops it."""
    thresholds = {"otsu": pixels.otsu_thresholds(maps), "fixed": 0.5} | ({} if tuned is None else {"tuned": tuned})
    out = {f"mean_iou_{how}": average(pixels.region_overlap(maps, mask, t)[0]) for how, t in thresholds.items()}
    return out | {"hit_rate": average(pixels.pointing_game(maps, mask))}


def pixel_auprc(maps, mask) -> dict[str, PerImage]:
    """Average precision (Arun et al. 2021), pixels pooled and per image; pointing game (Zhang et al. 2018)."""
    alone = [pixels.pixel_average_precision(s[None], t[None]) for s, t in zip(maps, mask, strict=True)]
    return {
        "pooled": pixels.pxap(maps, mask),
        "per_image": average(alone),
        "pointing_game": average(pixels.pointing_game(maps, mask)),
    }


def rsna(predicted: Boxes, scores: np.ndarray, true: Boxes, n: int) -> dict[str, PerImage]:
    """RSNA Pneumonia Detection Challenge 2018: mean over images of the mean over t = .40 .45 ... .75 of TP/(TP+FP+FN).

    Predicted boxes are matched in the order of their scores [boxes], each to the free true box of the highest IoU, if
    that is > t. An image without true and predicted boxes is left out; with predictions only it scores 0.
    """
    predictions, truths = (np.bincount(b.image, minlength=n) for b in (predicted, true))
    value = np.zeros(n)
    for i in np.flatnonzero((predictions > 0) & (truths > 0)):
        order = np.argsort(-scores[predicted.image == i], kind="stable")
        iou = overlap(predicted.of(i)[order][:, None], true.of(i)[None])[0]
        matched = np.array([_matches(iou, t) for t in RSNA_LEVELS])
        value[i] = np.mean(matched / (predictions[i] + truths[i] - matched))
    return {"map": PerImage(value, (predictions > 0) | (truths > 0))}


def _matches(iou: np.ndarray, level: float) -> int:
    """How many of the predicted boxes (rows, best first) find a true box (columns) of their own."""
    free = np.ones(iou.shape[1], bool)
    for row in iou:
        best = np.where(free, row, -1.0).argmax()
        if free[best] and row[best] > level:
            free[best] = False
    return int((~free).sum())


def tune_confidence(predicted: Boxes, scores: np.ndarray, true: Boxes, probabilities: np.ndarray) -> float:
    """The probability [n] below which no box is predicted with the highest RSNA score; of equal ones the highest."""
    n = len(probabilities)
    value = rsna(predicted, scores, true, n)["map"].part
    has_predicted, has_true = (np.bincount(b.image, minlength=n) > 0 for b in (predicted, true))
    order = np.argsort(-probabilities, kind="stable")
    p = probabilities[order]
    # An image without true boxes counts only once its boxes are predicted.
    counted = has_true.sum() + np.cumsum((has_predicted & ~has_true)[order])
    mean = np.cumsum(value[order]) / np.maximum(counted, 1)
    mean[:-1][p[1:] == p[:-1]] = -1.0  # equal probabilities pass together
    return float(p[mean.argmax()])
