"""Speed of every attribution method on the demo's model: images per second, and time as a multiple of one forward pass.

    python benchmarks/explain.py

Untrained parameters and noise images: speed does not depend on either. Prints one JSON object on the last line:
{METHOD: {"images_per_s", "over_forward"}, ...}, medians over the repeats, compilation not counted.
"""

import json
import platform
import statistics
import time
from dataclasses import dataclass
from datetime import UTC, datetime

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from infomask_jax import __version__, parallel
from infomask_jax.config import DataConfig, ModelConfig
from infomask_jax.explain import METHODS, attribution
from infomask_jax.explain.bottleneck import feature_statistics
from infomask_jax.model import build


@dataclass(frozen=True)
class Benchmark:
    """What is timed."""

    image_size: int = DataConfig.image_size
    """Side of the images, pixels."""
    batch_size: int = DataConfig.batch_size
    """Images in one call."""
    repeats: int = 5
    """Timed calls of each method, after one that compiles."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Which methods, each with its default options."""


def seconds(function, *arguments, repeats: int) -> float:
    """Median wall time of one call, compiled and warm."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main(settings: Benchmark) -> None:
    parallel.set_up()
    config = ModelConfig()
    model = build(config, 1)
    shape = (settings.batch_size, settings.image_size, settings.image_size, 1)
    images = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    variables = jax.jit(lambda key: model.init(key, images, train=False))(jax.random.key(0))
    variables = {**variables, "feature_statistics": feature_statistics(config, 1, variables, [images])}
    forward = jax.jit(lambda variables, images: model.apply(variables, images, train=False)[0])
    base = seconds(forward, variables, images, repeats=4 * settings.repeats)
    result = {"forward": {"images_per_s": round(settings.batch_size / base, 2), "over_forward": 1.0}}
    for method in settings.methods:
        spent = seconds(attribution(method, config, 1), variables, images, 0, repeats=settings.repeats)
        rate, multiple = settings.batch_size / spent, spent / base
        result[method] = {"images_per_s": round(rate, 2), "over_forward": round(multiple, 2)}
        print(f"{method:24}{rate:12.1f} images/s{multiple:10.1f} x forward", flush=True)
    versions = {"infomask_jax": __version__, "python": platform.python_version(), "jax": jax.__version__}
    result |= {
        "device": jax.devices()[0].device_kind,
        "versions": versions,
        "image_size": settings.image_size,
        "batch_size": settings.batch_size,
        "repeats": settings.repeats,
        "date": datetime.now(UTC).date().isoformat(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
