"""Box scores: regions of maps as boxes, overlaps, MaxBoxAccV2, accuracy at IoU and IoBB, false positives.

Boxes of many images are flat: boxes [n,4] (ymin,xmin,ymax,xmax) in 0..1 beside image [n], the position of each box's
image, ascending. Edges are continuous, areas have no +1. IoU = |B n G| / |B u G|; IoBB = |B n G| / |B| for a predicted
box B.
"""

from typing import NamedTuple

import cv2
import numpy as np

from infomask_jax.evaluate.bootstrap import Estimate, resampled_sum

MOSAIC_PIXELS = 1 << 24
TAUS = np.linspace(0, 0.99, 100, dtype=np.float32)  # MaxBoxAcc takes regions {s > tau}
DELTAS = (0.3, 0.5, 0.7)


class Boxes(NamedTuple):
    """Boxes of several images: `boxes` [n,4] and `image` [n], ascending."""

    boxes: np.ndarray
    image: np.ndarray


def flatten(per_image: list[np.ndarray]) -> Boxes:
    """A list with one array [n_i,4] an image -> flat boxes."""
    per_image = [np.asarray(b, float).reshape(-1, 4) for b in per_image]
    boxes = np.concatenate(per_image) if per_image else np.zeros((0, 4))
    return Boxes(boxes, np.repeat(np.arange(len(per_image)), [len(b) for b in per_image]))


def take(boxes: Boxes, images: np.ndarray) -> Boxes:
    """The boxes of `images` (ascending positions), renumbered to the positions in `images`."""
    keep = np.isin(boxes.image, images)
    return Boxes(boxes.boxes[keep], np.searchsorted(images, boxes.image[keep]))


def region_boxes(masks: np.ndarray, connectivity: int = 8) -> Boxes:
    """Tight boxes of the connected regions of bool [n,S,S].

    Images are stacked into one tall picture with an empty row after each, so that one connected-components call serves
    many of them.
    """
    n, height, width = masks.shape
    step = max(1, MOSAIC_PIXELS // (height * width))
    boxes, images = [np.zeros((0, 4))], [np.zeros(0, int)]
    for first in range(0, n, step):
        part = masks[first : first + step]
        mosaic = np.zeros((len(part), height + 1, width), np.uint8)
        mosaic[:, :height] = part
        stats = cv2.connectedComponentsWithStats(mosaic.reshape(-1, width), connectivity=connectivity)[2]
        left, top, wide, high = stats[1:, :4].T  # row 0 is the background
        image, top = np.divmod(top, height + 1)
        order = np.lexsort((left, top, image))
        corners = np.stack([top / height, left / width, (top + high) / height, (left + wide) / width], axis=1)
        boxes.append(corners[order])
        images.append(image[order] + first)
    return Boxes(np.concatenate(boxes), np.concatenate(images))


def overlaps(predicted: Boxes, true: Boxes) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Every (predicted, true) pair on the same image: their positions p and t, IoU and IoBB, each [pairs]."""
    size = max(predicted.image.max(initial=-1), true.image.max(initial=-1)) + 1
    counts = np.bincount(true.image, minlength=size)
    pairs = counts[predicted.image]
    p = np.repeat(np.arange(len(pairs)), pairs)
    within = np.arange(len(p)) - np.repeat(np.cumsum(pairs) - pairs, pairs)
    t = (np.cumsum(counts) - counts)[predicted.image[p]] + within
    a, b = predicted.boxes[p], true.boxes[t]
    both = np.clip(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0, None).prod(1)
    area_a, area_b = (a[:, 2:] - a[:, :2]).prod(1), (b[:, 2:] - b[:, :2]).prod(1)
    return p, t, both / (area_a + area_b - both), np.divide(both, area_a, out=np.zeros_like(both), where=area_a > 0)


def best_iou(predicted: Boxes, true: Boxes, n: int) -> np.ndarray:
    """The best IoU over all pairs of each of n images; 0 without a prediction. [n]."""
    p, _, iou, _ = overlaps(predicted, true)
    best = np.zeros(n)
    np.maximum.at(best, predicted.image[p], iou)
    return best


def best_iou_curve(maps: np.ndarray, true: Boxes, connectivity: int = 8) -> np.ndarray:
    """`best_iou` of the boxes of the regions {s > tau} at each of TAUS: maps [n,S,S] -> [n,100]."""
    return np.stack([best_iou(region_boxes(maps > tau, connectivity), true, len(maps)) for tau in TAUS], axis=1)


def max_box_acc_v2(curve: np.ndarray, weights: np.ndarray, index: np.ndarray) -> Estimate:
    """MaxBoxAccV2 (WSOL, Choe et al. 2020): mean over delta of max over tau of the share of images, best IoU >= delta.

    Args:
      curve: best IoU per image and threshold [n,T]; T = 1 for predictions that are boxes already.
    The maximum over tau is taken on the scored images (an oracle), and again in every resample.
    """
    hits = np.stack([curve >= delta for delta in DELTAS], axis=-1)  # [n,T,3]
    drawn = resampled_sum(np.ones(len(curve)), weights, index)
    samples = (resampled_sum(hits, weights, index) / drawn[:, None, None]).max(1).mean(1)
    return Estimate(float(hits.mean(0).max(0).mean()), samples, len(curve))


def found_per_image(predicted: Boxes, true: Boxes, thresholds, n: int, measure: str = "iou") -> np.ndarray:
    """Per image, the number of true boxes that some predicted box overlaps by more than T. [n,T].

    Divided by the number of true boxes this is Acc(T) (Wang et al. 2017), with `measure` "iou" or "iobb".
    """
    _, t, iou, iobb = overlaps(predicted, true)
    best = np.zeros(len(true.boxes))
    np.maximum.at(best, t, iou if measure == "iou" else iobb)
    return _count(best[:, None] > np.asarray(thresholds), true.image, n)


def false_per_image(predicted: Boxes, true: Boxes, thresholds, n: int) -> np.ndarray:
    """Per image, the number of predicted boxes whose IoU with every true box is at most T. [n,T].

    Divided by the number of boxed images this is AFP(T) (Wang et al. 2017).
    """
    p, _, iou, _ = overlaps(predicted, true)
    best = np.zeros(len(predicted.boxes))
    np.maximum.at(best, p, iou)
    return _count(best[:, None] <= np.asarray(thresholds), predicted.image, n)


def _count(flags: np.ndarray, image: np.ndarray, n: int) -> np.ndarray:
    """Flags [boxes,T] of boxes on images [boxes] -> how many are set on each of n images [n,T]."""
    counts = np.zeros((n, flags.shape[1]))
    np.add.at(counts, image, flags)
    return counts
