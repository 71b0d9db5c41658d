"""Devices and processes: the same draws and losses however a step is spread, and how processes find each other."""

import dataclasses
from collections import namedtuple
from functools import partial
from unittest.mock import Mock

import chex
import jax
import numpy as np
import pytest

from infomask_jax import cpu, losses, parallel, pipeline
from infomask_jax import train as training
from infomask_jax.config import Config, DataConfig, LossConfig, MachineConfig, ModelConfig, OptimizerConfig
from infomask_jax.train import create_state, make_train_step

STEPS = 8
BASE = Config(
    data_dir="data",
    workdir="run",
    data=DataConfig(image_size=16, batch_size=16),
    model=ModelConfig(width=8, stride=4, latent_channels=4),
    # Sampled mask and representation, hidden views, all rates charged from the start.
    loss=LossConfig(delay=0.0, beta_z=1e-3, beta_m=1e-2),
    train=OptimizerConfig(steps=STEPS, learning_rate=1e-3),
)


@pytest.fixture(scope="module", autouse=True)
def full_from_the_start():
    """The learning rate and the rates' weights rise within two steps: all that is compared here is then large."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "RAMP", 0.2)
        patch.setattr(training, "WARM_UP", 0.0)
        yield


@pytest.fixture(scope="module")
def batches(examples):
    return [batch for batch, _ in zip(pipeline.train_batches(examples, BASE.data, 0), range(STEPS), strict=False)]


def learnt(config, batches, one: bool = False):
    """Losses of all steps over all devices, as the training loop has it, or on one device, and the last parameters."""
    replicated, split = parallel.shardings(config.data.batch_size)
    state, found, pmap = create_state(config, 1), [], config.machine.parallel == "pmap"
    if one:
        step, put = jax.jit(make_train_step(config)), lambda batch: batch
    else:
        step = parallel.compiled(partial(make_train_step, config), config.data.batch_size, config.machine)
        state = parallel.stack(state) if pmap else parallel.place(state, replicated)
        put = (lambda batch: batch) if pmap else partial(parallel.to_devices, split=split)
    for batch in batches:
        state, metrics = step(state, put(batch))
        found.append((metrics["loss"], metrics["rate_m"], metrics["mask_mean"]))
    params = parallel.unstack(state.params, replicated) if pmap else state.params
    return np.array(jax.device_get(found)).reshape(len(batches), 3), jax.device_get(params)


@pytest.fixture(scope="module")
def alone(batches):
    return learnt(BASE, batches, one=True)


@pytest.mark.parametrize(("way", "accumulate"), [("jit", 2), ("pmap", 1)])
def test_eight_devices_draw_and_learn_what_one_does(batches, alone, way, accumulate):
    assert parallel.shardings(16)[1].mesh.size == 8
    machine = MachineConfig(parallel=way, accumulate=accumulate)
    found, params = learnt(dataclasses.replace(BASE, machine=machine), batches)
    np.testing.assert_allclose(found, alone[0], rtol=5e-5)
    chex.assert_trees_all_close(params, alone[1], atol=2e-4)


def test_bfloat16_trains_as_float32_does(batches, alone):
    """Computed in bfloat16, kept in float32: the losses follow those of float32, and are not the same ones."""
    model = dataclasses.replace(BASE.model, dtype="bfloat16")
    found, params = learnt(dataclasses.replace(BASE, model=model), batches, one=True)
    assert found.dtype == np.float32 and {x.dtype for x in jax.tree.leaves(params)} == {np.dtype("float32")}
    np.testing.assert_allclose(found, alone[0], rtol=0.05)
    assert not np.allclose(found, alone[0], rtol=1e-4)


def test_what_does_not_divide_or_fit_is_told_with_what_to_change(monkeypatch):
    for size, machine, words in [
        (16, {"accumulate": 4}, r"machine\.accumulate 4 leaves parts of 4 images.* 8 devices"),
        (12, {}, r"data\.batch_size 12 does not divide over 8 devices"),
    ]:
        with pytest.raises(ValueError, match=words):
            parallel.compiled(partial(make_train_step, BASE), size, MachineConfig(**machine))
    step = Mock()
    step.lower().compile().side_effect = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
    monkeypatch.setattr(parallel, "jitted", lambda *_: step)
    monkeypatch.setattr(parallel, "check_memory", Mock())
    with pytest.raises(MemoryError, match=r"does not fit.*raise --machine.accumulate.*data.batch_size 64"):
        parallel.compiled(lambda axis: None, 64, MachineConfig())({}, {})


def test_a_step_that_needs_more_than_a_device_has_is_told_before_it_runs(monkeypatch):
    program = jax.jit(lambda x: (x @ x).sum()).lower(jax.numpy.zeros((512, 512))).compile()  # takes a MiB
    device = Mock()
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    for stats in (None, {}, {"bytes_limit": 10**9}):  # a backend need not tell
        device.memory_stats.return_value = stats
        parallel.check_memory(program, "")
    device.memory_stats.return_value = {"bytes_limit": 10**6}
    with pytest.raises(MemoryError, match=r"a step needs .* GiB of each device.*lower it"):
        parallel.check_memory(program, "lower it")


def test_what_is_spread_comes_back():
    replicated, split = parallel.shardings(16)
    batch = {"index": np.arange(16, dtype=np.int32)}
    np.testing.assert_array_equal(parallel.fetch(parallel.to_devices(batch, split))["index"], batch["index"])
    state = {"x": np.ones((2, 3)), "key": jax.random.key(3)}
    again = parallel.unstack(parallel.stack(state), replicated)
    np.testing.assert_array_equal(again["x"], state["x"])
    np.testing.assert_array_equal(*(jax.random.key_data(tree["key"]) for tree in (state, again)))
    assert again["x"].sharding == replicated


def test_devices_are_in_the_order_of_their_processes(monkeypatch):
    """As a batch's parts are, whatever order the devices are told in (that of a TPU slice is its network's)."""
    chip = namedtuple("chip", "process_index id")
    told = [chip(0, 0), chip(1, 4), chip(0, 1), chip(1, 2), chip(2, 3)]
    assert [device.process_index for device in parallel.ordered(told)] == [0, 0, 1, 1, 2]
    devices = jax.devices()[::-1]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    assert [device.id for device in parallel.shardings(8)[1].mesh.devices] == list(range(8))


@pytest.mark.parametrize("hosts", ["a:1,2", "node0,2,1", "a:1,2,2", "Auto"])
def test_hosts_that_are_not_whole_are_refused(monkeypatch, hosts):
    monkeypatch.setattr(jax.distributed, "initialize", Mock(side_effect=AssertionError("joined")))
    with pytest.raises(ValueError, match=rf"hosts: expected HOST:PORT,PROCESSES,THIS .*, found '{hosts}'$"):
        parallel.start(hosts)


@pytest.mark.parametrize(
    ("hosts", "joined"),
    [("node0:1,2,1", ("node0:1", 2, 1)), ("[::1]:12,16,0", ("[::1]:12", 16, 0)), ("auto", ()), ("", None)],
)
def test_processes_are_found_by_name_or_by_the_scheduler(monkeypatch, hosts, joined):
    monkeypatch.setattr(jax.distributed, "initialize", initialize := Mock())
    parallel.start(hosts)
    assert [call.args for call in initialize.call_args_list] == ([] if joined is None else [joined])


def test_xla_flags_win_over_the_steps_own_option(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=individual_dot")
    assert cpu.step_options.__wrapped__() is None
