"""Speed of training several seeds side by side in one program, as a multiple of training them one after the other.

    python benchmarks/seeds.py

The demo's model on noise images: speed does not depend on the data. One program takes the stacked states and batches of
all seeds: `vmap` batches the step (convolutions become grouped ones), `map` loops over it, `unroll` writes it out once
for each seed. Prints one JSON object on the last line: {SEEDS: {WAY: {"images_per_s", over all seeds,
"over_sequential", "compile_s", "temporary_mib", of one program beyond its arguments, "max_difference", of any parameter
from single training after a few steps}}}, times as medians over the steps, compilation not counted. The ways take turns
at each step, so that all meet the same load.
"""

import json
import platform
import statistics
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from infomask_jax import __version__, parallel
from infomask_jax.config import Config, DataConfig
from infomask_jax.train import create_state, make_train_step

CHECKED = 5  # steps after which parameters are compared


@dataclass(frozen=True)
class Benchmark:
    """What is timed."""

    seeds: tuple[int, ...] = (1, 2, 4)
    """How many runs side by side."""
    steps: int = 10
    """Timed steps of each way, after those that are compared."""
    image_size: int = DataConfig.image_size
    """Side of the images, pixels."""
    batch_size: int = DataConfig.batch_size
    """Images in one step of one run."""
    ways: tuple[str, ...] = ("vmap", "map", "unroll")
    """Which programs."""


def noise(settings: Benchmark, seed: int) -> dict[str, jax.Array]:
    """A batch as in pipeline.py, of noise."""
    rng, count = np.random.default_rng(seed), settings.batch_size
    ones = jnp.ones((count, 1), jnp.float32)
    image = rng.normal(size=(count, settings.image_size, settings.image_size, 1))
    labels = jnp.asarray(rng.integers(0, 2, (count, 1)), jnp.float32)
    return {"image": jnp.asarray(image, jnp.float32), "labels": labels, "label_mask": ones, "valid": ones[:, 0]}


def compiled(step, states, batches) -> tuple:
    """The compiled program and its figures."""
    start = time.perf_counter()
    program = jax.jit(step).lower(states, batches).compile()
    figures = {"compile_s": round(time.perf_counter() - start, 1)}
    if memory := program.memory_analysis():
        figures["temporary_mib"] = round(memory.temp_size_in_bytes / 2**20, 1)
    return program, figures


def measure(config: Config, settings: Benchmark, count: int) -> dict[str, dict[str, float]]:
    """Figures of every way for `count` seeds."""
    states = [create_state(replace(config, seed=seed), 1) for seed in range(count)]
    states = [state.replace(apply_fn=states[0].apply_fn, tx=states[0].tx) for state in states]  # compared by identity
    batches = [noise(settings, seed) for seed in range(count)]
    stacked = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees) for trees in (states, batches)]
    step = make_train_step(config)

    def unroll(states, batches):
        each = [step(*jax.tree.map(lambda leaf: leaf[i], (states, batches))) for i in range(count)]  # noqa: B023
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)

    ways = {
        "vmap": jax.vmap(step),
        "map": lambda *trees: jax.lax.map(lambda pair: step(*pair), trees),
        "unroll": unroll,
    }
    single, figures = compiled(step, states[0], batches[0])
    programs, result = {}, {"sequential": figures}
    for way in settings.ways:
        programs[way], result[way] = compiled(ways[way], *stacked)
    times, together = {way: [] for way in result}, dict.fromkeys(programs, stacked[0])
    for number in range(CHECKED + settings.steps):
        start = time.perf_counter()
        states = jax.block_until_ready([single(*pair)[0] for pair in zip(states, batches, strict=True)])
        times["sequential"].append(time.perf_counter() - start)
        for way, program in programs.items():
            start = time.perf_counter()
            together[way] = jax.block_until_ready(program(together[way], stacked[1])[0])
            times[way].append(time.perf_counter() - start)
        if number + 1 == CHECKED:
            expected = jax.tree.map(lambda *leaves: np.stack(leaves), *[state.params for state in states])
            for way, state in together.items():
                apart = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), state.params, expected)
                result[way]["max_difference"] = max(jax.tree.leaves(apart))
    medians = {way: statistics.median(values[CHECKED:]) for way, values in times.items()}
    for way, spent in medians.items():
        result[way]["images_per_s"] = round(count * settings.batch_size / spent, 1)
        result[way]["over_sequential"] = round(medians["sequential"] / spent, 2)
        print(f"{count} seeds {way:12}", *(f"{key} {value:.4g}" for key, value in result[way].items()), flush=True)
    return result


def main(settings: Benchmark) -> None:
    parallel.set_up()
    data = DataConfig(image_size=settings.image_size, batch_size=settings.batch_size)
    config = Config(data_dir=Path(), workdir=Path(), data=data)
    result = {str(count): measure(config, settings, count) for count in settings.seeds}
    versions = {"infomask_jax": __version__, "python": platform.python_version(), "jax": jax.__version__}
    result |= {
        "device": jax.devices()[0].device_kind,
        "versions": versions,
        "image_size": settings.image_size,
        "batch_size": settings.batch_size,
        "steps": settings.steps,
        "date": datetime.now(UTC).date().isoformat(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
