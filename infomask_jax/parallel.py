"""Devices and processes: how they find each other, what lies where, and what all must agree on.

One mesh over every device of every process (docs/running.md); parameters are replicated, batches split over it."""

import contextlib
import itertools
import os
import re
import signal
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import multihost

from infomask_jax import cpu
from infomask_jax.config import MachineConfig

AXIS = "batch"  # the mesh's one axis
_barriers = itertools.count()  # a name of the coordinator's barriers cannot be used twice


def start(hosts: str) -> None:
    """Join the other processes, if there are any, and `set_up`. Call before anything of JAX.

    hosts: "HOST:PORT,PROCESSES,THIS" of processes started by hand, PORT of process 0; "auto" asks the scheduler (SLURM,
    Open MPI, Kubernetes); "": one process, or all hosts of a TPU pod. ValueError for others."""
    named = re.fullmatch(r"([^,]*:\d+),(\d+),(\d+)", hosts)
    if hosts not in ("", "auto") and (not named or int(named[3]) >= int(named[2])):
        expected = "HOST:PORT,PROCESSES,THIS with THIS from 0 on, or auto"
        raise ValueError(f"machine.hosts: expected {expected}, found {hosts!r}")
    before = signal.getsignal(signal.SIGTERM)
    if not jax.distributed.is_initialized():
        if named:
            jax.distributed.initialize(named[1], int(named[2]), int(named[3]))
        elif hosts == "auto" or _on_tpu_host():
            jax.distributed.initialize()
        if callable(before):  # JAX has taken SIGTERM, notes it and goes on
            signal.signal(signal.SIGTERM, before)
    set_up()


def set_up() -> None:
    """What `start` does for one process: keep compiled programs where JAX_COMPILATION_CACHE_DIR says, or in
    ~/.cache/infomask_jax, if it can be written. ValueError if JAX_PLATFORMS names what JAX does not find here."""
    if not jax.config.jax_compilation_cache_dir:
        cache = Path(os.path.expanduser("~/.cache/infomask_jax"))
        with contextlib.suppress(OSError):
            cache.mkdir(parents=True, exist_ok=True)
        if cache.is_absolute() and os.access(cache, os.W_OK):
            jax.config.update("jax_compilation_cache_dir", str(cache))
    try:
        if jax.config.jax_platforms not in (None, "", "cpu"):  # else JAX takes what there is
            jax.devices()
    except (RuntimeError, AssertionError) as error:
        found = f" ({str(error).splitlines()[0].split(' (set ')[0]})" if str(error) else ""
        named = f"JAX_PLATFORMS={jax.config.jax_platforms} names no device that JAX finds here{found}"
        raise ValueError(f"{named}. Leave it out, or set it to cpu.") from error


def _on_tpu_host() -> bool:
    """Whether this is a host of a TPU slice: chips are at accelI up to v4, at vfio/I from v5 on."""
    wanted = os.environ.get("JAX_PLATFORMS", "tpu").split(",")
    names = [name for name in os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if name]
    several = len(names) > 1 or "MEGASCALE_COORDINATOR_ADDRESS" in os.environ
    chips = Path("/dev/accel0").exists() or Path("/dev/vfio/0").exists()
    return "tpu" in wanted and find_spec("libtpu") is not None and (several or chips)


def part() -> tuple[int, int]:
    """Which process this is, and of how many."""
    return jax.process_index(), jax.process_count()


def is_main() -> bool:
    """Whether this process writes what is written once: tables, logs, figures."""
    return jax.process_index() == 0


def ordered(devices: list[jax.Device]) -> list[jax.Device]:
    """By process, as the parts of a batch are; `jax.make_mesh` goes by a TPU slice's network, by process only by
    chance."""
    return sorted(devices, key=lambda device: (device.process_index, device.id))


def shardings(batch_size: int) -> tuple[NamedSharding, NamedSharding]:
    """(replicated, split over the batch) on a mesh of all devices. ValueError if the batch does not divide."""
    devices = jax.device_count()
    if batch_size % devices:
        raise ValueError(f"data.batch_size {batch_size} does not divide over {devices} devices: use a multiple of it")
    mesh = Mesh(ordered(jax.devices()), (AXIS,), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))


def compiled(make_step: Callable[[str | None], Callable], batch_size: int, machine: MachineConfig) -> Callable:
    """The step over all devices: step(state, batch) -> (state, metrics). It consumes its state.

    make_step: name of pmap's axis, None under jit -> the pure step. With pmap the state has one copy a device, see
    `stack`. ValueError if a part of a batch does not divide over the devices, MemoryError if a step does not fit."""
    replicated, _ = shardings(batch_size)
    part, devices = batch_size // machine.accumulate, jax.device_count()
    if part % devices:
        leaves = f"machine.accumulate {machine.accumulate} leaves parts of {part} images, which do not divide over"
        raise ValueError(f"{leaves} {devices} devices: use a smaller one, or a larger data.batch_size")
    if machine.parallel == "jit":
        advice = "raise --machine.accumulate, or in another --workdir lower --data.batch-size (found data.batch_size "
        advice += f"{batch_size}, machine.accumulate {machine.accumulate})"
        return _compiled_everywhere(jitted(make_step(None), replicated), advice)
    mapped = jax.pmap(make_step(AXIS), AXIS, donate_argnums=0, devices=ordered(jax.devices()))

    def step(state, batch):
        local = jax.local_device_count()
        state, metrics = mapped(state, jax.tree.map(lambda x: x.reshape(local, -1, *x.shape[1:]), batch))
        return state, jax.tree.map(lambda x: x.addressable_shards[0].data, metrics)  # all devices have the same

    return step


def jitted(step: Callable, replicated: NamedSharding) -> Any:
    """The step under jit. It consumes its state."""
    return jax.jit(step, donate_argnums=0, out_shardings=replicated, compiler_options=cpu.step_options())


def _compiled_everywhere(step_fn: Any, advice: str) -> Callable:
    """The step, whose first call waits until every process has compiled: one may take much longer than another."""
    programs = []

    def step(state, batch):
        try:
            if not programs:
                programs.append(step_fn.lower(state, batch).compile())
                check_memory(programs[0], advice)
                wait_for_all("compiled")
            return programs[0](state, batch)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise MemoryError(f"a step does not fit into the memory of a device; {advice}") from error

    return step


def check_memory(program: jax.stages.Compiled, advice: str) -> None:
    """MemoryError if a step needs more memory than a device has; nothing where the backend does not tell (CPU)."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    sizes = program.memory_analysis() if limit else None
    if sizes is None:
        return
    needed = sizes.argument_size_in_bytes + sizes.temp_size_in_bytes
    needed += sizes.output_size_in_bytes - sizes.alias_size_in_bytes  # the new state takes the place of the old one
    if needed > limit:
        has = f"a step needs {needed / 2**30:.1f} GiB of each device, which has {limit / 2**30:.1f}"
        raise MemoryError(f"{has}; {advice}")


def accumulate(gradient: Callable[[Any], Any], batch: Any, parts: int) -> Any:
    """Mean of gradient(part) over the parts of a batch, one after the other. A part has every parts-th image, not
    consecutive ones: each device finds its share of every part at home."""
    if parts == 1:
        return gradient(batch)
    batches = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)
    shapes = jax.eval_shape(gradient, jax.tree.map(lambda x: x[0], batches))
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    add = partial(jax.tree.map, jnp.add)
    total, _ = jax.lax.scan(lambda total, part: (add(total, gradient(part)), None), zero, batches)
    return jax.tree.map(lambda x: x / parts, total)


def place(tree: Any, sharding: NamedSharding, copies: tuple[int, ...] = ()) -> Any:
    """Arrays that every process has whole -> global arrays with this sharding; copies: (D,) stacks D of each."""

    def placed(x):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):  # numpy has no keys
            return jax.random.wrap_key_data(placed(jax.random.key_data(x)))
        x = np.asarray(x)
        return jax.device_put(np.broadcast_to(x, (*copies, *x.shape)) if copies else x, sharding)

    return jax.tree.map(placed, tree)


def to_devices(batch: dict[str, np.ndarray], split: NamedSharding) -> dict[str, jax.Array]:
    """This process's part of a batch -> global arrays."""
    return {key: jax.make_array_from_process_local_data(split, value) for key, value in batch.items()}


def fetch(tree: Any) -> Any:
    """Global arrays, split or replicated -> whole numpy arrays, on every process."""
    if jax.process_count() > 1:
        return multihost_utils.process_allgather(tree, tiled=True)
    return jax.device_get(tree)


def anywhere(flag: bool) -> bool:
    """Whether the flag is set on any process. Every process has to ask at the same place."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def wait_for_all(name: str, seconds: int = 600) -> None:
    """Return when every process is here, through the coordinator: collectives of CPUs wait 30 seconds at most."""
    if jax.process_count() > 1:
        everyone = set(range(jax.process_count()))
        multihost.sync_global_processes(f"{name} {next(_barriers)}", timeout=seconds, processes=everyone)


@contextlib.contextmanager
def main_alone(name: str):
    """The main process goes through the block, yielded True; the others, yielded False, wait for its end, be that an
    error or a day away: one that ended earlier would take it down within minutes."""
    try:
        yield is_main()
    finally:
        wait_for_all(name, seconds=24 * 3600)


@contextlib.contextmanager
def main_first(name: str):
    """The main process goes through the block before the others begin it, who go through it even where it failed."""
    if not is_main():
        wait_for_all(name)
    try:
        yield
    finally:
        if is_main():
            wait_for_all(name)


def stack(tree: Any) -> Any:
    """For pmap: replicated arrays -> one copy for each device of this process, [D, ...]."""
    devices = ordered(jax.local_devices())
    mesh = Mesh(devices, (AXIS,), axis_types=(AxisType.Auto,))
    return place(tree, NamedSharding(mesh, PartitionSpec(AXIS)), (len(devices),))


def unstack(tree: Any, replicated: NamedSharding) -> Any:
    """For pmap: [D, ...] whose copies are equal -> the array, replicated over the devices of all processes."""
    return place(jax.tree.map(lambda x: x.addressable_shards[0].data.reshape(x.shape[1:]), tree), replicated)
