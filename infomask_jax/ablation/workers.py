"""One run of a table, and several of them side by side in processes of their own."""

import ctypes
import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import traceback
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from infomask_jax import command, datasets, parallel
from infomask_jax.ablation.predictions import Split, maps_of, read_splits, trained
from infomask_jax.ablation.table import add_rows, of_finding, resampled_patients, shown
from infomask_jax.ablation.variants import Variant, config_of
from infomask_jax.config import Config
from infomask_jax.datasets import Prepared

PDEATHSIG = 1  # of Linux's prctl.h


class Task(NamedTuple):
    """One run: what is trained, and on what it is scored."""

    base: Config
    variants: list[Variant]  # that share it
    seed: int
    scored: tuple[str, Path]  # for datasets.load
    split: str


def read(data: Prepared, split: str, frame: int) -> tuple[list[Split], dict[int, dict]]:
    """What runs are scored on: the splits, and the resamples of the patients of each finding that has boxes there."""
    splits = read_splits(data, split, frame)
    return splits, {k: resampled_patients(splits[0], k) for k, t in enumerate(splits[0].truths) if len(t.scored)}


def score_run(task: Task, data: Prepared, splits: list[Split], weights: dict) -> dict[int, tuple[dict, dict]]:
    """Train (or resume, or find) the one run of a task on `data` and score it.

    Returns {finding: (rows, strip)}: rows as `table.add_rows` makes them; strip {variant: map of the first scored
    image} of the default and of other betas.
    """
    config = config_of(task.base, task.variants[0], task.seed)
    params, found = trained(config, data), {k: ({}, {}) for k in weights}
    for v in task.variants:
        asked = dataclasses.replace(config, map_shifts=v.changes.get("map_shifts", config.map_shifts))
        predicted = [maps_of(v, asked, params, data, part) for part in splits]
        for k, (rows, strip) in found.items():
            add_rows(rows, v, asked, predicted, splits, k, weights[k])
            if v.group in ("default", "beta"):
                maps = of_finding(shown(v, asked, predicted[0][0])[v.name], k)
                strip[v.name] = maps[splits[0].truths[k].scored[0]]
    return found


def side_by_side(tasks: list[Task], jobs: int, logs: Path) -> Iterator[dict]:
    """The results of `score_run` for tasks, in their order, each from its own process.

    Up to `jobs` processes at once, each on its share of the cores. What a run prints goes to logs/VARIANT-seedS.log.
    Whatever ends this ends them, and what is trained by then is saved, as in any run that is told to stop. SIGINT and
    SIGTERM raise command.Stopped; an error of a run is raised as soon as it is known; ChildProcessError if its process
    is gone.
    """
    context, jobs = multiprocessing.get_context("spawn"), min(jobs, len(tasks))
    waiting, running, done, free = deque(enumerate(tasks)), {}, {}, list(range(jobs))
    logs.mkdir(parents=True, exist_ok=True)
    before = {number: signal.signal(number, command.end_now) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for at in range(len(tasks)):
            while at not in done:
                while waiting and free:
                    number, task = waiting.popleft()
                    receiver, sender = context.Pipe(duplex=False)
                    log, slot = logs.absolute() / f"{task.variants[0].name}-seed{task.seed}.log", free.pop()
                    arguments = (sender, task, log, slot, jobs, os.getpid())
                    process = context.Process(target=_work, args=arguments)
                    running[receiver] = number, slot, process, log
                    process.start()
                    sender.close()
                for receiver in multiprocessing.connection.wait(list(running)):
                    number, slot, process, log = running[receiver]
                    try:
                        outcome = receiver.recv()
                    except EOFError:
                        raise ChildProcessError(f"a process ended before its run did (memory?): see {log}") from None
                    if isinstance(outcome, BaseException):
                        raise outcome
                    process.join()
                    del running[receiver]
                    done[number] = outcome
                    free.append(slot)
            yield done.pop(at)
    finally:
        started = [process for _, _, process, _ in running.values() if process.pid]
        for process in started:
            process.terminate()
        for process in started:
            process.join()
        for number, handler in before.items():
            signal.signal(number, handler)


def _work(sender, task: Task, log: Path, slot: int, jobs: int, parent: int) -> None:
    """One task in a process of its own, which ends with its parent."""
    os.setpgid(0, 0)  # Ctrl-C reaches the parent alone, which then tells us
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(file, stream.fileno())
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before we could ask to be told
            os._exit(1)
        cores = sorted(os.sched_getaffinity(0))
        share = max(len(cores) // jobs, 1)
        first = slot * share % len(cores)
        os.sched_setaffinity(0, cores[first : first + share])
    base = task.base
    try:
        parallel.start(base.machine.hosts)
        data, scored = datasets.load(base.dataset, base.data_dir), datasets.load(*task.scored)
        outcome = score_run(task, data, *read(scored, task.split, base.data.image_size))
    except command.Stopped as stop:
        outcome = stop
    except Exception as error:
        traceback.print_exc()  # into the log; the parent gets the error without it
        outcome = error
    sender.send(outcome)
