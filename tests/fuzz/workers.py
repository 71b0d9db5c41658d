"""Processes that make and check files, one at a time: a crash, a hang or a bomb costs one of them and not the run."""

import multiprocessing
import os
import re
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

HANG = 10  # seconds of processor time that our code may take for a file
KILL = 60  # seconds without a word, after which a process is ended
BOMB = 1536 << 20  # bytes of memory that it may take beyond those of the idle process
BAD = ("crash", "hang", "bomb", "wrong", "message")


class Bad(Exception):
    """What our code did with a file and must not: one of BAD, and the details."""


@dataclass(frozen=True)
class Outcome:
    """Of one file: `accepted`, `refused`, or one of BAD; of accepted ones `equal`, or why not judged."""

    index: int
    kind: str
    detail: str = ""


def run(start: Callable, indices, jobs: int) -> Iterator[Outcome]:
    """The outcome of every index, in any order.

    Args:
      start: called once in each process, picklable; returns check(index, decoded), which raises Bad, returns
        ("accepted", detail) or ("refused", ""), and calls decoded() when our code is done and the comparison begins.
    """
    context, left = multiprocessing.get_context("spawn"), iter(indices)
    workers = []

    def another(process=None):
        index = next(left, None)
        if index is None:
            if process:
                process.stop()
            return
        process = process or _Process(context, start)
        process.give(index)
        workers.append(process)

    for _ in range(jobs):
        another()
    while workers:
        ready = wait([worker.pipe for worker in workers], timeout=1)
        for worker in list(workers):
            outcome = worker.hear() if worker.pipe in ready else worker.late()
            if outcome is not None:
                workers.remove(worker)
                yield outcome
                another(None if worker.gone else worker)


class _Process:
    def __init__(self, context, start: Callable):
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, start), daemon=True)
        self.process.start()
        theirs.close()
        self.gone, self.ready = False, False

    def give(self, index: int) -> None:
        self.index, self.decoded, self.since = index, False, time.monotonic()
        self.pipe.send(index)

    def hear(self) -> Outcome | None:
        try:
            word = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            self.gone = True
            if not self.ready:
                raise RuntimeError(f"a worker could not start (exit status {self.process.exitcode})") from None
            how = f"the process ended with status {self.process.exitcode}"
            if self.decoded:
                return Outcome(self.index, "accepted", f"the independent decoder crashed: {how}")
            return Outcome(self.index, "crash", how)
        self.since = time.monotonic()
        if word == "ready":
            self.ready = True
        elif word == "decoded":
            self.decoded = True
        else:
            kind, detail, self.gone = word
            return Outcome(self.index, kind, detail)
        return None

    def late(self) -> Outcome | None:
        if time.monotonic() - self.since < (KILL if self.ready else 10 * KILL):
            return None
        self.process.kill()
        self.process.join()
        self.gone = True
        if self.decoded:
            return Outcome(self.index, "accepted", "the independent decoder hangs")
        return Outcome(self.index, "hang", f"no end in {KILL} s")

    def stop(self) -> None:
        self.pipe.close()
        self.process.join()


def _work(pipe, start: Callable) -> None:
    """Checks what it is given until the pipe is closed. Decoders write to stderr as they like: into nothing."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    errors = os.dup(2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        check = start()
    except BaseException:
        os.dup2(errors, 2)
        traceback.print_exc(file=sys.stderr)
        raise
    base = _peak()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipe.send("ready")
    while True:
        try:
            index = pipe.recv()
        except EOFError:
            return
        used, after = time.process_time(), []

        def decoded(used=used, after=after):
            after += [time.process_time() - used, _peak() - base]
            pipe.send("decoded")

        try:
            kind, detail = check(index, decoded)
        except Bad as bad:
            kind, detail = bad.args
        except BaseException:  # ours to tell: with the line where it came from
            lines = traceback.format_exc().strip().splitlines()
            kind, detail = "crash", f"{lines[-1][:200]} ({' '.join(lines[-3].split()) if len(lines) > 3 else ''})"
        seconds, taken = after or (time.process_time() - used, _peak() - base)
        if taken > BOMB:
            kind, detail = "bomb", f"{taken / 2**30:.1f} GiB"
        elif seconds > HANG:
            kind, detail = "hang", f"{seconds:.0f} s of processor time"
        gone = _peak() - base > BOMB  # what it takes from here on could not be seen
        pipe.send((kind, detail, gone))
        if gone:
            return


def _peak() -> int:
    """Most memory that this process has held, bytes. (Linux counts in ru_maxrss what the parent held, too.)"""
    try:
        return 1024 * int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1])
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
