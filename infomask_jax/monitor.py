"""What a training run tells and hears: metrics.jsonl, the progress line, the profile, requests to stop."""

import contextlib
import json
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from infomask_jax import parallel, run
from infomask_jax.config import Config
from infomask_jax.datasets import Prepared
from infomask_jax.losses import positive_weights
from infomask_jax.system import read_json_lines, write_all

METADATA_SECONDS = 5.0  # between two looks at the cloud's notices; a preempted machine has 30 seconds


class MetricsLog:
    """metrics.jsonl: means over the steps since the last line, their single `losses`, and the finite check.

    Metrics stay on the device until a line is due: the loop waits for no step. The main process writes."""

    def __init__(self, path: Path, step: int, batch_size: int, tell: Callable[[dict], None] = lambda row: None):
        """The log of a run at a step. tell: hears every line that is written."""
        self.path, self.batch_size, self.tell = path, batch_size, tell
        hint = "move it away: a new log begins at the checkpoint"
        rows = read_json_lines(path, {"step": int}, hint) if path.exists() else []
        kept = [row for row in rows if row["step"] <= step]
        if parallel.is_main():  # lines after the checkpoint will come again
            write_all({path: "".join(json.dumps(row) + "\n" for row in kept)})
        self.rows, self.last = kept, kept[-1] if kept else None
        self.pending: list[tuple[int, dict]] = []
        self.waits: list[float] = []  # share of the time, by line
        self.since, self.waited, self.first = time.perf_counter(), 0.0, True

    def add(self, step: int, metrics: dict) -> None:
        self.pending.append((step, metrics))
        if self.first and len(self.pending) == 1:  # the first step compiles: keep it out of the rate
            jax.block_until_ready(metrics)
            self.since, self.waited = time.perf_counter(), 0.0

    def apart(self, work: Callable[[], Any]) -> Any:
        """What `work` returns; its time is not that of the steps."""
        jax.block_until_ready([metrics for _, metrics in self.pending])
        started = time.perf_counter()
        found = work()
        self.since += time.perf_counter() - started
        return found

    def flush(self, scores: dict[str, float] | None = None) -> dict[str, float] | None:
        """Write and return the means of the pending steps, if there are any, and `scores`. FloatingPointError naming
        the first step whose loss or gradient is not finite."""
        if not self.pending:
            return None
        steps, metrics = zip(*self.pending, strict=True)
        fetched = jax.device_get(metrics)
        rows = [{key: np.ravel(value)[0] for key, value in row.items()} for row in fetched]  # pmap's are [1]
        for step, row in zip(steps, rows, strict=True):
            if not (np.isfinite(row["loss"]) and np.isfinite(row["grad_norm"])):
                told = f"step {step}: loss {row['loss']}, gradient norm {row['grad_norm']}"
                advice = "Try a lower train.learning_rate or lower betas, in a new --workdir."
                raise FloatingPointError(f"{told}. Last finite metrics: {self.last}. {advice}")
        elapsed = max(time.perf_counter() - self.since, 1e-9)
        row = {"step": steps[-1]} | {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
        row |= scores or {}
        row["losses"] = [float(row["loss"]) for row in rows]
        if counted := len(rows) - self.first:
            row |= {"images_per_s": counted * self.batch_size / elapsed, "data_wait": min(1.0, self.waited / elapsed)}
            self.waits.append(row["data_wait"])
        if parallel.is_main():
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        self.tell(row)
        self.last, self.pending, self.first = row, [], False
        self.since, self.waited = time.perf_counter(), 0.0
        return row


class Stop:
    """Hears requests to stop after the running step: SIGINT, SIGTERM, the notice of Google Cloud that it will take the
    machine away. A second SIGINT interrupts at once."""

    requested = False

    def __enter__(self):
        self.previous, self.left = {}, threading.Event()
        if threading.current_thread() is threading.main_thread():  # signals can be set nowhere else
            self.previous = {s: signal.signal(s, self._request) for s in (signal.SIGINT, signal.SIGTERM)}
        if host := _metadata_host():
            threading.Thread(target=self._watch, args=(host,), daemon=True).start()
        return self

    def _request(self, number, frame):
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True

    def _watch(self, host: str) -> None:
        url = f"http://{host}/computeMetadata/v1/instance/?recursive=true"
        request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
        while not self.requested and not self.left.wait(METADATA_SECONDS):
            with contextlib.suppress(Exception):  # whatever a server that is busy or half up may answer: ask again
                with urllib.request.urlopen(request, timeout=METADATA_SECONDS) as answer:
                    instance = json.load(answer)
                event = instance.get("maintenanceEvent", "NONE")
                self.requested |= instance.get("preempted") == "TRUE" or event.startswith("TERMINATE")

    def __exit__(self, *_):
        self.left.set()
        for number, handler in self.previous.items():
            signal.signal(number, handler)


def _metadata_host() -> str | None:
    """Of Google Cloud, on its machines."""
    default = None
    with contextlib.suppress(OSError):
        if "Google" in Path("/sys/class/dmi/id/product_name").read_text():
            default = "metadata.google.internal"
    return os.environ.get("GCE_METADATA_HOST", default)


@contextlib.contextmanager
def profile(folder: Path | None, first: int = 10, last: int = 20):
    """A function to call with the metrics of every step: traces those from the tenth to the twentieth (the first ones
    compile) into a folder; without a folder nothing."""
    steps = 0

    def step(metrics: dict) -> None:
        nonlocal steps
        steps += 1
        if folder and steps in (first, last):
            jax.block_until_ready(metrics)
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # it walks the frames of all threads, and has crashed in Python itself
            if steps == first:
                jax.profiler.start_trace(folder, profiler_options=options)
            else:
                jax.profiler.stop_trace()

    try:
        yield step
    finally:
        if folder and first <= steps < last:
            jax.profiler.stop_trace()


def tell_of_resuming(console: Console, workdir: Path, step: int, total: int, broken: list[str]) -> None:
    """Say from which step a run goes on, which checkpoints could not be read, and what is not as when it began."""
    for message in broken:
        console.print(message, style="yellow")
    if step == total:
        console.print(f"{workdir} is trained already, {total} steps")
    elif step:
        console.print(f"resumed {workdir} from step {step} of {total}")
        if lines := run.going_on(workdir, step):
            told = "not as when it began, so it may not end as it would have:"
            console.print(told, *lines, sep="\n  ", style="yellow", markup=False)


def tell_of_beginning(console: Console, config: Config, data: Prepared, labels: np.ndarray) -> None:
    """Say how many steps there are, on what, and how much each finding weighs."""
    films, steps, size = len(labels), config.train.steps, config.data.batch_size
    told = f"{config.workdir}: {steps:,} steps of {size} films, {steps * size / films:.1f} times all {films:,} of train"
    lines = [f"{told}; a step holds each of them {size / films:.1f} times" if size > films else told]
    weights = positive_weights(config.loss, labels)
    for k, name in enumerate(data.findings):
        present, absent = int(np.sum(labels[:, k] == 1)), int(np.sum(labels[:, k] == 0))
        weight = config.loss.positive_weight if weights is None else weights[k]
        lines.append(f"  {name}: {present:,} with, {absent:,} without; loss.positive_weight {weight:.3g}")
        if not (present and absent):
            lines[-1] += ": it cannot be learned"
    console.print(*lines, sep="\n", markup=False, highlight=False, soft_wrap=True)


def tell_of_time(console: Console, config: Config, data: Prepared, step: int, row: dict, pass_of: float) -> None:
    """Say how long the rest of the training and the maps after it will take about, as the first steps went. pass_of:
    seconds of one pass of a film, NaN where there was none to measure."""
    left = (config.train.steps - step) * config.data.batch_size / row["images_per_s"]
    told = f"{config.workdir}: about {minutes(left)} of training"
    films = sum(data.splits.get(split, 0) for split in ("val", "test"))
    if np.isfinite(pass_of) and films:
        passes = config.map_shifts**2
        told += f", then {minutes(films * passes * pass_of)} of maps ({passes} passes of {films:,} films)"
    console.print(told, markup=False, highlight=False, soft_wrap=True)


def minutes(seconds: float) -> str:
    """Of a while: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def tell_of_waiting(console: Console, workdir: Path, log: MetricsLog) -> None:
    """Say how much of the time the steps waited for data, and what helps."""
    if log.waits:
        share, advice = np.mean(log.waits), ": --machine.cache-gib and --machine.workers may help (docs/running.md)"
        told = f"{workdir}: {share:.1%} of the time waited for data{advice if share > 0.1 else ''}"
        console.print(told, soft_wrap=True)


def progress_bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(10), TextColumn("{task.completed}/{task.total}"))
    columns += (TextColumn("{task.fields[status]}"), TimeRemainingColumn(compact=True))
    return Progress(*columns, disable=not parallel.is_main())


def status(row: dict[str, float]) -> str:
    rate = row["rate_z"] + row["rate_m"]
    speed = f" {row['images_per_s']:.0f} images/s" if "images_per_s" in row else ""
    auroc = f" val AUROC {row['val_auroc']:.3f}" if "val_auroc" in row else ""
    return f"loss {row['loss']:.3f}{auroc}{f' rate {rate:.0f} bits' if rate else ''}{speed}"
