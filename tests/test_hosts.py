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

from infomask_jax import checkpoint, datasets, inference, presets, reproduce
from infomask_jax.command import STOPPED
from infomask_jax.config import Config
from infomask_jax.datasets import Synthetic
from infomask_jax.train import train

ROOT = Path(__file__).parent.parent
STEPS, EVERY = 30, 7
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


def side_by_side(output: Path, *command) -> list[subprocess.Popen]:
    """Two processes that share eight devices and find each other by the last argument, each writing OUTPUT-I.txt."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started, environment = [], {**os.environ, "JAX_NUM_CPU_DEVICES": "4"}
    for i in range(2):
        words = [sys.executable, *map(str, command), f"localhost:{port},2,{i}"]
        with output.with_name(f"{output.name}-{i}.txt").open("w") as file:
            started.append(subprocess.Popen(words, stdout=file, stderr=file, env=environment))
    return started


def finish(output: Path, started: list[subprocess.Popen]) -> tuple[int, str]:
    """The exit status that both have, and what the first one told, without line breaks."""
    codes = [process.wait(timeout=300) for process in started]
    told = [output.with_name(f"{output.name}-{i}.txt").read_text() for i in range(2)]
    assert codes[0] == codes[1], [text[-2000:] for text in told]
    return codes[0], "".join(told[0].split())


def training(whole: Path, workdir: Path, blind: str = "", **changes) -> list[subprocess.Popen]:
    return side_by_side(workdir, "-c", TRAIN, whole, workdir, json.dumps(changes), blind)


def wait_for_step(workdir: Path, step: int, started: list[subprocess.Popen]) -> None:
    """Until that step is logged and the checkpoints up to it are complete, which orbax writes meanwhile."""
    deadline = time.monotonic() + 240
    while (losses(workdir) or [(0, 0)])[-1][0] < step or len(saved(workdir)) < step // EVERY:
        assert time.monotonic() < deadline and all(process.poll() is None for process in started), "not reached"
        time.sleep(0.05)


def saved(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdigit())


def losses(workdir: Path) -> list[tuple[int, float]]:
    return [*reproduce.losses(workdir).items()] if (workdir / "metrics.jsonl").exists() else []


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run of two processes through the experiment script, trained and scored."""
    folder = tmp_path_factory.mktemp("hosts")
    datasets.prepare(Synthetic(data_dir=folder / "data", size=32, train=64, val=24, test=30, workers=1))
    script = [ROOT / "experiments" / "quickstart.py", *FLAGS]
    script += ["--data-dir", folder / "data", "--workdir", folder / "whole", "--machine.hosts"]
    code, told = finish(folder / "whole", side_by_side(folder / "whole", *script))
    assert code == 0, told[-2000:]
    return folder / "whole"


def assert_close(workdir: Path, whole: Path) -> None:
    """The same losses, as far as they go, and parameters, to rounding."""
    found = losses(workdir)
    np.testing.assert_allclose(found, losses(whole)[: len(found)], rtol=1e-5)
    if found[-1][0] == STEPS:
        chex.assert_trees_all_close(*(checkpoint.load_params(folder)[0] for folder in (workdir, whole)), atol=1e-5)


def test_killed_and_resumed_is_bitwise_although_a_disk_fails(whole, tmp_path):
    """What one process cannot read none takes: both go on from the checkpoint before."""
    run = tmp_path / "killed"
    started = training(whole, run)
    wait_for_step(run, 16, started)
    for process in started:
        process.send_signal(signal.SIGKILL)
        process.wait()
    before, newest = saved(run)
    code, told = finish(run, training(whole, run, blind=str(newest)))
    assert code == 0 and f"checkpoints/{newest}cannotberead(byanotherprocess);movedto" in told, told[-2000:]
    assert f"fromstep{before}of" in told and (run / f"broken-{newest}" / "state").is_dir()
    (params, last), (expected, _) = (checkpoint.load_params(folder) for folder in (run, whole))
    assert last == STEPS and losses(run) == losses(whole)
    chex.assert_trees_all_equal(params, expected)


def test_one_process_goes_on_and_scores_as_two(whole, tmp_path, capsys):
    """It tells that it is another number of processes, as manifest.json does."""
    copy = shutil.copytree(whole, tmp_path / "one")
    shutil.rmtree(copy / "checkpoints" / str(STEPS))
    config = presets.changed(Config.load(whole), {"workdir": copy})
    data = datasets.load(config.dataset, config.data_dir)
    params = train(config, data).params
    assert "processes:2->1" in "".join(capsys.readouterr().out.split())
    manifest = json.loads((copy / "manifest.json").read_text())
    assert (manifest["processes"], manifest["continued"][0]["processes"]) == (2, 1)
    assert_close(copy, whole)
    found = inference.predict(config, params, data.source("test"), 1).maps["infomask"][..., 0]
    with np.load(whole / "maps" / "test.npz") as stored:
        assert len(stored["image_id"]) == 30  # not a multiple of the batch
        np.testing.assert_allclose(stored["infomask"].astype(float), found.astype(float), atol=2e-3)


def test_one_told_to_stop_stops_both_and_pmap_does_as_jit(whole, tmp_path):
    run = tmp_path / "run"
    started = training(whole, run, **{"machine.parallel": "pmap", "machine.log_every": 1})
    wait_for_step(run, EVERY, started)
    started[1].send_signal(signal.SIGTERM)
    code, told = finish(run, started)
    assert code == STOPPED and saved(run)[-1] == losses(run)[-1][0] < STEPS, told
    assert_close(run, whole)


def test_two_processes_reproduce_their_run(whole, tmp_path):
    """To the last bit of every parameter; and both end as the first does, who finds a loss that was another."""
    run = shutil.copytree(whole, tmp_path / "run")
    first, *others = (run / "metrics.jsonl").read_text().splitlines()
    row = json.loads(first)
    row["losses"][1] += 1e-6
    (run / "metrics.jsonl").write_text("\n".join([json.dumps(row), *others, ""]))
    output = tmp_path / "told"
    code, told = finish(output, side_by_side(output, "-m", "infomask_jax", "reproduce", run, "--hosts"))
    assert code == 2 and "thefirststepthatdiffersis2:" in told and "notasitwas" not in told, told
    assert "largestdifferenceofaparameter0" in told and "differ" not in (tmp_path / "told-1.txt").read_text()
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"run"}


def test_script_for_tpus_says_how_it_is_called():
    script = ["bash", ROOT / "experiments" / "tpu.sh"]
    for arguments, words in (((), "start -- SCRIPT"), (("start", "--", "some.py"), "set it to the bucket")):
        environment = {**os.environ, "PROJECT": "p", "ZONE": "z", "BUCKET": ""}
        found = subprocess.run([*script, *arguments], capture_output=True, text=True, env=environment)
        assert found.returncode != 0 and words in found.stderr
