"""Speed of the training step over virtual CPU devices and over processes, as a multiple of one device.

    python benchmarks/scaling.py

Every count runs in processes of its own, with the same global batch. On one machine all of them share the same cores:
this shows what dividing costs, not what more hardware gains. Prints one JSON object:
{"devices": {"1": r, ...}, "processes": {"1": r, "2": r}, ...}; the processes share the most devices.
"""

import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import jax
import numpy as np
import tyro

from infomask_jax import __version__, parallel
from infomask_jax.config import Config, DataConfig
from infomask_jax.train import create_state, make_train_step


@dataclass(frozen=True)
class Benchmark:
    """What is timed."""

    image_size: int = DataConfig.image_size
    """Side of the images, pixels."""
    batch_size: int = DataConfig.batch_size
    """Images in one step, over all devices."""
    steps: int = 10
    """Steps in one round."""
    rounds: int = 5
    """Rounds; the median counts."""
    devices: tuple[int, ...] = (1, 2, 4, 8)
    """Counts of devices, the smallest first."""
    hosts: str = ""
    """Set by the script itself."""
    child: bool = False
    """Set by the script itself."""


def rate(settings: Benchmark) -> float:
    """Images per second of the step on the devices that this process and its fellows have."""
    parallel.start(settings.hosts)
    data = DataConfig(image_size=settings.image_size, batch_size=settings.batch_size)
    config = Config(data_dir="data", workdir="run", data=data)
    replicated, split = parallel.shardings(settings.batch_size)
    step = parallel.compiled(partial(make_train_step, config), settings.batch_size, config.machine)
    state, own = parallel.place(create_state(config, 1), replicated), settings.batch_size // jax.process_count()
    rng = np.random.default_rng(jax.process_index())
    ones = np.ones((own, 1), np.float32)
    image = rng.normal(size=(own, settings.image_size, settings.image_size, 1)).astype(np.float32)
    batch = {"image": image, "labels": ones, "label_mask": ones, "valid": ones[:, 0]}
    batch = parallel.to_devices(batch | {"index": np.arange(own, dtype=np.int32)}, split)
    rates = []
    for turn in range(settings.rounds + 1):
        start = time.perf_counter()
        for _ in range(1 if turn == 0 else settings.steps):
            state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        rates.append(settings.steps * settings.batch_size / (time.perf_counter() - start))
    return statistics.median(rates[1:])


def spawn(settings: Benchmark, devices: int, processes: int) -> float:
    """`rate` in `processes` new processes that have `devices` devices together."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    sizes = {"--image-size": settings.image_size, "--batch-size": settings.batch_size}
    sizes |= {"--steps": settings.steps, "--rounds": settings.rounds}
    command = [sys.executable, __file__, "--child", *(str(x) for pair in sizes.items() for x in pair)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices // processes)}
    started = []
    for i in range(processes):
        line = [*command, *(["--hosts", f"{address},{processes},{i}"] if processes > 1 else [])]
        started.append(
            subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    with ThreadPoolExecutor() as pool:  # at once: one whose pipe is full would keep the others waiting
        outputs = list(pool.map(subprocess.Popen.communicate, started))
    for process, (_, error) in zip(started, outputs, strict=True):
        if process.returncode:
            raise SystemExit(f"error: a process with {devices // processes} devices failed:\n{error[-2000:]}")
    return float(outputs[0][0].splitlines()[-1])


def main(settings: Benchmark) -> None:
    if settings.child:
        print(rate(settings))
        return
    most, base = settings.devices[-1], settings.devices[0]
    devices = {count: spawn(settings, count, 1) for count in settings.devices}
    processes = {1: devices[most], 2: spawn(settings, most, 2)}
    result = {
        "devices": {str(count): round(value / devices[base], 4) for count, value in devices.items()},
        "processes": {str(count): round(value / devices[base], 4) for count, value in processes.items()},
        "images_per_s": round(devices[base], 1),
        "image_size": settings.image_size,
        "batch_size": settings.batch_size,
        "device": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {"infomask_jax": __version__, "python": platform.python_version(), "jax": jax.__version__},
        "date": datetime.now(UTC).date().isoformat(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
