"""Lowering for devices that are not here, the exported program, and the run that is made again."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from infomask_jax import checkpoint, datasets, parallel, pipeline
from infomask_jax.config import Config, DataConfig, LossConfig, MachineConfig, ModelConfig, OptimizerConfig
from infomask_jax.datasets import Synthetic
from infomask_jax.export import PLATFORMS, export_run, make_predict
from infomask_jax.presets import ONE_VIEW, PLAIN, changed
from infomask_jax.reproduce import first_difference, reproduce
from infomask_jax.train import create_state, make_train_step, train

ROOT = Path(__file__).parent.parent


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
        "train": (
            jax.jit(train_step, in_shardings=(replicated, split), out_shardings=replicated, donate_argnums=0),
            (abstract, batch),
        ),
        "eval": (
            jax.jit(make_predict(config, findings), in_shardings=(replicated, split)),
            (abstract["params"], batch["image"]),
        ),
    }
    return {name: export.export(f, platforms=PLATFORMS)(*arguments) for name, (f, arguments) in programs.items()}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Config, datasets.Prepared]:
    folder = tmp_path_factory.mktemp("export")
    datasets.prepare(Synthetic(data_dir=folder / "data", size=32, train=24, val=8, test=8, workers=1))
    config = Config(
        data_dir=folder / "data",
        workdir=folder / "run",
        map_shifts=2,
        data=DataConfig(image_size=32, batch_size=8),
        model=ModelConfig(width=8, stride=4, latent_channels=4),
        loss=LossConfig(delay=0.2),
        train=OptimizerConfig(steps=9),
        machine=MachineConfig(log_every=4),
    )
    data = datasets.load("synthetic", folder / "data")
    train(config, data)
    return config, data


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model.dtype": "bfloat16", "machine.accumulate": 2},
        {"model.sampler": "straight_through", "model.pooling": "topk", "loss.target_nll": 0.5},
        {"model.kind": "vib", "model.pooling": "noisy_or"},
        PLAIN | ONE_VIEW | {"model.kind": "attention_mil"},
    ],
    ids=str,
)
def test_steps_lower_for_every_platform(tmp_path, changes):
    base = Config(
        data_dir=tmp_path,
        workdir=tmp_path,
        data=DataConfig(image_size=32, batch_size=16),
        model=ModelConfig(width=8),
        train=OptimizerConfig(steps=9),
    )
    programs = lower_steps(changed(base, changes), 2)
    assert set(programs) == {"train", "eval"}
    for program in programs.values():
        assert program.platforms == PLATFORMS == ("cpu", "cuda", "tpu")
        assert program.nr_devices == 8
    found = programs["train"].in_shardings_jax(parallel.shardings(16)[0].mesh)
    divided = sum(sharding is not None and not sharding.is_fully_replicated for sharding in found)
    assert divided == 4, (divided, len(found))  # image, labels, label_mask, valid; nothing reads index


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_exported_run_predicts_what_the_run_does(run, tmp_path, batch):
    config, data = run
    program = export.deserialize(export_run(config.workdir, tmp_path / "made" / "model").read_bytes())
    images = next(iter(pipeline.eval_batches(data.source("test"), 32, 8)))["image"][:batch]
    logits, maps = jax.jit(program.call)(images)
    params = checkpoint.load_params(config.workdir)[0]
    expected_logits, expected_maps = jax.jit(make_predict(config, 1))(params, images)
    np.testing.assert_allclose(logits, expected_logits, atol=1e-5)
    assert set(maps) == {"infomask", "infomask_bits", "infomask_evidence"}
    for method, values in maps.items():
        assert values.shape == (batch, 16, 16, 1)
        np.testing.assert_allclose(values, expected_maps[method], rtol=1e-4, atol=1e-5)
    assert not list((tmp_path / "made").glob("*.tmp"))


def test_run_is_reproduced_and_the_first_difference_is_named(run, capsys):
    config, data = run
    assert reproduce(config.workdir, data)
    assert "every loss and every parameter is the same, bit for bit; 9 steps" in " ".join(
        capsys.readouterr().out.split()
    )
    path = config.workdir / "metrics.jsonl"
    before = path.read_text()
    rows = [json.loads(line) for line in before.splitlines()]
    assert [row["step"] for row in rows] == [4, 8, 9] and [len(row["losses"]) for row in rows] == [4, 4, 1]
    rows[1]["losses"][1] = float(np.nextafter(np.float32(rows[1]["losses"][1]), np.float32(9)))  # step 6, last bit
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert not reproduce(config.workdir, data)
    assert "the first step that differs is 6:" in capsys.readouterr().out
    path.write_text(before)


def test_first_difference():
    assert first_difference({1: 0.5, 2: 0.25}, {1: 0.5, 2: 0.25}) is None
    assert first_difference({1: 0.5, 2: 0.25}, {1: 0.5, 2: 0.5}) == (2, 0.25, 0.5)
    assert first_difference({1: 0.5}, {1: 0.5, 2: 0.5}) == (2, None, 0.5)


def test_reproduce_refuses_other_data_and_says_what_is_not_as_it_was(run, capsys):
    config, data = run
    with pytest.raises(ValueError, match="prepare it as it was"):
        reproduce(config.workdir, dataclasses.replace(data, fingerprint="0"))
    path = config.workdir / "manifest.json"
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | {"cores": 999}))
    assert reproduce(config.workdir, data)
    assert "cores: 999 ->" in capsys.readouterr().out
    path.write_text(before)


def test_commands(run, tmp_path):
    config, _ = run

    def command(*arguments):
        environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8"}
        line = [sys.executable, "-m", "infomask_jax", *map(str, arguments)]
        return subprocess.run(line, capture_output=True, text=True, env=environment, cwd=ROOT)

    done = command("reproduce", config.workdir)
    assert done.returncode == 0 and "bit for bit" in done.stdout, done
    done = command("export", config.workdir, "--out", tmp_path / "model")
    assert done.returncode == 0 and (tmp_path / "model").stat().st_size > 10_000, done
    done = command("export", tmp_path)
    assert done.returncode == 1 and "is not a run" in done.stderr, done
