"""Every script under benchmarks/ runs, on the smallest sizes, and ends with the one JSON object that it promises."""

import json
import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_experiment import config

from infomask_jax import datasets
from infomask_jax.datasets import Synthetic
from infomask_jax.train import train

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
TINY = "--image-size", "32", "--batch-size", "8"  # a multiple of the tests' eight devices


@pytest.fixture
def last_line(monkeypatch, capsys):
    """Runs a script as the command line does; returns what its last line holds, all of it finite."""

    def run(script: str, *arguments) -> dict:
        monkeypatch.syspath_prepend(BENCHMARKS)
        monkeypatch.setattr("sys.argv", [script, *map(str, arguments)])
        runpy.run_path(str(BENCHMARKS / script), run_name="__main__")
        line = capsys.readouterr().out.splitlines()[-1]
        return json.loads(line, parse_constant=lambda name: pytest.fail(f"{script} prints {name}"))

    return run


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks")
    datasets.prepare(Synthetic(data_dir=folder / "data", size=32, train=24, val=16, test=16, workers=1))
    return folder / "data"


def test_every_script_is_tried():
    tried = Path(__file__).read_text()
    scripts = {path.name for path in BENCHMARKS.glob("*.py")} - {"torch_model.py"}  # of step.py alone
    assert len(scripts) >= 10 and all(f'last_line("{name}"' in tried for name in scripts)


def test_step(last_line):
    found = last_line("step.py", *TINY, "--widths", 8, "--rounds", 1, "--no-one-view")
    assert found["of_torch"] is None  # not installed, or several devices
    assert found["images_per_s"] > 0 and found["flops_per_s"] > 0
    assert 0.1 < found["infomask_over_plain"] < 100 and 0 < found["of_peak"] < 2


def test_encoders(last_line):
    found = last_line("encoders.py", *TINY, "--encoders", "resnet18", "--rounds", 1)
    (row,) = found["encoders"]
    assert row["encoder"] == "resnet18" and row["images_per_s"] > 0 and row["memory_gib"] > 0
    assert row["of_torch"] is None or row["of_torch"] > 0


def test_revisions(last_line):
    """A tree against itself."""
    found = last_line("revisions.py", "--before", BENCHMARKS.parent, "--image-size", 32, "--rounds", 1)
    for ratios in (found["now_over_before"], found["infomask_over_plain"]):
        assert len(ratios) == 2 and all(0.01 < ratio < 100 for ratio in ratios.values())


def test_pipeline_and_loop_read_synthetic_data(last_line, data):
    small = "--data-dir", data, *TINY, "--rounds", 1
    found = last_line("pipeline.py", *small, "--batches", 2)
    assert found["images_per_s"] > 0 and 0 < found["of_decode_limit"] < 100 and found["dataset"] == "synthetic"
    found = last_line("loop.py", *small, "--steps", 1)
    assert found["images_per_s"] > 0 and 0 < found["of_bare_step"] < 100 and 0 <= found["data_wait_share"] <= 1


def test_scaling(last_line):
    found = last_line("scaling.py", *TINY, "--steps", 1, "--rounds", 1, "--devices", 1, 2)
    assert found["devices"].keys() == found["processes"].keys() == {"1", "2"}
    assert found["devices"]["1"] == 1 and found["processes"]["1"] == found["devices"]["2"]
    assert all(0 <= ratio < 100 for name in ("devices", "processes") for ratio in found[name].values())


def test_evaluate(last_line):
    found = last_line("evaluate.py", "--maps", 10, "--reference-maps", 1, "--images", 8, "--resamples", 10)
    assert found["speedup_over_reference"] > 1 and 0 <= found["bootstrap_seconds"] < 60
    assert 10 < found["peak_mib"] < 1e6


def test_intervals(last_line):
    few = "--population", 40, "--sets", 2, "--patients", 10, "--resamples", 20
    found = last_line("intervals.py", *few)
    for score in ("max_box_acc", "max_box_acc_v2"):
        assert found[score]["10"].keys() == {"ours", "maximum", "known"}
        assert all(0 <= share <= 1 for share in found[score]["10"].values())


def test_explain(last_line):
    found = last_line("explain.py", *TINY, "--repeats", 1, "--methods", "cam", "gradient")
    for method in ("forward", "cam", "gradient"):
        assert found[method]["images_per_s"] > 0 and found[method]["over_forward"] > 0


def test_seeds(last_line):
    found = last_line("seeds.py", *TINY, "--seeds", 2, "--steps", 1, "--ways", "vmap")
    assert found["2"].keys() == {"sequential", "vmap"} and found["2"]["vmap"]["max_difference"] < 1e-3
    assert all(way["images_per_s"] > 0 and way["over_sequential"] > 0 for way in found["2"].values())


def test_predict(last_line, data, tmp_path):
    small = config(tmp_path)
    train(small, datasets.load("synthetic", data))
    (tmp_path / "films").mkdir()
    for i in range(2):
        film = np.random.default_rng(i).integers(0, 255, (40, 32), np.uint8)
        cv2.imwrite(str(tmp_path / "films" / f"{i}.png"), film)
    found = last_line("predict.py", tmp_path / "run", "--xrays", tmp_path / "films", "--films", 16, "--rounds", 1)
    assert found["decode_images_per_s"] > 0 and found["forward_images_per_s"] > 0 and 10 < found["peak_mib"] < 1e6
    limit = min(found["decode_images_per_s"], found["forward_images_per_s"])
    assert found["of_limit"] == pytest.approx(found["images_per_s"] / limit, rel=0.1, abs=0.01)  # of a difference
