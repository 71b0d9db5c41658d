"""A trained model as one serialized StableHLO program."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import export

from infomask_jax import checkpoint
from infomask_jax.config import Config
from infomask_jax.explain import heat_maps, shifted_heat_maps
from infomask_jax.model import build
from infomask_jax.system import write_all

PLATFORMS = ("cpu", "cuda", "tpu")


def make_predict(config: Config, findings: int) -> Callable:
    """The pure function predict(params, images [B, H, W, 1]) -> (logits [B, K], {method: maps [B, h, w, 1 or K]}), all
    float32; h and w are the grid's times config.map_shifts."""
    model = build(config.model, findings)

    def predict(params, images):
        def maps_of(images):
            return heat_maps(model.apply({"params": params}, images, train=False)[1], config.model.kind)

        logits = model.apply({"params": params}, images, train=False)[0]
        return logits, shifted_heat_maps(maps_of, images, config.model.stride, config.map_shifts)

    return predict


def export_run(run: Path, out: Path | None = None) -> Path:
    """Write a run as StableHLO (`jax.export`): standardised images [b, H, W, 1] float32, b free -> what `make_predict`
    returns, for every one of PLATFORMS, parameters inside. Returns the file's path.

    ValueError if the run's training is not at its end.
    """
    config, params = checkpoint.finished(run)
    out, size = Path(out or Path(run) / "model.stablehlo"), config.data.image_size
    if out.is_dir():
        raise ValueError(f"--out: expected a file, found the folder {out}")
    predict = make_predict(config, params["head"]["kernel"].shape[-1])
    images = jax.ShapeDtypeStruct((export.symbolic_shape("b")[0], size, size, 1), jnp.float32)
    program = export.export(jax.jit(lambda images: predict(params, images)), platforms=PLATFORMS)(images)
    return write_all({out: program.serialize()})[0]
