"""Overlaps of boxes, and what is counted with them.

Boxes of many images are flat, see `regions.Boxes`. Edges are continuous, areas have no +1. IoU = |B n G| / |B u G|;
IoBB = |B n G| / |B| for a predicted box B and a true box G.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from infomask_jax.evaluate.regions import Boxes, range_max, sweep
from infomask_jax.system import cores


def flatten(per_image: list[np.ndarray]) -> Boxes:
    """A list with one array [n_i,4] an image -> flat boxes."""
    per_image = [np.asarray(b, float).reshape(-1, 4) for b in per_image]
    boxes = np.concatenate(per_image) if per_image else np.zeros((0, 4))
    return Boxes(boxes, np.repeat(np.arange(len(per_image)), [len(b) for b in per_image]))


def take(boxes: Boxes, images: np.ndarray) -> Boxes:
    """The boxes of `images` (ascending positions), renumbered to the positions in `images`."""
    keep = np.isin(boxes.image, images)
    return Boxes(boxes.boxes[keep], np.searchsorted(images, boxes.image[keep]))


def overlap(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """IoU and IoBB of predicted boxes a with true boxes b, both [...,4] and broadcast: each [...].

    Rounded to 6 digits, so that a ratio equal to a threshold is not decided by rounding errors of float32 edges.
    """
    both = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None).prod(-1)
    area_a, area_b = (a[..., 2:] - a[..., :2]).prod(-1), (b[..., 2:] - b[..., :2]).prod(-1)
    iou, iobb = (
        np.divide(both, whole, out=np.zeros_like(both), where=whole > 0) for whole in (area_a + area_b - both, area_a)
    )
    return iou.round(6), iobb.round(6)


def overlaps(predicted: Boxes, true: Boxes) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Every (predicted, true) pair on the same image: their positions p and t, IoU and IoBB, each [pairs]."""
    size = max(predicted.image.max(initial=-1), true.image.max(initial=-1)) + 1
    counts = np.bincount(true.image, minlength=size)
    pairs = counts[predicted.image]
    p = np.repeat(np.arange(len(pairs)), pairs)
    within = np.arange(len(p)) - np.repeat(np.cumsum(pairs) - pairs, pairs)
    t = (np.cumsum(counts) - counts)[predicted.image[p]] + within
    return p, t, *overlap(predicted.boxes[p], true.boxes[t])


def best_overlaps(predicted: Boxes, true: Boxes) -> tuple[np.ndarray, np.ndarray]:
    """The best IoU and the best IoBB that some predicted box has with each true box, each [true boxes]; 0 for none."""
    _, t, *measures = overlaps(predicted, true)
    best = np.zeros((2, len(true.boxes)))
    for row, values in zip(best, measures, strict=True):
        np.maximum.at(row, t, values)
    return best[0], best[1]


def best_iou(predicted: Boxes, true: Boxes, n: int) -> np.ndarray:
    """The best IoU over all pairs of each of n images; 0 without a prediction. [n]."""
    best = np.zeros(n)
    np.maximum.at(best, true.image, best_overlaps(predicted, true)[0])
    return best


def iou_curves(maps: np.ndarray, true: Boxes, thresholds: np.ndarray) -> np.ndarray:
    """IoU with the true boxes of the boxes of all regions {s > tau}, at every tau, from one `sweep` a map.

    Args:
      maps: float32 [n,S,S], prepared.

    Returns:
      [2,n,T]: the best IoU of any region with any true box, and that of the region with the most pixels alone (of equal
      ones the topmost, then the leftmost); 0 where there is no region.
    """
    each = partial(_iou_curve, thresholds=thresholds)
    with ThreadPoolExecutor(cores()) as pool:  # numpy releases the interpreter lock for most of a sweep
        curves = list(pool.map(each, maps, [true.boxes[true.image == i] for i in range(len(maps))]))
    return np.reshape(curves, (-1, 2, len(thresholds))).swapaxes(0, 1)


def _iou_curve(s: np.ndarray, own: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """`iou_curves` of one map with its true boxes [g,4], stacked: [2,T]."""
    size, found = len(thresholds), sweep(s, thresholds)
    iou = overlap(found.boxes[:, None], own[None])[0].max(1, initial=0.0)
    rank = np.empty(len(iou), np.int64)  # by pixels, then position; 0 stands for no region
    rank[np.lexsort((-found.boxes[:, 1], -found.boxes[:, 0], found.pixels))] = np.arange(1, len(iou) + 1)
    largest = np.r_[0.0, iou[np.argsort(rank)]][range_max(rank, found.first, found.last, size)]
    return np.stack([range_max(iou, found.first, found.last, size), largest])


def count(flags: np.ndarray, image: np.ndarray, n: int) -> np.ndarray:
    """Flags [boxes,T] of boxes on images [boxes] -> how many are set on each of n images [n,T]."""
    counts = np.zeros((n, flags.shape[1]))
    np.add.at(counts, image, flags)
    return counts


def found_per_image(predicted: Boxes, true: Boxes, thresholds, n: int, measure: str = "iou") -> np.ndarray:
    """Per image, the number of true boxes that some predicted box overlaps by more than T. [n,T].

    Divided by the number of true boxes this is Acc(T) (Wang et al. 2017), with `measure` "iou" or "iobb".
    """
    best = best_overlaps(predicted, true)[("iou", "iobb").index(measure)]
    return count(best[:, None] > np.asarray(thresholds), true.image, n)


def false_per_image(predicted: Boxes, true: Boxes, thresholds, n: int, measure: str = "iou") -> np.ndarray:
    """Per image, the number of predicted boxes that overlap every true box by at most T. [n,T].

    Divided by a number of images or boxes this is AFP(T) (Wang et al. 2017).
    """
    p, _, *measures = overlaps(predicted, true)
    best = np.zeros(len(predicted.boxes))
    np.maximum.at(best, p, measures[("iou", "iobb").index(measure)])
    return count(best[:, None] <= np.asarray(thresholds), predicted.image, n)
