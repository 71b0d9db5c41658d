"""Coverage of the intervals of MaxBoxAcc and MaxBoxAccV2: how often the 95% interval of a few patients holds the truth.

    python benchmarks/intervals.py

A population is many images of synthetic maps, coarse or fine, faint or clear. Data sets are drawn from it with
replacement, an image a patient, so that its own score is their truth. Beside ours stands the percentile interval of the
maximum over thresholds, taken again in every resample (`maximum`), and, as what a bootstrap of so few patients can
reach, that of the score at the threshold which is best in the population (`known`). Prints one JSON object on the last
line: {SCORE: {PATIENTS: {"ours", "maximum", "known"}}}, medians over the populations; each of them is in `rows`.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import tyro
from evaluate import smooth_maps

from infomask_jax.evaluate import bootstrap, protocols
from infomask_jax.evaluate.boxes import flatten
from infomask_jax.localize import prepare_maps

POPULATIONS = [(grid, contrast) for grid in (7, 14) for contrast in (0.5, 1.0, 1.5)]  # cells a side; bump over noise
SIZE = 56  # of the scoring frame


@dataclass(frozen=True)
class Benchmark:
    """What is simulated."""

    population: int = 2000
    """Images in each population."""
    sets: int = 200
    """Data sets drawn from each, of each size."""
    patients: tuple[int, ...] = (20, 50, 100)
    """Patients in a data set."""
    resamples: int = 1000
    """Of the bootstrap."""


def covered(score: bootstrap.PerImage, patients: int, settings: Benchmark) -> dict[str, float]:
    """Shares of the data sets whose interval holds the score of all images."""
    rng, held = np.random.default_rng(0), {"ours": 0, "maximum": 0, "known": 0}
    hits, truth = np.asarray(score.part), score.value
    known = np.take_along_axis(hits, hits.mean(0).argmax(0)[None, None], 1)[:, 0].mean(-1)
    for seed in range(settings.sets):
        rows = rng.integers(0, len(hits), patients)
        own = score._replace(part=hits[rows], whole=np.ones(patients))
        each = {"ours": own, "maximum": own._replace(resampled=None), "known": bootstrap.average(known[rows])}
        weights = bootstrap.patient_weights(np.arange(patients), settings.resamples, seed)
        for name, one in each.items():
            low, high = bootstrap.as_json(bootstrap.estimate(one, *weights))["ci95"]
            held[name] += low - 1e-6 <= truth <= high + 1e-6
    return {name: round(count / settings.sets, 3) for name, count in held.items()}


def main(settings: Benchmark) -> None:
    rows = []
    for grid, contrast in POPULATIONS:
        maps, boxes = smooth_maps(settings.population, grid, contrast=contrast)
        scores, _ = protocols.wsol(prepare_maps(maps, SIZE), flatten(boxes))
        for name, score in scores.items():
            for patients in settings.patients:
                about = {"score": name, "patients": patients, "grid": grid, "contrast": contrast}
                rows.append({**about, "truth": round(score.value, 3), **covered(score, patients, settings)})
                print(json.dumps(rows[-1]), flush=True)
    medians = {}
    for row in rows:
        same = [r for r in rows if (r["score"], r["patients"]) == (row["score"], row["patients"])]
        median = {name: round(float(np.median([r[name] for r in same])), 3) for name in ("ours", "maximum", "known")}
        medians.setdefault(row["score"], {})[str(row["patients"])] = median
    about = {"sets": settings.sets, "population": settings.population, "resamples": settings.resamples}
    print(json.dumps({**medians, "rows": rows, **about, "date": datetime.now(UTC).date().isoformat()}))


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
