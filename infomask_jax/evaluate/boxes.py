"""Overlaps of boxes with continuous edges, without +1. Boxes of many images are flat, see `localize.Boxes`."""

import numpy as np

from infomask_jax.localize import Boxes


def flatten(per_image: list[np.ndarray]) -> Boxes:
    """A list with one array [n_i,4] an image -> flat boxes."""
    per_image = [np.asarray(b, float).reshape(-1, 4) for b in per_image]
    boxes = np.concatenate([np.zeros((0, 4)), *per_image])
    return Boxes(boxes, np.repeat(np.arange(len(per_image)), [len(b) for b in per_image]))


def take(boxes: Boxes, images: np.ndarray) -> Boxes:
    """The boxes of `images` (ascending positions), renumbered to the positions in `images`."""
    keep = np.isin(boxes.image, images)
    return Boxes(boxes.boxes[keep], np.searchsorted(images, boxes.image[keep]))


def overlap(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """IoU, and IoBB = intersection / area of a, of predicted boxes a and true boxes b, [...,4] and broadcast: [...].

    Rounded to 6 digits, so that a ratio equal to a threshold is not decided by rounding errors of float32 edges.
    """
    both = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None).prod(-1)
    area_a, area_b = (a[..., 2:] - a[..., :2]).prod(-1), (b[..., 2:] - b[..., :2]).prod(-1)
    iou, iobb = (
        np.divide(both, whole, out=np.zeros_like(both), where=whole > 0) for whole in (area_a + area_b - both, area_a)
    )
    return iou.round(6), iobb.round(6)


def best_overlaps(predicted: Boxes, true: Boxes) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The best {"iou", "iobb"} of each true box with a predicted box of its image, and of each predicted box with a
    true one; 0 where the image has none."""
    counts = np.bincount(true.image, minlength=predicted.image.max(initial=-1) + 1)
    pairs = counts[predicted.image]  # every (predicted, true) pair on the same image, at positions p and t
    p = np.repeat(np.arange(len(pairs)), pairs)
    within = np.arange(len(p)) - np.repeat(np.cumsum(pairs) - pairs, pairs)
    t = (np.cumsum(counts) - counts)[predicted.image[p]] + within
    of_true, of_predicted = {}, {}
    for name, values in zip(("iou", "iobb"), overlap(predicted.boxes[p], true.boxes[t]), strict=True):
        for best, boxes, at in ((of_true, true, t), (of_predicted, predicted, p)):
            best[name] = np.zeros(len(boxes.boxes))
            np.maximum.at(best[name], at, values)
    return of_true, of_predicted


def best_iou(predicted: Boxes, true: Boxes, n: int) -> np.ndarray:
    """The best IoU over all pairs of each of n images; 0 without a prediction. [n]."""
    best = np.zeros(n)
    np.maximum.at(best, true.image, best_overlaps(predicted, true)[0]["iou"])
    return best
