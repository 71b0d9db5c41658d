"""Speed of the input pipeline: images per second against nothing but decoding the same stored bytes.

    python benchmarks/pipeline.py --data-dir data --dataset rsna --image-size 112

The decode limit is cv2.imdecode of the stored PNG bytes, already in memory, a batch at a time in as many threads as
the pipeline reads with (two). The pipeline reads, decodes, cuts out, rescales, standardises and batches, as in a first
epoch; `later_epochs` is that of images that are in memory (`machine.cache_gib`), where it only does what comes after
decoding. They take turns, none works in another's, nor counts batches made before its own; figures are medians over the
rounds. Prints one JSON object.
"""

import json
import os
import platform
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import grain
import tyro

from infomask_jax import __version__, datasets, parallel, pipeline
from infomask_jax.config import DataConfig


@dataclass(frozen=True)
class Benchmark:
    """What is timed."""

    data_dir: Path = Path("data")
    """Folder given to `prepare`."""
    dataset: str = "synthetic"
    """Name of the prepared dataset."""
    image_size: int = DataConfig.image_size
    """Side of the images in a batch, pixels."""
    batch_size: int = DataConfig.batch_size
    """Images in a batch."""
    batches: int = 100
    """Batches in one round."""
    rounds: int = 5
    """How often the two take turns."""


AHEAD = 4  # batches that the stream makes before it is asked


def decode(batch: list[bytes]) -> None:
    """Decodes and drops the images."""
    for image in batch:
        pipeline.decode_gray(image)


def main(settings: Benchmark) -> None:
    parallel.set_up()
    data = datasets.load(settings.dataset, settings.data_dir)
    source = data.source("train", pipeline.FIELDS)
    config = DataConfig(image_size=settings.image_size, batch_size=settings.batch_size)
    count = settings.batches * settings.batch_size
    images = [source[i % len(source)]["image"] for i in range(count)]
    stored = [images[i : i + settings.batch_size] for i in range(0, count, settings.batch_size)]
    kept = pipeline.Decoded(source, gib=float("inf"))
    for i in range(len(source)):
        kept[i]
    examples = {"pipeline": pipeline.Decoded(source), "later_epochs": kept}
    streams = {name: iter(pipeline.train_batches(examples[name], config, 0)) for name in examples}
    rates = {"pipeline": [], "later_epochs": [], "decode": []}
    with ThreadPoolExecutor(2) as pool:
        for _ in range(settings.rounds):
            for name, stream in streams.items():
                for _ in range(AHEAD):
                    next(stream)
                start = time.perf_counter()
                for _ in range(settings.batches):
                    next(stream)
                rates[name].append(count / (time.perf_counter() - start))
                time.sleep(1.0 + 2 * AHEAD * settings.batch_size / rates[name][-1])  # what is made ahead gets made
            start = time.perf_counter()
            for _ in pool.map(decode, stored):
                pass
            rates["decode"].append(count / (time.perf_counter() - start))

    def measured(name: str) -> dict:
        ratios = [a / b for a, b in zip(rates[name], rates["decode"], strict=True)]
        return {
            "images_per_s": round(statistics.median(rates[name]), 1),
            "of_decode_limit": round(statistics.median(ratios), 4),
        }

    result = {
        **measured("pipeline"),
        "later_epochs": measured("later_epochs"),
        "decode_images_per_s": round(statistics.median(rates["decode"]), 1),
        "dataset": data.name,
        "stored_size": data.size,
        "stored_bytes": round(statistics.mean(map(len, images))),
        "image_size": settings.image_size,
        "batch_size": settings.batch_size,
        "batches": settings.batches,
        "rounds": settings.rounds,
        "device": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {"infomask_jax": __version__, "python": platform.python_version(), "grain": grain.__version__},
        "date": datetime.now(UTC).date().isoformat(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
