"""Damaged JSON files and checkpoints of a small trained run: through what reads them."""

import contextlib
import dataclasses
import io
import json
import math
import os
import shutil
import tempfile
import typing
from pathlib import Path
from unittest import mock

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
from fuzz import mutators, tables
from fuzz.workers import Bad

from infomask_jax import checkpoint, datasets, experiment, pipeline, predict
from infomask_jax.config import Config, DataConfig, MachineConfig, ModelConfig, OptimizerConfig
from infomask_jax.report import figures
from infomask_jax.train import create_state

VALUES = (
    *(None, True, 0, -1, 1.5, 1e308, 10**400, "", "x", "../..", "\x1b[31m", "12", [], [[]], {}, {"a": 1}, ["x"], 2**63),
    *(float("nan"), float("inf")),
)


def train(folder: Path) -> Path:
    """A run of six steps with two checkpoints, scored, and its data."""
    own = tables.releases()["folder"]
    tables.start(folder / "release", own)
    datasets.prepare(datasets.Folder(source=folder / "release", data_dir=folder / "data", size=16))
    config = Config(
        dataset="folder",
        data_dir=folder / "data",
        workdir=folder / "run",
        data=DataConfig(image_size=16, batch_size=4),
        model=ModelConfig(width=8, stride=8, latent_channels=2, mask_samples=2),
        train=OptimizerConfig(steps=6),
        machine=MachineConfig(log_every=2, checkpoint_every=3),
    )
    experiment.run(config)
    return folder


class Runs:
    """A copy of the run, of which one file at a time is damaged and then made whole again."""

    def __init__(self, trained: Path):
        self.trained, self.folder = trained, Path(tempfile.mkdtemp(prefix="fuzz-run-"))
        self.fresh()
        for path in (self.folder / "run" / "config.json", self.folder / "run" / "plain" / "config.json"):
            config = json.loads(path.read_text())
            path.write_text(json.dumps({**config, "data_dir": str(self.folder / "data")}))
        for path in self.folder.rglob("*"):
            if path.is_file():  # all that was made is of this copy
                data = path.read_bytes()
                if str(trained).encode() in data and path.suffix == ".json":
                    path.write_bytes(data.replace(str(trained).encode(), str(self.folder).encode()))
        self.whole = {path: path.read_bytes() for path in sorted(self.folder.rglob("*")) if path.is_file()}

    def fresh(self) -> None:
        shutil.copytree(self.trained, self.folder, dirs_exist_ok=True)

    def close(self) -> None:
        shutil.rmtree(self.folder)

    def repair(self) -> None:
        """All files as they were, and no others."""
        for path in sorted(self.folder.rglob("*"), reverse=True):
            if path not in self.whole:
                with contextlib.suppress(OSError):
                    path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        for path, data in self.whole.items():
            if not path.is_file() or path.read_bytes() != data:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)

    def put(self, path: Path, data: bytes | None) -> None:
        path.unlink() if data is None else path.write_bytes(data)


class Json(Runs):
    """Checks config.json, manifest.json, eval/ and boxes/, and the JSON files of the data."""

    def __init__(self, trained: Path):
        super().__init__(trained)
        data = datasets.load("folder", self.folder / "data")
        names = ("config.json", "manifest.json", "eval/test.json", "boxes/test.json", "plain/config.json")
        self.files = [self.folder / "run" / name for name in names]
        self.files += [data.directory / name for name in ("metadata.json", "dataset_info.json", "features.json")]
        if (found := self.check({}, None)[0]) != "accepted":
            raise RuntimeError(f"the whole run is {found}")

    def make(self, rng: np.random.Generator) -> dict[Path, bytes | None]:
        path = self.files[rng.integers(len(self.files))]
        return {path: None if rng.random() < 0.01 else damaged_json(rng, self.whole[path])}

    def check(self, case: dict[Path, bytes | None], decoded) -> tuple[str, str]:
        refused = False
        try:
            for path, data in case.items():
                self.put(path, data)
            for read in (self.read_config, self.read_run, self.read_data, self.report):
                try:
                    with contextlib.redirect_stdout(io.StringIO()):
                        read()
                except (ValueError, OSError) as error:
                    tables.names_a_file(str(error), [path.name for path in case] + [str(self.folder)])
                    refused = True
            return ("refused", "") if refused else ("accepted", "equal")
        finally:
            self.repair()

    def read_config(self) -> None:
        check_types(Config.load(self.folder / "run"))
        check_types(Config.load(self.folder / "run" / "plain"))

    def read_run(self) -> None:
        run = self.folder / "run"
        if not isinstance(size := predict.stored_size(run), int) or size < 1:
            raise Bad("wrong", f"stored size {size!r}")
        for methods in predict.thresholds(run, ["mass", "effusion"]).values():
            value = methods.get("infomask", 0.5)  # the one that is used
            if type(value) not in (int, float) or not math.isfinite(value):
                raise Bad("wrong", f"threshold {value!r}")

    def read_data(self) -> None:
        data = datasets.load("folder", self.folder / "data")
        datasets.store.print_summary(data)
        for split in data.splits:
            source = data.source(split)
            for i in range(len(source)):
                example = source[i]
                try:
                    datasets.schema.check(example, data.findings)
                except ValueError as error:
                    raise Bad("wrong", f"an example is read as another: {error}") from error
        _, findings = experiment.place(self.folder / "run", data, "test")
        if not isinstance(findings, list) or not all(isinstance(name, str) for name in findings):
            raise Bad("wrong", f"findings {findings!r}")
        options = datasets.Folder(source=self.folder / "release", data_dir=self.folder / "data", size=16)
        datasets.prepare(options)

    def report(self) -> None:
        drawn = {"galleries": {}, "training_curves": b""}  # which takes long, and reads nothing more
        with mock.patch.multiple(figures, **{name: mock.Mock(return_value=value) for name, value in drawn.items()}):
            experiment.redraw(self.folder / "run", "test")


def damaged_json(rng: np.random.Generator, data: bytes) -> bytes:
    """A value changed, a key gone, added or renamed; text of another kind; or bytes damaged."""
    kind = rng.choice(["value", "value", "value", "key", "key", "bytes", "text"])
    if kind == "bytes":
        return mutators.damage(rng, data)
    if kind == "text":
        texts = (
            b"",
            b"null",
            b"[]",
            b"{}",
            b"3",
            b'"x"',
            b"[" * 100_000,
            b'{"a":' * 100_000,
            b"\xff\xfe" + data,
            b"\xef\xbb\xbf" + data,
        )
        texts += (data.decode().encode("utf-16"), data + data, data.replace(b":", b""), b"9" * 10_000, data.lower())
        return texts[rng.integers(len(texts))]
    value = json.loads(data)
    places = list(_places(value))
    if not places:
        return b"null"
    holder, key = places[rng.integers(len(places))]
    if kind == "value":
        holder[key] = VALUES[rng.integers(len(VALUES))]
    elif rng.random() < 0.6:
        del holder[key]
    elif isinstance(holder, dict):
        holder[f"{key}x"] = holder.pop(key) if rng.random() < 0.5 else 1
    return json.dumps(value).encode()


def _places(value):
    """(container, key) of everything in a JSON value, at any depth."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


def check_types(config) -> None:
    """Raises Bad unless every field of a config is of the type that its class says."""
    for field in dataclasses.fields(config):
        value, kind = getattr(config, field.name), field.type
        if dataclasses.is_dataclass(kind):
            check_types(value)
        elif typing.get_origin(kind) is typing.Literal:
            right = value in typing.get_args(kind)
        elif kind is float:
            right = type(value) in (int, float)
        else:
            right = not isinstance(kind, type) or (isinstance(value, kind) if kind is not int else type(value) is int)
        if not dataclasses.is_dataclass(kind) and not right:
            raise Bad("wrong", f"{field.name}: {value!r} taken for {kind}")


class Checkpoints(Runs):
    """Checks checkpoints: parameters as `predict` loads them, and the state as training goes on from it."""

    def __init__(self, trained: Path):
        super().__init__(trained)
        self.run, self.config = self.folder / "run", Config.load(self.folder / "run")
        data = datasets.load("folder", self.folder / "data")
        self.source = data.source("train", pipeline.FIELDS)
        self.state = create_state(self.config, 2)
        self.steps = sorted(int(path.name) for path in (self.run / "checkpoints").glob("[0-9]*"))
        self.files = [path for path in self.whole if (self.run / "checkpoints") in path.parents]
        self.truth = {}
        for _ in self.steps:  # from the newest on
            state, found, _ = self.restored()
            self.truth[found] = (state, checkpoint.load_params(self.run)[0])
            shutil.rmtree(self.run / "checkpoints" / str(found))
        self.repair()
        if sorted(self.truth) != self.steps:
            raise RuntimeError(f"expected checkpoints {self.steps}, read {sorted(self.truth)}")

    def restored(self) -> tuple:
        batches = pipeline.train_batches(self.source, self.config.data, self.config.seed)
        with checkpoint.manager(self.run) as checkpoints:
            state, step, messages = checkpoint.restore_newest(checkpoints, self.state, batches)
        return (checkpoint.storable(state), batches.taken), step, messages

    def make(self, rng: np.random.Generator) -> dict[Path, bytes | None]:
        """One bit flipped in half of all cases: anywhere, every byte as likely."""
        if rng.random() < 0.5:
            sizes = np.array([len(self.whole[path]) for path in self.files])
            path = self.files[rng.choice(len(sizes), p=sizes / sizes.sum())]
            data = bytearray(self.whole[path])
            data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
            return {path: bytes(data)}
        path = self.files[rng.integers(len(self.files))]
        if rng.random() < 0.15:
            return {path: None}
        if path.suffix == ".json" and rng.random() < 0.5:
            with contextlib.suppress(ValueError):
                return {path: damaged_json(rng, self.whole[path])}
        return {path: mutators.damage(rng, self.whole[path])}

    def check(self, case: dict[Path, bytes | None], decoded) -> tuple[str, str]:
        refused = False
        try:
            for path, data in case.items():
                self.put(path, data)
            try:
                params, step = checkpoint.load_params(self.run)
                if not same(params, self.truth[step][1]):
                    raise Bad("wrong", f"other parameters of step {step}")
            except (ValueError, OSError) as error:
                tables.names_a_file(str(error), [str(self.run)])
                refused = True
            try:
                state, step, messages = self.restored()
                refused |= bool(messages)
                if step not in self.truth or not same(state, self.truth[step][0]):
                    raise Bad("wrong", f"another state of step {step}")
                if step != self.steps[-1] and not messages:
                    raise Bad("wrong", f"went back to step {step} without a word")
            except (ValueError, OSError) as error:
                tables.names_a_file(str(error), [str(self.run)])
                refused = True
            return ("refused", "") if refused else ("accepted", "equal")
        finally:
            self.repair()


def same(a, b) -> bool:
    """Whether two trees hold the same, bit for bit."""
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    pairs = [(np.asarray(x), np.asarray(y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]
    return all(x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes() for x, y in pairs)
