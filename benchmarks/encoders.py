"""A training step of a classifier on ResNet-50 and DenseNet-121 with frozen BatchNorm, against torchvision's.

    python benchmarks/encoders.py --batch-size 8                                   # needs torch and torchvision
    python benchmarks/encoders.py --batch-size 64 --dtype bfloat16 --steps 20      # on an accelerator

Ours is the plain classifier with one view at stride 32, theirs the same network in evaluation mode (which freezes its
BatchNorm) with its mean pooling and one logit; both with AdamW and clipped gradients. They take turns in one process.
`of_torch` is the median over rounds of their time over ours; `memory_gib` is what XLA plans for our step, parameters
and all. The last line has all encoders.
"""

import importlib.util
import json
from dataclasses import dataclass

import tyro
from common import Sized, rate, ratio, tell
from step import noise, step_times, training

from infomask_jax import parallel
from infomask_jax.config import Config
from infomask_jax.presets import CAM, changed


@dataclass(frozen=True, kw_only=True)
class Encoders(Sized):
    """What is timed."""

    encoders: tuple[str, ...] = ("resnet50", "densenet121")  # Of resnet18, resnet34, resnet50, densenet121.
    image_size: int = 224  # Side of the images, pixels.
    batch_size: int = 8  # Images in one step.
    rounds: int = 8  # How often the candidates take turns; figures are medians over the rounds.
    dtype: str = "float32"  # Compute type of the encoder, and of PyTorch's autocast.
    steps: int = 1  # Steps of one candidate in one round.


def measure(name: str, settings: Encoders) -> dict:
    """One row."""
    batch = noise(settings.batch_size, settings.image_size)
    model = {"encoder": name, "init": "none is read", "stride": 32, "dtype": settings.dtype}
    changes = CAM | {f"model.{key}": value for key, value in model.items()}
    changes |= {"data.image_size": settings.image_size, "data.batch_size": settings.batch_size}
    run, flops, memory = training(changed(Config(data_dir="data", workdir="run"), changes), batch)
    runs = {"ours": run}
    if importlib.util.find_spec("torch"):
        import torch_model

        runs["torch"] = torch_model.classifier_training(name, settings.dtype, batch)
    times = step_times(runs, settings.steps, settings.rounds)
    return {
        "encoder": name,
        "images_per_s": rate(settings.batch_size, times["ours"]),
        "of_torch": ratio(times["torch"], times["ours"]) if "torch" in times else None,
        "gflop_per_image": flops and round(flops / settings.batch_size / 1e9, 2),
        "memory_gib": memory and round(memory / 2**30, 2),
    }


def main(settings: Encoders) -> None:
    parallel.set_up()
    rows = []
    for name in settings.encoders:
        rows.append(measure(name, settings))
        print(json.dumps(rows[-1]), flush=True)
    tell(settings, {"encoders": rows}, "jax", *(["torch"] if rows[0]["of_torch"] else []))


if __name__ == "__main__":
    main(tyro.cli(Encoders, description=__doc__))
