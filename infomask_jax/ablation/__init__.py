"""Ablations: named variants of one config, trained over seeds and scored together on the same images, paired.

A run of a variant is an ordinary run in WORKDIR/VARIANT/seedS. What it predicts is kept in its maps/SPLIT.npz (maps)
and maps/SPLIT.json (logits, rates, and of what all this is), of other data in SPLIT-on-NAME-FINGERPRINT, so that a
second call only scores.

    variants.py     the variants of a config
    predictions.py  parameters, maps, logits and rates of one run
    table.py        scores over seeds, and the paired differences to the default
    workers.py      one run, and several side by side
    together.py     many runs in lockstep, on one accelerator
"""

import contextlib
import json
from pathlib import Path

import jax

from infomask_jax import parallel, pipeline, report
from infomask_jax.ablation.table import RESAMPLES, add_controls, as_row, merge
from infomask_jax.ablation.together import train_together
from infomask_jax.ablation.variants import Variant, config_of, select, variants
from infomask_jax.ablation.workers import Task, read, score_run, side_by_side
from infomask_jax.config import Config
from infomask_jax.datasets import Prepared
from infomask_jax.report import ablations as drawing
from infomask_jax.report.figures import folders
from infomask_jax.system import write_all

__all__ = ["Variant", "config_of", "run", "select", "train_together", "variants"]


def run(
    base: Config,
    data: Prepared,
    only: tuple[str, ...],
    seeds: tuple[int, ...],
    split: str,
    command: str,
    jobs: int = 1,
    together: bool = False,
    scored: Prepared | None = None,
) -> dict:
    """Train or resume every run, score all of them together, write ablations.json, ablations.md and figures/ into
    base.workdir (of other data into its sub-folder on-NAME-FINGERPRINT); return what the JSON holds.

    ValueError for an unknown name, a base without a mask, a split that is absent or has no box, other findings, `jobs`
    that cannot be, several processes of JAX, or a run directory with another config (it names the fields).

    Args:
      jobs: runs at once, each in a process of its own, see workers.py; 1: all in this one.
      together: train all runs that have not begun in lockstep first, see together.py.
      scored: other data, with the same findings, whose `split` is scored and whose `val` tunes thresholds.
    """
    folder = Path(base.workdir)
    if scored is None:
        scored = data
    elif scored.fingerprint == data.fingerprint:
        raise ValueError(f"expected other data than that of the training; {scored.directory} holds the same")
    else:
        folder /= scored.beside
    if base.model.kind != "infomask":
        raise ValueError(f"model.kind: expected infomask, whose variants these are, found {base.model.kind}")
    if (processes := jax.process_count()) > 1:
        raise ValueError(f"a table is made by one process, with jobs or together; found {processes}: use one host")
    if together and jobs > 1:
        raise ValueError(f"together: runs train in one process; expected jobs 1, found {jobs}")
    if jobs < 1 or (jobs > 1 and parallel.accelerated()):
        raise ValueError(
            f"jobs: expected at least 1, and 1 beside an accelerator, which processes cannot share well; found {jobs}. "
            "JAX_PLATFORMS=cpu trains on the cores."
        )
    if split not in scored.splits:
        raise ValueError(f"{scored.directory} has no split {split!r}; it has {', '.join(scored.splits)}")
    if scored.findings != data.findings:
        found = f"{scored.directory} is labelled with {', '.join(scored.findings)}"
        raise ValueError(f"expected the findings of the training, {', '.join(data.findings)}; {found}")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds: expected different numbers, found {seeds}")
    console, chosen = report.console(), select(variants(base, len(data.findings)), only)
    for v in chosen:
        if v.skip:
            console.print(f"skipped {v.name}: {v.skip}")
    there = [v for v in chosen if not v.skip]
    splits, weights = read(scored, split, base.data.image_size)
    if not weights:
        raise ValueError(f"{scored.directory}: expected boxes of a finding on images of {split}, found none to score")
    tables, strips = {k: {} for k in weights}, {k: {} for k in weights}
    runs = {}  # which some variants share
    for seed in seeds:
        for v in there:
            runs.setdefault(config_of(base, v, seed).workdir, (seed, []))[1].append(v)
    where = scored.name, scored.directory.parents[1]
    tasks = [Task(base, those, seed, where, split) for seed, those in runs.values()]
    if together:
        train_together([config_of(base, task.variants[0], task.seed) for task in tasks], data)
    in_turn = (score_run(task, data, splits, weights) for task in tasks)
    with contextlib.closing(side_by_side(tasks, jobs, Path(base.workdir) / "logs") if jobs > 1 else in_turn) as found:
        for number, task in enumerate(tasks, 1):
            told = f"[{number}/{len(tasks)}] {task.variants[0].name} seed {task.seed}"
            console.print(told, markup=False, highlight=False)
            rows = next(found)
            if number == len(tasks) or tasks[number].seed != task.seed:
                jax.clear_caches()  # so that memory does not grow with the seeds
            for k in weights:
                merge(tables[k], rows[k][0])
                if task.seed == seeds[0]:
                    strips[k] |= rows[k][1]
    result = {
        "command": command,
        "dataset": scored.name,
        "fingerprint": scored.fingerprint,
        "trained_on": data.fingerprint,
        "split": split,
        "seeds": list(seeds),
        "bootstrap": {"resamples": RESAMPLES, "unit": "seed and patient" if len(seeds) > 1 else "patient"},
        "skipped": {v.name: v.skip for v in chosen if v.skip},
        "findings": {},
    }
    figures, names = {}, folders(data.findings)
    for k in weights:
        name, table = data.findings[k], tables[k]
        add_controls(table, splits, k, weights[k])
        rows = [as_row(row, table["default"], len(seeds)) for row in table.values()]
        result["findings"][name] = {"rows": rows}
        suffix = f"-{names[name]}" if len(weights) > 1 else ""
        figures[folder / "figures" / f"forest{suffix}.png"] = drawing.forest(rows, name)
        if len(strips[k]) > 1:
            truth = splits[0].truths[k]
            image = pipeline.decode_gray(scored.source(split)[int(truth.scored[0])]["image"])
            image = pipeline.fit(image, base.data.image_size)
            picture = drawing.rate_distortion(rows, image, truth.mask[0], strips[k])
            figures[folder / "figures" / f"rate_distortion{suffix}.png"] = picture
    texts = {
        folder / "ablations.json": json.dumps(result, indent=1, allow_nan=False) + "\n",
        folder / "ablations.md": drawing.markdown(result),
    }
    written = write_all(texts | figures)
    console.print(drawing.markdown(result), markup=False, highlight=False, soft_wrap=True)
    console.print("written:", *map(str, written), sep="\n  ", soft_wrap=True)
    return result
