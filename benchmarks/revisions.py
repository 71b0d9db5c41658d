"""Speed of one training step against that of another revision, in turns.

    git worktree add ../before REVISION
    python benchmarks/revisions.py --before ../before --image-size 64

Each tree trains in a process of its own, one step at a time, every other round in reverse, while the other waits. Run
it twice: a process that has compiled its step itself is slower than one that finds it in the cache.
Prints one JSON object on the last line: median times, and the median over rounds of their ratio.
"""

import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import tyro

HERE = Path(__file__).parent.parent
WORKER = """
import sys, time
import numpy as np, step
from infomask_jax import parallel
settings = step.Benchmark(image_size={size})
parallel.set_up()
rng, shape, ones = np.random.default_rng(0), (32, {size}, {size}, 1), np.ones((32, 1), np.float32)
batch = {{"image": rng.normal(size=shape).astype(np.float32), "labels": rng.integers(0, 2, (32, 1)).astype(np.float32),
         "label_mask": ones, "valid": ones[:, 0], "index": np.arange(32, dtype=np.int32)}}
runs = {{name: step.candidate(step.configs(settings, 16, "float32")[name], batch)[0] for name in ("infomask", "plain")}}
for run in runs.values():
    run(2)
print("ready", flush=True)
for name in sys.stdin:
    time.sleep(0.02)
    start = time.perf_counter()
    runs[name.strip()](1)
    print(time.perf_counter() - start, flush=True)
"""


@dataclass(frozen=True)
class Benchmark:
    """What is timed."""

    before: Path
    """Folder of a working tree of the other revision."""
    image_size: int = 64
    """Side of the images, pixels."""
    rounds: int = 100
    """How often the two take turns."""


def start(tree: Path, size: int) -> subprocess.Popen:
    """A process that trains a step of a tree's model for each line that names one, and answers with its seconds."""
    env = os.environ | {"PYTHONPATH": f"{tree}:{tree / 'benchmarks'}"}
    command = [sys.executable, "-c", WORKER.format(size=size)]
    process = subprocess.Popen(command, env=env, cwd=tree, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    if process.stdout.readline().strip() != "ready":
        raise SystemExit(f"error: the benchmark of {tree} did not start")
    return process


def main(settings: Benchmark) -> None:
    trees = {"now": HERE, "before": settings.before.absolute()}
    processes = {name: start(tree, settings.image_size) for name, tree in trees.items()}
    turns = [(name, model) for model in ("infomask", "plain") for name in trees]
    times = {turn: [] for turn in turns}
    for turn in range(settings.rounds):
        for name, model in turns[:: -1 if turn % 2 else 1]:
            print(model, file=processes[name].stdin, flush=True)
            times[name, model].append(float(processes[name].stdout.readline()))
    for process in processes.values():
        process.stdin.close()
    ratios = {m: np.divide(times["now", m], times["before", m]) for m in ("infomask", "plain")}
    over_plain = {n: statistics.median(np.divide(times[n, "infomask"], times[n, "plain"])) for n in trees}
    result = {
        "now_over_before": {model: round(float(np.median(ratio)), 3) for model, ratio in ratios.items()},
        "infomask_over_plain": {name: round(float(value), 3) for name, value in over_plain.items()},
        "ms": {f"{model} {name}": round(1e3 * statistics.median(t), 2) for (name, model), t in times.items()},
        "image_size": settings.image_size,
        "cores": len(os.sched_getaffinity(0)),
        "malloc": {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")},
        "date": datetime.now(UTC).date().isoformat(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
