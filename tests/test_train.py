"""The loop: one trace, sharded = single device, resumption bit for bit after SIGKILL, refusals, clean stops."""

import dataclasses
import errno
import http.server
import json
import logging
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from conftest import Examples, change

from infomask_jax import checkpoint, command, manifest, monitor, parallel, pipeline, presets, system
from infomask_jax.config import Config, DataConfig, LossConfig, MachineConfig, ModelConfig, OptimizerConfig
from infomask_jax.explain import heat_maps
from infomask_jax.losses import nll
from infomask_jax.model import build
from infomask_jax.parallel import shardings
from infomask_jax.train import create_state, make_train_step, train

ROOT = Path(__file__).parent.parent
INFOMASK = ("infomask", "infomask_bits", "infomask_evidence")


def tiny(workdir: Path, **changes) -> Config:
    config = Config(
        data_dir=Path("data"),
        workdir=workdir,
        data=DataConfig(image_size=16, batch_size=8),
        model=ModelConfig(width=8, stride=4, latent_channels=4),
        train=OptimizerConfig(steps=12),
        machine=MachineConfig(log_every=4, checkpoint_every=5),
    )
    return dataclasses.replace(config, **changes)


def often(workdir: Path, steps: int) -> Config:
    """A line of the log at every step, a checkpoint at every seventh."""
    return tiny(workdir, train=OptimizerConfig(steps=steps), machine=MachineConfig(log_every=1, checkpoint_every=7))


@pytest.fixture
def data(examples):
    return SimpleNamespace(
        name="squares", fingerprint="f0", findings=("bright",), size=16, source=lambda split, fields=None: examples
    )


def rows(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_step_traces_once_and_trains(tmp_path, examples):
    config = tiny(tmp_path, train=OptimizerConfig(steps=60, learning_rate=5e-3))
    step = jax.jit(chex.assert_max_traces(make_train_step(config), n=1))
    state = create_state(config, 1)
    losses = []
    for batch in (b for b, _ in zip(pipeline.train_batches(examples, config.data, 0), range(60), strict=False)):
        state, metrics = step(state, batch)
        losses.append(float(metrics["nll"]))
    assert int(state.step) == 60
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])


@pytest.mark.parametrize(
    ("changes", "maps"),
    [
        (presets.PLAIN | {"model.pooling": "noisy_or"}, ("cam",)),
        (presets.CAM, ("cam",)),
        (presets.PLAIN | presets.ONE_VIEW | {"model.kind": "attention_mil"}, ("cam", "attention")),
        ({"model.kind": "vib"}, ("vib_bits", "vib_evidence")),
        ({"model.sampler": "sigmoid", "loss.beta_z": 0.0, "loss.beta_m": 0.0}, INFOMASK),  # deterministic attention
        (presets.PAPER, INFOMASK),
    ],
    ids=str,
)
def test_rivals_train_and_name_their_maps(tmp_path, examples, changes, maps):
    config = presets.changed(tiny(tmp_path, train=OptimizerConfig(steps=2)), changes)
    start = state = create_state(config, 1)
    step = jax.jit(make_train_step(config))
    for batch in (b for b, _ in zip(pipeline.train_batches(examples, config.data, 0), range(2), strict=False)):
        state, metrics = step(state, batch)
        assert np.isfinite(metrics["loss"]) and metrics["grad_norm"] > 0
    # The mask waits for its price; without one nothing acts on sigma's kernel at once, and nothing ever on the prior.
    frozen = {"mask", "log_sigma", "prior_logit", "prior_coupling"}
    if config.model.teach_through_mask:
        frozen = {"log_sigma"}
    for name in set(start.params) - frozen:
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), start.params[name], state.params[name])
        assert all(jax.tree.leaves(moved)), name
    out = jax.eval_shape(lambda p: state.apply_fn({"params": p}, batch["image"], train=False)[1], state.params)
    assert set(jax.eval_shape(lambda out: heat_maps(out, config.model.kind), out)) == set(maps)


@pytest.mark.parametrize("model_seed", [0, 1])
def test_preset_paper_descends_one_sum(tmp_path, examples, model_seed):
    """Every parameter follows the gradient of NLL + beta_z KL_z + beta_m KL_m and of nothing else."""
    config = presets.changed(tiny(tmp_path, seed=model_seed), presets.PAPER | {"loss.delay": 0.0})
    state, batch = create_state(config, 2), next(pipeline.train_batches(Examples(findings=2), config.data, 0))
    model, key, step = build(config.model, 2), jax.random.fold_in(state.key, 6), jnp.int32(6)

    def objective(params):
        rngs = {"sample": key}
        logits, out = model.apply({"params": params}, batch["image"], train=True, rngs=rngs)
        likelihood = nll(logits, batch["labels"], batch["label_mask"], 1.0)
        rates = config.loss.beta_z * out["kl_z"].sum((1, 2)) + config.loss.beta_m * out["kl_m"].sum((1, 2, 3))
        return (likelihood + rates).mean()  # at step 6 of 12 all of the KLs is charged

    gradients = jax.jit(jax.grad(objective))(state.params)
    _, metrics = jax.jit(make_train_step(config))(state.replace(step=step), batch)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(gradients), rtol=1e-4)
    np.testing.assert_allclose(metrics["loss"], objective(state.params), rtol=1e-5)
    assert metrics["kl_charge"] == 1.0 and min(map(jnp.linalg.norm, jax.tree.leaves(gradients["mask"]))) > 0


def test_mask_and_prior_wait_until_their_rate_is_charged(tmp_path, examples):
    config = tiny(tmp_path, train=OptimizerConfig(steps=8), loss=LossConfig(delay=0.5))
    state, step = create_state(config, 1), jax.jit(make_train_step(config))
    start, names, moved = state.params, ("mask", "prior_logit", "prior_coupling"), []
    for batch in (b for b, _ in zip(pipeline.train_batches(examples, config.data, 0), range(8), strict=False)):
        state, _ = step(state, batch)
        moved.append([float(optax.tree.norm(optax.tree.sub(state.params[name], start[name]))) for name in names])
    assert np.max(moved[:5]) == 0.0 and np.min(moved[5]) > 0.0
    fixed = presets.changed(config, {"model.mask_coupling": 0.0})
    assert set(create_state(fixed, 1).params) == set(start) - {"prior_logit", "prior_coupling"}


def test_dearer_information_buys_fewer_bits_and_no_lower_loss(tmp_path, examples):
    """Two points of the rate-distortion curve, the means of the last ten steps."""
    reached = {}
    for beta in (1e-4, 3e-1):
        loss = LossConfig(beta_z=beta, beta_m=beta, delay=0.1)
        config = tiny(tmp_path, loss=loss, train=OptimizerConfig(steps=80, learning_rate=5e-3))
        state, step = create_state(config, 1), jax.jit(make_train_step(config))
        rows = []
        for batch in (b for b, _ in zip(pipeline.train_batches(examples, config.data, 0), range(80), strict=False)):
            state, metrics = step(state, batch)
            rows.append((float(metrics["rate_z"] + metrics["rate_m"]), float(metrics["nll"])))
        reached[beta] = np.mean(rows[-10:], axis=0)
    assert reached[3e-1][0] < 0.5 * reached[1e-4][0]
    assert reached[3e-1][1] > reached[1e-4][1] - 0.02


def test_factor_multiplies_both_betas(tmp_path, examples):
    """One step at a factor of three is the step of a run without target whose betas are three times as large."""
    reached, log_beta = [], jnp.log(jnp.float32(3.0))
    for loss in (LossConfig(beta_z=0.01, beta_m=0.1, target_nll=0.1), LossConfig(beta_z=0.03, beta_m=0.3)):
        config = tiny(tmp_path, loss=dataclasses.replace(loss, delay=0.05), train=OptimizerConfig(steps=8))
        state = create_state(config, 1).replace(step=2)
        if loss.target_nll:
            state = state.replace(constraint=state.constraint._replace(log_beta=log_beta))
        reached.append(
            jax.jit(make_train_step(config))(state, next(iter(pipeline.train_batches(examples, config.data, 0))))
        )
    (constrained, metrics), (fixed, expected) = reached
    np.testing.assert_allclose(metrics.pop("geco_factor"), 3.0, rtol=1e-6)
    chex.assert_trees_all_close(metrics, expected, rtol=1e-5)
    chex.assert_trees_all_close(constrained.params, fixed.params, atol=1e-6)
    assert expected["kl_charge"] == 0.5 and constrained.constraint.log_beta < log_beta  # an NLL far above the target


def test_target_changes_nothing_before_the_rates_are_charged_and_nothing_when_off(tmp_path, examples):
    states = []
    for target in (0.0, 0.1):
        config = tiny(tmp_path, loss=LossConfig(delay=0.5, target_nll=target), train=OptimizerConfig(steps=8))
        state, step = create_state(config, 1), jax.jit(make_train_step(config))
        for batch in (b for b, _ in zip(pipeline.train_batches(examples, config.data, 0), range(5), strict=False)):
            state, metrics = step(state, batch)
            assert ("geco_factor" in metrics) == (target > 0)
        states.append(state)
    off, on = states
    assert off.constraint is None and on.constraint.log_beta == 0.0
    chex.assert_trees_all_close(off.params, on.params, rtol=1e-6, atol=1e-8)  # two programs, which round on their own
    nothing_to_weigh = LossConfig(beta_z=0.0, beta_m=0.0, target_nll=0.1)  # as in an experiment's plain classifier
    assert create_state(tiny(tmp_path, loss=nothing_to_weigh), 1).constraint is None


@pytest.mark.parametrize(("beta", "lowest", "highest"), [(0.01, 0.14, 0.26), (0.1, 0.0, 0.26)])
def test_target_nll_is_paid_whatever_the_betas(tmp_path, examples, beta, lowest, highest):
    """Fixed, these betas end at an NLL of .08 and, with a mask that closes altogether, of 1.5: the target is .2."""
    loss = LossConfig(beta_z=beta, beta_m=beta, delay=0.1, target_nll=0.2)
    config = tiny(tmp_path, loss=loss, train=OptimizerConfig(steps=250, learning_rate=5e-3))
    state, step, paid = create_state(config, 1), jax.jit(make_train_step(config)), []
    for batch in (b for b, _ in zip(pipeline.train_batches(examples, config.data, 0), range(250), strict=False)):
        state, metrics = step(state, batch)
        paid.append(float(metrics["nll"]))
    assert lowest < np.mean(paid[-50:]) < highest


def test_sharded_step_equals_single_device(tmp_path, examples):
    """Eight devices draw the same noise and reach the same parameters as one, to float32 rounding."""
    config = tiny(tmp_path)
    batches = [b for b, _ in zip(pipeline.train_batches(examples, config.data, 0), range(10), strict=False)]
    replicated, split = shardings(config.data.batch_size)
    assert len(split.device_set) == 8
    single, sharded = create_state(config, 1), jax.device_put(create_state(config, 1), replicated)
    step = make_train_step(config)
    step_single, step_sharded = jax.jit(step), jax.jit(step, out_shardings=(replicated, replicated))
    for batch in batches:
        single, a = step_single(single, batch)
        sharded, b = step_sharded(sharded, jax.device_put(batch, split))
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=2e-5)
        np.testing.assert_allclose(a["mask_mean"], b["mask_mean"], rtol=1e-5)  # the mask is sampled: same draws
    chex.assert_trees_all_close(jax.device_get(single.params), jax.device_get(sharded.params), atol=2e-4)


def test_indivisible_batch_is_refused():
    with pytest.raises(ValueError, match="batch_size 12 does not divide over 8 devices"):
        shardings(12)


def test_run_writes_its_files_and_finishes(tmp_path, data):
    state = train(tiny(tmp_path / "run"), data)
    run = tmp_path / "run"
    assert Config.load(run) == dataclasses.replace(tiny(run), data_dir=Path("data").absolute())
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["dataset"] == {"name": "squares", "fingerprint": "f0", "findings": ["bright"]}
    assert [row["step"] for row in rows(run)] == [4, 5, 8, 10, 12]
    assert {"loss", "nll", "rate_z", "rate_m", "mask_mean", "grad_norm", "images_per_s"} <= set(rows(run)[-1])
    params, step = checkpoint.load_params(run)
    assert step == 12
    chex.assert_trees_all_equal(params, jax.device_get(state.params))
    before = (run / "metrics.jsonl").read_text()
    again = train(tiny(run), data)  # finished: nothing to do
    chex.assert_trees_all_equal(params, jax.device_get(again.params))
    assert (run / "metrics.jsonl").read_text() == before


def test_rates_count_from_the_first_step_which_compiles(tmp_path, monkeypatch):
    now = iter([0.0, 100.0, 104.0, 104.0, 110.0, 110.0])  # made, first step, flushed; then one look before, one after
    monkeypatch.setattr(monitor.time, "perf_counter", lambda: next(now))
    log = monitor.MetricsLog(tmp_path / "metrics.jsonl", 0, batch_size=8)
    for step in (1, 2, 3):
        log.add(step, {"loss": 1.0, "grad_norm": 1.0})
    assert log.flush()["images_per_s"] == pytest.approx(2 * 8 / 4)
    for step in (4, 5, 6):
        log.add(step, {"loss": 1.0, "grad_norm": 1.0})
    assert log.flush()["images_per_s"] == pytest.approx(3 * 8 / 6)


def test_changed_config_or_data_is_refused_with_the_difference(tmp_path, data):
    config = tiny(tmp_path, train=OptimizerConfig(steps=2))
    train(config, data)
    with pytest.raises(ValueError, match=r"config\.loss\.beta_z: 3e-05 -> 0\.5"):
        train(dataclasses.replace(config, loss=dataclasses.replace(config.loss, beta_z=0.5)), data)
    data.fingerprint = "f1"
    with pytest.raises(ValueError, match=r"dataset\.fingerprint: 'f0' -> 'f1'"):
        train(config, data)


def test_non_finite_loss_stops_with_step_and_last_metrics(tmp_path, data):
    config = tiny(
        tmp_path,
        train=OptimizerConfig(steps=40, learning_rate=1e30),
        machine=MachineConfig(log_every=5, checkpoint_every=100),
    )
    with pytest.raises(FloatingPointError, match=r"step \d+: loss .* Last finite metrics"):
        train(config, data)
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))  # no broken state was saved


SCRIPT = """
import sys, pathlib
sys.path.insert(0, {root!r}); sys.path.insert(0, {tests!r})
import conftest, test_train
from types import SimpleNamespace
source = lambda split, fields=None: conftest.Examples()
data = SimpleNamespace(name="squares", fingerprint="f0", findings=("bright",), size=16, source=source)
config = test_train.often(pathlib.Path({workdir!r}), {steps})
try:
    test_train.train(config, data)
except KeyboardInterrupt as stop:
    print(stop)
    raise SystemExit(3)
except OSError as error:
    print(error)
    raise SystemExit(4)
"""


def start(workdir: Path, steps: int) -> subprocess.Popen:
    script = SCRIPT.format(root=str(ROOT), tests=str(ROOT / "tests"), workdir=str(workdir), steps=steps)
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)


def wait_for_step(process: subprocess.Popen, workdir: Path, step: int) -> None:
    path, deadline = workdir / "metrics.jsonl", time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if path.exists() and len(path.read_text().splitlines()) >= step:
            return
        time.sleep(0.005)
    pytest.fail(f"step {step} was not reached: {process.communicate()}")


def test_resume_after_twenty_sigkills_is_bitwise(tmp_path, data):
    """Killed twenty times, at a random step or in the middle of writing a checkpoint, and started again each time:
    parameters, optimizer, key and data order as uninterrupted."""
    steps, seed = 400, time.time_ns()
    rng, reference = random.Random(seed), train(often(tmp_path / "whole", steps), data)
    killed, writing = tmp_path / "killed", 0
    for kill in range(20):
        process, low = start(killed, steps), rows(killed)[-1]["step"] if (killed / "metrics.jsonl").exists() else 0
        wait_for_step(process, killed, low + rng.randrange(1, 9))
        if kill % 2:  # wait for the next checkpoint to be begun
            deadline = time.monotonic() + 60
            while not list((killed / "checkpoints").glob("*tmp*")) and time.monotonic() < deadline:
                assert process.poll() is None, seed
            writing += 1
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert rows(killed)[-1]["step"] < steps and writing == 10, seed
    assert start(killed, steps).wait() == 0
    params, step = checkpoint.load_params(killed)
    assert step == steps
    chex.assert_trees_all_equal(params, jax.device_get(reference.params), custom_message=f"seed {seed}")
    with checkpoint.manager(killed) as checkpoints:
        target = parallel.place(create_state(often(killed, steps), 1), shardings(8)[0])
        batches = pipeline.train_batches(data.source("train"), tiny(killed).data, 0)
        state = checkpoint.restore(checkpoints, steps, target, batches)
    chex.assert_trees_all_equal(jax.device_get(state.opt_state), jax.device_get(reference.opt_state))
    np.testing.assert_array_equal(jax.random.key_data(state.key), jax.random.key_data(reference.key))
    whole, resumed = ([(r["step"], r["losses"]) for r in rows(tmp_path / name)] for name in ("whole", "killed"))
    assert whole == resumed  # every step once, same losses


def test_manifest_tells_of_the_process_that_saves_first(tmp_path, data):
    """A run that was stopped before its first checkpoint begins anew: nothing of it is of the process before."""
    config = tiny(tmp_path)
    manifest.claim(config, data).close()
    begun = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**begun, "git_revision": "of_before"}))
    train(config, data)
    assert json.loads((tmp_path / "manifest.json").read_text()) == begun


def damage(path: Path, kind: str) -> None:
    data = bytearray(path.read_bytes())
    if kind == "removed":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 4
        path.write_bytes(data)


@pytest.mark.parametrize("kind", ["removed", "cut", "flipped"])
@pytest.mark.parametrize("what", ["state/d/*", "data/metadata"])
def test_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, data, capsys, what, kind):
    config = tiny(tmp_path)
    whole = train(config, data)
    (path,) = (tmp_path / "checkpoints" / "12").glob(what)
    damage(path, kind)
    if kind == "removed":  # of an earlier sitting, set aside too
        (tmp_path / "broken-12" / "data").mkdir(parents=True)
    begun = json.loads((tmp_path / "manifest.json").read_text())
    if what.startswith("state"):
        with pytest.raises(OSError, match=f"{tmp_path}/checkpoints/12 cannot be read"):
            checkpoint.load_params(tmp_path)
    if kind == "cut":
        (tmp_path / "manifest.json").write_text(json.dumps({**begun, "git_revision": "of_before"}))
    resumed = train(config, data)
    output = "".join(capsys.readouterr().out.split())  # lines wrap anywhere
    aside = "broken-12-again" if kind == "removed" else "broken-12"
    assert "cannotberead" in output and f"movedto{tmp_path}/{aside}" in output
    assert f"resumed{tmp_path}fromstep10of12" in output
    now = json.loads((tmp_path / "manifest.json").read_text())
    if kind == "cut":  # begun by another revision
        assert "itmaynotendasitwouldhave:git_revision:" in output and "of_before" in output and "grain" not in output
        assert now["git_revision"] == "of_before" and now["continued"] == [{"step": 10, **manifest.environment()}]
    else:
        assert "notaswhenitbegan" not in output and now == begun
    assert (tmp_path / aside / "state").is_dir()  # nothing is lost
    chex.assert_trees_all_equal(jax.device_get(whole.params), jax.device_get(resumed.params))


def every_flip_is_refused_or_harmless(workdir: Path, target, batches, flips: int, seed: int = 0) -> int:
    """Flip single bits anywhere in the newest checkpoint, load and restore; returns how many flips were refused."""
    with checkpoint.manager(workdir) as checkpoints:
        step, rng, refused = checkpoints.latest_step(), random.Random(seed), 0
        expected = checkpoint.storable(checkpoint.restore(checkpoints, step, target, batches))
    files = sorted(path for path in (workdir / "checkpoints" / str(step)).rglob("*") if path.is_file())
    sizes = [path.stat().st_size for path in files]
    for _ in range(flips):
        (path,) = rng.choices(files, sizes)
        whole, flipped = path.read_bytes(), bytearray(path.read_bytes())
        flipped[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        try:
            params, _ = checkpoint.load_params(workdir)
        except OSError as error:
            assert "cannot be read" in str(error) and "\n" not in str(error)
            refused += 1
        else:
            chex.assert_trees_all_equal(params, jax.device_get(expected["params"]), custom_message=str(path))
        with checkpoint.manager(workdir) as checkpoints:
            restored, found, messages = checkpoint.restore_newest(checkpoints, target, batches)
        if found == step:
            chex.assert_trees_all_equal(checkpoint.storable(restored), expected, custom_message=str(path))
        else:
            assert len(messages) == 1 and f"checkpoints/{step} cannot be read" in messages[0]
            (workdir / f"broken-{step}").rename(workdir / "checkpoints" / str(step))
        path.write_bytes(whole)
    return refused


def test_a_flipped_bit_is_refused_or_harmless(tmp_path, data):
    config = tiny(tmp_path)
    train(config, data)
    target = parallel.place(create_state(config, 1), shardings(8)[0])
    batches = pipeline.train_batches(data.source("train"), config.data, 0)
    assert every_flip_is_refused_or_harmless(tmp_path, target, batches, flips=20) >= 15


def test_checkpoint_without_sums_is_taken_as_it_is(tmp_path, data):
    """As older revisions wrote it."""
    config = tiny(tmp_path)
    state = train(config, data)
    for path in (tmp_path / "checkpoints").glob(f"*/{checkpoint.SUMS}"):
        path.unlink()
    assert checkpoint.load_params(tmp_path)[1] == 12
    chex.assert_trees_all_equal(jax.device_get(train(config, data).params), jax.device_get(state.params))


@pytest.mark.parametrize("part", ["params", "opt_state"])
def test_state_that_is_not_finite_is_refused_by_name(tmp_path, data, part, capsys):
    config = tiny(tmp_path)
    state = train(config, data)
    spoilt = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(jnp.nan) if x.ndim else x, getattr(state, part))
    batches = pipeline.train_batches(data.source("train"), config.data, 0)
    batches.wind(12)
    shutil.rmtree(tmp_path / "checkpoints" / "12")
    with checkpoint.manager(tmp_path) as checkpoints:
        checkpoint.save(checkpoints, 12, state.replace(**{part: spoilt}), batches)
        checkpoint.wait(checkpoints)
    with pytest.raises(OSError, match=rf"12 cannot be read \(ValueError: {part}/\S+ is not finite\)"):
        checkpoint.load_params(tmp_path)
    train(config, data)
    assert "isnotfinite);movedto" in "".join(capsys.readouterr().out.split())


def test_folder_that_orbax_cannot_write_below_is_refused(tmp_path, data):
    with pytest.raises(ValueError, match=r"w\[0\]: checkpoints cannot be written .* \[ in its name"):
        train(tiny(tmp_path / "w[0]"), data)
    assert not list(tmp_path.iterdir())


def test_arrays_are_stored_whole_and_read_as_orbax_would_store_them(tmp_path, data):
    """Of eight devices: no slice of an array from each. Checkpoints that were sliced, as they once were, go on."""
    config = tiny(tmp_path)
    state = parallel.place(create_state(config, 1), shardings(8)[0])
    batches = pipeline.train_batches(data.source("train"), config.data, 0)
    batches.wind(1)
    with checkpoint.manager(tmp_path / "own") as checkpoints:
        checkpoint.save(checkpoints, 1, state, batches)
        checkpoint.wait(checkpoints)
        stored = jax.tree.leaves(checkpoints.item_metadata(1)["state"].tree)
        assert all(array.storage.chunk_shape == array.shape for array in stored) and len(stored) > 20
    items = {"state": ocp.args.StandardSave(checkpoint.storable(state))}
    items |= {"data": ocp.args.JsonSave({"batches": 1})}
    (tmp_path / "orbax").mkdir()
    with ocp.CheckpointManager(tmp_path / "orbax" / "checkpoints") as checkpoints:
        checkpoints.save(1, args=ocp.args.Composite(**items))
        checkpoints.wait_until_finished()
        stored = jax.tree.leaves(checkpoints.item_metadata(1)["state"].tree)
        assert any(array.storage.chunk_shape != array.shape for array in stored)
    for name in ("own", "orbax"):
        with checkpoint.manager(tmp_path / name) as checkpoints:
            restored = checkpoint.restore(checkpoints, 1, state, batches)
        chex.assert_trees_all_equal(checkpoint.storable(restored), checkpoint.storable(state))


def test_no_readable_checkpoint_is_an_error_not_a_fresh_start(tmp_path, data):
    config = tiny(tmp_path)
    train(config, data)
    for path in (tmp_path / "checkpoints").glob("*/state/d/*"):
        damage(path, "cut")
    with pytest.raises(OSError, match=r"(?s)12 cannot be read.*10 cannot be read.*No checkpoint of .* is left"):
        train(config, data)
    assert len(list(tmp_path.glob("broken-*"))) == 2


def test_data_that_stands_elsewhere_is_damage(tmp_path, data, capsys):
    config = tiny(tmp_path)
    train(config, data)
    (tmp_path / "checkpoints" / "12" / checkpoint.SUMS).unlink()  # with them it is seen at once
    path = tmp_path / "checkpoints" / "12" / "data" / "metadata"
    change(path, ("batches",), 2)
    train(config, data)
    assert "datastandsat{'batches':2},notatbatch12" in "".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("parallel", ["jit", "pmap"])
def test_what_the_machine_does_may_change_before_the_run_goes_on(tmp_path, data, parallel):
    """Another number of loader processes and parts, other intervals: the same run, and its config.json says so."""
    whole = train(tiny(tmp_path / "whole"), data)
    config = tiny(tmp_path / "run")
    train(config, data)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "12")
    others = {"workers": 2, "cache_gib": 0.0, "log_every": 1, "checkpoint_every": 100, "parallel": parallel}
    config = dataclasses.replace(config, machine=MachineConfig(**others), map_shifts=1)
    resumed = train(config, data)  # from step 10
    same = chex.assert_trees_all_equal if parallel == "jit" else partial(chex.assert_trees_all_close, atol=2e-5)
    same(jax.device_get(whole.params), jax.device_get(resumed.params))
    losses = [[loss for row in rows(tmp_path / name) for loss in row["losses"]] for name in ("whole", "run")]
    assert parallel == "pmap" or losses[0] == losses[1]
    assert Config.load(tmp_path / "run").machine == config.machine
    assert [row["step"] for row in rows(tmp_path / "run")] == [4, 5, 8, 10, 11, 12]


FULL = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (25_000, 25_000))  # writing a larger file fails, as on a full disk
"""


def test_full_disk_is_an_error_and_leaves_the_last_checkpoint(tmp_path, data):
    whole = train(often(tmp_path, 60), data)  # as in SCRIPT
    shutil.rmtree(tmp_path / "checkpoints" / "60")
    places = {"root": str(ROOT), "tests": str(ROOT / "tests"), "workdir": str(tmp_path), "steps": 60}
    script = FULL + SCRIPT.format(**places)
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.returncode == 4, found
    assert f"could not be written to {tmp_path}/checkpoints" in found.stdout and "make room" in found.stdout
    assert "too large" in found.stdout.lower() and "Traceback" not in found.stdout + found.stderr, found.stderr
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()] == ["56"]
    resumed = train(often(tmp_path, 60), data)  # with room again it goes on
    chex.assert_trees_all_equal(jax.device_get(whole.params), jax.device_get(resumed.params))


def test_only_what_is_told_elsewhere_is_kept_off_the_screen(tmp_path, caplog):
    """Of a write that fails: errors out of orbax. Others are logged as ever."""
    checkpoint.manager(tmp_path).close()
    for module, error in (("orbax", ValueError("disk")), ("other", ValueError("own"))):
        try:
            exec(compile("raise error", f"/site-packages/{module}/writing.py", "exec"), {"error": error})
        except ValueError:
            logging.getLogger("asyncio").exception("of %s", module)
            logging.getLogger("absl").exception("of %s", module)
    assert [record.message for record in caplog.records] == ["of other", "of other"]


@pytest.mark.parametrize("notice", [{"preempted": "TRUE"}, {"maintenanceEvent": "TERMINATE_ON_HOST_MAINTENANCE"}])
def test_notice_of_the_cloud_saves_and_stops(tmp_path, data, monkeypatch, notice):
    class Metadata(http.server.BaseHTTPRequestHandler):
        asked = 0

        def do_GET(self):
            Metadata.asked += 1
            assert self.headers["Metadata-Flavor"] == "Google"
            odd = [[], {"preempted": "FALSE"}]  # what is no answer is asked again
            body = json.dumps(odd[Metadata.asked % 2] if Metadata.asked < 3 else notice).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    monkeypatch.setattr(monitor, "METADATA_SECONDS", 0.05)
    rarely = MachineConfig(log_every=1, checkpoint_every=50_000)
    with http.server.HTTPServer(("localhost", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("GCE_METADATA_HOST", f"localhost:{server.server_port}")
        with pytest.raises(command.Stopped, match=r"saved\. The same command continues"):
            train(tiny(tmp_path, train=OptimizerConfig(steps=100_000), machine=rarely), data)
        server.shutdown()
    assert Metadata.asked >= 3  # more where the machine is busy and an answer came too late
    assert checkpoint.load_params(tmp_path)[1] == rows(tmp_path)[-1]["step"]


def test_profile_is_written_and_does_not_make_another_run(tmp_path, data):
    settings = {"train": OptimizerConfig(steps=24)}
    train(tiny(tmp_path, machine=MachineConfig(profile=True), **settings), data)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    train(tiny(tmp_path, **settings), data)


def test_resume_with_a_target_nll_is_bitwise(tmp_path, data):
    config = tiny(tmp_path, loss=LossConfig(delay=0.0, target_nll=0.1))
    whole = train(config, data)
    shutil.rmtree(tmp_path / "checkpoints" / "12")
    resumed = train(config, data)  # from step 10
    assert whole.constraint.log_beta != 0.0
    for part in ("params", "opt_state", "constraint"):
        chex.assert_trees_all_equal(*(jax.device_get(getattr(state, part)) for state in (whole, resumed)))


def test_sigterm_saves_and_exits_cleanly(tmp_path):
    process = start(tmp_path, 4000)
    wait_for_step(process, tmp_path, 10)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 3 and "saved. The same command continues" in output
    _, step = checkpoint.load_params(tmp_path)
    assert step >= 10 and step == rows(tmp_path)[-1]["step"]


def test_second_training_in_a_work_directory_is_refused(tmp_path, data):
    with manifest.claim(tiny(tmp_path), data):
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(BlockingIOError, match=rf"{tmp_path}: another process trains here; wait"):
            train(tiny(tmp_path), data)
        assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    train(tiny(tmp_path), data)


def test_training_goes_on_where_there_are_no_locks(tmp_path, data, monkeypatch):
    def without(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(system.fcntl, "flock", without)
    train(tiny(tmp_path, train=OptimizerConfig(steps=2)), data)
    assert checkpoint.load_params(tmp_path)[1] == 2


def test_weight_decay_reaches_kernels_only(tmp_path, monkeypatch):
    monkeypatch.setattr("infomask_jax.train.WEIGHT_DECAY", 0.1)
    config = tiny(tmp_path, train=OptimizerConfig(steps=10))
    state = create_state(config, 1)
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    for _ in range(2):  # the first step of the warm-up has rate zero
        state = state.apply_gradients(grads=zeros)
    start = create_state(config, 1).params
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), state.params, start)
    assert changed["encoder"]["WSConv_0"]["kernel"] and changed["head"]["kernel"]
    assert not changed["encoder"]["WSConv_0"]["bias"] and not changed["closed_evidence"]


@pytest.mark.parametrize(
    ("group", "field", "value"),
    [
        ("machine", "log_every", 0),
        ("machine", "accumulate", 0),
        ("train", "steps", 1),
        ("model", "mask_prior", 0.0),
        ("model", "mask_evidence", float("nan")),
        ("loss", "beta_z", float("nan")),
        ("loss", "target_nll", -0.1),
    ],
)
def test_settings_out_of_range_are_refused_by_name(tmp_path, group, field, value):
    config = tiny(tmp_path)
    with pytest.raises(ValueError, match=f"{group}.{field}: expected .* found {value}"):
        dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **{field: value})})


def test_few_steps_have_a_warm_up(tmp_path):
    for steps in (2, 3, 4):
        state = create_state(tiny(tmp_path, train=OptimizerConfig(steps=steps)), 1)
        assert int(state.step) == 0


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seed_out_of_range_is_refused(tmp_path, seed):
    with pytest.raises(ValueError, match=f"seed: expected 0 to 4294967295, found {seed}"):
        dataclasses.replace(tiny(tmp_path), seed=seed)


def test_settings_of_a_second_view_are_refused_without_one(tmp_path):
    config = tiny(tmp_path)
    one = dataclasses.replace(config.model, two_views=False)
    with pytest.raises(ValueError, match=r"loss.hidden: expected 0 without model.two_views, found 0.5\n.*consistency"):
        dataclasses.replace(config, model=one)
    none = dataclasses.replace(config.loss, hidden=0.0, consistency=0.0)
    assert not dataclasses.replace(config, model=one, loss=none).model.two_views


def test_a_classifier_that_nothing_teaches_is_refused(tmp_path):
    config = tiny(tmp_path)
    without = dataclasses.replace(config.loss, auxiliary=0.0)
    with pytest.raises(ValueError, match=r"loss\.auxiliary: expected above 0 without model\.teach"):
        dataclasses.replace(config, loss=without)
    for changes in ({"teach_through_mask": True}, {"kind": "vib"}):
        dataclasses.replace(config, loss=without, model=dataclasses.replace(config.model, **changes))


def test_settings_that_cannot_run_do_not_claim_the_folder(tmp_path, data):
    with pytest.raises(ValueError, match="does not divide over 8 devices"):
        train(tiny(tmp_path / "run", data=DataConfig(image_size=16, batch_size=12)), data)
    assert not (tmp_path / "run").exists()
