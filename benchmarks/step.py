"""Speed of one training step: InfoMask against the plain classifier with the same encoder, and against PyTorch.

    python benchmarks/step.py --image-size 128
    python benchmarks/step.py --image-size 224 --dtypes bfloat16 --widths 16 64 --steps 20   (on an accelerator)

The candidates take turns in one process, every other round in reverse, so that what slows the machine for a while slows
all of them: one step at a time on CPU; on an accelerator as many as make its start small. Figures are medians over the
rounds, `infomask_over_plain_ci95` is a bootstrap over rounds. `flops_per_s` is what XLA counts for the step as it is
given to the compiler (of the compiled one it does not count what a library does) over the time; `of_peak` its share of
the device's published peak (bfloat16's; else null), or on CPU of the largest matrix product measured in the same run.
`of_torch` is null where torch is not installed or JAX has several devices; else the same model with the same parameters
is first checked to give the same logits. Prints one JSON object on the last line: the first width and dtype at the top,
all of them under `configs`.
"""

import importlib.util
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
from infomask_jax.config import Config, DataConfig, LossConfig, ModelConfig
from infomask_jax.model import build
from infomask_jax.presets import ONE_VIEW, PLAIN, changed
from infomask_jax.train import CLIP_NORM, WEIGHT_DECAY, create_state, make_train_step

PEAK = {  # FLOP/s of matrix products in bfloat16, dense, as published
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


@dataclass(frozen=True)
class Benchmark:
    """What is timed."""

    image_size: int = 128
    """Side of the images, pixels."""
    batch_size: int = 32
    """Images in one step, over all devices."""
    widths: tuple[int, ...] = (16,)
    """Encoder widths."""
    dtypes: tuple[str, ...] = ("float32",)
    """Compute types of the encoder."""
    steps: int = 1
    """Steps of one candidate in one round."""
    rounds: int = 60
    """How often the candidates take turns."""
    one_view: bool = True
    """Also time both classifiers with one view."""
    torch: bool = True
    """Compare with PyTorch where it is installed."""


def configs(settings: Benchmark, width: int, dtype: str) -> dict[str, Config]:
    """InfoMask and the plain classifier with its encoder and pooling; both with the second view, and both without."""
    model, loss = ModelConfig(width=width, dtype=dtype), LossConfig(delay=0.0)
    data = DataConfig(image_size=settings.image_size, batch_size=settings.batch_size)
    base = Config(data_dir="data", workdir="run", data=data, model=model, loss=loss)
    pair = {"infomask": base, "plain": changed(base, PLAIN)}
    return pair | ({f"{name}_one_view": changed(c, ONE_VIEW) for name, c in pair.items()} if settings.one_view else {})


def candidate(config: Config, batch: dict):
    """(run, flops, memory): run(n) trains n steps and waits; of one step XLA's count of operations, None where it has
    none, and the bytes that it plans for."""
    replicated, split = parallel.shardings(config.data.batch_size)
    step = parallel.jitted(make_train_step(config), replicated)
    box, batch = [parallel.place(create_state(config, 1), replicated)], parallel.to_devices(batch, split)
    lowered = step.lower(box[0], batch)
    program = lowered.compile()
    cost, sizes = lowered.cost_analysis(), program.memory_analysis()
    memory = sizes and sizes.argument_size_in_bytes + sizes.temp_size_in_bytes

    def run(count: int) -> None:
        for _ in range(count):
            box[0], metrics = program(box[0], batch)
        jax.block_until_ready((box[0].params, metrics))

    return run, (cost or {}).get("flops"), memory


def torch_candidate(config: Config, batch: dict):
    """The same in PyTorch: run(n). AssertionError if the port's logits are not ours."""
    import torch
    from torch_model import InfoMask as Port
    from torch_model import load, loss_of

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True  # XLA measures its algorithms, too
    torch.manual_seed(0)
    port = Port(config.model, 1)
    state = create_state(config, 1)
    rng = np.random.default_rng(1)  # not as initialised: a mask kernel of zeros would hide a mistake
    params = jax.tree.map(lambda x: np.asarray(x + 0.05 * rng.normal(size=x.shape).astype(np.float32)), state.params)
    load(port, jax.device_get(params))
    images = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2)
    with torch.no_grad():
        theirs = port.eval()(images)[0].numpy()
    ours = build(config.model, 1).apply({"params": params}, batch["image"], train=False)[0]
    tolerance = 1e-3 if config.model.dtype == "float32" else 0.2
    np.testing.assert_allclose(theirs, ours, atol=tolerance, rtol=tolerance)
    port = port.train().to(device, memory_format=torch.channels_last)
    images = images.to(device).contiguous(memory_format=torch.channels_last)
    labels = torch.from_numpy(batch["labels"]).to(device)
    optimizer = torch.optim.AdamW(port.parameters(), lr=1e-3, weight_decay=WEIGHT_DECAY, fused=True)
    forward = torch.compile(port) if device == "cuda" else port

    def run(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad(set_to_none=True)
            loss_of(config.loss, forward(images)[1], labels).backward()
            torch.nn.utils.clip_grad_norm_(port.parameters(), CLIP_NORM)
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def cpu_peak(size: int = 2048) -> float:
    """FLOP/s of a float32 matrix product of this size, the best of ten."""
    a = jnp.ones((size, size))
    product, times = jax.jit(lambda a: a @ a), []
    for _ in range(11):
        start = time.perf_counter()
        product(a).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def measure(settings: Benchmark, width: int, dtype: str) -> dict:
    """One row: rates, ratios and shares of one encoder."""
    rng = np.random.default_rng(0)
    shape = (settings.batch_size, settings.image_size, settings.image_size, 1)
    ones = np.ones((settings.batch_size, 1), np.float32)
    batch = {
        "image": rng.normal(size=shape).astype(np.float32),
        "labels": rng.integers(0, 2, ones.shape).astype(np.float32),
        "label_mask": ones,
        "valid": ones[:, 0],
        "index": np.arange(settings.batch_size, dtype=np.int32),
    }
    chosen = configs(settings, width, dtype)
    made = {name: candidate(config, batch) for name, config in chosen.items()}
    runs = {name: run for name, (run, _, _) in made.items()}
    if settings.torch and importlib.util.find_spec("torch") and jax.device_count() == 1:  # which is all the port uses
        runs["torch"] = torch_candidate(chosen["infomask"], batch)
    times = {name: [] for name in runs}
    for run in runs.values():
        run(2)
    for turn in range(settings.rounds):
        for name, run in list(runs.items())[:: -1 if turn % 2 else 1]:
            time.sleep(0.02)  # threads of the one before (PyTorch's) wait for work on their cores for a while
            start = time.perf_counter()
            run(settings.steps)
            times[name].append((time.perf_counter() - start) / settings.steps)

    def ratio(a: str, b: str) -> float | None:  # median over rounds: neighbours in time are compared
        if a not in times or b not in times:
            return None
        return round(statistics.median(x / y for x, y in zip(times[a], times[b], strict=True)), 4)

    each = np.divide(times["infomask"], times["plain"])
    medians = np.median(np.random.default_rng(0).choice(each, (2000, len(each))), axis=1)

    seconds = {name: statistics.median(values) for name, values in times.items()}
    kind, flops = jax.devices()[0].device_kind, made["infomask"][1]
    peak = cpu_peak() if kind == "cpu" else PEAK.get(kind, 0) * jax.device_count() * (dtype == "bfloat16")
    return {
        "width": width,
        "dtype": dtype,
        "images_per_s": round(settings.batch_size / seconds["infomask"], 1),
        "ms": {name: round(1e3 * value, 2) for name, value in seconds.items()},
        "infomask_over_plain": ratio("infomask", "plain"),
        "infomask_over_plain_ci95": np.percentile(medians, [2.5, 97.5]).round(4).tolist(),
        "infomask_over_plain_both_one_view": ratio("infomask_one_view", "plain_one_view"),
        "infomask_over_plain_one_view": ratio("infomask", "plain_one_view"),
        "of_torch": ratio("torch", "infomask"),
        "flops_per_s": flops and round(flops / seconds["infomask"]),
        "of_peak": round(flops / seconds["infomask"] / peak, 4) if flops and peak else None,
    }


def main(settings: Benchmark) -> None:
    parallel.set_up()
    rows = []
    for dtype in settings.dtypes:
        for width in settings.widths:
            rows.append(measure(settings, width, dtype))
            print(json.dumps(rows[-1]), flush=True)
    versions = {"infomask_jax": __version__, "python": platform.python_version(), "jax": jax.__version__}
    if rows[0]["of_torch"]:
        import torch

        versions["torch"] = torch.__version__
    about = {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "versions": versions,
        "image_size": settings.image_size,
        "batch_size": settings.batch_size,
        "date": datetime.now(UTC).date().isoformat(),
    }
    print(json.dumps(rows[0] | {"configs": rows} | about))


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
