"""Speed of the training step over virtual CPU devices and over processes, as a multiple of one device.

    python benchmarks/scaling.py

Every count runs in processes of its own, with the same global batch. On one machine all of them share the same cores:
this shows what dividing costs, not what more hardware gains. The last line is {"devices": {"1": r, ...}, "processes":
{"1": r, "2": r}, ...}; the processes share the most devices.
"""

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import jax
import tyro
from common import Sized, rate, seconds, tell
from step import noise, training

from infomask_jax import parallel
from infomask_jax.config import Config, DataConfig


@dataclass(frozen=True, kw_only=True)
class Scaling(Sized):
    """What is timed."""

    steps: int = 10  # Steps in one round.
    devices: tuple[int, ...] = (1, 2, 4, 8)  # Counts of devices, the smallest first.
    hosts: str | None = None  # Set by the script itself: how a process that it starts finds the others.


def measure(settings: Scaling) -> float:
    """Images per second of the step on the devices that this process and its fellows have."""
    parallel.start(settings.hosts)
    data = DataConfig(image_size=settings.image_size, batch_size=settings.batch_size)
    batch = noise(settings.batch_size // jax.process_count(), settings.image_size)
    run, _, _ = training(Config(data_dir="data", workdir="run", data=data), batch)
    parallel.wait_for_all("compiled")
    run(1)
    return rate(settings.steps * settings.batch_size, [seconds(run, settings.steps) for _ in range(settings.rounds)])


def spawn(settings: Scaling, devices: int, processes: int) -> float:
    """`measure` in `processes` new processes that have `devices` devices together."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    sizes = [f"--{name}={getattr(settings, name)}" for name in ("image_size", "batch_size", "steps", "rounds")]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices // processes)}

    def one(i: int) -> subprocess.CompletedProcess:
        hosts = f"--hosts={address},{processes},{i}" if processes > 1 else "--hosts="
        line = [sys.executable, __file__, *sizes, hosts]
        return subprocess.run(line, env=environment, capture_output=True, text=True)

    with ThreadPoolExecutor(processes) as pool:
        for process in (found := list(pool.map(one, range(processes)))):
            if process.returncode:
                raise SystemExit(f"error: one of {processes} processes failed:\n{process.stderr[-2000:]}")
    return float(found[0].stdout.splitlines()[-1])


def main(settings: Scaling) -> None:
    if settings.hosts is not None:
        print(measure(settings))
        return
    devices = {str(count): spawn(settings, count, 1) for count in settings.devices}
    processes = {"1": devices[str(settings.devices[-1])], "2": spawn(settings, settings.devices[-1], 2)}
    base = devices[str(settings.devices[0])]
    result = {
        "devices": {count: round(value / base, 4) for count, value in devices.items()},
        "processes": {count: round(value / base, 4) for count, value in processes.items()},
        "images_per_s": base,
    }
    tell(settings, result, "jax")


if __name__ == "__main__":
    main(tyro.cli(Scaling, description=__doc__))
