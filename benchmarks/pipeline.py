"""Speed of the input pipeline: images per second against nothing but decoding the same stored bytes.

    python benchmarks/pipeline.py --data-dir data --dataset rsna --image-size 112

The decode limit is cv2.imdecode of the stored PNG bytes, already in memory, a batch at a time in as many threads as
the pipeline reads with (two). The pipeline reads, decodes, cuts out, rescales, standardises and batches, as in a first
epoch; `later_epochs` is that of images that are in memory (`machine.cache_gib`), where it only does what comes after
decoding. None works in another's turn, nor counts batches made before its own.
"""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tyro
from common import Sized, by_turns, rate, ratio, seconds, tell

from infomask_jax import datasets, pipeline
from infomask_jax.config import DataConfig
from infomask_jax.pixels import decode_gray


@dataclass(frozen=True, kw_only=True)
class Pipeline(Sized):
    """What is timed."""

    data_dir: Path = Path("data")  # Folder given to `prepare`.
    dataset: str = "synthetic"  # Name of the prepared dataset.
    batches: int = 100  # Batches in one round.


AHEAD = 4  # batches that the stream makes before it is asked


def main(settings: Pipeline) -> None:
    data = datasets.load(settings.dataset, settings.data_dir)
    source = data.source("train", pipeline.FIELDS)
    config = DataConfig(image_size=settings.image_size, batch_size=settings.batch_size)
    size, count = settings.batch_size, settings.batches * settings.batch_size
    images = [source[i % len(source)]["image"] for i in range(count)]
    kept = pipeline.Decoded(source, gib=float("inf"))
    for i in range(len(source)):
        kept[i]

    def turns(examples):
        stream = iter(pipeline.train_batches(examples, config, 0))

        def turn() -> float:
            for _ in range(AHEAD):
                next(stream)
            spent = seconds(lambda: [next(stream) for _ in range(settings.batches)])
            time.sleep(1.0 + 2 * AHEAD * spent / settings.batches)  # what is made ahead gets made
            return spent

        return turn

    def decode() -> None:
        stored = [images[i : i + size] for i in range(0, count, size)]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda batch: [None for image in batch if decode_gray(image) is None], stored))

    runs = {"first": turns(pipeline.Decoded(source)), "later": turns(kept), "decode": lambda: seconds(decode)}
    times = by_turns(runs, settings.rounds)

    def measured(name: str) -> dict:
        return {"images_per_s": rate(count, times[name]), "of_decode_limit": ratio(times["decode"], times[name])}

    result = {
        **measured("first"),
        "later_epochs": measured("later"),
        "decode_images_per_s": rate(count, times["decode"]),
        "stored_size": data.size,
        "stored_bytes": round(statistics.mean(map(len, images))),
    }
    tell(settings, result, "grain")


if __name__ == "__main__":
    main(tyro.cli(Pipeline, description=__doc__))
