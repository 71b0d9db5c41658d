"""Training from trained weights: where they come from, which of them move, and what a run keeps of it."""

import dataclasses
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Examples
from safetensors.numpy import save_file
from test_encoders import state_dict
from test_train import tiny

from infomask_jax import audit, checkpoint, datasets, experiment, export, pipeline, predict, weights
from infomask_jax.config import Config, DataConfig, ModelConfig, OptimizerConfig
from infomask_jax.datasets import Synthetic
from infomask_jax.explain import attribution
from infomask_jax.model import build
from infomask_jax.pixels import decode_gray, fit, standardise
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


def moved(config: Config, steps: int) -> dict[str, bool]:
    """After some steps, whether each part of the encoder, and the head, is another than at first."""
    state = create_state(config, 1)
    params, _ = weights.load(config.model, state.params)
    state = state.replace(params=params)
    first = jax.tree.map(np.asarray, params)
    step = jax.jit(make_train_step(config))
    for batch, _ in zip(pipeline.train_batches(Examples(size=SIDE), config.data, 0), range(steps), strict=False):
        state, _ = step(state, batch)
    differs = jax.tree.map(lambda a, b: bool(np.any(a != b)), first, jax.tree.map(np.asarray, state.params))
    parts = differs["encoder"] | {"head": differs["head"]}
    assert not any(
        leaf for part in parts.values() for name, layer in part.items() if "bn" in name for leaf in layer.values()
    )
    return {name: any(jax.tree.leaves(part)) for name, part in parts.items()}


@pytest.mark.parametrize(
    ("changes", "still"),
    [
        ({}, ()),
        ({"model.frozen_stages": 2}, ("stages_0", "stages_1")),
        ({"model.frozen_stages": 5}, tuple(f"stages_{n}" for n in range(4))),
        ({"train.head_first": 1.0}, tuple(f"stages_{n}" for n in range(4))),
        ({"train.encoder_rate": 0.0}, tuple(f"stages_{n}" for n in range(4))),
    ],
)
def test_only_what_may_move_does(tmp_path, file, changes, still):
    parts = moved(config(tmp_path, file, **changes), 3)
    assert {name for name, differs in parts.items() if not differs} == set(still)


def test_encoder_rate_multiplies_the_encoders_updates_alone(tmp_path, file):
    updates = []
    for rate in (1.0, 0.25):
        own = config(tmp_path, file, **{"train.encoder_rate": rate})
        state = create_state(own, 1)
        gradients = jax.tree.map(jnp.ones_like, state.params)
        for _ in range(2):  # the first is of the warm-up's rate, 0
            found, opt_state = state.tx.update(gradients, state.opt_state, state.params)
            state = state.replace(opt_state=opt_state)
        updates.append(found)
    slower = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - 4 * b))) < 1e-9, *updates)["encoder"]["stages_3"]
    assert all(jax.tree.leaves(slower)) and any(np.any(x) for x in jax.tree.leaves(updates[0]["encoder"]["stages_3"]))
    for name in ("deep", "lateral"):
        jax.tree.map(np.testing.assert_array_equal, *(update["encoder"][name] for update in updates))
    jax.tree.map(np.testing.assert_array_equal, *(update["head"] for update in updates))


def test_frozen_stages_are_still_explained(tmp_path, file):
    own = config(tmp_path, file, **{"model.frozen_stages": 3})
    images = np.random.default_rng(0).normal(size=(1, SIDE, SIDE, 1)).astype(np.float32)
    params = create_state(own, 1).params
    assert np.any(attribution("gradient", own.model, 1)({"params": params}, images, 0))


def test_frozen_stages_are_computed_without_gradient(tmp_path, file):
    def flops(frozen):
        own = config(tmp_path, file, **{"model.frozen_stages": frozen})
        batch = next(iter(pipeline.train_batches(Examples(size=SIDE), own.data, 0)))
        return jax.jit(make_train_step(own)).lower(create_state(own, 1), batch).compile().cost_analysis()["flops"]

    none, some, every = (flops(frozen) for frozen in (0, 2, 5))
    assert every < 0.5 * none and every < some < none


def test_remat_computes_anew_and_changes_no_gradient(tmp_path, file):
    gradients = []
    for remat in (False, True):
        own = config(tmp_path, file, **{"model.remat": remat})
        model, params = build(own.model, 1), create_state(own, 1).params
        images = np.random.default_rng(0).normal(size=(2, SIDE, SIDE, 1)).astype(np.float32)

        def loss(params, model=model, images=images):
            return model.apply({"params": params}, images, train=False)[0].sum()

        gradients.append(jax.jit(jax.grad(loss))(params))
        program = str(jax.make_jaxpr(jax.grad(loss))(params))
        assert ("remat" in program or "checkpoint" in program) == remat
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *gradients)


def test_a_run_remembers_its_weights_and_goes_on_without_their_file(tmp_path, file):
    data = SimpleNamespace(
        name="squares", fingerprint="f0", findings=("bright",), size=SIDE, source=lambda *_: Examples(size=SIDE)
    )
    copy = tmp_path / "w.safetensors"
    copy.write_bytes(file.read_bytes())
    own = config(tmp_path / "run", copy)
    whole = train(dataclasses.replace(own, workdir=tmp_path / "whole"), data)
    own = changed(own, {"machine.checkpoint_every": 2})
    stopped = checkpoint.save

    def save_and_stop(checkpoints, step, *rest):
        stopped(checkpoints, step, *rest)
        if step == 2:
            checkpoint.wait(checkpoints)
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "save", save_and_stop)
        train(own, data)
    copy.unlink()
    again = train(own, data)
    jax.tree.map(np.testing.assert_array_equal, whole.params, again.params)
    told = json.loads((tmp_path / "run" / "manifest.json").read_text())["weights"]
    assert (
        told["file"] == "w.safetensors" and len(told["sha256"]) == 64 and told["left_out"] == ["fc.bias", "fc.weight"]
    )
    with pytest.raises(FileNotFoundError, match="found no file"):  # before it claims the folder
        train(config(tmp_path / "other", copy), data)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18", "resnet34", "resnet50", "densenet121"])
def test_every_encoder_predicts_and_is_explained(name):
    """Traced alone; what runs is tested with one of them, below."""
    c = ModelConfig(encoder=name, init="x", stride=16, top_down=True, latent_channels=4, two_views=False)
    whole = tiny(Path("w"), map_shifts=1, data=DataConfig(image_size=SIDE, batch_size=8))
    whole = changed(whole, ONE_VIEW | {f"model.{key}": value for key, value in vars(c).items()})
    images = jax.ShapeDtypeStruct((2, SIDE, SIDE, 1), jnp.float32)
    params = jax.eval_shape(partial(build(c, 2).init, train=False), jax.random.key(0), images)
    predicted = jax.eval_shape(export.make_predict(whole, 2), params["params"], images)
    assert {m.shape for m in predicted[1].values()} == {(2, 4, 4, 1), (2, 4, 4, 2)}
    heat = jax.eval_shape(partial(attribution("layercam", c, 2), finding=jnp.int32(1)), params, images)
    assert heat.shape == (2, 4, 4)


def test_a_run_with_trained_weights_is_whole(tmp_path, file):
    data = datasets.prepare(Synthetic(data_dir=tmp_path / "data", size=SIDE, train=16, val=8, test=8, workers=1))
    own = changed(config(tmp_path / "run", file), {"data_dir": tmp_path / "data", "train.steps": 2, "map_shifts": 1})
    experiment.run(own)
    assert json.loads((own.workdir / "plain" / "manifest.json").read_text())["weights"]["input"].startswith("ImageNet")
    film = tmp_path / "film.png"
    film.write_bytes(data.source("test")[0]["image"])
    predict.predict_files(own.workdir, [film], tmp_path / "found")
    scored, found = np.load(own.workdir / "maps/test.npz"), np.load(tmp_path / "found/maps.npz")
    np.testing.assert_allclose(found["infomask"][0], scored["infomask"][0], atol=2e-3)
    audit.audit_run(own.workdir, data, "test")
    program = jax.export.deserialize(export.export_run(own.workdir).read_bytes())
    image = standardise(fit(decode_gray(data.source("test")[0]["image"]), SIDE))
    np.testing.assert_allclose(
        program.call(image[None, ..., None])[1]["infomask"][0, ..., 0], scored["infomask"][0], atol=2e-3
    )
