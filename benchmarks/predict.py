"""Speed of `predict`: films per second from files to pictures, against the slower of nothing but decoding and nothing
but the forward pass.

    python benchmarks/predict.py runs/rsna --xrays DIR

Decoding is of the same files, in as many threads as `predict` reads with (two); the forward pass is that of the run,
maps and shifts included, of a batch that is on the device already. What a call costs once (start, compilation, reading
the run) is not counted: the rate is of the films by which two calls differ.
"""

import contextlib
import io
import shutil
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import tyro
from common import Benchmark, by_turns, peak_mib, rate, seconds, tell
from step import noise

from infomask_jax import inference, parallel
from infomask_jax.datasets import images
from infomask_jax.films import find
from infomask_jax.predict import predict_files
from infomask_jax.run import Run


@dataclass(frozen=True, kw_only=True)
class Predict(Benchmark):
    """What is timed."""

    run: Annotated[Path, tyro.conf.Positional]  # Work directory of a finished run.
    xrays: Path  # Folder of X-rays; those it has in files are taken in turn until there are enough.
    films: int = 512  # Films by which the long call is longer.
    rounds: int = 3  # How often each is timed; figures are medians over the rounds.


def call(run: Path, paths: list[Path], count: int) -> float:
    """Seconds of predicting `count` films, the paths over and over under other names."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        for i in range(count):
            path = paths[i % len(paths)]
            shutil.copyfile(path, Path(folder) / f"{i:06d}{path.suffix}")  # of links to one file, one is predicted
        return seconds(predict_files, run, sorted(Path(folder).iterdir()), Path(folder) / "out")


def main(settings: Predict) -> None:
    parallel.set_up()
    paths, films = list(find([settings.xrays]).values())[: settings.films], settings.films
    run = Run.open(settings.run)
    config, size = run.config, run.config.data.image_size
    batch = config.data.batch_size

    def predict() -> float:
        short = call(settings.run, paths, 2 * batch)
        return call(settings.run, paths, 2 * batch + films) - short

    call(settings.run, paths, batch)  # compiles; the others find it compiled
    times = by_turns({"predict": predict}, settings.rounds)
    peak = peak_mib()

    stored = [paths[i % len(paths)].read_bytes() for i in range(films)]
    forward = jax.jit(inference.forward(config.model, len(run.findings), config.map_shifts))
    placed = jax.device_put((run.params, noise(batch, size)["image"]))
    jax.block_until_ready(forward(*placed))

    def decode_all() -> None:
        with ThreadPoolExecutor(2) as pool:
            for _ in pool.map(images.decode, stored):
                pass

    def forward_all() -> None:
        jax.block_until_ready([forward(*placed) for _ in range(-(-films // batch))][-1])

    times |= by_turns({"decode": lambda: seconds(decode_all), "forward": lambda: seconds(forward_all)}, settings.rounds)
    decoding, forwards = rate(films, times["decode"]), rate(-(-films // batch) * batch, times["forward"])
    result = {
        "images_per_s": rate(films, times["predict"]),
        "of_limit": round(rate(films, times["predict"]) / min(decoding, forwards), 3),
        "peak_mib": peak,
        "decode_images_per_s": decoding,
        "forward_images_per_s": forwards,
        "film_bytes": round(statistics.mean(map(len, stored))),
        "image_size": size,
        "map_shifts": config.map_shifts,
    }
    tell(settings, result, "jax")


if __name__ == "__main__":
    main(tyro.cli(Predict, description=__doc__))
