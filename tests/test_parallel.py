"""Devices and processes: the same draws and losses however a step is spread, and how processes find each other."""

import ctypes
import dataclasses
import signal
from collections import namedtuple
from functools import partial
from types import SimpleNamespace
from unittest.mock import Mock

import chex
import jax
import numpy as np
import pytest

from infomask_jax import cpu, losses, parallel, pipeline
from infomask_jax import train as training
from infomask_jax.config import Config, DataConfig, LossConfig, MachineConfig, ModelConfig, OptimizerConfig
from infomask_jax.train import create_state, make_train_step

BASE = Config(
    data_dir="data",
    workdir="run",
    data=DataConfig(image_size=16, batch_size=16),
    model=ModelConfig(width=8, stride=4, latent_channels=4),
    # Sampled mask and representation, hidden views, all rates charged from the start.
    loss=LossConfig(delay=0.0, beta_z=1e-3, beta_m=1e-2),
    train=OptimizerConfig(steps=20, learning_rate=1e-3),
)


@pytest.fixture(scope="module", autouse=True)
def full_from_the_start():
    """The learning rate and the rates' weights rise within two steps: all that is compared here is then large."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "RAMP", 0.1)
        patch.setattr(training, "WARM_UP", 0.0)
        yield


@pytest.fixture(scope="module")
def batches(examples):
    stream = pipeline.train_batches(examples, BASE.data, 0)
    return [batch for batch, _ in zip(stream, range(20), strict=False)]


@pytest.fixture(scope="module")
def alone(batches):
    """Losses of 20 steps on one device, and the parameters they lead to."""
    return on_one_device(BASE, batches)


def on_one_device(config, batches):
    state, step, found = create_state(config, 1), jax.jit(make_train_step(config)), []
    for batch in batches:
        state, metrics = step(state, batch)
        found.append((metrics["loss"], metrics["rate_m"], metrics["mask_mean"]))
    return np.array(found), jax.device_get(state.params)


def assert_same(alone, found, params):
    np.testing.assert_allclose(found, alone[0], rtol=5e-5)
    chex.assert_trees_all_close(params, alone[1], atol=2e-4)


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_devices_do_not_change_the_draws(monkeypatch, batches, alone, devices):
    mesh = jax.make_mesh(
        (devices,), ("batch",), devices=jax.devices()[:devices], axis_types=(jax.sharding.AxisType.Auto,)
    )
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    monkeypatch.setattr(parallel, "shardings", lambda size: (replicated, split))
    assert_same(alone, *run(BASE, batches))


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("way", ["jit", "pmap"])
def test_ways_to_run_a_step_agree(batches, alone, way, accumulate):
    assert_same(alone, *run(on_machine(parallel=way, accumulate=accumulate), batches))


def on_machine(**settings) -> Config:
    return dataclasses.replace(BASE, machine=MachineConfig(**settings))


def run(config, batches):
    """Losses of all steps over all devices, and the parameters they lead to, as the training loop has them."""
    replicated, split = parallel.shardings(config.data.batch_size)
    step = parallel.compiled(partial(make_train_step, config), config.data.batch_size, config.machine)
    state, pmap, found = parallel.place(create_state(config, 1), replicated), config.machine.parallel == "pmap", []
    state = parallel.stack(state) if pmap else state
    for batch in batches:
        state, metrics = step(state, batch if pmap else parallel.to_devices(batch, split))
        found.append((metrics["loss"], metrics["rate_m"], metrics["mask_mean"]))
    params = parallel.unstack(state.params, replicated) if pmap else state.params
    return np.array(jax.device_get(found)).reshape(len(batches), 3), jax.device_get(params)


def test_accumulation_on_one_device(batches, alone):
    """Four parts of four images, which one device can do and eight cannot."""
    assert_same(alone, *on_one_device(on_machine(accumulate=4), batches))


def test_bfloat16_trains_as_float32_does(batches, alone):
    """Computed in bfloat16, kept in float32: the losses follow those of float32, and are not the same ones."""
    config = dataclasses.replace(BASE, model=dataclasses.replace(BASE.model, dtype="bfloat16"))
    found, params = run(config, batches)
    assert found.dtype == np.float32 and {x.dtype for x in jax.tree.leaves(params)} == {np.dtype("float32")}
    np.testing.assert_allclose(found, alone[0], rtol=0.05)
    assert not np.allclose(found, alone[0], rtol=1e-4)


@pytest.mark.parametrize("way", ["jit", "pmap"])
def test_parts_that_do_not_divide_over_the_devices_are_refused(way):
    machine = MachineConfig(accumulate=4, parallel=way)
    with pytest.raises(ValueError, match=r"machine\.accumulate 4 leaves parts of 4 images.* 8 devices"):
        parallel.compiled(partial(make_train_step, BASE), 16, machine)


def test_batch_that_does_not_divide_over_the_devices_is_refused():
    with pytest.raises(ValueError, match=r"data\.batch_size 12 does not divide over 8 devices"):
        parallel.compiled(partial(make_train_step, BASE), 12, MachineConfig())


def test_stack_and_unstack_are_inverse():
    replicated, _ = parallel.shardings(8)
    state = jax.device_put(create_state(BASE, 1), replicated)
    again = parallel.unstack(parallel.stack(state), replicated)
    chex.assert_trees_all_equal(state.params, again.params)
    np.testing.assert_array_equal(jax.random.key_data(state.key), jax.random.key_data(again.key))
    assert again.step.sharding == replicated


def test_devices_are_in_the_order_of_their_processes(monkeypatch):
    """As a batch's parts are, whatever order the devices are told in (that of a TPU slice is its network's)."""
    chip = namedtuple("chip", "process_index id")
    told = [chip(0, 0), chip(1, 4), chip(0, 1), chip(1, 2), chip(2, 3)]
    assert [device.process_index for device in parallel.ordered(told)] == [0, 0, 1, 1, 2]
    devices = jax.devices()[::-1]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    assert [device.id for device in parallel.shardings(8)[1].mesh.devices] == list(range(8))


@pytest.mark.parametrize("hosts", ["a:1,2", "a:1,2,", "node0,2,1", "a:1,2,2", "a:1,2,-1", "a:1,two,1", "a:1", "Auto"])
def test_hosts_that_are_not_whole_are_refused(monkeypatch, hosts):
    monkeypatch.setattr(jax.distributed, "initialize", Mock(side_effect=AssertionError("joined")))
    with pytest.raises(ValueError, match=rf"hosts: expected HOST:PORT,PROCESSES,THIS .*, or auto, found '{hosts}'$"):
        parallel.start(hosts)


@pytest.mark.parametrize(
    ("hosts", "on_tpu", "expected"),
    [
        ("node0:1,2,1", False, [("node0:1", 2, 1)]),
        ("[::1]:12,16,0", True, [("[::1]:12", 16, 0)]),
        ("auto", False, [()]),
        ("", True, [()]),
        ("", False, []),
    ],
)
def test_processes_are_found_by_name_or_by_the_scheduler(monkeypatch, hosts, on_tpu, expected):
    joined = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *named: joined.append(named))
    monkeypatch.setattr(parallel, "_on_tpu_host", lambda: on_tpu)
    parallel.start(hosts)
    assert joined == expected


def test_processes_join_before_devices_are_asked_for(monkeypatch):
    """JAX refuses the other order."""
    done = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_: done.append("joined"))
    monkeypatch.setattr(parallel, "_check_platforms", lambda: done.append("asked"))
    parallel.start("a:1,2,1")
    assert done == ["joined", "asked"]


def test_joining_leaves_sigterm_to_the_command(monkeypatch):
    """JAX takes it, and goes on."""
    heard, before = [], signal.signal(signal.SIGTERM, lambda *_: heard.append(True))
    try:
        taken = partial(ctypes.CDLL(None).signal, int(signal.SIGTERM), ctypes.c_void_p(1))  # ignored, behind Python
        monkeypatch.setattr(jax.distributed, "initialize", lambda *_: taken())
        parallel.start("a:1,2,1")
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
        ({"machine": MachineConfig(accumulate=3)}, "machine.accumulate: expected a divisor of data.batch_size, 16, fo"),
        ({"map_shifts": 4, "model": ModelConfig(stride=2)}, "map_shifts: expected at most model.stride, 2, found 4"),
        ({"model": ModelConfig(two_views=False)}, "loss.hidden: expected 0 without model.two_views, found 0.5"),
        ({"model": ModelConfig(kind="attention_mil")}, "model.two_views: expected False for attention_mil, found True"),
        ({"loss": LossConfig(auxiliary=0.0)}, "loss.auxiliary: expected above 0 without model.teach_through_mask"),
    ],
)
def test_settings_that_exclude_each_other(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(BASE, **changes)


def test_fetch_returns_whole_arrays():
    _, split = parallel.shardings(16)
    batch = {"index": np.arange(16, dtype=np.int32)}
    np.testing.assert_array_equal(parallel.fetch(parallel.to_devices(batch, split))["index"], batch["index"])


def test_the_step_leaves_convolutions_to_eigen_unless_told_otherwise(monkeypatch):
    jax.jit(lambda: jax.numpy.zeros(1)).lower().compile()  # so that XLA has read the flags that are set here
    name = "--xla_cpu_experimental_ynn_fusion_type"
    monkeypatch.setenv("XLA_FLAGS", f"{name}=individual_dot")
    assert cpu.step_options.__wrapped__() is None
    monkeypatch.setenv("XLA_FLAGS", "")
    with monkeypatch.context() as context:
        context.setattr(jax, "jit", Mock(side_effect=jax.errors.JaxRuntimeError("No such compile option")))
        assert cpu.step_options.__wrapped__() is None
    options = cpu.step_options.__wrapped__()
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


def test_a_step_that_does_not_fit_is_told_before_it_runs(monkeypatch):
    program = jax.jit(lambda x: (x @ x).sum()).lower(jax.numpy.zeros((512, 512))).compile()
    for limit in (10**9, None, 10**6):
        device = SimpleNamespace(memory_stats=lambda limit=limit: limit and {"bytes_limit": limit})
        monkeypatch.setattr(jax, "local_devices", lambda device=device: [device])
        if limit == 10**6:
            with pytest.raises(MemoryError, match=r"a step needs 0.0 GiB of each device.*raise --machine.accumulate"):
                parallel.check_memory(program, "data.batch_size 64, machine.accumulate 1")
        else:
            parallel.check_memory(program, "")


def test_running_out_of_memory_is_told_with_what_to_change():
    def full(state, batch):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.")

    jitted = SimpleNamespace(lower=lambda *_: SimpleNamespace(compile=lambda: full))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "check_memory", lambda *_: None)
        with pytest.raises(MemoryError, match=r"does not fit.*raise --machine.accumulate.*found data.batch_size 64"):
            parallel._compiled_everywhere(jitted, "data.batch_size 64")({}, {})
