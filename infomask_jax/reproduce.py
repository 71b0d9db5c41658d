"""Train a finished run again from what its folder says, and compare every step."""

import contextlib
import dataclasses
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from infomask_jax import parallel, report, weights
from infomask_jax.datasets import Prepared
from infomask_jax.run import Run, changes
from infomask_jax.system import NUMBER, read_json_lines
from infomask_jax.train import train


def reproduce(folder: Path, data: Prepared) -> bool:
    """Train a run again in a temporary folder; print what differs in the environment, the first step whose loss
    differs, and whether the parameters at the end are equal bit for bit. Returns that, on every process.

    ValueError if the run is not at its end, or one step of another, or the data is not what it was trained on.
    """
    run, console = Run.open(folder), report.console()
    if "best_step" in run.manifest:
        raise ValueError(f"{folder} is one step of a run: reproduce that run, {run.folder.absolute().parent}")
    console.quiet = not parallel.is_main()
    config, expected, read = run.config, run.params, run.manifest.get("weights")
    if run.fingerprint != data.fingerprint:
        raise ValueError(
            f"{folder} was trained on data with fingerprint {run.fingerprint}, {data.directory} has "
            f"{data.fingerprint}: prepare it as it was"
        )
    if config.model.init and read and (found := weights.digest(config.model)) != read["sha256"]:
        file = f"{read['file']} with SHA-256 {read['sha256']}"
        raise ValueError(f"{folder} was trained from the weights {file}, {config.model.init} has {found}")
    if lines := changes(run.manifest):
        console.print("not as it was, and each of these can change the last bits:", *lines, sep="\n  ", markup=False)
    with _scratch(run.folder) as scratch:
        machine = dataclasses.replace(config.machine, profile=False, validations=0, hosts="")
        again = dataclasses.replace(config, workdir=scratch / "again", data_dir=data.directory, machine=machine)
        params = jax.device_get(train(again, data).params)
        first = first_difference(losses(run.folder), losses(again.workdir)) if parallel.is_main() else None
    if first is not None:
        console.print(f"the first step that differs is {first[0]}: loss {first[1]!r} then, {first[2]!r} now")
    largest = max(
        float(np.abs(np.asarray(a, np.float64) - b).max())
        for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(params), strict=True)
    )
    same = not parallel.anywhere(first is not None or largest > 0)
    told = "every loss and every parameter is the same, bit for bit" if same else "the run is NOT reproduced"
    console.print(f"{told}; {config.train.steps} steps, largest difference of a parameter {largest:.3g}")
    return same


@contextlib.contextmanager
def _scratch(run: Path) -> Iterator[Path]:
    """A folder that is gone afterwards: a temporary one, or beside the run where several processes have to see it."""
    if jax.process_count() == 1:
        with tempfile.TemporaryDirectory(prefix="infomask-reproduce-") as folder:
            yield Path(folder)
        return
    number = parallel.fetch(np.array([secrets.randbits(31)], np.int32))[0]  # of each; the first one's counts
    folder = run.absolute().parent / f"infomask-reproduce-{number:08x}"
    try:
        yield folder
        parallel.wait_for_all("compared")
    finally:
        if parallel.is_main():
            shutil.rmtree(folder, ignore_errors=True)


def losses(run: Path) -> dict[int, float]:
    """{step: loss, nats an image} of every step in a run's metrics.jsonl."""
    found, shape = {}, {"step": int, "losses": [NUMBER]}
    for row in read_json_lines(Path(run) / "metrics.jsonl", shape, "take it from a copy of the run"):
        found |= dict(zip(range(row["step"] - len(row["losses"]) + 1, row["step"] + 1), row["losses"], strict=True))
    return found


def first_difference(then: dict[int, float], now: dict[int, float]) -> tuple[int, float | None, float | None] | None:
    """(step, loss then, loss now) of the first step at which two runs differ, None for one that is missing; or None."""
    differing = [step for step in sorted(then.keys() | now.keys()) if then.get(step) != now.get(step)]
    return (differing[0], then.get(differing[0]), now.get(differing[0])) if differing else None
