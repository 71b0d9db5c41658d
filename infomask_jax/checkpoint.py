"""Checkpoints of a run: train state and position in the data together. The only file that knows orbax."""

import contextlib
import functools
import hashlib
import logging
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from infomask_jax import parallel
from infomask_jax.pipeline import TrainBatches
from infomask_jax.text import line

SUMS = "SHA256SUMS"  # in each checkpoint; `sha256sum -c` reads it


def manager(workdir: Path) -> ocp.CheckpointManager:
    """Checkpoints live in workdir/checkpoints/STEP; a write becomes visible only when it is complete."""
    directory = _directory(workdir)
    _tell_failures_once()
    # In the main process, when all files are written and just before their folder gets its name.
    last = ocp.AsyncOptions(post_finalization_callback=partial(_write_sums, directory))
    options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True, async_options=last)
    return ocp.CheckpointManager(directory, options=options, item_handlers=_handlers())


@functools.cache
def _tell_failures_once() -> None:
    """`_writing` tells of a write that fails; threads of orbax would print dozens of tracebacks around it."""

    def news(record: logging.LogRecord) -> bool:
        trace = record.exc_info[2] if record.exc_info else None
        return not any("orbax" in Path(frame.filename).parts for frame in traceback.extract_tb(trace))

    def hook(found, before=sys.unraisablehook):
        if (found.exc_type, str(found.exc_value)) != (RuntimeError, "Event loop is closed"):
            before(found)

    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(news)
    sys.unraisablehook = hook


def _handlers() -> dict[str, Any]:
    """Of the two items of a checkpoint. The devices of a single process do not share the writing of an array, orbax's
    default: it is many small programs, compiled at the first save, for the same disk."""
    options = {}
    if jax.process_count() == 1:
        options["type_handler_registry"] = ocp.type_handlers.create_type_handler_registry(
            (jax.Array, ocp.type_handlers.ArrayHandler(use_replica_parallel=False)),
            (np.ndarray, ocp.type_handlers.NumpyHandler()),  # as which load_params reads
        )
    return {"state": ocp.PyTreeCheckpointHandler(**options), "data": ocp.JsonCheckpointHandler()}


def save(checkpoints: ocp.CheckpointManager, step: int, state: Any, batches: TrainBatches) -> None:
    """Write both under `step`, in the background; `wait` waits for the disk. OSError if this write, or the one before,
    fails: what was complete stays."""
    at = ocp.args.JsonSave({"batches": batches.taken})
    with _writing(checkpoints):
        checkpoints.save(step, args=ocp.args.Composite(state=ocp.args.PyTreeSave(storable(state)), data=at), force=True)


def wait(checkpoints: ocp.CheckpointManager) -> None:
    """Return when everything is on disk; OSError if it cannot be."""
    with _writing(checkpoints):
        checkpoints.wait_until_finished()


@contextlib.contextmanager
def _writing(checkpoints: ocp.CheckpointManager):
    try:
        yield
    except Exception as error:  # tensorstore tells of a full disk in a ValueError
        told = f"a checkpoint could not be written to {checkpoints.directory}: {_said(error)}"
        advice = "Complete ones are kept; make room, or make it writable, and run the same command again."
        raise OSError(f"{told}. {advice}") from error


def _write_sums(directory: Path) -> None:
    newest = max(directory.glob("*.orbax-checkpoint-tmp*"), key=lambda path: path.stat().st_mtime_ns)
    (newest / SUMS).write_text(_sums(newest))


def _sums(folder: Path) -> str:
    """SHA-256 of every file of both items of a checkpoint, as `sha256sum` writes it."""
    files = sorted(path for item in _handlers() for path in (folder / item).rglob("[!.]*") if path.is_file())
    return "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}\n" for path in files)


def _check_sums(folder: Path) -> None:
    """ValueError if a file of a checkpoint is not as it was written; one without sums, of an older revision, passes."""
    if not (folder / SUMS).exists():
        return
    then, now = (folder / SUMS).read_bytes().splitlines(), _sums(folder).encode().splitlines()
    if then != now:
        names = sorted({line.decode(errors="replace").split("  ", 1)[-1] for line in {*then} ^ {*now}})
        raise ValueError(f"{', '.join(names)}: not as written, says {SUMS}")


def _check_finite(stored: dict[str, Any]) -> None:
    """ValueError naming the first array of a stored state, replicated or on the host, that is not finite."""
    for name, array in jax.tree_util.tree_leaves_with_path(stored):
        if not np.isfinite(np.asarray(array)).all():
            raise ValueError(f"{jax.tree_util.keystr(name, simple=True, separator='/')} is not finite")


def restore_newest(checkpoints: ocp.CheckpointManager, state: Any, batches: TrainBatches) -> tuple[Any, int, list[str]]:
    """The newest checkpoint that can be read, with the shardings of `state`; `batches` is wound to where it stood.

    Returns the state, its step (0 and the given state without a checkpoint) and a message for every newer one that some
    process could not read, renamed to broken-STEP beside checkpoints/. OSError if there are some and none can be read.
    """
    messages, directory = [], Path(checkpoints.directory)
    for step in sorted(checkpoints.all_steps(), reverse=True):
        folder = directory / str(step)
        # First what each process reads for itself: within orbax the others would wait for one whose file is bad.
        restored, problem = _on_all(partial(_check_sums, folder))
        if not problem:
            restored, problem = _on_all(partial(restore, checkpoints, step, state, batches))
        if not problem:
            return restored, step, messages
        aside = directory.with_name(f"broken-{step}")
        while aside.exists():
            aside = aside.with_name(f"{aside.name}-again")
        messages.append(f"checkpoint {folder} cannot be read ({problem}); moved to {aside}")
        parallel.wait_for_all(f"broken {step}")
        if parallel.is_main():
            folder.rename(aside)
        parallel.wait_for_all(f"moved {step}")
        checkpoints.reload()
    if messages:
        raise OSError("\n".join([*messages, f"No checkpoint of {directory.parent} is left: train it anew."]))
    return state, 0, messages


def restore(checkpoints: ocp.CheckpointManager, step: int, state: Any, batches: TrainBatches) -> Any:
    """The state saved under `step`, with the shardings of `state`; `batches` is wound to where it stood."""
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), storable(state))
    wanted = ocp.args.PyTreeRestore(abstract, ocp.checkpoint_utils.construct_restore_args(abstract))
    found = checkpoints.restore(step, args=ocp.args.Composite(state=wanted, data=ocp.args.JsonRestore()))
    _check_finite(found["state"])
    if found["data"] != {"batches": step}:  # there is one batch a step
        raise ValueError(f"data stands at {found['data']}, not at batch {step}")
    batches.wind(step)
    return from_storable(state, found["state"])


def _on_all(attempt: Callable[[], Any]) -> tuple[Any, str]:
    """(what `attempt` returns, ""), or, where it fails on any process, on all of them (None, why)."""
    done, problem = None, ""
    try:
        done = attempt()
    except Exception as error:  # orbax, tensorstore and zarr each raise kinds of their own
        problem = _said(error)
    parallel.wait_for_all("attempted")
    return (None, problem or "by another process") if parallel.anywhere(bool(problem)) else (done, "")


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {line(error)}" if str(error) else type(error).__name__


def load_params(workdir: Path) -> tuple[Any, int]:
    """Parameters of the newest checkpoint, as host arrays, and its step. FileNotFoundError where there is none,
    OSError where it cannot be read."""
    directory = _directory(workdir)
    if (Path(workdir) / "fold-0").exists():
        raise FileNotFoundError(f"{workdir} is a folder of runs, one a fold: give one of them, {workdir}/fold-0")
    step = max((int(path.name) for path in directory.glob("*") if path.name.isdigit()), default=None)
    if step is None:
        raise FileNotFoundError(f"{workdir} holds no checkpoint: train it first, or give another run.")
    with ocp.CheckpointManager(directory, item_handlers=_handlers()) as checkpoints:
        try:
            _check_sums(directory / str(step))
            tree = checkpoints.item_metadata(step)["state"].tree
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)  # of any devices
            wanted = ocp.args.PyTreeRestore(restore_args=as_numpy)
            stored = checkpoints.restore(step, args=ocp.args.Composite(state=wanted))["state"]
            _check_finite(stored)
            return stored["params"], step
        except Exception as error:  # orbax, tensorstore and zarr each raise kinds of their own; all are told
            told = f"checkpoint {directory / str(step)} cannot be read ({_said(error)})"
            advice = "the command that trained the run sets it aside and goes on from the one before"
            raise OSError(f"{told}: {advice}") from error


def _directory(workdir: Path) -> Path:
    return Path(workdir).absolute() / "checkpoints"


def from_storable(state: Any, stored: dict[str, Any]) -> Any:
    """`state` with the arrays of `storable`."""
    return state.replace(**stored | {"key": jax.random.wrap_key_data(stored["key"])})


def storable(state: Any) -> dict[str, Any]:
    """The array part of a TrainState; a typed key is stored as its raw data."""
    stored = {name: getattr(state, name) for name in ("step", "params", "opt_state")}
    stored["key"] = jax.random.key_data(state.key)
    return stored if state.constraint is None else stored | {"constraint": state.constraint}
