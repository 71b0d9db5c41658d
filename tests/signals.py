"""Kills, interrupts and ends commands at random moments, repeats each, and compares with what was never interrupted.

    python tests/signals.py --seed 0 --kills 20

sends 20 each of SIGKILL, SIGINT (to all processes of a command, as a terminal does) and SIGTERM to prepare, train,
evaluate and predict on tiny data. Each command must end within ten seconds of the signal, without a traceback; the same
command again must give the same files and parameters to the last bit, and leave nothing half-written. Prints a table;
exit status 1 if anything failed. About 15 minutes on two cores.
"""

import argparse
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

import cv2
import jax

from infomask_jax import checkpoint, datasets
from infomask_jax.datasets import synthetic
from infomask_jax.reproduce import losses

ROOT = Path(__file__).parent.parent
SECONDS = 10  # that a command may take to end
CURVES = {"run/figures/training.png", "run/report.html"}  # where a stop, which adds a line to metrics.jsonl, is seen
SCORED = ("eval", "maps", "boxes", "predictions", "figures", "report.html")  # what evaluate writes into a run
TINY = "--map-shifts 1 --data.image-size 32 --data.batch-size 8 --model.width 8 --train.steps 40"
TINY += " --model.latent-channels 4 --machine.log-every 5 --machine.checkpoint-every 10"
COMMANDS = {
    "prepare": "-m infomask_jax prepare synthetic --data-dir data --size 32 --train 200 --val 8 --test 8 --workers 2",
    "train": f"{ROOT}/experiments/quickstart.py --data-dir data --workdir run {TINY}",
    "evaluate": "-m infomask_jax evaluate run",
    "predict": "-m infomask_jax predict run films --out out",
}


def start(command: str, folder: Path) -> subprocess.Popen:
    screen = (folder.parent / "screen").open("w+")
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, *command.split()],
        cwd=folder,
        stdout=screen,
        stderr=screen,
        env=environment,
        start_new_session=True,
    )


def screen(folder: Path) -> str:
    return (folder.parent / "screen").read_text()


def half_written(folder: Path) -> list[str]:
    names = ("*.tmp", ".building*", "*orbax-checkpoint-tmp*")
    return sorted(str(path.relative_to(folder)) for name in names for path in folder.rglob(name))


def digest(data: bytes | str) -> str:
    return hashlib.sha256(data if isinstance(data, bytes) else data.encode()).hexdigest()


def contents(folder: Path) -> dict[str, str]:
    """{file: digest}; of metrics.jsonl the losses of all steps, of prepared data the examples, of checkpoints the
    parameters: those files differ from one time to the next."""
    data = datasets.load("synthetic", folder / "data")
    found = {split: digest(repr([*data.source(split)])) for split in data.splits}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and path.name != ".lock" and not {*name.parts} & {"checkpoints", "synthetic"}:
            data = path.read_bytes()
            if path.name == "metrics.jsonl":
                data = json.dumps(losses(path.parent)).encode()
            found[str(name)] = digest(data)
        if path.name == "checkpoints":
            params, step = checkpoint.load_params(path.parent)
            data = b"".join(leaf.tobytes() for leaf in jax.tree.leaves(params))
            found[str(name)] = f"{step} {digest(data)}"
    return found


def trial(verb: str, number: int, delay: float, before: Path, folder: Path, expected: dict) -> tuple[int, float, str]:
    """One signal, after `delay` seconds, and the same command again. Returns the exit status, the seconds that the end
    took, and what is wrong."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(before, folder)
    process, wrong = start(COMMANDS[verb], folder), []
    time.sleep(delay)
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    sent = time.monotonic()
    try:
        status = process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait(), SECONDS, f"did not end within {SECONDS} s"
    took, told = time.monotonic() - sent, screen(folder)
    if "Traceback" in told or "Exception ignored" in told:
        wrong.append(f"traceback: {told[-1500:]}")
    if number != signal.SIGKILL and (left := half_written(folder)):
        wrong.append(f"left after the signal: {left}")
    again = start(COMMANDS[verb], folder).wait()
    if again and not (verb == "predict" and "found something in out" in screen(folder)):  # it was done already
        wrong.append(f"again: exit {again}: {screen(folder)[-1500:]}")
    if left := half_written(folder):
        wrong.append(f"left: {left}")
    found = contents(folder)
    names = (expected.keys() | found.keys()) - (CURVES if verb == "train" else set())
    if differing := sorted(name for name in names if expected.get(name) != found.get(name)):
        wrong.append(f"differs: {differing}")
    return status, took, "; ".join(wrong)


def prepare(scratch: Path) -> tuple[dict[str, Path], dict[str, dict], dict[str, float]]:
    """For each command the folder in which it begins, what it gives and how long it takes when left alone."""
    before, expected, seconds, folder = {}, {}, {}, scratch / "work"
    folder.mkdir()
    for verb, command in COMMANDS.items():
        if verb == "evaluate":
            for name in SCORED:
                path = folder / "run" / name
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        before[verb] = shutil.copytree(folder, scratch / f"before-{verb}")
        if verb == "train":  # programs are compiled once
            assert start(command, folder).wait() == 0, screen(folder)
            shutil.rmtree(folder)
            shutil.copytree(before[verb], folder)
        began = time.monotonic()
        assert start(command, folder).wait() == 0, screen(folder)
        seconds[verb], expected[verb] = time.monotonic() - began, contents(folder)
        if verb == "evaluate":
            draw(folder / "films")
    return before, expected, seconds


def draw(folder: Path, count: int = 24) -> None:
    """Phantoms as films in files."""
    folder.mkdir()
    config = synthetic.PhantomConfig(size=64, contrast=0.35)
    for i in range(count):
        cv2.imwrite(str(folder / f"{i:02d}.png"), synthetic.render(0, i, config)["image"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--kills", type=int, default=20, help="of each kind")
    arguments = parser.parse_args()
    rng, failed, table = random.Random(arguments.seed), 0, defaultdict(list)
    scratch = Path(tempfile.mkdtemp(prefix="infomask-signals-"))
    try:
        before, expected, seconds = prepare(scratch)
        print({verb: f"{taken:.1f} s" for verb, taken in seconds.items()}, flush=True)
        kinds = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
        verbs = itertools.islice(itertools.cycle(COMMANDS), arguments.kills)
        for verb, number in itertools.product(verbs, kinds):
            delay = rng.uniform(0.1, seconds[verb])
            where = scratch / "work", expected[verb]
            status, took, wrong = trial(verb, number, delay, before[verb], *where)
            table[verb, number].append((status, took, wrong))
            if wrong:
                failed += 1
                print(f"{verb}, {number.name} after {delay:.3f} s, exit {status}: {wrong}", flush=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(f"{'command':10}{'signal':10}{'sent':>5}{'failed':>8}{'slowest end, s':>16}  exit statuses")
    for (verb, number), rows in table.items():
        statuses = ", ".join(f"{status}: {n}" for status, n in Counter(row[0] for row in rows).items())
        bad, slowest = sum(bool(row[2]) for row in rows), max(row[1] for row in rows)
        print(f"{verb:10}{number.name:10}{len(rows):5}{bad:8}{slowest:16.1f}  {statuses}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
