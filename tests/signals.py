"""Kills, interrupts and ends commands at random moments, repeats each, and compares with what was never interrupted.

    python tests/signals.py --seed 0 --kills 20

sends 20 each of SIGKILL, SIGINT (to all processes of a command, as a terminal does) and SIGTERM to prepare, train,
evaluate and predict on tiny data. Each command must end within ten seconds of the signal, without a traceback; the same
command again must give the same files and parameters to the last bit, and leave nothing half-written. Exit status 1 if
anything failed. About 15 minutes on two cores.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax

from infomask_jax import checkpoint, datasets
from infomask_jax.reproduce import losses

ROOT = Path(__file__).parent.parent
SECONDS = 10  # that a command may take to end
CURVES = {"run/figures/training.png", "run/report.html"}  # where a stop, which adds a line to metrics.jsonl, is seen
TINY = "--map-shifts 1 --data.image-size 32 --data.batch-size 8 --model.width 8 --train.steps 40"
TINY += " --model.latent-channels 4 --machine.log-every 5 --machine.checkpoint-every 10"
COMMANDS = {
    "prepare": "-m infomask_jax prepare synthetic --data-dir data --size 32 --train 200 --val 8 --test 8 --workers 2",
    "train": f"{ROOT}/experiments/quickstart.py --data-dir data --workdir run {TINY}",
    "evaluate": "-m infomask_jax evaluate run",
    "predict": "-m infomask_jax predict run films --out out",
}


def start(verb: str, folder: Path) -> subprocess.Popen:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    with (folder.parent / "screen").open("w") as screen:
        options = {"stdout": screen, "stderr": screen, "env": environment, "start_new_session": True}
        return subprocess.Popen([sys.executable, *COMMANDS[verb].split()], cwd=folder, **options)


def half_written(folder: Path) -> list[str]:
    names = ("*.tmp", ".building*", "*orbax-checkpoint-tmp*")
    return sorted(str(path.relative_to(folder)) for name in names for path in folder.rglob(name))


def contents(folder: Path) -> dict[str, str]:
    """{file: digest}; of metrics.jsonl the losses of all steps, of prepared data the examples, of checkpoints the
    parameters: those files differ from one time to the next."""
    data = datasets.load("synthetic", folder / "data")
    found = {split: repr([*data.source(split)]).encode() for split in data.splits}
    for path in folder.rglob("*"):
        if path.name == "checkpoints":
            params, step = checkpoint.load_params(path.parent)
            found[str(path)] = b"".join([str(step).encode(), *(leaf.tobytes() for leaf in jax.tree.leaves(params))])
        elif path.is_file() and path.name != ".lock" and not {*path.parts} & {"checkpoints", "synthetic"}:
            told = path.name == "metrics.jsonl"
            found[str(path)] = json.dumps(losses(path.parent)).encode() if told else path.read_bytes()
    return {name.removeprefix(f"{folder}/"): hashlib.sha256(data).hexdigest() for name, data in found.items()}


def trial(verb: str, number: int, delay: float, before: Path, folder: Path, expected: dict) -> list[str]:
    """What is wrong after one signal, `delay` seconds after the start, and the same command again."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(before, folder)
    screen, wrong, process = folder.parent / "screen", [], start(verb, folder)
    time.sleep(delay)
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    try:
        process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return [f"did not end within {SECONDS} s"]
    if "Traceback" in (told := screen.read_text()) or "Exception ignored" in told:
        wrong.append(f"traceback: {told[-1500:]}")
    if number != signal.SIGKILL and (left := half_written(folder)):
        wrong.append(f"left after the signal: {left}")
    again = start(verb, folder).wait()
    if again and not (verb == "predict" and "found something in out" in screen.read_text()):  # it was done already
        wrong.append(f"again: exit {again}: {screen.read_text()[-1500:]}")
    if left := half_written(folder):
        wrong.append(f"left: {left}")
    found = contents(folder)
    names = (expected.keys() | found.keys()) - (CURVES if verb == "train" else set())
    if differing := sorted(name for name in names if expected.get(name) != found.get(name)):
        wrong.append(f"differs: {differing}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--kills", type=int, default=20, help="of each kind")
    arguments = parser.parse_args()
    rng, failed = random.Random(arguments.seed), 0
    with tempfile.TemporaryDirectory(prefix="infomask-signals-") as scratch:
        folder, undisturbed = Path(scratch, "work"), {}
        folder.mkdir()
        for verb in COMMANDS:  # what each gives when left alone, in how many seconds
            if verb == "evaluate":  # writes them anew
                for name in ("eval", "maps", "boxes", "predictions", "figures"):
                    shutil.rmtree(folder / "run" / name)
            if verb == "predict":  # the stored pictures of the test split as films
                (folder / "films").mkdir()
                for film in datasets.load("synthetic", folder / "data").source("test"):
                    (folder / "films" / f"{film['image_id']}.png").write_bytes(film["image"])
            before, began = shutil.copytree(folder, Path(scratch, verb)), time.monotonic()
            assert start(verb, folder).wait() == 0, (folder.parent / "screen").read_text()
            undisturbed[verb] = before, contents(folder), time.monotonic() - began
        for kill in range(arguments.kills):
            verb = [*COMMANDS][kill % len(COMMANDS)]
            before, expected, seconds = undisturbed[verb]
            for number in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM):
                delay = rng.uniform(0.1, seconds)
                wrong = trial(verb, number, delay, before, folder, expected)
                failed += bool(wrong)
                print(f"{verb}, {number.name} after {delay:.3f} s: {'; '.join(wrong) or 'as it should'}", flush=True)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
