"""Ablations: named variants of one config, trained over seeds and scored together on the same images, paired.

A run of a variant is an ordinary run in WORKDIR/VARIANT/seedS. What it predicts is kept beside it, see predictions.py,
so that a second call only scores.
"""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np

from infomask_jax import pixels, report
from infomask_jax.ablation.predictions import predicted, read_splits, trained
from infomask_jax.ablation.table import RESAMPLES, Table, add_controls, add_run, as_row, shown, tables
from infomask_jax.ablation.together import train_together
from infomask_jax.ablation.variants import Variant, config_of, select, variants, varied
from infomask_jax.config import Config
from infomask_jax.datasets import Prepared
from infomask_jax.localize import of_finding
from infomask_jax.report import ablations as drawing
from infomask_jax.report.figures import folders
from infomask_jax.system import write_all

__all__ = ["Variant", "config_of", "run", "select", "train_together", "variants", "varied"]


def run(
    base: Config,
    data: Prepared,
    only: tuple[str, ...],
    seeds: tuple[int, ...],
    split: str,
    command: str,
    together: bool = False,
    scored: Prepared | None = None,
    vary: tuple[tuple[str, ...], ...] = (),
) -> dict:
    """Train or resume every run, score all of them together, write ablations.json, ablations.md and figures/ into
    base.workdir (of other data into its sub-folder on-NAME-FINGERPRINT); return what the JSON holds.

    ValueError for what cannot be scored, or a run directory with another config; BlockingIOError if another process
    trains one of the runs.

    Args:
      only: names of variants or groups, see `select`. command: for the documents, how all this was asked for.
      together: train all runs that have not begun in lockstep first, see together.py.
      scored: other data, with the same findings, whose `split` is scored and whose `val` tunes thresholds.
      vary: settings and their values, see `varied`; with these, `only` names what is trained beside them and `default`.
    """
    folder = Path(base.workdir) / (scored.beside if scored else "")
    if scored and scored.fingerprint == data.fingerprint:
        raise ValueError(f"expected other data than that of the training; {scored.directory} holds the same")
    scored = scored or data
    if base.model.kind != "infomask":
        raise ValueError(f"model.kind: expected infomask, whose variants these are, found {base.model.kind}")
    if (processes := jax.process_count()) > 1:
        raise ValueError(f"a table is made by one process, found {processes}: use one host")
    if split not in scored.splits:
        raise ValueError(f"{scored.directory} has no split {split!r}; it has {', '.join(scored.splits)}")
    if scored.findings != data.findings:
        found = f"{scored.directory} is labelled with {', '.join(scored.findings)}"
        raise ValueError(f"expected the findings of the training, {', '.join(data.findings)}; {found}")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds: expected different numbers, found {seeds}")
    every, new = variants(base, len(data.findings)), varied(base, vary)
    console, chosen = report.console(), select(every, only or ("default",) * bool(vary)) + new
    skipped = {v.name: v.skip for v in chosen if v.skip}
    for name, why in skipped.items():
        console.print(f"skipped {name}: {why}")
    splits = read_splits(scored, split, base.data.image_size)
    of_findings, strips = tables(splits), {}
    if not of_findings:
        raise ValueError(f"{scored.directory}: expected boxes of a finding on images of {split}, found none to score")
    runs = {}  # {folder: its config and the variants that share it}
    for seed in seeds:
        for v in (v for v in chosen if not v.skip):
            config = config_of(base, v, seed)
            runs.setdefault(config.workdir, (config, []))[1].append(v)
    if together:
        train_together([config for config, _ in runs.values()], data)
    for number, (config, those) in enumerate(runs.values(), 1):
        if number > 1 and those[0].name == "default":  # the next seed
            jax.clear_caches()  # so that memory does not grow with the seeds
        console.print(f"[{number}/{len(runs)}] {those[0].name} seed {config.seed}", markup=False, highlight=False)
        params = trained(config, data)
        for v in those:
            asked = dataclasses.replace(config, map_shifts=v.changes.get("map_shifts", config.map_shifts))
            found = [predicted(v, asked, params, data, part) for part in splits]
            maps = [shown(v, asked.model, f.maps) for f in found]
            for table in of_findings:
                add_run(table, v, maps, found[0])
            if config.seed == seeds[0] and v.group in ("default", "beta"):
                strips[v.name] = maps[0][v.name]
    result = {
        "command": command,
        "dataset": scored.name,
        "fingerprint": scored.fingerprint,
        "trained_on": data.fingerprint,
        "split": split,
        "seeds": list(seeds),
        "bootstrap": {"resamples": RESAMPLES, "unit": "seed and patient" if len(seeds) > 1 else "patient"},
        "skipped": skipped,
        "findings": {},
    }
    files = {}
    for table in of_findings:
        add_controls(table)
        finding = data.findings[table.k]
        rows = [as_row(row, table.rows["default"], len(seeds)) for row in table.rows.values()]
        result["findings"][finding] = {"rows": rows}
        suffix = f"-{folders(data.findings)[finding]}" if len(of_findings) > 1 else ""
        for name, picture in _figures(table, rows, strips, base.data.image_size).items():
            files[folder / "figures" / f"{name}{suffix}.png"] = picture
    files[folder / "ablations.json"] = json.dumps(result, indent=1, allow_nan=False) + "\n"
    files[folder / "ablations.md"] = drawing.markdown(result)
    written = write_all(files)
    console.print(drawing.markdown(result), markup=False, highlight=False, soft_wrap=True)
    console.print("written:", *map(str, written), sep="\n  ", soft_wrap=True)
    return result


def _figures(table: Table, rows: list[dict], strips: dict[str, np.ndarray], size: int) -> dict[str, bytes]:
    """The forest of a finding and, of several betas, rate and distortion with their masks of the first scored image."""
    split, k = table.splits[0], table.k
    figures = {"forest": drawing.forest(rows, split.data.findings[k])}
    if len(strips) > 1:
        first = int(split.truths[k].scored[0])
        image = pixels.fit(pixels.decode_gray(split.data.source(split.name)[first]["image"]), size)
        masks = {name: of_finding(maps, k)[first] for name, maps in strips.items()}
        figures["rate_distortion"] = drawing.rate_distortion(rows, image, split.truths[k].mask[0], masks)
    return figures
