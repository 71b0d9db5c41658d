"""Speed of training from stored files: images per second of the loop against the bare step on one batch in memory.

    python benchmarks/loop.py --data-dir data --dataset rsna --image-size 112

The loop is the training loop's in its first epoch: stored PNGs are decoded (nothing is kept in memory for a second
one), batches placed ahead, metrics left on the device. The bare step is fed the same batch again and again. They take
turns; figures are medians over the rounds. Then the state is saved five times: `save_blocks_s` is for how long the loop
waits, the rest is written in the background. Prints one JSON object.
"""

import json
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import jax
import tyro

from infomask_jax import __version__, checkpoint, datasets, parallel, pipeline
from infomask_jax.config import Config, DataConfig, MachineConfig, ModelConfig
from infomask_jax.train import create_state, make_train_step


@dataclass(frozen=True)
class Benchmark:
    """What is timed."""

    data_dir: Path = Path("data")
    """Folder given to `prepare`."""
    dataset: str = "synthetic"
    """Name of the prepared dataset."""
    image_size: int = DataConfig.image_size
    """Side of the images, pixels."""
    stride: int = ModelConfig.stride
    """Pixels per side of a cell."""
    batch_size: int = DataConfig.batch_size
    """Images in one step, over all devices."""
    steps: int = 5
    """Steps of each in one round."""
    rounds: int = 40
    """How often the two take turns."""


def main(settings: Benchmark) -> None:
    parallel.set_up()
    data = datasets.load(settings.dataset, settings.data_dir)
    config = Config(
        data_dir=settings.data_dir,
        workdir=Path("run"),
        map_shifts=1,  # of which any stride is a multiple
        data=DataConfig(image_size=settings.image_size, batch_size=settings.batch_size),
        model=ModelConfig(stride=settings.stride),
        machine=MachineConfig(cache_gib=0.0),
    )
    replicated, split = parallel.shardings(settings.batch_size)
    step = parallel.compiled(partial(make_train_step, config), settings.batch_size, config.machine)
    state = parallel.place(create_state(config, len(data.findings)), replicated)
    to_devices = partial(parallel.to_devices, split=split)
    source = data.source("train", pipeline.FIELDS)
    stream = pipeline.train_batches(source, config.data, 0, config.machine, to_devices)
    one = next(stream)
    state, metrics = step(state, one)
    jax.block_until_ready(metrics)
    count, times = settings.steps * settings.batch_size, {"loop": [], "bare": []}
    waited = []
    for _ in range(settings.rounds):
        start, waiting = time.perf_counter(), 0.0
        for _ in range(settings.steps):
            asked = time.perf_counter()
            batch = next(stream)
            waiting += time.perf_counter() - asked
            state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        times["loop"].append(time.perf_counter() - start)
        waited.append(waiting / times["loop"][-1])
        time.sleep(0.5)  # the stream fills its buffers; else it would do so at the bare step's cost
        start = time.perf_counter()
        for _ in range(settings.steps):
            state, metrics = step(state, one)
        jax.block_until_ready(metrics)
        times["bare"].append(time.perf_counter() - start)
    saved = []
    with tempfile.TemporaryDirectory() as folder, checkpoint.manager(Path(folder)) as checkpoints:
        for number in range(1, 6):
            start = time.perf_counter()
            checkpoint.save(checkpoints, number, state, stream)
            saved.append(time.perf_counter() - start)
            checkpoint.wait(checkpoints)
    result = {
        "images_per_s": round(count / statistics.median(times["loop"]), 1),
        "of_bare_step": round(statistics.median(b / a for a, b in zip(times["loop"], times["bare"], strict=True)), 4),
        "data_wait_share": round(statistics.median(waited), 4),
        "save_blocks_s": {"first": round(saved[0], 3), "later": round(statistics.median(saved[1:]), 3)},
        "devices": jax.device_count(),
        "dataset": data.name,
        "image_size": settings.image_size,
        "batch_size": settings.batch_size,
        "device": jax.devices()[0].device_kind,
        "versions": {"infomask_jax": __version__, "python": platform.python_version(), "jax": jax.__version__},
        "date": datetime.now(UTC).date().isoformat(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
