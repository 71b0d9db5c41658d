"""Every script under benchmarks/ runs, at small sizes, and ends with the one JSON object that it promises."""

import json
import runpy
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SIZES = "--image-size 32 --batch-size 8"  # a multiple of the tests' eight devices
SMALL = {  # script -> its arguments, and its numbers of a promised name with their range
    "step.py": (
        f"{SIZES} --widths 4 --rounds 1 --no-one-view",
        {"images_per_s": 1e9, "flops_per_s": 1e18, "infomask_over_plain": 100, "of_peak": 2},
    ),
    "encoders.py": (f"{SIZES} --encoders resnet18 --rounds 1", {}),
    "pipeline.py": (
        "--data-dir DATA --image-size 32 --rounds 1 --batches 2",
        {"images_per_s": 1e9, "of_decode_limit": 1e5},
    ),
    "loop.py": (
        f"--data-dir DATA {SIZES} --rounds 1 --steps 1",
        {"images_per_s": 1e9, "of_bare_step": 100, "data_wait_share": 1},
    ),
    "scaling.py": (f"{SIZES} --steps 1 --rounds 1 --devices 2", {"images_per_s": 1e9}),
    "evaluate.py": (
        "--maps 10 --reference-maps 1 --images 8 --resamples 10",
        {"speedup_over_reference": 1e6, "bootstrap_seconds": 60, "peak_mib": 1e6},
    ),
    "predict.py": (
        "RUN --xrays FILMS --films 16 --rounds 1",
        {"of_limit": 100, "peak_mib": 1e6, "decode_images_per_s": 1e9, "forward_images_per_s": 1e9},
    ),
}


@pytest.fixture
def last_line(monkeypatch, capsys, trained):
    """Runs a script as the command line does; returns what its last line holds, all of it finite."""
    places = {"RUN": trained, "DATA": trained.parent / "data", "FILMS": trained.parent / "films"}

    def run(script: str, *more: str) -> dict:
        arguments = [str(places.get(word, word)) for word in SMALL[script][0].split()]
        monkeypatch.syspath_prepend(BENCHMARKS)
        monkeypatch.setattr("sys.argv", [script, *arguments, *more])
        runpy.run_path(str(BENCHMARKS / script), run_name="__main__")
        line = capsys.readouterr().out.splitlines()[-1]
        return json.loads(line, parse_constant=lambda name: pytest.fail(f"{script} prints {name}"))

    return run


assert {path.name for path in BENCHMARKS.glob("*.py")} - {"common.py", "torch_model.py"} == SMALL.keys()


@pytest.mark.parametrize("script", SMALL)
def test_a_script_prints_what_it_promises(script, last_line, tmp_path):
    found = last_line(script, "--out", str(tmp_path / "kept.json"))
    assert json.loads((tmp_path / "kept.json").read_text()) == found
    assert {"device", "versions", "date"} <= found.keys()
    assert all(0 <= found[name] <= most for name, most in SMALL[script][1].items()), found
    if script == "scaling.py":
        assert found["devices"] == {"2": 1} and found["processes"].keys() == {"1", "2"}
