"""Devices and processes: how they find each other, what lies where, and what all must agree on.

One mesh over every device of every process; parameters are replicated, batches are split over it. A process is a host
of a TPU pod, or one started by hand with `--hosts`. With one process all of this is local and costs nothing.
"""

import contextlib
import ctypes
import functools
import itertools
import os
import signal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import multihost

from infomask_jax.config import HostsConfig

AXIS = "batch"  # the mesh's one axis
MALLOPT = {"M_ARENA_MAX": (-8, 1), "M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, 2**31 - 1)}  # of glibc's malloc.h
_barriers = itertools.count()  # a name of the coordinator's barriers cannot be used twice


def start(hosts: HostsConfig) -> None:
    """`set_up`, and join the other processes, if there are any. Call before anything of JAX.

    ValueError if only some of the options that name the processes are given.
    """
    _settings()
    named = hosts.processes > 0, hosts.process >= 0, hosts.coordinator not in ("", "auto")
    address = hosts.coordinator in ("", "auto") or hosts.coordinator.rpartition(":")[2].isdigit()
    if (any(named) and not all(named)) or not address:
        raise ValueError(
            "several processes: expected --hosts.coordinator HOST:PORT, --hosts.processes N and --hosts.process I, "
            f"found {hosts.coordinator!r}, {hosts.processes}, {hosts.process}. `--hosts.coordinator auto` asks the "
            "cluster's scheduler and needs no others."
        )
    before = signal.getsignal(signal.SIGTERM)
    if not jax.distributed.is_initialized():
        if all(named):
            jax.distributed.initialize(hosts.coordinator, hosts.processes, hosts.process)
        elif hosts.coordinator == "auto" or _on_tpu_host():
            jax.distributed.initialize()
        if callable(before):  # JAX has taken SIGTERM, notes it and goes on
            signal.signal(signal.SIGTERM, before)
    _check_platforms()


def set_up() -> None:
    """What `start` does for one process. Call before anything of JAX."""
    _settings()
    _check_platforms()


def _settings() -> None:
    """Keep compiled programs in ~/.cache/infomask_jax, or where JAX_COMPILATION_CACHE_DIR says, or, without a home that
    can be written, nowhere; without an accelerator keep also the memory that is freed (see `_keep_memory`)."""
    if not accelerated():
        _keep_memory()
    if jax.config.jax_compilation_cache_dir:
        return
    cache = Path(os.path.expanduser("~/.cache/infomask_jax"))
    with contextlib.suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
    if cache.is_absolute() and os.access(cache, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(cache))


def _check_platforms() -> None:
    """ValueError if JAX_PLATFORMS names what JAX does not find on this machine."""
    try:
        if jax.config.jax_platforms not in (None, "", "cpu"):  # else JAX takes what there is
            jax.devices()
    except (RuntimeError, AssertionError) as error:
        found = f" ({str(error).splitlines()[0].split(' (set ')[0]})" if str(error) else ""
        raise ValueError(
            f"JAX_PLATFORMS={jax.config.jax_platforms} names no device that JAX finds here{found}. Leave it "
            "out, or set it to cpu."
        ) from error


def accelerated() -> bool:
    """Whether JAX is installed for an accelerator and not told to leave it; asks without starting it."""
    return os.environ.get("JAX_PLATFORMS") != "cpu" and any(find_spec(name) for name in ("libtpu", "jax_plugins"))


@functools.cache
def step_options() -> dict[str, str] | None:
    """Compiler options of the training step: on CPU convolutions by Eigen, elsewhere or without such an option none.

    Those of YNNPACK, which XLA prefers, take several times as long over weight gradients (benchmarks/README.md). Who
    names that option in XLA_FLAGS keeps what it says there.
    """
    options = {"xla_cpu_experimental_ynn_fusion_type": ""}  # it is left nothing
    if jax.default_backend() != "cpu" or next(iter(options)) in os.environ.get("XLA_FLAGS", ""):
        return None
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:  # XLA's experiments come and go
        return None
    return options


def _keep_memory() -> None:
    """One arena for all threads, which gives nothing back: where the C library is glibc, and before JAX has threads.

    XLA's CPU backend allocates and frees its buffers in every step; fetching their pages anew from the system took a
    quarter of a step. Beside an accelerator nothing is gained, and many loader threads would wait for the one arena.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        for option, value in MALLOPT.values():
            libc.mallopt(option, value)


def _on_tpu_host() -> bool:
    """Whether this is a host of a TPU slice, be it the only one: chips are at accelI up to v4, at vfio/I from v5 on."""
    wanted = os.environ.get("JAX_PLATFORMS", "tpu").split(",")
    names = [name for name in os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if name]
    several = len(names) > 1 or "MEGASCALE_COORDINATOR_ADDRESS" in os.environ
    chips = Path("/dev/accel0").exists() or Path("/dev/vfio/0").exists()
    return "tpu" in wanted and find_spec("libtpu") is not None and (several or chips)


def is_main() -> bool:
    """Whether this process writes what is written once: tables, logs, figures."""
    return jax.process_index() == 0


def ordered(devices: list[jax.Device]) -> list[jax.Device]:
    """By process, so that what lies on the devices is in the order of the processes' consecutive parts of a batch.

    `jax.make_mesh` takes a TPU slice's devices by their place in the network, host after host only by chance.
    """
    return sorted(devices, key=lambda device: (device.process_index, device.id))


def shardings(batch_size: int) -> tuple[NamedSharding, NamedSharding]:
    """(replicated, split over the batch) on a mesh of all devices. ValueError if the batch does not divide."""
    devices = jax.device_count()
    if batch_size % devices:
        raise ValueError(f"data.batch_size {batch_size} does not divide over {devices} devices: use a multiple of it")
    mesh = Mesh(ordered(jax.devices()), (AXIS,), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))


def optimizer_sharding(leaf: jax.Array, replicated: NamedSharding) -> NamedSharding:
    """Split over its first axis that divides over the devices; replicated if none does (ZeRO stage 1: Rajbhandari et
    al. 2020)."""
    devices = replicated.mesh.size
    for axis, size in enumerate(leaf.shape):
        if size and size % devices == 0:
            return NamedSharding(replicated.mesh, PartitionSpec(*[None] * axis, AXIS))
    return replicated


def place(tree: Any, layout: Any) -> Any:
    """Arrays that every process has whole -> global arrays with the shardings of `layout`, a tree or one for all."""

    def put(x, sharding):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):  # device_put does not take these to other processes
            return jax.random.wrap_key_data(put(jax.random.key_data(x), sharding))
        return jax.device_put(np.asarray(x), sharding)

    layouts = jax.tree.map(lambda _: layout, tree) if isinstance(layout, NamedSharding) else layout
    return jax.tree.map(put, tree, layouts)


def to_devices(batch: dict[str, np.ndarray], split: NamedSharding) -> dict[str, jax.Array]:
    """This process's consecutive part of a batch -> global arrays."""
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
    """Return when every process is here; by default after at most ten minutes, through the coordinator (the devices'
    own collectives on CPU wait no longer than 30 seconds for a process that is late)."""
    if jax.process_count() > 1:
        everyone = set(range(jax.process_count()))
        multihost.sync_global_processes(f"{name} {next(_barriers)}", timeout=seconds, processes=everyone)


@contextlib.contextmanager
def main_alone(name: str):
    """The main process goes through the block, yielded True; the others, yielded False, wait for it at its end, be that
    an error or a day away (a process that has ended would take it down within minutes)."""
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

    def copies(x):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(copies(jax.random.key_data(x)))
        return np.broadcast_to(np.asarray(x), (len(devices), *x.shape))

    stacked = jax.tree.map(copies, tree)
    return place(stacked, NamedSharding(mesh, PartitionSpec(AXIS)))


def unstack(tree: Any, replicated: NamedSharding) -> Any:
    """For pmap: [D, ...] whose copies are equal -> the array, replicated over the devices of all processes."""
    return place(jax.tree.map(lambda x: x.addressable_shards[0].data.reshape(x.shape[1:]), tree), replicated)
