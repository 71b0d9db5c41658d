"""Eight virtual CPU devices, strict JAX settings, and data made once for all tests."""

import atexit
import fcntl
import json
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Programs of tests are small and run a few times: most of their time would go into XLA's optimization of them, then
# into its newer emitters (a later XLA ends at an unknown flag).
os.environ["XLA_FLAGS"] = f"--xla_backend_optimization_level=0 {os.environ.get('XLA_FLAGS', '')}"
if version("jaxlib").startswith("0.10."):
    quick = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = f"{quick} {os.environ['XLA_FLAGS']}"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # one for all test processes and the runs they start
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # not even the smallest is compiled twice
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="infomask-jax-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax
import numpy as np
import pytest

from infomask_jax import datasets, experiment
from infomask_jax.config import Config, DataConfig, LossConfig, MachineConfig, ModelConfig, OptimizerConfig

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_debug_key_reuse", True)


def tiny_config(folder: Path) -> Config:
    """Six steps of a model of width 8 on folder/data, into folder/run; maps are 16 x 16."""
    return Config(
        data_dir=folder / "data",
        workdir=folder / "run",
        map_shifts=2,
        data=DataConfig(image_size=32, batch_size=8),
        model=ModelConfig(width=8, stride=4, latent_channels=4),
        loss=LossConfig(delay=0.2),
        train=OptimizerConfig(steps=6),
        machine=MachineConfig(log_every=2, validations=3),
    )


@pytest.fixture(scope="session")
def trained(tmp_path_factory, worker_id) -> Path:
    """A trained run, scored on its test split: `tiny_config` on 24 + 16 + 20 phantoms of 32 pixels, with its plain
    classifier. Its data are in trained.parent / "data", its test films, IMAGE_ID.png, in trained.parent / "films".

    Made once for all processes of a test run, so only to be read: who writes takes `trained_copy`.
    """
    own = tmp_path_factory.getbasetemp()
    folder = (own if worker_id == "master" else own.parent) / "trained"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the first process makes it, the others wait
        if not (folder / "films").exists():
            made = datasets.Synthetic(data_dir=folder / "data", size=32, train=24, val=16, test=20, workers=1)
            source = datasets.prepare(made).source("test")
            experiment.run(tiny_config(folder))
            (folder / "films").mkdir()
            for i in range(len(source)):
                (folder / "films" / f"{source[i]['image_id']}.png").write_bytes(source[i]["image"])
    return folder / "run"


@pytest.fixture
def trained_copy(trained, tmp_path) -> Path:
    """`trained`, to damage and to write into, in tmp_path / "run"; without figures, which are large."""
    return shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("figures"))


class Examples:
    """A split in memory: sixty-four small noisy squares, bright ones positive. Picklable, random access."""

    def __init__(self, count: int = 64, size: int = 16, findings: int = 1):
        self.count, self.size, self.findings = count, size, findings

    def __len__(self):
        return self.count

    def __getitem__(self, index: int):
        import cv2

        rng = np.random.default_rng(index)
        labels = rng.integers(0, 2, self.findings).astype(np.int8)
        image = rng.integers(0, 60, (self.size, self.size))
        if labels[0]:
            y, x = rng.integers(0, self.size - 5, 2)
            image[y : y + 5, x : x + 5] += 150
        return {
            "image": cv2.imencode(".png", image.astype(np.uint8))[1].tobytes(),
            "labels": labels,
            "image_id": f"image{index}",
            "patient_id": f"patient{index // 2}",
            "height": self.size,
            "width": self.size,
        }


@pytest.fixture(scope="session")
def examples() -> Examples:
    return Examples()


def change(path: Path, field: tuple, value) -> None:
    """Puts a value in the place of a field of a JSON file; None: takes the field away."""
    stored = json.loads(path.read_text())
    *fields, last = field
    inner = stored
    for name in fields:
        inner = inner[name]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    path.write_text(json.dumps(stored))
