"""Scoring speed: all thresholds at once against one labelling per threshold, and the bootstrap of every metric.

    python benchmarks/evaluate.py

Maps are smooth (14 x 14 noise with a bump, resized: like a network's) and, as the hardest case, noise in every pixel.
Both sides compute MaxBoxAccV2, PxAP and the table of Acc(T) at every threshold from the same prepared maps; the
reference on the first maps only, its time per map is scaled up. Results are compared before
anything is printed. The last line is one JSON object.
"""

import json
import os
import platform
import resource
import time
from dataclasses import dataclass
from datetime import UTC, datetime

import cv2
import numpy as np
import scipy
import tyro

from infomask_jax.evaluate import bootstrap, localization, pixels, protocols
from infomask_jax.evaluate.boxes import flatten
from infomask_jax.evaluate.sweep import iou_curves
from infomask_jax.evaluate.truth import finding_truth, rasterise
from infomask_jax.localize import prepare_maps

SIZE = 224
METHODS = 10  # of the bootstrap


@dataclass(frozen=True)
class Benchmark:
    """What is timed."""

    maps: int = 1000
    """Maps of which every threshold is scored."""
    reference_maps: int = 50
    """Of them, scored by the reference too."""
    images: int = 880
    """Images of the bootstrap: the boxed ones of NIH."""
    resamples: int = 1000
    """Of the bootstrap."""


def smooth_maps(n: int, grid: int = 14, seed: int = 0, contrast: float = 1.5) -> tuple[np.ndarray, list[np.ndarray]]:
    """Maps [n,grid,grid] of noise with a bump at a box, and the boxes."""
    rng = np.random.default_rng(seed)
    centre, side = rng.uniform(0.25, 0.75, (n, 2)), rng.uniform(0.15, 0.4, (n, 2))
    axis = (np.arange(grid) + 0.5) / grid
    y, x = (np.abs(axis - centre[:, i, None]) / side[:, i, None] for i in (0, 1))  # [n,grid]
    maps = rng.random((n, grid, grid)) + contrast * np.exp(-3 * (y[:, :, None] ** 2 + x[:, None] ** 2))
    return maps, list(np.hstack([centre - side / 2, centre + side / 2])[:, None])


def ours(maps, truth, true) -> tuple:
    """MaxBoxAccV2, PxAP, Acc [T,7]."""
    best, _ = iou_curves(maps, true, protocols.TAUS)
    v2 = np.mean([(best >= delta).mean(0).max() for delta in protocols.DELTAS])
    acc = (best[..., None] > np.array(protocols.IOU_LEVELS)).mean(0)
    return v2, pixels.pixel_average_precision(maps, truth), acc


def reference(maps, truth, true) -> tuple:
    """The same, one threshold at a time; PxAP by the 1,000 thresholds, as published code has it."""
    best = np.zeros((len(maps), len(protocols.TAUS)))
    hits, picked = np.zeros((2, len(protocols.TAUS)))
    for i, (s, t) in enumerate(zip(maps, truth, strict=True)):
        ymin, xmin, ymax, xmax = true.boxes[i] * SIZE
        for k, tau in enumerate(protocols.TAUS):
            region = s > tau
            picked[k] += np.count_nonzero(region)
            hits[k] += np.count_nonzero(region & t)
            stats = cv2.connectedComponentsWithStats(region.view(np.uint8), connectivity=8)[2][1:]
            if len(stats):
                x, y, w, h = stats[:, :4].T
                both = np.clip(np.minimum(x + w, xmax) - np.maximum(x, xmin), 0, None)
                both = both * np.clip(np.minimum(y + h, ymax) - np.maximum(y, ymin), 0, None)
                best[i, k] = (both / (w * h + (ymax - ymin) * (xmax - xmin) - both)).max()
    precision, recall = hits / np.maximum(picked, 1), hits / truth.sum()
    pxap = np.sum(np.diff(np.r_[0, recall[::-1]]) * precision[::-1])
    v2 = np.mean([(best >= delta).mean(0).max() for delta in protocols.DELTAS])
    return v2, pxap, (best[..., None] > np.array(protocols.IOU_LEVELS)).mean(0)


def timed(function, *args):
    start = time.perf_counter()
    result = function(*args)
    return result, time.perf_counter() - start


def compare(maps, boxes, reference_maps: int) -> dict:
    """Seconds of both sides, and their ratio per map."""
    truth = np.stack([rasterise(b, SIZE) for b in boxes])
    _, seconds = timed(ours, maps, truth, flatten(boxes))
    few = slice(reference_maps)
    expected, plain = timed(reference, maps[few], truth[few], flatten(boxes[few]))
    same = ours(maps[few], truth[few], flatten(boxes[few]))
    np.testing.assert_allclose([same[0], *same[2].ravel()], [expected[0], *expected[2].ravel()], atol=1e-12)
    assert abs(same[1] - expected[1]) < 0.02, (same[1], expected[1])  # the reference rounds scores to thresholds
    plain *= len(maps) / len(maps[few])
    return {"seconds": round(seconds, 2), "reference_seconds": round(plain, 1), "speedup": round(plain / seconds, 1)}


def bootstrap_seconds(n: int, resamples: int) -> float:
    """Every metric of 10 methods on n images; the scores themselves are not timed."""
    maps, boxes = smooth_maps(n)
    data = {"image_id": [str(i) for i in range(n)], "labels": np.ones((n, 1), int)}
    data["boxes"] = [(b, np.zeros(1, int)) for b in boxes]
    truth = finding_truth(data, 0, 56)
    thresholds = localization.Thresholds(0.5, "fixed", 0.5)
    scores, _ = localization.measure(localization.Prediction(maps), truth, data["image_id"], thresholds)
    patients = np.random.default_rng(0).integers(0, -(-n * 726 // 880), n)

    def every_method():
        weights = dict.fromkeys(("scored", "boxed", "listed"), bootstrap.patient_weights(patients, resamples))
        for _ in range(METHODS):
            for found in localization.estimates(scores, weights).values():
                bootstrap.as_json(found)

    return timed(every_method)[1]


def main(settings: Benchmark) -> None:
    resampling = bootstrap_seconds(settings.images, settings.resamples)
    coarse, boxes = smooth_maps(settings.maps)
    smooth = compare(prepare_maps(coarse, SIZE), boxes, settings.reference_maps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    noise = np.random.default_rng(1).random((max(1, settings.maps // 10), SIZE, SIZE), dtype=np.float32)
    hard = compare(prepare_maps(noise, SIZE), boxes[: len(noise)], min(len(noise), settings.reference_maps))
    print(
        json.dumps(
            {
                "speedup_over_reference": smooth["speedup"],
                "bootstrap_seconds": round(resampling, 2),
                "peak_mib": round(peak),
                "maps": settings.maps,
                "thresholds": len(protocols.TAUS),
                "reference_maps": min(settings.maps, settings.reference_maps),
                "smooth": smooth,
                "noise": {"maps": len(noise), **hard},
                "device": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
                "versions": {"numpy": np.__version__, "scipy": scipy.__version__, "opencv": cv2.__version__},
                "date": datetime.now(UTC).date().isoformat(),
            }
        )
    )


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
