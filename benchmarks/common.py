"""What the benchmarks share: options, taking turns, and the JSON object of the last line. JAX only where asked."""

import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from infomask_jax import __version__
from infomask_jax.config import DataConfig


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What is timed."""

    rounds: int = 5  # How often the candidates take turns; figures are medians over the rounds.
    out: Path | None = None
    """File for the last line, such as benchmarks/results/step.json; to a .jsonl file it is added."""


@dataclass(frozen=True, kw_only=True)
class Sized(Benchmark):
    """What is timed."""

    image_size: int = DataConfig.image_size  # Side of the images, pixels.
    batch_size: int = DataConfig.batch_size  # Images in one step, over all devices.


def seconds(function: Callable, *arguments) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def by_turns(candidates: dict[str, Callable[[], float]], rounds: int, pause: float = 0.02) -> dict[str, list[float]]:
    """Seconds that each candidate has measured in each round. Every other round goes in reverse: what slows the machine
    for a while slows all of them. In the pause threads of the one before (PyTorch's) give up waiting for work."""
    times = {name: [] for name in candidates}
    for turn in range(rounds):
        for name, candidate in list(candidates.items())[:: -1 if turn % 2 else 1]:
            time.sleep(pause)
            times[name].append(candidate())
    return times


def rate(count: int, times: list[float]) -> float:
    """Images a second in the median round of `count` images."""
    return round(count / statistics.median(times), 1)


def ratio(over: list[float], under: list[float]) -> float:
    """Median over the rounds: neighbours in time are compared."""
    return round(statistics.median(a / b for a, b in zip(over, under, strict=True)), 4)


def peak_mib() -> int:
    """The most memory that this process has had."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def tell(settings: Benchmark, result: dict, *packages: str) -> None:
    """Print one JSON object: the result; the settings that are plain; device, versions (`packages` too) and date."""
    device = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    if "jax" in packages:
        import jax

        device = f"{jax.devices()[0].device_kind}, {device}"
    about = {
        **{name: value for name, value in vars(settings).items() if isinstance(value, int | str)},
        "device": device,
        "versions": {"infomask_jax": __version__, "python": platform.python_version()}
        | {name: version(name) for name in packages},
        "date": datetime.now(UTC).date().isoformat(),
    }
    line = json.dumps(result | about)
    print(line, flush=True)
    if settings.out:
        with settings.out.open("a" if settings.out.suffix == ".jsonl" else "w") as file:
            print(line, file=file)
