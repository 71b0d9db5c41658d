"""Speed of `predict`: films per second from files to pictures, against the slower of nothing but decoding and nothing
but the forward pass.

    python benchmarks/predict.py runs/rsna --xrays DIR

Decoding is of the same files, in as many threads as `predict` reads with (two); the forward pass is that of the run,
maps and shifts included, of a batch that is on the device already. What a call costs once (start, compilation, reading
the run) is not counted: the rate is of the films by which two calls differ. Prints one JSON object.
"""

import contextlib
import io
import json
import os
import resource
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro

from infomask_jax import __version__, checkpoint, parallel
from infomask_jax.datasets import images
from infomask_jax.export import make_predict
from infomask_jax.films import find
from infomask_jax.predict import predict_files


@dataclass(frozen=True)
class Benchmark:
    """What is timed."""

    run: Annotated[Path, tyro.conf.Positional]
    """Work directory of a finished run."""
    xrays: Path
    """Folder of X-rays; those it has in files are taken in turn until there are enough."""
    films: int = 512
    """Films by which the long call is longer."""
    rounds: int = 3
    """How often each is timed; figures are medians."""


def call(run: Path, paths: list[Path], count: int) -> float:
    """Seconds of predicting `count` films, the paths over and over under other names."""
    with tempfile.TemporaryDirectory() as folder:
        for i in range(count):
            path = paths[i % len(paths)]
            shutil.copyfile(path, Path(folder) / f"{i:06d}{path.suffix}")  # of links to one file, one is predicted
        with contextlib.redirect_stdout(io.StringIO()):
            start = time.perf_counter()
            predict_files(run, sorted(Path(folder).iterdir()), Path(folder) / "out")
            return time.perf_counter() - start


def decode(files: list[bytes]) -> None:
    """Decodes and drops the films."""
    for data in files:
        images.decode(data)


def main(settings: Benchmark) -> None:
    parallel.set_up()
    paths = list(find([settings.xrays]).values())[: settings.films]
    config, params = checkpoint.finished(settings.run)
    batch, base = config.data.batch_size, 2 * config.data.batch_size
    rates = []
    call(settings.run, paths, batch)  # compiles; the others find it compiled
    for _ in range(settings.rounds):
        short, long = (call(settings.run, paths, count) for count in (base, base + settings.films))
        rates.append(settings.films / (long - short))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    stored = [paths[i % len(paths)].read_bytes() for i in range(settings.films)]
    decoded, forwarded = [], []
    forward = jax.jit(make_predict(config, params["head"]["kernel"].shape[-1]))
    shape = (batch, config.data.image_size, config.data.image_size, 1)
    placed = jax.device_put((params, np.random.default_rng(0).normal(size=shape).astype(np.float32)))
    jax.block_until_ready(forward(*placed))
    for _ in range(settings.rounds):
        with ThreadPoolExecutor(2) as pool:
            start = time.perf_counter()
            for _ in pool.map(decode, [stored[i : i + batch] for i in range(0, len(stored), batch)]):
                pass
            decoded.append(len(stored) / (time.perf_counter() - start))
        start = time.perf_counter()
        for _ in range(-(-settings.films // batch)):
            out = forward(*placed)
        jax.block_until_ready(out)
        forwarded.append(-(-settings.films // batch) * batch / (time.perf_counter() - start))
    rate, decoding, model = (float(np.median(x)) for x in (rates, decoded, forwarded))
    result = {
        "images_per_s": round(rate, 1),
        "of_limit": round(rate / min(decoding, model), 3),
        "peak_mib": round(peak),
        "decode_images_per_s": round(decoding, 1),
        "forward_images_per_s": round(model, 1),
        "film_bytes": round(float(np.mean([len(data) for data in stored]))),
        "image_size": config.data.image_size,
        "map_shifts": config.map_shifts,
        "films": settings.films,
        "device": f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores",
        "versions": {"infomask_jax": __version__, "jax": jax.__version__},
        "date": datetime.now(UTC).date().isoformat(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
