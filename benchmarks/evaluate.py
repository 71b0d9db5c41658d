"""Scoring speed: all thresholds at once against one labelling per threshold, and the bootstrap of every metric.

    python benchmarks/evaluate.py

Maps are 14 x 14 noise with a bump, resized: smooth like a network's. Both sides compute MaxBoxAccV2 from the same
prepared maps; the reference of the first maps only, its time per map is scaled up. Both have to agree.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import tyro
from common import Benchmark, peak_mib, seconds, tell

from infomask_jax.evaluate import bootstrap, localization, protocols
from infomask_jax.evaluate.boxes import flatten
from infomask_jax.evaluate.truth import finding_truth
from infomask_jax.localize import prepare_maps

SIZE = 224
METHODS = 10  # of the bootstrap


@dataclass(frozen=True, kw_only=True)
class Evaluate(Benchmark):
    """What is timed."""

    maps: int = 1000  # Maps of which every threshold is scored.
    reference_maps: int = 50  # Of them, scored by the reference too.
    images: int = 880  # Images of the bootstrap: the boxed ones of NIH.
    resamples: int = 1000  # Of the bootstrap.


def smooth_maps(n: int, grid: int = 14) -> tuple[np.ndarray, list[np.ndarray]]:
    """Maps [n,grid,grid] of noise with a bump at a box, and the boxes."""
    rng = np.random.default_rng(0)
    centre, side = rng.uniform(0.25, 0.75, (n, 2)), rng.uniform(0.15, 0.4, (n, 2))
    axis = (np.arange(grid) + 0.5) / grid
    y, x = (np.abs(axis - centre[:, i, None]) / side[:, i, None] for i in (0, 1))  # [n,grid]
    maps = rng.random((n, grid, grid)) + 1.5 * np.exp(-3 * (y[:, :, None] ** 2 + x[:, None] ** 2))
    return maps, list(np.hstack([centre - side / 2, centre + side / 2])[:, None])


def ours(maps: np.ndarray, boxes: list[np.ndarray]) -> float:
    """MaxBoxAccV2."""
    return protocols.wsol(maps, flatten(boxes))[0]["max_box_acc_v2"].value


def reference(maps: np.ndarray, boxes: list[np.ndarray]) -> float:
    """The same, one threshold at a time."""
    best = np.zeros((len(maps), len(protocols.TAUS)))
    for i, s in enumerate(maps):
        ymin, xmin, ymax, xmax = boxes[i][0] * SIZE
        for k, tau in enumerate(protocols.TAUS):
            stats = cv2.connectedComponentsWithStats((s > tau).view(np.uint8), connectivity=8)[2][1:]
            if len(stats):
                x, y, w, h = stats[:, :4].T
                both = np.clip(np.minimum(x + w, xmax) - np.maximum(x, xmin), 0, None)
                both = both * np.clip(np.minimum(y + h, ymax) - np.maximum(y, ymin), 0, None)
                best[i, k] = (both / (w * h + (ymax - ymin) * (xmax - xmin) - both)).max()
    return np.mean([(best >= delta).mean(0).max() for delta in protocols.DELTAS])


def bootstrap_seconds(n: int, resamples: int) -> float:
    """Every metric of 10 methods on n images; the scores themselves are not timed."""
    maps, boxes = smooth_maps(n)
    data = {"image_id": [str(i) for i in range(n)], "labels": np.ones((n, 1), int)}
    data["boxes"] = [(b, np.zeros(1, int)) for b in boxes]
    truth, thresholds = finding_truth(data, 0, 56), localization.Thresholds(0.5, "fixed", 0.5)
    scores, _ = localization.measure(localization.Prediction(maps), truth, data["image_id"], thresholds)
    patients = np.random.default_rng(0).integers(0, -(-n * 726 // 880), n)

    def every_method() -> None:
        weights = dict.fromkeys(("scored", "boxed", "listed"), bootstrap.patient_weights(patients, resamples))
        for _ in range(METHODS):
            for found in localization.estimates(scores, weights).values():
                bootstrap.as_json(found)

    return seconds(every_method)


def main(settings: Evaluate) -> None:
    resampling = bootstrap_seconds(settings.images, settings.resamples)
    coarse, boxes = smooth_maps(settings.maps)
    maps, few = prepare_maps(coarse, SIZE), slice(settings.reference_maps)
    np.testing.assert_allclose(ours(maps[few], boxes[few]), reference(maps[few], boxes[few]), atol=1e-9)
    spent = seconds(ours, maps, boxes)
    plain = seconds(reference, maps[few], boxes[few]) * len(maps) / len(maps[few])
    result = {
        "speedup_over_reference": round(plain / spent, 1),
        "bootstrap_seconds": round(resampling, 2),
        "peak_mib": peak_mib(),
        "seconds": round(spent, 2),
        "reference_seconds": round(plain, 1),
        "thresholds": len(protocols.TAUS),
    }
    tell(settings, result, "numpy", "scipy", "opencv-python-headless")


if __name__ == "__main__":
    main(tyro.cli(Evaluate, description=__doc__))
