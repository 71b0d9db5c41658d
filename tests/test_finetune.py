"""Training from trained weights: where they come from, which of them move, and what a run keeps of it."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Examples
from safetensors.numpy import save_file
from test_encoders import state_dict
from test_train import prepared, taught, tiny

from infomask_jax import datasets, experiment, pipeline, predict, weights
from infomask_jax.config import Config, DataConfig, ModelConfig, OptimizerConfig
from infomask_jax.datasets import Synthetic
from infomask_jax.presets import ONE_VIEW, changed
from infomask_jax.train import create_state, make_train_step, train

SIDE = 64


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_file(state_dict("resnet18"), path)
    return path


def config(workdir: Path, file: Path, **changes) -> Config:
    base = tiny(
        workdir,
        data=DataConfig(image_size=SIDE, batch_size=8),
        model=ModelConfig(encoder="resnet18", init=str(file), stride=8, top_down=True, latent_channels=4),
        train=OptimizerConfig(steps=4, learning_rate=1e-3),
    )
    return changed(base, ONE_VIEW | changes)


@pytest.mark.parametrize(
    ("changes", "still"),
    [
        ({"model.frozen_stages": 2}, {"stages_0", "stages_1"}),
        ({"model.frozen_stages": 2, "train.head_first": 1.0}, {f"stages_{n}" for n in range(4)}),
    ],
)
def test_only_what_may_move_does(tmp_path, file, changes, still):
    own = config(tmp_path, file, **changes)
    state = create_state(own, 1)
    first, _ = weights.load(own.model, state.params)
    state, _ = taught(own, 2, Examples(size=SIDE), state.replace(params=first))
    differs = jax.tree.map(lambda a, b: bool(np.any(a != b)), first, state.params)
    parts = differs["encoder"] | {"head": differs["head"]}
    assert {name for name, part in parts.items() if not any(jax.tree.leaves(part))} == still
    norms = {f"{key}": moved for key, moved in jax.tree.leaves_with_path(differs["encoder"]) if "bn" in f"{key}"}
    assert norms and not any(norms.values())


def test_encoder_rate_multiplies_the_encoders_updates_alone(tmp_path, file):
    updates = []
    for rate in (1.0, 0.25):
        state = create_state(config(tmp_path, file, **{"train.encoder_rate": rate}), 1)
        gradients, update = jax.tree.map(jnp.ones_like, state.params), jax.jit(state.tx.update)
        _, opt_state = update(gradients, state.opt_state, state.params)  # of the warm-up's rate, 0
        updates.append(update(gradients, opt_state, state.params)[0])
    own = [{"head": update["head"]} | {n: update["encoder"].pop(n) for n in ("deep", "lateral")} for update in updates]
    jax.tree.map(np.testing.assert_array_equal, *own)
    fast, slow = (update["encoder"] for update in updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 4 * b, atol=1e-9), fast, slow)
    assert any(np.any(x) for x in jax.tree.leaves(fast))


def test_frozen_stages_are_computed_without_gradient_and_remat_changes_none(tmp_path, file):
    flops, gradients, images = [], [], np.random.default_rng(0).normal(size=(2, SIDE, SIDE, 1)).astype(np.float32)
    for frozen, remat in ((0, False), (5, True)):
        own = config(tmp_path, file, **{"model.frozen_stages": frozen, "model.remat": remat})
        batch, state = next(pipeline.train_batches(Examples(size=SIDE), own.data, 0)), create_state(own, 1)
        flops.append(jax.jit(make_train_step(own)).lower(state, batch).cost_analysis()["flops"])
        apply = jax.grad(
            lambda params, forward=state.apply_fn: forward({"params": params}, images, train=False)[0].sum()
        )
        gradients.append(jax.jit(apply)(state.params))
        assert ("remat" in str(jax.make_jaxpr(apply)(state.params))) == remat
    assert flops[1] < 0.5 * flops[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *gradients)


def test_a_run_remembers_its_weights_and_goes_on_without_their_file(tmp_path, file):
    data, copy = prepared(Examples(size=SIDE)), shutil.copy(file, tmp_path / "w.safetensors")
    own = config(tmp_path / "run", copy, **{"machine.checkpoint_every": 2})
    whole = train(own, data)
    shutil.rmtree(own.workdir / "checkpoints" / "4")
    copy.unlink()
    again = train(own, data)
    jax.tree.map(np.testing.assert_array_equal, whole.params, again.params)
    told = json.loads((own.workdir / "manifest.json").read_text())["weights"]
    assert (told["file"], told["left_out"]) == ("w.safetensors", ["fc.bias", "fc.weight"]) and len(told["sha256"]) == 64
    with pytest.raises(FileNotFoundError, match="found no file"):  # before it claims the folder
        train(config(tmp_path / "other", copy), data)
    assert not (tmp_path / "other").exists()


def test_a_run_with_trained_weights_is_scored_and_asked(tmp_path, file):
    data = datasets.prepare(Synthetic(data_dir=tmp_path / "data", size=SIDE, train=16, val=8, test=8, workers=1))
    changes = {"data_dir": tmp_path / "data", "train.steps": 2, "map_shifts": 1, "baseline": False}
    own = changed(config(tmp_path / "run", file), changes)
    experiment.run(own)
    (tmp_path / "film.png").write_bytes(data.source("test")[0]["image"])
    predict.predict_files(own.workdir, [tmp_path / "film.png"], tmp_path / "found")
    scored, found = np.load(own.workdir / "maps/test.npz"), np.load(tmp_path / "found/maps.npz")
    np.testing.assert_allclose(found["infomask"][0], scored["infomask"][0], atol=2e-3)
