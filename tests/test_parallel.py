"""Devices and processes: the same draws and losses however a step is spread, memory that is split, agreement."""

import ctypes
import dataclasses
import platform
import signal
import subprocess
import sys
from collections import namedtuple
from functools import partial
from importlib.util import find_spec
from unittest.mock import Mock

import chex
import jax
import numpy as np
import pytest

from infomask_jax import parallel, pipeline
from infomask_jax.config import Config, DataConfig, HostsConfig, ModelConfig, TrainConfig
from infomask_jax.train import create_state, make_train_step, parallel_step

BASE = Config(
    data_dir="data",
    workdir="run",
    data=DataConfig(image_size=16, batch_size=16),
    model=ModelConfig(width=8, depth=1, stride=4, latent_channels=4),
    # Sampled mask and representation, hidden views, all rates charged from the start.
    train=TrainConfig(steps=20, learning_rate=1e-3, warmup=0.0),
)
BASE = dataclasses.replace(BASE, loss=dataclasses.replace(BASE.loss, delay=0.0, ramp=0.1, beta_z=1e-3, beta_m=1e-2))


@pytest.fixture(scope="module")
def batches(examples):
    stream = pipeline.train_batches(examples, BASE.data, 0)
    return [batch for batch, _ in zip(stream, range(20), strict=False)]


@pytest.fixture(scope="module")
def alone(batches):
    """Losses of 20 steps on one device, and the parameters they lead to."""
    state, step, losses = create_state(BASE, 1), jax.jit(make_train_step(BASE)), []
    for batch in batches:
        state, metrics = step(state, batch)
        losses.append((metrics["loss"], metrics["rate_m"], metrics["mask_mean"]))
    return np.array(losses), jax.device_get(state.params)


def assert_same(alone, losses, params):
    np.testing.assert_allclose(np.array(losses), alone[0], rtol=5e-5)
    chex.assert_trees_all_close(params, alone[1], atol=2e-4)


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_devices_do_not_change_the_draws(monkeypatch, batches, alone, devices):
    mesh = jax.make_mesh(
        (devices,), ("batch",), devices=jax.devices()[:devices], axis_types=(jax.sharding.AxisType.Auto,)
    )
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    monkeypatch.setattr(parallel, "shardings", lambda size: (replicated, split))
    assert_same(alone, *run(BASE, batches, split))


@pytest.mark.parametrize(
    "changes",
    [
        {"train": {"accumulate": 2}},
        {"train": {"shard_optimizer": True}},
        {"parallel": "pmap"},
        {"parallel": "pmap", "train": {"accumulate": 2}},
    ],
    ids=str,
)
def test_ways_to_run_a_step_agree(batches, alone, changes):
    train = dataclasses.replace(BASE.train, **changes.get("train", {}))
    config = dataclasses.replace(BASE, parallel=changes.get("parallel", "jit"), train=train)
    assert_same(alone, *run(config, batches, parallel.shardings(16)[1]))


def run(config, batches, split):
    state, losses = create_state(config, 1), []
    step, layout = parallel_step(config, state)
    state = jax.device_put(state, layout)
    pmap = config.parallel == "pmap"
    state = parallel.stack(state) if pmap else state
    for batch in batches:
        state, metrics = step(state, batch if pmap else parallel.to_devices(batch, split))
        losses.append((metrics["loss"], metrics["rate_m"], metrics["mask_mean"]))
    return np.array(jax.device_get(losses)).reshape(len(batches), 3), jax.device_get(
        parallel.unstack(state.params, layout.step) if pmap else state.params
    )


def test_accumulation_on_one_device(batches, alone):
    """Four parts of four images, which one device can do and eight cannot."""
    config = dataclasses.replace(BASE, train=dataclasses.replace(BASE.train, accumulate=4))
    state, step, losses = create_state(config, 1), jax.jit(make_train_step(config)), []
    for batch in batches:
        state, metrics = step(state, batch)
        losses.append((metrics["loss"], metrics["rate_m"], metrics["mask_mean"]))
    assert_same(alone, losses, jax.device_get(state.params))


def test_bfloat16_trains_as_float32_does(batches, alone):
    """Computed in bfloat16, kept in float32: the losses follow those of float32, and are not the same ones."""
    config = dataclasses.replace(BASE, model=dataclasses.replace(BASE.model, dtype="bfloat16"))
    losses, params = run(config, batches, parallel.shardings(16)[1])
    assert losses.dtype == np.float32 and {x.dtype for x in jax.tree.leaves(params)} == {np.dtype("float32")}
    np.testing.assert_allclose(losses, alone[0], rtol=0.05)
    assert not np.allclose(losses, alone[0], rtol=1e-4)


def test_parts_that_do_not_divide_over_the_devices_are_refused():
    config = dataclasses.replace(BASE, train=dataclasses.replace(BASE.train, accumulate=4))
    with pytest.raises(ValueError, match=r"train\.accumulate 4 leaves parts of 4 images.* 8 devices"):
        parallel_step(config, create_state(config, 1))


def test_sharded_optimizer_is_an_eighth_on_each_device():
    config = dataclasses.replace(
        BASE, model=ModelConfig(width=16, depth=1), train=dataclasses.replace(BASE.train, shard_optimizer=True)
    )
    state = create_state(config, 1)
    _, layout = parallel_step(config, state)
    sizes = [
        (leaf.size, leaf.addressable_shards[0].data.size)
        for leaf in jax.tree.leaves(jax.device_put(state, layout).opt_state)
    ]
    whole, local = (sum(column) for column in zip(*sizes, strict=True))
    assert local < 0.15 * whole  # an eighth, and the few that do not divide
    assert all(x.is_fully_replicated for x in jax.tree.leaves(jax.device_put(state.params, layout.params)))


def test_stack_and_unstack_are_inverse():
    replicated, _ = parallel.shardings(8)
    state = jax.device_put(create_state(BASE, 1), replicated)
    again = parallel.unstack(parallel.stack(state), replicated)
    chex.assert_trees_all_equal(state.params, again.params)
    np.testing.assert_array_equal(jax.random.key_data(state.key), jax.random.key_data(again.key))
    assert again.step.sharding == replicated


def test_optimizer_sharding_takes_the_first_axis_that_divides():
    replicated, _ = parallel.shardings(8)
    specs = {
        shape: parallel.optimizer_sharding(np.zeros(shape), replicated).spec for shape in [(3, 16, 8), (8,), (7, 9), ()]
    }
    assert [tuple(spec) for spec in specs.values()] == [(None, "batch"), ("batch",), (), ()]


def test_devices_are_in_the_order_of_their_processes(monkeypatch):
    """As a batch's parts are, whatever order the devices are told in (that of a TPU slice is its network's)."""
    chip = namedtuple("chip", "process_index id")
    told = [chip(0, 0), chip(1, 4), chip(0, 1), chip(1, 2), chip(2, 3)]
    assert [device.process_index for device in parallel.ordered(told)] == [0, 0, 1, 1, 2]
    devices = jax.devices()[::-1]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    assert [device.id for device in parallel.shardings(8)[1].mesh.devices] == list(range(8))


def test_processes_named_by_half_are_refused():
    with pytest.raises(ValueError, match=r"--hosts.process I, found 'a:1', 2, -1"):
        parallel.start(HostsConfig(coordinator="a:1", processes=2))


def test_coordinator_without_a_port_is_refused():
    with pytest.raises(ValueError, match=r"coordinator HOST:PORT.*found 'node0', 2, 1"):
        parallel.start(HostsConfig(coordinator="node0", processes=2, process=1))


def test_processes_join_before_devices_are_asked_for(monkeypatch):
    """JAX refuses the other order."""
    done = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_: done.append("joined"))
    monkeypatch.setattr(parallel, "_check_platforms", lambda: done.append("asked"))
    monkeypatch.setattr(parallel, "_keep_memory", lambda: None)
    parallel.start(HostsConfig(coordinator="a:1", processes=2, process=1))
    assert done == ["joined", "asked"]


def test_joining_leaves_sigterm_to_the_command(monkeypatch):
    """JAX takes it, and goes on."""
    heard, before = [], signal.signal(signal.SIGTERM, lambda *_: heard.append(True))
    try:
        taken = partial(ctypes.CDLL(None).signal, int(signal.SIGTERM), ctypes.c_void_p(1))  # ignored, behind Python
        monkeypatch.setattr(jax.distributed, "initialize", lambda *_: taken())
        monkeypatch.setattr(parallel, "_keep_memory", lambda: None)
        parallel.start(HostsConfig(coordinator="a:1", processes=2, process=1))
        signal.raise_signal(signal.SIGTERM)
        assert heard
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("chip", ["/dev/accel0", "/dev/vfio/0", None])
def test_hosts_of_a_tpu_slice_are_known_by_their_chips(monkeypatch, chip):
    monkeypatch.delenv("JAX_PLATFORMS")
    for name in ("TPU_WORKER_HOSTNAMES", "MEGASCALE_COORDINATOR_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(parallel, "find_spec", lambda name: name)
    monkeypatch.setattr(parallel.Path, "exists", lambda path: str(path) == chip)
    assert parallel._on_tpu_host() == (chip is not None)
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
    assert parallel._on_tpu_host()
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert not parallel._on_tpu_host()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": TrainConfig(accumulate=3)}, "train.accumulate: expected a divisor of data.batch_size, 16, found 3"),
        ({"model": ModelConfig(norm="group", width=12)}, "model.width: expected a multiple of 8, .* found 12"),
        ({"parallel": "pmap", "train": TrainConfig(shard_optimizer=True)}, "train.shard_optimizer: expected False"),
    ],
)
def test_settings_that_exclude_each_other(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(BASE, **changes)


def test_fetch_returns_whole_arrays():
    _, split = parallel.shardings(16)
    batch = {"index": np.arange(16, dtype=np.int32)}
    np.testing.assert_array_equal(parallel.fetch(parallel.to_devices(batch, split))["index"], batch["index"])


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or any(find_spec(name) for name in ("libtpu", "jax_plugins")),
    reason="done on the CPU alone, with glibc",
)
def test_a_step_takes_its_memory_from_the_step_before():
    """Pages fetched from the system by a program with results of 64 MiB; without `start` as the control."""
    code = """if True:
        import resource, jax, jax.numpy as jnp
        from infomask_jax import parallel
        from infomask_jax.config import HostsConfig
        if {start}:
            parallel.start(HostsConfig())
        step, x = jax.jit(lambda x: x + 1), jnp.zeros(2**24)
        for i in range(50):
            if i == 30:
                before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            jax.block_until_ready(step(x))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    """
    pages = {}
    for start in (True, False):
        command = [sys.executable, "-c", code.format(start=start)]
        pages[start] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert pages[True] < 0.7 * pages[False], pages  # it still may grow a few times


def test_the_step_leaves_convolutions_to_eigen_unless_told_otherwise(monkeypatch):
    jax.jit(lambda: jax.numpy.zeros(1)).lower().compile()  # so that XLA has read the flags that are set here
    name = "--xla_cpu_experimental_ynn_fusion_type"
    monkeypatch.setenv("XLA_FLAGS", f"{name}=individual_dot")
    assert parallel.step_options.__wrapped__() is None
    monkeypatch.setenv("XLA_FLAGS", "")
    with monkeypatch.context() as context:
        context.setattr(jax, "jit", Mock(side_effect=jax.errors.JaxRuntimeError("No such compile option")))
        assert parallel.step_options.__wrapped__() is None
    options = parallel.step_options.__wrapped__()
    if options is None:  # then this XLA must be one that refuses it
        with pytest.raises(jax.errors.JaxRuntimeError):
            jax.jit(lambda: 0, compiler_options={name.lstrip("-"): ""}).lower().compile()
        return

    def convolve(images, kernel):
        return jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def weights(images, kernel):  # large enough for XLA to prefer YNNPACK, when it optimizes
        return jax.vjp(partial(convolve, images), kernel)[1](images)

    options = {"xla_backend_optimization_level": 3, **options}
    shapes = jax.ShapeDtypeStruct((16, 32, 32, 32), np.float32), jax.ShapeDtypeStruct((3, 3, 32, 32), np.float32)
    assert "ynn_fusion" not in jax.jit(weights, compiler_options=options).lower(*shapes).compile().as_text()
