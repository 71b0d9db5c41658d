"""Lowering for devices that are not here, and the exported program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from infomask_jax import checkpoint, datasets, parallel, pipeline
from infomask_jax.config import Config, DataConfig, ModelConfig, OptimizerConfig
from infomask_jax.export import PLATFORMS, export_run
from infomask_jax.inference import forward
from infomask_jax.presets import ONE_VIEW, PLAIN, changed
from infomask_jax.run import Run
from infomask_jax.train import create_state, make_train_step


@pytest.mark.parametrize(
    "changes",
    [
        {"model.dtype": "bfloat16", "machine.accumulate": 2},
        {"model.sampler": "straight_through", "model.pooling": "topk", "loss.target_nll": 0.5},
        PLAIN | ONE_VIEW | {"model.kind": "attention_mil"},
    ],
    ids=str,
)
def test_steps_lower_for_every_platform(tmp_path, changes):
    """The training and the prediction step over eight devices: no such device is needed to find out."""
    size = {"data": DataConfig(image_size=32, batch_size=16), "model": ModelConfig(width=8)}
    config = changed(Config(tmp_path, tmp_path, train=OptimizerConfig(steps=9), map_shifts=2, **size), changes)
    state, (replicated, split) = create_state(config, 2), parallel.shardings(16)
    shapes = {"image": (16, 32, 32, 1), "labels": (16, 2), "label_mask": (16, 2), "valid": (16,), "index": (16,)}
    batch = {key: jax.ShapeDtypeStruct(shape, jnp.float32) for key, shape in shapes.items()}
    # As raw data: typed keys and optimizer functions do not pass the border of an exported program.
    arrays = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), checkpoint.storable(state))

    def train_step(arrays, batch):
        new, metrics = make_train_step(config)(checkpoint.from_storable(state, arrays), batch)
        return checkpoint.storable(new), metrics

    step = jax.jit(train_step, in_shardings=(replicated, split), out_shardings=replicated, donate_argnums=0)
    ask = jax.jit(forward(config.model, 2, config.map_shifts), in_shardings=(replicated, split))
    programs = [export.export(step, platforms=PLATFORMS)(arrays, batch)]
    programs.append(export.export(ask, platforms=PLATFORMS)(arrays["params"], batch["image"]))
    for program in programs:
        assert program.platforms == PLATFORMS == ("cpu", "cuda", "tpu") and program.nr_devices == 8
    found = programs[0].in_shardings_jax(replicated.mesh)
    divided = sum(sharding is not None and not sharding.is_fully_replicated for sharding in found)
    assert divided == 4, (divided, len(found))  # image, labels, label_mask, valid; nothing reads index


def test_exported_run_predicts_what_the_run_does(trained, tmp_path):
    run, data = Run.open(trained), datasets.load("synthetic", trained.parent / "data")
    program = export.deserialize(export_run(trained, tmp_path / "made" / "model").read_bytes())
    for batch in (1, 3):
        images = next(iter(pipeline.eval_batches(data.source("test"), 32, 8)))["image"][:batch]
        logits, maps = jax.jit(program.call)(images)
        expected_logits, expected, _ = jax.jit(forward(run.config.model, 1, run.config.map_shifts))(run.params, images)
        np.testing.assert_allclose(logits, expected_logits, atol=1e-5)
        assert set(maps) == {"infomask", "infomask_bits", "infomask_evidence"}
        for method, values in maps.items():
            assert values.shape == (batch, 16, 16, 1)
            np.testing.assert_allclose(values, expected[method], rtol=1e-4, atol=1e-5)
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["model"]
    with pytest.raises(FileNotFoundError, match="is not a run"):
        export_run(tmp_path)
