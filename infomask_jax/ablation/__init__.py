"""Ablations: named variants of one config, trained over seeds and scored together on the same images, paired.

A run of a variant is an ordinary run in WORKDIR/VARIANT/seedS. What it predicts is kept in its maps/SPLIT.npz (maps)
and maps/SPLIT.json (logits, rates, and of what all this is), so that a second call only scores.

    variants.py     the variants of a config
    predictions.py  parameters, maps, logits and rates of one run
    table.py        scores over seeds, and the paired differences to the default
"""

import json
from pathlib import Path

import jax

from infomask_jax import pipeline, report
from infomask_jax.ablation.predictions import maps_of, read_splits, trained
from infomask_jax.ablation.table import (
    RESAMPLES,
    add_controls,
    add_rows,
    as_row,
    of_finding,
    resampled_patients,
    shown,
)
from infomask_jax.ablation.variants import config_of, select, variants
from infomask_jax.config import Config
from infomask_jax.datasets import Prepared
from infomask_jax.report import ablations as drawing

__all__ = ["config_of", "run", "select", "variants"]


def run(base: Config, data: Prepared, only: tuple[str, ...], seeds: tuple[int, ...], split: str, command: str) -> dict:
    """Train or resume every run, score all of them together, write ablations.json, ablations.md and figures/ into
    base.workdir; return what the JSON holds.

    ValueError for an unknown name, an absent split, or a run directory with another config (it names the fields).
    """
    if split not in data.splits:
        raise ValueError(f"{data.name} has no split {split!r}; it has {', '.join(data.splits)}")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds: expected different numbers, found {seeds}")
    console, chosen = report.console(), select(variants(base, len(data.findings)), only)
    for v in chosen:
        if v.skip:
            console.print(f"skipped {v.name}: {v.skip}")
    there = [v for v in chosen if not v.skip]
    splits = read_splits(data, split, base.data.image_size)
    scored = [k for k in range(len(data.findings)) if len(splits[0].truths[k].scored)]
    weights = {k: resampled_patients(splits[0], k) for k in scored}
    tables, strips = {k: {} for k in scored}, {k: {} for k in scored}
    jobs = [(seed, v) for seed in seeds for v in there]
    for number, (seed, v) in enumerate(jobs, 1):
        console.print(f"[{number}/{len(jobs)}] {v.name} seed {seed}", markup=False, highlight=False)
        config = config_of(base, v, seed)
        params = trained(config, data)
        predicted = [maps_of(v, config, params, data, part) for part in splits]
        for k in scored:
            add_rows(tables[k], v, config, predicted, splits, k, weights[k])
            if v.group in ("default", "beta") and seed == seeds[0]:
                strips[k][v.name] = of_finding(shown(v, config, predicted[0][0])[v.name], k)[
                    splits[0].truths[k].scored[0]
                ]
        if v is there[-1]:
            jax.clear_caches()  # so that memory does not grow with the seeds
    result = {
        "command": command,
        "dataset": data.name,
        "fingerprint": data.fingerprint,
        "split": split,
        "seeds": list(seeds),
        "bootstrap": {"resamples": RESAMPLES, "unit": "seed and patient" if len(seeds) > 1 else "patient"},
        "skipped": {v.name: v.skip for v in chosen if v.skip},
        "findings": {},
    }
    folder, figures = Path(base.workdir), {}
    for k in scored:
        name, table = data.findings[k], tables[k]
        add_controls(table, splits, k, weights[k])
        rows = [as_row(row, table["default"], len(seeds)) for row in table.values()]
        result["findings"][name] = {"rows": rows}
        suffix = f"-{name}" if len(scored) > 1 else ""
        figures[folder / "figures" / f"forest{suffix}.png"] = drawing.forest(rows, name)
        if len(strips[k]) > 1:
            truth = splits[0].truths[k]
            image = pipeline.decode_gray(data.source(split)[int(truth.scored[0])]["image"])
            image = pipeline.fit(image, base.data.image_size)
            picture = drawing.rate_distortion(rows, image, truth.mask[0], strips[k])
            figures[folder / "figures" / f"rate_distortion{suffix}.png"] = picture
    texts = {
        folder / "ablations.json": json.dumps(result, indent=1, allow_nan=False) + "\n",
        folder / "ablations.md": drawing.markdown(result),
    }
    written = report.write_all(texts | figures)
    console.print(drawing.markdown(result), markup=False, highlight=False, soft_wrap=True)
    console.print("written:", *map(str, written), sep="\n  ", soft_wrap=True)
    return result
