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
FLAGS = f"""
  --data.image-size 32 --data.batch-size 16 --model.width 8 --model.depth 1 --model.latent-channels 4
  --no-baseline --map-shifts 1
  --train.steps {STEPS} --train.log-every 2 --train.checkpoint-every 7 --loss.delay 0 --loss.ramp 0.1
""".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hosts")
    datasets.prepare(Synthetic(data_dir=folder / "data", size=32, train=64, val=24, test=30, workers=1))
    return folder


def start(folder: Path, name: str, *flags: str, processes: int = 2) -> list[subprocess.Popen]:
    """Processes of one run, see `side_by_side`."""
    command = [str(ROOT / "experiments" / "quickstart.py"), *FLAGS, *flags]
    command += ["--data-dir", str(folder / "data"), "--workdir", str(folder / name)]
    return side_by_side(folder, name, [sys.executable, *command], processes)


def side_by_side(folder: Path, name: str, command: list[str], processes: int = 2) -> list[subprocess.Popen]:
    """Processes that share eight devices, each writing NAME-I.txt."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = []
    for i in range(processes):
        hosts = ["--hosts.coordinator", f"localhost:{port}", "--hosts.processes", str(processes)]
        hosts = [*hosts, "--hosts.process", str(i)] if processes > 1 else []
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


@pytest.mark.parametrize("flags", [(), ("--parallel", "pmap")], ids=["jit", "pmap"])
def test_two_processes_equal_one(folder, whole, flags):
    """One process with eight devices; or the two by pmap: same parameters to rounding, and the same scores of every
    image once, in order."""
    other = run(folder, f"other{len(flags)}", *flags, processes=2 if flags else 1)
    chex.assert_trees_all_close(
        *(checkpoint.load_params(workdir)[0] for workdir in (whole, other)), atol=5e-5, rtol=1e-4
    )
    np.testing.assert_allclose(losses(whole), losses(other), rtol=1e-5)
    with np.load(whole / "maps" / "test.npz") as a, np.load(other / "maps" / "test.npz") as b:
        assert len(a["image_id"]) == 30  # not a multiple of the batch
        np.testing.assert_array_equal(a["image_id"], b["image_id"])
        np.testing.assert_allclose(a["infomask"].astype(float), b["infomask"].astype(float), atol=2e-3)


def test_one_told_to_stop_stops_both(folder):
    started = start(folder, "stopped", "--train.steps", "4000")
    wait_for_step(folder / "stopped", 3, started)
    started[1].send_signal(signal.SIGTERM)
    assert set(finish(folder, "stopped", started)) == {STOPPED}
    _, step = checkpoint.load_params(folder / "stopped")
    assert step == losses(folder / "stopped")[-1][0]


def test_what_one_process_cannot_read_none_takes(folder, whole):
    """The second process's data iterator stands elsewhere, in a checkpoint of a revision that kept no sums: both go on
    from the one before, and end as the whole run."""
    shutil.copytree(whole, folder / "cut")
    (folder / "cut" / "checkpoints" / str(STEPS) / checkpoint.SUMS).unlink()
    (folder / "cut" / "checkpoints" / str(STEPS) / "data" / "process_1-of-2.json").write_text('{"next')
    run(folder, "cut")
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
    assert finish(tmp_path, "told", side_by_side(tmp_path, "told", command)) == [2, 2]
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
        from infomask_jax.config import HostsConfig
        address, process, fails = sys.argv[1:]
        parallel.start(HostsConfig(coordinator=address, processes=2, process=int(process)))
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


def test_another_number_of_processes_is_refused(folder, whole):
    (process,) = start(folder, "whole", processes=1)
    assert process.wait(timeout=120) == 1
    assert "was written by 2 processes, this run has 1" in (folder / "whole-0.txt").read_text()
    assert (whole / "checkpoints" / str(STEPS)).exists()
