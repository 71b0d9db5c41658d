"""Speed of one training step: InfoMask against the plain classifier with the same encoder, and against PyTorch.

    python benchmarks/step.py --image-size 128
    python benchmarks/step.py --image-size 224 --dtypes bfloat16 --widths 16 64 --steps 20     # on an accelerator

The candidates take turns in one process: one step at a time on CPU; on an accelerator as many as make its start small.
`infomask_over_plain_ci95` is a bootstrap over rounds. `of_peak` is the share of the device's published peak (bfloat16;
else null), or on CPU of the largest matrix product measured in the same run. `of_torch` is null where torch is not
installed or JAX has several devices; else the same model with the same parameters is first checked to give the same
logits. The last line has the first width and dtype at the top, all of them under `configs`.
"""

import importlib.util
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from common import Sized, by_turns, rate, ratio, seconds, tell

from infomask_jax import parallel
from infomask_jax.config import Config, DataConfig, LossConfig, ModelConfig
from infomask_jax.presets import ONE_VIEW, PLAIN, changed
from infomask_jax.train import create_state, make_train_step

PEAK = {  # FLOP/s of matrix products in bfloat16, dense, as published
    "TPU v4": 275e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


@dataclass(frozen=True, kw_only=True)
class Step(Sized):
    """What is timed."""

    image_size: int = 128  # Side of the images, pixels.
    rounds: int = 60  # How often the candidates take turns; figures are medians over the rounds.
    widths: tuple[int, ...] = (16,)  # Encoder widths.
    dtypes: tuple[str, ...] = ("float32",)  # Compute types of the encoder.
    steps: int = 1  # Steps of one candidate in one round.
    one_view: bool = True  # Also time both classifiers with one view.


def noise(batch_size: int, image_size: int) -> dict[str, np.ndarray]:
    """A batch with one finding: speed does not depend on what is seen."""
    rng, ones = np.random.default_rng(0), np.ones((batch_size, 1), np.float32)
    return {
        "image": rng.normal(size=(batch_size, image_size, image_size, 1)).astype(np.float32),
        "labels": rng.integers(0, 2, ones.shape).astype(np.float32),
        "label_mask": ones,
        "valid": ones[:, 0],
        "index": np.arange(batch_size, dtype=np.int32),
    }


def training(config: Config, batch: dict[str, np.ndarray]) -> tuple[Callable, float | None, int | None]:
    """(run, flops, memory): run(n) trains n steps and waits. Of one step the operations that XLA counts before it
    compiles (afterwards it misses what a library does), None where it has no count, and the bytes that it plans for."""
    replicated, split = parallel.shardings(config.data.batch_size)
    state, batch = parallel.place(create_state(config, 1), replicated), parallel.to_devices(batch, split)
    lowered = parallel.jitted(make_train_step(config), replicated).lower(state, batch)
    program = lowered.compile()
    flops, sizes = (lowered.cost_analysis() or {}).get("flops"), program.memory_analysis()

    def run(count: int) -> None:
        nonlocal state
        for _ in range(count):
            state, metrics = program(state, batch)
        jax.block_until_ready((state.params, metrics))

    return run, flops, sizes and sizes.argument_size_in_bytes + sizes.temp_size_in_bytes


def step_times(runs: dict[str, Callable], steps: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of one step in each round, `steps` of them at once; compilation is not counted."""
    for run in runs.values():
        run(2)
    return by_turns({name: lambda run=run: seconds(run, steps) / steps for name, run in runs.items()}, rounds)


def cpu_peak(size: int = 2048) -> float:
    """FLOP/s of a float32 matrix product of this size, the best of ten."""
    a, product = jnp.ones((size, size)), jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    return 2 * size**3 / min(seconds(lambda: product(a).block_until_ready()) for _ in range(10))


def measure(settings: Step, width: int, dtype: str) -> dict:
    """One row: rates, ratios and shares of one encoder."""
    batch = noise(settings.batch_size, settings.image_size)
    model, loss = ModelConfig(width=width, dtype=dtype), LossConfig(delay=0.0)
    data = DataConfig(image_size=settings.image_size, batch_size=settings.batch_size)
    base = Config(data_dir="data", workdir="run", data=data, model=model, loss=loss)
    configs = {"infomask": base, "plain": changed(base, PLAIN)}
    if settings.one_view:
        configs |= {f"{name}_one_view": changed(config, ONE_VIEW) for name, config in configs.items()}
    made = {name: training(config, batch) for name, config in configs.items()}
    runs = {name: run for name, (run, _, _) in made.items()}
    if importlib.util.find_spec("torch") and jax.device_count() == 1:  # which is all the port uses
        import torch_model

        runs["torch"] = torch_model.infomask_training(base, batch)
    times = step_times(runs, settings.steps, settings.rounds)
    pairs = np.random.default_rng(0).choice(np.divide(times["infomask"], times["plain"]), (2000, settings.rounds))
    row = {
        "width": width,
        "dtype": dtype,
        "images_per_s": rate(settings.batch_size, times["infomask"]),
        "ms": {name: round(1e3 * statistics.median(values), 2) for name, values in times.items()},
        "infomask_over_plain": ratio(times["infomask"], times["plain"]),
        "infomask_over_plain_ci95": np.percentile(np.median(pairs, axis=1), [2.5, 97.5]).round(4).tolist(),
        "of_torch": ratio(times["torch"], times["infomask"]) if "torch" in times else None,
    }
    if settings.one_view:
        row["infomask_over_plain_both_one_view"] = ratio(times["infomask_one_view"], times["plain_one_view"])
        row["infomask_over_plain_one_view"] = ratio(times["infomask"], times["plain_one_view"])
    kind, flops = jax.devices()[0].device_kind, made["infomask"][1]
    peak = cpu_peak() if kind == "cpu" else PEAK.get(kind, 0) * jax.device_count() * (dtype == "bfloat16")
    speed = flops and flops / statistics.median(times["infomask"])
    return row | {"flops_per_s": speed and round(speed), "of_peak": round(speed / peak, 4) if speed and peak else None}


def main(settings: Step) -> None:
    parallel.set_up()
    rows = []
    for dtype in settings.dtypes:
        for width in settings.widths:
            rows.append(measure(settings, width, dtype))
            print(json.dumps(rows[-1]), flush=True)
    result = rows[0] | {"configs": rows, "devices": jax.device_count()}
    tell(settings, result, "jax", *(["torch"] if rows[0]["of_torch"] else []))


if __name__ == "__main__":
    main(tyro.cli(Step, description=__doc__))
