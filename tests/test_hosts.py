"""Two processes of four devices each, through the experiment script: one run, as one process would make it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import chex
import numpy as np
import pytest

from infomask_jax import checkpoint, datasets
from infomask_jax.command import STOPPED
from infomask_jax.datasets import Synthetic

ROOT = Path(__file__).parent.parent
STEPS = 30
# A low rate: runs that round differently stay 1e-7 apart. With ten times as much a ReLU may fall on the other side of
# 0, over a whole plain area of the images, and they go apart.
FLAGS = f"""
  --data.image-size 32 --data.batch-size 16 --model.width 8 --model.latent-channels 4 --no-baseline --map-shifts 1
  --train.steps {STEPS} --train.learning-rate 1e-4 --loss.delay 0
  --machine.log-every 2 --machine.checkpoint-every 7
""".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hosts")
    datasets.prepare(Synthetic(data_dir=folder / "data", size=32, train=64, val=24, test=30, workers=1))
    return folder


def start(folder: Path, name: str, *flags: str, processes: int = 2) -> list[subprocess.Popen]:
    """Processes of one run, see `side_by_side`."""
    return side_by_side(folder, name, [sys.executable, *training(folder, name, *flags)], "--machine.hosts", processes)


def training(folder: Path, name: str, *flags: str) -> list[str]:
    script = str(ROOT / "experiments" / "quickstart.py")
    return [script, *FLAGS, *flags, "--data-dir", str(folder / "data"), "--workdir", str(folder / name)]


def side_by_side(folder: Path, name: str, command: list[str], option: str, processes: int = 2) -> list:
    """Processes that share eight devices and find each other by the last option, each writing NAME-I.txt."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = []
    for i in range(processes):
        hosts = [option, f"localhost:{port},{processes},{i}"] if processes > 1 else []
        environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(8 // processes)}
        with (folder / f"{name}-{i}.txt").open("w") as output:
            started.append(subprocess.Popen([*command, *hosts], stdout=output, stderr=output, env=environment))
    return started


def finish(folder: Path, name: str, started: list[subprocess.Popen]) -> list[int]:
    codes = [process.wait(timeout=300) for process in started]
    assert len(set(codes)) == 1, [(folder / f"{name}-{i}.txt").read_text()[-2000:] for i in range(len(codes))]
    return codes


def run(folder: Path, name: str, *flags: str, processes: int = 2) -> Path:
    codes = finish(folder, name, start(folder, name, *flags, processes=processes))
    assert set(codes) == {0}, (folder / f"{name}-0.txt").read_text()[-2000:]
    return folder / name


@pytest.fixture(scope="module")
def whole(folder) -> Path:
    return run(folder, "whole")


def wait_for_step(workdir: Path, step: int, started: list[subprocess.Popen]) -> None:
    """Until that step is logged and a checkpoint is complete, which orbax writes while training goes on."""
    deadline = time.monotonic() + 240
    while not (
        (losses(workdir) or [(0, 0)])[-1][0] >= step
        and any(path.name.isdigit() for path in workdir.glob("checkpoints/*"))
    ):
        assert time.monotonic() < deadline and all(process.poll() is None for process in started), "not reached"
        time.sleep(0.01)


def losses(workdir: Path) -> list[tuple[int, float]]:
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]  # the last may be half written
    return [(row["step"], loss) for row in rows for loss in row["losses"]]


def test_killed_and_resumed_is_bitwise_uninterrupted(folder, whole):
    started = start(folder, "killed")
    wait_for_step(folder / "killed", 12, started)
    for process in started:
        process.send_signal(signal.SIGKILL)
        process.wait()
    run(folder, "killed")
    assert "resumed" in (folder / "killed-0.txt").read_text()
    (params, last), (expected, _) = (checkpoint.load_params(folder / name) for name in ("killed", "whole"))
    assert last == STEPS
    chex.assert_trees_all_equal(params, expected)
    assert losses(folder / "killed") == losses(whole)


@pytest.mark.parametrize("flags", [(), ("--machine.parallel", "pmap")], ids=["jit", "pmap"])
def test_two_processes_equal_one(folder, whole, flags):
    """One process with eight devices; or the two by pmap: same parameters to rounding, and the same scores of every
    image once, in order."""
    other = run(folder, f"other{len(flags)}", *flags, processes=2 if flags else 1)
    assert_close(whole, other)
    with np.load(whole / "maps" / "test.npz") as a, np.load(other / "maps" / "test.npz") as b:
        assert len(a["image_id"]) == 30  # not a multiple of the batch
        np.testing.assert_array_equal(a["image_id"], b["image_id"])
        np.testing.assert_allclose(a["infomask"].astype(float), b["infomask"].astype(float), atol=2e-3)


def assert_close(*workdirs: Path) -> None:
    """The same losses and parameters, to rounding."""
    params = (checkpoint.load_params(workdir)[0] for workdir in workdirs)
    chex.assert_trees_all_close(*params, atol=1e-5)
    np.testing.assert_allclose(*map(losses, workdirs), rtol=1e-5)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_processes_goes_on_with_the_same_data(folder, whole, before, after):
    """And says that it is another, in the output and in manifest.json."""
    name = f"from{before}"
    started = start(folder, name, processes=before)
    wait_for_step(folder / name, 12, started)
    for process in started:
        process.send_signal(signal.SIGKILL)
        process.wait()
    run(folder, name, processes=after)
    told = (folder / f"{name}-0.txt").read_text()
    assert "resumed" in told and f"processes: {before} -> {after}" in told
    manifest = json.loads((folder / name / "manifest.json").read_text())
    (continued,) = manifest["continued"]
    assert (manifest["processes"], continued["processes"]) == (before, after) and continued["step"] % 7 == 0
    assert_close(whole, folder / name)


def test_one_told_to_stop_stops_both(folder):
    started = start(folder, "stopped", "--train.steps", "4000")
    wait_for_step(folder / "stopped", 3, started)
    started[1].send_signal(signal.SIGTERM)
    assert set(finish(folder, "stopped", started)) == {STOPPED}
    _, step = checkpoint.load_params(folder / "stopped")
    assert step == losses(folder / "stopped")[-1][0]


BLIND = f"""if True:
    import runpy, sys
    from infomask_jax import checkpoint

    def check(folder, read=checkpoint._check_sums, bad=["{STEPS}"]):
        if sys.argv[-1].endswith(",1") and folder.name in bad:
            bad.remove(folder.name)  # the same step is saved again
            raise OSError("Input/output error")
        read(folder)

    checkpoint._check_sums = check
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_what_one_process_cannot_read_none_takes(folder, whole):
    """The second process's disk fails on the newest checkpoint: both go on from the one before, and end as the whole
    run."""
    shutil.copytree(whole, folder / "cut")
    command = [sys.executable, "-c", BLIND, *training(folder, "cut")]
    codes = finish(folder, "cut", side_by_side(folder, "cut", command, "--machine.hosts"))
    assert set(codes) == {0}, (folder / "cut-0.txt").read_text()[-2000:]
    told = "".join((folder / "cut-0.txt").read_text().split())
    assert f"checkpoints/{STEPS}cannotberead(byanotherprocess);movedto" in told and "fromstep28of" in told
    assert (folder / "cut" / f"broken-{STEPS}" / "state").is_dir()
    chex.assert_trees_all_equal(*(checkpoint.load_params(workdir)[0] for workdir in (whole, folder / "cut")))


def test_two_processes_reproduce_their_run(folder, whole, tmp_path):
    """To the last bit of every parameter; and both end as the first does, who finds a loss that was another."""
    run, before = shutil.copytree(whole, tmp_path / "run"), sorted(folder.iterdir())
    first, *others = (run / "metrics.jsonl").read_text().splitlines()
    row = json.loads(first)
    row["losses"][1] += 1e-6
    (run / "metrics.jsonl").write_text("\n".join([json.dumps(row), *others, ""]))
    command = [sys.executable, "-m", "infomask_jax", "reproduce", str(run)]
    assert finish(tmp_path, "told", side_by_side(tmp_path, "told", command, "--hosts")) == [2, 2]
    told, other = ((tmp_path / f"told-{i}.txt").read_text() for i in range(2))
    assert "the first step that differs is 2:" in told and "largest difference of a parameter 0\n" in told
    assert "not as it was" not in told and "differ" not in other
    assert sorted(folder.iterdir()) == before and {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"run"}


@pytest.mark.parametrize("fails", [False, True])
def test_others_wait_for_the_one_that_scores(fails):
    """And end when it does, well or not: one that is gone earlier would take it down within minutes."""
    code = """if True:
        import sys, time
        from infomask_jax import parallel
        address, process, fails = sys.argv[1:]
        parallel.start(f"{address},2,{process}")
        parallel.wait_for_all("begun")
        with parallel.main_alone("scored") as alone:
            if alone:
                time.sleep(4)
                print(time.time(), flush=True)
                if fails == "True":
                    raise ValueError
        print(time.time(), flush=True)
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command, pipe = [sys.executable, "-c", code, address], {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    started = [subprocess.Popen([*command, str(i), str(fails)], text=True, **pipe) for i in range(2)]
    scored, other = (process.communicate(timeout=120)[0].split() for process in started)
    assert other[0] >= scored[0] and started[1].returncode == 0 and (started[0].returncode != 0) == fails
