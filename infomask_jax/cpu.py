"""What XLA's CPU backend needs to be told."""

import functools
import os
from collections.abc import Callable

import jax


@functools.cache
def step_options() -> dict[str, str] | None:
    """Compiler options of the training step: on CPU convolutions by Eigen, for those of YNNPACK take several times as
    long over weight gradients (benchmarks/README.md). An option in XLA_FLAGS wins."""
    options = {"xla_cpu_experimental_ynn_fusion_type": ""}  # it is left nothing
    if jax.default_backend() != "cpu" or next(iter(options)) in os.environ.get("XLA_FLAGS", ""):
        return None
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:  # XLA's experiments come and go
        return None
    return options


@functools.cache  # the seeds of a model share the program
def initializer(model) -> Callable:
    """`model.init` of (key, images) in evaluation, unoptimized: it runs once, and XLA:CPU would take ten seconds over
    its random generators, not two."""
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(functools.partial(model.init, train=False), compiler_options=options)
