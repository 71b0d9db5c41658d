"""Two processes of four devices each: one run, as one process would make it."""

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
from infomask_jax.datasets import Synthetic

ROOT = Path(__file__).parent.parent
STEPS, EVERY, STOPPED = 30, 7, 75
# A low rate: runs that round differently stay 1e-7 apart. With ten times as much a ReLU may fall on the other side of
# 0, over a whole plain area of the images, and they go apart.
FLAGS = f"""
  --data.image-size 32 --data.batch-size 16 --model.width 8 --model.latent-channels 4 --no-baseline --map-shifts 1
  --train.steps {STEPS} --train.learning-rate 1e-4 --loss.delay 0
  --machine.log-every 2 --machine.checkpoint-every {EVERY}
""".split()
# The training alone of the settings of another run; the second process finds the checkpoint of a step, `blind`,
# unreadable, once: the same step is saved again.
TRAIN = """if True:
    import json, pathlib, sys
    from infomask_jax import checkpoint, command, datasets, parallel, presets, train
    from infomask_jax.config import Config

    like, workdir, changes, blind, hosts = sys.argv[1:]
    bad, read = {blind} if hosts.endswith(",1") else set(), checkpoint._check_sums

    def check(folder):
        if folder.name in bad:
            bad.remove(folder.name)
            raise OSError("Input/output error")
        read(folder)

    checkpoint._check_sums = check
    config = presets.changed(Config.load(like), {"workdir": pathlib.Path(workdir), **json.loads(changes)})
    with command.ends(resumes=True):
        parallel.start(hosts)
        train.train(config, datasets.load(config.dataset, config.data_dir))
"""


def side_by_side(output: Path, command: list, processes: int = 2, option: str = "") -> list[subprocess.Popen]:
    """Processes that share eight devices and find each other by the last argument, each writing OUTPUT-I.txt."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = []
    for i in range(processes):
        hosts = f"localhost:{port},{processes},{i}" if processes > 1 else ""
        environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(8 // processes)}
        arguments = [sys.executable, *map(str, command), *([option] if option else []), hosts]
        with output.with_name(f"{output.name}-{i}.txt").open("w") as file:
            started.append(subprocess.Popen(arguments, stdout=file, stderr=file, env=environment))
    return started


def finish(output: Path, started: list[subprocess.Popen]) -> tuple[int, str]:
    """The exit status that all have, and what the first one told, without line breaks."""
    codes = [process.wait(timeout=300) for process in started]
    told = [output.with_name(f"{output.name}-{i}.txt").read_text() for i in range(len(codes))]
    assert len(set(codes)) == 1, [text[-2000:] for text in told]
    return codes[0], "".join(told[0].split())


def training(whole: Path, workdir: Path, blind: str = "", **changes) -> list[subprocess.Popen]:
    return side_by_side(workdir, ["-c", TRAIN, whole, workdir, json.dumps(changes), blind])


def wait_for_step(workdir: Path, step: int, started: list[subprocess.Popen]) -> None:
    """Until that step is logged and a checkpoint is complete, which orbax writes while training goes on."""
    deadline = time.monotonic() + 240
    while (losses(workdir) or [(0, 0)])[-1][0] < step or not saved(workdir):
        assert time.monotonic() < deadline and all(process.poll() is None for process in started), "not reached"
        time.sleep(0.01)


def saved(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdigit())


def losses(workdir: Path) -> list[tuple[int, float]]:
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]  # the last may be half written
    return [(row["step"], loss) for row in rows for loss in row["losses"]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run of two processes through the experiment script, trained and scored."""
    folder = tmp_path_factory.mktemp("hosts")
    datasets.prepare(Synthetic(data_dir=folder / "data", size=32, train=64, val=24, test=30, workers=1))
    script = [ROOT / "experiments" / "quickstart.py", *FLAGS]
    script += ["--data-dir", folder / "data", "--workdir", folder / "whole"]
    code, told = finish(folder / "whole", side_by_side(folder / "whole", script, option="--machine.hosts"))
    assert code == 0, told[-2000:]
    return folder / "whole"


def assert_bitwise(workdir: Path, whole: Path) -> None:
    (params, last), (expected, _) = (checkpoint.load_params(folder) for folder in (workdir, whole))
    assert last == STEPS
    chex.assert_trees_all_equal(params, expected)
    assert losses(workdir) == losses(whole)


def assert_close(workdir: Path, whole: Path) -> None:
    """The same losses and parameters, to rounding."""
    chex.assert_trees_all_close(*(checkpoint.load_params(folder)[0] for folder in (workdir, whole)), atol=1e-5)
    np.testing.assert_allclose(losses(workdir), losses(whole), rtol=1e-5)


def test_killed_and_resumed_is_bitwise_and_by_one_process_nearly(whole, tmp_path):
    """Which says that it is another number of processes, in the output and in manifest.json, and scores alike."""
    started = training(whole, tmp_path / "killed")
    wait_for_step(tmp_path / "killed", 12, started)
    for process in started:
        process.send_signal(signal.SIGKILL)
        process.wait()
    shutil.copytree(tmp_path / "killed", tmp_path / "one")
    _, told = finish(tmp_path / "killed", training(whole, tmp_path / "killed"))
    assert "resumed" in told
    assert_bitwise(tmp_path / "killed", whole)

    script = [ROOT / "experiments" / "quickstart.py", *FLAGS, "--data-dir", whole.parent / "data"]
    script += ["--workdir", tmp_path / "one"]
    code, told = finish(tmp_path / "one", side_by_side(tmp_path / "one", script, 1, "--machine.hosts"))
    assert code == 0 and "resumed" in told and "processes:2->1" in told, told[-2000:]
    manifest = json.loads((tmp_path / "one" / "manifest.json").read_text())
    (continued,) = manifest["continued"]
    assert (manifest["processes"], continued["processes"]) == (2, 1) and continued["step"] % EVERY == 0
    assert_close(tmp_path / "one", whole)
    with np.load(whole / "maps" / "test.npz") as a, np.load(tmp_path / "one" / "maps" / "test.npz") as b:
        assert len(a["image_id"]) == 30  # not a multiple of the batch
        np.testing.assert_array_equal(a["image_id"], b["image_id"])
        np.testing.assert_allclose(a["infomask"].astype(float), b["infomask"].astype(float), atol=2e-3)


def test_one_told_to_stop_stops_both_and_pmap_ends_where_jit_does(whole, tmp_path):
    run, settings = tmp_path / "run", {"machine.parallel": "pmap", "machine.log_every": 1}
    started = training(whole, run, **settings)
    wait_for_step(run, 7, started)
    started[1].send_signal(signal.SIGTERM)
    code, told = finish(run, started)
    step = losses(run)[-1][0]
    assert code == STOPPED and saved(run)[-1] == step < STEPS, told
    assert finish(run, training(whole, run, **settings))[0] == 0
    assert [loss for _, loss in losses(run)] == pytest.approx([loss for _, loss in losses(whole)], rel=1e-5)
    chex.assert_trees_all_close(*(checkpoint.load_params(folder)[0] for folder in (run, whole)), atol=1e-5)


def test_what_one_process_cannot_read_none_takes(whole, tmp_path):
    """The second process's disk fails on the newest checkpoint: both go on from the one before, and end as the whole
    run."""
    run = shutil.copytree(whole, tmp_path / "run")
    code, told = finish(run, training(whole, run, blind=str(STEPS)))
    assert code == 0 and f"checkpoints/{STEPS}cannotberead(byanotherprocess);movedto" in told, told[-2000:]
    assert "fromstep28of" in told and (run / f"broken-{STEPS}" / "state").is_dir()
    assert_bitwise(run, whole)


def test_two_processes_reproduce_their_run(whole, tmp_path):
    """To the last bit of every parameter; and both end as the first does, who finds a loss that was another."""
    run = shutil.copytree(whole, tmp_path / "run")
    first, *others = (run / "metrics.jsonl").read_text().splitlines()
    row = json.loads(first)
    row["losses"][1] += 1e-6
    (run / "metrics.jsonl").write_text("\n".join([json.dumps(row), *others, ""]))
    output = tmp_path / "told"
    code, told = finish(output, side_by_side(output, ["-m", "infomask_jax", "reproduce", run], option="--hosts"))
    assert code == 2 and "thefirststepthatdiffersis2:" in told and "notasitwas" not in told, told
    assert "largestdifferenceofaparameter0" in told and "differ" not in (tmp_path / "told-1.txt").read_text()
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"run"}


def test_others_wait_for_the_one_that_scores_and_fails(tmp_path):
    """One that is gone earlier would take it down within minutes."""
    code = """if True:
        import sys, time
        from infomask_jax import parallel
        parallel.start(sys.argv[1])
        parallel.wait_for_all("begun")
        with parallel.main_alone("scored") as alone:
            if alone:
                time.sleep(2)
                print(time.time(), flush=True)
                raise ValueError
        print(time.time(), flush=True)
    """
    started = side_by_side(tmp_path / "told", ["-c", code])
    assert [process.wait(timeout=120) != 0 for process in started] == [True, False]
    scored, other = (float((tmp_path / f"told-{i}.txt").read_text().split()[0]) for i in range(2))
    assert other >= scored


def test_script_for_tpus_says_how_it_is_called():
    script = ["bash", ROOT / "experiments" / "tpu.sh"]
    for arguments, words in (((), "start -- SCRIPT"), (("start", "--", "some.py"), "set it to the bucket")):
        environment = {**os.environ, "PROJECT": "p", "ZONE": "z", "BUCKET": ""}
        found = subprocess.run([*script, *arguments], capture_output=True, text=True, env=environment)
        assert found.returncode != 0 and words in found.stderr
