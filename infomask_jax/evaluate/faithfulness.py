"""Deletion and insertion (Petsiuk et al. 2018): does the model use the pixels that a map calls important?"""

from collections.abc import Callable

import cv2
import numpy as np

from infomask_jax.evaluate.bootstrap import PerImage, average
from infomask_jax.localize import prepare_maps

FRACTIONS = np.linspace(0, 1, 21)  # of the pixels that are exchanged
CHUNK = 256  # images at once
BLUR = 0.05  # standard deviation of the Gaussian blur, of the image's longer side


def deletion_insertion(
    predict: Callable[[np.ndarray], np.ndarray], images: np.ndarray, maps: np.ndarray, seed: int = 0
) -> tuple[dict[str, PerImage], dict[str, np.ndarray]]:
    """Areas under the curves of the model's score while pixels are exchanged in the order of the map, highest first.

    Deletion begins with the image and blurs pixels away: lower is better. Insertion begins with the blurred image and
    puts pixels back: higher is better. Trapezoids over FRACTIONS.

    Args:
      predict: float32 images [m,H,W] -> scores [m], such as the probability of the finding; m is at most CHUNK.
      images: [n,H,W], as `predict` takes them. maps: [n,h,w], finite, any range; resized to the images.
      seed: pixels that tie (all of a constant map) are exchanged in a random order.

    Returns: {"deletion", "insertion"}: the areas, and the mean curves, each [21].
    """
    images = np.asarray(images, np.float32)
    chunks = [slice(first, first + CHUNK) for first in range(0, len(images), CHUNK)]
    found = np.concatenate([_curves(predict, images[c], maps[c], seed) for c in chunks], axis=1)
    curves = dict(zip(("deletion", "insertion"), found, strict=True))
    areas = {name: average(np.trapezoid(rows, FRACTIONS, axis=1)) for name, rows in curves.items()}
    return areas, {name: rows.mean(0) for name, rows in curves.items()}


def _curves(predict, images: np.ndarray, maps: np.ndarray, seed: int) -> np.ndarray:
    """Scores of deletion and of insertion at each of FRACTIONS, [2,n,21]."""
    n, height, width = images.shape
    blurred = np.array([cv2.GaussianBlur(x, (0, 0), BLUR * max(height, width)) for x in images])
    shuffled = np.random.default_rng(seed).permutation(height * width)
    rank = np.empty((n, height * width), np.int32)  # 0: exchanged first
    for i, s in enumerate(prepare_maps(maps, (height, width))):
        rank[i, np.lexsort((shuffled, -s.ravel()))] = np.arange(height * width)
    curves = np.zeros((2, n, len(FRACTIONS)))
    for at, fraction in enumerate(FRACTIONS):
        important = rank.reshape(images.shape) < round(fraction * height * width)
        for curve, kept, other in zip(curves, (images, blurred), (blurred, images), strict=True):
            scores = np.asarray(predict(np.where(important, other, kept)), float)
            if scores.shape != (n,) or not np.isfinite(scores).all():
                raise ValueError(f"predict: expected {n} finite scores, found shape {scores.shape}")
            curve[:, at] = scores
    return curves
