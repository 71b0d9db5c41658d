"""The loop: one trace, rivals, GECO, resumption bit for bit after signals, refusals, damaged checkpoints."""

import dataclasses
import errno
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import Examples, change

from infomask_jax import checkpoint, command, parallel, pipeline, presets, system
from infomask_jax.config import Config, DataConfig, LossConfig, MachineConfig, ModelConfig, OptimizerConfig
from infomask_jax.explain import heat_maps
from infomask_jax.losses import nll
from infomask_jax.model import build
from infomask_jax.train import create_state, make_train_step, train

STEPS, EVERY = 120, 20  # of `often`, and between its checkpoints


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


def often(workdir: Path) -> Config:
    """A line of the log at every step; betas that a target moves from the start."""
    machine, loss = MachineConfig(log_every=1, checkpoint_every=EVERY), LossConfig(delay=0.0, target_nll=0.1)
    return tiny(workdir, train=OptimizerConfig(steps=STEPS), machine=machine, loss=loss)


def prepared(examples) -> SimpleNamespace:
    def source(split, fields=None):
        return examples

    return SimpleNamespace(
        name="squares", fingerprint="f0", findings=("bright",), size=16, source=source, splits={"train": 64}
    )


@pytest.fixture
def data(examples):
    return prepared(examples)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, examples):
    """The folder of a run of `often`, only to be read, and its last state."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, jax.device_get(train(often(folder), prepared(examples)))


@pytest.fixture
def run(whole, tmp_path) -> Path:
    """A copy of `whole`."""
    return shutil.copytree(whole[0], tmp_path / "run")


@pytest.fixture
def cut(run) -> Path:
    """A copy of `whole` without its last checkpoint: it goes on from the one before."""
    shutil.rmtree(run / "checkpoints" / str(STEPS))
    return run


def assert_same_state(one, other) -> None:
    for part in ("params", "opt_state", "constraint"):
        chex.assert_trees_all_equal(*(jax.device_get(getattr(state, part)) for state in (one, other)))


def rows(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir: Path) -> list[float]:
    return [loss for row in rows(workdir) for loss in row["losses"]]


def said(capsys) -> str:
    return "".join(capsys.readouterr().out.split())  # lines wrap anywhere


def taught(config: Config, steps: int, examples: Examples, state=None):
    """The state after some steps on one device, from the first one, and what each step told."""
    state, found = state or create_state(config, examples.findings), []
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(make_train_step(config), n=1))
    for batch, _ in zip(pipeline.train_batches(examples, config.data, 0), range(steps), strict=False):
        state, metrics = step(state, batch)
        found.append(jax.device_get(metrics))
    return state, found


@pytest.mark.parametrize(
    ("changes", "maps"),
    [
        (presets.PLAIN | presets.ONE_VIEW | {"model.kind": "attention_mil"}, {"cam", "attention"}),
        ({"model.kind": "vib", "model.pooling": "noisy_or"}, {"vib_bits", "vib_evidence"}),
    ],
    ids=["attention", "vib"],
)
def test_rivals_train_and_name_their_maps(tmp_path, examples, changes, maps):
    config = presets.changed(tiny(tmp_path), changes)
    state, found = taught(config, 2, examples)
    assert all(np.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in found)
    start = create_state(config, 1).params
    for name in set(start) - {"log_sigma"}:  # on whose kernel nothing acts at once
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), start[name], state.params[name])
        assert all(jax.tree.leaves(moved)), name
    image = jnp.zeros((1, 16, 16, 1))
    out = jax.eval_shape(lambda p: state.apply_fn({"params": p}, image, train=False)[1], state.params)
    assert set(jax.eval_shape(lambda out: heat_maps(out, config.model.kind), out)) == maps


def test_preset_paper_descends_one_sum(tmp_path):
    """Every parameter follows the gradient of NLL + beta_z KL_z + beta_m KL_m and of nothing else."""
    config = presets.changed(tiny(tmp_path), presets.PAPER | {"loss.delay": 0.0})
    state, batch = create_state(config, 2), next(pipeline.train_batches(Examples(findings=2), config.data, 0))
    model, key, step = build(config.model, 2), jax.random.fold_in(state.key, 6), jnp.int32(6)

    @jax.value_and_grad
    def objective(params):
        logits, out = model.apply({"params": params}, batch["image"], train=True, rngs={"sample": key})
        likelihood = nll(logits, batch["labels"], batch["label_mask"], 1.0)
        rates = config.loss.beta_z * out["kl_z"].sum((1, 2)) + config.loss.beta_m * out["kl_m"].sum((1, 2, 3))
        return (likelihood + rates).mean()  # at step 6 of 12 all of the KLs is charged

    loss, gradients = jax.jit(objective)(state.params)
    _, metrics = jax.jit(make_train_step(config))(state.replace(step=step), batch)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(gradients), rtol=1e-4)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    assert metrics["kl_charge"] == 1.0 and min(map(jnp.linalg.norm, jax.tree.leaves(gradients["mask"]))) > 0


def test_mask_prior_and_target_wait_until_the_rates_are_charged(tmp_path, examples):
    """Half of eight steps; without something to weigh there is no target."""
    config = tiny(tmp_path, train=OptimizerConfig(steps=8), loss=LossConfig(delay=0.5, target_nll=0.1))
    start, names, step = (
        create_state(config, 1),
        ("mask", "prior_logit", "prior_coupling"),
        jax.jit(make_train_step(config)),
    )
    states = [start]
    for batch, _ in zip(pipeline.train_batches(examples, config.data, 0), range(6), strict=False):
        state, metrics = step(states[-1], batch)
        states.append(state)
        assert metrics["geco_factor"] == 1.0
    for state, waits in ((states[5], True), (states[6], False)):
        moved = [bool(optax.tree.norm(optax.tree.sub(state.params[name], start.params[name])) > 0) for name in names]
        assert moved == [not waits] * 3 and (state.constraint.log_beta == 0.0) == waits
    free = presets.changed(config, {"loss.beta_z": 0.0, "loss.beta_m": 0.0, "model.mask_coupling": 0.0})
    state = create_state(free, 1)
    assert state.constraint is None and set(state.params) == set(start.params) - set(names[1:])


def test_factor_multiplies_both_betas(tmp_path, examples):
    """One step at a factor of three is the step of a run without target whose betas are three times as large."""
    reached, log_beta = [], jnp.log(jnp.float32(3.0))
    for loss in (LossConfig(beta_z=0.01, beta_m=0.1, target_nll=0.1), LossConfig(beta_z=0.03, beta_m=0.3)):
        config = tiny(tmp_path, loss=dataclasses.replace(loss, delay=0.05), train=OptimizerConfig(steps=8))
        state = create_state(config, 1).replace(step=2)
        if loss.target_nll:
            state = state.replace(constraint=state.constraint._replace(log_beta=log_beta))
        reached.append(taught(config, 1, examples, state))
    (constrained, (metrics,)), (fixed, (expected,)) = reached
    np.testing.assert_allclose(metrics.pop("geco_factor"), 3.0, rtol=1e-6)
    chex.assert_trees_all_close(metrics, expected, rtol=1e-5)
    chex.assert_trees_all_close(constrained.params, fixed.params, atol=1e-6)
    assert expected["kl_charge"] == 0.5 and constrained.constraint.log_beta < log_beta  # an NLL far above the target


def test_weight_decay_reaches_kernels_only(tmp_path, monkeypatch):
    monkeypatch.setattr("infomask_jax.train.WEIGHT_DECAY", 0.1)
    start = state = create_state(tiny(tmp_path, train=OptimizerConfig(steps=10)), 1)
    for _ in range(2):  # the first step of the warm-up has rate zero
        state = state.apply_gradients(grads=jax.tree.map(jnp.zeros_like, state.params))
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), state.params, start.params)
    assert changed["encoder"]["WSConv_0"]["kernel"] and changed["head"]["kernel"]
    assert not changed["encoder"]["WSConv_0"]["bias"] and not changed["closed_evidence"]


def test_run_descends_writes_its_files_and_finishes(whole, run, data, monkeypatch):
    """Nothing is left to do; another training is refused, but where the file system has no locks."""
    config, state = often(whole[0]), whole[1]
    assert Config.load(run) == dataclasses.replace(config, data_dir=Path("data").absolute())
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["dataset"] == {"name": "squares", "fingerprint": "f0", "findings": ["bright"]}
    assert [row["step"] for row in rows(run)] == [*range(1, STEPS + 1)]
    assert {"loss", "nll", "rate_z", "rate_m", "mask_mean", "grad_norm", "images_per_s"} <= set(rows(run)[-1])
    paid = [row["nll"] for row in rows(run)]
    assert np.mean(paid[-10:]) < 0.7 * np.mean(paid[:10])
    params, step = checkpoint.load_params(run)
    assert step == STEPS and state.constraint.log_beta != 0
    chex.assert_trees_all_equal(params, state.params)
    with system.lock(run, ""), pytest.raises(BlockingIOError, match=f"{run}: another process"):
        train(often(run), data)
    monkeypatch.setattr(system.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "No locks")))
    before = [(run / name).read_text() for name in ("metrics.jsonl", "manifest.json")]
    assert_same_state(train(often(run), data), state)
    assert [(run / name).read_text() for name in ("metrics.jsonl", "manifest.json")] == before


def test_changed_config_or_data_is_refused_with_the_difference(run, data):
    with pytest.raises(ValueError, match=r"config\.loss\.beta_z: 3e-05 -> 0\.5"):
        train(presets.changed(often(run), {"loss.beta_z": 0.5}), data)
    data.fingerprint = "f1"
    with pytest.raises(ValueError, match=r"dataset\.fingerprint: 'f0' -> 'f1'"):
        train(often(run), data)


def test_non_finite_loss_stops_and_a_run_without_checkpoint_begins_anew(tmp_path, data):
    """Its manifest is of the process that saves first."""
    config = tiny(tmp_path, train=OptimizerConfig(steps=40, learning_rate=1e30), machine=MachineConfig(log_every=5))
    path, began = tmp_path / "manifest.json", []
    for _ in range(2):
        with pytest.raises(FloatingPointError, match=r"step \d+: loss .* Last finite metrics"):
            train(config, data)
        assert not list((tmp_path / "checkpoints").glob("[0-9]*"))  # no broken state was saved
        began.append(json.loads(path.read_text()))
        change(path, ("git_revision",), "of_before")
    assert began[0] == began[1]


@pytest.mark.parametrize(("folder", "size", "words"), [("run", 12, "over 8 devices"), ("w[0]", 8, r"w\[0\].* \[ in")])
def test_what_cannot_run_does_not_claim_the_folder(tmp_path, data, folder, size, words):
    with pytest.raises(ValueError, match=words):
        train(tiny(tmp_path / folder, data=DataConfig(image_size=16, batch_size=size)), data)
    assert not list(tmp_path.iterdir())


SCRIPT = """
import sys, pathlib
sys.path.insert(0, {tests!r})
import conftest, test_train
from infomask_jax import command
with command.ends(resumes=True):
    test_train.train(test_train.often(pathlib.Path({workdir!r})), test_train.prepared(conftest.Examples()))
"""


def start(workdir: Path, before: str = "") -> subprocess.Popen:
    script = before + SCRIPT.format(tests=str(Path(__file__).parent), workdir=str(workdir))
    return subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)


def test_resume_after_signals_is_bitwise(whole, tmp_path, data):
    """Killed in the middle of writing a checkpoint, then told to end: parameters, optimizer, key and data order as
    uninterrupted."""
    run = tmp_path / "run"
    log = run / "metrics.jsonl"
    reached = {  # before it is sent
        signal.SIGKILL: lambda: list((run / "checkpoints").glob("*tmp*")) and log.read_text().count("\n") > EVERY,
        signal.SIGTERM: lambda: log.read_text().count("\n") >= 65,
    }
    for number, so_far in reached.items():
        process, deadline = start(run), time.monotonic() + 120
        while not (log.exists() and so_far()):
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.005)
        process.send_signal(number)
        told = process.communicate(timeout=60)[1]
    assert process.returncode == command.STOPPED and "saved. The same command continues" in told
    step = rows(run)[-1]["step"]
    assert 65 <= step < STEPS and checkpoint.load_params(run)[1] == step
    resumed = train(often(run), data)
    assert_same_state(resumed, whole[1])
    np.testing.assert_array_equal(jax.random.key_data(resumed.key), jax.random.key_data(whole[1].key))
    assert [row["step"] for row in rows(run)] == [*range(1, STEPS + 1)] and losses(run) == losses(whole[0])


FULL = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (25_000, 25_000))  # writing a larger file fails, as on a full disk
"""


def test_full_disk_is_an_error_and_leaves_the_last_checkpoint(whole, cut, data):
    log = cut / "metrics.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[STEPS - EVERY - 1 : STEPS - EVERY]))  # small
    process = start(cut, FULL)
    told = process.communicate(timeout=120)[1]
    assert process.returncode == 1 and "Traceback" not in told, told
    assert f"could not be written to {cut}/checkpoints" in told and "make room" in told and "too large" in told.lower()
    assert [path.name for path in (cut / "checkpoints").iterdir() if path.name.isdigit()] == [str(STEPS - EVERY)]
    assert_same_state(train(often(cut), data), whole[1])  # with room again it goes on


def test_what_the_machine_does_may_change_before_the_run_goes_on(whole, cut, data):
    """Another number of loader processes, other intervals, a profile: the same run, and its config.json says so."""
    machine = MachineConfig(workers=2, cache_gib=0.0, log_every=8, checkpoint_every=13, profile=True)
    config = dataclasses.replace(often(cut), machine=machine, map_shifts=1)
    resumed = train(config, data)  # from step 100
    assert list((cut / "profile").rglob("*.xplane.pb"))
    assert_same_state(resumed, whole[1])
    assert losses(cut) == losses(whole[0])
    assert Config.load(cut).machine == config.machine
    assert [row["step"] for row in rows(cut)][99:] == [100, 104, 112, 117, 120]


@pytest.mark.parametrize("kind", ["flipped", "removed"])
def test_damaged_checkpoint_falls_back_to_the_one_before(whole, run, data, capsys, kind):
    """With one bit flipped, in a run that another revision began; without data, where one has been set aside before."""
    folder, manifest, aside = run / "checkpoints" / str(STEPS), run / "manifest.json", run / f"broken-{STEPS}"
    begun = json.loads(manifest.read_text())
    if kind == "flipped":
        (path,) = folder.glob("state/d/*")
        flipped = bytearray(path.read_bytes())
        flipped[len(flipped) // 2] ^= 4
        path.write_bytes(flipped)
        with pytest.raises(OSError, match=f"{folder} cannot be read"):
            checkpoint.load_params(run)
        change(manifest, ("git_revision",), "of_before")
    else:
        (folder / "data" / "metadata").unlink()
        (aside / "data").mkdir(parents=True)
        aside = aside.with_name(f"{aside.name}-again")
        (run / "checkpoints" / str(STEPS - EVERY) / checkpoint.SUMS).unlink()  # as of older revisions: taken as it is
    resumed, told = train(often(run), data), said(capsys)
    assert "cannotberead" in told and f"movedto{aside}" in told and f"fromstep{STEPS - EVERY}of{STEPS}" in told
    now = json.loads(manifest.read_text())
    if kind == "flipped":
        assert "itmaynotendasitwouldhave:git_revision:" in told and "of_before" in told and "grain" not in told
        (continued,) = now["continued"]
        assert now["git_revision"] == "of_before" and continued["git_revision"] == begun["git_revision"]
        assert continued["step"] == STEPS - EVERY
    else:
        assert "notaswhenitbegan" not in told and now == begun
    assert (aside / "state").is_dir()  # nothing is lost
    assert_same_state(resumed, whole[1])


def test_no_readable_checkpoint_is_an_error_not_a_fresh_start(run, data):
    """One is cut, of one the data stand elsewhere, one holds what is not finite."""
    (path,) = (run / "checkpoints" / str(STEPS)).glob("state/d/*")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    before = run / "checkpoints" / str(STEPS - EVERY)
    (before / checkpoint.SUMS).unlink()  # with them it is seen at once
    change(before / "data" / "metadata", ("batches",), 2)
    state = parallel.place(create_state(often(run), 1), parallel.shardings(8)[0])
    nan = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(jnp.nan) if x.ndim else x, state.opt_state)
    with checkpoint.manager(spoilt := run.with_name("spoilt")) as checkpoints:
        checkpoint.save(checkpoints, 10, state.replace(opt_state=nan), SimpleNamespace(taken=10))
        checkpoint.wait(checkpoints)
    with pytest.raises(OSError, match=r"10 cannot be read \(ValueError: opt_state/\S+ is not finite\)"):
        checkpoint.load_params(spoilt)
    (spoilt / "checkpoints" / "10").rename(run / "checkpoints" / "10")
    words = rf"(?s){STEPS} cannot be read.*stands at .'batches': 2., not at batch {STEPS - EVERY}.*"
    with pytest.raises(OSError, match=words + r"opt_state/\S+ is not finite.*No checkpoint of"):
        train(often(run), data)
    assert len(list(run.glob("broken-*"))) == 3
