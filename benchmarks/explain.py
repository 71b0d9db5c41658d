"""Speed of every attribution method on the demo's model: images per second, and time as a multiple of one forward pass.

    python benchmarks/explain.py

Untrained parameters and noise images: speed does not depend on either. The last line is {METHOD: {"images_per_s",
"over_forward"}, ...}, compilation not counted.
"""

from dataclasses import dataclass

import jax
import tyro
from common import Sized, by_turns, rate, ratio, seconds, tell
from step import noise

from infomask_jax import parallel
from infomask_jax.config import ModelConfig
from infomask_jax.explain import METHODS, attribution
from infomask_jax.explain.bottleneck import feature_statistics
from infomask_jax.model import build


@dataclass(frozen=True, kw_only=True)
class Explain(Sized):
    """What is timed."""

    methods: tuple[str, ...] = tuple(METHODS)
    """Which methods, each with its default options."""


def main(settings: Explain) -> None:
    parallel.set_up()
    config = ModelConfig()
    model, images = build(config, 1), jax.device_put(noise(settings.batch_size, settings.image_size)["image"])
    variables = jax.jit(lambda key: model.init(key, images, train=False))(jax.random.key(0))
    variables = {**variables, "feature_statistics": feature_statistics(config, 1, variables, [images])}
    forward = jax.jit(lambda variables, images, k: model.apply(variables, images, train=False)[0])
    functions = {"forward": forward} | {method: attribution(method, config, 1) for method in settings.methods}
    runs = {
        name: lambda function=function: jax.block_until_ready(function(variables, images, 0))
        for name, function in functions.items()
    }
    for run in runs.values():
        run()
    times = by_turns({name: lambda run=run: seconds(run) for name, run in runs.items()}, settings.rounds)
    result = {
        name: {"images_per_s": rate(settings.batch_size, each), "over_forward": round(ratio(each, times["forward"]), 2)}
        for name, each in times.items()
    }
    tell(settings, result, "jax")


if __name__ == "__main__":
    main(tyro.cli(Explain, description=__doc__))
