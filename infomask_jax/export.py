"""A trained model as one serialized StableHLO program."""

from pathlib import Path

import jax
import jax.numpy as jnp
from jax import export

from infomask_jax.inference import forward
from infomask_jax.run import Run
from infomask_jax.system import write_all

PLATFORMS = ("cpu", "cuda", "tpu")


def export_run(folder: Path, out: Path | None = None) -> Path:
    """Write a run as StableHLO (`jax.export`): standardised images [b, H, W, 1] float32, b free -> (logits [b, K],
    {method: maps [b, h, w, 1 or K]}), for every one of PLATFORMS, parameters inside. Returns the file's path."""
    run = Run.open(folder)
    params, config = run.params, run.config
    out, size = Path(out or run.folder / "model.stablehlo"), config.data.image_size
    if out.is_dir():
        raise ValueError(f"--out: expected a file, found the folder {out}")
    predict = forward(config.model, len(run.findings), config.map_shifts)
    images = jax.ShapeDtypeStruct((export.symbolic_shape("b")[0], size, size, 1), jnp.float32)
    program = export.export(jax.jit(lambda images: predict(params, images)[:2]), platforms=PLATFORMS)(images)
    return write_all({out: program.serialize()})[0]
