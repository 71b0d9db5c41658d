"""One run of a table, and several of them side by side in processes of their own."""

import contextlib
import ctypes
import functools
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import jax

from infomask_jax import datasets, parallel
from infomask_jax.ablation.predictions import Split, maps_of, read_splits, trained
from infomask_jax.ablation.table import add_rows, of_finding, resampled_patients, shown
from infomask_jax.ablation.variants import Variant, config_of
from infomask_jax.config import Config
from infomask_jax.datasets import Prepared

PDEATHSIG = 1  # of Linux's prctl.h


def read(data: Prepared, split: str, frame: int) -> tuple[list[Split], dict[int, dict]]:
    """What runs are scored on: the splits, and the resamples of the patients of each finding that has boxes there."""
    splits = read_splits(data, split, frame)
    return splits, {k: resampled_patients(splits[0], k) for k, t in enumerate(splits[0].truths) if len(t.scored)}


def score_run(
    base: Config, data: Prepared, those: list[Variant], seed: int, splits: list[Split], weights: dict
) -> dict[int, tuple[dict, dict]]:
    """Train (or resume, or find) the one run that `those` variants share and score it.

    Returns {finding: (rows, strip)}: rows as `table.add_rows` makes them; strip {variant: map of the first scored
    image} of the default and of other betas.
    """
    config = config_of(base, those[0], seed)
    params, found = trained(config, data), {k: ({}, {}) for k in weights}
    for v in those:
        predicted = [maps_of(v, config, params, data, part) for part in splits]
        for k, (rows, strip) in found.items():
            add_rows(rows, v, config, predicted, splits, k, weights[k])
            if v.group in ("default", "beta"):
                maps = of_finding(shown(v, config, predicted[0][0])[v.name], k)
                strip[v.name] = maps[splits[0].truths[k].scored[0]]
    return found


@contextlib.contextmanager
def side_by_side(tasks: list[tuple], jobs: int, logs: Path) -> Iterator[Iterator[dict]]:
    """The results of `score_run` for tasks (base, variants, seed, split), in their order, from `jobs` processes.

    Without an accelerator each process has its share of the cores; with one they share it. What they print goes to
    logs/N.log. Whatever ends this ends them: at the next step they save, as any run does that is told to stop.
    """
    context, logs = multiprocessing.get_context("spawn"), logs.absolute()
    logs.mkdir(parents=True, exist_ok=True)
    before = os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE")
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = before or "false"  # one process must not take all memory
    count = context.Value("i", 0)
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_start, initargs=(count, jobs, logs, os.getpid()))
    try:
        yield (future.result() for future in [pool.submit(_score, *task) for task in tasks])
    except BaseException as error:
        for process in multiprocessing.active_children():
            process.terminate()  # SIGTERM: save and stop
        if isinstance(error, BrokenProcessPool):
            raise ChildProcessError(
                f"a process ended before its run did (memory?); the last lines of {logs}"
            ) from error
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        if before is None:
            del os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"]


def _start(count, jobs: int, logs: Path, parent: int) -> None:
    """Initializer of a process: its log, its cores, and its end with that of its parent."""
    with count.get_lock():
        number, count.value = count.value, count.value + 1
    log = os.open(logs / f"{number}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(log, stream.fileno())
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before we could ask to be told
            os._exit(1)
        if not parallel.accelerated():
            cores = sorted(os.sched_getaffinity(0))
            share = max(len(cores) // jobs, 1)
            first = number * share % len(cores)
            os.sched_setaffinity(0, cores[first : first + share])


@functools.cache
def _data(dataset: str, data_dir: Path, split: str, frame: int):
    data = datasets.load(dataset, data_dir)
    return data, *read(data, split, frame)


def _score(base: Config, those: list[Variant], seed: int, split: str) -> dict:
    parallel.start(base.hosts)
    data, splits, weights = _data(base.dataset, base.data_dir, split, base.data.image_size)
    found = score_run(base, data, those, seed, splits, weights)
    jax.clear_caches()  # so that memory does not grow with the runs
    return found
