"""Who owns a work directory: its config.json and manifest.json, and the refusal to mix two runs in one folder."""

import contextlib
import json
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import jax

from infomask_jax import __version__, parallel
from infomask_jax.config import FREE, Config
from infomask_jax.datasets import Prepared
from infomask_jax.system import cores, lock, read_json, write_all
from infomask_jax.text import printable

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "tensorflow-datasets")
SHAPE = {  # of manifest.json, for `read_json`
    **{"seed": int, "dataset": {"name": str, "fingerprint": str, "findings": [str]}, "stored_size?": int},
    **{"git_revision": str | None, "libraries": {"jax": str, str: str}, "devices": [str]},
    **{"continued?": [{"step": int}], "weights?": {"file": str, "sha256": str}},
}


def claim(config: Config, data: Prepared, weights: dict | None = None) -> IO | contextlib.nullcontext:
    """Write config.json and manifest.json, or check them against what is there. weights: those that were read, see
    weights.py.

    The work directory is ours until what is returned is closed, by `with`; of several processes the main one has it.
    Until a step is saved, manifest.json tells of the process that claims last. BlockingIOError if another process has
    it; ValueError listing every difference if it was made with another config or other data, or if its path cannot hold
    checkpoints.
    """
    workdir = Path(config.workdir)
    if magic := sorted({*"*?["} & {*str(workdir.absolute())}):
        raise ValueError(
            f"{workdir.absolute()}: checkpoints cannot be written below a folder with {' '.join(magic)} in its name, "
            "which orbax takes for a pattern: give another --workdir"
        )
    if not parallel.is_main():
        _write_or_check(workdir, config, data, weights)
        return contextlib.nullcontext()
    claimed = lock(workdir, "another process trains here; wait for it, or give another --workdir")
    try:
        _write_or_check(workdir, config, data, weights)
    except BaseException:
        claimed.close()
        raise
    return claimed


def _write_or_check(workdir: Path, config: Config, data: Prepared, weights: dict | None) -> None:
    new = {"config": config.to_dict(), "dataset": _dataset(data)}
    manifest = {"seed": config.seed, "dataset": new["dataset"], "stored_size": data.size, **environment()}
    manifest |= {"weights": weights} if weights else {}
    config_path, manifest_path = workdir / "config.json", workdir / "manifest.json"
    if config_path.exists() and manifest_path.exists():
        old = {"config": Config.load(workdir).to_dict(), "dataset": read(workdir)["dataset"]}
        for key in FREE:
            old["config"][key] = new["config"][key]
        if old["config"]["model"]["init"] and new["config"]["model"]["init"] and saved(workdir):
            old["config"]["model"]["init"] = new["config"]["model"]["init"]  # its checkpoints have the weights
        if lines := differences(old, new):
            raise ValueError(
                f"{workdir} belongs to another run:\n  "
                + "\n  ".join(lines)
                + "\nGive another --workdir, or the old settings."
            )
        if parallel.is_main():
            if not saved(workdir):
                write_json(manifest_path, manifest)
            write_json(config_path, new["config"])
        return
    if (workdir / "checkpoints").exists():
        raise ValueError(f"{workdir} holds checkpoints but no config.json and manifest.json: give another --workdir.")
    # config.json last: a work directory counts as claimed only when both are there.
    write_json(manifest_path, manifest)
    write_json(config_path, new["config"])


def read(workdir: Path) -> dict:
    """The manifest of a run. ValueError naming the field that is missing or of another kind."""
    path = Path(workdir) / "manifest.json"
    found = read_json(path, SHAPE, "take it from a copy of the run, or train again in another --workdir")
    if odd := [name for name in found["dataset"]["findings"] if not printable(name)]:
        raise ValueError(f"{path}: dataset.findings: expected printable names, found {odd[0]!r}")
    if not found["dataset"]["findings"] or found.get("stored_size", 1) < 1:
        raise ValueError(f"{path}: expected a name or more in dataset.findings and a stored_size from 1 on")
    return found


def environment() -> dict:
    """Everything outside config and data that can change the last bits of a run."""
    return {
        "version": __version__,
        "git_revision": _git_revision(),
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in LIBRARIES},
        "devices": [device.device_kind for device in jax.devices()],
        "processes": jax.process_count(),
        "cores": cores(),
    }


def changes(workdir: Path) -> list[str]:
    """What of `environment` is not as it was when the run began or was gone on with, one line each."""
    now, found = environment(), []
    for then in _sittings(workdir):
        found += differences({key: then.get(key) for key in now}, now)
    return list(dict.fromkeys(found))


def going_on(workdir: Path, step: int) -> list[str]:
    """`changes`; if the environment is another than that of the last sitting, manifest.json gets it under `continued`,
    with the step from which on it made the run."""
    lines, now = changes(workdir), environment()
    first, *others = _sittings(workdir)
    if parallel.is_main() and any([first, *others][-1].get(key) != value for key, value in now.items()):
        write_json(Path(workdir) / "manifest.json", {**first, "continued": [*others, {"step": step, **now}]})
    return lines


def _sittings(workdir: Path) -> list[dict]:
    # The manifest, with the environment in which the run began, and each other one in which it was gone on with.
    manifest = read(workdir)
    return [manifest, *manifest.get("continued", [])]


def saved(workdir: Path) -> bool:
    """Whether a step of a run has been saved."""
    return any(path.name.isdigit() for path in (Path(workdir) / "checkpoints").glob("*"))


def _dataset(data: Prepared) -> dict:
    return {"name": data.name, "fingerprint": data.fingerprint, "findings": list(data.findings)}


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Lines "field: old -> new" for every leaf that differs between two nested dicts."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        a, b, name = old.get(key), new.get(key), f"{prefix}{key}"
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{name}.")
        elif a != b:
            lines.append(f"{name}: {a!r} -> {b!r}")
    return lines


def write_json(path: Path, value) -> None:
    """Readers see the old file or the new one, never a half."""
    write_all({path: json.dumps(value, indent=1, allow_nan=False) + "\n"})


def _git_revision() -> str | None:
    """Revision of the source tree this package runs from; None outside a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
