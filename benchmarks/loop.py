"""Speed of training from stored files: images per second of the loop against the bare step on one batch in memory.

    python benchmarks/loop.py --data-dir data --dataset rsna --image-size 112

The loop is the training loop's in its first epoch: stored PNGs are decoded (nothing is kept in memory for a second
one), batches placed ahead, metrics left on the device. The bare step is fed the same batch again and again.
"""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import tyro
from common import Sized, by_turns, rate, ratio, seconds, tell

from infomask_jax import datasets, parallel, pipeline
from infomask_jax.config import Config, DataConfig, MachineConfig
from infomask_jax.train import create_state, make_train_step


@dataclass(frozen=True, kw_only=True)
class Loop(Sized):
    """What is timed."""

    data_dir: Path = Path("data")  # Folder given to `prepare`.
    dataset: str = "synthetic"  # Name of the prepared dataset.
    steps: int = 5  # Steps of each in one round.
    rounds: int = 40  # How often the two take turns; figures are medians over the rounds.


def main(settings: Loop) -> None:
    parallel.set_up()
    data = datasets.load(settings.dataset, settings.data_dir)
    config = Config(
        data_dir=settings.data_dir,
        workdir=Path("run"),
        data=DataConfig(image_size=settings.image_size, batch_size=settings.batch_size),
        machine=MachineConfig(cache_gib=0.0),
    )
    replicated, split = parallel.shardings(settings.batch_size)
    step = parallel.compiled(partial(make_train_step, config), settings.batch_size, config.machine)
    state = parallel.place(create_state(config, len(data.findings)), replicated)
    to_devices = partial(parallel.to_devices, split=split)
    source = data.source("train", pipeline.FIELDS)
    stream = pipeline.train_batches(source, config.data, 0, config.machine, to_devices)
    one, waits = next(stream), []

    def train(next_batch) -> None:
        nonlocal state
        for _ in range(settings.steps):
            state, metrics = step(state, next_batch())
        jax.block_until_ready(metrics)

    def from_stream():
        start = time.perf_counter()
        batch = next(stream)
        waits.append(time.perf_counter() - start)
        return batch

    train(lambda: one)
    runs = {"loop": lambda: seconds(train, from_stream), "bare": lambda: seconds(train, lambda: one)}
    # The stream fills its buffers in the pause; else it would do so at the bare step's cost.
    times = by_turns(runs, settings.rounds, pause=0.5)
    waited = [sum(waits[i : i + settings.steps]) for i in range(0, len(waits), settings.steps)]
    result = {
        "images_per_s": rate(settings.steps * settings.batch_size, times["loop"]),
        "of_bare_step": ratio(times["bare"], times["loop"]),
        "data_wait_share": ratio(waited, times["loop"]),
        "devices": jax.device_count(),
    }
    tell(settings, result, "jax")


if __name__ == "__main__":
    main(tyro.cli(Loop, description=__doc__))
