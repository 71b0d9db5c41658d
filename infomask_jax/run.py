"""A run on disk: what its folder holds, who may write into it, and in which environment it was made."""

import contextlib
import platform
import subprocess
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Self

import jax

from infomask_jax import __version__, checkpoint, familiar, parallel
from infomask_jax.config import FREE, Config
from infomask_jax.datasets import Prepared
from infomask_jax.presets import changed
from infomask_jax.system import cores, lock, processor, read_json, write_json
from infomask_jax.text import printable

BASELINE = "plain"  # sub-folder of a run that holds its plain classifier
BEST = "best"  # that of the step with the least NLL on validation, as a run of its own
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "tensorflow-datasets")
SHAPE = {  # of manifest.json, for `read_json`
    **{"seed": int, "dataset": {"name": str, "fingerprint": str, "findings": [str]}, "stored_size?": int},
    **{"git_revision": str | None, "libraries": {"jax": str, str: str}, "devices": [str]},
    **{"continued?": [{"step": int}], "weights?": {"file": str, "sha256": str}},
    **{"best_step?": int, "training_films?": int, "films?": familiar.FACTS},
}


@dataclass(frozen=True)
class Run:
    """A work directory that a training has claimed. Runs of all folds are a folder of runs, see `folds`."""

    folder: Path
    config: Config
    manifest: dict[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """FileNotFoundError where there is no run; ValueError naming file and field for what is not as it was."""
        folder = Path(folder)
        config, path = Config.load(folder), folder / "manifest.json"
        found = read_json(path, SHAPE, "take it from a copy of the run, or train again in another --workdir")
        if odd := [name for name in found["dataset"]["findings"] if not printable(name)]:
            raise ValueError(f"{path}: dataset.findings: expected printable names, found {odd[0]!r}")
        if not found["dataset"]["findings"] or found.get("stored_size", 1) < 1:
            raise ValueError(f"{path}: expected a name or more in dataset.findings and a stored_size from 1 on")
        return cls(folder, config, found)

    @property
    def findings(self) -> list[str]:
        return self.manifest["dataset"]["findings"]

    @property
    def about(self) -> str:
        """What it was trained on, in one line."""
        config, name = self.config, self.manifest["dataset"]["name"]
        films = f"{name}{' (drawn phantoms, no X-rays)' if name == 'synthetic' else ''}"
        return (
            f"trained on {films}, to find {', '.join(self.findings)}: {self.steps} steps of "
            f"{config.data.batch_size} films, {config.data.image_size} px"
        )

    @property
    def steps(self) -> str:
        """How many it was trained for; of the best step on validation which one it is."""
        total, best = f"{self.config.train.steps:,}", self.manifest.get("best_step")
        return total if best is None else f"{best:,} of {total} (least NLL on validation)"

    @property
    def fingerprint(self) -> str:
        """Of the data that it was trained on."""
        return self.manifest["dataset"]["fingerprint"]

    @cached_property
    def params(self) -> Any:
        """Trained parameters, as host arrays. ValueError if its training is not at its end, or its files do not agree;
        errors of `checkpoint.load_params`."""
        (params, step), steps = checkpoint.load_params(self.folder), self.config.train.steps
        if step != steps and step != self.manifest.get("best_step"):
            raise ValueError(f"{self.folder} stopped at step {step} of {steps}: run its command to the end")
        named, trained = len(self.findings), params["head"]["kernel"].shape[-1]
        if named != trained:
            path = self.folder / "manifest.json"
            raise ValueError(f"{path}: dataset.findings: expected {trained}, as many as were trained, found {named}")
        return params

    @cached_property
    def plain(self) -> "Run | None":
        """Its plain classifier, if it has one."""
        folder = self.folder / BASELINE
        return Run.open(folder) if (folder / "config.json").exists() else None

    @cached_property
    def folds(self) -> list["Run"]:
        """The runs that it is made of, one a fold; none of a run of its own."""
        config = changed(self.config, {"workdir": self.folder})
        return [Run.open(one.workdir) for one in each_fold(config)] if several(config) else []

    def place(self, data: Prepared, split: str, renamed: dict[str, str] | None = None) -> tuple[Path, list[str]]:
        """Where its results on prepared data go, and its findings, as the data names them. ValueError if the data has
        no such split or lacks a finding of the run, or the run has none that is `renamed`."""
        if split not in data.splits:
            raise ValueError(f"{data.name} has no split {split!r}; it has {', '.join(data.splits)}")
        renamed = renamed or {}
        if unknown := sorted(renamed.keys() - {*self.findings}):
            raise ValueError(f"--rename: {self.folder} finds {', '.join(self.findings)}; found {', '.join(unknown)}")
        findings = [renamed.get(name, name) for name in self.findings]
        if len(set(findings)) < len(findings):
            raise ValueError(f"--rename: expected another name for each finding, found {', '.join(findings)}")
        if missing := [name for name in findings if name not in data.findings]:
            found = f"{data.name} in {data.directory} is labelled with {', '.join(data.findings)}"
            told = f"{self.folder} was trained to find {', '.join(missing)}; {found}"
            raise ValueError(f"{told}; --rename RUN'S=DATA'S says which is which")
        return self.folder if self.fingerprint == data.fingerprint else self.folder / data.beside, findings


def several(config: Config) -> bool:
    """Whether a run is of all folds: a folder of runs, one a fold."""
    return config.folds > 1 and config.fold < 0


def each_fold(config: Config) -> list[Config]:
    """The configs of the runs that a run is made of: itself, or one in WORKDIR/fold-K for each fold."""
    if not several(config):
        return [config]
    workdir = Path(config.workdir)
    return [changed(config, {"fold": k, "workdir": workdir / f"fold-{k}"}) for k in range(config.folds)]


def claim(config: Config, data: Prepared, weights: dict | None = None) -> IO | contextlib.nullcontext:
    """Write config.json and manifest.json, or check them against what is there: ValueError listing every difference.

    The work directory is ours until what is returned is closed, by `with`; of several processes the main one has it.
    BlockingIOError if another process has it. Until a step is saved, manifest.json tells of the process that claims
    last, and of the weights that were read, see weights.py.
    """
    workdir = Path(config.workdir)
    if magic := sorted({*"*?["} & {*str(workdir.absolute())}):
        wrong = f"checkpoints cannot be written below a folder with {' '.join(magic)} in its name, which orbax takes"
        raise ValueError(f"{workdir.absolute()}: {wrong} for a pattern: give another --workdir")
    told = "another process trains here; wait for it, or give another --workdir"
    claimed = lock(workdir, told) if parallel.is_main() else contextlib.nullcontext()
    with contextlib.ExitStack() as unless_checked:
        unless_checked.enter_context(claimed)
        _write_or_check(workdir, config, data, weights)
        unless_checked.pop_all()  # it stays claimed
    return claimed


def _write_or_check(workdir: Path, config: Config, data: Prepared, weights: dict | None) -> None:
    dataset = {"name": data.name, "fingerprint": data.fingerprint, "findings": list(data.findings)}
    new, begun = {"config": config.to_dict(), "dataset": dataset}, saved(workdir)

    def manifest() -> dict:
        found = {"seed": config.seed, "dataset": dataset, "stored_size": data.size, **environment()}
        found |= {"weights": weights} if weights else {}
        if "train" in data.splits:  # the whole of all folds has none
            found |= {"training_films": data.splits["train"], "films": familiar.facts(data)}
        return found

    config_path, manifest_path = workdir / "config.json", workdir / "manifest.json"
    if not (config_path.exists() and manifest_path.exists()):
        if (workdir / "checkpoints").exists():
            wrong = "holds checkpoints but no config.json and manifest.json"
            raise ValueError(f"{workdir} {wrong}: give another --workdir.")
        # config.json last: a work directory counts as claimed only when both are there.
        write_json(manifest_path, manifest())
        write_json(config_path, new["config"])
        return
    there = Run.open(workdir)
    old = {"config": there.config.to_dict(), "dataset": there.manifest["dataset"]}
    old["config"] |= {key: new["config"][key] for key in FREE}
    if old["config"]["model"]["init"] and new["config"]["model"]["init"] and begun:
        old["config"]["model"]["init"] = new["config"]["model"]["init"]  # its checkpoints have the weights
    if lines := differences(old, new):
        found = "\n  ".join([f"{workdir} belongs to another run:", *lines])
        raise ValueError(f"{found}\nGive another --workdir, or the old settings.")
    if parallel.is_main():
        if not begun:
            write_json(manifest_path, manifest())
        write_json(config_path, new["config"])


def environment() -> dict[str, Any]:
    """Everything outside config and data that can change the last bits of a run."""
    return {
        "version": __version__,
        "git_revision": _git_revision(),
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in LIBRARIES},
        "devices": [device.device_kind for device in jax.devices()],
        "processes": jax.process_count(),
        "processor": processor(),
        "cores": cores(),
    }


def changes(manifest: dict[str, Any]) -> list[str]:
    """What of `environment` is not as it was when a run began or was gone on with, one line each."""
    now, found = environment(), []
    for then in (manifest, *manifest.get("continued", [])):
        known = now.keys() & then.keys()  # an older version may tell less
        found += differences(*({key: each[key] for key in known} for each in (then, now)))
    return list(dict.fromkeys(found))


def going_on(workdir: Path, step: int) -> list[str]:
    """`changes`; manifest.json gets a new environment under `continued`, with the step from which on it made the
    run."""
    manifest, now = Run.open(workdir).manifest, environment()
    continued = manifest.get("continued", [])
    last = [manifest, *continued][-1]
    if parallel.is_main() and any(last.get(key) != value for key, value in now.items()):
        write_json(workdir / "manifest.json", {**manifest, "continued": [*continued, {"step": step, **now}]})
    return changes(manifest)


def saved(workdir: Path) -> bool:
    """Whether a step of a run has been saved."""
    return any(path.name.isdigit() for path in (Path(workdir) / "checkpoints").glob("*"))


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Lines "field: old -> new" for every leaf of two nested dicts that differs."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        a, b, name = old.get(key), new.get(key), f"{prefix}{key}"
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{name}.")
        elif a != b:
            lines.append(f"{name}: {a!r} -> {b!r}")
    return lines


def _git_revision() -> str | None:
    """Of the source tree this package runs from; None outside a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
