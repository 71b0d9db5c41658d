"""A training step of a classifier on ResNet-50 and DenseNet-121 with frozen BatchNorm, against torchvision's.

    python benchmarks/encoders.py --batch-size 8                                   # needs torch and torchvision
    python benchmarks/encoders.py --batch-size 64 --dtype bfloat16 --steps 20      # on an accelerator

Ours is the plain classifier with one view at stride 32, theirs the same network in evaluation mode (which freezes its
BatchNorm) with its mean pooling and one logit; both with AdamW and clipped gradients. They take turns in one process.
`of_torch` is the median over rounds of their time over ours; `memory_gib` is what XLA plans for our step, parameters
and all. Prints one JSON object a line, the last with all of them.
"""

import importlib.util
import json
import platform
import statistics
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import jax
import numpy as np
import tyro
from step import candidate

from infomask_jax import __version__, parallel
from infomask_jax.config import Config
from infomask_jax.presets import CAM, changed
from infomask_jax.train import CLIP_NORM, WEIGHT_DECAY


@dataclass(frozen=True)
class Benchmark:
    """What is timed."""

    encoders: tuple[str, ...] = ("resnet50", "densenet121")
    """Of resnet18, resnet34, resnet50, densenet121."""
    image_size: int = 224
    """Side of the images, pixels."""
    batch_size: int = 8
    """Images in one step."""
    dtype: str = "float32"
    """Compute type of the encoder, and of PyTorch's autocast."""
    remat: bool = False
    """Compute stages anew for the gradient (ours alone)."""
    steps: int = 1
    """Steps of one candidate in one round."""
    rounds: int = 8
    """How often the candidates take turns."""


def torch_candidate(name: str, batch: dict, dtype: str):
    """run(n) of torchvision's network."""
    import torch
    import torchvision

    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = getattr(torchvision.models, name)(weights=None, num_classes=1).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.requires_grad_(False)
    net = net.to(device, memory_format=torch.channels_last)
    images = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2).repeat(1, 3, 1, 1)
    images = images.to(device).contiguous(memory_format=torch.channels_last)
    labels = torch.from_numpy(batch["labels"]).to(device)
    trained = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=WEIGHT_DECAY, fused=True)
    forward = torch.compile(net) if device == "cuda" else net

    def run(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
                logits = forward(images)
            torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), labels).backward()
            torch.nn.utils.clip_grad_norm_(trained, CLIP_NORM)
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def measure(name: str, settings: Benchmark) -> dict:
    """One row."""
    rng = np.random.default_rng(0)
    ones, side = np.ones((settings.batch_size, 1), np.float32), settings.image_size
    batch = {
        "image": rng.normal(size=(settings.batch_size, side, side, 1)).astype(np.float32),
        "labels": rng.integers(0, 2, ones.shape).astype(np.float32),
        "label_mask": ones,
        "valid": ones[:, 0],
        "index": np.arange(settings.batch_size, dtype=np.int32),
    }
    model = {"encoder": name, "init": "none is read", "stride": 32, "dtype": settings.dtype, "remat": settings.remat}
    changes = CAM | {f"model.{key}": value for key, value in model.items()}
    changes |= {"data.image_size": side, "data.batch_size": settings.batch_size}
    config = changed(Config(data_dir=Path("data"), workdir=Path("run")), changes)
    ours, flops, memory = candidate(config, batch)
    runs = {"ours": ours}
    if importlib.util.find_spec("torch"):
        runs["torch"] = torch_candidate(name, batch, settings.dtype)
    times = {key: [] for key in runs}
    for run in runs.values():
        run(2)
    for turn in range(settings.rounds):
        for key, run in list(runs.items())[:: -1 if turn % 2 else 1]:
            time.sleep(0.02)
            start = time.perf_counter()
            run(settings.steps)
            times[key].append((time.perf_counter() - start) / settings.steps)
    seconds = statistics.median(times["ours"])
    ratios = [a / b for a, b in zip(times.get("torch", []), times["ours"], strict=False)]
    return {
        "encoder": name,
        "images_per_s": round(settings.batch_size / seconds, 2),
        "of_torch": round(statistics.median(ratios), 3) if ratios else None,
        "gflop_per_image": flops and round(flops / settings.batch_size / 1e9, 2),
        "memory_gib": memory and round(memory / 2**30, 2),
    }


def main(settings: Benchmark) -> None:
    parallel.set_up()
    rows = []
    for name in settings.encoders:
        rows.append(measure(name, settings))
        print(json.dumps(rows[-1]), flush=True)
    versions = {"infomask_jax": __version__, "python": platform.python_version(), "jax": jax.__version__}
    if rows[0]["of_torch"]:
        import torch

        versions["torch"] = torch.__version__
    about = {key: getattr(settings, key) for key in ("image_size", "batch_size", "dtype", "remat")}
    about |= {
        "device": jax.devices()[0].device_kind,
        "versions": versions,
        "date": datetime.now(UTC).date().isoformat(),
    }
    print(json.dumps({"encoders": rows} | about))


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
