"""A trained model as one serialized StableHLO program, and the lowering of the steps for devices that are not here."""

import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import export

from infomask_jax import checkpoint, parallel
from infomask_jax.config import Config
from infomask_jax.explain import heat_maps, shifted_heat_maps
from infomask_jax.model.infomask import InfoMask
from infomask_jax.train import create_state, make_train_step

PLATFORMS = ("cpu", "cuda", "tpu")


def make_predict(config: Config, findings: int) -> Callable:
    """The pure function predict(params, images [B, H, W, 1]) -> (logits [B, K], {method: maps [B, h, w, 1 or K]}), all
    float32; h and w are the grid's times config.map_shifts."""
    model = InfoMask(config.model, findings)

    def predict(params, images):
        def maps_of(images):
            return heat_maps(model.apply({"params": params}, images, train=False)[1], config.model.bottleneck)

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
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(out.name + ".tmp")
    try:
        temporary.write_bytes(program.serialize())
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    return out


def lower_steps(config: Config, findings: int) -> dict[str, export.Exported]:
    """The training and the evaluation step of a config, lowered for PLATFORMS over all devices there are.

    Raises where an operation has no lowering for one of them: no such device is needed to find out.
    """
    state = create_state(config, findings)
    replicated, split = parallel.shardings(config.data.batch_size)
    size, count = config.data.image_size, config.data.batch_size
    shapes = {"image": (count, size, size, 1), "labels": (count, findings), "label_mask": (count, findings)}
    shapes |= {"valid": (count,)}
    batch = {key: jax.ShapeDtypeStruct(shape, jnp.float32) for key, shape in shapes.items()}
    batch["index"] = jax.ShapeDtypeStruct((count,), jnp.int32)
    # As raw data: typed keys and optimizer functions do not pass the border of an exported program.
    arrays = checkpoint.storable(state)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arrays)

    def train_step(arrays, batch):
        new, metrics = make_train_step(config)(checkpoint.from_storable(state, arrays), batch)
        return checkpoint.storable(new), metrics

    programs = {
        "train": (jax.jit(train_step, in_shardings=(replicated, split), donate_argnums=0), (abstract, batch)),
        "eval": (
            jax.jit(make_predict(config, findings), in_shardings=(replicated, split)),
            (abstract["params"], batch["image"]),
        ),
    }
    return {name: export.export(f, platforms=PLATFORMS)(*arguments) for name, (f, arguments) in programs.items()}
